"""The whole comparison of two recordings, and its findings.

forward     evaluate B on A's values (`walk`); where the sides differ, search the catalogue for the cause (`explain`)
gradient    if the forward passes agree: gradients of the parameters, then of the values on both sides
training    the same for a pass in training mode, and for the buffers that it updates
steps       what optimisers read and wrote
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff import weights
from diffusion_core.parity.diff.causes import gradients, optimiser, training
from diffusion_core.parity.diff.causes.dropouts import Dropout
from diffusion_core.parity.diff.dropped import Dropped
from diffusion_core.parity.diff.ends import Ends, early_ends, find_ends, name_rest
from diffusion_core.parity.diff.exits import Exit, exits_of, likely_layout, match_by_use
from diffusion_core.parity.diff.explain import Explained, explain
from diffusion_core.parity.diff.findings import Comparison, Finding, Row
from diffusion_core.parity.diff.graph import Graph, relative, to_graph
from diffusion_core.parity.diff.layouts import find_layout
from diffusion_core.parity.diff.output_order import order_findings
from diffusion_core.parity.diff.outputs import notes_of, recorded_outputs, shared_weights
from diffusion_core.parity.diff.partings import Parting
from diffusion_core.parity.diff.reach import needed_by, of_parameters, reached
from diffusion_core.parity.diff.recording import Pass, Recording
from diffusion_core.parity.diff.rounded import KIND as ROUNDED
from diffusion_core.parity.diff.rounded import as_a_whole, nearly_agree, rounded_weights, rounding_of_weights
from diffusion_core.parity.diff.vocabulary import LAYOUT_KINDS
from diffusion_core.parity.diff.walk import Walk

__all__ = ["compare"]

# The largest number of findings per comparison, and of places per finding; a recurrent layer has one per step.
_MOST, _MOST_PLACES = 12, 100
# The largest number of operations before a region that only move numbers and are searched with it.
_MOVES = 16
# Recorded outputs that agree to this are equal, even where the walk does not recognise the form of the other side.
_AGREE = {"float64": 1e-11, "float32": 1e-6}

MODES = ("forward", "gradient", "training", "steps")


def compare(
    a: Recording, b: Recording, user_map: Mapping[str, str] | None = None, modes: Sequence[str] = MODES
) -> Comparison:
    """Compare two recordings.

    Args:
        a, b: the recordings.
        user_map: names of parameters in A, and their names in B as the user gives them.
        modes: which of the recorded parts to compare.

    Returns:
        the findings, in the order in which to fix them, and what else a report shows.
    """
    findings: list[Finding] = []
    compared: dict[str, str] = {}
    evaluation = _common(a, b, ("float64", "float32"))
    forward = compare_pass(a.passes[evaluation], b.passes[evaluation], user_map, "forward") if evaluation else None
    if forward is not None and "forward" in modes:
        findings += forward.findings
        compared["forward"] = said(forward.findings)
    has_gradients = evaluation is not None and any(side.passes[evaluation].gradients for side in (a, b))
    if forward is not None and has_gradients and "gradient" in modes:
        if real(forward.findings):
            compared["gradient"] = "not compared, since the forward passes differ"
        elif none := [label for label, side in (("A", a), ("B", b)) if not side.passes[evaluation].gradients]:
            compared["gradient"] = f"not compared, since {none[0]} has none"
        elif drawn_apart(forward.walk):
            compared["gradient"] = "not compared, since the models draw random numbers"
        elif not forward.ends.complete:  # the loss is one of all outputs
            compared["gradient"] = "not compared, since the models return different outputs"
        else:
            rounded = max((finding.error for finding in forward.findings if finding.kind == ROUNDED), default=0.0)
            found = together(gradients.gradient_findings(forward.walk, forward.alignment, rounded))
            findings += found
            compared["gradient"] = said(found)
    trained = _common(a, b, ("train64", "train32"))
    if trained and "training" in modes:
        first, second = (_with_gradients(side.passes[trained], side.passes.get(evaluation or "")) for side in (a, b))
        found = training_part(a, b, first, second, user_map, forward)
        differs = forward is not None and real(forward.findings)
        findings += found
        compared["training"] = "no further difference" if differs and not real(found) else said(found)
    if a.steps and b.steps and "steps" in modes and forward is not None:
        found = optimiser.step_findings(a, b, forward.alignment)
        findings += found
        compared["steps"] = said(found)
    return _comparison(a, b, forward, findings, compared)


def _with_gradients(record: Pass, evaluation: Pass | None) -> Pass:
    """Return a training pass with the gradients of evaluation, which help to pair weights that differ."""
    if record.gradients or evaluation is None:
        return record
    shared = [
        (n, evaluation.parameters[name]) for name, n in record.parameters.items() if name in evaluation.parameters
    ]
    known = {number: evaluation.gradients[n] for number, n in shared if n in evaluation.gradients}
    return replace(record, gradients=known)


@dataclass(frozen=True)
class PassComparison:
    """Two passes compared: their graphs, the walk, what belongs together, and the findings."""

    a: Graph
    b: Graph
    walk: Walk
    alignment: weights.Alignment
    ends: Ends
    dropouts: tuple[tuple[Dropout | None, Dropout | None], ...]
    findings: tuple[Finding, ...]
    rows: tuple[Row, ...]


def _common(a: Recording, b: Recording, names: Sequence[str]) -> str | None:
    return next((name for name in names if name in a.passes and name in b.passes), None)


def said(findings: Sequence[Finding]) -> str:
    """Return the result of a part of the comparison in words."""
    count = len(real(findings))
    return f"{count} difference{'s' if count > 1 else ''}" if count else "equal to rounding"


def real(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings that make the models unequal."""
    return [finding for finding in findings if not finding.benign]


def compare_pass(
    a: Pass, b: Pass, user_map: Mapping[str, str] | None, mode: str, causes: Sequence[str] = ()
) -> PassComparison:
    """Compare two passes, operation by operation; the causes in `causes` are tried first."""
    graph_a, graph_b = to_graph(a), to_graph(b)
    alignment = weights.align(a, b, user_map)
    names_a, names_b = ({**p.parameters, **p.buffers} for p in (a, b))
    pairs = [
        (names_a[pair.a_name], names_b[pair.b_name], pair)
        for pair in alignment.pairs
        if pair.a_name in names_a and pair.b_name in names_b
    ]
    equal = same_weights(alignment, graph_a, names_a, names_b)
    walk = Walk(graph_a, graph_b, equal)
    walk.shared = {here: there for there, here, _ in pairs if here in equal}
    dropped = Dropped(walk, mode == "training")
    dropped.give()
    ends = find_ends(walk)
    outputs = ends.values(a, b)
    walk.early, walk.returned = dict(ends.early), ({there for there, _ in outputs}, {here for _, here in outputs})
    permuted = {
        here: [np.shape(graph_b.values[here])[axis] for axis, _ in pair.way.orders] or np.shape(graph_b.values[here])
        for _, here, pair in pairs
        if pair.way.permuted
    }
    partner = match_by_use(graph_a, graph_b, [(there, here) for there, here, _ in pairs], outputs, permuted)
    other = {here: pair.plain_to_b(graph_a.values[there]) for there, here, pair in pairs if here not in equal}
    other_a = {there: pair.plain_to_a(graph_b.values[here]) for there, here, pair in pairs if here not in equal}
    known_weights = {there for there, here, _ in pairs if here in equal}, set(equal)
    findings: list[Finding] = []
    exits: dict[int, Finding] = {}
    limit = _AGREE["float64" if a.precision is np.float64 else "float32"]
    both = ((a.values, b.values), (graph_a.values, graph_b.values))  # as recorded, and as defined
    if not any(outputs_agree(*values, outputs, limit) for values in both):
        while len(together(findings)) < _MOST and len(findings) < _MOST_PLACES:
            parting = first_parting(walk, partner)
            if parting is None:
                break
            verified = [finding.kind for finding in findings if finding.status == "verified"]
            known = dict.fromkeys([*verified, *causes])
            rounding = rounding_of_weights(parting, *known_weights)
            finding = rounded_weights(parting, mode, rounding)
            if finding is None:
                found = explain(parting, mode, other.get, other_a.get, tuple(known), rounding)
                found = replace(found, finding=name_rest(parting, found.finding))
            else:
                found = Explained(finding, parting.exits)
            findings.append(found.finding)
            if not found.exits and not found.changes:
                break
            exits.update({exit_.b: findings[-1] for exit_ in found.exits})
            if set(found.changes) <= set((walk.b if found.of_b else walk.a).changes):
                found = replace(found, exits=parting.exits)  # an earlier change of it did not remove the difference
            else:
                walk.change(found.changes, found.of_b)
            walk.give([exit_ for exit_ in found.exits if not walk.found(exit_.b)])
            dropped.give()
            walk.early |= early_ends(walk, outputs)
    if real(findings) and nearly_agree(walk, outputs):
        whole = as_a_whole(Walk(graph_a, graph_b, equal), outputs)
        finding = rounded_weights(whole, mode, rounding_of_weights(whole, *known_weights))
        findings = findings if finding is None else [finding]
    findings += order_findings(walk, outputs, mode)
    grouped = together(findings)
    rows = rows_of(walk, exits, grouped)
    return PassComparison(graph_a, graph_b, walk, alignment, ends, dropped.pairs, grouped, rows)


def same_weights(
    alignment: weights.Alignment, a: Graph, names_a: Mapping[str, int], names_b: Mapping[str, int]
) -> dict[int, NDArray]:
    """Return the parameters of B that equal A's to rounding, written in terms of A's, by value number."""
    agree = ("equal", "equal up to rounding")
    state = {name: a.values[number] for name, number in names_a.items() if number in a.values}
    computed = {item.name for item in alignment.derived if item.side == "b"}
    found = {}
    for name, number in names_b.items():
        pairs = alignment.of_b(name)
        if name in computed or (pairs and all(pair.status in agree for pair in pairs)):
            value = alignment.to_b(name, state)
            if value is not None:
                found[number] = value
    return found


def outputs_agree(
    values_a: Mapping[int, NDArray], values_b: Mapping[int, NDArray], outputs: Sequence[tuple[int, int]], limit: float
) -> bool:
    """Return whether the outputs of two passes are equal to rounding."""
    return bool(outputs) and all(find_layout(values_a[i], values_b[j], limit) is not None for i, j in outputs)


def first_parting(walk: Walk, partner: Mapping[int, tuple[int, tuple[int, int] | None]]) -> Parting | None:
    """Return the first place where the sides differ, or None."""
    still = walk.open()
    # An operation that only reorders found numbers is no difference, even if the other side never has that order.
    moved: set[int] = set()
    # A lookup by data, as of words, is more than a reordering.
    data = {n for i in reached(walk.b, walk.b.record.inputs) for n in walk.b.operations[i].outputs}
    data.update(walk.b.record.inputs)
    for operation in walk.b.operations:
        if operation.kind in ("gather", "take_along") and set(operation.inputs[1:]) & data:
            continue
        if operation.kind in LAYOUT_KINDS and operation.inputs and not (still - moved) & set(operation.inputs):
            moved.update(operation.outputs)
    starts = [
        i
        for unless in (moved, set())
        for i, operation in enumerate(walk.b.operations)
        if (still - unless) & set(operation.outputs) and not (still - unless) & set(operation.inputs)
    ]
    if not starts:
        return first_end(walk)
    # Prefer an operation that reads values to one that makes a constant.
    reading = [
        i for i in starts if any(n in walk.b.producer or n in walk.b.record.inputs for n in walk.b.operations[i].inputs)
    ]
    start = (reading or starts)[0]
    if set(walk.b.operations[start].outputs) & set(walk.early):
        return first_end(walk)
    exits = exits_of(walk.a, walk.b, walk.values, partner, start, still)
    last = [exit_.b for exit_ in exits] or [n for n in walk.b.record.outputs.values() if n in still]
    region = needed_by(walk.b, last, lambda n: n in still) | {start}
    there = walk.open_there()
    others = [exit_.a for exit_ in exits] or [n for n in walk.a.record.outputs.values() if n in there]
    other_region = needed_by(walk.a, [n for n in others if not walk.found_there(n)], lambda n: n in there)
    regions = (with_moves(graph, part) for graph, part in ((walk.b, region), (walk.a, other_region)))
    return Parting(walk, start, tuple(exits), *regions)


def with_moves(graph: Graph, region: Collection[int]) -> tuple[int, ...]:
    """Return a region with the operations before it that only reorder its inputs; only their use shows the order."""
    result, todo = set(region), list(region)
    while todo and len(result) < len(region) + _MOVES:
        for number in graph.operations[todo.pop()].inputs:
            i = graph.producer.get(number)
            if i is None or i in result or i in graph.opaque or graph.operations[i].kind not in LAYOUT_KINDS:
                continue
            readers = {j for n in graph.operations[i].outputs for j in graph.consumers.get(n, ())}
            inputs = graph.operations[i].inputs
            if inputs and readers <= result and not all(of_parameters(graph, n) for n in inputs):
                result.add(i)
                todo.append(i)
    return tuple(sorted(result))


def first_end(walk: Walk) -> Parting | None:
    """Return the first output of B that A computes before its own output; the difference is what A does after it."""
    for here, there in walk.early.items():
        theirs, mine = walk.a.values[there], walk.values[here]
        exits = (Exit(there, here, likely_layout(theirs, mine)),) if theirs.size == mine.size else ()
        still = walk.open_there()
        region = needed_by(walk.a, [there], lambda n, still=still: n in still)
        return Parting(walk, walk.b.producer.get(here), exits, (), tuple(sorted(region)))
    return None


def together(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Merge findings with the same cause and the same numbers into the first of them."""
    result: list[Finding] = []
    for finding in findings:
        for i, earlier in enumerate(result):
            if finding.kind and said_of(finding) == said_of(earlier):
                result[i] = replace(earlier, also=tuple(dict.fromkeys((*earlier.also, places(finding)))))
                break
        else:
            result.append(finding)
    return tuple(replace(f, also=tuple(place for place in f.also if place != places(f))) for f in result)


def said_of(finding: Finding) -> tuple:
    """Return the content of a finding without its place; with its place if it has no other content."""
    place = () if finding.kind else (finding.a, finding.b)
    return (finding.kind, finding.status, finding.a_does, finding.b_does, finding.mode, *place)


def places(finding: Finding) -> str:
    """Name the places of a finding on both sides."""
    return " and ".join(f"{p.layer or 'the model'} ({p.source})" for p in (finding.a, finding.b) if p is not None)


def rows_of(walk: Walk, exits: Mapping[int, Finding], findings: Sequence[Finding]) -> tuple[Row, ...]:
    """Return one row for each value that both sides have, except for values that only reorder an earlier one.

    Args:
        walk: after the findings.
        exits: for each value of B that was replaced by A's numbers, the finding before it.
        findings: the merged findings.
    """
    position = {said_of(finding): i for i, finding in reversed(list(enumerate(findings)))}
    rows = []
    for i, operation in enumerate(walk.b.operations):
        if operation.kind in LAYOUT_KINDS or operation.kind in ("cast", "identity", "constant"):
            continue
        for number in operation.outputs:
            meeting, given = walk.meetings.get(number), walk.given.get(number)
            there = meeting.a if meeting else given.a if given else None
            if there is None or there not in walk.a.producer:
                continue
            recorded_a, recorded_b = walk.a.record.values.get(there), walk.b.record.values.get(number)
            to_b = meeting.layout.to_b if meeting else given.to_b
            inherited = float("nan")
            recorded = recorded_a is not None and recorded_b is not None
            if recorded and all(
                np.size(x) == np.size(graph.values[n])  # a cause that was applied may have changed the shape
                for x, graph, n in ((recorded_a, walk.a, there), (recorded_b, walk.b, number))
            ):
                inherited = relative(np.asarray(recorded_b), to_b(np.asarray(recorded_a)))
            rows.append(
                Row(
                    walk.a.place(walk.a.producer[there], timed=False),
                    walk.b.place(i, timed=False),
                    tuple(np.shape(walk.a.values[there])),
                    exits[number].error if number in exits else meeting.own if meeting else float("nan"),
                    inherited,
                    None,
                    meeting.layout.describe() if meeting else "",
                    position.get(said_of(exits[number])) if number in exits else None,
                )
            )
    return tuple(rows)


def training_part(
    a: Recording,
    b: Recording,
    pass_a: Pass,
    pass_b: Pass,
    user_map: Mapping[str, str] | None,
    forward: PassComparison | None,
) -> list[Finding]:
    """Compare the training passes and the buffers that they update; leave out what evaluation already showed."""
    before = real(forward.findings) if forward else ()
    causes = tuple(dict.fromkeys(f.kind for f in before if f.status == "verified"))
    compared = compare_pass(pass_a, pass_b, user_map, "training", causes)
    known = {(f.kind, f.a_does, f.b_does) for f in (forward.findings if forward else ())}
    found = [f for f in compared.findings if not f.kind or (f.kind, f.a_does, f.b_does) not in known]
    found = [f for f in found if f.kind or not any(same_place(f, g) for g in before)]
    buffers = training.training_findings(a, b, compared.alignment, compared.dropouts)
    if buffers:
        # A difference in the buffers of a norm says more than one in its output.
        found = [f for f in found if f.kind]
    layers = {f.b.layer for f in found if f.b}
    return [*found, *(f for f in buffers if f.b is None or f.b.layer not in layers)]


def same_place(one: Finding, other: Finding) -> bool:
    """Return whether two findings are at the same place of B."""
    if one.b is None or other.b is None:
        return one.b is other.b and one.a == other.a
    return (one.b.layer, one.b.source) == (other.b.layer, other.b.source)


def words_of(forward: PassComparison) -> list[str]:
    """Return notes on how the outputs of both sides were paired, and on their random numbers."""
    count = len(forward.walk.drawn)
    what = f"{count} times, and B was run with A's numbers" if count > 1 else "and B was run with A's numbers"
    drawn = [f"both sides draw random numbers {what}"] if drawn_apart(forward.walk) else []
    return [*forward.ends.words(), *drawn]


def drawn_apart(walk: Walk) -> bool:
    """Return whether the two sides drew different random numbers, so that B was run with A's."""
    return any(
        not np.array_equal(walk.values[here], walk.b.values[here]) for here in walk.drawn if here in walk.b.values
    )


def _comparison(
    a: Recording,
    b: Recording,
    forward: PassComparison | None,
    findings: Sequence[Finding],
    compared: Mapping[str, str],
) -> Comparison:
    """Collect what a report shows."""
    recorded = recorded_outputs(a.passes, b.passes, forward.ends.pairs if forward else None)
    alignment = forward.alignment if forward else None
    unshared = shared_weights(alignment, bool(real(findings))) if alignment else []
    return Comparison(
        a.reference,
        b.reference,
        (a.framework, b.framework),
        tuple(findings),
        forward.rows if forward else (),
        recorded.errors,
        recorded.histograms,
        tuple((pair.a_name, pair.b_name, pair.relation) for pair in alignment.pairs) if alignment else (),
        (tuple(alignment.unmatched_a), tuple(alignment.unmatched_b)) if alignment else ((), ()),
        compared,
        tuple(dict.fromkeys((*(words_of(forward) if forward else ()), *recorded.notes, *unshared, *notes_of(a, b)))),
    )
