"""The graph that a network becomes in ONNX, and the table of emitters, one per block kind.

`onnx.py` has the emitters of `networks/blocks.py`; each further file of block kinds has its own `onnx_*.py`, which
`onnx.py` imports.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.networks.registry import BlockRules

__all__ = ["EMITTERS", "Graph", "Value"]


@dataclass(frozen=True)
class Value:
    """The value of a block: its name in the graph, and its shape without the batch, (c, h, w) or (c,)."""

    name: str
    shape: tuple[int, ...]

    @property
    def is_image(self) -> bool:
        """Whether it has pixels."""
        return len(self.shape) == 3


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
