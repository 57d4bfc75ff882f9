"""The block kinds: all that a backend must be able to compute.

A kind is a frozen dataclass of explicit numbers: no "same" padding, no default epsilon, no default
initialiser. It says which parameters it owns and how they start; it does not compute. Each backend has
one class of the same name for each kind, and `reference.py` has one function.

Values are images ``b h w c`` or vectors ``b c``. Parameters have the axes of PyTorch (``o i kh kw``).

    Sinusoid       [cos, sin] features of a number per sample, from a table of frequencies
    Fourier        the same with random frequencies, which are kept with the weights
    Number         a number per sample as a vector of one channel
    Embedding      a row of a table per label
    Linear         y = x W^T + b
    Conv           2-D convolution with padding given per side
    ConvTranspose  its transpose, cropped on every side
    GroupNorm      (x - mean) / sqrt(variance + eps) per group, then scale and shift; biased variance
    LayerNorm      the same over the channels of each pixel, or over a whole image
    BatchNorm      the same per channel over the batch; running statistics in evaluation
    SiLU, ReLU     x sigmoid(x), max(x, 0)
    GELU, Sigmoid  x Phi(x) with the normal distribution function Phi, 1 / (1 + exp(-x))
    Attention      softmax(q k^T / sqrt(d)) v over all pixels, per head
    Dropout        zeros by the shared random stream in training, nothing in evaluation
    Add, Multiply  (a + b) scale, a b; a vector acts on every pixel
    Modulate       x (1 + scale) + shift, both halves of one vector
    Concat         channels of a, then of b; a vector is given to every pixel
    Upsample       every pixel twice in both directions
    AvgPool        mean of 2 x 2 pixels
    MaxPool        largest of 2 x 2 pixels
    Mean           mean of all pixels, a vector
    Resample       twice or half the size, by one small matrix along each side
    Flatten        an image as a vector in the order h w c
    Unflatten      its inverse

Two kinds act otherwise in training than in evaluation, BatchNorm and Dropout; they are marked `in_training`
and are told which it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, one_of

__all__ = [
    "ATTENTION_ORDERS",
    "KINDS",
    "Add",
    "Attention",
    "AvgPool",
    "BatchNorm",
    "Block",
    "Concat",
    "Conv",
    "ConvTranspose",
    "Dropout",
    "Embedding",
    "Flatten",
    "Fourier",
    "GELU",
    "GroupNorm",
    "LayerNorm",
    "Linear",
    "MaxPool",
    "Mean",
    "Modulate",
    "Multiply",
    "Number",
    "Parameter",
    "ReLU",
    "Resample",
    "SiLU",
    "Sigmoid",
    "Sinusoid",
    "Unflatten",
    "Upsample",
]


@dataclass(frozen=True)
class Parameter:
    """One array of a network.

    Args:
        name: its name within the block, then within the program.
        shape: in the canonical axes.
        axes: what each axis is, as in ``"o i kh kw"``.
        init: ``("constant", value)``, ``("uniform", bound)`` or ``("normal", standard deviation)``.
        decay: whether weight decay applies to it (never to biases, norms and embeddings).
        trained: whether the optimiser moves it; running statistics and random frequencies are not trained.
    """

    name: str
    shape: tuple[int, ...]
    axes: str
    init: tuple[str, float]
    decay: bool = False
    trained: bool = True


class Block(Protocol):
    """What every kind offers."""

    in_training: ClassVar[bool]

    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters that the block owns, in order."""


def _weight(shape: tuple[int, ...], axes: str, scale: float, fan_in: int, fan_out: int) -> Parameter:
    """Uniform with variance scale / mean(fan_in, fan_out), as DDPM starts its layers; scale 0 is zeros."""
    bound = math.sqrt(6.0 * scale / (fan_in + fan_out))
    return Parameter("weight", shape, axes, ("uniform", bound) if bound else ("constant", 0.0), decay=True)


def _bias(shape: tuple[int, ...], axes: str = "o") -> Parameter:
    return Parameter("bias", shape, axes, ("constant", 0.0))


def _norm(shape: tuple[int, ...], axes: str = "o") -> tuple[Parameter, ...]:
    """Scale of ones and shift of zeros."""
    return Parameter("weight", shape, axes, ("constant", 1.0)), _bias(shape, axes)


@dataclass(frozen=True)
class Kind:
    """A kind that acts alike in training and in evaluation, and has no parameters."""

    in_training: ClassVar[bool] = False

    def parameters(self) -> tuple[Parameter, ...]:
        """None."""
        return ()


@dataclass(frozen=True)
class Sinusoid(Kind):
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
class Fourier(Kind):
    """Random Fourier features (Tancik et al., 2020) of 2 pi c_noise, computed in float64 and cast once.

    The dim/2 frequencies are normal with standard deviation `scale`; they are drawn with the weights and never trained.
    """

    dim: int
    scale: float
    sin_first: bool

    def parameters(self) -> tuple[Parameter, ...]:
        """The frequencies (o,)."""
        return (Parameter("frequencies", (self.dim // 2,), "o", ("normal", self.scale), trained=False),)


@dataclass(frozen=True)
class Number(Kind):
    """`scale` times a number per sample, as a vector of one channel; computed in float64 and cast once."""

    scale: float


@dataclass(frozen=True)
class Embedding(Kind):
    """A table with one row per label. With `zero`, the label `count` stands for "no class" and gives zeros."""

    count: int
    dim: int
    zero: bool = False

    def parameters(self) -> tuple[Parameter, ...]:
        """The table, standard normal."""
        return (Parameter("weight", (self.count, self.dim), "n o", ("normal", 1.0)),)


@dataclass(frozen=True)
class Linear(Kind):
    """A dense layer on vectors; `scale` is the variance scale of its start."""

    inputs: int
    outputs: int
    bias: bool
    scale: float

    def parameters(self) -> tuple[Parameter, ...]:
        """Weight (o, i) and, if wanted, bias (o,)."""
        weight = _weight((self.outputs, self.inputs), "o i", self.scale, self.inputs, self.outputs)
        return (weight, _bias((self.outputs,))) if self.bias else (weight,)


@dataclass(frozen=True)
class Conv(Kind):
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
        return (weight, _bias((self.outputs,))) if self.bias else (weight,)


@dataclass(frozen=True)
class ConvTranspose(Kind):
    """The transpose of a convolution: n pixels become (n - 1) stride + kernel - 2 crop."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    crop: int
    bias: bool
    scale: float

    def parameters(self) -> tuple[Parameter, ...]:
        """Weight (i, o, kh, kw) and, if wanted, bias (o,)."""
        area = self.kernel**2
        shape = (self.inputs, self.outputs, self.kernel, self.kernel)
        weight = _weight(shape, "i o kh kw", self.scale, self.inputs * area, self.outputs * area)
        return (weight, _bias((self.outputs,))) if self.bias else (weight,)


@dataclass(frozen=True)
class GroupNorm(Kind):
    """Group normalisation (Wu & He, 2018), mean and variance in two passes over pixels and group channels."""

    channels: int
    groups: int
    eps: float

    def __post_init__(self) -> None:
        if self.channels % self.groups:
            raise DuetError(f"model.norm_groups: {self.groups} groups do not divide {self.channels} channels")

    def parameters(self) -> tuple[Parameter, ...]:
        """Scale (o,) and shift (o,)."""
        return _norm((self.channels,))


@dataclass(frozen=True)
class LayerNorm(Kind):
    """Layer normalisation (Ba et al., 2016) in two passes, with a scale and a shift per number.

    The shape is (c,) for the channels of each pixel or of a vector, or (c, h, w) for a whole image.
    """

    shape: tuple[int, ...]
    eps: float

    def __post_init__(self) -> None:
        if len(self.shape) not in (1, 3):
            raise DuetError(f"LayerNorm: shape {self.shape} was given; it is (c,) or (c, h, w)")

    def parameters(self) -> tuple[Parameter, ...]:
        """Scale and shift, (o,) or (o, h, w)."""
        return _norm(self.shape, "o" if len(self.shape) == 1 else "o h w")


@dataclass(frozen=True)
class BatchNorm(Kind):
    """Batch normalisation (Ioffe & Szegedy, 2015) over batch and pixels.

    In training it normalises with the batch's own mean and biased variance, and moves the running ones by
    ``running <- running + momentum (batch - running)``, where the batch's variance is the unbiased one, n/(n-1),
    as in PyTorch. `momentum` is the share of the new (Keras names the share of the old). The moving average of
    the weights averages the running statistics too.
    """

    channels: int
    eps: float
    momentum: float

    in_training: ClassVar[bool] = True

    def parameters(self) -> tuple[Parameter, ...]:
        """Scale, shift, running mean and running variance, all (o,)."""
        shape = (self.channels,)
        mean = Parameter("mean", shape, "o", ("constant", 0.0), trained=False)
        return *_norm(shape), mean, Parameter("variance", shape, "o", ("constant", 1.0), trained=False)


@dataclass(frozen=True)
class SiLU(Kind):
    """x sigmoid(x)."""


@dataclass(frozen=True)
class ReLU(Kind):
    """max(x, 0)."""


@dataclass(frozen=True)
class GELU(Kind):
    """x Phi(x), exactly: Phi(x) = (1 + erf(x / sqrt(2))) / 2."""


@dataclass(frozen=True)
class Sigmoid(Kind):
    """1 / (1 + exp(-x))."""


# How the 3c channels that an attention reads are made of q, k and v (three), heads (n) and channels per head (d).
ATTENTION_ORDERS = {"qkv": "three n d", "heads": "n three d", "interleaved": "n d three"}


@dataclass(frozen=True)
class Attention(Kind):
    """Self-attention over all pixels of a (b, h, w, 3c) value that holds q, k and v, in one of three orders."""

    channels: int
    heads: int
    order: str = "qkv"

    def __post_init__(self) -> None:
        if self.channels % self.heads:
            raise DuetError(f"model.heads: {self.heads} heads do not divide {self.channels} channels")
        if self.order not in ATTENTION_ORDERS:
            raise one_of("model.qkv_order", self.order, ATTENTION_ORDERS)


@dataclass(frozen=True)
class Dropout(Kind):
    """Zeros with probability `rate` in training, the others divided by 1 - rate.

    Element e of image n, counted in the order h w c, is dropped if word e of the stream at (index n, this row) is
    below ``round(rate 2^32)``: whole numbers, so every framework drops the same ones. `row` is its own in a program.
    """

    rate: float
    row: int

    in_training: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise DuetError(f"model.dropout: {self.rate} was given; it is a probability, 0 to less than 1")

    @property
    def threshold(self) -> int:
        """Words below it are dropped."""
        return round(self.rate * 2**32)


@dataclass(frozen=True)
class Add(Kind):
    """(a + b) scale; where b is a vector it is added to every pixel of a."""

    scale: float


@dataclass(frozen=True)
class Multiply(Kind):
    """A b; where b is a vector it multiplies every pixel of a."""


@dataclass(frozen=True)
class Modulate(Kind):
    """x (1 + scale) + shift, where a vector (b, 2c) holds scale, then shift."""

    channels: int


@dataclass(frozen=True)
class Concat(Kind):
    """The channels of a, followed by those of b; where b is a vector it is given to every pixel of a."""


@dataclass(frozen=True)
class Upsample(Kind):
    """Nearest neighbour, twice in both directions."""

    factor: ClassVar[int] = 2


@dataclass(frozen=True)
class AvgPool(Kind):
    """The mean of each square of 2 x 2 pixels."""

    factor: ClassVar[int] = 2


@dataclass(frozen=True)
class MaxPool(Kind):
    """The largest of each square of 2 x 2 pixels."""

    factor: ClassVar[int] = 2


@dataclass(frozen=True)
class Resample(Kind):
    """y = A x A^T for the pixels of each channel, with one small matrix A that the core computes in float64.

        bilinear           twice the size, pixel centres in line
        bilinear_corners   twice the size, corner pixels in line
        up                 twice the size: zeros between pixels, then the filter
        down               half the size: the filter, then every other pixel

    The filter's `taps` are symmetric and act along each side; they are scaled to sum 1 (2 for up). `padding` is
    that of the convolution (up: of its transpose) on every side, of zeros.
    """

    rule: str
    taps: tuple[float, ...] = ()
    padding: int = 0

    def __post_init__(self) -> None:
        if self.rule not in ("bilinear", "bilinear_corners", "up", "down"):
            raise one_of("Resample.rule", self.rule, ("bilinear", "bilinear_corners", "up", "down"))

    def matrix(self, size: int) -> NDArray[np.float64]:
        """A, with shape (new size, size); it is kept, as each forward pass asks for it."""
        return _resampling(self.rule, tuple(self.taps), self.padding, size)


@cache
def _resampling(rule: str, taps: tuple[float, ...], padding: int, size: int) -> NDArray[np.float64]:
    """The matrix of `Resample`."""
    if rule.startswith("bilinear"):
        place = np.arange(2 * size)
        if rule == "bilinear":
            place = np.clip((place + 0.5) / 2 - 0.5, 0, size - 1)
        else:
            place = place * ((size - 1) / (2 * size - 1))
        return np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(size)))
    weights = np.asarray(taps, np.float64) / sum(taps)
    down = np.zeros(((size + 2 * padding - len(weights)) // 2 + 1, size))
    if rule == "up":
        # The transpose of filtering the larger image down, doubled: each new pixel gets half of the taps.
        larger = 2 * (size - 1) + len(weights) - 2 * padding
        down = np.zeros((size, larger))
    for i in range(len(down)):
        for k, tap in enumerate(weights):
            if 0 <= (j := 2 * i + k - padding) < down.shape[1]:
                down[i, j] = tap
    return 2.0 * down.T if rule == "up" else down


@dataclass(frozen=True)
class Mean(Kind):
    """The mean of all pixels, per channel: an image as a vector."""


@dataclass(frozen=True)
class Flatten(Kind):
    """An image as a vector in the order h w c."""


@dataclass(frozen=True)
class Unflatten(Kind):
    """A vector in the order h w c as an image of this height and width."""

    height: int
    width: int


KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        Sinusoid, Fourier, Number, Embedding, Linear, Conv, ConvTranspose, GroupNorm, LayerNorm, BatchNorm,
        SiLU, ReLU, GELU, Sigmoid, Attention, Dropout, Add, Multiply, Modulate, Concat,
        Upsample, AvgPool, MaxPool, Mean, Resample, Flatten, Unflatten,
    )
}  # fmt: skip
