"""Blocks that turn one number, or one label, per sample into a vector."""

from __future__ import annotations

import math
from dataclasses import dataclass

from diffusion_core.networks.registry import NoProducts, Parameter, Shape, register

__all__ = [
    "Embedding",
    "Fourier",
    "Number",
    "Sinusoid",
]


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
