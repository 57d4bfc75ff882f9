"""The block kinds that make, need or join tokens.

Tokens are values ``b n c``: n vectors of c channels per image. The tokens of an image are its patches, row by row.

    Patchify          an image as tokens: the p x p pixels of each patch in the order p q c, the channel fastest
    Unpatchify        its inverse
    Repeat            a vector as n equal tokens
    Slice             a range of the tokens, or of the channels
    ConcatTokens      the tokens of a, then of b
    SinePositions     x + a fixed table of sines and cosines of the row and the column
    LearnedPositions  x + a learned table
    CrossAttention    softmax(q k^T / sqrt(d)) v, where q is read from one value, k and v from another

The norms, activations, sums and attention of `blocks.py` take tokens as they take pixels.

References:
    An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale (Dosovitskiy et al., 2020),
    https://arxiv.org/abs/2010.11929
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.networks.registry import (
    Block,
    NoProducts,
    Parameter,
    Shape,
    check_image,
    check_tokens,
    register,
)

__all__ = [
    "ConcatTokens",
    "CrossAttention",
    "LearnedPositions",
    "Patchify",
    "Repeat",
    "SinePositions",
    "Slice",
    "Unpatchify",
    "sine_table",
]


@register
@dataclass(frozen=True)
class Patchify(NoProducts):
    """The patches of `patch` x `patch` pixels as tokens, row by row; the channels of a token are p q c."""

    patch: int

    def output_shape(self, x: Shape) -> Shape:
        check_image("Patchify", x)
        if x[0] % self.patch or x[1] % self.patch:
            raise DuetError(
                f"model.patch_size: {self.patch} was given, which does not divide an image of {x[0]} x {x[1]} pixels; "
                f"give a divisor of its sides"
            )
        return (x[0] // self.patch) * (x[1] // self.patch), self.patch**2 * x[2]


@register
@dataclass(frozen=True)
class Unpatchify(NoProducts):
    """The inverse of `Patchify`: `height` rows of `width` patches."""

    patch: int
    height: int
    width: int

    def output_shape(self, x: Shape) -> Shape:
        check_tokens("Unpatchify", x)
        if x[0] != self.height * self.width or x[1] % self.patch**2:
            raise DuetError(
                f"block Unpatchify: tokens of the shape {x} were given; it reads {self.height} x {self.width} tokens "
                f"of a multiple of {self.patch**2} channels"
            )
        return self.height * self.patch, self.width * self.patch, x[1] // self.patch**2


@register
@dataclass(frozen=True)
class Repeat(NoProducts):
    """A vector as `count` equal tokens."""

    count: int

    def output_shape(self, vector: Shape) -> Shape:
        return self.count, *vector


@register
@dataclass(frozen=True)
class Slice(NoProducts):
    """`length` entries from `start` along an axis: ``"tokens"``, or the ``"channels"`` of any value."""

    axis: str
    start: int
    length: int

    def __post_init__(self) -> None:
        if self.axis not in ("tokens", "channels"):
            raise one_of("Slice.axis", self.axis, ("tokens", "channels"))

    @property
    def stop(self) -> int:
        """The first entry after the range."""
        return self.start + self.length

    def output_shape(self, x: Shape) -> Shape:
        if self.axis == "tokens":
            check_tokens("Slice", x)
        size = x[0] if self.axis == "tokens" else x[-1]
        if not 0 <= self.start < self.stop <= size:
            raise DuetError(f"block Slice: {self.axis} {self.start} to {self.stop} were given; the value has {size}")
        return (self.length, x[1]) if self.axis == "tokens" else (*x[:-1], self.length)


@register
@dataclass(frozen=True)
class ConcatTokens(NoProducts):
    """The tokens of a, then those of b."""

    def output_shape(self, x: Shape, y: Shape) -> Shape:
        check_tokens("ConcatTokens", x)
        check_tokens("ConcatTokens", y)
        if x[1] != y[1]:
            raise DuetError(f"block ConcatTokens: tokens of {x[1]} and of {y[1]} channels were given; they must agree")
        return x[0] + y[0], x[1]


class _Positions(NoProducts):
    """x + a table with one row per token."""

    def output_shape(self, x: Shape) -> Shape:
        (table,) = self.parameters()
        if x != table.shape:
            raise DuetError(
                f"block {type(self).__name__}: tokens of the shape {x} were given; its table has the shape "
                f"{table.shape}"
            )
        return x


@register
@dataclass(frozen=True)
class SinePositions(_Positions):
    """x + the fixed `sine_table` of `height` rows of `width` tokens; the table is stored with the weights."""

    height: int
    width: int
    channels: int

    def __post_init__(self) -> None:
        if self.channels % 4:
            raise DuetError(
                f"model.channels: {self.channels} was given; the table of positions has a sine and a cosine of the row "
                f"and of the column, so give a multiple of 4"
            )

    def parameters(self) -> tuple[Parameter, ...]:
        """Return the table (n, o), which is not trained."""
        shape = (self.height * self.width, self.channels)
        return (Parameter("table", shape, "n o", ("given", 0.0), trained=False),)

    def given(self, name: str) -> NDArray:
        return sine_table(self.height, self.width, self.channels)


def sine_table(height: int, width: int, channels: int) -> NDArray[np.float64]:
    """Return the table of positions of DiT with shape (height width, channels).

    The first half of the channels encodes the column, the second the row, each as sines, then cosines, of the position
    at the frequencies 10000^(-i / (channels / 4)). It is computed in float64 and rounded to float32, as published
    networks are trained with it.
    """
    quarter = channels // 4
    frequencies = 1.0 / 10000 ** (np.arange(quarter) / quarter)
    row, column = np.divmod(np.arange(height * width), width)
    angles = [position[:, None] * frequencies for position in (column, row)]
    table = np.concatenate([part for angle in angles for part in (np.sin(angle), np.cos(angle))], axis=1)
    return table.astype(np.float32).astype(np.float64)


@register
@dataclass(frozen=True)
class LearnedPositions(_Positions):
    """x + a learned table of `count` tokens, which starts normal with standard deviation `std`."""

    count: int
    channels: int
    std: float

    def parameters(self) -> tuple[Parameter, ...]:
        """Return the table (n, o)."""
        return (Parameter("table", (self.count, self.channels), "n o", ("normal", self.std)),)


@register
@dataclass(frozen=True)
class CrossAttention(Block):
    """Attention of the tokens q (n, c) to the tokens of a value (m, 2c) that holds k, then v."""

    channels: int
    heads: int

    def __post_init__(self) -> None:
        if self.channels % self.heads:
            raise DuetError(
                f"model.heads: {self.heads} heads do not divide {self.channels} channels; "
                f"give a divisor of {self.channels}"
            )

    def output_shape(self, q: Shape, kv: Shape) -> Shape:
        check_tokens("CrossAttention", q)
        check_tokens("CrossAttention", kv)
        if (q[1], kv[1]) != (self.channels, 2 * self.channels):
            raise DuetError(
                f"block CrossAttention: tokens of the shapes {q} and {kv} were given; it reads q of {self.channels} "
                f"channels, and k and v of {2 * self.channels} together"
            )
        return q

    def multiply_adds(self, q: Shape, kv: Shape) -> int:
        return 2 * q[0] * kv[0] * self.channels
