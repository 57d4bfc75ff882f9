"""Count what one pass of a network over one image computes: value shapes and multiply-adds.

Only operations that grow with channels times channels or pixels times pixels count: linear maps, convolutions, the two
products of attention, and resampling. Norms, activations and sums count as zero: they read and write each number once,
so memory bandwidth bounds them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from diffusion_core.networks import blocks
from diffusion_core.networks.blocks import Block
from diffusion_core.networks.program import Program

__all__ = ["Convolution", "convolutions", "multiply_adds", "shapes"]

Shape = tuple[int, ...]


class Convolution(NamedTuple):
    """One on a square image of this height and width; `padding` is (top, bottom, left, right)."""

    size: int
    inputs: int
    outputs: int
    kernel: int
    stride: int
    padding: tuple[int, int, int, int]

    @property
    def multiply_adds(self) -> int:
        """For one image."""
        top, bottom, left, right = self.padding
        height, width = ((self.size + zeros - self.kernel) // self.stride + 1 for zeros in (top + bottom, left + right))
        return self.kernel**2 * self.inputs * self.outputs * height * width


def shapes(program: Program, image: Shape) -> dict[str, Shape]:
    """The shape of each block's value for one image of shape (h, w, c): (h, w, c), or (c,) of a vector."""
    given = {"x": image, "estimate": image, "c_noise": (), "label": (), "features": (program.features,)}
    found = dict(given)
    for node in program.nodes:
        found[node.name] = _shape(node.block, *[found[name] for name in node.inputs])
    return {name: shape for name, shape in found.items() if name not in given}


def multiply_adds(program: Program, image: Shape) -> int:
    """The multiply-adds of one forward pass over one image of shape (h, w, c)."""
    values = shapes(program, image) | {"x": image, "estimate": image}
    return sum(
        _cost(node.block, values.get(node.inputs[0], (program.features,)), values[node.name]) for node in program.nodes
    )


def convolutions(program: Program, image: Shape) -> tuple[Convolution, ...]:
    """Those of one forward pass; a transposed one as that of its backward pass."""
    values, found = shapes(program, image) | {"x": image, "estimate": image}, []
    for node in program.nodes:
        block = node.block
        if isinstance(block, blocks.Conv):
            size = values[node.inputs[0]][0]
            found.append(Convolution(size, block.inputs, block.outputs, block.kernel, block.stride, block.padding))
        elif isinstance(block, blocks.ConvTranspose):
            size, padding = values[node.name][0], (block.crop,) * 4
            found.append(Convolution(size, block.outputs, block.inputs, block.kernel, block.stride, padding))
    return tuple(found)


def _shape(block: Block, x: Shape, y: Shape = ()) -> Shape:
    match block:
        case blocks.Sinusoid() | blocks.Fourier() | blocks.Embedding():
            return (block.dim,)
        case blocks.Number():
            return (1,)
        case blocks.Linear():
            return (block.outputs,)
        case blocks.Conv():
            top, bottom, left, right = block.padding
            height, width = x[0] + top + bottom - block.kernel, x[1] + left + right - block.kernel
            return height // block.stride + 1, width // block.stride + 1, block.outputs
        case blocks.ConvTranspose():
            height, width = ((size - 1) * block.stride + block.kernel - 2 * block.crop for size in x[:2])
            return height, width, block.outputs
        case blocks.Attention():
            return *x[:-1], block.channels
        case blocks.Concat():
            return *x[:-1], x[-1] + y[-1]
        case blocks.Upsample():
            return x[0] * block.factor, x[1] * block.factor, x[2]
        case blocks.AvgPool() | blocks.MaxPool():
            return x[0] // block.factor, x[1] // block.factor, x[2]
        case blocks.Resample():
            return len(block.matrix(x[0])), len(block.matrix(x[1])), x[2]
        case blocks.Mean():
            return x[-1:]
        case blocks.Flatten():
            return (math.prod(x),)
        case blocks.Unflatten():
            return block.height, block.width, math.prod(x) // (block.height * block.width)
        case _:
            return x


def _cost(block: Block, x: Shape, value: Shape) -> int:
    match block:
        case blocks.Linear():
            return block.inputs * block.outputs
        case blocks.Conv():
            return math.prod(value) * block.inputs * block.kernel**2
        case blocks.ConvTranspose():
            return math.prod(x) * block.outputs * block.kernel**2
        case blocks.Attention():
            return 2 * (value[0] * value[1]) ** 2 * block.channels
        case blocks.Resample():
            return value[0] * x[2] * (x[0] * x[1] + x[1] * value[1])
        case _:
            return 0
