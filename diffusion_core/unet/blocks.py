"""The block kinds: all that a backend must be able to compute.

A kind is a frozen dataclass of explicit numbers: no "same" padding, no default epsilon, no default
initialiser. It says which parameters it owns and how they start; it does not compute. Each backend has
one class of the same name for each kind, and `reference.py` has one function.

Values are images ``b h w c`` or vectors ``b c``. Parameters have the axes of PyTorch (``o i kh kw``).

    Sinusoid    [cos, sin] features of a number per sample, from a table of frequencies
    Embedding   a row of a table per label
    Linear      y = x W^T + b
    Conv        2-D convolution with padding given per side
    GroupNorm   (x - mean) / sqrt(variance + eps) per group, then scale and shift; biased variance
    SiLU        x sigmoid(x)
    Attention   softmax(q k^T / sqrt(d)) v over all pixels, per head
    Add         (a + b) scale; a vector is added to every pixel
    Modulate    x (1 + scale) + shift, both halves of one vector
    Concat      channels of a, then of b
    Upsample    every pixel twice in both directions
    AvgPool     mean of 2 x 2 pixels
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

from diffusion_core.errors import DuetError

__all__ = [
    "KINDS",
    "Add",
    "Attention",
    "AvgPool",
    "Block",
    "Concat",
    "Conv",
    "Embedding",
    "GroupNorm",
    "Linear",
    "Modulate",
    "Parameter",
    "SiLU",
    "Sinusoid",
    "Upsample",
]


@dataclass(frozen=True)
class Parameter:
    """One array that is trained.

    Args:
        name: its name within the block, then within the program.
        shape: in the canonical axes.
        axes: what each axis is, as in ``"o i kh kw"``.
        init: ``("constant", value)``, ``("uniform", bound)`` or ``("normal", standard deviation)``.
        decay: whether weight decay applies to it (never to biases, norms and embeddings).
    """

    name: str
    shape: tuple[int, ...]
    axes: str
    init: tuple[str, float]
    decay: bool = False


class Block(Protocol):
    """What every kind offers."""

    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters that the block owns, in order."""


def _weight(shape: tuple[int, ...], axes: str, scale: float, fan_in: int, fan_out: int) -> Parameter:
    """Uniform with variance scale / mean(fan_in, fan_out), as DDPM starts its layers; scale 0 is zeros."""
    bound = math.sqrt(6.0 * scale / (fan_in + fan_out))
    return Parameter("weight", shape, axes, ("uniform", bound) if bound else ("constant", 0.0), decay=True)


def _bias(size: int) -> Parameter:
    return Parameter("bias", (size,), "o", ("constant", 0.0))


@dataclass(frozen=True)
class Stateless:
    """A kind without parameters."""

    def parameters(self) -> tuple[Parameter, ...]:
        """None."""
        return ()


@dataclass(frozen=True)
class Sinusoid(Stateless):
    """Timestep embedding (Vaswani et al., 2017, section 3.5), computed in float64 and cast once.

    frequency_k = max_period^(-k / divisor) for k < dim/2. `divisor` is dim/2 - 1 in DDPM and dim/2 in
    guided-diffusion; `sin_first` is true in DDPM.
    """

    dim: int
    max_period: float
    divisor: float
    sin_first: bool

    def frequencies(self) -> list[float]:
        """The dim/2 angular frequencies."""
        return [math.exp(-math.log(self.max_period) * k / self.divisor) for k in range(self.dim // 2)]


@dataclass(frozen=True)
class Embedding:
    """A table with one row per label; the last row stands for "no class"."""

    count: int
    dim: int

    def parameters(self) -> tuple[Parameter, ...]:
        """The table, standard normal."""
        return (Parameter("weight", (self.count, self.dim), "n o", ("normal", 1.0)),)


@dataclass(frozen=True)
class Linear:
    """A dense layer on vectors; `scale` is the variance scale of its start."""

    inputs: int
    outputs: int
    bias: bool
    scale: float

    def parameters(self) -> tuple[Parameter, ...]:
        """Weight (o, i) and, if wanted, bias (o,)."""
        weight = _weight((self.outputs, self.inputs), "o i", self.scale, self.inputs, self.outputs)
        return (weight, _bias(self.outputs)) if self.bias else (weight,)


@dataclass(frozen=True)
class Conv:
    """A 2-D convolution; `padding` is (top, bottom, left, right), filled with zeros."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    padding: tuple[int, int, int, int]
    bias: bool
    scale: float

    def parameters(self) -> tuple[Parameter, ...]:
        """Weight (o, i, kh, kw) and, if wanted, bias (o,)."""
        area = self.kernel**2
        shape = (self.outputs, self.inputs, self.kernel, self.kernel)
        weight = _weight(shape, "o i kh kw", self.scale, self.inputs * area, self.outputs * area)
        return (weight, _bias(self.outputs)) if self.bias else (weight,)


@dataclass(frozen=True)
class GroupNorm:
    """Group normalisation (Wu & He, 2018), mean and variance in two passes over pixels and group channels."""

    channels: int
    groups: int
    eps: float

    def __post_init__(self) -> None:
        if self.channels % self.groups:
            raise DuetError(f"model.norm_groups: {self.groups} groups do not divide {self.channels} channels")

    def parameters(self) -> tuple[Parameter, ...]:
        """Scale (o,) of ones and shift (o,) of zeros."""
        return Parameter("weight", (self.channels,), "o", ("constant", 1.0)), _bias(self.channels)


@dataclass(frozen=True)
class SiLU(Stateless):
    """x sigmoid(x)."""


@dataclass(frozen=True)
class Attention(Stateless):
    """Self-attention over all pixels of a (b, h, w, 3c) value that holds q, then k, then v, heads within each."""

    channels: int
    heads: int

    def __post_init__(self) -> None:
        if self.channels % self.heads:
            raise DuetError(f"model.heads: {self.heads} heads do not divide {self.channels} channels")


@dataclass(frozen=True)
class Add(Stateless):
    """(a + b) scale; where b is a vector it is added to every pixel of a."""

    scale: float


@dataclass(frozen=True)
class Modulate(Stateless):
    """x (1 + scale) + shift, where a vector (b, 2c) holds scale, then shift."""

    channels: int


@dataclass(frozen=True)
class Concat(Stateless):
    """The channels of a, followed by those of b."""


@dataclass(frozen=True)
class Upsample(Stateless):
    """Nearest neighbour, twice in both directions."""

    factor: ClassVar[int] = 2


@dataclass(frozen=True)
class AvgPool(Stateless):
    """The mean of each square of 2 x 2 pixels."""

    factor: ClassVar[int] = 2


KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        Sinusoid, Embedding, Linear, Conv, GroupNorm, SiLU,
        Attention, Add, Modulate, Concat, Upsample, AvgPool,
    )
}  # fmt: skip
