"""Causes in what is connected with what: branches, complements, the source of a value, the order of a sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff.causes.change import Change, Read, Suspect, cause
from diffusion_core.parity.diff.causes.search import described
from diffusion_core.parity.diff.causes.view import ELEMENTWISE, View, view
from diffusion_core.parity.diff.layouts import natural_orders

_STEPS = 6
_MOST_AXES = 7
_BEFORE = 3  # operations between a sequence and the region
_APPLYING = ("matmul", "einsum", "conv", "conv_transpose", "gather", "take_along")
_MOVES = ("reshape", "transpose", "cast", "identity", "expand")


@cause(
    "activation_branch",
    "the branch of a gated product that has the activation",
    "SwiGLU is silu(gate) * up, GLU is a * sigmoid(b): activate the same branch on both sides",
)
def activation_branch(suspect: Suspect) -> Iterator[Change]:
    """Compute f(y) x in place of f(x) y."""
    here = view(suspect)
    for j, operation in here.operations:
        if operation.kind != "multiply" or len(operation.inputs) != 2:
            continue
        for one, other in (operation.inputs, operation.inputs[::-1]):
            if here.is_parameter(other):
                continue
            for root in _roots(here, one, other):
                last = here.graph.producer[one]

                def compute(read: Read, root: int = root, other: int = other, last: int = last) -> tuple:
                    return (here.rerun(read, {root: read(other)}, last)[0] * read(root),)

                yield Change(
                    "activation_branch",
                    j,
                    compute,
                    "the activation is on one branch",
                    "the activation is on the other branch",
                    1,
                )


def _roots(here: View, number: int, other: int) -> list[int]:
    """Return values of the shape of another from which elementwise steps lead to a value."""
    found, todo = [], [number]
    shape = np.shape(here.value(other))
    for _ in range(_STEPS):
        following: list[int] = []
        for n in todo:
            i = here.graph.producer.get(n)
            if i is None or here.graph.operations[i].kind not in ELEMENTWISE:
                continue
            inputs = here.graph.operations[i].inputs
            following += [m for m in inputs if m != other and not here.is_parameter(m)]
        todo = list(dict.fromkeys(following))
        # Steps of one root: what lies between is made from it alone.
        if len(todo) == 1 and np.shape(here.value(todo[0])) == shape:
            found.append(todo[0])
    return found


@cause(
    "gate_meaning",
    "what a gate means: it, or one minus it",
    "torch and Keras compute z * h + (1 - z) * n in a GRU; a mask may say what is kept, or what is left out",
)
def gate_meaning(suspect: Suspect) -> Iterator[Change]:
    """Exchange a gate and one minus the gate where both are used."""
    here = view(suspect)
    for j, joining in here.operations:
        if joining.kind not in ("add", "subtract") or len(joining.inputs) != 2:
            continue
        one, other = (_factors(here, n) for n in joining.inputs)
        for x in one:
            for y in other:
                if not (_is_rest(here, x, y) or _is_rest(here, y, x)):
                    continue

                def compute(read: Read, x: int = x, y: int = y, j: int = j) -> tuple:
                    return tuple(here.rerun(read, {x: read(y), y: read(x)}, j))

                yield Change("gate_meaning", j, compute, "the gate is z", "the gate is 1 - z", 0)


def _factors(here: View, number: int) -> tuple[int, ...]:
    """Return what a product is made of."""
    i = here.graph.producer.get(number)
    return here.graph.operations[i].inputs if i is not None and here.graph.operations[i].kind == "multiply" else ()


def _is_rest(here: View, number: int, gate: int) -> bool:
    """Return whether a value is one minus another."""
    i = here.graph.producer.get(number)
    operation = here.graph.operations[i] if i is not None else None
    if operation is None or operation.kind != "subtract" or operation.inputs != (gate,):
        return False
    return operation.attributes.get("scalar") == 1 and bool(operation.attributes.get("reverse"))


@cause(
    "sequence_order",
    "the order in which a sequence is read",
    "go_backwards=True reads from the end; flip in torch; an output of such a layer has to be turned round again",
)
def sequence_order(suspect: Suspect) -> Iterator[Change]:
    """Hand the parts of a sequence out from its end."""
    here = view(suspect)
    for k in _behind(here, suspect.region):
        operation = here.graph.operations[k]
        shapes = {np.shape(here.value(n)) for n in operation.outputs}
        if operation.kind not in ("unstack", "split") or len(operation.outputs) < 2 or len(shapes) > 1:
            continue
        outputs = operation.outputs

        def compute(read: Read, outputs: tuple[int, ...] = outputs) -> tuple:
            return tuple(read(n) for n in reversed(outputs))

        yield Change(
            "sequence_order", k, compute, "a sequence is read from its start", "a sequence is read from its end", 1
        )


def _behind(here: View, region: Iterable[int]) -> list[int]:
    """Return the operations of a region and those shortly before it, in order."""
    found, latest = set(region), set(region)
    for _ in range(_BEFORE):
        producers = {here.graph.producer.get(n) for i in latest for n in here.graph.operations[i].inputs}
        latest = {i for i in producers if i is not None} - found
        found |= latest
    return sorted(found)


@cause(
    "other_source",
    "a value that is made in another way before it is used",
    "compare what is handed to this operation on both sides",
)
def other_source(suspect: Suspect) -> Iterator[Change]:
    """Read what the other side reads at the operation that applies the same parameter.

    What this side reads is known to be right, since the other side has it, too; the other side goes on from another
    value, which this side may not have at all: a shifted sequence, a state that is not zero.
    """
    here = view(suspect)
    pairs = _same_uses(suspect)
    region = set(suspect.region)
    for mine, theirs in pairs.items():
        if not _known(suspect, mine):
            continue
        array, other = here.value(mine), np.asarray(suspect.read_other(theirs))
        if array is None or array.size != other.size or (array.dtype.kind in "iu") != (other.dtype.kind in "iu"):
            continue
        to_mine = _in_shape(other, array.shape)
        match = suspect.match(mine)
        if to_mine is None or (match is not None and match[0] == theirs):
            continue
        new = to_mine(other).astype(array.dtype)
        if np.array_equal(new, array):
            continue
        words = described(here, mine), _described_there(suspect, theirs)
        for i in sorted({j for j in here.graph.consumers.get(mine, ()) if j in region}):

            def compute(read: Read, i: int = i, mine: int = mine, new: NDArray = new) -> tuple:
                inputs = here.graph.operations[i].inputs
                return tuple(here.evaluate(i, [new if n == mine else read(n) for n in inputs]))

            yield Change("other_source", i, compute, f"{words[0]} is read", f"{words[1]} is read", 1.5)


@cause(
    "patch_order",
    "the order of the numbers within a patch",
    "flatten rows, columns and channels of a patch in one order: a convolution has channels, rows, columns",
)
def patch_order(suspect: Suspect) -> Iterator[Change]:
    """Merge the axes of each group that a reshape merges in another order, where the result is read."""
    here = view(suspect)
    for i, operation in here.operations:
        for k, number in enumerate(operation.inputs[:2]):
            made = here.graph.producer.get(number)
            if made is None or here.graph.operations[made].kind != "reshape":
                continue
            x, y = here.value(here.graph.operations[made].inputs[0]), here.value(number)
            if x is None or y is None or not 1 < y.ndim < x.ndim <= _MOST_AXES:
                continue
            groups = _merged(x.shape, y.shape)
            for axis, group in enumerate(groups or ()):
                for order in permutations(group) if 2 <= len(group) <= 4 else ():
                    if order == tuple(group):
                        continue
                    full = [a for g in groups for a in (order if g is group else g)]

                    def moved(array: NDArray, full: list[int] = full, shape: tuple = x.shape) -> NDArray:
                        return array.reshape(shape).transpose(full).reshape(array.shape)

                    words = [" ".join(map(str, each)) for each in (group, order)]
                    texts = (f"axis {axis} is made of the axes {each}" for each in words)
                    yield Change("patch_order", i, here.with_input(i, k, moved), *texts, 1)


def _merged(before: tuple[int, ...], after: tuple[int, ...]) -> list[list[int]] | None:
    """Return which axes a reshape merges into each axis, or None if it does more than that."""
    groups, axis = [], 0
    for size in after:
        group, product = [], 1
        while axis < len(before) and (product < size or not group):
            group.append(axis)
            product *= before[axis]
            axis += 1
        if product != size:
            return None
        groups.append(group)
    return groups if axis == len(before) else None


@cause("missing_steps", "steps that one side does not take", "take the same steps on both sides")
def missing_steps(suspect: Suspect) -> Iterator[Change]:
    """Use an earlier value of the same shape for the result of an operation: the steps between are left out."""
    here = view(suspect)
    for i, operation in here.operations:
        y = here.value(operation.outputs[0])
        if y is None or len(operation.outputs) != 1:
            continue
        found, latest, steps = set(operation.inputs), list(operation.inputs), [operation.kind]
        for _ in range(_STEPS):
            makers = [here.graph.operations[here.graph.producer[n]] for n in latest if n in here.graph.producer]
            steps += [each.kind for each in makers]
            latest = [n for each in makers for n in each.inputs if n not in found and not here.is_parameter(n)]
            found.update(latest)
            for n in latest:
                x = here.value(n)
                if x is None or x.shape != y.shape or x.dtype.kind != y.dtype.kind or x.ndim == 0:
                    continue
                words = ", ".join(dict.fromkeys(kind.replace("_", " ") for kind in steps if kind != "constant"))
                there = f"{words} are not done"
                yield Change("missing_steps", i, lambda read, n=n: (read(n),), f"{words} are done", there, 2)


def _same_uses(suspect: Suspect) -> dict[int, int]:
    """Return which value of the other side belongs to a value that is read beside a parameter."""
    uses = [_uses(graph, read) for graph, read in ((suspect.graph, suspect.read), (suspect.other, suspect.read_other))]
    region = set(suspect.region)
    found: dict[int, int] = {}
    for key, mine in uses[0].items():
        theirs = uses[1].get(key, [])
        if len(theirs) != len(mine):
            continue
        for (i, x), (_, y) in zip(mine, theirs, strict=True):
            if i in region:
                found.setdefault(x, y)
    return found


def _uses(graph: Any, read: Callable[[int], NDArray]) -> dict[tuple, list[tuple[int, int]]]:
    """Return, by the numbers of a parameter, the operations that apply it and what they read besides it, in order."""
    found: dict[tuple, list[tuple[int, int]]] = {}
    for i, operation in enumerate(graph.operations):
        if operation.kind not in _APPLYING or len(operation.inputs) < 2:
            continue
        named = {n: name for n in operation.inputs[:2] if (name := _parameter(graph, n)) is not None}
        data = [n for n in operation.inputs[:2] if n not in named]
        if len(named) == len(data) == 1:
            array = np.asarray(read(next(iter(named.values()))))
            key = (array.size, *(float(f"{x:.9g}") for x in (array.sum(), np.abs(array).max(initial=0))))
            found.setdefault(key, []).append((i, data[0]))
    return found


def _parameter(graph: Any, number: int) -> int | None:
    """Return the parameter that a value is, in whatever layout."""
    while number not in graph.names:
        i = graph.producer.get(number)
        if i is None or graph.operations[i].kind not in _MOVES or not graph.operations[i].inputs:
            return None
        number = graph.operations[i].inputs[0]
    return number


def _known(suspect: Suspect, number: int) -> bool:
    """Return whether the other side has a value, or it is an input or made of constants."""
    if suspect.match(number) is not None or number not in suspect.graph.producer:
        return True
    i = suspect.graph.producer[number]
    return not suspect.graph.operations[i].inputs


def _in_shape(other: NDArray, shape: tuple[int, ...]) -> Callable[[NDArray], NDArray] | None:
    """Return the most usual way to write an array in a shape."""
    if other.ndim == len(shape):
        order = next(iter(natural_orders(other.shape, shape)), None)
        return None if order is None else lambda array: array.transpose(order)
    return lambda array: array.reshape(shape)


def _described_there(suspect: Suspect, number: int) -> str:
    graph = suspect.other
    i = graph.producer.get(number)
    if i is None:
        return graph.names.get(number, "an input of the model" if number in graph.record.inputs else "a constant")
    operation = graph.operations[i]
    where = f" of {operation.layer}" if operation.layer else f" at {operation.source}" if operation.source else ""
    return f"the result of the {(operation.fused or operation.kind).replace('_', ' ')}{where}"
