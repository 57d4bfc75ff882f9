"""Recordings written by hand: operations are evaluated as they are written down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.parity.diff import operations as rules
from diffusion_core.parity.diff.recording import Operation, Pass

__all__ = ["Tape", "both", "weights"]


class Tape:
    """One pass, in the order in which it is written.

    Values are numbers: ``y = tape("add", x, scalar=1)``. An operation with several outputs returns a tuple of them.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.operations: list[Operation] = []
        self.values: dict[int, NDArray] = {}
        self.inputs: list[int] = []
        self.parameters: dict[str, int] = {}

    def _new(self, array: ArrayLike) -> int:
        number = len(self.values) + 1
        self.values[number] = np.asarray(array)
        return number

    def input(self, array: ArrayLike) -> int:
        self.inputs.append(self._new(array))
        return self.inputs[-1]

    def parameter(self, name: str, array: ArrayLike) -> int:
        self.parameters[name] = self._new(array)
        return self.parameters[name]

    def constant(self, array: ArrayLike) -> int:
        number = self._new(array)
        self.operations.append(Operation("constant", (), (number,), native="constant"))
        return number

    def draw(self, array: ArrayLike) -> int:
        """Write down random numbers that were drawn."""
        number = self._new(np.asarray(array, np.float64))
        self.operations.append(Operation("random", (), (number,), {"distribution": "uniform", "rate": None}, "random"))
        return number

    def __call__(self, kind: str, *inputs: int, **attributes: Any) -> Any:
        arrays = self.evaluated(Operation(kind, inputs, (0,), attributes))
        outputs = tuple(self._new(array) for array in arrays)
        source = f"model.py:{len(self.operations) + 1}"
        self.operations.append(Operation(kind, inputs, outputs, attributes, kind, "", source))
        return outputs if len(outputs) > 1 else outputs[0]

    def evaluated(self, draft: Operation) -> tuple[NDArray, ...]:
        with np.errstate(all="ignore"):
            return tuple(rules.evaluate(draft, [self.values[n] for n in draft.inputs]))

    def get(self, name: str, default: Any = None) -> Any:
        return self.options.get(name, default)

    def linear(self, x: int, name: str, width: int, bias: bool = True) -> int:
        """Multiply the last axis by a matrix of fixed random numbers and add a bias."""
        wide = self.values[x].shape[-1]
        y = self("matmul", x, self.parameter(f"{name}.weight", weights(name, wide, width) / np.sqrt(wide)))
        return self("add", y, self.parameter(f"{name}.bias", weights(f"{name}.b", width))) if bias else y

    def record(self, *outputs: int, name: str = "float64") -> Pass:
        named = {str(i): n for i, n in enumerate(outputs)}
        return Pass(name, tuple(self.operations), self.values, tuple(self.inputs), named, self.parameters)


def weights(name: str, *shape: int) -> NDArray:
    """Return random numbers that depend on a name alone."""
    return np.random.default_rng(list(name.encode())).normal(size=shape)


def both(model: Callable[[Tape], Any], a: dict[str, Any], b: dict[str, Any]) -> tuple[Pass, Pass]:
    """Write one model with two sets of options."""
    passes = []
    for options in (a, b):
        tape = Tape(**options)
        outputs = model(tape)
        passes.append(tape.record(*(outputs if isinstance(outputs, tuple) else (outputs,))))
    return passes[0], passes[1]
