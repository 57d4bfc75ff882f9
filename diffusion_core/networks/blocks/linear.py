"""Dense layers and convolutions. Parameters have the axes of PyTorch (``o i kh kw``).

    Linear         y = x W^T + b
    Conv           2-D convolution; the padding of each side is explicit
    ConvTranspose  its transpose, cropped on every side

Initial weights are uniform with the variance scale / mean(fan_in, fan_out), biases zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from diffusion_core.common.errors import DuetError
from diffusion_core.networks.registry import Block, Parameter, Shape, check_image, positions, register

__all__ = [
    "Conv",
    "ConvTranspose",
    "Linear",
]


def _weight(shape: tuple[int, ...], axes: str, scale: float, fan_in: int, fan_out: int) -> Parameter:
    """Return a uniform weight with variance scale / mean(fan_in, fan_out), as in DDPM; scale 0 gives zeros."""
    bound = math.sqrt(6.0 * scale / (fan_in + fan_out))
    return Parameter("weight", shape, axes, ("uniform", bound) if bound else ("constant", 0.0), decay=True)


def zero_bias(shape: tuple[int, ...], axes: str = "o") -> Parameter:
    return Parameter("bias", shape, axes, ("constant", 0.0))


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
        return (weight, zero_bias((self.outputs,))) if self.bias else (weight,)

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
        return (weight, zero_bias((self.outputs,))) if self.bias else (weight,)

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
        return (weight, zero_bias((self.outputs,))) if self.bias else (weight,)

    def output_shape(self, x: Shape) -> Shape:
        check_image("ConvTranspose", x)
        height, width = ((size - 1) * self.stride + self.kernel - 2 * self.crop for size in x[:2])
        return height, width, self.outputs

    def multiply_adds(self, x: Shape) -> int:
        return math.prod(x) * self.outputs * self.kernel**2
