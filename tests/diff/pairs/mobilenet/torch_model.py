"""MobileNet with TensorFlow's conventions (SAME padding, epsilon 1e-3), for weights that come from Keras."""

from collections import OrderedDict

import numpy as np
import torch
import torch.nn.functional as F
import weights
from torch import nn

BN_EPS_TF_DEFAULT = 1e-3
BN_MOMENTUM_TF_DEFAULT = 1 - 0.99


def pad_same(x, k, s):
    """Pad as TensorFlow's SAME: what is left over goes to the bottom and to the right."""
    ih, iw = x.size()[-2:]
    pad_h = max((-(-ih // s) - 1) * s + k - ih, 0)
    pad_w = max((-(-iw // s) - 1) * s + k - iw, 0)
    return F.pad(x, [pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2])


class Conv2dSame(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(pad_same(x, self.kernel_size[0], self.stride[0]), self.weight, self.bias)


class UnfoldedDepthwise(Conv2dSame):
    """Depthwise convolution as a weighted sum over the patches."""

    def forward(self, x):
        k, s = self.kernel_size[0], self.stride[0]
        n, c, h, w = x.shape
        patches = F.unfold(pad_same(x, k, s), k, stride=s).view(n, c, k * k, -(-h // s), -(-w // s))
        return torch.einsum("nckhw,ck->nchw", patches, self.weight.flatten(1))


class BatchNormTF(nn.BatchNorm2d):
    """The running variance is that of the batch, without Bessel's correction."""

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        var, mean = torch.var_mean(x.detach(), dim=(0, 2, 3), unbiased=False)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var, self.momentum)
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)


class HSwish(nn.Module):
    def forward(self, x):
        return x * (F.relu6(x + 3.0) / 6.0)


def conv_bn_act(in_chs, out_chs, k=1, s=1, groups=1, act=None, fault=None, variant=None):
    conv = Conv2dSame
    if variant == "unfold" and groups > 1:
        conv = UnfoldedDepthwise
    if fault == "symmetric_padding" and s == 2 and groups > 1:
        mods = [("conv", nn.Conv2d(in_chs, out_chs, k, s, padding=(k - 1) // 2, groups=groups, bias=False))]
    else:
        mods = [("conv", conv(in_chs, out_chs, k, s, groups=groups, bias=False))]
    norm = nn.BatchNorm2d if fault == "running_var_unbiased" else BatchNormTF
    eps = 1e-5 if fault == "bn_eps" else BN_EPS_TF_DEFAULT
    momentum = 0.1 if fault == "bn_momentum" else BN_MOMENTUM_TF_DEFAULT
    mods.append(("bn", norm(out_chs, eps=eps, momentum=momentum)))
    if act is not None:
        mods.append(("act", act()))
    return nn.Sequential(OrderedDict(mods))


class SqueezeExcite(nn.Module):
    def __init__(self, chs, rd_chs, fault=None):
        super().__init__()
        self.fc1 = nn.Conv2d(chs, rd_chs, 1)
        self.act = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(rd_chs, chs, 1)
        self.gate = nn.Hardsigmoid()
        self.fault = fault

    def forward(self, x):
        x_se = x.mean((2, 3), keepdim=True)
        if self.fault == "gate_detached":
            x_se = x_se.detach()
        return x * self.gate(self.fc2(self.act(self.fc1(x_se))))


class InvertedResidual(nn.Module):
    def __init__(self, in_chs, mid_chs, out_chs, k, s, act, fault=None, variant=None):
        super().__init__()
        self.has_skip = s == 1 and in_chs == out_chs
        more = dict(fault=fault, variant=variant)
        self.expand = conv_bn_act(in_chs, mid_chs, act=act, **more)
        self.dw = conv_bn_act(mid_chs, mid_chs, k, s, groups=mid_chs, act=act, **more)
        self.se = SqueezeExcite(mid_chs, 8, fault)
        self.project = conv_bn_act(mid_chs, out_chs, **more)

    def forward(self, x):
        shortcut = x
        x = self.project(self.se(self.dw(self.expand(x))))
        return x + shortcut if self.has_skip else x


class Separable(nn.Module):
    def __init__(self, in_chs, out_chs, multiplier):
        super().__init__()
        self.depthwise = Conv2dSame(in_chs, in_chs * multiplier, 3, groups=in_chs, bias=False)
        self.pointwise = nn.Conv2d(in_chs * multiplier, out_chs, 1)
        self.act = nn.ReLU6()

    def forward(self, x):
        return self.act(self.pointwise(self.depthwise(x)))


class MobileNet(nn.Module):
    def __init__(self, fault=None, variant=None):
        super().__init__()
        more = dict(fault=fault, variant=variant)
        h_swish = HSwish if variant == "own_hswish" else nn.Hardswish
        if fault == "silu":
            h_swish = nn.SiLU
        features = OrderedDict(stem=conv_bn_act(3, 12, 3, 2, act=h_swish, **more))
        for (name, (cin, hidden, cout, k)), s, act in zip(
            weights.BLOCKS.items(), (2, 1), (nn.ReLU6, h_swish), strict=True
        ):
            features[name] = InvertedResidual(cin, hidden, cout, k, s, act, **more)
        features["sep"] = Separable(16, 24, weights.MULTIPLIER)
        self.features = nn.Sequential(features)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(24, 10))

    def forward(self, image):
        x = self.features(image / 127.5 - 1.0)
        return self.classifier(x.mean([2, 3]))


def build(fault=None, variant=None, dtype="float32"):
    net = MobileNet(fault, variant).to(dtype=getattr(torch, dtype))
    weights.load_torch(net, weights.make(0), fault)
    return net.eval()


def inputs(seed):
    g = np.random.default_rng(300 + seed)
    return (g.integers(0, 256, size=(4, 3, 20, 20)).astype("float32"),)
