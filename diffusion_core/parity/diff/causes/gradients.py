"""Causes that show in gradients alone, when the forward passes agree.

Both sides have the gradients of one loss (see `recording`). A parameter that is frozen on one side has none there. Else
the difference begins at a value on both sides whose cotangents differ although those of everything that reads it agree.
The cotangent of a value is the sum of what its readers send back,

    dL/dx = sum over readers r of  J_r^T dL/dy_r

so a gradient that is cut (stop_gradient, detach) on one side is exactly one of these terms, which NumPy computes.

A gradient that is zero in theory, such as that of the bias of an attention's keys, is rounding on both sides: gradients
are compared relative to the largest of the layer or of the whole model.

Frameworks keep some constants of their gradients in float32 also in float64 (the sixth in PyTorch's hard sigmoid), and
what deviates in the forward pass deviates here. Differences of that size are reported as benign. Parameters that have
other numbers on the two sides, such as a scale folded into a matrix, have other gradients, too; they are left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff.alignment import Alignment, Pair
from diffusion_core.parity.diff.cotangents import backward, flowing, is_recorded, recorded_gradient, terms
from diffusion_core.parity.diff.findings import Finding, Place
from diffusion_core.parity.diff.graph import Graph, relative
from diffusion_core.parity.diff.layouts import find_layout
from diffusion_core.parity.diff.reach import reached, uses
from diffusion_core.parity.diff.recording import Pass
from diffusion_core.parity.diff.vocabulary import LAYOUT_KINDS
from diffusion_core.parity.diff.walk import Walk

__all__ = ["gradient_findings"]

# Differences relative to the gradient itself, and to the largest gradient of the model.
_OWN, _LARGEST = {np.float64: 1e-8, np.float32: 1e-3}, {np.float64: 1e-12, np.float32: 1e-6}
# A constant rounded to float32, and how many of them add up.
_CONSTANT, _TIMES = 2.0**-24, 16.0
# A cut explains a difference between such gradients if at most this fraction is left.
_LEFT = 1e-2
# Arrays of more axes are not looked at for symmetries.
_TURNED = 5
# Parameters with other numbers.
_OTHER = ("differs", "by place only")
_CUT = (
    "stop_gradient",
    "a gradient that one side cuts",
    "tf.stop_gradient in TensorFlow, .detach() or torch.no_grad() in torch",
)
_TIED = ("untied_weights", "weights that only one side ties", "hand the variable itself on, not a copy of its numbers")
_TRAINED = "the parameter is trained"
_FROZEN = (
    "frozen_parameter",
    "a parameter that is not trained",
    "nn.Parameter and requires_grad= in torch, trainable= in Keras",
)
_ROUNDED = ("float32_constant", "constants in float32 in the frameworks' gradients", "nothing has to be changed")
_ROWS = (
    "padding_gradient",
    "rows of a parameter that are not trained",
    "padding_idx= of torch's nn.Embedding keeps a row out of the gradient; Keras has no such option",
)
_FREQUENCY = (
    "gradient_scale",
    "gradients of rows that are divided by how often they are read",
    "scale_grad_by_freq= of torch's nn.Embedding; Keras has no such option",
)
_CUSTOM = (
    "custom_gradient",
    "a gradient that is not that of the forward pass",
    "compare torch.autograd.Function.backward and tf.custom_gradient with the derivative of the forward pass",
)
_FACTOR = ("gradient_factor", "a factor of the gradient", "compare hooks, custom gradients and reductions of the loss")


def gradient_findings(walk: Walk, alignment: Alignment, rounded: float = 0.0) -> list[Finding]:
    """Compare the gradients of two passes whose outputs agree.

    Args:
        walk: B on A's values.
        alignment: of the parameters.
        rounded: how far apart the forward passes are because weights were rounded to float32.

    Returns:
        first the parameters that only one side trains, then the places where cotangents begin to differ.
    """
    frozen = [*_frozen(walk, alignment), *_untied(walk, alignment)]
    known = {place.parameter for f in frozen for place in (f.a, f.b) if place}
    known |= {name for f in frozen if f.kind == _TIED[0] for name in _copies(alignment, known)}
    tight = _OWN[walk.b.record.precision]
    for limit in dict.fromkeys((max(tight, _framework_error(walk, rounded)), tight)):
        differing = [name for name in _differing_parameters(walk, alignment, limit) if name not in known]
        if differing:
            found = _partings(walk, alignment, differing, limit)
            return [*frozen, *(found if limit > tight or walk.b.lifted else [_benign(f) for f in found])]
    return frozen


def _framework_error(walk: Walk, rounded: float) -> float:
    """Return how far gradients may be apart because of the frameworks: their constants, and what deviates forward."""
    deviations = [x for graph in (walk.a, walk.b) for x in graph.deviation.values() if np.isfinite(x)]
    return _TIMES * max(_CONSTANT, rounded, *deviations)


def _benign(finding: Finding) -> Finding:
    """Return a difference of the size of constants in float32 as one that does not make the models unequal."""
    kind, title, advice = _ROUNDED
    words = {"kind": kind, "title": title, "advice": advice, "status": "likely", "a_does": "", "b_does": ""}
    return replace(finding, **words, left=finding.error, benign=True)


def _frozen(walk: Walk, alignment: Alignment) -> list[Finding]:
    """Return the parameters that exactly one side trains: the other freezes them, or keeps them as buffers."""
    a, b = walk.a.record, walk.b.record
    findings = []
    for pair in alignment.pairs:
        words = _training_of(a, pair.a_name), _training_of(b, pair.b_name)
        if (words[0] == _TRAINED) != (words[1] == _TRAINED):
            kind, title, advice = _FROZEN
            places = (_parameter_place(walk.a, pair.a_name), _parameter_place(walk.b, pair.b_name))
            findings.append(Finding("gradient", kind, "verified", title, *places, *words, 1.0, 0.0, advice))
    return findings


def _once(parameters: Mapping[str, int]) -> dict[str, int]:
    """Return the first name of each variable."""
    names = {number: name for name, number in reversed(list(parameters.items()))}
    return {name: number for name, number in parameters.items() if names[number] == name}


def _copies(alignment: Alignment, names: Collection[str]) -> set[str]:
    """Return the names of B that belong to some names of A or to partners of some names of B."""
    there = {pair.a_name for pair in alignment.pairs if pair.a_name in names or pair.b_name in names}
    return {pair.b_name for pair in alignment.pairs if pair.a_name in there}


def _untied(walk: Walk, alignment: Alignment) -> list[Finding]:
    """Return the parameters that are one variable on one side, and copies with gradients of their own on the other."""
    a, b = walk.a.record, walk.b.record
    names_a, names_b = _once(a.parameters), _once(b.parameters)
    first_a, first_b = ({number: name for name, number in names.items()} for names in (names_a, names_b))
    whole = dict.fromkeys(
        (first_a[a.parameters[pair.a_name]], first_b[b.parameters[pair.b_name]])
        for pair in alignment.pairs
        if pair.a_name in a.parameters and pair.b_name in b.parameters
        if pair.way.a_part is None and pair.way.b_part is None
    )
    findings = []
    for side, graph, names in ((0, walk.a, names_a), (1, walk.b, names_b)):
        copies: dict[str, list[str]] = {}
        for pair in whole:
            copies.setdefault(pair[1 - side], []).append(pair[side])
        for one, several in copies.items():
            if len(several) < 2 or not all(np.any(recorded_gradient(graph, names[name])) for name in several):
                continue
            places = [
                _parameter_place(graph, several[-1]),
                _parameter_place((walk.a, walk.b)[1 - side], one),
            ]
            words = [f"{' and '.join(several)} are copies with a gradient each", f"{one} is one variable"]
            kind, title, advice = _TIED
            pairs = [x if side == 0 else x[::-1] for x in (places, words)]
            findings.append(Finding("gradient", kind, "verified", title, *pairs[0], *pairs[1], 1.0, 0.0, advice))
    return findings


def _training_of(record: Pass, name: str) -> str:
    """Say whether a side trains a parameter."""
    if name in record.parameters:
        return "the parameter is frozen" if name in record.frozen else _TRAINED
    return "it is a buffer, not a parameter"


def _parameter_place(graph: Graph, name: str) -> Place:
    """Return where a parameter is used first."""
    found = uses(graph, {**graph.record.buffers, **graph.record.parameters}[name])
    place = graph.place(found[0][0]) if found else Place()
    return Place(place.layer, place.source, place.code, place.native, place.kind, name)


def _differing_parameters(walk: Walk, alignment: Alignment, limit: float) -> list[str]:
    """Return the parameters of B whose gradients differ although their numbers do not."""
    a, b = walk.a.record, walk.b.record
    numbers = {**b.parameters}
    gradients_b = {name: recorded_gradient(walk.b, number) for name, number in numbers.items()}
    # Names of one variable have one gradient.
    gradients_a = {name: recorded_gradient(walk.a, number) for name, number in _once(a.parameters).items()}
    largest = max((float(np.max(np.abs(g))) for g in gradients_b.values() if g.size), default=0.0)
    differing = []
    for pair in alignment.pairs:
        known = pair.a_name in gradients_a and pair.b_name in gradients_b
        if not known or pair.status in _OTHER:
            continue  # of a weight that is kept in another scale, the gradient has another scale too
        if pair.a_name in a.frozen or pair.b_name in b.frozen:
            continue  # nobody asks for it, so one framework has none and the other may have one
        mine = gradients_b[pair.b_name]
        theirs = alignment.to_b(pair.b_name, gradients_a, gradients=True)
        if theirs is not None and not _same(np.asarray(theirs).reshape(mine.shape), mine, largest, limit, b.precision):
            differing.append(pair.b_name)
    return list(dict.fromkeys(differing))


def _same(a: NDArray, b: NDArray, largest: float, limit: float, precision: type) -> bool:
    if a.shape != b.shape:
        return False
    if np.isnan(a).any() or np.isnan(b).any():
        return bool(np.array_equal(np.isnan(a), np.isnan(b)))
    size = float(np.max(np.abs(b), initial=0.0))
    return float(np.max(np.abs(a - b), initial=0.0)) <= limit * size + _LARGEST[precision] * largest


def _partings(walk: Walk, alignment: Alignment, parameters: list[str], limit: float) -> list[Finding]:
    """Return the places where cotangents of values on both sides begin to differ, seen from the outputs.

    Only values that come from a parameter whose gradient differs count: elsewhere equal numbers may be a coincidence. A
    place where a side says that it cuts the gradient explains others, which may be of another form on the two sides.
    """
    behind = reached(walk.b, [walk.b.record.parameters[name] for name in parameters])
    wanted = {number for i in behind for number in walk.b.operations[i].outputs}
    cotangents = {number: found for number, found in _met_cotangents(walk).items() if number in wanted}
    largest = max((float(np.max(np.abs(mine))) for mine, _ in cotangents.values() if mine.size), default=0.0)
    agree = {
        number: any(
            _same(other, mine, largest, limit, walk.b.record.precision)
            for other in itertools.chain(others, _turned(walk.b.values[number], mine, others))
        )
        for number, (mine, others) in cotangents.items()
    }
    found = [
        _explained(walk, number, *cotangents[number], limit)
        for number in sorted(agree, key=lambda n: -walk.b.producer.get(n, -1))
        if not agree[number] and _readers_agree(walk.b, number, agree)
    ]
    said = [f for f in found if "stop_gradient" in {place.kind for place in (f.a, f.b) if place}]
    verified = [f for f in found if f.status == "verified"]
    if found:
        return said or verified[:1] or found[:1]
    pair = next(pair for pair in alignment.pairs if pair.b_name == parameters[0])
    places = (_parameter_place(walk.a, pair.a_name), _parameter_place(walk.b, pair.b_name))
    mine = recorded_gradient(walk.b, walk.b.record.parameters[pair.b_name])
    numbers = {name: recorded_gradient(walk.a, number) for name, number in walk.a.record.parameters.items()}
    theirs = np.asarray(alignment.to_b(pair.b_name, numbers, gradients=True)).reshape(mine.shape)
    known = _rows_left_out(pair, places, mine, theirs) or _rows_by_frequency(walk, pair, places, mine, theirs)
    return [known or _unknown(places, relative(mine, theirs))]


def _unknown(places: tuple[Place, Place], error: float) -> Finding:
    return Finding("gradient", "", "unknown", "", *places, error=error, left=error)


def _rows_left_out(pair: Pair, places: tuple[Place, Place], mine: NDArray, theirs: NDArray) -> Finding | None:
    """Say that some rows of a parameter get no gradient on one side, if that is the whole difference."""
    if mine.ndim != 2:
        return None
    size = max(float(np.max(np.abs(mine))), float(np.max(np.abs(theirs))))
    rows = np.flatnonzero(np.any(np.abs(mine - theirs) > 1e-6 * size, axis=1))
    for zero, other, of_a in ((theirs, mine, True), (mine, theirs, False)):
        if len(rows) < len(mine) and not np.any(zero[rows]) and np.any(other[rows]):
            kind, title, advice = _ROWS
            which = f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:5]))}"
            verb = "get" if len(rows) > 1 else "gets"
            names = (pair.a_name, pair.b_name)
            does = [
                f"{which} of {name} {verb} {'no' if of_a == first else 'a'} gradient"
                for name, first in zip(names, (True, False), strict=True)
            ]
            return Finding("gradient", kind, "verified", title, *places, *does, relative(mine, theirs), 0.0, advice)
    return None


def _rows_by_frequency(
    walk: Walk, pair: Pair, places: tuple[Place, Place], mine: NDArray, theirs: NDArray
) -> Finding | None:
    """Say that one side divides the gradient of each row by the number of times that it is read."""
    number = walk.b.record.parameters[pair.b_name]
    lookups = [walk.b.operations[i] for i in walk.b.consumers.get(number, ()) if walk.b.operations[i].kind == "gather"]
    if mine.ndim != 2 or len(lookups) != 1 or lookups[0].attributes.get("axis") != 0:
        return None
    rows = np.asarray(walk.b.values[lookups[0].inputs[1]]).astype(np.int64).reshape(-1) % len(mine)
    often = np.maximum(np.bincount(rows, minlength=len(mine)), 1)[:, None]
    size = max(float(np.max(np.abs(mine))), float(np.max(np.abs(theirs))))
    words = (
        "the gradient of a row is divided by how often it is read",
        "the gradient of a row is a sum over its reads",
    )
    for divided, whole, does in ((theirs, mine, words), (mine, theirs, words[::-1])):
        left = float(np.max(np.abs(divided * often - whole))) / size
        if left <= 1e-6:
            kind, title, advice = _FREQUENCY
            error = relative(mine, theirs)
            return Finding("gradient", kind, "verified", title, *places, *does, error, left, advice)
    return None


def _met_cotangents(walk: Walk) -> dict[int, tuple[NDArray, list[NDArray]]]:
    """Return, for values of B that are A's, their cotangent and those of every value of A with the same numbers."""
    result = {}
    first: dict[int, int] = {}
    for number, meeting in walk.meetings.items():
        if number in walk.b.record.gradients:
            first[meeting.a] = min(first.get(meeting.a, len(walk.b.operations)), walk.b.producer.get(number, -1))
    for number, meeting in walk.meetings.items():
        producer = walk.b.producer.get(number)
        is_moved = producer is not None and walk.b.operations[producer].kind in (*LAYOUT_KINDS, "identity", "cast")
        if walk.b.values[number].dtype.kind != "f" or not is_recorded(walk.b, number):
            continue
        is_copy = meeting.a in first and producer is not None and first[meeting.a] < producer
        if number not in walk.b.record.gradients and (is_moved or is_copy):
            continue  # a framework has no gradient of a view, and a copy inside of a function has only a part
        mine = flowing(walk.b, number)
        # What a cut passes on has the same numbers, but its cotangent is not that of what was cut.
        candidates = [(n, layout) for n, layout in walk.same_there(number) if is_recorded(walk.a, n)]
        if not _is_cut(walk.b, number):
            candidates = [(n, layout) for n, layout in candidates if not _is_cut(walk.a, n)] or candidates
        sent = [(flowing(walk.a, n), layout) for n, layout in candidates]
        others = [layout.to_b(gradient) for gradient, layout in sent if gradient is not None]
        if others and mine is not None:
            result[number] = (mine.reshape(others[0].shape), others)
    return result


def _turned(value: NDArray, mine: NDArray, others: list[NDArray]) -> Iterator[NDArray]:
    """Yield cotangents of A in other orders of the axes that leave the value as it is.

    The numbers of zeros, or of a symmetric array, do not say which axis of A is which of B; of equal numbers they say
    nothing about the order, and cotangents of the same numbers agree.
    """
    if value.size and np.all(value == value.reshape(-1)[0]):
        places = np.argsort(mine, axis=None, kind="stable")
        for other in others:
            turned = np.empty(mine.size, other.dtype)
            turned[places] = np.sort(other, axis=None)
            yield turned.reshape(mine.shape)
        return
    shape = mine.shape
    if value.shape != shape or len(shape) > _TURNED or len({n for n in shape if n > 1}) == len(shape):
        return
    for axes in itertools.permutations(range(len(shape))):
        is_other = list(axes) != sorted(axes) and tuple(shape[i] for i in axes) == shape
        if is_other and np.array_equal(value.transpose(axes), value):
            yield from (other.transpose(axes) for other in others)


def _is_cut(graph: Graph, number: int) -> bool:
    return number in graph.producer and graph.operations[graph.producer[number]].kind == "stop_gradient"


def _readers_agree(graph: Graph, number: int, agree: Mapping[int, bool]) -> bool:
    """Return whether the cotangents of everything that reads a value agree, as far as they are known."""
    for i in graph.consumers.get(number, ()):
        for output in graph.operations[i].outputs:
            if output in agree:
                if not agree[output]:
                    return False
            elif not _readers_agree(graph, output, agree):
                return False
    return True


def _explained(walk: Walk, number: int, mine: NDArray, others: list[NDArray], limit: float) -> Finding:
    """Say which term of a cotangent is there on one side only, or by which factor the two differ."""
    theirs = others[0]
    error = float(
        np.max(np.abs(mine - theirs)) / max(float(np.max(np.abs(mine))), float(np.max(np.abs(theirs))), 1e-300)
    )
    meeting = walk.meetings[number]
    a_place = walk.a.place(walk.a.producer[meeting.a]) if meeting.a in walk.a.producer else Place()
    b_place = walk.b.place(walk.b.producer[number]) if number in walk.b.producer else Place()
    sides = (
        (walk.b, number, mine, theirs, True),
        (walk.a, meeting.a, meeting.layout.to_a(theirs), meeting.layout.to_a(mine), False),
    )
    for graph, value, own, other, of_b in sides:
        sent = terms(graph, value)
        for count in range(1, len(sent) + 1):
            for chosen in itertools.combinations(sent, count):
                without = own - sum(sent[i] for i in chosen)
                if _explains(own, other, without, limit):
                    kind, title, advice = _CUT
                    place = graph.place(chosen[0])
                    cut = _cut_place(walk.a if of_b else walk.b, meeting.a if of_b else number)
                    places = (cut or a_place, place) if of_b else (place, cut or b_place)
                    does = ("the gradient is cut", "the gradient is passed on")
                    left = float(np.max(np.abs(other - without)))
                    return Finding(
                        "gradient",
                        kind,
                        "verified",
                        title,
                        *places,
                        *(does if of_b else does[::-1]),
                        error,
                        left,
                        advice,
                    )
    factor = float(np.vdot(theirs, mine) / np.vdot(theirs, theirs)) if np.any(theirs) else 0.0
    if factor and np.max(np.abs(mine - factor * theirs)) <= 1e-9 * np.max(np.abs(mine)):
        kind, title, advice = _FACTOR
        words = f"the gradient is {factor:.6g} times that of A"
        return Finding("gradient", kind, "verified", title, a_place, b_place, "", words, error, 0.0, advice)
    for graph, value, own, other, of_b in sides:
        found = _custom(graph, value, own, other, limit)
        if found is not None:
            kind, title, advice = _CUSTOM
            place, left = found
            does = ("the gradient is not that of the forward pass", "the gradient is that of the forward pass")
            there = _same_layer(walk.a if of_b else walk.b, place, meeting.a if of_b else number)
            places = (there or a_place, place) if of_b else (place, there or b_place)
            return Finding(
                "gradient", kind, "verified", title, *places, *(does[::-1] if of_b else does), error, left, advice
            )
    return Finding("gradient", "", "unknown", "", a_place, b_place, "", "", error, error)


def _custom(graph: Graph, number: int, own: NDArray, other: NDArray, limit: float) -> tuple[Place, float] | None:
    """Return where the cotangent of a value is not what its readers' definitions send back, but the other side's is."""
    sent = backward(graph, number, {})
    if sent is None or sent.shape != own.shape:
        return None
    size, apart = float(np.max(np.abs(other))), float(np.max(np.abs(own - other)))
    left = float(np.max(np.abs(sent - other)))
    if left > max(limit * size, 1e-10 * size) or left > _LEFT * apart:
        return None
    return graph.place(graph.consumers[number][0]), left


def _same_layer(graph: Graph, place: Place, number: int) -> Place | None:
    """Return where the other side reads the same value: the operation of the same kind, else the first."""
    readers = [graph.place(i) for i in graph.consumers.get(number, ())]
    return next((each for each in readers if each.kind == place.kind), readers[0] if readers else None)


def _explains(own: NDArray, other: NDArray, without: NDArray, limit: float) -> bool:
    """Return whether a cotangent without some terms is the other side's."""
    if find_layout(other, without, 1e-8) is not None:
        return True
    left, size = float(np.max(np.abs(other - without))), float(np.max(np.abs(own)))
    return left <= 1e-10 * size or (left <= limit * size and left <= _LEFT * float(np.max(np.abs(own - other))))


def _cut_place(graph: Graph, number: int) -> Place | None:
    """Return where a side cuts the gradient of a value, if an operation says so."""
    for i in graph.consumers.get(number, ()):
        if graph.operations[i].kind == "stop_gradient":
            return graph.place(i)
    return None
