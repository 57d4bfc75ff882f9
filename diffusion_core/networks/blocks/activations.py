"""Functions of single numbers: activations and dropout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from diffusion_core.common.errors import DuetError
from diffusion_core.networks.registry import Elementwise, register

__all__ = [
    "Dropout",
    "GELU",
    "Mish",
    "ReLU",
    "SiLU",
    "Sigmoid",
]


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
