"""A recorded pass as a graph that NumPy can run again.

Both sides are evaluated here by the same functions in float64, from their inputs and parameters. So what an operation
of a framework does differently from its definition (a constant in float32, a fused kernel) is not mistaken for a
difference between the models; it is measured by itself (`Graph.deviation`).

A graph has only simple operations (`operations.lower`), only those that an output needs, and numbers instead of values
of one element that depend on nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff import operations as rules
from diffusion_core.parity.diff.findings import Place
from diffusion_core.parity.diff.meant_numbers import with_meant_numbers
from diffusion_core.parity.diff.recording import Operation, Pass
from diffusion_core.parity.diff.times import time_of
from diffusion_core.parity.diff.vocabulary import BINARY, COMPOSITE

__all__ = ["Compute", "Graph", "relative", "to_graph"]

# An operation whose recorded result is further from its definition than this is not understood, and is taken as it is.
# A framework's own float32 constants in float64 cost at most 1e-7 or so.
NOT_UNDERSTOOD = {8: 1e-5, 4: 1e-2}
# What rounding alone does to a result from the inputs of the model up to here.
ROUNDING = {8: 1e-12, 4: 1e-6}


# From a function that reads values, the outputs of an operation.
Compute = Callable[[Callable[[int], NDArray]], Sequence[NDArray]]


@dataclass(frozen=True)
class Graph:
    """One pass, ready to be run again.

    Attributes:
        record: the pass.
        operations: simple ones, in order.
        values: every value, evaluated from the inputs; recorded ones where an operation cannot be evaluated.
        producer: the index of the operation that makes a value.
        consumers: the indices of the operations that read it.
        names: parameters and buffers by value number.
        opaque: indices of operations that are taken as they were recorded.
        deviation: by index, how far the recorded result is from the definition, relative.
        lifted: whether the pass was recorded in float32 and is evaluated in float64.
        changes: operations that are computed in another way, by index.
    """

    record: Pass
    operations: tuple[Operation, ...]
    values: dict[int, NDArray]
    producer: Mapping[int, int]
    consumers: Mapping[int, tuple[int, ...]]
    names: Mapping[int, str]
    opaque: frozenset[int] = frozenset()
    deviation: Mapping[int, float] = field(default_factory=dict)
    lifted: bool = False
    changes: Mapping[int, Compute] = field(default_factory=dict)

    def evaluate(self, index: int, inputs: Sequence[NDArray]) -> tuple[NDArray, ...]:
        """Return the outputs of an operation for other inputs; raise `Unsupported` if it cannot be evaluated."""
        return evaluate(self.operations[index], inputs, self.lifted)

    def place(self, index: int, timed: bool = True) -> Place:
        """Return where an operation is, and, unless that is left out, which time it runs there."""
        operation = self.operations[index]
        kind = operation.fused or operation.kind
        time = time_of(self.record, operation, self.operations, index) if timed else ""
        return Place(operation.layer, operation.source, operation.code, operation.native, kind, time=time)

    def changed(self, changes: Mapping[int, Compute], following: Iterable[int]) -> Graph:
        """Return the graph with some operations computed in another way, and new values of what follows from them."""
        made = self.run(sorted({*following, *changes}), self.values.__getitem__, changes)
        return replace(self, values={**self.values, **made}, changes={**self.changes, **changes})

    def evaluate_other(self, index: int, inputs: Sequence[NDArray]) -> tuple[NDArray, ...]:
        """Evaluate an operation on arrays that may have other sizes than the recorded ones."""
        operation = self.operations[index]
        before = np.shape(self.values[operation.inputs[0]]) if operation.inputs else ()
        if operation.kind != "reshape" or inputs[0].size == math.prod(before):
            return self.evaluate(index, inputs)
        shape = adapted_shape(before, np.shape(self.values[operation.outputs[0]]), inputs[0].shape)
        return (inputs[0].reshape(shape),)

    def run(
        self,
        indices: Iterable[int],
        read: Callable[[int], NDArray],
        changed: Mapping[int, Compute],
    ) -> dict[int, NDArray]:
        """Run some operations again and return what they made.

        Args:
            indices: in order.
            read: values that these operations do not make.
            changed: other ways to compute an operation, by index, besides `changes`.
        """
        changed = {**self.changes, **changed}
        made: dict[int, NDArray] = {}

        def value(number: int) -> NDArray:
            return made[number] if number in made else read(number)

        for i in indices:
            operation = self.operations[i]
            if i in changed:
                outputs = changed[i](value)
            elif any(number in made for number in operation.inputs):
                outputs = self.evaluate_other(i, [value(number) for number in operation.inputs])
            else:
                continue
            made.update(zip(operation.outputs, outputs, strict=False))
        return made


def adapted_shape(before: Sequence[int], after: Sequence[int], now: Sequence[int]) -> list[int]:
    """Return the shape that a reshape from `before` to `after` gives to an array of the shape `now`.

    Axes are split and merged as before: (2, 24, 4, 5) to (2, 4, 6, 20) makes (2, 4, 6, 30) of (2, 24, 5, 6).

    Raises:
        ValueError: an axis that is split has another size.
    """
    if len(before) != len(now):
        raise ValueError(f"{len(now)} axes where there were {len(before)}")
    shape: list[int] = []
    i = j = 0
    while i < len(before) and j < len(after):
        start, first, size, target = i, j, before[i], after[j]
        i, j = i + 1, j + 1
        while size != target:
            if size < target:
                size, i = size * before[i], i + 1
            else:
                target, j = target * after[j], j + 1
        old, new, made = list(before[start:i]), list(now[start:i]), list(after[first:j])
        if old == new or made == old:
            shape += made if old == new else new
        elif len(made) == 1:
            shape.append(math.prod(new))
        else:
            raise ValueError(f"an axis that was split into {made} has another size")
    if any(n != 1 for n in now[i:]):
        raise ValueError("an axis of one element has another size")
    return [*shape, *after[j:]]


def evaluate(operation: Operation, inputs: Sequence[NDArray], lifted: bool) -> tuple[NDArray, ...]:
    """Evaluate an operation; with `lifted`, a cast to float32 or float64 changes nothing."""
    if lifted and operation.kind == "cast" and operation.attributes["dtype"] in ("float32", "float64"):
        return (inputs[0].astype(np.float64),)
    with np.errstate(all="ignore"):
        outputs = rules.evaluate(operation, inputs)
    return tuple(lift(array) for array in outputs) if lifted else tuple(outputs)


def lift(array: NDArray) -> NDArray:
    """Return float32 numbers as float64, and all others as they are."""
    return array.astype(np.float64) if array.dtype == np.float32 else np.asarray(array)


def relative(a: NDArray, b: NDArray) -> float:
    """Return the largest difference relative to the largest number; inf for other shapes, and for NaN on one side."""
    if a.shape != b.shape:
        return float("inf")
    if a.size == 0:
        return 0.0
    if a.dtype.kind not in "fc":
        return float(np.any(a != b)) if b.dtype.kind not in "fc" else relative(a.astype(b.dtype), b)
    with np.errstate(all="ignore"):
        worst = np.max(np.abs(a - b))
        size = np.max(np.abs(b))
    if worst < np.inf and size < np.inf:
        return float(worst / size) if size > 0 else float("inf") if worst > 0 else 0.0
    with np.errstate(all="ignore"):
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        difference = np.where(same, 0.0, np.abs(a - b))
        size = np.max(np.where(np.isfinite(b), np.abs(b), 0.0))
    worst = np.max(difference)
    if not np.isfinite(worst):
        return float("inf")
    return float(worst / size) if size > 0 else float(worst > 0) * float("inf") if worst > 0 else 0.0


def to_graph(record: Pass) -> Graph:
    """Lower a pass, drop what no output needs, and evaluate it."""
    lifted = record.precision is np.float32
    operations = lowered(record)
    operations = needed(operations, record.outputs.values())
    recorded = {n: lift(array) if lifted else np.asarray(array) for n, array in record.values.items()}
    operations = with_numbers(operations, record, recorded)
    operations = tuple(rules.roles(with_meant_numbers(operations, lifted)))
    producer = {number: i for i, operation in enumerate(operations) for number in operation.outputs}
    consumers: dict[int, list[int]] = {}
    for i, operation in enumerate(operations):
        for number in dict.fromkeys(operation.inputs):
            consumers.setdefault(number, []).append(i)
    names = {number: name for name, number in (*record.parameters.items(), *record.buffers.items())}
    values = {number: array for number, array in recorded.items() if number not in producer}
    opaque, deviation = evaluate_all(operations, values, recorded, lifted)
    return Graph(
        record,
        operations,
        values,
        producer,
        {number: tuple(found) for number, found in consumers.items()},
        names,
        frozenset(opaque),
        deviation,
        lifted,
    )


def lowered(record: Pass) -> tuple[Operation, ...]:
    """Write fused operations as simple ones, and other forms of a formula as one."""
    numbers = [*record.values, *(n for o in record.operations for n in (*o.inputs, *o.outputs))]
    following = max(numbers, default=0) + 1

    def fresh() -> int:
        nonlocal following
        following += 1
        return following

    simple: list[Operation] = []
    for operation in with_meant_numbers(record.operations, record.precision is np.float32):
        if operation.kind in COMPOSITE and all(n in record.values for n in operation.inputs):
            operation = rules.with_mask_type(operation, lambda number: record.values[number].dtype == bool)
            simple.extend(rules.lower(operation, fresh, lambda number: record.values[number].shape))
        else:
            simple.append(operation)
    return tuple(rules.one_form(simple, fresh, frozenset(record.outputs.values())))


def needed(operations: Sequence[Operation], outputs: Iterable[int]) -> tuple[Operation, ...]:
    """Keep the operations that an output needs."""
    wanted, kept = set(outputs), []
    for operation in reversed(operations):
        if wanted & set(operation.outputs):
            wanted |= set(operation.inputs)
            kept.append(operation)
    return tuple(reversed(kept))


def with_numbers(
    operations: Sequence[Operation], record: Pass, recorded: Mapping[int, NDArray]
) -> tuple[Operation, ...]:
    """Write values of one element that depend on nothing as numbers of the operations that read them."""
    given = {*record.inputs, *record.parameters.values(), *record.buffers.values()}
    made = {number for operation in operations for number in operation.outputs}
    free = {number for number in recorded if number not in given and number not in made}
    for operation in operations:
        if operation.kind != "random" and all(number in free for number in operation.inputs):
            free |= set(operation.outputs)
    numbers = {
        n: recorded[n].reshape(-1)[0].item()
        for n in free
        if n in recorded and recorded[n].size == 1 and recorded[n].dtype.kind in "fiub"
    }
    result = []
    for operation in operations:
        if operation.kind in BINARY and len(operation.inputs) == 2:
            left, right = operation.inputs
            if right in numbers and left not in numbers:
                attributes = {**operation.attributes, "scalar": numbers[right], "reverse": False}
                operation = replace(operation, inputs=(left,), attributes=attributes)
            elif left in numbers and right not in numbers:
                attributes = {**operation.attributes, "scalar": numbers[left], "reverse": True}
                operation = replace(operation, inputs=(right,), attributes=attributes)
        result.append(operation)
    return needed(result, record.outputs.values())


def evaluate_all(
    operations: Sequence[Operation], values: dict[int, NDArray], recorded: Mapping[int, NDArray], lifted: bool
) -> tuple[set[int], dict[int, float]]:
    """Evaluate every operation in order, into `values`; return those that are taken as recorded, and the deviations."""
    opaque: set[int] = set()
    deviation: dict[int, float] = {}
    for i, operation in enumerate(operations):
        try:
            outputs = evaluate(operation, [values[n] for n in operation.inputs], lifted)
        except (rules.Unsupported, KeyError):
            outputs = None
        known = [number for number in operation.outputs if number in recorded]
        if outputs is not None and known:
            deviation[i] = deviation_of(operation, outputs, recorded)
            # Where earlier operations deviate, this one is measured on what they gave in the framework.
            if deviation[i] > ROUNDING[4 if lifted else 8]:
                exact = evaluate_recorded(operation, recorded, values, outputs, lifted)
                deviation[i] = deviation_of(operation, exact, recorded)
            if deviation[i] > NOT_UNDERSTOOD[4 if lifted else 8]:
                outputs = None
        if outputs is None:
            opaque.add(i)
            outputs = [recorded[n] if n in recorded else np.full((), np.nan) for n in operation.outputs]
        values.update(zip(operation.outputs, outputs, strict=False))
    return opaque, deviation


def deviation_of(operation: Operation, outputs: Sequence[NDArray], recorded: Mapping[int, NDArray]) -> float:
    """Return how far outputs are from the recorded ones; 0 for parts of fused operations, which have none."""
    pairs = zip(operation.outputs, outputs, strict=False)
    return max((relative(array, recorded[n]) for n, array in pairs if n in recorded), default=0.0)


def evaluate_recorded(
    operation: Operation,
    recorded: Mapping[int, NDArray],
    values: Mapping[int, NDArray],
    outputs: Sequence[NDArray],
    lifted: bool,
) -> Sequence[NDArray]:
    """Evaluate an operation on its recorded inputs, if those differ from the evaluated ones."""
    if all(n not in recorded or recorded[n] is values[n] for n in operation.inputs):
        return outputs
    try:
        return evaluate(operation, [recorded.get(n, values[n]) for n in operation.inputs], lifted)
    except rules.Unsupported:
        return outputs
