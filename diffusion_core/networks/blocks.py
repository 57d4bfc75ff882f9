"""The block kinds: all operations that a network is made of.

A kind is a frozen dataclass of explicit numbers: no "same" padding, no default epsilon, no default initialiser. It
states its parameters with their initial distributions, the shape of its value and its multiply-adds; it computes
nothing. `backend/reference.py` has one function per kind, `convert/onnx.py` one emitter, and each backend one class
of the same name in its `network.py`; see `networks/registry.py`.

Values are images ``b h w c``, tokens ``b n c`` or vectors ``b c``. Parameters have the axes of PyTorch (``o i kh kw``).
What is said of pixels holds of tokens too; blocks that make or need tokens are in `token_blocks.py`.

    Sinusoid       [cos, sin] features of one number per sample, at fixed frequencies
    Fourier        the same at random frequencies, which are stored with the weights
    Number         one number per sample as a vector of one channel
    Embedding      one row of a table per label
    Linear         y = x W^T + b
    Conv           2-D convolution; the padding of each side is explicit
    ConvTranspose  its transpose, cropped on every side
    GroupNorm      (x - mean) / sqrt(variance + eps) per group, then scale and shift; biased variance
    LayerNorm      the same over the channels of each pixel, or over a whole image
    RMSNorm        x sqrt(c) / |x| over the c channels of each pixel, then a scale
    BatchNorm      the same as GroupNorm per channel over the batch; running statistics in evaluation
    SiLU, ReLU     x sigmoid(x), max(x, 0)
    GELU, Sigmoid  x Phi(x) with the normal distribution function Phi, or its approximation by tanh; 1 / (1 + exp(-x))
    Mish           x tanh(log(1 + exp(x)))
    Attention      softmax(q k^T / sqrt(d)) v over all pixels, per head
    MemoryAttention  the same with learned keys and values in addition to those of the pixels
    LinearAttention  softmax_d(q) / sqrt(d) (softmax_n(k)^T v), whose cost is linear in the pixels, with the same memory
    Dropout        zeros from the shared random stream in training, the identity in evaluation
    Add, Multiply  (a + b) scale, a b; a vector acts on every pixel
    Modulate       x (1 + scale) + shift, where one vector holds both
    Concat         channels of a, then of b; a vector is repeated at every pixel
    Upsample       nearest neighbour, twice the height and width
    AvgPool        mean of 2 x 2 pixels
    MaxPool        maximum of 2 x 2 pixels
    Mean           mean of all pixels, a vector
    Resample       twice or half the height and width, by one small matrix along each side
    Flatten        an image as a vector in the order h w c
    Unflatten      its inverse

BatchNorm and Dropout compute something else in training than in evaluation (`has_training_mode`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.networks.registry import (
    Block,
    Elementwise,
    NoProducts,
    Parameter,
    Shape,
    check_beside,
    check_image,
    check_no_tokens,
    positions,
    register,
)

__all__ = [
    "ATTENTION_ORDERS",
    "Add",
    "Attention",
    "AvgPool",
    "BatchNorm",
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
    "LinearAttention",
    "MaxPool",
    "Mean",
    "MemoryAttention",
    "Mish",
    "Modulate",
    "Multiply",
    "Number",
    "RMSNorm",
    "ReLU",
    "Resample",
    "SiLU",
    "Sigmoid",
    "Sinusoid",
    "Unflatten",
    "Upsample",
]


def _weight(shape: tuple[int, ...], axes: str, scale: float, fan_in: int, fan_out: int) -> Parameter:
    """Return a uniform weight with variance scale / mean(fan_in, fan_out), as in DDPM; scale 0 gives zeros."""
    bound = math.sqrt(6.0 * scale / (fan_in + fan_out))
    return Parameter("weight", shape, axes, ("uniform", bound) if bound else ("constant", 0.0), decay=True)


def _bias(shape: tuple[int, ...], axes: str = "o") -> Parameter:
    return Parameter("bias", shape, axes, ("constant", 0.0))


def _norm(shape: tuple[int, ...], axes: str = "o") -> tuple[Parameter, ...]:
    """Return a scale of ones and a shift of zeros."""
    return Parameter("weight", shape, axes, ("constant", 1.0)), _bias(shape, axes)


@register
@dataclass(frozen=True)
class Sinusoid(NoProducts):
    """Timestep embedding (Vaswani et al., 2017, section 3.5), computed in float64 and cast at the end.

    frequency_k = max_period^(-k / divisor) for k < dim/2. `divisor` is dim/2 - 1 in DDPM and dim/2 in
    guided-diffusion; `sin_first` is true in DDPM.
    """

    dim: int
    max_period: float
    divisor: float
    sin_first: bool

    def frequencies(self) -> list[float]:
        """Return the dim/2 angular frequencies."""
        return [math.exp(-math.log(self.max_period) * k / self.divisor) for k in range(self.dim // 2)]

    def output_shape(self, c_noise: Shape) -> Shape:
        return (self.dim,)


@register
@dataclass(frozen=True)
class Fourier(NoProducts):
    """Random Fourier features (Tancik et al., 2020) of 2 pi c_noise, computed in float64 and cast at the end.

    The dim/2 frequencies are normal with standard deviation `scale`. They are drawn with the weights and not trained.
    """

    dim: int
    scale: float
    sin_first: bool

    def parameters(self) -> tuple[Parameter, ...]:
        """Return the frequencies (o,)."""
        return (Parameter("frequencies", (self.dim // 2,), "o", ("normal", self.scale), trained=False),)

    def output_shape(self, c_noise: Shape) -> Shape:
        return (self.dim,)


@register
@dataclass(frozen=True)
class Number(NoProducts):
    """`scale` times one number per sample, as a vector of one channel; computed in float64 and cast at the end."""

    scale: float

    def output_shape(self, c_noise: Shape) -> Shape:
        return (1,)


@register
@dataclass(frozen=True)
class Embedding(NoProducts):
    """A table with one row per label. With `zero`, the label `count` means "no class" and gives zeros."""

    count: int
    dim: int
    zero: bool = False

    def parameters(self) -> tuple[Parameter, ...]:
        """Return the table (n, o), standard normal."""
        return (Parameter("weight", (self.count, self.dim), "n o", ("normal", 1.0)),)

    def output_shape(self, label: Shape) -> Shape:
        return (self.dim,)


@register
@dataclass(frozen=True)
class Linear(Block):
    """A dense layer on vectors, or on each token; `scale` is the variance scale of its initial weights."""

    inputs: int
    outputs: int
    bias: bool
    scale: float

    def parameters(self) -> tuple[Parameter, ...]:
        """Return the weight (o, i) and, with `bias`, the bias (o,)."""
        weight = _weight((self.outputs, self.inputs), "o i", self.scale, self.inputs, self.outputs)
        return (weight, _bias((self.outputs,))) if self.bias else (weight,)

    def output_shape(self, x: Shape) -> Shape:
        if len(x) > 2 or x[-1:] != (self.inputs,):
            raise DuetError(
                f"block Linear: a value of the shape {x} was given; it reads vectors ({self.inputs},) or tokens "
                f"(n, {self.inputs})"
            )
        return *positions(x), self.outputs

    def multiply_adds(self, x: Shape) -> int:
        return math.prod(x) * self.outputs


@register
@dataclass(frozen=True)
class Conv(Block):
    """A 2-D convolution; `padding` is (top, bottom, left, right), in zeros."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    padding: tuple[int, int, int, int]
    bias: bool
    scale: float

    def parameters(self) -> tuple[Parameter, ...]:
        """Return the weight (o, i, kh, kw) and, with `bias`, the bias (o,)."""
        area = self.kernel**2
        shape = (self.outputs, self.inputs, self.kernel, self.kernel)
        weight = _weight(shape, "o i kh kw", self.scale, self.inputs * area, self.outputs * area)
        return (weight, _bias((self.outputs,))) if self.bias else (weight,)

    def output_shape(self, x: Shape) -> Shape:
        check_image("Conv", x)
        top, bottom, left, right = self.padding
        height, width = x[0] + top + bottom - self.kernel, x[1] + left + right - self.kernel
        return height // self.stride + 1, width // self.stride + 1, self.outputs

    def multiply_adds(self, x: Shape) -> int:
        return math.prod(self.output_shape(x)) * self.inputs * self.kernel**2


@register
@dataclass(frozen=True)
class ConvTranspose(Block):
    """The transpose of a convolution: n pixels become (n - 1) stride + kernel - 2 crop pixels."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    crop: int
    bias: bool
    scale: float

    def parameters(self) -> tuple[Parameter, ...]:
        """Return the weight (i, o, kh, kw) and, with `bias`, the bias (o,)."""
        area = self.kernel**2
        shape = (self.inputs, self.outputs, self.kernel, self.kernel)
        weight = _weight(shape, "i o kh kw", self.scale, self.inputs * area, self.outputs * area)
        return (weight, _bias((self.outputs,))) if self.bias else (weight,)

    def output_shape(self, x: Shape) -> Shape:
        check_image("ConvTranspose", x)
        height, width = ((size - 1) * self.stride + self.kernel - 2 * self.crop for size in x[:2])
        return height, width, self.outputs

    def multiply_adds(self, x: Shape) -> int:
        return math.prod(x) * self.outputs * self.kernel**2


@register
@dataclass(frozen=True)
class GroupNorm(Elementwise):
    """Group normalisation (Wu & He, 2018), mean and variance in two passes over pixels and group channels."""

    channels: int
    groups: int
    eps: float

    def __post_init__(self) -> None:
        if self.channels % self.groups:
            raise DuetError(
                f"model.norm_groups: {self.groups} groups do not divide {self.channels} channels; "
                f"give a divisor of {self.channels}"
            )

    def parameters(self) -> tuple[Parameter, ...]:
        """Return the scale (o,) and the shift (o,)."""
        return _norm((self.channels,))

    def output_shape(self, x: Shape) -> Shape:
        check_no_tokens("GroupNorm", x)
        return x


@register
@dataclass(frozen=True)
class LayerNorm(Elementwise):
    """Layer normalisation (Ba et al., 2016) in two passes, with a scale and a shift per element if `affine`.

    The shape is (c,) for the channels of each pixel or of a vector, or (c, h, w) for a whole image.
    """

    shape: tuple[int, ...]
    eps: float
    affine: bool = True

    later_options: ClassVar[tuple[str, ...]] = ("affine",)

    def __post_init__(self) -> None:
        if len(self.shape) not in (1, 3):
            raise DuetError(f"LayerNorm: shape {self.shape} was given; it must be (c,) or (c, h, w)")

    def parameters(self) -> tuple[Parameter, ...]:
        """Return the scale and the shift, (o,) or (o, h, w); none unless `affine`."""
        return _norm(self.shape, "o" if len(self.shape) == 1 else "o h w") if self.affine else ()

    def output_shape(self, x: Shape) -> Shape:
        if len(self.shape) == 3:
            check_image("LayerNorm", x)
        return x


@register
@dataclass(frozen=True)
class RMSNorm(Elementwise):
    """x sqrt(c) / max(|x|, eps) over the channels of each pixel (Zhang & Sennrich, 2019), with a scale per channel.

    With `mean_square` it is x / sqrt(mean x^2 + eps), as in most transformers.
    """

    channels: int
    eps: float
    mean_square: bool = False

    later_options: ClassVar[tuple[str, ...]] = ("mean_square",)

    def parameters(self) -> tuple[Parameter, ...]:
        """Return the scale (o,)."""
        return (Parameter("weight", (self.channels,), "o", ("constant", 1.0)),)


@register
@dataclass(frozen=True)
class BatchNorm(Elementwise):
    """Batch normalisation (Ioffe & Szegedy, 2015) over batch and pixels.

    In training it normalises with the mean and the biased variance of the batch, and updates the running statistics by
    ``running <- running + momentum (batch - running)``, with the unbiased variance of the batch (factor n/(n-1)), as
    PyTorch does. `momentum` is the weight of the new value (in Keras it is the weight of the old one). The EMA of the
    weights also averages the running statistics.
    """

    channels: int
    eps: float
    momentum: float

    has_training_mode: ClassVar[bool] = True
    has_batch_statistics: ClassVar[bool] = True

    def parameters(self) -> tuple[Parameter, ...]:
        """Return the scale, the shift, the running mean and the running variance, all (o,)."""
        shape = (self.channels,)
        mean = Parameter("mean", shape, "o", ("constant", 0.0), trained=False)
        return *_norm(shape), mean, Parameter("variance", shape, "o", ("constant", 1.0), trained=False)

    def output_shape(self, x: Shape) -> Shape:
        check_no_tokens("BatchNorm", x)
        return x


@register
@dataclass(frozen=True)
class SiLU(Elementwise):
    """x sigmoid(x)."""


@register
@dataclass(frozen=True)
class ReLU(Elementwise):
    """max(x, 0)."""


@register
@dataclass(frozen=True)
class GELU(Elementwise):
    """x Phi(x), exactly: Phi(x) = (1 + erf(x / sqrt(2))) / 2.

    With `tanh`, Phi(x) is (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 (Hendrycks & Gimpel, 2016).
    """

    tanh: bool = False

    later_options: ClassVar[tuple[str, ...]] = ("tanh",)


@register
@dataclass(frozen=True)
class Sigmoid(Elementwise):
    """1 / (1 + exp(-x))."""


@register
@dataclass(frozen=True)
class Mish(Elementwise):
    """x tanh(log(1 + exp(x))) (Misra, 2019, https://arxiv.org/abs/1908.08681)."""


# The order of q, k and v ("three"), heads (n) and channels per head (d) in the 3c channels that Attention reads.
ATTENTION_ORDERS = {"qkv": "three n d", "heads": "n three d", "interleaved": "n d three"}


@register
@dataclass(frozen=True)
class Attention(Block):
    """Self-attention over all pixels or tokens of a value of 3c channels: q, k and v, see `ATTENTION_ORDERS`."""

    channels: int
    heads: int
    order: str = "qkv"

    def __post_init__(self) -> None:
        if self.channels % self.heads:
            raise DuetError(
                f"model.heads: {self.heads} heads do not divide {self.channels} channels; "
                f"give a divisor of {self.channels}"
            )
        if self.order not in ATTENTION_ORDERS:
            raise one_of("model.qkv_order", self.order, ATTENTION_ORDERS)

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
        if self.channels % self.heads:
            raise DuetError(
                f"model.heads: {self.heads} heads do not divide {self.channels} channels; "
                f"give a divisor of {self.channels}"
            )
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


@register
@dataclass(frozen=True)
class Dropout(Elementwise):
    """Set elements to zero with probability `rate` in training, and divide the others by 1 - rate.

    Element e of image n, counted in the order h w c, is dropped if word e of the random stream at (index n, `row`) is
    below ``round(rate 2^32)``. These are integers, so every framework drops the same elements. Each Dropout of a
    program has its own `row`.
    """

    rate: float
    row: int

    has_training_mode: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise DuetError(f"model.dropout: {self.rate} was given; it must be a probability, 0 <= dropout < 1")

    @property
    def threshold(self) -> int:
        """The word below which an element is dropped."""
        return round(self.rate * 2**32)


@register
@dataclass(frozen=True)
class Add(NoProducts):
    """(a + b) scale; a vector b is added to every pixel of a."""

    scale: float

    def output_shape(self, x: Shape, y: Shape) -> Shape:
        check_beside("Add", x, y)
        return x


@register
@dataclass(frozen=True)
class Multiply(NoProducts):
    """The product a b; a vector b multiplies every pixel of a."""

    def output_shape(self, x: Shape, y: Shape) -> Shape:
        check_beside("Multiply", x, y)
        return x


@register
@dataclass(frozen=True)
class Modulate(NoProducts):
    """x (1 + scale) + shift, where a vector (b, 2c) holds scale, then shift; shift first with `shift_first`."""

    channels: int
    shift_first: bool = False

    later_options: ClassVar[tuple[str, ...]] = ("shift_first",)

    def output_shape(self, x: Shape, vector: Shape) -> Shape:
        return x


@register
@dataclass(frozen=True)
class Concat(NoProducts):
    """The channels of a, then those of b; a vector b is repeated at every pixel of a."""

    def output_shape(self, x: Shape, y: Shape) -> Shape:
        check_beside("Concat", x, y)
        return *positions(x), x[-1] + y[-1]


@register
@dataclass(frozen=True)
class Upsample(NoProducts):
    """Repeat every pixel twice in both directions (nearest neighbour)."""

    factor: ClassVar[int] = 2

    def output_shape(self, x: Shape) -> Shape:
        check_image("Upsample", x)
        return x[0] * self.factor, x[1] * self.factor, x[2]


@register
@dataclass(frozen=True)
class AvgPool(NoProducts):
    """The mean of each square of 2 x 2 pixels."""

    factor: ClassVar[int] = 2

    def output_shape(self, x: Shape) -> Shape:
        check_image("AvgPool", x)
        return x[0] // self.factor, x[1] // self.factor, x[2]


@register
@dataclass(frozen=True)
class MaxPool(NoProducts):
    """The maximum of each square of 2 x 2 pixels."""

    factor: ClassVar[int] = 2

    def output_shape(self, x: Shape) -> Shape:
        check_image("MaxPool", x)
        return x[0] // self.factor, x[1] // self.factor, x[2]


@register
@dataclass(frozen=True)
class Resample(Block):
    """y = A x A^T for the pixels of each channel, with one small matrix A that the core computes in float64.

        bilinear           twice the size, pixel centres aligned
        bilinear_corners   twice the size, corner pixels aligned
        up                 twice the size: zeros between pixels, then the filter
        down               half the size: the filter, then every other pixel

    The filter's `taps` are symmetric and act along each side; they are scaled to sum to 1 (2 for up). `padding` is the
    zero padding of the convolution (up: of its transpose) on every side.
    """

    rule: str
    taps: tuple[float, ...] = ()
    padding: int = 0

    def __post_init__(self) -> None:
        if self.rule not in ("bilinear", "bilinear_corners", "up", "down"):
            raise one_of("Resample.rule", self.rule, ("bilinear", "bilinear_corners", "up", "down"))

    def matrix(self, size: int) -> NDArray[np.float64]:
        """Return A, with shape (new size, size); cached, since every forward pass needs it."""
        return _resampling(self.rule, tuple(self.taps), self.padding, size)

    def output_shape(self, x: Shape) -> Shape:
        check_image("Resample", x)
        return self.new_size(x[0]), self.new_size(x[1]), x[2]

    def multiply_adds(self, x: Shape) -> int:
        height, width, channels = self.output_shape(x)
        return height * channels * (x[0] * x[1] + x[1] * width)

    def new_size(self, size: int) -> int:
        """Return the number of pixels that `size` pixels become along one side."""
        if self.rule == "up":
            return 2 * (size - 1) + len(self.taps) - 2 * self.padding
        return (size + 2 * self.padding - len(self.taps)) // 2 + 1 if self.rule == "down" else 2 * size


@cache
def _resampling(rule: str, taps: tuple[float, ...], padding: int, size: int) -> NDArray[np.float64]:
    """Return the matrix of `Resample`."""
    if rule.startswith("bilinear"):
        position = np.arange(2 * size)
        if rule == "bilinear":
            position = np.clip((position + 0.5) / 2 - 0.5, 0, size - 1)
        else:
            position = position * ((size - 1) / (2 * size - 1))
        return np.maximum(0.0, 1.0 - np.abs(position[:, None] - np.arange(size)))
    weights = np.asarray(taps, np.float64) / sum(taps)
    down = np.zeros(((size + 2 * padding - len(weights)) // 2 + 1, size))
    if rule == "up":
        # Twice the transpose of the "down" matrix of the larger image, since each new pixel meets half of the taps.
        larger = 2 * (size - 1) + len(weights) - 2 * padding
        down = np.zeros((size, larger))
    for i in range(len(down)):
        for k, tap in enumerate(weights):
            if 0 <= (j := 2 * i + k - padding) < down.shape[1]:
                down[i, j] = tap
    return 2.0 * down.T if rule == "up" else down


@register
@dataclass(frozen=True)
class Mean(NoProducts):
    """The mean of all pixels or tokens per channel, a vector."""

    def output_shape(self, x: Shape) -> Shape:
        return x[-1:]


@register
@dataclass(frozen=True)
class Flatten(NoProducts):
    """An image as a vector in the order h w c, or tokens in the order n c."""

    def output_shape(self, x: Shape) -> Shape:
        return (math.prod(x),)


@register
@dataclass(frozen=True)
class Unflatten(NoProducts):
    """A vector in the order h w c as an image of this height and width."""

    height: int
    width: int

    def output_shape(self, x: Shape) -> Shape:
        return self.height, self.width, math.prod(x) // (self.height * self.width)
