"""One side run again on the other side's values, operation by operation.

B's graph is evaluated in order. Where a result is found among A's values, up to the order of its elements, A's numbers
are put in its place, so that no operation inherits the error of another. A result that is not found is either an
intermediate of another form (it is passed over when what follows from it is found again), or

    open      not found, and on some way from it to an output nothing is found again.

The first open operation whose inputs are all found is where the two sides part. What follows from it is open too, up to
an *exit*: a value that is known to be the same quantity on both sides, because the same parameter is applied to it or
because it is an output. There A's numbers are put in, and the walk goes on; so later differences are found as well.

Rounding: next to every value that is not A's own, a second one is carried on which each operation makes a random error
of one unit in the last place. Their difference is what rounding can do here; agreement is measured by it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff import operations as rules
from diffusion_core.parity.diff.draws import choose_draw, draws_of, layout_of_draw
from diffusion_core.parity.diff.exits import Exit
from diffusion_core.parity.diff.graph import Compute, Graph, relative
from diffusion_core.parity.diff.layouts import Layout, Lookup, find_layout, typical_size
from diffusion_core.parity.diff.reach import open_values, reached
from diffusion_core.parity.diff.vocabulary import LAYOUT_KINDS

__all__ = ["Meeting", "Walk"]

# Agreement: so many units in the last place of float64 relative to the largest number, and so many times what the
# random errors did. The first covers sums of thousands of terms in another order.
_UNITS, _TIMES = 2.0**12, 16.0
_NEAR = 1e-11
# Weights were stored in float32. One that is computed from several of the other side (a folded norm, a sum of biases)
# is known to half a unit of that only. So are constants of a float32 model.
_STORED = 2.0**-24


@dataclass(frozen=True)
class Meeting:
    """A value of B that is found on A's side: the number there, how B's layout follows, and how far it was off."""

    a: int
    layout: Layout
    own: float = 0.0


class Walk:
    """B on A's values.

    Attributes:
        a, b: the graphs.
        values: B's values, run on A's.
        meetings: values of B that are found on A's side.
        given: exits that were put in.
        shared: parameters of B, and those of A that have the same numbers.
        drawn: draws of random numbers of B that got A's numbers, and those of A.
    """

    def __init__(self, a: Graph, b: Graph, parameters: Mapping[int, NDArray]) -> None:
        """Start from the inputs and the parameters.

        Args:
            a, b: the graphs.
            parameters: those of B in terms of A's, by value number.
        """
        self.a, self.b = a, b
        self.values: dict[int, NDArray] = {}
        self.shaken: dict[int, NDArray] = {}
        self.meetings: dict[int, Meeting] = {}
        self.given: dict[int, Exit] = {}
        self.known: set[int] = set()
        self.shared: dict[int, int] = {}
        self.drawn: dict[int, int] = {}
        self._layouts: dict[int, Layout] = {}
        self._draws = draws_of(b)
        self._open_draws = draws_of(a) if self._draws else {}
        self.early: dict[int, int] = {}  # see `ends`: outputs of B, found at another value of A than A returns
        self.told: set[int] = set()  # what A returns there
        self.returned = (set(a.record.outputs.values()), set(b.record.outputs.values()))
        self._random = np.random.default_rng(0)
        self._unit = np.finfo(np.float64).eps
        self._theirs = _lookup(a)
        self._ours: Lookup | None = None
        for number, array in b.values.items():
            if number in b.producer:
                continue
            self.known.add(number)
            self.values[number] = array
            if number in parameters:
                self.values[number] = parameters[number].astype(array.dtype, copy=False)
            elif array.dtype.kind == "f" and (number in b.names or (b.lifted and number not in b.record.inputs)):
                self.shaken[number] = rules.perturbed(array, _STORED, self._random)
            elif number in b.record.inputs:
                there = a.record.inputs[b.record.inputs.index(number)]
                layout = find_layout(a.values[there], array, 1e-6)
                if layout is not None:
                    self.values[number] = layout.to_b(a.values[there]).astype(array.dtype, copy=False)
                    self.meetings[number] = Meeting(there, layout)
        self.advance(range(len(b.operations)))

    def tolerance(self, number: int) -> float:
        """Return how far rounding alone can move a number of a value of B, relative to its size or the typical one."""
        value = self.values[number]
        if value.dtype.kind not in "fc":
            return 0.0
        least = _UNITS * float(np.finfo(value.dtype).eps)
        if self.a.lifted and self.a.opaque:  # what A recorded in float32 and cannot be run again is in its values
            least = max(least, _TIMES * float(np.finfo(np.float32).eps))
        if number not in self.shaken:
            return least
        with np.errstate(all="ignore"):
            moved = np.abs(self.shaken[number] - value) / np.maximum(np.abs(value), typical_size(value))
        moved = moved[np.isfinite(moved)]
        return max(least, _TIMES * float(moved.max())) if moved.size else least

    def advance(self, indices: Iterable[int], again: Collection[int] = ()) -> None:
        """Run operations of B, in order, and look for their results on A's side.

        An operation that ran before is run again only if something that it reads has changed since.

        Args:
            indices: of the operations.
            again: those of them that are run again in any case.
        """
        changed: set[int] = set()
        for i in indices:
            operation = self.b.operations[i]
            new = [n for n in operation.outputs if n not in self.values or n in self.given]
            if not new and i not in again and not changed.intersection(operation.inputs):
                continue
            outputs = self._outputs(i)
            for position, number in enumerate(operation.outputs):
                before = self.values.pop(number, None), self.shaken.pop(number, None), self.meetings.pop(number, None)
                if self._arrive(number, None if outputs is None else [each[position] for each in outputs]):
                    now = self.values.get(number), self.shaken.get(number), self.meetings.get(number)
                    if not _unchanged(before, now):
                        changed.add(number)
                elif before[0] is not None:
                    changed.add(number)

    def _arrive(self, number: int, made: Sequence[NDArray] | None) -> bool:
        """Give a value its numbers: those that it was given, A's draw, or those made; return whether it has any.

        Args:
            number: of the value.
            made: its numbers and those with random errors; None if the operation cannot be run.
        """
        if number in self.given:
            exit_ = self.given[number]
            self.values[number] = exit_.to_b(self.a.values[exit_.a])
        elif number not in self._draws or not self._draw(number):
            if made is None:
                return False
            self.values[number], self.shaken[number] = map(np.asarray, made)
            self._meet(number)
        return True

    def _draw(self, number: int) -> bool:
        """Give a draw of random numbers the numbers that A drew; return whether A has such a draw."""
        mine, beside = self._draws[number], None
        if number not in self.drawn:
            near = mine.beside if mine.beside in self.meetings else None
            same = {there for there, _ in self.same_there(near)} if near is not None else set()
            chosen = choose_draw(mine, self._open_draws, self.a, self.b, same)
            if chosen is None:
                return False
            beside = self.meetings[near].layout if near is not None else None
            layout = layout_of_draw(self.a.values[chosen.number], self.b.values[number], beside)
            if layout is None:
                return False
            del self._open_draws[chosen.number]
            self.drawn[number] = chosen.number
            self._layouts[number] = layout
        layout, there = self._layouts[number], self.drawn[number]
        self.values[number] = layout.to_b(self.a.values[there]).astype(self.b.values[number].dtype)
        self.meetings[number] = Meeting(there, layout)
        return True

    def _outputs(self, i: int) -> tuple[Sequence[NDArray], Sequence[NDArray]] | None:
        """Return the outputs of an operation, and those with random errors; None if it cannot be run."""
        operation = self.b.operations[i]
        if not all(n in self.values for n in operation.inputs):
            return None
        if i in self.b.changes:
            outputs = self.b.changes[i](self.values.__getitem__)
            return outputs, [self._shake(np.asarray(array)) for array in outputs]
        inputs = [self.values[n] for n in operation.inputs]
        if i in self.b.opaque:
            if all(
                relative(self.values[n], lift_as(self.b.values[n], self.values[n])) < 1e-4 for n in operation.inputs
            ):
                outputs = [self.b.values[n] for n in operation.outputs]
                unit = 2.0**-23 if self.b.lifted else self._unit
                return outputs, [rules.perturbed(array, 16 * unit, self._random) for array in outputs]
            return None
        try:
            outputs = moved = self.b.evaluate_other(i, inputs)
            if any(n in self.shaken for n in operation.inputs):
                moved = self.b.evaluate_other(i, [self.shaken.get(n, self.values[n]) for n in operation.inputs])
        except (ValueError, IndexError, TypeError):
            if self.b.changes:
                return None  # a change of another shape, which does not fit here
            raise
        if operation.kind in LAYOUT_KINDS:
            return outputs, moved
        # Numbers in the code of a float32 model are rounded by one framework and not by the other.
        has_numbers = any(isinstance(value, float) for value in operation.attributes.values())
        least = _STORED if self.b.lifted and has_numbers else 0.0
        return outputs, [self._shake(array, least) for array in moved]

    def _shake(self, array: NDArray, least: float = 0.0) -> NDArray:
        """Return an array with a random error of one unit in the last place, or more."""
        if array.dtype.kind not in "fc":
            return array
        return rules.perturbed(array, max(float(np.finfo(array.dtype).eps), least), self._random)

    def _meet(self, number: int) -> None:
        """Look for a value of B among those of A; if it is found, put A's numbers in its place."""
        value = self.values[number]
        if value.size == 0:
            return
        tolerance = self.tolerance(number)
        best: tuple[Meeting, NDArray] | None = None
        for candidate in self._theirs.find(value, tolerance):
            theirs = self.a.values[candidate]
            if (theirs.dtype.kind in "fc") != (value.dtype.kind in "fc"):
                continue
            if (
                value.size > 1
                and value.dtype.kind == "f"
                and not np.ptp(value)
                and not self._same_kind(candidate, number)
            ):
                continue  # zeros say nothing
            layout = find_layout(theirs, value, tolerance)
            if layout is None:
                continue
            # A small number may have been added in between: the nearest of several values is the same one.
            ours = layout.to_b(theirs).astype(value.dtype, copy=False)
            meeting = Meeting(candidate, layout, relative(value, ours))
            if best is None or meeting.own < best[0].own:
                best = (meeting, ours)
            if meeting.own <= 4 * self._unit:
                break
        if best is not None:
            self.meetings[number], self.values[number] = best
            self.shaken.pop(number, None)

    def _same_kind(self, there: int, here: int) -> bool:
        """Return whether two values come from operations of one kind, or are outputs."""
        if there in self.a.record.outputs.values() and here in self.b.record.outputs.values():
            return True
        makers = self.a.producer.get(there), self.b.producer.get(here)
        if None in makers:
            return makers == (None, None)
        return self.a.operations[makers[0]].kind == self.b.operations[makers[1]].kind

    def same_there(self, number: int) -> list[tuple[int, Layout]]:
        """Return all values of A that have the numbers of a value of B, the one it met first, with their layouts."""
        value, meeting = self.values[number], self.meetings[number]
        others = [n for n in self._theirs.find(value, _NEAR) if n != meeting.a]
        found = [(n, find_layout(self.a.values[n], value, _NEAR)) for n in others]
        return [(meeting.a, meeting.layout), *((n, layout) for n, layout in found if layout is not None)]

    def found(self, number: int) -> bool:
        """Return whether a value of B is one of A's, or was given, or is an input, a parameter or a constant."""
        if number in self.early:
            return False
        return number in self.meetings or number in self.given or number in self.known

    def open(self) -> set[int]:
        """Return the values of B that are not found, with a way to an output on which nothing is found again."""
        return open_values(self.b, self.found, self.returned[1])

    def open_there(self) -> set[int]:
        """Return the same for A: its values that no value of B has met."""
        return open_values(self.a, self.found_there, self.returned[0])

    def found_there(self, number: int) -> bool:
        """Return whether a value of A is one of B's, run on A's values."""
        if number not in self.a.producer or number in self.told:
            return True
        if number in self.early.values():
            return False
        if number in self._met():
            return True
        value = self.a.values[number]
        if value.size == 0:
            return True
        if self._ours is None:
            self._ours = Lookup()
            for mine in self.meetings:
                self._ours.add(mine, self.values[mine])
        near = self._ours.find(value, _NEAR)
        return any(find_layout(self.values[mine], value, _NEAR) is not None for mine in near)

    def _met(self) -> set[int]:
        return {meeting.a for meeting in self.meetings.values()} | {exit_.a for exit_ in self.given.values()}

    def give(self, exits: Sequence[Exit]) -> None:
        """Put A's numbers in at some exits, and run what follows from them again."""
        ends = [exit_.b for exit_ in exits if exit_.b in self.early]
        self.told |= {self.early.pop(number) for number in ends}  # what B does with its own output is right
        exits = [exit_ for exit_ in exits if exit_.b not in ends]
        for exit_ in exits:
            self.given[exit_.b] = exit_
        self._ours = None
        following = reached(self.b, [exit_.b for exit_ in exits])
        first = {self.b.producer[exit_.b] for exit_ in exits if exit_.b in self.b.producer}
        self.advance(sorted(following | first))

    def change(self, changes: Mapping[int, Compute], of_b: bool) -> None:
        """Compute some operations of a side in another way from now on."""
        graph = self.b if of_b else self.a
        following = reached(graph, [n for i in changes for n in graph.operations[i].outputs])
        self._ours = None
        if of_b:
            self.b = replace(self.b, changes={**self.b.changes, **changes})
            self.advance(sorted(following | set(changes)), set(changes))
        else:
            self.a = self.a.changed(changes, following)
            self._theirs = _lookup(self.a)
            other = {n for i in following | set(changes) for n in self.a.operations[i].outputs}
            kept = {n for n, meeting in self.meetings.items() if meeting.a not in other}
            again = [i for i, operation in enumerate(self.b.operations) if not kept.issuperset(operation.outputs)]
            self.advance(range(len(self.b.operations)), set(again))


def _lookup(graph: Graph) -> Lookup:
    """Return the values of a graph, to find those that another array may hold."""
    lookup = Lookup()
    for number, array in graph.values.items():
        lookup.add(number, array)
    return lookup


def _unchanged(before: tuple, now: tuple) -> bool:
    """Return whether a value has the same numbers as before: it met the same value of A, or they are equal."""
    (value, shaken, meeting), (value_now, shaken_now, meeting_now) = before, now
    if value is None or (shaken is None) != (shaken_now is None):
        return False
    if meeting is not None and meeting_now is not None:
        return (meeting.a, meeting.layout) == (meeting_now.a, meeting_now.layout)
    return shaken is None and np.array_equal(value, value_now, equal_nan=value.dtype.kind in "fc")


def lift_as(array: NDArray, like: NDArray) -> NDArray:
    """Return an array in the shape and type of another, for a comparison."""
    return np.asarray(array).astype(like.dtype, copy=False).reshape(like.shape)
