"""Blocks that change the height and width of an image, or turn it into a vector and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import one_of
from diffusion_core.networks.registry import Block, NoProducts, Shape, check_image, register

__all__ = [
    "AvgPool",
    "Flatten",
    "MaxPool",
    "Mean",
    "Resample",
    "Unflatten",
    "Upsample",
]


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
