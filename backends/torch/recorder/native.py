"""One operation of PyTorch while it is translated to the vocabulary of `duet diff`, and the table of translations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion_core.parity.diff.translations import Translations

__all__ = ["TRANSLATIONS", "Native", "Sink", "Translation", "Unknown", "translates"]


class Unknown(Exception):
    """The vocabulary has no word for an operation; it is recorded as opaque."""


class Sink(Protocol):
    """Where a translation writes."""

    def read(self, tensor: Tensor) -> int:
        """Return the number of the value that a tensor holds."""

    def write(self, kind: str, inputs: list[int], outputs: list[int] | None, attributes: dict[str, Any]) -> int:
        """Write an operation, with an output of its own if none is given; return the number of its first output."""

    def constant(self, array: NDArray) -> int:
        """Write an array of the code; return its number."""


class Native:
    """One call of an operation of PyTorch.

    Attributes:
        name: without its namespace, overload and the underscore of an operation in place, as in "add".
        overload: such as "Tensor" or "".
        function: the operation itself.
        arguments: by name; those in tensors are the tensors as they were read.
        results: its results, the written tensors of an operation in place among them.
        outputs: the numbers of their values.
    """

    def __init__(
        self,
        name: str,
        function: Any,
        arguments: dict[str, Any],
        results: Sequence[Tensor],
        outputs: Sequence[int],
        sink: Sink,
    ) -> None:
        self.name, self.overload, self.function = name, function._schema.overload_name, function
        self.arguments, self.results, self.outputs, self.sink = arguments, list(results), list(outputs), sink

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return an argument, or the default if there is none or it is None."""
        value = self.arguments.get(name)
        return default if value is None else value

    @property
    def x(self) -> Tensor:
        """The first argument."""
        return next(iter(self.arguments.values()))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the first result."""
        return self.results[0].dtype

    def read(self, value: Tensor | int, dtype: torch.dtype | None = None) -> int:
        """Return the number of a tensor's value, cast to a type if it has another."""
        if not isinstance(value, Tensor):
            return value
        number = self.sink.read(value)
        if dtype is None or value.dtype == dtype:
            return number
        return self.emit("cast", [number], dtype=str(dtype).removeprefix("torch."))

    def emit(self, kind: str, inputs: Sequence[Tensor | int], **attributes: Any) -> int:
        """Write an operation in between; return the number of its result, which has no array."""
        return self.sink.write(kind, [self.read(each) for each in inputs], None, attributes)

    def give(self, kind: str, inputs: Sequence[Tensor | int], *, every: bool = False, **attributes: Any) -> None:
        """Write the operation whose results are the first result, or every one."""
        outputs = self.outputs if every else self.outputs[:1]
        self.sink.write(kind, [self.read(each) for each in inputs], list(outputs), attributes)

    def constant(self, array: Any) -> int:
        """Write an array of the code; return its number."""
        return self.sink.constant(np.asarray(array))

    def floats(self, value: Tensor | int) -> int:
        """Return the number of a tensor's value in the type of the result."""
        return self.read(value, self.dtype)

    def axis(self, value: int, tensor: Tensor | None = None) -> int:
        """Return an axis of the first argument, or of a tensor, counted from 0."""
        return value % max((self.x if tensor is None else tensor).ndim, 1)

    def axes(self, value: Any, tensor: Tensor | None = None) -> list[int]:
        """Return axes counted from 0; None or an empty list are all of them."""
        ndim = (self.x if tensor is None else tensor).ndim
        if value is None or value == []:
            return list(range(ndim))
        return sorted(axis % max(ndim, 1) for axis in ([value] if isinstance(value, int) else value)) if ndim else []


Translation = Callable[[Native], None]
TRANSLATIONS = Translations()
translates = TRANSLATIONS.register
