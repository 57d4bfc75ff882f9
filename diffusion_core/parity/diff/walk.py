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

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff import operations as rules
from diffusion_core.parity.diff.draws import choose_draw, draws_of, layout_of_draw
from diffusion_core.parity.diff.graph import Compute, Graph, relative
from diffusion_core.parity.diff.layouts import Layout, Lookup, find_layout, typical_size
from diffusion_core.parity.diff.recording import Operation
from diffusion_core.parity.diff.vocabulary import LAYOUT_KINDS

__all__ = ["Exit", "Meeting", "Walk", "exits_of", "likely_layout", "match_by_use", "needed_by", "reached"]

# Agreement: so many units in the last place of float64 relative to the largest number, and so many times what the
# random errors did. The first covers sums of thousands of terms in another order.
_UNITS, _TIMES = 2.0**12, 16.0
_NEAR = 1e-11
# Weights were stored in float32. One that is computed from several of the other side (a folded norm, a sum of biases)
# is known to half a unit of that only. So are constants of a float32 model.
_STORED = 2.0**-24
_MEMORY = ("transpose", "reshape", "cast", "identity", "expand", "stop_gradient", "split", "slice", "unstack", "flip")


@dataclass(frozen=True)
class Meeting:
    """A value of B that is found on A's side: the number there, how B's layout follows, and how far it was off."""

    a: int
    layout: Layout
    own: float = 0.0


@dataclass(frozen=True)
class Exit:
    """A value of B and one of A that are the same quantity although their numbers differ.

    Attributes:
        a, b: the values.
        to_b: how to write A's value in B's layout.
        at: the operations of A and B that show it, since they apply the same parameter; None for outputs.
    """

    a: int
    b: int
    to_b: Callable[[NDArray], NDArray]
    at: tuple[int, int] | None = None


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


def open_values(graph: Graph, found: Callable[[int], bool], outputs: Collection[int]) -> set[int]:
    """Return the values that are not found, with a way to an output on which nothing is found."""
    still: set[int] = set()
    for i in reversed(range(len(graph.operations))):
        for number in graph.operations[i].outputs:
            follows = any(n in still for j in graph.consumers.get(number, ()) for n in graph.operations[j].outputs)
            if (number in outputs or follows) and not found(number):
                still.add(number)
    return still


def reached(graph: Graph, numbers: Iterable[int], until: Callable[[int], bool] = lambda number: False) -> set[int]:
    """Return the operations that follow from some values, not going on from values for which `until` holds."""
    todo, operations = list(numbers), set()
    while todo:
        for i in graph.consumers.get(todo.pop(), ()):
            if i not in operations:
                operations.add(i)
                todo.extend(n for n in graph.operations[i].outputs if not until(n))
    return operations


def needed_by(graph: Graph, numbers: Iterable[int], wanted: Callable[[int], bool]) -> set[int]:
    """Return the operations that some values come from, as far as their results are wanted."""
    todo, operations = [n for n in numbers if n in graph.producer], set()
    while todo:
        i = graph.producer[todo.pop()]
        if i not in operations:
            operations.add(i)
            todo.extend(n for n in graph.operations[i].inputs if n in graph.producer and wanted(n))
    return operations


def uses(graph: Graph, number: int) -> list[tuple[int, int]]:
    """Return (operation, value that it reads) for each operation that computes with a parameter, in order.

    Operations that only move numbers or convert them, as the transposition of a matrix, are looked through.
    """
    found, todo, seen = [], [number], set()
    while todo:
        current = todo.pop()
        for i in graph.consumers.get(current, ()):
            operation = graph.operations[i]
            if operation.kind in _MEMORY and all(is_memory(graph, n, number) for n in operation.inputs):
                new = [n for n in operation.outputs if n not in seen]
                seen.update(new)
                todo.extend(new)
            else:
                found.append((i, current))
    return sorted(found)


def is_memory(graph: Graph, value: int, parameter: int) -> bool:
    """Return whether a value is a parameter in another layout."""
    while value in graph.producer and value != parameter:
        operation = graph.operations[graph.producer[value]]
        if operation.kind not in _MEMORY or not operation.inputs:
            return False
        value = operation.inputs[0]
    return value == parameter


def of_parameters(graph: Graph, number: int) -> bool:
    """Return whether a value is a parameter or buffer, in whatever layout."""
    while number in graph.producer:
        operation = graph.operations[graph.producer[number]]
        if operation.kind not in _MEMORY or not operation.inputs:
            return False
        number = operation.inputs[0]
    return number in graph.names


Partners = dict[int, tuple[int, tuple[int, int] | None]]


def match_by_use(
    a: Graph,
    b: Graph,
    pairs: Iterable[tuple[int, int]],
    outputs: Iterable[tuple[int, int]],
    permuted: Mapping[int, Collection[int]] = MappingProxyType({}),
) -> Partners:
    """Return which value of A is the same quantity as a value of B, since the same parameter is applied to both.

    What an operation makes from the parameter and what it reads besides it are paired where their sizes fit, and the
    outputs of the models. With each pair come the two operations.

    Args:
        a, b: the graphs.
        pairs: value numbers of parameters: of A, of B.
        outputs: value numbers of outputs that belong together, likewise.
        permuted: for parameters of B whose entries stand in another order, the lengths of those axes: values that have
            such an axis stand in another order too, such as the gates of a recurrent layer.
    """
    partner: Partners = {}
    for there, here in pairs:
        mine, theirs = uses(b, here), uses(a, there)
        if len(mine) != len(theirs):
            continue
        turned = set(permuted.get(here, ()))
        for (i, value_b), (j, value_a) in zip(mine, theirs, strict=True):
            one, other = b.operations[i], a.operations[j]
            data_b = [n for n in one.inputs if n != value_b and not of_parameters(b, n)]
            data_a = [n for n in other.inputs if n != value_a and not of_parameters(a, n)]
            if not alike(a, other, data_a, b, one, data_b):
                continue
            if len(one.outputs) == len(other.outputs) == 1 and not turned & set(b.values[one.outputs[0]].shape):
                offer(partner, a, b, other.outputs[0], one.outputs[0], (j, i))
            if len(data_a) == len(data_b) == 1 and not turned & set(b.values[data_b[0]].shape):
                offer(partner, a, b, data_a[0], data_b[0], (j, i))
    for there, here in outputs:
        offer(partner, a, b, there, here, None)
    return partner


_USES = {"bias_add": "add", **dict.fromkeys(("conv", "conv_transpose", "einsum", "gather", "embedding"), "matmul")}


def alike(a: Graph, there: Operation, data_a: Sequence[int], b: Graph, here: Operation, data_b: Sequence[int]) -> bool:
    """Return whether two operations apply a parameter to the same quantity, as far as their form tells.

    A layer norm may be written as ``gamma * (x - mean) / std`` or as ``x * (gamma / std) + ...``: there gamma is
    multiplied with something else.
    """
    if _USES.get(there.kind, there.kind) != _USES.get(here.kind, here.kind):
        return False
    if there.kind != here.kind and _USES.get(there.kind) == "matmul":
        return True
    return sorted(np.size(a.values[n]) for n in data_a) == sorted(np.size(b.values[n]) for n in data_b)


def offer(partner: Partners, a: Graph, b: Graph, there: int, here: int, at: tuple[int, int] | None) -> None:
    """Pair two values that have the same number of elements, of which B's is made by an operation."""
    if here in b.producer and np.size(a.values[there]) == np.size(b.values[here]):
        partner.setdefault(here, (there, at))


def exits_of(walk: Walk, partner: Partners, start: int, still: set[int]) -> list[Exit]:
    """Return the exits behind an operation of B: the first values on every way that have a partner.

    Args:
        walk: the walk.
        partner: pairs of values, from `match_by_use`.
        start: the operation where the sides part.
        still: the open values of B.
    """
    b, found, todo, seen = walk.b, {}, [start], set()
    while todo:
        i = todo.pop()
        if i in seen:
            continue
        seen.add(i)
        for number in b.operations[i].outputs:
            if number not in still:
                continue
            if number in partner:
                there, at = partner[number]
                mine = walk.values.get(number, b.values[number])
                found[number] = Exit(there, number, likely_layout(walk.a.values[there], mine), at)
            else:
                todo.extend(b.consumers.get(number, ()))
    return [found[number] for number in sorted(found, key=lambda n: b.producer[n])]


def likely_layout(theirs: NDArray, mine: NDArray) -> Callable[[NDArray], NDArray]:
    """Return how B's layout most likely follows from A's for values that differ: the order in which they differ least.

    Axes of one element are left out. Among orders that fit equally well, the one that keeps the batch first and moves
    one axis is taken.
    """
    shape = [n for n in theirs.shape if n != 1]
    target = mine.shape
    flat = theirs.reshape(shape)
    best, chosen = float("inf"), tuple(range(len(shape)))
    orders = sorted(itertools.permutations(range(len(shape))), key=lambda order: unusual(order, shape, target))
    kind = np.result_type(theirs, mine, np.float64)
    for order in orders if len(shape) <= 5 else [chosen]:
        if not fits([shape[axis] for axis in order], [n for n in target if n != 1]):
            continue
        candidate = flat.transpose(order).reshape(target)
        with np.errstate(all="ignore"):
            error = float(np.mean(np.abs(np.nan_to_num(np.subtract(candidate, mine, dtype=kind)))))
        if error < 0.9 * best:
            best, chosen = error, order

    def to_b(array: NDArray) -> NDArray:
        return array.reshape(shape).transpose(chosen).reshape(target)

    return to_b


def unusual(order: Sequence[int], shape: Sequence[int], target: Sequence[int]) -> tuple[bool, int]:
    """Rank an order of axes: those that keep the batch first and move as few axes as possible come first."""
    identity = list(range(len(order)))
    last = [0, *range(2, len(order)), 1] if len(order) > 2 else identity
    first = [0, len(order) - 1, *range(1, len(order) - 1)] if len(order) > 2 else identity
    known = list(order) in (identity, last, first)
    return (not known, sum(a != b for a, b in zip(order, identity, strict=True)))


def fits(shape: Sequence[int], target: Sequence[int]) -> bool:
    """Return whether one shape becomes another by merging or splitting neighbouring axes."""
    ends = set(np.cumprod(shape)) if shape else {1}
    others = set(np.cumprod(target)) if target else {1}
    return ends <= others or others <= ends
