"""The search of last resort: what one operation could have been if nothing of the catalogue fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff import operations as rules
from diffusion_core.parity.diff.causes.change import Change, Read, Suspect, cause
from diffusion_core.parity.diff.causes.view import View, view

_ARITHMETIC = ("add", "subtract", "multiply", "divide", "maximum", "minimum", "power")
_CHEAP = (*_ARITHMETIC, "where", "concat", "matmul", "softmax", "bias_add", "mean", "sum", "gather")
_MOST_VALUES, _MOST_RUNS = 60, 600


@cause("other_operation", "another operation on the same arrays", "use the same operation on both sides")
def other_operation(suspect: Suspect) -> Iterator[Change]:
    """Add in place of multiplying, and so on."""
    here = view(suspect)
    for i, operation in here.operations:
        if operation.kind not in _ARITHMETIC:
            continue
        for kind in _ARITHMETIC:
            if kind != operation.kind:
                other = replace(operation, kind=kind)
                yield Change(
                    "other_operation",
                    i,
                    lambda read, o=other: tuple(rules.evaluate(o, [read(n) for n in o.inputs])),
                    f"the operation is {operation.kind}",
                    f"the operation is {kind}",
                    2,
                )


@cause("operand_order", "two inputs in the other order", "a - b is not b - a, nor is a @ b what b @ a is")
def operand_order(suspect: Suspect) -> Iterator[Change]:
    """Exchange two inputs."""
    here = view(suspect)
    for i, operation in here.operations:
        if operation.kind in ("add", "multiply", "maximum", "minimum", "concat", "stack"):
            continue
        if operation.attributes.get("scalar") is not None:
            reverse = not operation.attributes.get("reverse", False)
            compute = here.with_attributes(i, reverse=reverse)
        elif len(operation.inputs) >= 2:
            a, b, *_ = operation.inputs[-2:] if operation.kind == "where" else operation.inputs[:2]
            swap = {a: b, b: a}

            def compute(read: Read, i: int = i, swap: dict[int, int] = swap) -> tuple:
                return tuple(here.evaluate(i, [read(swap.get(n, n)) for n in here.graph.operations[i].inputs]))

        else:
            continue
        words = operation.kind.replace("_", " ")
        yield Change("operand_order", i, compute, f"the {words} is of a and b", f"the {words} is of b and a", 1)


@cause("missing_operation", "an operation that one side does not have", "do the step on both sides or on neither")
def missing_operation(suspect: Suspect) -> Iterator[Change]:
    """Leave an operation out: take one of its inputs for its result."""
    here = view(suspect)
    for i, operation in here.operations:
        y = here.output(i)
        if y is None or len(operation.outputs) != 1:
            continue
        for n in dict.fromkeys(operation.inputs):
            x = here.number(n)
            if x is not None and x.shape == y.shape:
                words = operation.kind.replace("_", " ")
                residual = (
                    operation.kind == "add"
                    and len(operation.inputs) == 2
                    and not any(here.is_parameter(m) for m in operation.inputs)
                )
                yield Change(
                    "missing_residual" if residual else "missing_operation",
                    i,
                    lambda read, n=n: (read(n),),
                    "two branches are added" if residual else f"{words} is applied",
                    "one of two branches is used" if residual else f"{words} is not applied",
                    1 if residual else 2,
                )


def earlier(here: View, i: int, shape: tuple[int, ...]) -> list[int]:
    """Return values of a shape from before an operation, the latest first."""
    found = []
    for j in range(i - 1, -1, -1):
        for n in here.graph.operations[j].outputs:
            array = here.number(n)
            if array is not None and array.shape == shape and not here.is_parameter(n):
                found.append(n)
        if len(found) >= _MOST_VALUES:
            break
    given = [n for n in here.graph.record.inputs if (a := here.number(n)) is not None and a.shape == shape]
    return list(dict.fromkeys([*found, *given]))


@cause(
    "missing_residual", "a residual connection that one side does not have", "add the input of the block to its result"
)
@cause(
    "missing_product",
    "a product with another value that one side does not have",
    "multiply on both sides or on neither",
)
@cause("other_input", "an operation that reads another value", "pass the same value on both sides")
def other_values(suspect: Suspect) -> Iterator[Change]:
    """Add or multiply an earlier value, or read it in place of another, where the other side's numbers come out."""
    here = view(suspect)
    runs = 0
    for i, operation in here.operations:
        y = here.output(i)
        if y is None or y.size < 4:
            continue
        for u in earlier(here, i, y.shape):
            array = here.number(u)
            runs += 1
            if runs > _MOST_RUNS:
                return
            if array is None:
                continue
            joined: list[tuple[str, str, Callable[[NDArray, NDArray], NDArray]]] = [
                ("missing_residual", "added", np.add),
                ("missing_residual", "subtracted", np.subtract),
                ("missing_product", "multiplied by", np.multiply),
            ]
            for kind, words, function in joined:
                with np.errstate(all="ignore"):
                    z = function(y, array)
                if not np.array_equal(z, y) and here.found(z):
                    value = described(here, u)
                    texts = f"{value} is not {words}", f"{value} is {words}"
                    if words == "multiplied by":
                        texts = "the result is not multiplied", f"the result is multiplied by {value}"
                    yield Change(kind, i, _joined(here, i, u, function), *texts, 1)
        if operation.kind not in _CHEAP:
            continue
        for k, n in enumerate(operation.inputs):
            x = here.number(n)
            if x is None or here.is_parameter(n):
                continue
            for u in earlier(here, i, x.shape):
                runs += 1
                if runs > _MOST_RUNS:
                    return
                if u == n:
                    continue
                compute = here.with_input(i, k, lambda x, u=u: here.value(u))  # type: ignore[arg-type, return-value]
                try:
                    z = np.asarray(compute(suspect.read)[0])
                except (ValueError, IndexError, TypeError, rules.Unsupported):
                    continue
                if z.dtype.kind == "f" and not np.array_equal(z, y) and here.found(z):
                    reading = _reading(here, i, k, u)
                    yield Change("other_input", i, reading, *(f"{described(here, m)} is read" for m in (n, u)), 1)


def _joined(here: View, i: int, u: int, function: Callable[[NDArray, NDArray], NDArray]):
    def compute(read: Read) -> tuple:
        outputs = here.evaluate(i, [read(n) for n in here.graph.operations[i].inputs])
        return (function(outputs[0], read(u)), *outputs[1:])

    return compute


def _reading(here: View, i: int, k: int, u: int):
    def compute(read: Read) -> tuple:
        inputs = [read(n) for n in here.graph.operations[i].inputs]
        inputs[k] = read(u)
        return tuple(here.evaluate(i, inputs))

    return compute


def described(here: View, number: int) -> str:
    """Say where a value comes from."""
    i = here.graph.producer.get(number)
    if i is None:
        return (
            "an input of the model" if number in here.graph.record.inputs else (here.parameter(number) or "a constant")
        )
    operation = here.graph.operations[i]
    words = (operation.fused or operation.kind).replace("_", " ")
    where = f" of {operation.layer}" if operation.layer else f" at {operation.source}" if operation.source else ""
    return f"the result of the {words}{where}"


@cause(
    "transposed",
    "two axes that are exchanged",
    "transpose on both sides or on neither; a matrix is (in, out) in TensorFlow",
)
@cause("reversed", "an axis that is reversed", "flip on both sides or on neither")
def turned(suspect: Suspect) -> Iterator[Change]:
    """Exchange the last two axes of an input, or reverse an axis."""
    here = view(suspect)
    for i, operation in here.operations:
        for k, n in enumerate(operation.inputs):
            x = here.value(n)
            if x is None or x.ndim == 0 or x.size > 500_000:
                continue
            name = here.parameter(n) or "an array"
            if x.ndim >= 2 and x.shape[-1] == x.shape[-2]:
                yield Change(
                    "transposed",
                    i,
                    here.with_input(i, k, lambda x: np.swapaxes(x, -1, -2)),
                    f"{name} is used as it is",
                    f"the last two axes of {name} are exchanged",
                    3,
                )
            for axis in range(x.ndim):
                if x.shape[axis] > 1:
                    yield Change(
                        "reversed",
                        i,
                        here.with_input(i, k, lambda x, a=axis: np.flip(x, a)),
                        f"{name} is used as it is",
                        f"axis {axis} of {name} is reversed",
                        3,
                    )


@cause("parameter", "a parameter with other numbers", "load the same weights on both sides")
def parameter(suspect: Suspect) -> Iterator[Change]:
    """Use the other side's parameter."""
    here = view(suspect)
    weight = getattr(suspect, "weight", None)
    for i, operation in here.operations:
        for k, n in enumerate(operation.inputs):
            other = weight(n) if weight is not None and n in here.graph.names else None
            if other is not None and other.shape == np.shape(here.value(n)):
                yield Change(
                    "parameter",
                    i,
                    here.with_input(i, k, lambda x, o=other: o.astype(x.dtype)),
                    f"{here.graph.names[n]} has its own numbers",
                    f"{here.graph.names[n]} has other numbers",
                    0,
                    here.graph.names[n],
                )
