"""Value shapes and multiply-adds of one forward pass of a network over one image.

Multiply-adds are counted where they grow with channels times channels or pixels times pixels: linear maps,
convolutions, the two products of attention, and resampling. Norms, activations and sums count as 0: their cost is
memory traffic. Each block kind states its own shape and count, see `registry.Block`.
"""

from __future__ import annotations

from diffusion_core.networks.program import Program, input_shapes
from diffusion_core.networks.registry import Shape

__all__ = ["multiply_adds", "shapes"]


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
