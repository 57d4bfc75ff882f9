"""The graph that a network becomes in ONNX, and the table of emitters, one per block kind.

`onnx.py` has the emitters of `networks/blocks/`; each further file of block kinds has its own `onnx_*.py`, which
`onnx.py` imports.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.networks.registry import BlockRules, Shape

__all__ = ["EMITTERS", "Graph", "Value", "channels_first", "channels_last", "int64", "reshape", "to_float32"]


@dataclass(frozen=True)
class Value:
    """The value of a block: its name in the graph, and its shape without the batch, (c, h, w), (n, c) or (c,)."""

    name: str
    shape: tuple[int, ...]

    @property
    def is_image(self) -> bool:
        """Whether it has pixels."""
        return len(self.shape) == 3

    @property
    def channels(self) -> int:
        """The axis of the channels, after that of the batch."""
        return 2 if len(self.shape) == 2 else 1

    @property
    def count(self) -> int:
        """The number of channels."""
        return self.shape[self.channels - 1]


def channels_first(shape: Shape) -> Shape:
    """Return the shape of an image as (c, h, w), and any other as it is."""
    return (shape[2], *shape[:2]) if len(shape) == 3 else shape


def channels_last(shape: Shape) -> Shape:
    """Return the shape of an image (c, h, w) as (h, w, c), and any other as it is."""
    return (*shape[1:], shape[0]) if len(shape) == 3 else shape


class Graph:
    """The nodes and initialisers so far; `block` is the name of the current block, a prefix of new names."""

    def __init__(self, onnx: ModuleType) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.initialisers: list[Any] = []
        self.block = ""

    def add(self, kind: str, *inputs: Value | str | NDArray, **attributes: Any) -> str:
        """Add an operator and return the name of its output; arrays among its inputs become constants."""
        output = f"{self.block}/{kind}_{len(self.nodes)}"
        names = [self._name(value) for value in inputs]
        self.nodes.append(self.onnx.helper.make_node(kind, names, [output], output, **attributes))
        return output

    def add_initialiser(self, name: str, array: NDArray) -> str:
        """Add an initialiser and return its name."""
        self.initialisers.append(self.onnx.numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def _name(self, value: Value | str | NDArray) -> str:
        if isinstance(value, Value):
            return value.name
        if isinstance(value, str):
            return value
        return self.add_initialiser(f"{self.block}/constant_{len(self.initialisers)}", value)


# One emitter per block kind. It takes the graph, the block, its inputs and the names of its parameters, adds operators
# to the graph, and returns the name of the last output.
EMITTERS: BlockRules[Callable[..., str]] = BlockRules("ONNX emitter", "diffusion_core/convert/onnx.py")


def int64(*numbers: int) -> NDArray[np.int64]:
    """Return whole numbers, as shapes and axes are given."""
    return np.array(numbers, np.int64)


def to_float32(g: Graph, x: str) -> str:
    """Cast a value to float32."""
    return g.add("Cast", x, to=g.onnx.TensorProto.FLOAT)


def reshape(g: Graph, x: Value | str, *shape: int) -> str:
    """Reshape to (batch, *shape)."""
    return g.add("Reshape", x, int64(0, *shape))
