r"""Causes that show in training mode: what normalisations leave in their buffers, and dropout.

A running statistic s moves towards the statistic b of the batch, with the momentum m in torch's sense:

    s <- (1 - m) s + m b            m = 0.1 in PyTorch is momentum=0.9 in Keras
    m = 1 / (number of batches)     a cumulative average, momentum=None in PyTorch

A pass in training mode is run twice on the same inputs, so both updates have the same b, and

    1 - m = (s_2 - s_1) / (s_1 - s_0),      b = s_0 + (s_1 - s_0) / m

give both without knowing the layer. Where the batch itself is drawn (dropout before the norm), m follows from the
recorded input of the layer. That input also says which statistic b is: the biased or the unbiased variance, the
standard deviation, a mean over other axes. Each side is judged by its own input, so nothing is inherited.

Dropout is compared by its rate, by what it drops (elements or whole channels) and by whether it scales what it keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff.alignment import Alignment
from diffusion_core.parity.diff.causes.dropouts import Dropout, dropouts, same_dropouts
from diffusion_core.parity.diff.findings import Finding, Place
from diffusion_core.parity.diff.recording import Layer, Pass, Recording

__all__ = ["TITLES", "BufferRule", "buffer_rule", "training_findings"]

TITLES = {
    "bn_momentum": "the momentum of running statistics",
    "bn_running_var_bias": "the running variance, biased or unbiased",
    "bn_frozen": "a normalisation that is frozen in training",
    "bn_update_missing": "running statistics that are not updated",
    "bn_statistics": "what the running statistics are",
    "buffer_update": "a buffer that training changes",
    "dropout_rate": "the rate of a dropout",
    "dropout_missing": "a dropout that one side does not have",
    "dropout_position": "where a dropout is",
    "dropout_channels": "dropout of elements or of whole channels",
    "dropout_scale": "whether dropout scales what it keeps",
}
ADVICE = {
    "bn_momentum": "momentum=0.1 in PyTorch is 0.9 in Keras, whose default is 0.99; None in PyTorch is cumulative",
    "bn_running_var_bias": "PyTorch keeps the unbiased variance, Keras the biased one: multiply by n / (n - 1) by hand",
    "bn_frozen": "trainable=False puts Keras's layer into inference mode; in PyTorch that is module.eval()",
    "bn_update_missing": "track_running_stats= in PyTorch; in Keras call the layer with training=True",
    "dropout_rate": "p= in PyTorch, rate= in Keras: both are the fraction that is dropped",
    "dropout_position": "move it to the same place on both sides",
    "dropout_channels": "nn.Dropout2d is SpatialDropout2D; Dropout drops elements in both",
    "dropout_scale": "both frameworks divide what is kept by 1 - rate",
    "dropout_missing": "self.training and model.train() in PyTorch, training=True in Keras",
}


@dataclass(frozen=True)
class BufferRule:
    """How a pass in training mode changes a running statistic.

    Attributes:
        changed: whether it changes at all.
        momentum: m in torch's sense; None if it follows no moving average.
        cumulative: the layer says that it keeps a cumulative average.
        statistic: "mean", "biased variance", "unbiased variance", "standard deviation", "mean square" or "" (unknown).
        batch: the statistic of the batch that it moves to.
        count: how many numbers each statistic is of; 0 if unknown.
        normalises: "batch" or "running": which statistics the layer normalises with; "" if unknown.
        exact: whether the numbers are float64.
    """

    changed: bool
    momentum: float | None = None
    cumulative: bool = False
    statistic: str = ""
    batch: NDArray | None = None
    count: int = 0
    normalises: str = ""
    exact: bool = True


def training_findings(
    a: Recording,
    b: Recording,
    parameters: Alignment,
    pairs: Sequence[tuple[Dropout | None, Dropout | None]] | None = None,
) -> list[Finding]:
    """Return what differs in training mode only: running statistics after one and two passes, and dropout.

    Args:
        a, b: recordings with a pass in training mode.
        parameters: which parameter and buffer of A is which of B.
        pairs: dropouts that belong together, None for one without a partner; by default those in the same order.
    """
    name = next((n for n in ("train64", "train32") if n in a.passes and n in b.passes), None)
    if name is None:
        return []
    one, other = a.passes[name], b.passes[name]
    return [
        *_buffers(one, other, parameters),
        *_dropouts(one, other, same_dropouts(dropouts(one), dropouts(other)) if pairs is None else pairs),
    ]


def _buffers(one: Pass, other: Pass, parameters: Alignment) -> list[Finding]:
    groups: dict[tuple, list[Finding]] = {}
    for a_name, b_name in buffer_pairs(one, other, parameters):
        rules = buffer_rule(one, a_name), buffer_rule(other, b_name)
        found = _compare(one, other, a_name, b_name, *rules)
        if found is not None:
            groups.setdefault((found.kind, found.a_does, found.b_does), []).append(found)
    result: list[Finding] = []
    for found in groups.values():
        first = found[0]
        layers = dict.fromkeys((f.a.layer, f.b.layer) for f in found if f.a and f.b)
        also = tuple(f"{x} and {y}" for x, y in list(layers)[1:])
        result.append(Finding(**{**vars(first), "also": also}))
    return result


def buffer_pairs(one: Pass, other: Pass, parameters: Alignment) -> list[tuple[str, str]]:
    """Return buffers that belong together: by the alignment, or as statistics of layers whose parameters do."""
    pairs = [(p.a_name, p.b_name) for p in parameters.pairs if p.a_name in one.buffers and p.b_name in other.buffers]
    done_a, done_b = {x for x, _ in pairs}, {y for _, y in pairs}
    layers = {prefix(p.a_name): prefix(p.b_name) for p in parameters.pairs if prefix(p.a_name)}
    for x in one.buffers:
        if x in done_a or prefix(x) not in layers or not statistic_name(x):
            continue
        for y in other.buffers:
            same = prefix(y) == layers[prefix(x)] and statistic_name(y) == statistic_name(x)
            if same and y not in done_b and _value(one, x).size == _value(other, y).size:
                pairs.append((x, y))
                done_b.add(y)
                break
    return pairs


def prefix(name: str) -> str:
    """Return the path of the layer that a parameter or buffer belongs to."""
    return name[: max(name.rfind("."), name.rfind("/"), 0)]


def statistic_name(name: str) -> str:
    """Return "mean" or "variance" if a buffer is called so, or ""."""
    last = name[len(prefix(name)) :].lower()
    return "variance" if "var" in last else "mean" if "mean" in last or "avg" in last else ""


def _value(record: Pass, name: str) -> NDArray:
    return np.asarray(record.values[record.buffers[name]])


def buffer_rule(record: Pass, name: str) -> BufferRule:
    """Return how a pass in training mode changes a buffer."""
    before = _value(record, name)
    if before.dtype.kind != "f":
        return BufferRule(False)
    before = before.astype(np.float64)
    after = [np.asarray(each[name], np.float64) for each in record.buffers_after if name in each]
    unit = 2.0**-50 if record.precision is np.float64 else 2.0**-20
    size = float(np.max(np.abs(before), initial=0.0))
    layer = layer_of(record, name)
    x, axis = layer_input(record, layer, name)
    if x is None and (number := explaining_input(record, name)) is not None:
        x, axis = np.asarray(record.values[number[0]], np.float64), number[1]
    normalises = _normalises(record, layer, name, x, axis)
    if not after or np.max(np.abs(after[0] - before), initial=0.0) <= unit * size:
        return BufferRule(False, normalises=normalises)
    moved = after[0] - before
    cumulative = layer is not None and "momentum" in layer.options and layer.options["momentum"] is None
    momentum = _by_two_passes(before, after, unit)
    if cumulative:
        momentum = _by_batch(moved, before, x, axis, "") or momentum
    if momentum is None:
        momentum = _by_batch(moved, before, x, axis, statistic_name(name))
    if momentum is None or momentum == 0:
        return BufferRule(True, None, cumulative, normalises=normalises)
    batch = before + moved / momentum
    statistic, count = _statistic(batch, x, axis, momentum, moved, unit)
    return BufferRule(True, momentum, cumulative, statistic, batch, count, normalises, record.precision is np.float64)


def _by_two_passes(before: NDArray, after: Sequence[NDArray], unit: float) -> float | None:
    """Return m from two updates with the same batch; None if the updates are not in proportion."""
    if len(after) < 2:
        return None
    first, second = (after[0] - before).reshape(-1), (after[1] - after[0]).reshape(-1)
    ratio = float(first @ second) / float(first @ first)
    left = float(np.max(np.abs(second - ratio * first)))
    noise = 64 * unit * float(np.max(np.abs(before), initial=0.0))
    return 1 - ratio if left <= 1e-6 * float(np.max(np.abs(first))) + noise else None


def _by_batch(moved: NDArray, before: NDArray, x: NDArray | None, axis: int, statistic: str) -> float | None:
    """Return m from the statistics of the layer's input, if one of them explains the move."""
    if x is None:
        return None
    for batch in _statistics(x, axis, statistic).values():
        span = (batch - before).reshape(-1)
        whole = float(span @ span)
        m = float(span @ moved.reshape(-1)) / whole if whole else 0.0
        if m and np.max(np.abs(moved.reshape(-1) - m * span)) <= 1e-5 * np.max(np.abs(moved)):
            return m
    return None


def _statistics(x: NDArray, axis: int, statistic: str = "") -> dict[str, NDArray]:
    axes = tuple(i for i in range(x.ndim) if i != axis)
    n = x.size // x.shape[axis]
    variance = x.var(axis=axes)
    found = {
        "mean": x.mean(axis=axes),
        "biased variance": variance,
        "unbiased variance": variance * n / max(n - 1, 1),
        "standard deviation": np.sqrt(variance),
        "mean square": np.mean(x * x, axis=axes),
    }
    if statistic == "mean":
        return {"mean": found["mean"]}
    return {k: v for k, v in found.items() if not statistic or k != "mean"}


def _statistic(
    batch: NDArray, x: NDArray | None, axis: int, momentum: float, moved: NDArray, unit: float
) -> tuple[str, int]:
    """Return which statistic of the layer's input a buffer moves to, and of how many numbers."""
    if x is None:
        return "", 0
    count = x.size // x.shape[axis]
    noise = (unit * 64 + 1e-8 if unit < 1e-12 else 1e-3) * float(np.max(np.abs(batch), initial=0.0))
    for name, value in _statistics(x, axis).items():
        if value.size == batch.size and np.max(np.abs(value - batch.reshape(-1))) <= noise:
            return name, count
    return "", count


def layer_of(record: Pass, name: str) -> Layer | None:
    """Return the layer that owns a buffer: the one of its path, or of the longest end of it."""
    path = _dots(prefix(name))
    best = None
    for layer in record.layers:
        there = _dots(layer.path)
        if not there:
            continue
        fits = there == path or path.endswith("." + there) or there.endswith("." + path)
        if path and fits and (best is None or len(there) > len(_dots(best.path))):
            best = layer
    return best


def _dots(path: str) -> str:
    return path.replace("/", ".").strip(".")


def layer_input(record: Pass, layer: Layer | None, name: str) -> tuple[NDArray | None, int]:
    """Return the recorded input of the normalisation that owns a buffer, and its axis of channels."""
    number = record.buffers[name]
    size = _value(record, name).size
    candidates: list[tuple[int, int | None]] = []
    for operation in record.operations:
        if operation.kind == "batch_norm" and number in operation.inputs:
            candidates.append((operation.inputs[0], operation.attributes.get("axis")))
    if layer is not None and layer.inputs:
        axis = layer.options.get("axis")
        candidates.append((layer.inputs[0], axis if isinstance(axis, int) else None))
    for value, axis in candidates:
        x = record.values.get(value)
        if x is None or x.ndim < 2 or x.dtype.kind != "f":
            continue
        axes = [axis % x.ndim] if axis is not None else [1, x.ndim - 1]
        for place in axes:
            if x.shape[place] == size:
                return np.asarray(x, np.float64), place
    return None, 0


def explaining_input(record: Pass, name: str) -> tuple[int, int] | None:
    """Return the number of the value whose statistics explain the move of a buffer, and its axis of channels.

    A norm that is a function of tensors, or written out by hand, does not say which buffer it belongs to.
    """
    before = _value(record, name).astype(np.float64)
    after = next((np.asarray(each[name], np.float64) for each in record.buffers_after if name in each), before)
    if not np.any(after != before):
        return None
    first = [o.inputs[0] for o in record.operations if o.kind == "batch_norm"]
    others = [number for o in record.operations for number in o.inputs]
    for number in dict.fromkeys([*first, *others]):
        value = record.values.get(number)
        if value is None or value.ndim < 2 or value.dtype.kind != "f" or value.size == before.size:
            continue
        for axis in (1, value.ndim - 1):
            if value.shape[axis] == before.size:
                x = np.asarray(value, np.float64)
                if _by_batch(after - before, before, x, axis, statistic_name(name)) is not None:
                    return number, axis
    return None


def _normalises(record: Pass, layer: Layer | None, name: str, x: NDArray | None, axis: int) -> str:
    """Return whether a layer normalises with the statistics of the batch or with the running ones."""
    number = record.buffers[name]
    for operation in record.operations:
        if operation.kind == "batch_norm" and number in operation.inputs:
            return "batch" if operation.attributes.get("training") else "running"
    if layer is None or x is None or not layer.outputs or layer.outputs[0] not in record.values:
        return ""
    y = np.asarray(record.values[layer.outputs[0]], np.float64)
    if y.shape != x.shape:
        return ""
    # What is normalised with the batch has the mean that the shift gives it.
    axes = tuple(i for i in range(x.ndim) if i != axis)
    names = {prefix(n): n for n in record.buffers}
    if prefix(name) not in names:
        return ""
    variables = {
        n: np.asarray(record.values[m], np.float64) for n, m in record.parameters.items() if prefix(n) == prefix(name)
    }
    shift = next((v for n, v in variables.items() if n.endswith(("bias", "beta"))), np.zeros(x.shape[axis]))
    away = float(np.max(np.abs(y.mean(axis=axes) - shift.reshape(-1)), initial=0.0))
    return "batch" if away <= 1e-5 * max(float(np.std(y)), 1e-300) else "running"


def _compare(one: Pass, other: Pass, a_name: str, b_name: str, a: BufferRule, b: BufferRule) -> Finding | None:
    """Compare the rules of two buffers."""
    exact = one.precision is np.float64 and other.precision is np.float64
    close = 1e-6 if exact else 2e-3
    if not a.changed and not b.changed:
        return None
    if a.changed != b.changed:
        still, moving = (a, b) if b.changed else (b, a)
        frozen = still.normalises == "running"
        words = [
            f"{_what(a_name)} updated, with momentum {_momentum(moving)}" if rule.changed else _still(a_name, frozen)
            for rule in (a, b)
        ]
        kind = "bn_frozen" if frozen else "bn_update_missing"
        if not statistic_name(a_name) and not a.statistic and not b.statistic:
            kind = "buffer_update"
        status = "unknown" if kind == "buffer_update" else "verified" if still.normalises else "likely"
        return _finding(kind, one, other, a_name, b_name, *words, 1.0, status)
    if a.momentum is None or b.momentum is None:
        if a.momentum is None and b.momentum is None:
            return None
        words = [
            f"{n} is a moving average" if r.momentum is not None else f"{n} follows no moving average"
            for n, r in ((a_name, a), (b_name, b))
        ]
        return _finding("buffer_update", one, other, a_name, b_name, *words, 1.0, "unknown")
    if abs(a.momentum - b.momentum) > close or a.cumulative != b.cumulative:
        words = [f"momentum is {_momentum(rule)}" for rule in (a, b)]
        error = abs(a.momentum - b.momentum) or 1.0
        return _finding("bn_momentum", one, other, a_name, b_name, *words, error, "verified")
    return _compare_statistics(one, other, a_name, b_name, a, b, close)


def _compare_statistics(
    one: Pass, other: Pass, a_name: str, b_name: str, a: BufferRule, b: BufferRule, close: float
) -> Finding | None:
    """Compare what two running statistics with the same momentum move to."""
    if a.statistic and b.statistic:
        if a.statistic == b.statistic:
            return None
        words = [f"the running statistic is the {rule.statistic}" for rule in (a, b)]
        pair = {a.statistic, b.statistic}
        if pair == {"biased variance", "unbiased variance"}:
            n = max(a.count, b.count)
            words = [f"the running variance is {rule.statistic.split()[0]} (n = {n})" for rule in (a, b)]
            return _finding("bn_running_var_bias", one, other, a_name, b_name, *words, 1 / n, "verified")
        return _finding("bn_statistics", one, other, a_name, b_name, *words, 1.0, "verified")
    if a.batch is None or b.batch is None or a.batch.size != b.batch.size:
        return None
    x, y = a.batch.reshape(-1), b.batch.reshape(-1)
    size = max(float(np.max(np.abs(x))), 1e-300)
    error = float(np.max(np.abs(x - y))) / size
    if error <= max(100 * close, 1e-6):
        return None
    ratio = float(x @ y) / float(x @ x)
    proportional = float(np.max(np.abs(y - ratio * x))) <= close * size
    if proportional and statistic_name(a_name) == "variance" and abs(ratio - 1) < 0.6:
        n = round(1 / abs(1 - min(ratio, 1 / ratio)))
        if abs(min(ratio, 1 / ratio) - (n - 1) / n) < close:
            pair = ("unbiased", "biased") if ratio < 1 else ("biased", "unbiased")
            words = [f"the running variance is {word} (n = {n})" for word in pair]
            return _finding("bn_running_var_bias", one, other, a_name, b_name, *words, error, "verified")
    if proportional:
        words = ("the running statistic is as it is", f"the running statistic is {ratio:.6g} times as large")
        return _finding("bn_statistics", one, other, a_name, b_name, *words, error, "likely")
    known = [rule.statistic for rule in (a, b)]
    if not any(known):
        return None  # The inputs of the two layers may differ already: nothing of their own can be said.
    words = [f"the running statistic is {'the ' + k if k else 'none of the usual ones'}" for k in known]
    return _finding("bn_statistics", one, other, a_name, b_name, *words, error, "likely")


def _momentum(rule: BufferRule) -> str:
    if rule.cumulative:
        return "None: a cumulative average"
    if rule.momentum is None:
        return "unknown"
    m = next((m for digits in range(1, 7) if abs((m := round(rule.momentum, digits)) - rule.momentum) < 1e-4), 0.0)
    if abs(m - rule.momentum) > 1e-8 and rule.exact:
        m = rule.momentum
    return f"{m:.6g} in PyTorch's sense ({1 - m:.6g} in Keras's)"


def _what(name: str) -> str:
    return "running statistics are" if statistic_name(name) else "the buffer is"


def _still(name: str, frozen: bool) -> str:
    return f"{_what(name)} not updated" + (", and the layer normalises with them" if frozen else "")


def _finding(
    kind: str,
    one: Pass,
    other: Pass,
    a_name: str,
    b_name: str,
    a_does: str,
    b_does: str,
    error: float,
    status: str,
) -> Finding:
    places = (_place(one, a_name), _place(other, b_name))
    return Finding("training", kind, status, TITLES[kind], *places, a_does, b_does, error, 0.0, ADVICE.get(kind, ""))


def _place(record: Pass, name: str) -> Place:
    """Return where the layer that owns a buffer is."""
    layer = layer_of(record, name)
    path = layer.path if layer is not None else prefix(name)
    sourced = [o for o in record.operations if o.source or o.native]
    made = next((o for o in sourced if o.layer == path), None)
    if layer is None and name in record.buffers:  # functions of tensors: the line that reads the buffer or its batch
        readers = [o for o in sourced if record.buffers[name] in o.inputs]
        if not readers and (number := explaining_input(record, name)) is not None:
            readers = sorted((o for o in sourced if number[0] in o.inputs), key=lambda o: o.kind != "batch_norm")
        if readers:
            made, path = readers[0], readers[0].layer
    kind = "batch_norm" if statistic_name(name) else ""
    if made is None:
        return Place(path, kind=kind, parameter=name)
    return Place(path, made.source, made.code, made.native, kind, name)


def _dropouts(one: Pass, other: Pass, pairs: Sequence[tuple[Dropout | None, Dropout | None]]) -> list[Finding]:
    """Compare the dropouts of two passes in training mode."""
    found: dict[tuple, Finding] = {}
    for a, b in _moved(pairs):
        for kind, a_does, b_does in _differences(a, b):
            places = [
                a.place if a is not None else _made_there(one, other, b),
                b.place if b is not None else _made_there(other, one, a),
            ]
            error = abs(a.rate - b.rate) if kind == "dropout_rate" and a and b else 1.0
            new = Finding("training", kind, "verified", TITLES[kind], *places, a_does, b_does, error, 0.0, ADVICE[kind])
            found.setdefault((kind, a_does, b_does), new)
    return list(found.values())


def _made_there(record: Pass, other: Pass, dropout: Dropout) -> Place | None:
    """Return where a pass makes what a dropout of the other pass reads: the dropout is missing behind it."""
    x = other.values.get(dropout.read)
    if x is None or x.size == 0:
        return None
    x = np.sort(x, axis=None).astype(np.float64)
    close = (1e-6 if record.precision is np.float64 and other.precision is np.float64 else 1e-4) * np.max(np.abs(x))
    for operation in reversed(record.operations):
        for number in operation.outputs:
            y = record.values.get(number)
            if y is None or y.dtype.kind != "f" or y.size != x.size or not (operation.source or operation.native):
                continue
            if np.max(np.abs(np.sort(y, axis=None) - x)) <= close:
                return Place(operation.layer, operation.source, operation.code, operation.native, operation.kind)
    return None


def _moved(pairs: Sequence[tuple[Dropout | None, Dropout | None]]) -> list[tuple[Dropout | None, Dropout | None]]:
    """Put dropouts of the same rate together that each side has in another place."""
    only_a, only_b = [a for a, b in pairs if b is None and a], [b for a, b in pairs if a is None and b]
    result = [(a, b) for a, b in pairs if a is not None and b is not None]
    for a in only_a:
        same = next((b for b in only_b if abs(a.rate - b.rate) <= 1e-6), None)
        result.append((a, same))
        only_b = [b for b in only_b if b is not same]
    return result + [(None, b) for b in only_b]


def _differences(a: Dropout | None, b: Dropout | None) -> list[tuple[str, str, str]]:
    if a is None or b is None:
        words = [
            f"the dropout has the rate {d.rate:.4g}" if d is not None else "no dropout is in its place" for d in (a, b)
        ]
        return [("dropout_missing", *words)]
    result = []
    if a.size != b.size:
        words = [
            f"the dropout of rate {d.rate:.4g} is on the {d.size} numbers of {d.place.layer or 'the model'}"
            for d in (a, b)
        ]
        result.append(("dropout_position", *words))
    if abs(a.rate - b.rate) > 1e-6:
        result.append(("dropout_rate", *(f"dropout has the rate {d.rate:.4g}" for d in (a, b))))
    if a.channels != b.channels:
        words = ["whole channels are dropped" if d.channels else "elements are dropped" for d in (a, b)]
        result.append(("dropout_channels", *words))
    if a.scaled != b.scaled:
        words = [
            "numbers that are kept are divided by 1 - rate" if d.scaled else "numbers that are kept are not scaled"
            for d in (a, b)
        ]
        result.append(("dropout_scale", *words))
    return result
