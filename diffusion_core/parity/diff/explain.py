"""Why two sides part at one place: the catalogue's changes, tried one after the other.

A change of B is run from its operation to the exits, on A's values; it is *verified* if what arrives there is what A
has, to rounding, and *likely* if the difference becomes at most a tenth. A change of A is run on A's own values and
compared with what B makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from numpy.typing import NDArray

from diffusion_core.parity.diff.attempts import CONSTANT, Attempt, attempt, error_at, work
from diffusion_core.parity.diff.causes.change import CAUSES, Change, Read, Suspect
from diffusion_core.parity.diff.exits import Exit
from diffusion_core.parity.diff.findings import Finding, Place
from diffusion_core.parity.diff.graph import Compute
from diffusion_core.parity.diff.partings import Parting, Side
from diffusion_core.parity.diff.recording import Operation
from diffusion_core.parity.diff.vocabulary import LAYOUT_KINDS

__all__ = ["Explained", "counterpart", "explain"]

_LIKELY = 0.1
_MOVES = (*LAYOUT_KINDS, "cast", "identity")
# Numbers to compute for one finding at most, some ten seconds; what the other side has and cheap changes come first.
# With a cause that is verified for some exits, a better one is sought for a shorter time.
_MOST_WORK, _MORE_WORK = 1e9, 2e8


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
    error = max((error_at(exit_, parting.walk) for exit_ in parting.exits), default=float("inf"))
    suspects = _suspects(parting, weight_b, weight_a)
    best: Attempt | None = None
    done = 0.0
    for kinds in ([kind for kind in known if kind in CAUSES], list(CAUSES)):
        for changes, side in _candidates(suspects, kinds):
            done += sum(work(side, change) for change in changes)
            some = best is not None and best.verified and not best.at_once
            if changes[0].cost > 0 and done > (_MORE_WORK if some else _MOST_WORK):
                break
            if changes[0].cost >= 2 and some:
                break
            tried = attempt(side, changes, max(CONSTANT, rounding))
            if tried is None:
                continue
            if best is None or tried.rank > best.rank:
                best = tried
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
    suspects: Sequence[tuple[Side, Suspect]], kinds: Sequence[str]
) -> Iterable[tuple[tuple[Change, ...], Side]]:
    """Return what is tried, the cheapest first, and of which side it is.

    Each change is tried by itself; then changes that say the same of several operations are tried together, since one
    mistake is often made in several places between which the sides do not meet: blocks, or steps of a recurrence. Of
    what is sought, only changes at one line of the code are tried together.
    """
    proposed = [(change, side) for side, suspect in suspects for change in _proposed(suspect, kinds)]
    proposed.sort(key=lambda item: (item[0].cost, not item[1].of_b))
    groups: dict[tuple, tuple[Side, dict[int, Change]]] = {}
    for change, side in proposed:
        _, group = groups.setdefault((side.of_b, change.kind, change.here, change.there), (side, {}))
        group.setdefault(change.operation, change)
    several = [(tuple(group.values()), side) for side, group in groups.values() if len(group) > 1]
    lines: dict[tuple, tuple[Side, dict[int, Change]]] = {}
    for change, side in proposed:
        operation = side.graph.operations[change.operation]
        if change.cost >= 2 and operation.source:
            key = (side.of_b, change.kind, change.here, change.there, line(operation))
            lines.setdefault(key, (side, {}))[1].setdefault(change.operation, change)
    repeated = [(tuple(group.values()), side) for side, group in lines.values() if len(group) > 1]
    single = [((change,), side) for change, side in proposed]
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


def _suspects(
    parting: Parting, weight_b: Callable[[int], NDArray | None], weight_a: Callable[[int], NDArray | None]
) -> tuple[tuple[Side, Suspect], tuple[Side, Suspect]]:
    """Return the parting as the catalogue sees it: from B first, then from A."""
    walk = parting.walk
    ours = {number: (meeting.a, meeting.layout.to_b) for number, meeting in walk.meetings.items()}
    theirs = {meeting.a: (number, meeting.layout.to_a) for number, meeting in reversed(walk.meetings.items())}

    def read_b(number: int) -> NDArray:
        return walk.values.get(number, walk.b.values[number])

    def seen_from(side: Side, read_other: Read, match: Mapping, weight: Callable) -> tuple[Side, Suspect]:
        graphs = (side.graph, side.near, side.other.graph, side.other.near)
        return side, Suspect(*graphs, side.values.__getitem__, read_other, match.get, weight, side.parts_before)

    side_a, side_b = parting.sides
    return (
        seen_from(side_b, walk.a.values.__getitem__, ours, weight_b),
        seen_from(side_a, read_b, theirs, weight_a),
    )


def _finding(parting: Parting, mode: str, tried: Attempt) -> Finding:
    """Return the finding that a change explains."""
    walk, change = parting.walk, min(tried.changes, key=lambda change: change.operation)
    title, advice, _ = CAUSES[change.kind]
    own = replace((walk.b if tried.of_b else walk.a).place(change.operation), parameter=change.parameter)
    other = counterpart(parting, change.operation, tried.of_b)
    places = (other, own) if tried.of_b else (own, other)
    does = (change.there, change.here) if tried.of_b else (change.here, change.there)
    status = "verified" if tried.verified else "likely"
    return Finding(mode, change.kind, status, title, *places, *does, tried.error, tried.left, advice)


def _unknown(parting: Parting, mode: str, error: float) -> Finding:
    """Return a finding without a cause: the operations where the sides part."""
    walk = parting.walk
    there = counterpart(parting, parting.start, True)
    here = None if parting.start is None else walk.b.place(parting.start)
    return Finding(mode, "", "unknown", "", there, here, "", "", error, error)


def counterpart(parting: Parting, index: int | None, of_b: bool) -> Place | None:
    """Return the place on the other side that does what an operation does.

    It is the operation of the other region with the same part in the same fused operation, else one that reads the same
    value, else one of the same kind, else one that reads a value from which the operation follows, else the first one
    that computes; if the region is empty, the operation that shows the exit.
    """
    walk = parting.walk
    own, other = (walk.b, walk.a) if of_b else (walk.a, walk.b)
    region = parting.other_region if of_b else parting.region
    operation = Operation("", (), ()) if index is None else own.operations[index]
    readers = set() if index is None else _readers_there(parting, index, of_b)
    further = set() if index is None or readers else _readers_before(parting, index, of_b)
    same: Sequence[Callable[[int], bool]] = (
        lambda i: operation.role != "" and other.operations[i].role == operation.role,
        lambda i: i in readers and other.operations[i].kind == operation.kind,
        lambda i: operation.kind in LAYOUT_KINDS and other.operations[i].kind == operation.kind,
    )
    later: Sequence[Callable[[int], bool]] = (
        lambda i: i in readers,
        lambda i: other.operations[i].kind == operation.kind,
        lambda i: i in further,
        lambda i: other.operations[i].inputs != () and other.operations[i].kind not in _MOVES,
        lambda i: True,
    )
    chosen = next((i for fits in same for i in region if fits(i)), None)
    if chosen is None and index is not None:
        chosen = _maker_there(parting, index, of_b)
    if chosen is None:
        chosen = next((i for fits in later for i in region if fits(i)), None)
    if chosen is not None:
        return other.place(chosen)
    for exit_ in parting.exits:
        if exit_.at is not None:
            return other.place(exit_.at[0 if of_b else 1])
        number = exit_.a if of_b else exit_.b
        if number in other.producer:
            return other.place(other.producer[number])
    return None


def _maker_there(parting: Parting, index: int, of_b: bool) -> int | None:
    """Return the operation on the other side that makes what the last operation of a layer reads.

    If the other side has no such operation, it lacks at the end of that layer, not at the beginning of the next.
    """
    walk = parting.walk
    own, other = (walk.b, walk.a) if of_b else (walk.a, walk.b)
    layer = own.operations[index].layer
    if any(own.operations[i].layer == layer for n in own.operations[index].outputs for i in own.consumers.get(n, ())):
        return None
    back = {meeting.a: number for number, meeting in walk.meetings.items()}
    for number in own.operations[index].inputs:
        there = walk.meetings[number].a if of_b and number in walk.meetings else back.get(number) if not of_b else None
        maker = own.producer.get(number)
        if there not in other.producer or maker is None or own.operations[maker].layer != layer:
            continue
        made = other.operations[other.producer[there]].layer
        if all(other.operations[i].layer != made for i in _readers_there(parting, index, of_b)):
            return other.producer[there]
    return None


def _readers_before(parting: Parting, index: int, of_b: bool) -> set[int]:
    """Return the operations on the other side that compute with the nearest values from which an operation follows."""
    own = parting.walk.b if of_b else parting.walk.a
    level, seen = {index}, {index}
    while level:
        level = {own.producer[n] for i in level for n in own.operations[i].inputs if n in own.producer} - seen
        seen |= level
        found = {reader for i in level for reader in _readers_there(parting, i, of_b)}
        if found:
            return found
    return set()


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
            if other.operations[i].kind in _MOVES:
                todo.extend(other.operations[i].outputs)
            else:
                found.add(i)
    return found
