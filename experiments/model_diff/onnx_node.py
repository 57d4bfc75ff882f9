"""One node of an ONNX graph, and what a translation into the vocabulary of `duet diff` writes.

`onnx_operations` and `onnx_windows` register a function for each operator. It gets a `Node`, reads attributes and fixed
inputs (those that depend on neither the model's inputs nor its weights), and writes one operation or several.

References:
    ONNX operators, https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff.translations import Translations

__all__ = ["TRANSLATIONS", "Node", "Sink", "Value", "short", "translates"]

# A value is the name that it has in the file, or the number of an intermediate result.
Value = str | int


class Sink(Protocol):
    """What a translation writes to."""

    def fixed(self, name: str) -> NDArray | None:
        """Return the array of a name that depends on neither inputs nor weights, or None."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a named array."""

    def write(self, node: Node, kind: str, inputs: Sequence[Value], outputs: Sequence[str], attributes: dict) -> int:
        """Write an operation, with one new intermediate result if there are no outputs; return the first number."""


class Node:
    """One node of an ONNX graph, with its attributes as Python values."""

    def __init__(self, sink: Sink, proto: Any, opset: int) -> None:
        from onnx.helper import get_attribute_value

        self.sink, self.opset = sink, opset
        self.name, self.type = proto.name, proto.op_type
        self.metadata = {item.key: item.value for item in getattr(proto, "metadata_props", ())}
        self.inputs, self.outputs = list(proto.input), list(proto.output)
        self.attributes = {each.name: get_attribute_value(each) for each in proto.attribute}

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute; bytes become text."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def has(self, index: int) -> bool:
        """Return whether an optional input is there."""
        return index < len(self.inputs) and self.inputs[index] != ""

    def array(self, index: int) -> NDArray | None:
        """Return the array of a fixed input; None if it is not there or not fixed."""
        return self.sink.fixed(self.inputs[index]) if self.has(index) else None

    def shape(self, index: int = 0) -> tuple[int, ...]:
        """Return the shape of an input."""
        return self.sink.shape(self.inputs[index])

    @property
    def rank(self) -> int:
        """The number of axes of the first input."""
        return len(self.shape())

    def emit(self, kind: str, inputs: Sequence[Value], outputs: Sequence[str] | None = None, **attributes: Any) -> int:
        """Write an operation; with no outputs it makes an intermediate result."""
        return self.sink.write(self, kind, inputs, outputs or [], attributes)

    def end(self, kind: str, *inputs: Value, **attributes: Any) -> None:
        """Write the operation that makes the node's first output."""
        self.emit(kind, inputs, self.outputs[:1], **attributes)

    def binary(self, kind: str, x: Value, y: Value, outputs: Sequence[str] | None = None) -> int:
        """Write an operation of two values; a fixed one of one element becomes a number."""
        for one, other, reverse in ((y, x, False), (x, y, True)):
            number = self.sink.fixed(one) if isinstance(one, str) else None
            if number is None or number.size != 1:
                continue
            if isinstance(other, int) or number.ndim <= len(self.sink.shape(other)):
                return self.emit(kind, [other], outputs, scalar=number.reshape(-1)[0].item(), reverse=reverse)
        return self.emit(kind, [x, y], outputs)

    def axes(self, index: int = 1) -> list[int]:
        """Return the axes of a reduction: an attribute in old operator sets, an input in new ones."""
        given = self.get("axes")
        if given is None and self.has(index):
            given = self.array(index)
        axes = range(self.rank) if given is None or len(given) == 0 else given
        return sorted(int(axis) % max(self.rank, 1) for axis in axes)


Translation = Callable[[Node], None]
TRANSLATIONS = Translations()
translates = TRANSLATIONS.register


def short(number: float) -> float:
    """Return the shortest decimal number that has the same float32, as authors write it: 1e-05, not 9.99999975e-06."""
    return float(str(np.float32(number)))
