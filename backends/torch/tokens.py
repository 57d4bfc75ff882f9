"""The block kinds of `diffusion_core.networks.blocks.tokens` as PyTorch modules; tokens are ``b n c``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from backends.torch.device import DeviceContext
from backends.torch.module import Module
from backends.torch.random import random_words
from diffusion_core.networks.program import Node, Training

__all__ = [
    "ConcatTokens",
    "CrossAttention",
    "DropoutAttention",
    "LearnedPositions",
    "Patchify",
    "QKNorm",
    "Repeat",
    "RotaryPositions",
    "SinePositions",
    "Slice",
    "SwiGLU",
    "Unpatchify",
]


class Patchify(Module):
    def forward(self, x: Tensor) -> Tensor:
        return rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=self.block.patch, q=self.block.patch)


class Unpatchify(Module):
    def forward(self, x: Tensor) -> Tensor:
        block = self.block
        return rearrange(x, "b (h w) (p q c) -> b c (h p) (w q)", h=block.height, p=block.patch, q=block.patch)


class Repeat(Module):
    def forward(self, vector: Tensor) -> Tensor:
        return vector[:, None].expand(-1, self.block.count, -1)


class Slice(Module):
    def forward(self, x: Tensor) -> Tensor:
        axis = 1 if self.block.axis == "tokens" or x.ndim == 4 else -1
        return x.narrow(axis, self.block.start, self.block.length)


class ConcatTokens(Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, y], dim=1)


class SinePositions(Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


class LearnedPositions(Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


class CrossAttention(Module):
    def forward(self, q: Tensor, kv: Tensor) -> Tensor:
        q = rearrange(q, "b t (n d) -> b n t d", n=self.block.heads)
        k, v = rearrange(kv, "b t (two n d) -> two b n t d", two=2, n=self.block.heads)
        return rearrange(F.scaled_dot_product_attention(q, k, v), "b n t d -> b t (n d)")


class SwiGLU(Module):
    def forward(self, x: Tensor) -> Tensor:
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value


class QKNorm(Module):
    def forward(self, qkv: Tensor) -> Tensor:
        qkv = qkv.to(self.context.dtype)
        q, k, v = rearrange(qkv, "b t (three n d) -> three b t n d", three=3, n=self.block.heads)
        q, k = (
            x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.block.eps) * scale
            for x, scale in ((q, self.query), (k, self.key))
        )
        return rearrange([q, k, v], "three b t n d -> b t (three n d)")


class RotaryPositions(Module):
    def __init__(self, node: Node, parameters: Mapping[str, NDArray], context: DeviceContext) -> None:
        super().__init__(node, parameters, context)
        self.cos, self.sin = map(context.tensor, self.block.rotation())

    def forward(self, qkv: Tensor) -> Tensor:
        a, b = rearrange(qkv, "b t (three n d pair) -> pair b t three n d", three=3, n=self.block.heads, pair=2)
        turned = torch.stack([a * self.cos - b * self.sin, a * self.sin + b * self.cos])
        return rearrange(turned, "pair b t three n d -> b t (three n d pair)")


class DropoutAttention(Module):
    def forward(self, qkv: Tensor, training: Training | None) -> Tensor:
        q, k, v = rearrange(qkv, "b t (three n d) -> three b n t d", three=3, n=self.block.heads)
        if training is None:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(dim=-1)
            words = random_words(training.key, training.positions, weights[0].numel(), self.block.row)
            kept = words.view_as(weights) >= self.block.threshold
            mixed = torch.where(kept, weights * (1.0 / (1.0 - self.block.rate)), 0.0) @ v
        return rearrange(mixed, "b n t d -> b t (n d)")
