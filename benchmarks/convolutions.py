"""The convolutions of a network, to time them alone."""

from __future__ import annotations

from typing import NamedTuple

from diffusion_core.networks import blocks
from diffusion_core.networks.flops import shapes
from diffusion_core.networks.program import Program

__all__ = ["Convolution", "convolutions"]


class Convolution(NamedTuple):
    """A convolution of a square image.

    Args:
        size: height and width of the input.
        inputs: input channels.
        outputs: output channels.
        kernel: height and width of the kernel.
        stride: pixels between two outputs.
        padding: zeros at the (top, bottom, left, right).
    """

    size: int
    inputs: int
    outputs: int
    kernel: int
    stride: int
    padding: tuple[int, int, int, int]

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds for one image."""
        top, bottom, left, right = self.padding
        height, width = ((self.size + zeros - self.kernel) // self.stride + 1 for zeros in (top + bottom, left + right))
        return self.kernel**2 * self.inputs * self.outputs * height * width


def convolutions(program: Program, image: tuple[int, int, int]) -> tuple[Convolution, ...]:
    """Return the convolutions of one forward pass over an image of shape (h, w, c).

    A transposed convolution appears as the convolution whose backward pass it is.
    """
    values, layers = shapes(program, image) | {"x": image, "estimate": image}, []
    for node in program.nodes:
        block = node.block
        if isinstance(block, blocks.Conv):
            size = values[node.inputs[0]][0]
            layers.append(Convolution(size, block.inputs, block.outputs, block.kernel, block.stride, block.padding))
        elif isinstance(block, blocks.ConvTranspose):
            size, padding = values[node.name][0], (block.crop,) * 4
            layers.append(Convolution(size, block.outputs, block.inputs, block.kernel, block.stride, padding))
    return tuple(layers)
