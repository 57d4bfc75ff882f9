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
    SwiGLU            silu(a) b of the two halves of the channels
    QKNorm            RMSNorm of each head's q and k
    RotaryPositions   q and k turned by the row and the column of their token
    DropoutAttention  attention with dropout of its weights

The norms, activations, sums and attention of the other files take tokens as they take pixels.

References:
    An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale (Dosovitskiy et al., 2020),
    https://arxiv.org/abs/2010.11929
    GLU Variants Improve Transformer (Shazeer, 2020), https://arxiv.org/abs/2002.05202
    Query-Key Normalization for Transformers (Henry et al., 2020), https://arxiv.org/abs/2010.04245
    RoFormer: Enhanced Transformer with Rotary Position Embedding (Su et al., 2021), https://arxiv.org/abs/2104.09864
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.networks.blocks.attention import check_heads
from diffusion_core.networks.registry import (
    Block,
    NoProducts,
    Parameter,
    Shape,
    check_image,
    check_tokens,
    positions,
    register,
)

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
        check_heads(self.channels, self.heads)

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


@register
@dataclass(frozen=True)
class SwiGLU(NoProducts):
    """silu(a) b, where the channels hold the gate a, then the value b (Shazeer, 2020)."""

    def output_shape(self, x: Shape) -> Shape:
        if len(x) not in (1, 2) or x[-1] % 2:
            raise DuetError(
                f"block SwiGLU: a value of the shape {x} was given; it reads vectors or tokens of an even number of "
                f"channels"
            )
        return *positions(x), x[-1] // 2


def _check_qkv(kind: str, channels: int, qkv: Shape) -> None:
    check_tokens(kind, qkv)
    if qkv[1] != 3 * channels:
        raise DuetError(
            f"block {kind}: tokens of the shape {qkv} were given; it reads q, k and v of {3 * channels} channels in all"
        )


@register
@dataclass(frozen=True)
class QKNorm(NoProducts):
    """x / sqrt(mean x^2 + eps) over the channels of each head of q and k, then a scale; v stays (Henry et al., 2020).

    It reads tokens of 3c channels: all of q, head by head, then k, then v. All heads share the scales.
    """

    channels: int
    heads: int
    eps: float

    def __post_init__(self) -> None:
        check_heads(self.channels, self.heads)

    def parameters(self) -> tuple[Parameter, ...]:
        """Return the scale of q (o,) and that of k (o,)."""
        shape = (self.channels // self.heads,)
        return tuple(Parameter(name, shape, "o", ("constant", 1.0)) for name in ("query", "key"))

    def output_shape(self, qkv: Shape) -> Shape:
        _check_qkv("QKNorm", self.channels, qkv)
        return qkv


@register
@dataclass(frozen=True)
class RotaryPositions(NoProducts):
    """Rotate q and k by the place of their token (Su et al., 2021), in tokens of 3c channels as `QKNorm` reads them.

    Each pair of neighbouring channels of a head is a point of the plane. The first half of the pairs turns by the
    token's row, the second by its column, both times the frequencies 10000^(-i / n) of the n pairs. The first `skipped`
    tokens do not turn; the others are `height` rows of `width`.
    """

    channels: int
    heads: int
    height: int
    width: int
    skipped: int

    def __post_init__(self) -> None:
        check_heads(self.channels, self.heads)
        if self.channels // self.heads % 4:
            raise DuetError(
                f"model.heads: {self.heads} was given for {self.channels} channels; each head needs a multiple of 4 "
                f"channels, for the pairs that the row and the column rotate"
            )

    def rotation(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the cosine and the sine of each angle, both with shape (n, 3, 1, pairs of a head); v does not turn."""
        count = self.channels // self.heads // 4
        frequencies = 10000.0 ** (-np.arange(count) / count)
        places = np.divmod(np.arange(self.height * self.width), self.width)
        angles = np.zeros((self.skipped + len(places[0]), 3, 1, 2 * count))
        angles[self.skipped :, :2, 0] = np.concatenate([at[:, None] * frequencies for at in places], axis=1)[:, None]
        return np.cos(angles), np.sin(angles)

    def output_shape(self, qkv: Shape) -> Shape:
        _check_qkv("RotaryPositions", self.channels, qkv)
        if qkv[0] != self.skipped + self.height * self.width:
            raise DuetError(
                f"block RotaryPositions: {qkv[0]} tokens were given; it reads {self.skipped} and {self.height} x "
                f"{self.width} more"
            )
        return qkv


@register
@dataclass(frozen=True)
class DropoutAttention(Block):
    """`Attention` on tokens, all of q first, with dropout of its weights in training.

    The weight of a query and a key of a head is one element, counted in the order head, query, key; see `Dropout`.
    """

    channels: int
    heads: int
    rate: float
    row: int

    has_training_mode: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_heads(self.channels, self.heads)
        if not 0 <= self.rate < 1:
            raise DuetError(
                f"model.attention_dropout: {self.rate} was given; it must be a probability, 0 <= dropout < 1"
            )

    @property
    def threshold(self) -> int:
        """The word below which a weight is dropped."""
        return round(self.rate * 2**32)

    def output_shape(self, qkv: Shape) -> Shape:
        _check_qkv("DropoutAttention", self.channels, qkv)
        return qkv[0], self.channels

    def multiply_adds(self, qkv: Shape) -> int:
        return 2 * qkv[0] ** 2 * self.channels
