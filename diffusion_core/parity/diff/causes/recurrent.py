"""Causes in recurrent layers: the order of the gates, and whether the reset gate comes before or after the product."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from diffusion_core.parity.diff.causes.change import Change, Read, Suspect, cause
from diffusion_core.parity.diff.causes.view import View, view
from diffusion_core.parity.diff.vocabulary import LAYOUT_KINDS

_ACTIVATIONS = ("sigmoid", "tanh", "hardsigmoid", "relu", "softsign")
_MOST_PARTS = 6
_LINEAR = (*LAYOUT_KINDS, "matmul", "einsum", "add", "bias_add", "identity")


def siblings(here: View) -> list[list[int]]:
    """Return groups of values of one shape that the region reads and that are made in the same way from one array."""
    groups: dict[tuple, list[int]] = {}
    for n in [*here.entries, *here.made]:
        array, i = here.number(n), here.graph.producer.get(n)
        if array is None or i is None:
            continue
        root, steps = n, 0
        while root in here.graph.producer and steps < 4:
            operation = here.graph.operations[here.graph.producer[root]]
            if operation.kind == "unstack" and len(operation.outputs) > _MOST_PARTS:
                break  # steps in time, or images
            if operation.kind in ("split", "unstack", "slice"):
                groups.setdefault((operation.inputs[0], array.shape), []).append(n)
                break
            if operation.kind not in (*_ACTIVATIONS, "add", "bias_add", "reshape", "transpose") or not operation.inputs:
                break
            root, steps = operation.inputs[0], steps + 1
    return [numbers for numbers in groups.values() if len(numbers) > 1]


@cause(
    "gate_order",
    "the order of the gates of a recurrent layer, or of the parts of a fused projection",
    "torch's LSTM has i f g o and its GRU r z n; Keras has i f c o and z r h",
)
def gate_order(suspect: Suspect) -> Iterator[Change]:
    """Exchange parts of one array, before or after their activations, up to where the other side's numbers come out."""
    here = view(replace(suspect, region=tuple(sorted({*suspect.region, *suspect.before}))))
    runs = 0
    for numbers in siblings(here):
        for mine, theirs in itertools.combinations(numbers[:8], 2):
            runs += 1
            if runs > 40:
                return
            yield from _exchanged(here, mine, theirs)


def _exchanged(here: View, one: int, other: int) -> Iterator[Change]:
    """Yield two values in each other's place, at operations whose result is then on the other side."""
    operations = here.after([one, other])[:16]
    for i in operations:

        def compute(read: Read, i: int = i, one: int = one, other: int = other) -> tuple:
            return tuple(here.rerun(read, {one: read(other), other: read(one)}, i))

        try:
            with np.errstate(all="ignore"):
                y = np.asarray(compute(here.suspect.read)[0])
        except (ValueError, IndexError, KeyError, TypeError):
            continue
        old = here.output(i)
        if y.dtype.kind == "f" and old is not None and not np.array_equal(y, old) and here.found(y):
            yield Change("gate_order", i, compute, *_parts(here, one, other), 0)


def _parts(here: View, one: int, other: int) -> tuple[str, str]:
    """Say which parts are exchanged."""
    places = []
    for n in (one, other):
        for _ in range(5):
            i = here.graph.producer.get(n)
            if i is None:
                break
            operation = here.graph.operations[i]
            if operation.kind in ("split", "unstack"):
                places.append(f"part {operation.outputs.index(n)} of {len(operation.outputs)}")
                break
            if operation.kind == "slice":
                places.append(f"the part from {max(operation.attributes['start'])} on")
                break
            n = operation.inputs[0]
    if len(places) < 2:
        return "the parts stand in one order", "the parts stand in another order"
    return f"{places[0]} and {places[1]} are used", f"{places[0]} and {places[1]} are used the other way round"


@cause(
    "reset_after",
    "whether the reset gate of a GRU is applied before or after the product with the state",
    "reset_after=True in Keras is what torch does: tanh(W x + r * (U h + b))",
)
def reset_after(suspect: Suspect) -> Iterator[Change]:
    """Apply a gate to what a product reads, in place of what it makes, or the other way round."""
    here = view(suspect)
    for j, operation in here.operations:
        if operation.kind != "multiply" or len(operation.inputs) != 2:
            continue
        for k in (0, 1):
            gate, made = operation.inputs[k], operation.inputs[1 - k]
            if here.leads_to(j, ("matmul", "einsum"), 1) and is_gate(here.graph, gate) and gated_later(suspect.other):
                yield Change(
                    "reset_after",
                    j,
                    lambda read, n=made: (read(n),),
                    "the gate comes before the product",
                    "the gate comes after the product",
                    0,
                )
            yield from _before(here, j, gate, made)
            yield from _after(here, j, gate, made)


def is_gate(graph: Any, number: int) -> bool:
    """Return whether a value comes from a sigmoid, perhaps through a part of it."""
    for _ in range(4):
        i = graph.producer.get(number)
        if i is None:
            return False
        if graph.operations[i].kind in ("sigmoid", "hardsigmoid", "clip"):
            return True
        if graph.operations[i].kind not in LAYOUT_KINDS:
            return False
        number = graph.operations[i].inputs[0]
    return False


def gated_later(graph: Any) -> bool:
    """Return whether a gate multiplies what a product has made, before a tanh."""
    for operation in graph.operations:
        if operation.kind != "multiply" or len(operation.inputs) != 2:
            continue
        for k in (0, 1):
            todo = [operation.inputs[1 - k]]
            for _ in range(5):
                makers = [graph.operations[graph.producer[n]] for n in todo if n in graph.producer]
                if any(o.kind in ("matmul", "einsum") for o in makers) and is_gate(graph, operation.inputs[k]):
                    return True
                todo = [n for o in makers if o.kind in _LINEAR for n in o.inputs]
    return False


def _before(here: View, j: int, gate: int, made: int) -> Iterator[Change]:
    """Yield r * (U h + b) as U (r * h) + b."""
    r = here.number(gate)
    for state in _states(here, made):
        h = here.number(state)
        if r is None or h is None or h.shape != r.shape:
            continue

        def compute(read: Read, state: int = state) -> tuple:
            last = here.graph.producer[made]
            return (
                tuple(here.rerun(read, {state: read(gate) * read(state)}, last)[:1])
                if _single(here, made)
                else (_output(here, read, {state: read(gate) * read(state)}, made),)
            )

        yield Change(
            "reset_after", j, compute, "the gate comes after the product", "the gate comes before the product", 1
        )


def _single(here: View, number: int) -> bool:
    return len(here.graph.operations[here.graph.producer[number]].outputs) == 1


def _output(here: View, read: Read, given: dict, number: int):
    i = here.graph.producer[number]
    outputs = here.rerun(read, given, i)
    return outputs[here.graph.operations[i].outputs.index(number)]


def _states(here: View, number: int) -> list[int]:
    """Return what products read from which a value comes by linear steps."""
    found, todo = [], [number]
    for _ in range(8):
        following = []
        for n in todo:
            i = here.graph.producer.get(n)
            if i is None or here.graph.operations[i].kind not in _LINEAR:
                continue
            operation = here.graph.operations[i]
            for m in operation.inputs:
                if here.parameter(m) is None:
                    if operation.kind in ("matmul", "einsum"):
                        found.append(m)
                    following.append(m)
        todo = following
    return list(dict.fromkeys(found))


def _after(here: View, j: int, gate: int, state: int) -> Iterator[Change]:
    """Yield U (r * h) + b as r * (U h + b), at the operations that follow from the product."""
    product = here.graph.operations[j].outputs[0]
    r = here.number(gate)
    for i in here.after([product])[:8]:
        operation = here.graph.operations[i]
        y = here.output(i)
        if operation.kind not in _LINEAR:
            continue
        if y is None or r is None or y.shape != r.shape:
            continue

        def compute(read: Read, i: int = i) -> tuple:
            outputs = here.rerun(read, {product: read(state)}, i)
            return (read(gate) * outputs[0], *outputs[1:])

        yield Change(
            "reset_after", i, compute, "the gate comes before the product", "the gate comes after the product", 1
        )
