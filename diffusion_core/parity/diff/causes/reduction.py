"""Causes in reductions and in broadcasting: the axes, a mean for a sum, the order of a norm, where an axis is put."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from diffusion_core.parity.diff import operations as rules
from diffusion_core.parity.diff.causes.change import Change, Read, Suspect, cause
from diffusion_core.parity.diff.causes.view import View, view
from diffusion_core.parity.diff.vocabulary import BINARY, REDUCTIONS

_KINDS = ("mean", "sum", "max", "min", "logsumexp", "prod")


def with_kind(here: View, i: int, kind: str, **attributes: object):
    """Return how to compute an operation as one of another kind."""
    operation = here.graph.operations[i]
    other = replace(operation, kind=kind, attributes={**operation.attributes, **attributes})
    return lambda read: tuple(rules.evaluate(other, [read(n) for n in operation.inputs]))


@cause("reduction_kind", "a mean, a sum or a maximum", "mean, sum and max in both frameworks; a loss's reduction=")
@cause("reduction_axis", "the axes of a reduction", "dim= in torch, axis= in TensorFlow and Keras")
@cause("norm_order", "the order of a norm", "ord= and p=")
@cause("argmax_ties", "the index of a maximum that occurs twice", "do not rely on which of equal numbers is taken")
def reduction(suspect: Suspect) -> Iterator[Change]:
    """Reduce in another way."""
    here = view(suspect)
    for i, operation in here.operations:
        x = here.value(operation.inputs[0]) if operation.inputs else None
        if operation.kind not in REDUCTIONS or x is None:
            continue
        mine = tuple(operation.attributes.get("axes") or range(x.ndim))
        if operation.kind in _KINDS:
            for kind in _KINDS:
                if kind != operation.kind:
                    yield Change(
                        "reduction_kind",
                        i,
                        with_kind(here, i, kind),
                        f"the {operation.kind} is taken",
                        f"the {kind} is taken",
                        0,
                    )
        if operation.kind == "norm":
            for order in (1, 2, np.inf):
                if order != operation.attributes["order"]:
                    yield Change(
                        "norm_order",
                        i,
                        here.with_attributes(i, order=order),
                        f"the order of the norm is {operation.attributes['order']:g}",
                        f"the order of the norm is {order:g}",
                    )
        if operation.kind in ("argmax", "argmin") and len(mine) == 1:
            axis = mine[0]

            def last(read: Read, i: int = i, n: int = operation.inputs[0], axis: int = axis) -> tuple:
                flipped = here.evaluate(i, [np.flip(read(n), axis)])[0]
                return ((read(n).shape[axis] - 1 - flipped).astype(flipped.dtype),)

            yield Change(
                "argmax_ties", i, last, "the first of equal numbers is taken", "the last of equal numbers is taken"
            )
        for axes in axes_of(x.ndim, len(mine)):
            if axes != mine:
                yield Change(
                    "reduction_axis",
                    i,
                    here.with_attributes(i, axes=list(axes)),
                    f"the {operation.kind} is over axes {', '.join(map(str, mine))} of {x.shape}",
                    f"the {operation.kind} is over axes {', '.join(map(str, axes))}",
                    1 if len(axes) == len(mine) else 2,
                )


def axes_of(ndim: int, count: int) -> list[tuple[int, ...]]:
    """Return sets of axes, those of as many axes first."""
    sets = [axes for n in range(1, ndim + 1) for axes in itertools.combinations(range(ndim), n)]
    return sorted(sets, key=lambda axes: abs(len(axes) - count))


@cause(
    "cumulative_axis",
    "the axis or direction of a cumulative sum",
    "dim= in torch; axis=, reverse= and exclusive= in TensorFlow",
)
def cumulative(suspect: Suspect) -> Iterator[Change]:
    """Add up along another axis, from the other end, or without the present number."""
    here = view(suspect)
    for i, operation in here.operations:
        x = here.value(operation.inputs[0]) if operation.inputs else None
        if operation.kind not in ("cumsum", "cumprod") or x is None:
            continue
        mine = operation.attributes["axis"]
        for axis in range(x.ndim):
            if axis != mine:
                yield Change(
                    "cumulative_axis",
                    i,
                    here.with_attributes(i, axis=axis),
                    f"the sum runs along axis {mine}",
                    f"the sum runs along axis {axis}",
                )

        def backwards(read: Read, i: int = i, n: int = operation.inputs[0], axis: int = mine) -> tuple:
            return (np.flip(here.evaluate(i, [np.flip(read(n), axis)])[0], axis),)

        def exclusive(read: Read, i: int = i, n: int = operation.inputs[0], axis: int = mine) -> tuple:
            y = np.roll(here.evaluate(i, [read(n)])[0], 1, axis)
            first = tuple(slice(0, 1) if a == axis else slice(None) for a in range(y.ndim))
            y[first] = int(here.graph.operations[i].kind == "cumprod")
            return (y,)

        yield Change(
            "cumulative_axis",
            i,
            backwards,
            "the sum runs from the first number on",
            "the sum runs from the last number on",
        )
        yield Change(
            "cumulative_axis",
            i,
            exclusive,
            "the sum includes the present number",
            "the sum leaves out the present number (exclusive)",
        )


@cause("pool_kind", "an average pool or a max pool", "nn.AvgPool2d and nn.MaxPool2d; AveragePooling2D and MaxPooling2D")
def pool_kind(suspect: Suspect) -> Iterator[Change]:
    """Take the average for the maximum of each window, or the other way round."""
    here = view(suspect)
    others = {"max_pool": "avg_pool", "avg_pool": "max_pool"}
    others |= {"adaptive_avg_pool": "adaptive_max_pool", "adaptive_max_pool": "adaptive_avg_pool"}
    for i, operation in here.operations:
        if operation.kind in others:
            yield Change(
                "pool_kind",
                i,
                with_kind(here, i, others[operation.kind], count_include_pad=False),
                "the maximum is taken" if "max" in operation.kind else "the average is taken",
                "the average is taken" if "max" in operation.kind else "the maximum is taken",
                0,
            )


@cause(
    "broadcast_axis",
    "the axis along which a smaller array is repeated",
    "keepdims=, unsqueeze or reshape it to the axis that is meant",
)
def broadcast_axis(suspect: Suspect) -> Iterator[Change]:
    """Put the axes of the smaller of two arrays elsewhere, where their lengths allow it."""
    here = view(suspect)
    for i, operation in here.operations:
        if operation.kind not in BINARY or len(operation.inputs) != 2:
            continue
        arrays = [here.value(n) for n in operation.inputs]
        if arrays[0] is None or arrays[1] is None or arrays[0].shape == arrays[1].shape:
            continue
        k = 0 if arrays[0].size < arrays[1].size else 1
        small, large = arrays[k], arrays[1 - k]
        lengths = [n for n in small.shape if n != 1]
        plain = (1,) * (large.ndim - small.ndim) + small.shape
        for places in itertools.permutations(range(large.ndim), len(lengths)):
            if any(large.shape[a] != n for a, n in zip(places, lengths, strict=True)):
                continue
            shape = [1] * large.ndim
            for a, n in zip(places, lengths, strict=True):
                shape[a] = n
            order = sorted(range(len(places)), key=lambda j: places[j])
            if tuple(shape) == plain and order == list(range(len(places))):
                continue
            yield Change(
                "broadcast_axis",
                i,
                here.with_input(
                    i,
                    k,
                    lambda u, s=tuple(shape), o=tuple(order), w=tuple(lengths): u.reshape(w).transpose(o).reshape(s),
                ),
                f"an array of shape {small.shape} is repeated to {large.shape} from the last axis on",
                f"an array of shape {small.shape} is repeated as {tuple(shape)}",
            )
