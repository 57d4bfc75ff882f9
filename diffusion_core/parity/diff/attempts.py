"""Changes of one side, tried: run up to the exits, and compared there with the other side.

Most changes are wrong, so one is run to the first exit that it reaches only. If the sides agree there, it is run on to
the others: a change that makes more of them agree is nearer to the cause. If they do not, values right behind it are
sought on the other side: a second difference may follow before the exit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff import operations as rules
from diffusion_core.parity.diff.causes.change import Change
from diffusion_core.parity.diff.exits import Exit
from diffusion_core.parity.diff.graph import relative
from diffusion_core.parity.diff.layouts import find_layout
from diffusion_core.parity.diff.partings import ENOUGH, Side
from diffusion_core.parity.diff.reach import needed_by, reached
from diffusion_core.parity.diff.vocabulary import LAYOUT_KINDS
from diffusion_core.parity.diff.walk import Walk

__all__ = ["CONSTANT", "Attempt", "attempt", "error_at", "work"]

# What a change that does not fit the shapes at hand raises: it is not the cause, and the next one is tried.
_DOES_NOT_FIT = (ValueError, IndexError, TypeError, KeyError, ZeroDivisionError, OverflowError, rules.Unsupported)
_COSTS = {"matmul": 10.0, "einsum": 10.0} | dict.fromkeys(
    ("conv", "conv_transpose", "max_pool", "avg_pool", "resize"), 50.0
)
# What running an operation costs besides its numbers.
_RUN = 2000.0
# Values right behind a change that are sought on the other side: so many, and so close.
_NEXT, _SAME = 4, 1e-11
# Frameworks keep some constants in float32, also in float64 (TensorFlow's GELU): what is left then is below one unit of
# float32, and far below the difference.
CONSTANT, _FAR_BELOW = 2.0**-24, 1e-3


@dataclass(frozen=True)
class Attempt:
    """Changes that were tried.

    Attributes:
        changes, of_b: what was changed, and on which side.
        agreed: exits where the sides agree with it, to rounding.
        error, left: how far the sides are apart at these exits, or at the first one that it reaches, without and with
            the changes.
        at_once: whether the sides agree right behind the change, although not at an exit.
    """

    changes: tuple[Change, ...]
    of_b: bool
    agreed: tuple[Exit, ...]
    error: float
    left: float
    at_once: bool = False

    @property
    def verified(self) -> bool:
        """Whether it is the cause: the sides agree at the first exit, or right behind it. More may be wrong later."""
        return self.at_once or bool(self.agreed)

    @property
    def rank(self) -> tuple[bool, bool, int, float]:
        """What makes one attempt better than another; one that accounts for more exits is nearer to the cause."""
        return (self.verified, not self.at_once, len(self.agreed), -self.left)


def attempt(side: Side, changes: Sequence[Change], rounding: float) -> Attempt | None:
    """Try changes of a side; None if they do not fit or reach no exit.

    Exits behind others count only if there is another way to them.

    Args:
        side: the side.
        changes: of different operations.
        rounding: how far apart, relative, float32 weights and constants may leave the sides.
    """
    graph = side.graph
    first = {change.operation for change in changes}
    ends = _ends_reached(side, first)
    if not ends:
        return None
    compute = {change.operation: change.compute for change in changes}

    def run(indices: Collection[int]) -> Mapping[int, NDArray]:
        with np.errstate(all="ignore"):
            return graph.run(sorted(first.union(indices)), side.values.__getitem__, compute)

    following = _following(side, first)
    judged = {}
    # What lies between a change before the region and the region is run again, too.
    between = frozenset() if first <= side.region else _before_region(side, first)
    try:
        made = run((following & side.needs[ends[0]]) | between)
        judged[ends[0]] = _judge(side, ends[0], made, rounding)
        if judged[ends[0]][2] and len(ends) > 1:
            made = run(following | between)
            judged.update({end: _judge(side, end, made, rounding) for end in ends[1:]})
    except _DOES_NOT_FIT:
        return None
    agreed = [end for end, (_, _, agrees) in judged.items() if agrees]
    if not agreed and (near := _near_by(side, min(first), made)):
        return Attempt(tuple(changes), side.of_b, (), *near, at_once=True)
    counted = [judged[end] for end in agreed or ends[:1]]
    exits = tuple(side.ends[end] for end in agreed)
    return Attempt(tuple(changes), side.of_b, exits, max(e for e, _, _ in counted), max(x for _, x, _ in counted))


def work(side: Side, change: Change) -> float:
    """Estimate the work of trying a change: numbers that are made, and more for sums of products."""
    graph, first = side.graph, {change.operation}
    ends = _ends_reached(side, first)
    return sum(
        _RUN + _COSTS.get(graph.operations[i].kind, 1.0) * np.size(graph.values[number])
        for i in first | (_following(side, first) & side.needs[ends[0]] if ends else set())
        for number in graph.operations[i].outputs
    )


def _following(side: Side, first: Collection[int]) -> set[int]:
    """Return the operations of the region that follow from some."""
    key = ("following", frozenset(first))
    if key not in side.reach:
        outputs = [n for i in first for n in side.graph.operations[i].outputs]
        side.reach[key] = reached(side.graph, outputs) & side.region
    return side.reach[key]


def _before_region(side: Side, first: Collection[int]) -> frozenset[int]:
    """Return the operations that follow from some and that an exit needs, wherever they are."""
    outputs = [n for i in first for n in side.graph.operations[i].outputs]
    return frozenset(reached(side.graph, outputs) & needed_by(side.graph, side.ends, lambda number: True))


def _ends_reached(side: Side, first: Collection[int]) -> list[int]:
    """Return the exits that some operations reach, not by way of other exits, in order."""
    key = ("ends", frozenset(first))
    if key not in side.reach:
        side.reach[key] = _find_ends(side, first)
    return side.reach[key]


def _find_ends(side: Side, first: Collection[int]) -> list[int]:
    outputs = [n for i in first for n in side.graph.operations[i].outputs]
    direct = reached(side.graph, [n for n in outputs if n not in side.ends], until=side.ends.__contains__)
    made = {n for i in {*direct, *first} for n in side.graph.operations[i].outputs}
    return [end for end in side.ends if end in made]


def _judge(side: Side, end: int, made: Mapping[int, NDArray], rounding: float) -> tuple[float, float, bool]:
    """Return how far the sides are apart at an exit without and with a change, and whether they agree with it."""
    exit_, walk = side.ends[end], side.parting.walk
    mine, theirs = made[end], walk.a.values[exit_.a] if side.of_b else walk.values[exit_.b]
    before = error_at(exit_, walk)
    try:
        left = relative(mine, exit_.to_b(theirs)) if side.of_b else relative(theirs, exit_.to_b(mine))
    except ValueError:  # another shape
        left = float("inf")
    tolerance = walk.tolerance(exit_.b) if exit_.b in walk.values else 1e-9
    agrees = find_layout(theirs, mine, tolerance) is not None
    return before, left, agrees or (left <= rounding and left <= _FAR_BELOW * before)


def error_at(exit_: Exit, walk: Walk) -> float:
    """Return how far the sides are apart at an exit, relative."""
    mine = walk.values.get(exit_.b)
    return float("inf") if mine is None else relative(mine, exit_.to_b(walk.a.values[exit_.a]))


def _near_by(side: Side, index: int, made: Mapping[int, NDArray]) -> tuple[float, float] | None:
    """Return how far a value right behind a change was from the other side's, and is; None if it is not found there."""
    seen = 0
    for i in sorted(i for i in {side.graph.producer[number] for number in made} if i >= index):
        # A constant that was set to the other side's is found there, whatever becomes of it.
        if side.graph.operations[i].kind in LAYOUT_KINDS or not side.graph.operations[i].inputs:
            continue
        for number in side.graph.operations[i].outputs:
            value = np.asarray(made.get(number))
            seen += 1
            if seen > _NEXT:
                return None
            if value.size < ENOUGH or value.dtype.kind != "f" or np.ptp(value) == 0:
                continue
            for candidate in side.other.open_values.find(value, _SAME):
                there = side.other.values[candidate]
                layout = find_layout(there, value, _SAME)
                if layout is None:
                    continue
                theirs, before = layout.to_b(there), side.values.get(number)
                apart = float("inf") if before is None else relative(before, theirs)
                if apart > _SAME:
                    return apart, relative(value, theirs)
    return None
