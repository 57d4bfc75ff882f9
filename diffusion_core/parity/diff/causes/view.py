"""What the causes in a forward pass share: a region as it is read, and whether numbers exist on the other side.

Numbers are looked up by *moments*: mean, mean size, root mean square, least and largest. They do not depend on the
order of the elements, and repetition does not change them, so a layout need not be known. Equal moments are only a
reason to propose a change; whether it is the cause is found out by running it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff import operations as rules
from diffusion_core.parity.diff.causes.change import Read, Suspect
from diffusion_core.parity.diff.recording import Operation
from diffusion_core.parity.diff.vocabulary import BINARY, UNARY

__all__ = ["ELEMENTWISE", "Moments", "View", "moments", "shown", "view"]

ELEMENTWISE = frozenset(UNARY) | frozenset(BINARY) | {"where"}
_MOVES = ("reshape", "transpose", "identity", "expand", "cast", "split", "slice", "unstack", "stop_gradient")
_NEAR = 1e-8  # of the root mean square
_MOST = 2_000_000  # elements: searches leave larger arrays out

Moments = NDArray[np.float64]


def moments(array: NDArray) -> Moments:
    """Return mean, mean size, root mean square, least, largest and the fraction of numbers that are not finite."""
    x = np.asarray(array, np.float64).reshape(-1)
    finite = np.isfinite(x)
    share = 1.0 - float(np.mean(finite)) if x.size else 0.0
    if share > 0:
        x = x[finite]
    if x.size == 0:
        return np.array([0.0, 0.0, 0.0, 0.0, 0.0, share])
    size = float(np.max(np.abs(x)))
    root = size * math.sqrt(float(np.mean(np.square(x / size)))) if size > 0 else 0.0
    return np.array([x.mean(), np.abs(x).mean(), root, x.min(), x.max(), share])


def shown(number: float) -> str:
    """Write a number for people: as a root or a fraction where it is one, else with six digits."""
    if number == 0 or not math.isfinite(number):
        return f"{number:g}"
    sign, size = ("-" if number < 0 else ""), abs(number)
    if abs(size - float(f"{size:.4g}")) <= 1e-12 * size:
        return f"{number:.4g}"
    for text, value in (("{}", size), ("1/{}", 1 / size)):
        if abs(value - round(value)) < 1e-9 * value and 1 < round(value) <= 65536:
            return sign + text.format(round(value))
        square = value * value
        if abs(square - round(square)) < 1e-9 * square and 1 < round(square) <= 65536:
            return sign + text.format(f"sqrt({round(square)})")
    for below in range(2, 65):
        above = size * below
        if abs(above - round(above)) < 1e-9 * above and round(above) <= 1024:
            return f"{sign}{round(above)}/{below}"
    return f"{number:.6g}"


class View:
    """A suspect region, indexed.

    Attributes:
        suspect: what is looked at.
        graph: this side.
        operations: index and operation of the region, without those that cannot be evaluated.
        made: by value number, the operation of the region that makes it.
        entries: values that the region reads and does not make, in order.
    """

    def __init__(self, suspect: Suspect) -> None:
        """Index a suspect."""
        self.suspect, self.graph = suspect, suspect.graph
        operations = suspect.graph.operations
        opaque = suspect.graph.opaque
        self.operations = [
            (i, operations[i]) for i in suspect.region if i not in opaque or operations[i].kind == "constant"
        ]
        self.made = {n: i for i, o in self.operations for n in o.outputs}
        self.entries = list(dict.fromkeys(n for _, o in self.operations for n in o.inputs if n not in self.made))
        self._values: dict[int, NDArray | None] = {}
        self._moments: dict[int, Moments | None] = {}
        self._theirs: tuple[list[int], NDArray, NDArray] | None = None

    # Values

    def value(self, number: int) -> NDArray | None:
        """Return a value of this side on the other side's values, or None if there is none."""
        if number not in self._values:
            try:
                self._values[number] = np.asarray(self.suspect.read(number))
            except (KeyError, rules.Unsupported):
                self._values[number] = None
        return self._values[number]

    def number(self, number: int) -> NDArray | None:
        """Return a value if it is one of floats, and not too large for a search."""
        array = self.value(number)
        return array if array is not None and array.dtype.kind == "f" and 0 < array.size <= _MOST else None

    def moments(self, number: int) -> Moments | None:
        """Return the moments of a value of floats."""
        if number not in self._moments:
            array = self.number(number)
            self._moments[number] = None if array is None else moments(array)
        return self._moments[number]

    def output(self, i: int) -> NDArray | None:
        """Return the first output of an operation."""
        return self.number(self.graph.operations[i].outputs[0])

    def is_parameter(self, number: int) -> bool:
        """Return whether a value is a parameter or buffer, in whatever layout."""
        return self.parameter(number) is not None

    def parameter(self, number: int) -> str | None:
        """Return the name of the parameter or buffer that a value is, in whatever layout."""
        while number not in self.graph.names:
            i = self.graph.producer.get(number)
            if i is None or self.graph.operations[i].kind not in _MOVES or not self.graph.operations[i].inputs:
                return None
            number = self.graph.operations[i].inputs[0]
        return self.graph.names[number]

    # The other side

    def _other(self) -> tuple[list[int], NDArray, NDArray]:
        if self._theirs is None:
            numbers, sizes, rows = [], [], []
            for i in self.suspect.other_region:
                for n in self.suspect.other.operations[i].outputs:
                    try:
                        array = np.asarray(self.suspect.read_other(n))
                    except KeyError:
                        continue
                    if array.dtype.kind == "f" and 0 < array.size <= _MOST:
                        numbers.append(n)
                        sizes.append(array.size)
                        rows.append(moments(array))
            self._theirs = numbers, np.array(sizes, np.int64), np.array(rows).reshape(-1, 6)
        return self._theirs

    def theirs(self, array: NDArray | None, size: int | None = None) -> list[tuple[int, Moments]]:
        """Return number and moments of the other side's values that could be as large as an array."""
        numbers, sizes, rows = self._other()
        size = array.size if size is None and array is not None else size or 0
        fits = [n == size for n in sizes]
        return [(n, row) for n, row, fit in zip(numbers, rows, fits, strict=True) if fit]

    def found(self, array: NDArray) -> bool:
        """Return whether the other side's region makes these numbers, in whatever order."""
        numbers, sizes, rows = self._other()
        if not numbers:
            return False
        fits = (np.maximum(sizes, array.size) % np.maximum(np.minimum(sizes, array.size), 1)) == 0
        if not fits.any():
            return False
        return bool((near(moments(array), rows) & fits).any())

    def numbers_there(self, *kinds: str) -> list[float]:
        """Return the numbers that operations of these kinds have on the other side, in order."""
        found = []
        for i in self.suspect.other_region:
            operation = self.suspect.other.operations[i]
            number = operation.attributes.get("scalar")
            if operation.kind in kinds and isinstance(number, int | float) and not isinstance(number, bool):
                found.append(float(number))
        return list(dict.fromkeys(found))

    # The graph

    def neighbours(
        self, i: int, forward: bool, steps: int, through: Iterable[str] | None = None
    ) -> Iterator[Operation]:
        """Go through the operations that follow from one, or that it comes from, up to some steps away."""
        allowed = None if through is None else set(through)
        layer, seen = [i], {i}
        for _ in range(steps):
            following: list[int] = []
            for j in layer:
                operation = self.graph.operations[j]
                if forward:
                    near_by = [k for n in operation.outputs for k in self.graph.consumers.get(n, ())]
                else:
                    near_by = [self.graph.producer[n] for n in operation.inputs if n in self.graph.producer]
                for k in near_by:
                    if k not in seen:
                        seen.add(k)
                        yield self.graph.operations[k]
                        if allowed is None or self.graph.operations[k].kind in allowed:
                            following.append(k)
            layer = following

    def leads_to(self, i: int, kinds: Iterable[str], steps: int = 6, through: Iterable[str] | None = None) -> bool:
        """Return whether an operation of some kinds follows within some steps."""
        wanted = set(kinds)
        return any(operation.kind in wanted for operation in self.neighbours(i, True, steps, through))

    def comes_from(self, i: int, kinds: Iterable[str], steps: int = 6, through: Iterable[str] | None = None) -> bool:
        """Return whether an operation comes from one of some kinds within some steps."""
        wanted = set(kinds)
        return any(operation.kind in wanted for operation in self.neighbours(i, False, steps, through))

    def after(self, numbers: Iterable[int]) -> list[int]:
        """Return the operations of the region that follow from some values, in order."""
        reached, found = set(numbers), []
        for i, operation in self.operations:
            if any(n in reached for n in operation.inputs):
                reached.update(operation.outputs)
                found.append(i)
        return found

    def before(self, number: int) -> set[int]:
        """Return the values that a value comes from within the region, itself included."""
        wanted = {number}
        for _, operation in reversed(self.operations):
            if any(n in wanted for n in operation.outputs):
                wanted.update(operation.inputs)
        return wanted

    def readers(self, number: int) -> list[int]:
        """Return the operations of the region that read a value."""
        return [i for i, operation in self.operations if number in operation.inputs]

    # Running

    def evaluate(self, i: int, inputs: Sequence[NDArray], **attributes: object) -> tuple[NDArray, ...]:
        """Evaluate an operation, with other attributes if they are given."""
        operation = self.graph.operations[i]
        if not attributes:
            return self.graph.evaluate(i, inputs)
        other = replace(operation, attributes={**operation.attributes, **attributes})
        with np.errstate(all="ignore"):
            return tuple(rules.evaluate(other, inputs))

    def with_attributes(self, i: int, **attributes: object) -> Callable[[Read], Sequence[NDArray]]:
        """Return how to compute an operation with other attributes."""
        inputs = self.graph.operations[i].inputs
        return lambda read: self.evaluate(i, [read(n) for n in inputs], **attributes)

    def with_input(
        self, i: int, position: int, function: Callable[[NDArray], NDArray]
    ) -> Callable[[Read], Sequence[NDArray]]:
        """Return how to compute an operation with a function of one of its inputs."""
        inputs = self.graph.operations[i].inputs

        def compute(read: Read) -> Sequence[NDArray]:
            arrays = [read(n) for n in inputs]
            with np.errstate(all="ignore"):
                arrays[position] = function(arrays[position])
            return self.evaluate(i, arrays)

        return compute

    def with_output(self, i: int, function: Callable[[NDArray], NDArray]) -> Callable[[Read], Sequence[NDArray]]:
        """Return how to compute an operation and a function of its output."""
        inputs = self.graph.operations[i].inputs

        def compute(read: Read) -> Sequence[NDArray]:
            outputs = self.evaluate(i, [read(n) for n in inputs])
            with np.errstate(all="ignore"):
                return (function(outputs[0]), *outputs[1:])

        return compute

    def rerun(
        self, read: Read, given: Mapping[int, NDArray], until: int, left_out: Iterable[int] = ()
    ) -> Sequence[NDArray]:
        """Run operations again that follow from values given in place of others, and return the outputs of the last.

        Args:
            read: all other values.
            given: arrays by value number.
            until: index of the last operation.
            left_out: operations that are given their first input as their output.
        """
        skipped = set(left_out)
        arrays = dict(given)
        outputs: Sequence[NDArray] = ()
        first = min((self.graph.producer.get(n, -1) for n in given), default=0)
        for i in range(first + 1, until + 1):
            operation = self.graph.operations[i]
            if i != until and not any(n in arrays for n in operation.inputs):
                continue
            if operation.outputs and operation.outputs[0] in given:
                continue
            inputs = [arrays[n] if n in arrays else read(n) for n in operation.inputs]
            outputs = (inputs[0],) if i in skipped else self.graph.evaluate(i, inputs)
            arrays.update(zip(operation.outputs, outputs, strict=False))
        return outputs


_latest: list[tuple[Suspect, View]] = []


def view(suspect: Suspect) -> View:
    """Return the view of a suspect; the latest one is kept, since every cause looks at the same."""
    if not _latest or _latest[0][0] is not suspect:
        _latest[:] = [(suspect, View(suspect))]
    return _latest[0][1]


def near(wanted: Moments, rows: NDArray) -> NDArray:
    """Return which rows of moments are these moments."""
    size = np.maximum(np.abs(rows[:, 2]), abs(wanted[2]))
    reach = _NEAR * np.maximum(size, 1e-300)
    spread = np.maximum(np.abs(rows[:, 3:5]).max(axis=1, initial=0.0), size) * _NEAR
    close = np.abs(rows[:, :3] - wanted[:3]).max(axis=1, initial=0.0) <= reach
    ends = np.abs(rows[:, 3:5] - wanted[3:5]).max(axis=1, initial=0.0) <= spread
    return close & ends & (np.abs(rows[:, 5] - wanted[5]) < 1e-9)
