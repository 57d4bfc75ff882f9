import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import weights


class LayerNorm(nn.Module):
    r"""LayerNorm that supports two data formats: channels_last (N, H, W, C) or channels_first (N, C, H, W)."""

    def __init__(self, normalized_shape, eps=1e-6, data_format="channels_last", fault=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(normalized_shape))
        self.bias = nn.Parameter(torch.zeros(normalized_shape))
        self.eps = eps
        self.data_format = data_format
        self.normalized_shape = (normalized_shape,)
        self.fault = fault

    def forward(self, x):
        if self.data_format == "channels_last":
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        if self.fault == "whole_image":
            return F.group_norm(x, 1, self.weight, self.bias, self.eps)
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / (torch.sqrt(s) + self.eps if self.fault == "eps_outside" else torch.sqrt(s + self.eps))
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class GRN(nn.Module):
    """Global response normalization of ConvNeXt V2."""

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x):  # N, H, W, C
        gx = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        nx = gx / (gx.mean(dim=-1, keepdim=True) + 1e-6)
        return self.weight * (x * nx) + self.bias + x


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


def drop_path(x, drop_prob: float = 0.0, training: bool = False):
    if drop_prob == 0.0 or not training:
        return x
    keep_prob = 1 - drop_prob
    mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep_prob)
    return x * mask / keep_prob


class Block(nn.Module):
    def __init__(self, dim, drop=0.0, fault=None, variant=None):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        conv = variant == "conv1x1"
        self.norm = LayerNorm(dim, data_format="channels_first" if conv else "channels_last")
        self.pwconv1 = nn.Conv2d(dim, 3 * dim, 1) if conv else nn.Linear(dim, 3 * dim)
        self.act = QuickGELU() if fault == "quick_gelu" else nn.GELU()
        self.grn = GRN(3 * dim)
        self.pwconv2 = nn.Conv2d(3 * dim, dim, 1) if conv else nn.Linear(3 * dim, dim)
        if variant == "scale_folded":
            self.gamma = None
        elif fault == "scale_is_buffer":
            self.register_buffer("gamma", torch.ones(dim))
        else:
            self.gamma = nn.Parameter(torch.ones(dim))
        self.drop, self.conv = drop, conv

    def forward(self, x):
        shortcut = x
        x = self.dwconv(x)
        if self.conv:
            x = self.act(self.pwconv1(self.norm(x)))
            x = self.pwconv2(self.grn(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
            x = self.gamma[:, None, None] * x
        else:
            x = x.permute(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
            x = self.norm(x)
            x = self.pwconv1(x)
            x = self.act(x)
            x = self.grn(x)
            x = self.pwconv2(x)
            if self.gamma is not None:
                x = self.gamma * x
            x = x.permute(0, 3, 1, 2)
        return shortcut + drop_path(x, self.drop, self.training)


class MixerBlock(nn.Module):
    def __init__(self, dim, tokens, fault=None):
        super().__init__()
        self.norm_token = nn.LayerNorm(dim, eps=1e-6)
        self.token_mix = nn.Sequential(nn.Linear(tokens, 20), nn.GELU(), nn.Linear(20, tokens))
        self.norm_channel = nn.LayerNorm(dim, eps=1e-6)
        self.channel_mix = nn.Sequential(nn.Linear(dim, 48), nn.GELU(), nn.Linear(48, dim))
        self.fault = fault

    def forward(self, x):
        y = self.norm_token(x)
        mixed = self.token_mix(y.transpose(1, 2)).transpose(1, 2)
        x = (y if self.fault == "residual_of_norm" else x) + mixed
        return x + self.channel_mix(self.norm_channel(x))


class ConvNeXtMixer(nn.Module):
    def __init__(self, fault=None, variant=None):
        super().__init__()
        a, b = weights.DIMS
        first = dict(data_format="channels_first", fault=fault)
        self.stem = nn.Sequential(nn.Conv2d(3, a, kernel_size=2, stride=2), LayerNorm(a, **first))
        self.blocks = nn.Sequential(*[Block(a, rate, fault, variant) for rate in (0.05, 0.1)])
        self.downsample = nn.Sequential(LayerNorm(a, data_format="channels_first"), nn.Conv2d(a, b, 2, stride=2))
        self.mixer = MixerBlock(b, weights.TOKENS, fault)
        self.norm = nn.LayerNorm(b, eps=1e-6)
        self.head = nn.Linear(b, weights.CLASSES)

    def forward(self, x):
        x = self.downsample(self.blocks(self.stem(x)))
        x = self.mixer(x.flatten(2).transpose(1, 2))
        return self.head(self.norm(x.mean(1)))  # global average pooling, (N, T, C) -> (N, C)


def build(fault=None, variant=None, dtype="float32"):
    model = ConvNeXtMixer(fault, variant).to(getattr(torch, dtype))
    weights.load_torch(model, weights.make(), variant)
    return model.eval()


def inputs(seed):
    return (np.random.default_rng(40 + seed).standard_normal((2, 3, 16, 16), dtype=np.float32),)
