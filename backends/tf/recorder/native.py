"""One operation of TensorFlow as it ran, and the table of the functions that translate it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import op_def_registry

from diffusion_core.parity.diff.translations import Translations

__all__ = ["TRANSLATIONS", "Native", "Value", "translates"]


def default(operation: str, attribute: str) -> Any:
    """Return what TensorFlow takes for an attribute that a caller left out, as ``tf.one_hot`` does with its axis."""
    for each in getattr(op_def_registry.get(operation), "attr", ()):
        if each.name == attribute and (kind := each.default_value.WhichOneof("value")) in ("i", "f", "b", "s"):
            value = getattr(each.default_value, kind)
            return value.decode() if isinstance(value, bytes) else value
    return None


Value = Any
"""A tensor, or the number of a value that has no tensor."""


class Sink(Protocol):
    """What a translation writes to; see `recorder`."""

    def read(self, tensor: tf.Tensor) -> int:
        """Return the number of the value of a tensor."""

    def is_fixed(self, tensor: Value) -> bool:
        """Return whether a tensor does not depend on the model's inputs or weights."""

    def write(self, native: Native, kind: str, inputs: list[int], outputs: list[Value], attributes: dict) -> list[int]:
        """Write an operation; None among the outputs is a new value without an array."""

    def alias(self, tensor: tf.Tensor, number: int) -> None:
        """Let a tensor be a value that exists."""


class Native:
    """One operation of TensorFlow as it ran."""

    def __init__(
        self, sink: Sink, name: str, inputs: Sequence[tf.Tensor], attributes: dict, outputs: Sequence[tf.Tensor]
    ) -> None:
        self.sink, self.name, self.inputs, self.outputs = sink, name, list(inputs), list(outputs)
        given = {key: default(name, key) if v is None else v for key, v in attributes.items()}
        self.attributes = {key: v.decode() if isinstance(v, bytes) else v for key, v in given.items()}

    def __getitem__(self, name: str) -> Any:
        return self.attributes[name] if name in self.attributes else default(self.name, name)

    def numbers(self, index: int) -> list[int]:
        """Return an input of integers as a list."""
        return [int(n) for n in np.atleast_1d(self.inputs[index].numpy())]

    def axes(self, index: int, rank: int) -> list[int]:
        """Return an input of axes, counted from 0."""
        return [n % rank for n in self.numbers(index)] if rank else []

    def scalar(self, value: Value) -> Any:
        """Return the number in the code that an input is; None if it is an array or depends on the model."""
        if isinstance(value, int) or value.shape.rank != 0 or not self.sink.is_fixed(value):
            return None
        number = value.numpy()
        return number.item() if hasattr(number, "item") else None

    def number(self, value: Value) -> int:
        """Return the number of a value."""
        return value if isinstance(value, int) else self.sink.read(value)

    def emit(
        self, kind: str, inputs: Sequence[Value], outputs: Sequence[Value] | None = None, **attributes: Any
    ) -> int:
        """Write an operation and return the number of its first output; without outputs it has a value of its own."""
        numbers = [self.number(value) for value in inputs]
        return self.sink.write(self, kind, numbers, [None] if outputs is None else list(outputs), attributes)[0]

    def binary(self, kind: str, x: Value, y: Value, outputs: Sequence[Value] | None = None) -> int:
        """Write an operation of two inputs, of which one may be a number in the code."""
        if (number := self.scalar(y)) is not None:
            return self.emit(kind, [x], outputs, scalar=number, reverse=False)
        if (number := self.scalar(x)) is not None:
            return self.emit(kind, [y], outputs, scalar=number, reverse=True)
        return self.emit(kind, [x, y], outputs, scalar=None, reverse=False)

    def alias(self) -> None:
        """Let the outputs be the inputs."""
        for tensor, result in zip(self.inputs, self.outputs, strict=False):
            self.sink.alias(result, self.number(tensor))

    def opaque(self) -> None:
        """Write what the vocabulary does not know."""
        kinds = (tf.resource, tf.variant, tf.string)
        inputs = [each for each in self.inputs if each.dtype not in kinds and not self.sink.is_fixed(each)]
        outputs = [each for each in self.outputs if each.dtype not in kinds]
        if outputs:
            self.emit("opaque", inputs, outputs)


Translation = Callable[[Native], None]
TRANSLATIONS = Translations()
translates = TRANSLATIONS.register
