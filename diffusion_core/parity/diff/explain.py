"""Why two sides part at one place: the catalogue's changes, tried one after the other.

A change of B is run from its operation to the exits, on A's values; it is *verified* if what arrives there is what A
has, to rounding, and *likely* if the difference becomes at most a tenth. A change of A is run on A's own values and
compared with what B makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff import operations as rules
from diffusion_core.parity.diff.causes.change import CAUSES, Change, Suspect
from diffusion_core.parity.diff.findings import Finding, Place
from diffusion_core.parity.diff.graph import relative
from diffusion_core.parity.diff.layouts import find_layout
from diffusion_core.parity.diff.recording import Operation
from diffusion_core.parity.diff.walk import Exit, Walk, reached

__all__ = ["Parting", "counterpart", "explain"]

# What a change that does not fit the shapes at hand raises: it is not the cause, and the next one is tried.
_DOES_NOT_FIT = (ValueError, IndexError, TypeError, KeyError, ZeroDivisionError, OverflowError, rules.Unsupported)
_LIKELY = 0.1
_PRODUCTS = ("conv", "conv_transpose", "matmul", "einsum", "max_pool", "avg_pool", "resize")
# Operations behind the parting in which a cause is sought: where the sides meet again much later, it is not there.
_NEAR = 48
# Numbers to compute for one finding at most, some ten seconds; what the other side has and cheap changes come first.
_MOST_WORK = 1e9
# Frameworks keep some constants in float32, also in float64 (TensorFlow's GELU): what is left then is below one unit of
# float32, and far below the difference.
_CONSTANT, _FAR_BELOW = 2.0**-24, 1e-3


@dataclass(frozen=True)
class Parting:
    """A place where the sides part.

    Attributes:
        walk: B on A's values.
        start: the operation of B; None if B returns an input or a parameter as it is.
        exits: where the sides meet again.
        region, other_region: operations of B and of A between what is found and the exits.
    """

    walk: Walk
    start: int | None
    exits: tuple[Exit, ...]
    region: tuple[int, ...]
    other_region: tuple[int, ...]


@dataclass(frozen=True)
class _Attempt:
    """A change that was tried, and how far the sides are apart with it."""

    change: Change
    of_b: bool
    left: float
    verified: bool


def explain(
    parting: Parting,
    mode: str,
    weight_b: Callable[[int], NDArray | None],
    weight_a: Callable[[int], NDArray | None],
    known: Sequence[str] = (),
    rounding: float = 0.0,
) -> Finding:
    """Find the cause of a difference.

    Args:
        parting: where.
        mode: "forward" or "training".
        weight_b: for a parameter of B, A's parameter in B's layout, if they differ; `weight_a` the same for A.
        known: causes that were verified elsewhere in this comparison, which are tried first.
        rounding: how far apart weights that were rounded to float32 may put the exits, relative.
    """
    walk = parting.walk
    error = max((_error(exit_, walk.values.get(exit_.b), walk) for exit_ in parting.exits), default=float("inf"))
    sides = (
        (True, _suspect_b(parting, weight_b)),
        (False, _suspect_a(parting, weight_a)),
    )
    best: _Attempt | None = None
    work = 0.0
    for kinds in ([kind for kind in known if kind in CAUSES], [kind for kind in CAUSES if kind not in known]):
        for changes, of_b in _candidates(sides, kinds):
            work += sum(_work(parting, change, of_b) for change in changes)
            if work > _MOST_WORK and changes[0].cost > 0:
                break
            attempt = _try(parting, changes, of_b, error, max(_CONSTANT, rounding))
            if attempt is None:
                continue
            if best is None or (attempt.verified, -attempt.left) > (best.verified, -best.left):
                best = attempt
            if attempt.verified:
                break
        if best is not None and best.verified:
            break
    if best is None or not (best.verified or best.left <= _LIKELY * error):
        return _unknown(parting, mode, error)
    return _finding(parting, mode, error, best)


def _candidates(
    sides: Sequence[tuple[bool, Suspect]], kinds: Sequence[str]
) -> Iterable[tuple[tuple[Change, ...], bool]]:
    """Return what is tried, the cheapest first, and of which side it is.

    Each change is tried by itself; then changes that say the same of several operations are tried together, since one
    mistake is often made in several places between which the sides do not meet.
    """
    proposed = [(change, of_b) for of_b, suspect in sides for change in _proposed(suspect, kinds)]
    proposed.sort(key=lambda item: (item[0].cost, not item[1]))
    groups: dict[tuple, dict[int, Change]] = {}
    for change, of_b in proposed:
        groups.setdefault((of_b, change.kind, change.here, change.there), {}).setdefault(change.operation, change)
    several = [(tuple(group.values()), key[0]) for key, group in groups.items() if len(group) > 1]
    single = [((change,), of_b) for change, of_b in proposed]
    yield from (item for item in single if item[0][0].cost < 2)
    yield from (item for item in several if item[0][0].cost < 2)
    yield from (item for item in single if item[0][0].cost >= 2)


def _proposed(suspect: Suspect, kinds: Sequence[str]) -> Iterable[Change]:
    """Return the changes that some causes of the catalogue propose."""
    for kind in kinds:
        yield from CAUSES[kind][2](suspect)


def _work(parting: Parting, change: Change, of_b: bool) -> float:
    """Estimate the work of trying a change: numbers that are made, and more for sums of products."""
    graph = parting.walk.b if of_b else parting.walk.a
    region = set(parting.region if of_b else parting.other_region)
    indices = (reached(graph, graph.operations[change.operation].outputs) & region) | {change.operation}
    return sum(
        (50.0 if graph.operations[i].kind in _PRODUCTS else 1.0) * np.size(graph.values[number])
        for i in indices
        for number in graph.operations[i].outputs
    )


def _suspect_b(parting: Parting, weight: Callable[[int], NDArray | None]) -> Suspect:
    walk = parting.walk

    def match(number: int) -> tuple[int, Callable[[NDArray], NDArray]] | None:
        meeting = walk.meetings.get(number)
        return None if meeting is None else (meeting.a, meeting.layout.to_b)

    return Suspect(
        walk.b,
        parting.region[:_NEAR],
        walk.a,
        parting.other_region[:_NEAR],
        walk.values.__getitem__,
        walk.a.values.__getitem__,
        match,
        weight,
    )


def _suspect_a(parting: Parting, weight: Callable[[int], NDArray | None]) -> Suspect:
    walk = parting.walk
    back = {meeting.a: (number, meeting.layout.to_a) for number, meeting in reversed(walk.meetings.items())}
    return Suspect(
        walk.a,
        parting.other_region[:_NEAR],
        walk.b,
        parting.region[:_NEAR],
        walk.a.values.__getitem__,
        lambda number: walk.values.get(number, walk.b.values[number]),
        back.get,
        weight,
    )


def _try(parting: Parting, changes: Sequence[Change], of_b: bool, error: float, rounding: float) -> _Attempt | None:
    """Run changes up to the exits; None if they do not fit or do not reach one."""
    walk = parting.walk
    graph = walk.b if of_b else walk.a
    read = walk.values.__getitem__ if of_b else walk.a.values.__getitem__
    region = set(parting.region if of_b else parting.other_region)
    first = {change.operation for change in changes}
    following = reached(graph, [n for i in first for n in graph.operations[i].outputs]) & region
    compute = {change.operation: change.compute for change in changes}
    try:
        with np.errstate(all="ignore"):
            made = graph.run(sorted(following | first), read, compute)
    except _DOES_NOT_FIT:
        return None
    errors, agree = [], True
    for exit_ in parting.exits:
        mine = made.get(exit_.b if of_b else exit_.a)
        if mine is None:
            continue
        if not of_b and exit_.b not in walk.values:
            return None
        theirs = walk.a.values[exit_.a] if of_b else walk.values[exit_.b]
        tolerance = walk.tolerance(exit_.b) if exit_.b in walk.values else 1e-9
        agree &= find_layout(theirs, mine, tolerance) is not None
        try:
            errors.append(relative(mine, exit_.to_b(theirs)) if of_b else relative(theirs, exit_.to_b(mine)))
        except ValueError:  # another shape
            errors.append(float("inf"))
    if not errors:
        return None
    left = max(errors)
    return _Attempt(
        min(changes, key=lambda change: change.operation),
        of_b,
        left,
        agree or (left <= rounding and left <= _FAR_BELOW * error),
    )


def _error(exit_: Exit, mine: NDArray | None, walk: Walk) -> float:
    return float("inf") if mine is None else relative(mine, exit_.to_b(walk.a.values[exit_.a]))


def _finding(parting: Parting, mode: str, error: float, attempt: _Attempt) -> Finding:
    """Return the finding that a change explains."""
    walk, change = parting.walk, attempt.change
    title, advice, _ = CAUSES[change.kind]
    own = (walk.b if attempt.of_b else walk.a).place(change.operation)
    other = counterpart(parting, change.operation, attempt.of_b)
    places = (other, own) if attempt.of_b else (own, other)
    does = (change.there, change.here) if attempt.of_b else (change.here, change.there)
    status = "verified" if attempt.verified else "likely"
    return Finding(mode, change.kind, status, title, *places, *does, error, attempt.left, advice)


def _unknown(parting: Parting, mode: str, error: float) -> Finding:
    """Return a finding without a cause: the operations where the sides part."""
    walk = parting.walk
    there = counterpart(parting, parting.start, True)
    here = None if parting.start is None else walk.b.place(parting.start)
    return Finding(mode, "", "unknown", "", there, here, "", "", error, error)


def counterpart(parting: Parting, index: int | None, of_b: bool) -> Place | None:
    """Return the place on the other side that does what an operation does.

    It is the operation of the other region with the same part in the same fused operation, else of the same kind, else
    the first one that computes; if the region is empty, the operation that shows the exit.
    """
    walk = parting.walk
    own, other = (walk.b, walk.a) if of_b else (walk.a, walk.b)
    region = parting.other_region if of_b else parting.region
    operation = Operation("", (), ()) if index is None else own.operations[index]
    same: Sequence[Callable[[int], bool]] = (
        lambda i: operation.role != "" and other.operations[i].role == operation.role,
        lambda i: other.operations[i].kind == operation.kind,
        lambda i: other.operations[i].inputs != () and other.operations[i].kind not in ("reshape", "transpose", "cast"),
        lambda i: True,
    )
    for fits in same:
        chosen = [i for i in region if fits(i)]
        if chosen:
            return other.place(chosen[0])
    for exit_ in parting.exits:
        if exit_.at is not None:
            return other.place(exit_.at[0 if of_b else 1])
        number = exit_.a if of_b else exit_.b
        if number in other.producer:
            return other.place(other.producer[number])
    return None
