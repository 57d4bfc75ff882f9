"""The block kinds of `diffusion_core.networks.token_blocks` as PyTorch modules; tokens are ``b n c``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from backends.torch.module import Module

__all__ = [
    "ConcatTokens",
    "CrossAttention",
    "LearnedPositions",
    "Patchify",
    "Repeat",
    "SinePositions",
    "Slice",
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
