"""RealNVP: affine couplings, a fixed permutation between them; returns z and the log determinant."""

import math

import numpy as np
import torch
import torch.nn.functional as F
import weights


class RealNVP(torch.nn.Module):
    def __init__(self, variant=None, fault=None):
        super().__init__()
        for name, shape in weights.SHAPES.items():
            self.register_parameter(name, torch.nn.Parameter(torch.zeros(shape)))
        self.register_buffer("perm", torch.tensor(weights.PERM))
        self.variant, self.fault = variant, fault

    def coupling(self, i, x):
        x1, x2 = x.chunk(2, dim=1)
        h = F.softplus(F.linear(x1, self.get_parameter(f"w{i}a"), self.get_parameter(f"b{i}a")), beta=1.0)
        if self.fault == "softplus_beta":
            h = F.softplus(F.linear(x1, self.get_parameter(f"w{i}a"), self.get_parameter(f"b{i}a")), beta=2.0)
        out = F.linear(h, self.get_parameter(f"w{i}b"), self.get_parameter(f"b{i}b"))
        t, s = out.chunk(2, dim=1)[::-1] if self.fault == "scale_shift_swapped" else out.chunk(2, dim=1)
        s = s.clamp(-2, 2) if self.fault == "clamped" else 2 * torch.tanh(s / 2)
        y2 = torch.addcmul(t, x2, s.exp()) if self.variant == "addcmul" else x2 * s.exp() + t
        return torch.cat([x1, y2], 1), s.sum(1)

    def forward(self, x):
        z = (x + self.shift) * self.log_scale.exp()
        logdet = self.log_scale.sum().expand(x.shape[0])
        for i in range(weights.LAYERS):
            z = z.index_select(1, self.perm) if self.variant == "index_select" else z[:, self.perm]
            z, d = self.coupling(i, z)
            logdet = logdet + d
        if self.fault == "detached":
            logdet = logdet.detach()
        logp = -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
        return {"z": z, "logp": logp + logdet}


def build(fault=None, variant=None, dtype="float32"):
    net = RealNVP(variant, fault).to(getattr(torch, dtype))
    with torch.no_grad():
        for name, array in weights.make().items():
            net.get_parameter(name).copy_(torch.from_numpy(array))
    return net.eval()


def inputs(seed):
    return (np.random.default_rng(900 + seed).normal(size=(5, weights.D)),)
