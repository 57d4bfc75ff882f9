"""U-Net for semantic segmentation: parts, then the whole"""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import weights


class SwishFunction(torch.autograd.Function):
    """Swish that keeps its input only and computes the sigmoid again in the backward pass"""

    @staticmethod
    def forward(ctx, i, product_rule):
        ctx.save_for_backward(i)
        ctx.product_rule = product_rule
        return i * torch.sigmoid(i)

    @staticmethod
    def backward(ctx, grad_output):
        (i,) = ctx.saved_tensors
        s = torch.sigmoid(i)
        inner = i * (1 - s) if ctx.product_rule else 1 - s
        return grad_output * (s * (1 + inner)), None


class MemoryEfficientSwish(nn.Module):
    def __init__(self, product_rule=True):
        super().__init__()
        self.product_rule = product_rule

    def forward(self, x):
        return SwishFunction.apply(x, self.product_rule)


class DoubleConv(nn.Module):
    """(convolution => [GN] => SiLU) * 2"""

    def __init__(self, in_channels, out_channels, act):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
            nn.GroupNorm(weights.GROUPS, out_channels),
            act(),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1),
            nn.GroupNorm(weights.GROUPS, out_channels),
            act(),
        )

    def forward(self, x):
        return self.conv(x)


class Up(nn.Module):
    """Upscaling to the size of the skip connection, then double conv"""

    def __init__(self, in_channels, out_channels, act, fault, variant):
        super().__init__()
        self.conv = DoubleConv(in_channels, out_channels, act).conv
        self.fault, self.variant = fault, variant

    def forward(self, x1, x2):
        size = x2.shape[2:]
        if self.fault == "align_corners":
            x1 = F.interpolate(x1, size=size, mode="bilinear", align_corners=True)
        elif self.fault == "doubled_and_cropped":
            x1 = F.interpolate(x1, scale_factor=2, mode="bilinear", align_corners=False)
            x1 = x1[:, :, : size[0], : size[1]]
        else:
            x1 = F.interpolate(x1, size=size, mode="bilinear", align_corners=False)
        if self.variant == "split_kernel":
            first, n = self.conv[0], x2.size(1)
            x = F.conv2d(x1, first.weight[:, n:], padding=1)
            x = x + F.conv2d(x2, first.weight[:, :n], first.bias, padding=1)
            return self.conv[1:](x)
        return self.conv(torch.cat([x2, x1], dim=1))


class UNet(nn.Module):
    def __init__(self, n_channels, n_classes, fault=None, variant=None):
        super().__init__()

        def act():
            if fault == "swish_backward" or variant == "memory_efficient":
                return MemoryEfficientSwish(product_rule=fault is None)
            return nn.SiLU()

        self.inc = DoubleConv(n_channels, 8, act)
        self.pool1 = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=fault != "count_without_padding")
        self.down1 = DoubleConv(8, 16, act)
        self.pool2 = nn.MaxPool2d(2, ceil_mode=fault != "floor_mode")
        self.down2 = DoubleConv(16, 24, act)
        self.up1 = Up(24 + 16, 16, act, fault, variant)
        self.up2 = Up(16 + 8, 8, act, fault, variant)
        self.outc = nn.Conv2d(8, n_classes, kernel_size=1)

    def forward(self, x):
        x1 = self.inc(x)
        x2 = self.down1(self.pool1(x1))
        x3 = self.down2(self.pool2(x2))
        x = self.up1(x3, x2)
        x = self.up2(x, x1)
        return self.outc(x)


def build(fault=None, variant=None, dtype="float32"):
    net = UNet(3, weights.CLASSES, fault, variant)
    net.to(dtype=torch.float64 if dtype == "float64" else torch.float32)
    weights.load_torch(net, weights.make())
    net.eval()
    return net


def inputs(seed):
    return (np.random.default_rng([7, seed]).normal(size=(2, 3, 18, 22)).astype(np.float32),)
