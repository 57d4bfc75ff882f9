"""The magnitude-preserving block kinds as PyTorch modules, see `diffusion_core.networks.blocks.magnitude`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from backends.torch.module import Module, convolve
from diffusion_core.networks.program import Training
from diffusion_core.optim.normalisation import MIN_SQUARE

__all__ = ["normalise", "normalise_weight"]


def normalise(x: Tensor, axes: Sequence[int], eps: float) -> Tensor:
    """Return x / (eps + rms(x)), with the root mean square over some axes."""
    return x / (x.square().mean(dim=tuple(axes), keepdim=True).clamp_min(MIN_SQUARE).sqrt() + eps)


def normalise_weight(weight: Tensor, eps: float) -> Tensor:
    """Return a weight whose rows, all numbers of one output, have size 1."""
    return normalise(weight, range(1, weight.ndim), eps)


class MPFourier(Module):
    def forward(self, c_noise: Tensor) -> Tensor:
        angle = c_noise[:, None] * self.frequencies.to(c_noise.dtype) + self.phases.to(c_noise.dtype)
        return (angle.cos() * 2.0**0.5).to(self.context.dtype)


class OneHot(Module):
    def forward(self, label: Tensor) -> Tensor:
        classes = torch.arange(self.block.count, device=label.device)
        return (label[:, None] == classes).to(self.context.dtype) * self.block.scale


def _rows(module: Module, training: Training | None) -> Tensor:
    """Return the weight as it is used; in training, that of the normalised weight with the gradient taken there."""
    weight, eps = module.weight, module.block.eps
    if training is not None:
        weight = normalise_weight(weight.detach(), eps) + (weight - weight.detach())
    rows = normalise_weight(weight, eps) * (weight[0].numel() ** -0.5)
    return rows * module.gain if module.block.gain else rows


class MPLinear(Module):
    def forward(self, x: Tensor, training: Training | None) -> Tensor:
        return F.linear(x, _rows(self, training))


class MPConv(Module):
    def forward(self, x: Tensor, training: Training | None) -> Tensor:
        return convolve(x, _rows(self, training), None, 1, self.block.padding)


class MPSiLU(Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x) * (1.0 / self.block.divisor)


class MPSum(Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        first, second = self.block.factors
        return x * first + y * second


class MPConcat(Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        first, second = self.block.factors(x.shape[1], y.shape[1])
        return torch.cat([x * first, y * second], dim=1)


class MPGate(Module):
    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        return x * (1.0 + vector[:, :, None, None])


class PixelNorm(Module):
    def forward(self, x: Tensor) -> Tensor:
        return normalise(x.to(self.context.dtype), (1,), self.block.eps)


class MPAttention(Module):
    def forward(self, qkv: Tensor) -> Tensor:
        height, heads = qkv.shape[2], self.block.heads
        qkv = rearrange(qkv.to(self.context.dtype), "b (n d three) h w -> three b n (h w) d", three=3, n=heads)
        mixed = F.scaled_dot_product_attention(*normalise(qkv, (-1,), self.block.eps))
        return rearrange(mixed, "b n (h w) d -> b (n d) h w", h=height)


class WithConstant(Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, 0, 1), value=self.block.value)


class Clip(Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(-self.block.bound, self.block.bound)
