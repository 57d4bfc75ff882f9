"""What a program costs: the multiplications with an addition that its products need for one image.

    Conv            k^2 c_in c_out      for each pixel that it gives
    ConvTranspose   k^2 c_in c_out      for each pixel that it is given
    Linear          c_in c_out          for each pixel, or once for a vector
    Attention       2 c n^2             for n pixels: q k^T, and what it weighs

Everything else is a few operations per number and is not counted. A backward pass takes twice as many again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from diffusion_core.unet.blocks import (
    Attention,
    AvgPool,
    Block,
    Conv,
    ConvTranspose,
    Flatten,
    Linear,
    MaxPool,
    Mean,
    Resample,
    Unflatten,
    Upsample,
)
from diffusion_core.unet.program import Node, Program

__all__ = ["Convolution", "Product", "convolutions", "multiply_adds", "products"]

_VECTOR = 0  # the size of what is no image


class Convolution(NamedTuple):
    """One of a kernel that reaches as far to every side, on an image of this height and width."""

    size: int
    inputs: int
    outputs: int
    kernel: int
    stride: int


@dataclass(frozen=True)
class Product:
    """A product of a program.

    Args:
        node: where it stands.
        size: height and width of what it is given; 0 for a vector.
        multiply_adds: for one image.
    """

    node: Node
    size: int
    multiply_adds: int


def products(program: Program, size: int) -> tuple[Product, ...]:
    """Those of a program on square images, in order.

    Args:
        program: the network.
        size: height and width of its images in pixels.
    """
    found: list[Product] = []
    modules = {node.name: partial(_follow, found, node) for node in program.nodes}
    sizes = {"x": size, "estimate": size, "c_noise": _VECTOR, "label": _VECTOR, "features": _VECTOR}
    program.run(modules, sizes, training=None)
    return tuple(found)


def multiply_adds(program: Program, size: int) -> int:
    """Those of one network evaluation of one image."""
    return sum(product.multiply_adds for product in products(program, size))


def convolutions(program: Program, size: int) -> tuple[Convolution, ...]:
    """Those of a program on square images of this height and width; a transposed one as that of its backward pass."""
    found = []
    for product in products(program, size):
        block, given = product.node.block, product.size
        if isinstance(block, Conv):
            found.append(Convolution(given, block.inputs, block.outputs, block.kernel, block.stride))
        elif isinstance(block, ConvTranspose):
            found.append(Convolution(given * block.stride, block.outputs, block.inputs, block.kernel, block.stride))
    return tuple(found)


def _follow(found: list[Product], node: Node, *sizes: int, **_: Any) -> int:
    """The size of what a block gives; a product is added to those found."""
    given, block = max(sizes), node.block
    if isinstance(block, Conv):
        top, bottom, _left, _right = block.padding
        gives = (given + top + bottom - block.kernel) // block.stride + 1
        count = block.kernel**2 * block.inputs * block.outputs * gives**2
    elif isinstance(block, ConvTranspose):
        gives = (given - 1) * block.stride + block.kernel - 2 * block.crop
        count = block.kernel**2 * block.inputs * block.outputs * given**2
    elif isinstance(block, Linear):
        gives, count = given, block.inputs * block.outputs * max(1, given**2)
    elif isinstance(block, Attention):
        gives, count = given, 2 * block.channels * given**4
    else:
        return _resized(block, given)
    found.append(Product(node, given, count))
    return gives


def _resized(block: Block, given: int) -> int:
    """The size of what any other block gives."""
    if isinstance(block, Mean | Flatten):
        return _VECTOR
    if isinstance(block, Unflatten):
        return block.height
    if isinstance(block, Resample):
        return len(block.matrix(given))
    if isinstance(block, Upsample):
        return given * block.factor
    return given // block.factor if isinstance(block, AvgPool | MaxPool) else given
