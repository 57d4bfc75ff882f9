"""Causes in the precision of a part: float32 or less inside a float64 model, numbers rounded to float32, integers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff import operations as rules
from diffusion_core.parity.diff.causes.change import Change, Read, Suspect, cause
from diffusion_core.parity.diff.causes.constants import number_of
from diffusion_core.parity.diff.causes.view import View, shown, view
from diffusion_core.parity.diff.operations.elementwise import to_dtype

_UNBOUNDED = "numbers have no bound"
_ROUNDED_DOWN = ("the quotient is not rounded", "the quotient is rounded down")
_NARROW = ("float32", "float16", "bfloat16")


@cause(
    "time_embedding_precision",
    "the precision of a timestep embedding",
    "compute it in float64 and convert the result, as t * frequency loses digits in float32",
)
@cause(
    "precision",
    "a part that is computed in a lower precision",
    "convert before or after the same operation on both sides",
)
def precision(suspect: Suspect) -> Iterator[Change]:
    """Compute the region in float64, from where it is converted."""
    here = view(suspect)
    numbers = [
        float(o.attributes["scalar"])
        for o in suspect.other.operations
        if isinstance(o.attributes.get("scalar"), int | float)
    ]
    for i, operation in here.operations:
        if operation.kind == "cast" and str(operation.attributes["dtype"]) in _NARROW:
            x = here.value(operation.inputs[0])
            if x is not None and x.dtype.kind == "f":
                yield Change(
                    "precision",
                    i,
                    lambda read, n=operation.inputs[0]: (read(n).astype(np.float64),),
                    f"numbers are converted to {operation.attributes['dtype']}",
                    "numbers are not converted",
                    0,
                )
        y = here.output(i)
        narrow = [n for n in operation.inputs if (a := here.value(n)) is not None and a.dtype == np.float32]
        if y is None or not (narrow or y.dtype == np.float32):
            continue
        last = y.dtype == np.float64 or not any(
            (out := here.output(j)) is not None and out.dtype == np.float32
            for n in operation.outputs
            for j in here.readers(n)
        )
        if last:
            part = [here.graph.operations[j].kind for j in narrow_part(here, i)]
            kind = "time_embedding_precision" if {"sin", "cos"} & set(part) else "precision"
            yield Change(
                kind,
                i,
                lambda read, i=i: (widened(here, read, i, numbers),),
                "the part is computed in float32",
                "the part is computed in float64",
                0,
            )
    for i, operation in here.operations:
        y = here.output(i)
        if y is None or y.dtype != np.float64 or operation.kind == "cast":
            continue
        theirs = {str(suspect.other.operations[j].attributes.get("dtype")) for j in suspect.other_region}
        for dtype in [d for d in _NARROW if d in theirs]:
            yield Change(
                "precision",
                i,
                _narrowed(here, i, dtype),
                "the part is computed in float64",
                f"the part is computed in {dtype}",
            )


def widened(here: View, read: Read, last: int, numbers: list[float]) -> NDArray:
    """Run what a float32 value is made of again in float64; numbers rounded to float32 are the other side's."""
    arrays: dict[int, NDArray] = {}
    result = read(here.graph.operations[last].outputs[0])
    given = {*here.graph.record.inputs, *here.graph.names}
    free = {n for i in narrow_part(here, last) for n in here.graph.operations[i].inputs} - given
    makers = {n: here.graph.operations[here.graph.producer[n]] for n in free if n in here.graph.producer}
    free = {n for n in free if n not in makers or not makers[n].inputs}  # made by the code
    for i in narrow_part(here, last):
        operation = here.graph.operations[i]
        inputs = [arrays[n] if n in arrays else read(n) for n in operation.inputs]
        wide = [_unrounded(here, x) if n in free else x for n, x in zip(operation.inputs, inputs, strict=True)]
        wide = [x.astype(np.float64) if x.dtype == np.float32 else x for x in wide]
        if operation.kind == "cast" and str(operation.attributes["dtype"]) in (*_NARROW, "float64"):
            outputs: tuple = (wide[0].astype(np.float64),)
        elif operation.inputs:
            outputs = tuple(rules.evaluate(replace(operation, attributes=_exact(operation, numbers)), wide))
            outputs = tuple(y.astype(np.float64) if y.dtype == np.float32 else y for y in outputs)
        else:
            outputs = tuple(_unrounded(here, read(n)) for n in operation.outputs)
        arrays.update(zip(operation.outputs, outputs, strict=False))
        result = outputs[0]
    return result


def _unrounded(here: View, array: NDArray) -> NDArray:
    """Return the other side's array of float64 that a constant array of float32 is rounded from; else the array."""
    if array.dtype != np.float32 or array.size < 2:
        return array
    for operation in here.suspect.other.operations:
        for number in operation.outputs:
            other = np.asarray(here.suspect.read_other(number))
            if other.dtype != np.float64 or other.size != array.size:
                continue
            other = other.reshape(array.shape)
            if np.allclose(array, other, rtol=1e-5, atol=0) and not np.array_equal(array, other):
                return other
    return array


def narrow_part(here: View, last: int) -> list[int]:
    """Return the operations, up to one, that a value comes from by values of float32, in order."""
    found, todo = {last}, [last]
    while todo and len(found) < 400:
        for n in here.graph.operations[todo.pop()].inputs:
            i, array = here.graph.producer.get(n), here.value(n)
            known = i is None or i in found or i in here.graph.opaque
            if not known and array is not None and array.dtype == np.float32:
                found.add(i)
                todo.append(i)
    return sorted(found)


def _exact(operation: object, numbers: list[float]) -> dict:
    attributes = dict(operation.attributes)  # type: ignore[attr-defined]
    mine = number_of(operation)  # type: ignore[arg-type]
    if mine is not None and mine == float(np.float32(mine)):
        attributes["scalar"] = next((x for x in numbers if float(np.float32(x)) == mine), mine)
    return attributes


def _narrowed(here: View, i: int, dtype: str):
    def compute(read: Read) -> tuple:
        inputs = [rounded(read(n), dtype) for n in here.graph.operations[i].inputs]
        return tuple(rounded(y, dtype).astype(np.float64) for y in here.graph.evaluate(i, inputs))

    return compute


def rounded(x: NDArray, dtype: str) -> NDArray:
    """Round floats to a type; half precision stays an array of float32."""
    if x.dtype.kind != "f":
        return x
    return to_dtype(x, dtype)


@cause(
    "float32_constant",
    "a number rounded to float32",
    "write tf.constant(x, tf.float64); tf.cast(x, tf.float64) rounds first",
)
def float32_constant(suspect: Suspect) -> Iterator[Change]:
    """Use the other side's number where this side's is that number rounded to float32, or a number that one means."""
    here = view(suspect)
    for i, operation in here.operations:
        mine = number_of(operation)
        if mine is None or mine == round(mine, 3):
            continue
        known = here.numbers_there("add", "subtract", "multiply", "divide", "power", "maximum", "minimum")
        known += [1 / x for x in known if x]
        short = [float(f"{mine:.{digits}g}") for digits in (2, 3, 4, 5, 6)]
        for other in dict.fromkeys([*known, *short]):
            if (other != mine and float(np.float32(other)) == mine) or (
                other != mine and float(np.float32(mine)) == other
            ):
                words = f"the number is {mine!r}", f"the number is {other!r}"
                yield Change("float32_constant", i, here.with_attributes(i, scalar=other), *words, 0)


@cause("integer_division", "a division that rounds", "// rounds down, / does not")
@cause("rounding", "a rounding that one side does not do", "round, floor or convert to integers on both sides")
def integers(suspect: Suspect) -> Iterator[Change]:
    """Round a division, or do not."""
    here = view(suspect)
    for i, operation in here.operations:
        arrays = [here.value(n) for n in operation.inputs]
        if operation.kind == "divide":
            yield Change("integer_division", i, here.with_output(i, np.floor), *_ROUNDED_DOWN)
            yield Change(
                "integer_division",
                i,
                here.with_output(i, np.trunc),
                _ROUNDED_DOWN[0],
                "the fraction of the quotient is cut",
            )
        elif operation.kind == "floor_divide":
            other = replace(operation, kind="divide")

            def exact(read: Read, other: object = other) -> tuple:
                inputs = [read(n).astype(np.float64) for n in other.inputs]  # type: ignore[attr-defined]
                return tuple(rules.evaluate(other, inputs))  # type: ignore[arg-type]

            yield Change("integer_division", i, exact, *_ROUNDED_DOWN[::-1], 0)
        elif operation.kind == "cast" and arrays[0] is not None and arrays[0].dtype.kind == "f":
            if np.dtype(str(operation.attributes["dtype"]).replace("bfloat16", "float32")).kind in "iu":
                n = operation.inputs[0]
                yield Change(
                    "rounding",
                    i,
                    lambda read, n=n: (read(n),),
                    "numbers are converted to integers",
                    "numbers are not converted",
                    0,
                )
                yield Change(
                    "rounding",
                    i,
                    here.with_input(i, 0, np.rint),
                    "the fraction is cut",
                    "numbers are rounded to the nearest",
                )
        elif operation.kind in ("round", "floor", "ceil", "trunc"):
            n = operation.inputs[0]
            yield Change(
                "rounding",
                i,
                lambda read, n=n: (read(n),),
                f"{operation.kind} is applied",
                f"{operation.kind} is not applied",
                0,
            )


@cause("clipping", "a bound that one side does not have", "clamp or clip_by_value on both sides or on neither")
def clipping(suspect: Suspect) -> Iterator[Change]:
    """Use the other side's bounds, or none."""
    here = view(suspect)
    bounds = [(0.0, 1.0), (-1.0, 1.0)]
    for j in suspect.other_region:
        other = suspect.other.operations[j]
        if other.kind == "clip":
            bounds.insert(0, (other.attributes.get("low"), other.attributes.get("high")))
    low = [(x, None) for x in here.numbers_there("maximum")]
    high = [(None, x) for x in here.numbers_there("minimum")]
    known = [*bounds[:-2], *low, *high]
    for i, operation in here.operations:
        kind = operation.kind
        if kind in ("clip", "maximum", "minimum") and len(operation.inputs) == 1:
            n = operation.inputs[0]
            yield Change(
                "clipping", i, lambda read, n=n: (read(n),), _bounds(operation.attributes, kind), _UNBOUNDED, 1
            )
        if kind == "clip":
            for pair in dict.fromkeys([*known, *bounds]):
                attributes = {"low": pair[0], "high": pair[1]}
                yield Change(
                    "clipping",
                    i,
                    here.with_attributes(i, **attributes),
                    _bounds(operation.attributes, "clip"),
                    _bounds(attributes, "clip"),
                    0 if pair in known else 1,
                )
        for k, n in enumerate(operation.inputs):
            if n in here.made or here.number(n) is None:
                continue
            for pair in dict.fromkeys(known):
                yield Change(
                    "clipping",
                    i,
                    here.with_input(i, k, lambda x, p=pair: np.clip(x, *p)),
                    _UNBOUNDED,
                    _bounds({"low": pair[0], "high": pair[1]}, "clip"),
                    1,
                )


def _bounds(attributes: object, kind: str) -> str:
    values = dict(attributes)  # type: ignore[call-overload]
    if kind in ("maximum", "minimum"):
        return f"numbers are {'at least' if kind == 'maximum' else 'at most'} {shown(float(values['scalar']))}"
    low, high = values.get("low"), values.get("high")
    given = (("at least", low), ("at most", high))
    parts = [f"{words} {shown(float(bound))}" for words, bound in given if bound is not None]
    return f"numbers are {' and '.join(parts)}" if parts else _UNBOUNDED
