"""Causes in embeddings: timesteps, positions, labels, and the order of the units that stand for classes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff.causes.change import Change, Read, Suspect, cause
from diffusion_core.parity.diff.causes.view import View, shown, view

_TRIGONOMETRIC = ("sin", "cos")

_IN_TURN = "sines and cosines stand one by one in turn"


@cause(
    "time_embedding_order",
    "the order of sines and cosines in an embedding",
    "diffusers' flip_sin_to_cos puts the cosines first",
)
def time_order(suspect: Suspect) -> Iterator[Change]:
    """Put sines and cosines together in another order."""
    here = view(suspect)
    for i, operation in here.operations:
        if operation.kind not in ("concat", "stack") or not here.comes_from(i, _TRIGONOMETRIC, 3):
            continue
        inputs, axis = operation.inputs, operation.attributes["axis"]
        if len(inputs) == 2:

            def swapped(read: Read, i: int = i, inputs: tuple[int, ...] = inputs) -> tuple:
                return tuple(here.evaluate(i, [read(n) for n in reversed(inputs)]))

            first = (
                "sines" if here.graph.producer.get(inputs[0]) is not None and _is_sine(here, inputs[0]) else "cosines"
            )
            other = "cosines" if first == "sines" else "sines"
            yield Change("time_embedding_order", i, swapped, f"{first} come first", f"{other} come first", -1)
        if operation.kind == "concat":

            def interleaved(read: Read, inputs: tuple[int, ...] = inputs, axis: int = axis) -> tuple:
                parts = [read(n) for n in inputs]
                y = np.stack(parts, axis + 1)
                return (y.reshape(np.concatenate(parts, axis).shape),)

            yield Change("time_embedding_order", i, interleaved, "sines and cosines stand in two halves", _IN_TURN, -1)
    # Stacked and flattened here: in two halves there.
    for i, operation in here.operations:
        y = here.output(i)
        if operation.kind != "reshape" or y is None or not here.comes_from(i, ("stack",), 1):
            continue

        def halves(read: Read, i: int = i) -> tuple:
            y = here.evaluate(i, [read(n) for n in here.graph.operations[i].inputs])[0]
            return (np.concatenate((y[..., 0::2], y[..., 1::2]), -1),)

        yield Change("time_embedding_order", i, halves, _IN_TURN, "sines and cosines stand in two halves", -1)


def _is_sine(here: View, number: int) -> bool:
    i = here.graph.producer[number]
    kinds = [here.graph.operations[i].kind, *(o.kind for o in here.neighbours(i, False, 2))]
    return next((kind == "sin" for kind in kinds if kind in _TRIGONOMETRIC), False)


@cause("frequency_table", "a table of frequencies", "compute base ** (-i / n) with the same base and n on both sides")
def table(suspect: Suspect) -> Iterator[Change]:
    """Replace a constant array that falls like a power by the other usual ones."""
    here = view(suspect)
    for i, operation in here.operations:
        y = here.output(i)
        if operation.kind != "constant" or y is None or y.ndim == 0 or y.size < 3:
            continue
        flat = y.reshape(-1)
        if (flat <= 0).any() or not np.allclose(np.diff(np.log(flat)), np.log(flat[1] / flat[0]), rtol=1e-6):
            continue
        step = -math.log(flat[1] / flat[0])
        if step == 0:
            continue
        n = flat.size
        for base in (1e4, 1e5, 1e3, 500.0):
            for divisor in (n, n - 1, 2 * n, n / 2, n + 1):
                if divisor > 0 and not math.isclose(math.log(base) / divisor, step, rel_tol=1e-9):
                    other = (flat[0] * base ** (-np.arange(n) / divisor)).reshape(y.shape).astype(y.dtype)
                    yield Change(
                        "frequency_table",
                        i,
                        lambda read, o=other: (o,),
                        f"frequency i is 10000 ** (-i / {math.log(1e4) / step:.6g})",
                        f"frequency i is {base:g} ** (-i / {divisor:g})",
                    )


@cause("constant_array", "an array in the code with other numbers", "make the same array on both sides")
def constant_array(suspect: Suspect) -> Iterator[Change]:
    """Use the other side's constant array."""
    here = view(suspect)
    theirs = [
        np.asarray(suspect.read_other(o.outputs[0]))
        for j in suspect.other_region
        if (o := suspect.other.operations[j]).kind == "constant"
    ]
    for i, operation in here.operations:
        array = here.value(operation.outputs[0])
        if operation.kind != "constant" or array is None or array.size < 2:
            continue
        for other in theirs:
            if other.size == array.size:
                same = other.reshape(array.shape).astype(array.dtype)
                yield Change(
                    "constant_array",
                    i,
                    lambda read, o=same: (o,),
                    f"the array is {few(array)}",
                    f"the array is {few(other)}",
                )


def few(array: NDArray) -> str:
    """Show the first numbers of an array."""
    return ", ".join(shown(float(x)) for x in array.reshape(-1)[:4]) + (" ..." if array.size > 4 else "")


@cause("position_offset", "positions that begin at another number", "RoBERTa's positions begin at padding_idx + 1")
@cause("label_offset", "labels that begin at another number", "labels begin at 0, unless 0 means no class")
@cause(
    "padding_row",
    "the row of an embedding for padding",
    "padding_idx= in torch keeps zeros; mask_zero= in Keras does not",
)
@cause(
    "lookup_order", "an embedding looked up in another order", "the same list of names in the same order on both sides"
)
def lookup(suspect: Suspect) -> Iterator[Change]:
    """Look up other rows of a table."""
    here = view(suspect)
    for i, operation in here.operations:
        array = here.value(operation.outputs[0]) if operation.kind == "constant" else None
        if array is not None and array.dtype.kind in "iu" and array.size > 1:
            for d in (1, -1, 2, -2, 3, -3):
                start = int(array.min())
                yield Change(
                    "position_offset",
                    i,
                    lambda read, a=array, d=d: ((a.astype(np.int64) + d).astype(a.dtype),),
                    f"positions begin at {start}",
                    f"positions begin at {start + d}",
                    0,
                )
        if operation.kind == "gather" and len(operation.inputs) == 2:
            table, indices = (here.value(n) for n in operation.inputs)
            if table is None or indices is None or indices.dtype.kind not in "iuf":
                continue
            axis, size = operation.attributes["axis"], table.shape[operation.attributes["axis"]]
            given = depends_on_input(here, operation.inputs[1])
            kind = "label_offset" if given else "position_offset"
            for d in (1, -1, 2, -2):

                def moved(read: Read, i: int = i, d: int = d, size: int = size) -> tuple:
                    inputs = [read(n) for n in here.graph.operations[i].inputs]
                    return tuple(here.evaluate(i, [inputs[0], (inputs[1].astype(np.int64) + d) % size]))

                yield Change(
                    kind, i, moved, "row i is looked up", f"row i {'+' if d > 0 else '-'} {abs(d)} is looked up", 0
                )
            if axis == 0 and indices.dtype.kind in "iu" and indices.size:
                for row in (0, 1, size - 1):
                    if not np.any(indices != row):
                        continue  # every lookup is of this row: the whole term is missing
                    yield Change("padding_row", i, _zeroed(here, i, row), f"row {row} is used", f"row {row} is zero")
                yield from _reordered(here, i, table, indices)
        elif operation.kind == "one_hot":
            for d in (1, -1):

                def hot(read: Read, i: int = i, d: int = d) -> tuple:
                    indices = read(here.graph.operations[i].inputs[0])
                    return tuple(here.evaluate(i, [indices + d]))

                yield Change("label_offset", i, hot, "label i is used", f"label i {'+' if d > 0 else '-'} 1 is used", 0)
        elif operation.kind == "slice" and here.is_parameter(operation.inputs[0]):
            yield from _slices(here, i)


def depends_on_input(here: View, number: int) -> bool:
    """Return whether a value comes from an input of the model."""
    todo, seen = [number], set()
    while todo:
        n = todo.pop()
        if n in here.graph.record.inputs:
            return True
        if n in here.graph.producer and n not in seen:
            seen.add(n)
            todo += here.graph.operations[here.graph.producer[n]].inputs
    return False


def _zeroed(here: View, i: int, row: int):
    def compute(read: Read) -> tuple:
        inputs = [read(n) for n in here.graph.operations[i].inputs]
        y = here.evaluate(i, inputs)[0].copy()
        y[inputs[1] == row] = 0
        return (y,)

    return compute


def _reordered(here: View, i: int, table: NDArray, indices: NDArray) -> Iterator[Change]:
    """Yield the rows that the other side looks up, if they are rows of the same table."""
    if table.ndim != 2:
        return
    other = here.suspect.other
    used = np.unique(indices)
    for j in here.suspect.other_region:
        theirs = np.asarray(here.suspect.read_other(other.operations[j].outputs[0]))
        if theirs.shape != (*indices.shape, table.shape[1]):
            continue
        rows = {}
        for index in used:
            wanted = theirs[tuple(np.argwhere(indices == index)[0])]
            match = np.flatnonzero(np.abs(table - wanted).max(axis=1) <= 1e-9 * np.abs(table).max())
            if match.size != 1:
                break
            rows[int(index)] = int(match[0])
        if len(rows) == used.size and any(a != b for a, b in rows.items()):

            def compute(read: Read, rows: dict[int, int] = rows) -> tuple:
                given = [read(n) for n in here.graph.operations[i].inputs]
                return tuple(here.evaluate(i, [given[0], np.vectorize(lambda v: rows.get(int(v), int(v)))(given[1])]))

            first = next(a for a, b in rows.items() if a != b)
            yield Change(
                "lookup_order", i, compute, f"index {first} is row {first}", f"index {first} is row {rows[first]}", 0
            )


def _slices(here: View, i: int) -> Iterator[Change]:
    """Yield rows of a table that begin elsewhere."""
    operation = here.graph.operations[i]
    table, y = here.value(operation.inputs[0]), here.value(operation.outputs[0])
    if table is None or y is None or table.ndim != y.ndim:
        return
    for axis, (n, m) in enumerate(zip(table.shape, y.shape, strict=True)):
        step = operation.attributes["step"][axis]
        start = operation.attributes["start"][axis] or 0
        for d in (1, -1, 2, -2):
            first = start + d
            if n != m and step == 1 and first >= 0 and first + m <= n:

                def compute(read: Read, axis: int = axis, first: int = first, m: int = m) -> tuple:
                    where = list(zip(operation.attributes["start"], operation.attributes["stop"], strict=True))
                    cut = [slice(*pair) for pair in where]
                    cut[axis] = slice(first, first + m)
                    return (read(operation.inputs[0])[tuple(cut)],)

                yield Change(
                    "position_offset",
                    i,
                    compute,
                    f"rows are taken from {start} on",
                    f"rows are taken from {first} on",
                    0,
                )


@cause("label_order", "the order of the classes", "names sorted as text put 10 before 2; save the list with the model")
@cause("unit_order", "the order of the units of a layer", "permute the weights of the layer, or of the next one")
def unit_order(suspect: Suspect) -> Iterator[Change]:
    """Find a permutation of the units along one axis that makes a value one of the other side's."""
    here = view(suspect)
    outputs = set(here.graph.record.outputs.values())
    for i, operation in here.operations:
        y = here.output(i)
        if y is None or y.ndim < 2 or y.size > 500_000:
            continue
        for number, _ in here.theirs(y):
            theirs = np.asarray(suspect.read_other(number))
            for axis in range(1, y.ndim):
                order = permutation(y, theirs, axis)
                if order is None:
                    continue
                final = any(n in outputs for n in operation.outputs) or any(
                    n in outputs for j in here.after(operation.outputs) for n in here.graph.operations[j].outputs
                )
                as_text = sorted(range(len(order)), key=str)
                moved = ", ".join(map(str, order[:12])) + (" ..." if len(order) > 12 else "")
                plain, text = (
                    "units stand in the order of their numbers",
                    "units stand in the order of their numbers as text",
                )
                mine, there = "units stand in the order 0, 1, 2, ...", f"units stand in the order {moved}"
                if order == as_text:
                    mine, there = plain, text
                elif order == np.argsort(as_text).tolist():
                    mine, there = text, plain
                yield Change(
                    "label_order" if final or text in (mine, there) else "unit_order",
                    i,
                    here.with_output(i, lambda y, o=order, a=axis: np.take(y, o, axis=a)),
                    mine,
                    there,
                    0,
                )


def permutation(y: NDArray, theirs: NDArray, axis: int) -> list[int] | None:
    """Return the order of the units of y along an axis in which another array has them, unless it is their own."""
    n = y.shape[axis]
    if n < 2:
        return None
    mine = _signature(y, axis)
    for other in range(theirs.ndim):
        if theirs.shape[other] != n:
            continue
        wanted = _signature(theirs, other)
        distance = np.abs(wanted[:, None] - mine[None]).max(axis=-1)
        size = max(float(np.abs(wanted).max()), 1e-300)
        order = distance.argmin(axis=1)
        if len(set(order.tolist())) == n and distance[np.arange(n), order].max() <= 1e-9 * size:
            return None if (order == np.arange(n)).all() else [int(k) for k in order]
    return None


def _signature(y: NDArray, axis: int) -> NDArray:
    """Return numbers that tell the units along an axis apart, whatever the order of the rest."""
    rows = np.moveaxis(y, axis, 0).reshape(y.shape[axis], -1).astype(np.float64)
    return np.stack([rows.sum(1), np.abs(rows).sum(1), rows.min(1), rows.max(1)], axis=1)


@cause("time_scale", "the unit of time", "t in 0 .. 999, or in 0 .. 1, on both sides")
def time_scale(suspect: Suspect) -> Iterator[Change]:
    """Scale an input that leads to sines and cosines, or count it from another number."""
    here = view(suspect)
    for i, operation in here.operations:
        if not here.leads_to(i, _TRIGONOMETRIC, 5):
            continue
        for k, n in enumerate(operation.inputs):
            x = here.value(n)
            if x is None or x.dtype.kind not in "iuf" or not depends_on_input(here, n):
                continue
            for c in (1000.0, 1e-3, 999.0, 1 / 999, 2 * math.pi, 1 / (2 * math.pi)):
                yield Change(
                    "time_scale",
                    i,
                    here.with_input(i, k, lambda t, c=c: t * c),
                    "the time is t",
                    f"the time is {shown(c)} t",
                )
            for d in (1, -1):
                yield Change(
                    "time_scale",
                    i,
                    here.with_input(i, k, lambda t, d=d: t + np.asarray(d, t.dtype)),
                    "the time is t",
                    f"the time is t {'+' if d > 0 else '-'} 1",
                )
