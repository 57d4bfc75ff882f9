"""WaveNet-like stack of dilated causal convolutions with weight normalisation."""

import numpy as np
import torch
import torch.nn.functional as F
import weights
from torch import nn


class WNConv(nn.Module):
    """Causal convolution whose kernel is g v / |v|, the norm over everything but the output channel."""

    def __init__(self, cin, cout, size, dilation=1, as_2d=False):
        super().__init__()
        self.v = nn.Parameter(torch.zeros(cout, cin, size))
        self.g = nn.Parameter(torch.ones(cout))
        self.b = nn.Parameter(torch.zeros(cout))
        self.dilation, self.left, self.as_2d = dilation, dilation * (size - 1), as_2d

    def forward(self, x):
        w = self.g[:, None, None] * self.v / self.v.norm(dim=(1, 2), keepdim=True)
        x = F.pad(x, (self.left, 0))
        if self.as_2d:
            return F.conv2d(x[:, :, None], w[:, :, None], self.b, dilation=(1, self.dilation))[:, :, 0]
        return F.conv1d(x, w, self.b, dilation=self.dilation)


class GatedBlock(nn.Module):
    def __init__(self, dilation, variant, fault):
        super().__init__()
        c = weights.C
        self.conv = WNConv(c, 2 * c, 3, dilation, variant == "conv2d")
        self.res, self.skip = nn.Conv1d(c, c, 1), nn.Conv1d(c, c, 1)
        self.variant, self.fault = variant, fault

    def forward(self, x):
        if self.variant == "glu":
            a, b = self.conv(x).chunk(2, 1)
            h = F.glu(torch.cat([a.tanh(), b], 1), 1)
        else:
            a, b = self.conv(x).chunk(2, dim=1)
            if self.fault == "gates_swapped":
                a, b = b, a
            h = torch.tanh(a) * torch.sigmoid(b)
        residual = x + self.res(h)
        return residual if self.fault == "no_residual_scale" else residual * 0.5**0.5, self.skip(h)


class WaveNet(nn.Module):
    def __init__(self, variant=None, fault=None):
        super().__init__()
        self.first = WNConv(2, weights.C, 1)
        self.blocks = nn.ModuleList([GatedBlock(d, variant, fault) for d in weights.DILATIONS])
        self.act = nn.PReLU(weights.C)
        self.end = nn.Conv1d(weights.C, 2, 1)
        self.fault = fault

    def forward(self, x):
        if self.fault == "shifted":
            x = F.pad(x, (1, 0))[:, :, :-1]
        x = self.first(x)
        total = 0
        for block in self.blocks:
            x, skip = block(x)
            total = skip if self.fault == "last_skip" else total + skip
        return self.end(self.act(total))


def build(fault=None, variant=None, dtype="float32"):
    net = WaveNet(variant, fault)
    w = weights.make()
    names = {"end.weight": "end.w", "end.bias": "end.b", "act.weight": "end.a"}
    state = {}
    for name in net.state_dict():
        if name in names:
            key = names[name]
        elif name.startswith("first."):
            key = "in." + name[6:]
        else:
            _, i, part, end = name.split(".")
            key = f"{i}.{end}" if part == "conv" else f"{i}.{part}.{'w' if end == 'weight' else 'b'}"
        state[name] = torch.from_numpy(w[key])
    net.to(getattr(torch, dtype)).load_state_dict(state)
    return net.eval()


def inputs(seed):
    return (np.random.default_rng(7 + seed).standard_normal((2, 2, 20)).astype("float32"),)
