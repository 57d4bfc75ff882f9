"""Blocks that join two values; where the second is a vector, it acts on every pixel or token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from diffusion_core.networks.registry import NoProducts, Shape, check_beside, positions, register

__all__ = [
    "Add",
    "Concat",
    "Modulate",
    "Multiply",
]


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
