"""Value shapes and multiply-adds of one forward pass of a network over one image.

Multiply-adds are counted where they grow with channels times channels or pixels times pixels: linear maps,
convolutions, the two products of attention, and resampling. Norms, activations and sums count as 0: their cost is
memory traffic. Each block kind states its own shape and count, see `registry.Block`.
"""

from __future__ import annotations

from typing import NamedTuple

from diffusion_core.networks import blocks
from diffusion_core.networks.program import Program, input_shapes
from diffusion_core.networks.registry import Shape

__all__ = ["Convolution", "convolutions", "multiply_adds", "shapes"]


class Convolution(NamedTuple):
    """A convolution of a square image of this height and width; `padding` is (top, bottom, left, right)."""

    size: int
    inputs: int
    outputs: int
    kernel: int
    stride: int
    padding: tuple[int, int, int, int]

    @property
    def multiply_adds(self) -> int:
        """The multiply-adds for one image."""
        top, bottom, left, right = self.padding
        height, width = ((self.size + zeros - self.kernel) // self.stride + 1 for zeros in (top + bottom, left + right))
        return self.kernel**2 * self.inputs * self.outputs * height * width


def _values(program: Program, image: Shape) -> dict[str, Shape]:
    """Return the shapes of the inputs and of every block's value."""
    values = input_shapes(image, program.features)
    for node in program.nodes:
        values[node.name] = node.block.output_shape(*(values[name] for name in node.inputs))
    return values


def shapes(program: Program, image: Shape) -> dict[str, Shape]:
    """Return the shape of each block's value for one image of shape (h, w, c): (h, w, c), or (c,) for a vector."""
    values = _values(program, image)
    return {node.name: values[node.name] for node in program.nodes}


def multiply_adds(program: Program, image: Shape) -> int:
    """Return the multiply-adds of a forward pass over one image of shape (h, w, c)."""
    values = _values(program, image)
    return sum(node.block.multiply_adds(*(values[name] for name in node.inputs)) for node in program.nodes)


def convolutions(program: Program, image: Shape) -> tuple[Convolution, ...]:
    """Return the convolutions of a forward pass; a transposed one stands as that of its backward pass."""
    values, result = _values(program, image), []
    for node in program.nodes:
        block = node.block
        if isinstance(block, blocks.Conv):
            size = values[node.inputs[0]][0]
            result.append(Convolution(size, block.inputs, block.outputs, block.kernel, block.stride, block.padding))
        elif isinstance(block, blocks.ConvTranspose):
            size, padding = values[node.name][0], (block.crop,) * 4
            result.append(Convolution(size, block.outputs, block.inputs, block.kernel, block.stride, padding))
    return tuple(result)
