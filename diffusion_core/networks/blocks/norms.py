"""Norms: every value minus a mean, divided by a size, then a scale and a shift per channel.

GroupNorm   (x - mean) / sqrt(variance + eps) per group of channels; biased variance
LayerNorm   the same over the channels of each pixel, or over a whole image
RMSNorm     x sqrt(c) / |x| over the c channels of each pixel
BatchNorm   the same as GroupNorm per channel over the batch; running statistics in evaluation
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from diffusion_core.common.errors import DuetError
from diffusion_core.networks.blocks.linear import zero_bias
from diffusion_core.networks.registry import Elementwise, Parameter, Shape, check_image, check_no_tokens, register

__all__ = [
    "BatchNorm",
    "GroupNorm",
    "LayerNorm",
    "RMSNorm",
]


def _norm(shape: tuple[int, ...], axes: str = "o") -> tuple[Parameter, ...]:
    """Return a scale of ones and a shift of zeros."""
    return Parameter("weight", shape, axes, ("constant", 1.0)), zero_bias(shape, axes)


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
