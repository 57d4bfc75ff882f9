"""Self-attention over all pixels or tokens, per head of d channels.

Attention        softmax(q k^T / sqrt(d)) v
MemoryAttention  the same with learned keys and values in addition to those of the pixels
LinearAttention  softmax_d(q) / sqrt(d) (softmax_n(k)^T v), whose cost is linear in the pixels, with the same memory
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.networks.registry import Block, Parameter, Shape, positions, register

__all__ = [
    "ATTENTION_ORDERS",
    "Attention",
    "LinearAttention",
    "MemoryAttention",
]


# The order of q, k and v ("three"), heads (n) and channels per head (d) in the 3c channels that Attention reads.
ATTENTION_ORDERS = {"qkv": "three n d", "heads": "n three d", "interleaved": "n d three"}


def check_heads(channels: int, heads: int) -> None:
    """Raise a `DuetError` unless the heads divide the channels."""
    if channels % heads:
        raise DuetError(f"model.heads: {heads} heads do not divide {channels} channels; give a divisor of {channels}")


@register
@dataclass(frozen=True)
class Attention(Block):
    """Self-attention over all pixels or tokens of a value of 3c channels: q, k and v, see `ATTENTION_ORDERS`."""

    channels: int
    heads: int
    order: str = "qkv"

    def __post_init__(self) -> None:
        check_heads(self.channels, self.heads)
        check_choice("model.qkv_order", self.order, ATTENTION_ORDERS)

    def output_shape(self, qkv: Shape) -> Shape:
        return *qkv[:-1], self.channels

    def multiply_adds(self, qkv: Shape) -> int:
        return 2 * math.prod(positions(qkv)) ** 2 * self.channels


@dataclass(frozen=True)
class _WithMemory(Block):
    """Self-attention over all pixels or tokens of 3c channels (all of q first, then k, then v) and over a memory.

    The memory is `memory` keys and values per head, which are learned and the same for every image.
    """

    channels: int
    heads: int
    memory: int

    def __post_init__(self) -> None:
        check_heads(self.channels, self.heads)
        if self.memory < 1:
            raise DuetError(f"model.memory: {self.memory} was given; it must be at least 1")

    @property
    def size(self) -> int:
        """The channels per head."""
        return self.channels // self.heads

    def parameters(self) -> tuple[Parameter, ...]:
        """Return the keys and the values of the memory (2, n, m, d), standard normal."""
        return (Parameter("memory", (2, self.heads, self.memory, self.size), "two n m d", ("normal", 1.0)),)

    def output_shape(self, qkv: Shape) -> Shape:
        return *qkv[:-1], self.channels


@register
@dataclass(frozen=True)
class MemoryAttention(_WithMemory):
    """softmax(q k^T / sqrt(d)) v, where k and v begin with those of the memory."""

    def multiply_adds(self, qkv: Shape) -> int:
        pixels = math.prod(positions(qkv))
        return 2 * pixels * (pixels + self.memory) * self.channels


@register
@dataclass(frozen=True)
class LinearAttention(_WithMemory):
    """q' (k'^T v) / sqrt(d), where q' is softmax(q) over d, and k' is softmax(k) over pixels and memory.

    Nothing of the size pixels x pixels is computed (Shen et al., 2018, https://arxiv.org/abs/1812.01243).
    """

    def multiply_adds(self, qkv: Shape) -> int:
        pixels = math.prod(positions(qkv))
        return (2 * pixels + self.memory) * self.size * self.channels
