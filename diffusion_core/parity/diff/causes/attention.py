"""Causes in attention and other softmaxes: what scores are divided by, the axis of the softmax, and the mask."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff.causes.change import Change, Suspect, cause
from diffusion_core.parity.diff.causes.constants import is_attention_scale, number_of, numbers_for, scale_words
from diffusion_core.parity.diff.causes.view import View, shown, view

_COMPARISONS = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
_SOFT = ("softmax", "log_softmax")
_FILLS = (-math.inf, -1e9, -1e4, -1e30, float(np.finfo(np.float32).min), -1e8, -1e6, -3e4, -100.0, 0.0)


def widths(here: View, i: int) -> list[int]:
    """Return the lengths of the axes of what the products before and after an operation read, the likeliest first."""
    found: list[int] = []
    products = [
        o for forward in (False, True) for o in here.neighbours(i, forward, 5) if o.kind in ("matmul", "einsum")
    ]
    for operation in products:
        for n in operation.inputs:
            array = here.value(n)
            if array is not None and array.ndim >= 2:
                found += [array.shape[-1], array.shape[-2]]
                if array.ndim >= 4:
                    heads = array.shape[1], array.shape[2]
                    found += [array.shape[-1] * h for h in heads]
    y = here.output(i)
    found += [] if y is None else list(y.shape)
    return [n for n in dict.fromkeys(found) if n > 1]


@cause(
    "attention_scale",
    "the scale of attention scores",
    "scale= of scaled_dot_product_attention; the usual one is one over the root of the width of one head",
)
def attention_scale(suspect: Suspect) -> Iterator[Change]:
    """Divide scores by another number."""
    here = view(suspect)
    for i, operation in here.operations:
        number = number_of(operation)
        if number is not None and is_attention_scale(here, i) and number:
            known = [x for x in numbers_for(here, operation.kind) if x]
            divides = operation.kind == "divide"
            tried = dict.fromkeys([*known, *[x if divides else 1 / x for x in divisors(here, i)]])
            for other in tried:
                if not math.isclose(other, number, rel_tol=1e-12):
                    yield Change(
                        "attention_scale",
                        i,
                        here.with_attributes(i, scalar=other),
                        f"scores are divided by {scale_words(number, operation.kind)}",
                        f"scores are divided by {scale_words(other, operation.kind)}",
                        0 if other in known else 1,
                    )
        elif operation.kind in _SOFT and here.comes_from(i, ("matmul", "einsum"), 5):
            for divisor in divisors(here, i):
                yield Change(
                    "attention_scale",
                    i,
                    here.with_input(i, 0, lambda x, d=divisor: x / x.dtype.type(d)),
                    "scores are not scaled",
                    f"scores are divided by {scale_words(divisor, 'divide')}",
                )


def divisors(here: View, i: int) -> list[float]:
    """Return what scores are usually divided by."""
    found = []
    for n in widths(here, i):
        found += [math.sqrt(n), float(n), n**0.25, 1 / math.sqrt(n)]
    return list(dict.fromkeys([*found, 1.0]))


@cause("softmax_axis", "the axis of a softmax", "dim= in torch, axis= in TensorFlow and Keras")
def softmax_axis(suspect: Suspect) -> Iterator[Change]:
    """Try the other axes, also of a softmax written as exp and sum."""
    here = view(suspect)
    for i, operation in here.operations:
        y = here.output(i)
        if y is None:
            continue
        if operation.kind in _SOFT:
            mine = operation.attributes["axis"]
            for axis in range(y.ndim):
                if axis != mine:
                    yield Change(
                        "softmax_axis",
                        i,
                        here.with_attributes(i, axis=axis),
                        f"the softmax runs over axis {mine} of {y.shape}",
                        f"the softmax runs over axis {axis}",
                        0,
                    )
        elif (
            operation.kind == "sum"
            and here.comes_from(i, ("exp",), 1)
            and here.leads_to(i, ("divide", "reciprocal"), 2)
        ):
            x = here.number(operation.inputs[0])
            mine = tuple(operation.attributes["axes"])
            for axis in range(x.ndim if x is not None else 0):
                if (axis,) != mine:
                    yield Change(
                        "softmax_axis",
                        i,
                        here.with_attributes(i, axes=(axis,)),
                        f"the softmax runs over axis {', '.join(map(str, mine))}",
                        f"the softmax runs over axis {axis}",
                        0,
                    )


@cause(
    "mask_value",
    "the number that a mask puts in",
    "masked_fill's value in torch; -1e9 and -inf differ where a row is masked",
)
@cause("mask_missing", "a mask that one side does not apply", "attn_mask= in torch, attention_mask= and mask= in Keras")
@cause(
    "mask_sign",
    "what a mask means",
    "True is seen in scaled_dot_product_attention and Keras, hidden in nn.MultiheadAttention",
)
@cause("mask_axis", "the axis of a mask", "a mask of keys is (batch, 1, 1, keys), not (batch, 1, queries, 1)")
@cause("causal_mask", "a causal mask", "is_causal= in torch, use_causal_mask= in Keras; row i sees columns up to i")
@cause(
    "masked_rows",
    "rows whose every entry is masked",
    "torch's attention gives 0, Keras the average of all, -inf by hand NaN",
)
def mask(suspect: Suspect) -> Iterator[Change]:
    """Change the mask before a softmax, leave it out, or put a causal one in."""
    here = view(suspect)
    for i, operation in here.operations:
        y = here.output(i)
        if operation.kind == "where":
            yield from _where(here, i)
        elif operation.kind == "add" and len(operation.inputs) == 2 and here.leads_to(i, (*_SOFT, "exp"), 4):
            yield from _added(here, i)
        elif operation.kind in _SOFT and y is not None and y.ndim >= 2:
            yield from _causal(here, i, y)
            yield Change(
                "masked_rows",
                i,
                here.with_output(i, np.nan_to_num),
                "a row without entries is NaN",
                "a row without entries is 0",
                1,
            )
            yield Change(
                "masked_rows",
                i,
                here.with_output(i, lambda y: np.where(np.isnan(y), 1 / y.shape[-1], y)),
                "a row without entries is NaN",
                "a row without entries is the average",
            )


@cause(
    "implicit_mask",
    "positions that are skipped because of what the input holds there",
    "mask_zero=True of Keras's Embedding passes a mask to the layers behind it; torch has packed sequences",
)
def implicit_mask(suspect: Suspect) -> Iterator[Change]:
    """Take a comparison that selects values later as true, or false, everywhere."""
    here = view(suspect)
    for i, operation in here.operations:
        if operation.kind not in _COMPARISONS or not operation.inputs:
            continue
        shape, number = np.shape(here.value(operation.outputs[0])), operation.attributes.get("scalar")
        words = "a comparison masks positions"
        if number is not None:
            words = f"a comparison with {shown(number)} masks positions"
        for answer in (True, False):
            yield Change(
                "implicit_mask",
                i,
                lambda read, shape=shape, answer=answer: (np.full(shape, answer),),
                words,
                "nothing is masked",
                0,
            )


def _where(here: View, i: int) -> Iterator[Change]:
    """Yield other fills and conditions of a `where`."""
    operation = here.graph.operations[i]
    scalars = operation.attributes.get("scalars")
    if scalars:
        known = [
            x
            for j in here.suspect.other_region
            for x in here.suspect.other.operations[j].attributes.get("scalars") or ()
            if isinstance(x, int | float)
        ]
        known += here.numbers_there("add", "multiply", "subtract")
        for k, mine in enumerate(scalars):
            if not isinstance(mine, int | float):
                continue
            for value in dict.fromkeys([*known, *_FILLS]):
                if value != mine:
                    changed = [value if j == k else x for j, x in enumerate(scalars)]
                    yield Change(
                        "mask_value",
                        i,
                        here.with_attributes(i, scalars=changed),
                        f"the mask puts in {shown(mine)}",
                        f"the mask puts in {shown(value)}",
                        0 if value in known else 1,
                    )
    yield Change(
        "mask_sign",
        i,
        here.with_input(i, 0, np.logical_not),
        "the mask is used as it is",
        "the opposite of the mask is used",
        0,
    )
    for n in operation.inputs[1:]:
        x, y = here.number(n), here.output(i)
        if x is not None and y is not None and x.shape == y.shape:
            yield Change("mask_missing", i, lambda read, n=n: (read(n),), "a mask is applied", "no mask is applied", 0)
    yield from _turned(here, i, 0)


def _added(here: View, i: int) -> Iterator[Change]:
    """Yield other forms of a mask that is added to scores."""
    operation = here.graph.operations[i]
    for k, n in enumerate(operation.inputs):
        added, x, y = here.number(n), here.number(operation.inputs[1 - k]), here.output(i)
        if added is None or x is None or y is None or x.shape != y.shape or here.is_parameter(n):
            continue
        if len(np.unique(added[:1000])) > 3 and added.shape == x.shape:
            continue
        low = float(added.min())
        yield Change(
            "mask_missing",
            i,
            lambda read, m=operation.inputs[1 - k]: (read(m),),
            "a mask is added",
            "no mask is added",
            0,
        )
        yield Change(
            "mask_sign", i, here.with_input(i, k, np.negative), "the mask is added", "the mask is subtracted", 1
        )
        yield Change(
            "mask_sign",
            i,
            here.with_input(i, k, lambda m, low=low: np.where(m == low, 0, low).astype(m.dtype)),
            "the mask is used as it is",
            "the opposite of the mask is used",
            1,
        )
        for value in _FILLS:
            yield Change(
                "mask_value",
                i,
                here.with_input(i, k, lambda m, v=value, low=low: np.where(m == low, v, m).astype(m.dtype)),
                f"the mask adds {shown(low)}",
                f"the mask adds {shown(value)}",
            )
        yield from _turned(here, i, k)


def _turned(here: View, i: int, k: int) -> Iterator[Change]:
    """Yield a mask along another axis, or turned round."""
    operation = here.graph.operations[i]
    array = here.value(operation.inputs[k])
    if array is None or array.ndim < 2:
        return
    swap: Callable[[NDArray], NDArray] = lambda m: np.swapaxes(m, -1, -2)  # noqa: E731
    yield Change(
        "mask_axis",
        i,
        here.with_input(i, k, swap),
        f"the mask has shape {array.shape}",
        "rows and columns of the mask are swapped",
    )
    if array.shape[-1] == array.shape[-2]:
        for step in (1, -1):
            yield Change(
                "causal_mask",
                i,
                here.with_input(i, k, lambda m, s=step: _shifted(m, s)),
                "the mask begins at one column",
                f"the mask begins one column further to the {'right' if step > 0 else 'left'}",
            )


def _shifted(m: NDArray, step: int) -> NDArray:
    """Return a mask moved along its columns, its edge repeated."""
    moved = np.roll(m, step, axis=-1)
    edge = (..., slice(0, 1)) if step > 0 else (..., slice(-1, None))
    moved[edge] = m[edge]
    return moved


def _causal(here: View, i: int, y: NDArray) -> Iterator[Change]:
    """Yield a causal mask in front of a softmax, and a softmax that looks past it."""
    axis = here.graph.operations[i].attributes["axis"]
    if axis != y.ndim - 1 or y.shape[-1] < 2:
        return
    for first, words in ((0, "a causal mask"), (-1, "a causal mask that hides the diagonal too")):
        seen = np.tril(np.ones(y.shape[-2:], bool), first)
        yield Change(
            "causal_mask",
            i,
            here.with_input(i, 0, lambda x, s=seen: np.where(s, x, -np.inf).astype(x.dtype)),
            "no causal mask is applied",
            f"{words} is applied",
        )
