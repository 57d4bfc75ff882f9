"""Magnitude-preserving block kinds: operations whose output has about the size of their input (Karras et al., 2024).

The size of an array is its root mean square over some axes. `normalised(x) = x / (eps + rms(x))` has size 1.

    MPFourier     sqrt(2) cos(f c_noise + phase) at random frequencies and phases, which are not trained     (eq. 75)
    OneHot        `scale` at the element of a label, zeros elsewhere and for "no class"
    MPLinear      y = x W^T, where each row of W is normalised and divided by sqrt(fan-in); times a gain     (eq. 47)
    MPConv        the same as a 2-D convolution
    MPSiLU        x sigmoid(x) / 0.596                                                                       (eq. 81)
    MPSum         ((1 - t) a + t b) / sqrt((1 - t)^2 + t^2)                                                  (eq. 88)
    MPConcat      channels of a, then of b, scaled so that b has the share t of the squared size            (eq. 103)
    MPGate        x (1 + v), where v is a vector for all pixels
    PixelNorm     normalised(x) over the channels of each pixel
    MPAttention   softmax(q k^T / sqrt(d)) v over all pixels, per head, where q, k and v are normalised over d
    WithConstant  a further channel with one value at every pixel
    Clip          the nearest value in [-bound, bound]

The weights of MPLinear and MPConv are normalised twice. When they are used, which is part of the block. And by force at
each step of training (eq. 66): the step takes its gradient at ``w1 = normalised(w)`` and its update starts from w1. The
second is a rule of the optimiser, which `Parameter.normalised` states and `optim/normalisation.py` defines.

References:
    Analyzing and Improving the Training Dynamics of Diffusion Models (Karras et al., 2024),
    https://arxiv.org/abs/2312.02696
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from diffusion_core.common.errors import DuetError
from diffusion_core.networks.registry import Block, Elementwise, NoProducts, Parameter, Shape, register

__all__ = [
    "Clip",
    "MPAttention",
    "MPConcat",
    "MPConv",
    "MPFourier",
    "MPGate",
    "MPLinear",
    "MPSiLU",
    "MPSum",
    "OneHot",
    "PixelNorm",
    "WithConstant",
]


def _parameters(shape: tuple[int, ...], axes: str, eps: float, gain: bool) -> tuple[Parameter, ...]:
    """Return a weight, standard normal and normalised by force, and with `gain` a number that starts at 0."""
    weight = Parameter("weight", shape, axes, ("normal", 1.0), normalised=eps)
    return (weight, Parameter("gain", (), "", ("constant", 0.0))) if gain else (weight,)


@register
@dataclass(frozen=True)
class MPFourier(NoProducts):
    """Random Fourier features of one number per sample, computed in float64 and cast at the end.

    The `dim` frequencies are normal with standard deviation 2 pi `bandwidth`, the phases uniform on (0, 2 pi).
    """

    dim: int
    bandwidth: float

    def parameters(self) -> tuple[Parameter, ...]:
        """Return the frequencies (o,) and the phases (o,)."""
        return (
            Parameter("frequencies", (self.dim,), "o", ("normal", 2.0 * math.pi * self.bandwidth), trained=False),
            Parameter("phases", (self.dim,), "o", ("positive", 2.0 * math.pi), trained=False),
        )

    def output_shape(self, c_noise: Shape) -> Shape:
        return (self.dim,)


@register
@dataclass(frozen=True)
class OneHot(NoProducts):
    """A vector of `count` elements: `scale` at the label, zeros elsewhere. The label `count` means "no class"."""

    count: int
    scale: float

    def output_shape(self, label: Shape) -> Shape:
        return (self.count,)


@register
@dataclass(frozen=True)
class MPLinear(Block):
    """A dense layer on vectors, without bias, whose rows are normalised; with `gain`, times a trained number."""

    inputs: int
    outputs: int
    gain: bool
    eps: float

    has_training_mode: ClassVar[bool] = True

    def parameters(self) -> tuple[Parameter, ...]:
        """Return the weight (o, i) and, with `gain`, the gain ()."""
        return _parameters((self.outputs, self.inputs), "o i", self.eps, self.gain)

    def output_shape(self, x: Shape) -> Shape:
        return (self.outputs,)

    def multiply_adds(self, x: Shape) -> int:
        return self.inputs * self.outputs


@register
@dataclass(frozen=True)
class MPConv(Block):
    """A convolution of stride 1, without bias, padded by kernel // 2 zeros; otherwise as `MPLinear`."""

    inputs: int
    outputs: int
    kernel: int
    gain: bool
    eps: float

    has_training_mode: ClassVar[bool] = True

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """The zeros on (top, bottom, left, right)."""
        return (self.kernel // 2,) * 4

    def parameters(self) -> tuple[Parameter, ...]:
        """Return the weight (o, i, kh, kw) and, with `gain`, the gain ()."""
        shape = (self.outputs, self.inputs, self.kernel, self.kernel)
        return _parameters(shape, "o i kh kw", self.eps, self.gain)

    def output_shape(self, x: Shape) -> Shape:
        grown = 2 * (self.kernel // 2) + 1 - self.kernel
        return x[0] + grown, x[1] + grown, self.outputs

    def multiply_adds(self, x: Shape) -> int:
        return math.prod(self.output_shape(x)) * self.inputs * self.kernel**2


@register
@dataclass(frozen=True)
class MPSiLU(Elementwise):
    """x sigmoid(x) / `divisor`; 0.596 is the root mean square of SiLU on standard normal numbers."""

    divisor: float


@register
@dataclass(frozen=True)
class MPSum(NoProducts):
    """A sum with the share `t` of b, divided so that uncorrelated inputs of size 1 have a sum of size 1."""

    t: float

    @property
    def factors(self) -> tuple[float, float]:
        """The factors of a and of b."""
        size = math.hypot(1.0 - self.t, self.t)
        return (1.0 - self.t) / size, self.t / size

    def output_shape(self, x: Shape, y: Shape) -> Shape:
        return x


@register
@dataclass(frozen=True)
class MPConcat(NoProducts):
    """The channels of a, then those of b, with the share `t` of b in the squared size, whatever their numbers."""

    t: float

    def factors(self, a: int, b: int) -> tuple[float, float]:
        """Return the factors of the inputs, given their numbers of channels."""
        size = math.sqrt((a + b) / ((1.0 - self.t) ** 2 + self.t**2))
        return size / math.sqrt(a) * (1.0 - self.t), size / math.sqrt(b) * self.t

    def output_shape(self, x: Shape, y: Shape) -> Shape:
        return *x[:-1], x[-1] + y[-1]


@register
@dataclass(frozen=True)
class MPGate(NoProducts):
    """x (1 + v), where a vector v acts on every pixel."""

    def output_shape(self, x: Shape, vector: Shape) -> Shape:
        return x


@register
@dataclass(frozen=True)
class PixelNorm(Elementwise):
    """x / (eps + rms(x)) over the channels of each pixel, without parameters."""

    eps: float


@register
@dataclass(frozen=True)
class MPAttention(Block):
    """Self-attention over all pixels of a (b, h, w, 3c) value, whose channels are in the order (head, channel, qkv).

    The vectors of q, k and v of each head are normalised first.
    """

    channels: int
    heads: int
    eps: float

    def __post_init__(self) -> None:
        if self.channels % self.heads:
            raise DuetError(
                f"model.head_channels: {self.heads} heads do not divide {self.channels} channels; "
                f"give a divisor of {self.channels}"
            )

    @property
    def size(self) -> int:
        """The channels per head."""
        return self.channels // self.heads

    def output_shape(self, qkv: Shape) -> Shape:
        return *qkv[:-1], self.channels

    def multiply_adds(self, qkv: Shape) -> int:
        return 2 * (qkv[0] * qkv[1]) ** 2 * self.channels


@register
@dataclass(frozen=True)
class WithConstant(NoProducts):
    """The input, followed by one channel of `value`. It takes the place of a bias in the layer that reads it."""

    value: float

    def output_shape(self, x: Shape) -> Shape:
        return *x[:-1], x[-1] + 1


@register
@dataclass(frozen=True)
class Clip(Elementwise):
    """min(max(x, -bound), bound), element by element; the gradient is 1 up to the bound and 0 beyond it."""

    bound: float
