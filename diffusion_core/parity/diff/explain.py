"""Why two sides part at one place: the catalogue's changes, tried one after the other.

A change of B is run from its operation to the exits, on A's values; it is *verified* if what arrives there is what A
has, to rounding, and *likely* if the difference becomes at most a tenth. A change of A is run on A's own values and
compared with what B makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff import operations as rules
from diffusion_core.parity.diff.causes.change import CAUSES, Change, Suspect
from diffusion_core.parity.diff.findings import Finding, Place
from diffusion_core.parity.diff.graph import Compute, Graph, relative
from diffusion_core.parity.diff.layouts import Lookup, find_layout
from diffusion_core.parity.diff.recording import Operation
from diffusion_core.parity.diff.vocabulary import LAYOUT_KINDS
from diffusion_core.parity.diff.walk import Exit, Walk, needed_by, reached

__all__ = ["Explained", "Parting", "counterpart", "explain"]

# What a change that does not fit the shapes at hand raises: it is not the cause, and the next one is tried.
_DOES_NOT_FIT = (ValueError, IndexError, TypeError, KeyError, ZeroDivisionError, OverflowError, rules.Unsupported)
_LIKELY = 0.1
_COSTS = {"matmul": 10.0, "einsum": 10.0} | dict.fromkeys(
    ("conv", "conv_transpose", "max_pool", "avg_pool", "resize"), 50.0
)
# Operations behind the parting in which a cause is sought: where the sides meet again much later, it is not there.
_NEAR = 48
_BEFORE = 3
# Numbers to compute for one finding at most, some ten seconds; what the other side has and cheap changes come first.
# With a cause that is verified for some exits, a better one is sought for a shorter time.
_MOST_WORK, _MORE_WORK = 1e9, 2e8
# What running an operation costs besides its numbers.
_RUN = 2000.0
# A value right behind a change that is found on the other side: among so many, with so many numbers, so close.
_NEXT, _ENOUGH, _SAME = 4, 8, 1e-11
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
class Explained:
    """A finding, and how to go on from it.

    Attributes:
        finding: the finding.
        exits: those that it accounts for; behind others there are more differences.
        changes: with a verified cause, the operations to compute in another way.
        of_b: of which side.
    """

    finding: Finding
    exits: tuple[Exit, ...]
    changes: Mapping[int, Compute] = field(default_factory=dict)
    of_b: bool = True


@dataclass(frozen=True)
class _Attempt:
    """Changes that were tried.

    Attributes:
        changes, of_b: what was changed, and on which side.
        exits: those that it reaches, not by way of others.
        agreed: those of them where the sides agree with it, to rounding.
        error, left: how far the sides are apart at these exits without and with the changes.
        at_once: whether the sides agree right behind the change, although not at an exit.
    """

    changes: tuple[Change, ...]
    of_b: bool
    exits: tuple[Exit, ...]
    agreed: tuple[Exit, ...]
    error: float
    left: float
    at_once: bool = False

    @property
    def verified(self) -> bool:
        """Whether it is the cause: the sides agree at the first exit, or right behind it. More may be wrong later."""
        return self.at_once or self.exits[0] in self.agreed

    @property
    def rank(self) -> tuple[bool, bool, int, float]:
        """What makes one attempt better than another; one that accounts for more exits is nearer to the cause."""
        return (self.verified, not self.at_once, len(self.agreed), -self.left)


def explain(
    parting: Parting,
    mode: str,
    weight_b: Callable[[int], NDArray | None],
    weight_a: Callable[[int], NDArray | None],
    known: Sequence[str] = (),
    rounding: float = 0.0,
) -> Explained:
    """Find the cause of a difference.

    Args:
        parting: where.
        mode: "forward" or "training".
        weight_b: for a parameter of B, A's parameter in B's layout, if they differ; `weight_a` the same for A.
        known: causes that were verified elsewhere in this comparison, which are tried first.
        rounding: how far apart weights that were rounded to float32 may put the exits, relative.

    Returns:
        the finding, and the exits that it accounts for; with a verified cause these may be some of them only.
    """
    walk = parting.walk
    error = max((_error(exit_, walk.values.get(exit_.b), walk) for exit_ in parting.exits), default=float("inf"))
    sides = (
        (True, _suspect_b(parting, weight_b)),
        (False, _suspect_a(parting, weight_a)),
    )
    there = {of_b: _open_values(parting, of_b) for of_b in (True, False)}
    best: _Attempt | None = None
    work = 0.0
    for kinds in ([kind for kind in known if kind in CAUSES], list(CAUSES)):
        for changes, of_b in _candidates(sides, kinds):
            work += sum(_work(parting, change, of_b) for change in changes)
            some = best is not None and best.verified and not best.at_once
            if changes[0].cost > 0 and work > (_MORE_WORK if some else _MOST_WORK):
                break
            if changes[0].cost >= 2 and some:
                break
            attempt = _try(parting, changes, of_b, there[of_b], max(_CONSTANT, rounding))
            if attempt is None:
                continue
            if best is None or attempt.rank > best.rank:
                best = attempt
            if best.verified and len(best.agreed) == len(parting.exits):
                break
        if best is not None and best.verified:
            break
    if best is None or not (best.verified or best.left <= _LIKELY * best.error):
        return Explained(_unknown(parting, mode, error), parting.exits)
    found = _finding(parting, mode, best)
    if not best.verified:
        return Explained(found, parting.exits)
    return Explained(found, best.agreed, {change.operation: change.compute for change in best.changes}, best.of_b)


def _candidates(
    sides: Sequence[tuple[bool, Suspect]], kinds: Sequence[str]
) -> Iterable[tuple[tuple[Change, ...], bool]]:
    """Return what is tried, the cheapest first, and of which side it is.

    Each change is tried by itself; then changes that say the same of several operations are tried together, since one
    mistake is often made in several places between which the sides do not meet: blocks, or steps of a recurrence. Of
    what is sought, only changes at one line of the code are tried together.
    """
    proposed = [(change, of_b) for of_b, suspect in sides for change in _proposed(suspect, kinds)]
    proposed.sort(key=lambda item: (item[0].cost, not item[1]))
    groups: dict[tuple, dict[int, Change]] = {}
    for change, of_b in proposed:
        groups.setdefault((of_b, change.kind, change.here, change.there), {}).setdefault(change.operation, change)
    several = [(tuple(group.values()), key[0]) for key, group in groups.items() if len(group) > 1]
    lines: dict[tuple, dict[int, Change]] = {}
    graphs = {of_b: suspect.graph for of_b, suspect in sides}
    for change, of_b in proposed:
        operation = graphs[of_b].operations[change.operation]
        if change.cost >= 2 and operation.source:
            key = (of_b, change.kind, change.here, change.there, line(operation))
            lines.setdefault(key, {}).setdefault(change.operation, change)
    repeated = [(tuple(group.values()), key[0]) for key, group in lines.items() if len(group) > 1]
    single = [((change,), of_b) for change, of_b in proposed]
    yield from (item for item in single if item[0][0].cost < 2)
    yield from (item for item in several if item[0][0].cost < 2)
    yield from (item for item in single if item[0][0].cost == 2)
    yield from (item for item in repeated if item[0][0].cost == 2)
    yield from (item for item in (*single, *repeated) if item[0][0].cost > 2)


def line(operation: Operation) -> tuple[str, str, str]:
    """Return the line of the code, and what it does there: blocks and steps of a recurrence have the same."""
    return operation.source, operation.kind, operation.role


def _proposed(suspect: Suspect, kinds: Sequence[str]) -> Iterable[Change]:
    """Return the changes that some causes of the catalogue propose."""
    wanted = set(kinds)
    for propose in dict.fromkeys(CAUSES[kind][2] for kind in kinds):
        yield from (change for change in propose(suspect) if change.kind in wanted)


def _work(parting: Parting, change: Change, of_b: bool) -> float:
    """Estimate the work of trying a change: numbers that are made, and more for sums of products."""
    graph = parting.walk.b if of_b else parting.walk.a
    region = set(parting.region if of_b else parting.other_region)
    indices = (reached(graph, graph.operations[change.operation].outputs) & region) | {change.operation}
    return sum(
        _RUN + _COSTS.get(graph.operations[i].kind, 1.0) * np.size(graph.values[number])
        for i in indices
        for number in graph.operations[i].outputs
    )


def _near(parting: Parting, of_b: bool) -> tuple[int, ...]:
    """Return the operations of a side's region in which a cause is sought: those that the first exits need.

    One side may compute in another order, so what comes first there may belong to another branch.
    """
    graph = parting.walk.b if of_b else parting.walk.a
    region = set(parting.region if of_b else parting.other_region)
    found: dict[int, None] = {}
    for exit_ in parting.exits:
        number = exit_.b if of_b else exit_.a
        needed = needed_by(graph, [number], lambda n: graph.producer.get(n) in region)
        found.update(dict.fromkeys(sorted(needed & region)))
        if len(found) >= _NEAR:
            break
    return tuple(sorted(list(found or dict.fromkeys(sorted(region)))[:_NEAR]))


def _parts_before(graph: Graph, indices: Sequence[int]) -> tuple[int, ...]:
    """Return the operations between some and the split of an array that they read; each part of it is on both sides."""
    kept: set[int] = set()
    for index in indices:
        for number in graph.operations[index].inputs:
            chain: list[int] = []
            while number in graph.producer and len(chain) < _BEFORE:
                chain.append(graph.producer[number])
                operation = graph.operations[chain[-1]]
                if operation.kind in ("split", "slice", "unstack"):
                    kept.update(chain)
                    break
                if len(operation.inputs) != 1:
                    break
                number = operation.inputs[0]
    return tuple(sorted(kept.difference(indices)))


def _suspect_b(parting: Parting, weight: Callable[[int], NDArray | None]) -> Suspect:
    walk = parting.walk

    def match(number: int) -> tuple[int, Callable[[NDArray], NDArray]] | None:
        meeting = walk.meetings.get(number)
        return None if meeting is None else (meeting.a, meeting.layout.to_b)

    return Suspect(
        walk.b,
        _near(parting, True),
        walk.a,
        _near(parting, False),
        walk.values.__getitem__,
        walk.a.values.__getitem__,
        match,
        weight,
        _parts_before(walk.b, _near(parting, True)),
    )


def _suspect_a(parting: Parting, weight: Callable[[int], NDArray | None]) -> Suspect:
    walk = parting.walk
    back = {meeting.a: (number, meeting.layout.to_a) for number, meeting in reversed(walk.meetings.items())}
    return Suspect(
        walk.a,
        _near(parting, False),
        walk.b,
        _near(parting, True),
        walk.a.values.__getitem__,
        lambda number: walk.values.get(number, walk.b.values[number]),
        back.get,
        weight,
        _parts_before(walk.a, _near(parting, False)),
    )


def _try(parting: Parting, changes: Sequence[Change], of_b: bool, there: Lookup, rounding: float) -> _Attempt | None:
    """Run changes up to the exits; None if they do not fit or do not reach one.

    Exits behind others count only if there is another way to them.
    """
    walk = parting.walk
    graph = walk.b if of_b else walk.a
    read = walk.values.__getitem__ if of_b else walk.a.values.__getitem__
    region = set(parting.region if of_b else parting.other_region)
    first = {change.operation for change in changes}
    outputs = [n for i in first for n in graph.operations[i].outputs]
    following = reached(graph, outputs) & region
    ends = {exit_.b if of_b else exit_.a for exit_ in parting.exits}
    direct = reached(graph, [n for n in outputs if n not in ends], until=ends.__contains__) | first
    judged = {n for i in direct for n in graph.operations[i].outputs} & ends
    if not first <= region:  # what lies between a change before the region and the region is run again, too
        following |= reached(graph, outputs) & needed_by(graph, ends, lambda number: True)
    compute = {change.operation: change.compute for change in changes}
    try:
        with np.errstate(all="ignore"):
            made = graph.run(sorted(following | first), read, compute)
    except _DOES_NOT_FIT:
        return None
    exits, agreed, before, after = [], [], [], []
    for exit_ in parting.exits:
        number = exit_.b if of_b else exit_.a
        mine = made.get(number)
        if mine is None or number not in judged:
            continue
        if not of_b and exit_.b not in walk.values:
            return None
        theirs = walk.a.values[exit_.a] if of_b else walk.values[exit_.b]
        tolerance = walk.tolerance(exit_.b) if exit_.b in walk.values else 1e-9
        exits.append(exit_)
        before.append(_error(exit_, walk.values.get(exit_.b), walk))
        try:
            after.append(relative(mine, exit_.to_b(theirs)) if of_b else relative(theirs, exit_.to_b(mine)))
        except ValueError:  # another shape
            after.append(float("inf"))
        constant = after[-1] <= rounding and after[-1] <= _FAR_BELOW * before[-1]
        if constant or find_layout(theirs, mine, tolerance) is not None:
            agreed.append(exit_)
    if not exits:
        return None
    kept = [i for i, exit_ in enumerate(exits) if exit_ in agreed] if exits[0] in agreed else range(len(exits))
    left, error = max(after[i] for i in kept), max(before[i] for i in kept)
    attempt = _Attempt(tuple(changes), of_b, tuple(exits), tuple(agreed), error, left)
    if not attempt.verified and (near := _near_by(parting, min(first), made, of_b, there)):
        return replace(attempt, agreed=(), error=near[0], left=near[1], at_once=True)
    return attempt


def _near_by(
    parting: Parting, index: int, made: Mapping[int, NDArray], of_b: bool, there: Lookup
) -> tuple[float, float] | None:
    """Return how far a value right behind a change was from the other side's, and is; None if it is not found there."""
    walk = parting.walk
    graph, other = (walk.b, walk.a.values) if of_b else (walk.a, walk.values)
    seen = 0
    for i in range(index, len(graph.operations)):
        operation = graph.operations[i]
        for number in operation.outputs if operation.kind not in LAYOUT_KINDS else ():
            if number not in made:
                continue
            seen += 1
            value = np.asarray(made[number])
            if seen > _NEXT or value.size < _ENOUGH or value.dtype.kind != "f" or np.ptp(value) == 0:
                continue
            for candidate in there.find(value, _SAME):
                layout = find_layout(other[candidate], value, _SAME)
                if layout is None:
                    continue
                theirs = layout.to_b(other[candidate])
                before = (walk.values if of_b else walk.a.values).get(number)
                apart = float("inf") if before is None else relative(before, theirs)
                if apart > _SAME:
                    return apart, relative(value, theirs)
        if seen > _NEXT:
            return None
    return None


def _open_values(parting: Parting, of_b: bool) -> Lookup:
    """Return the values of the other side's region, none of which is found on this side."""
    walk = parting.walk
    other, region = (walk.a, _near(parting, False)) if of_b else (walk.b, _near(parting, True))
    values = walk.a.values if of_b else walk.values
    lookup = Lookup()
    for i in region:
        for number in other.operations[i].outputs:
            array = values.get(number)
            if array is not None and array.size >= _ENOUGH and array.dtype.kind == "f":
                lookup.add(number, array)
    return lookup


def _error(exit_: Exit, mine: NDArray | None, walk: Walk) -> float:
    return float("inf") if mine is None else relative(mine, exit_.to_b(walk.a.values[exit_.a]))


def _finding(parting: Parting, mode: str, attempt: _Attempt) -> Finding:
    """Return the finding that a change explains."""
    walk, change = parting.walk, min(attempt.changes, key=lambda change: change.operation)
    title, advice, _ = CAUSES[change.kind]
    own = replace((walk.b if attempt.of_b else walk.a).place(change.operation), parameter=change.parameter)
    other = counterpart(parting, change.operation, attempt.of_b)
    places = (other, own) if attempt.of_b else (own, other)
    does = (change.there, change.here) if attempt.of_b else (change.here, change.there)
    status = "verified" if attempt.verified else "likely"
    return Finding(mode, change.kind, status, title, *places, *does, attempt.error, attempt.left, advice)


def _unknown(parting: Parting, mode: str, error: float) -> Finding:
    """Return a finding without a cause: the operations where the sides part."""
    walk = parting.walk
    there = counterpart(parting, parting.start, True)
    here = None if parting.start is None else walk.b.place(parting.start)
    return Finding(mode, "", "unknown", "", there, here, "", "", error, error)


def counterpart(parting: Parting, index: int | None, of_b: bool) -> Place | None:
    """Return the place on the other side that does what an operation does.

    It is the operation of the other region with the same part in the same fused operation, else one that reads the same
    value, else one of the same kind, else the first one that computes; if the region is empty, the operation that shows
    the exit.
    """
    walk = parting.walk
    own, other = (walk.b, walk.a) if of_b else (walk.a, walk.b)
    region = parting.other_region if of_b else parting.region
    operation = Operation("", (), ()) if index is None else own.operations[index]
    readers = set() if index is None else _readers_there(parting, index, of_b)
    same: Sequence[Callable[[int], bool]] = (
        lambda i: operation.role != "" and other.operations[i].role == operation.role,
        lambda i: i in readers and other.operations[i].kind == operation.kind,
        lambda i: operation.kind in LAYOUT_KINDS and other.operations[i].kind == operation.kind,
        lambda i: i in readers,
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


def _readers_there(parting: Parting, index: int, of_b: bool) -> set[int]:
    """Return the operations on the other side that compute with the values that an operation reads."""
    walk = parting.walk
    own, other = (walk.b, walk.a) if of_b else (walk.a, walk.b)
    back = {there: here for here, there in walk.shared.items()}
    back |= {meeting.a: number for number, meeting in walk.meetings.items()}
    todo, found = [], set()
    for number in own.operations[index].inputs:
        if of_b and number in walk.shared:
            todo.append(walk.shared[number])
        elif of_b and number in walk.meetings:
            todo += [n for n, _ in walk.same_there(number)]
        elif not of_b and number in back:
            todo.append(back[number])
    while todo:
        for i in other.consumers.get(todo.pop(), ()):
            if other.operations[i].kind in (*LAYOUT_KINDS, "cast", "identity"):
                todo.extend(other.operations[i].outputs)
            else:
                found.add(i)
    return found
