"""Causes in the order of numbers: flattened images, reshapes, transpositions, pixel shuffles, kernels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff import operations as rules
from diffusion_core.parity.diff.causes.change import Change, Read, Suspect, cause
from diffusion_core.parity.diff.causes.layout import CONVOLUTIONS, kernel_letters, of_kind, with_attributes
from diffusion_core.parity.diff.recording import Operation

_AS_IT_IS = "the kernel is used as it is"


def _unflattened(suspect: Suspect, number: int) -> NDArray | None:
    """Return what a flattened value was before, or None."""
    graph = suspect.graph
    while number in graph.producer:
        operation = graph.operations[graph.producer[number]]
        if operation.kind not in ("reshape", "identity", "cast"):
            return None
        number = operation.inputs[0]
        before = suspect.read(number)
        if operation.kind == "reshape" and before.ndim >= 3:
            return before
    return None


@cause(
    "flatten_order",
    "the order in which an image is flattened, or made of a vector",
    "permute to channels first before Flatten in Keras, or to channels last before flatten in torch",
)
def flatten_order(suspect: Suspect) -> Iterator[Change]:
    """Flatten the axes behind the batch in another order, or make an image of a vector in another order."""
    yield from _unflatten_order(suspect)
    for i in suspect.region:
        operation = suspect.graph.operations[i]
        if operation.kind in ("reshape", "transpose") or i in suspect.graph.opaque:
            continue
        for place, number in enumerate(operation.inputs):
            before = _unflattened(suspect, number)
            if before is None or before.ndim > 5:
                continue
            axes = list(range(1, before.ndim))
            for order in itertools.permutations(axes):
                if list(order) != axes:
                    yield Change(
                        "flatten_order",
                        i,
                        _reordered(operation, place, before.shape, (0, *order)),
                        f"axes are flattened in {_order_words(axes, axes)}",
                        f"axes are flattened in {_order_words(list(order), axes)}",
                        0 if list(order) in ([*axes[1:], axes[0]], [axes[-1], *axes[:-1]]) else 1,
                    )


def _unflatten_order(suspect: Suspect) -> Iterator[Change]:
    """Make an image of a vector with its axes in another order."""
    for i, operation in of_kind(suspect, "reshape"):
        before, shape = suspect.read(operation.inputs[0]).shape, suspect.read(operation.outputs[0]).shape
        axes = list(range(1, len(shape)))
        if len(before) >= len(shape) or not 3 <= len(shape) <= 5 or before[:1] != shape[:1]:
            continue
        for order in itertools.permutations(axes):
            if list(order) != axes:
                moved = (0, *order)
                yield Change(
                    "flatten_order",
                    i,
                    lambda read, n=operation.inputs[0], shape=shape, moved=moved: (
                        read(n).reshape([shape[k] for k in moved]).transpose(np.argsort(moved)),
                    ),
                    f"the vector has {_order_words(axes, axes)}",
                    f"the vector has {_order_words(list(order), axes)}",
                    0 if list(order) in ([*axes[1:], axes[0]], [axes[-1], *axes[:-1]]) else 1,
                )


def _order_words(order: Sequence[int], axes: Sequence[int]) -> str:
    text = " ".join(map(str, order))
    if list(order) == list(axes):
        return f"the order {text}"
    if list(order) == [*axes[1:], axes[0]]:
        return f"the order {text} (channels last)"
    if list(order) == [axes[-1], *axes[:-1]]:
        return f"the order {text} (channels first)"
    return f"the order {text}"


def _reordered(operation: Operation, place: int, shape: Sequence[int], order: Sequence[int]) -> Any:
    def compute(read: Read) -> Sequence[NDArray]:
        inputs = [read(number) for number in operation.inputs]
        flat = inputs[place]
        inputs[place] = flat.reshape(shape).transpose(order).reshape(flat.shape)
        return rules.evaluate(operation, inputs)

    return compute


@cause(
    "reshape_order",
    "the order of the axes in a reshape",
    "split heads or groups in the same order: (heads, width) is not (width, heads)",
)
def reshape_order(suspect: Suspect) -> Iterator[Change]:
    """Reshape with two neighbouring axes of the result, or of the input, in the other order."""
    for i, operation in of_kind(suspect, "reshape"):
        shape = list(operation.attributes["shape"])
        before = suspect.read(operation.inputs[0]).shape
        for axis in range(len(shape) - 1):
            if shape[axis] > 1 and shape[axis + 1] > 1 and len(shape) > len(before):
                other = [*shape[:axis], shape[axis + 1], shape[axis], *shape[axis + 2 :]]
                yield Change(
                    "reshape_order",
                    i,
                    lambda read, n=operation.inputs[0], other=other, axis=axis: (
                        np.swapaxes(read(n).reshape(other), axis, axis + 1),
                    ),
                    f"an axis is split into {shape[axis]} x {shape[axis + 1]}",
                    f"an axis is split into {shape[axis + 1]} x {shape[axis]}, which are exchanged",
                )
        for axis in range(len(before) - 1):
            if before[axis] > 1 and before[axis + 1] > 1 and len(shape) < len(before):
                yield Change(
                    "reshape_order",
                    i,
                    lambda read, n=operation.inputs[0], shape=shape, axis=axis: (
                        np.swapaxes(read(n), axis, axis + 1).reshape(shape),
                    ),
                    f"axes of {before[axis]} and {before[axis + 1]} are merged",
                    f"axes of {before[axis]} and {before[axis + 1]} are exchanged and merged",
                )


@cause("axis_order", "the order of axes after a transposition", "permute in torch and tf.transpose take the same order")
def axis_order(suspect: Suspect) -> Iterator[Change]:
    """Transpose in another order that has the same shape."""
    for i, operation in of_kind(suspect, "transpose"):
        shape = suspect.read(operation.inputs[0]).shape
        now = list(operation.attributes["axes"])
        for order in itertools.permutations(range(len(shape))) if len(shape) <= 5 else ():
            if list(order) != now and [shape[k] for k in order] == [shape[k] for k in now]:
                here, there = (f"axes come in the order {' '.join(map(str, each))}" for each in (now, order))
                yield Change("axis_order", i, with_attributes(operation, axes=list(order)), here, there, 1)


@cause(
    "depth_to_space_order",
    "the order of channels in a pixel shuffle",
    "nn.PixelShuffle counts channels first, tf.nn.depth_to_space blocks first: permute the channels before it",
)
def shuffle_order(suspect: Suspect) -> Iterator[Change]:
    """Count the channels of a pixel shuffle in the other order."""
    words = {
        "CRD": "channels are counted before the block (PixelShuffle)",
        "DCR": "the block is counted before channels (depth_to_space)",
    }
    for i, operation in of_kind(suspect, "depth_to_space", "space_to_depth"):
        now = operation.attributes["order"]
        other = "DCR" if now == "CRD" else "CRD"
        yield Change("depth_to_space_order", i, with_attributes(operation, order=other), words[now], words[other], 0)


@cause(
    "kernel_order",
    "the order of the numbers in a kernel",
    "a kernel OIHW of torch becomes HWIO by transpose(2, 3, 1, 0), without a flip; a matrix of nn.Linear is transposed",
)
def kernel_order(suspect: Suspect) -> Iterator[Change]:
    """Flip or transpose the kernel of a convolution, or transpose a square matrix."""
    for i, operation in of_kind(suspect, *CONVOLUTIONS):
        letters = kernel_letters(operation, suspect.read(operation.inputs[1]).ndim)
        space = [axis for axis, letter in enumerate(letters) if letter == "."]
        yield Change(
            "kernel_order",
            i,
            _kernel(operation, lambda w, s=space: np.flip(w, s)),
            _AS_IT_IS,
            "the kernel is flipped",
        )
        if len(space) == 2:
            swapped = _kernel(operation, lambda w, s=space: np.swapaxes(w, *s))
            yield Change("kernel_order", i, swapped, _AS_IT_IS, "height and width of the kernel are exchanged")
        others = [axis for axis in range(len(letters)) if axis not in space]
        exchanged = _kernel(operation, lambda w, o=others: np.swapaxes(w, *o))
        yield Change("kernel_order", i, exchanged, _AS_IT_IS, "inputs and outputs of the kernel are exchanged")
        for counts in _group_counts(suspect, operation):
            regrouped = _kernel(operation, lambda w, o=operation, c=counts: _regrouped(w, o.attributes["kernel"], c))
            yield Change("kernel_order", i, regrouped, _AS_IT_IS, "groups and multiplier are exchanged in the kernel")
    for i, operation in of_kind(suspect, "matmul"):
        for place in (0, 1):
            if suspect.graph.names.get(operation.inputs[place]):
                transposed = _kernel(operation, lambda w: np.swapaxes(w, -1, -2), place)
                yield Change("kernel_order", i, transposed, "the matrix is used as it is", "the matrix is transposed")


def _group_counts(suspect: Suspect, operation: Operation) -> list[tuple[int, int]]:
    """Return how the outputs of a convolution split into groups and the outputs of each, in both orders."""
    groups = operation.attributes["groups"]
    channels = -1 if operation.attributes["layout"] == "channels_last" else 1
    each = suspect.read(operation.outputs[0]).shape[channels] // groups
    return [(groups, each), (each, groups)] if min(groups, each) > 1 and operation.kind == "conv" else []


def _regrouped(w: NDArray, letters: str, counts: tuple[int, int]) -> NDArray:
    """Exchange groups and the outputs of each group in a kernel."""
    if letters == "HWIM":
        return w.reshape(*w.shape[:-2], *counts).swapaxes(-1, -2).reshape(w.shape)
    axis = letters.replace("HW", "").index("O") if letters.index("O") < letters.index("H") else w.ndim - 1
    shape = w.shape
    return w.reshape(*shape[:axis], *counts, *shape[axis + 1 :]).swapaxes(axis, axis + 1).reshape(shape)


def _kernel(operation: Operation, change: Any, place: int = 1) -> Any:
    def compute(read: Read) -> Sequence[NDArray]:
        inputs = [read(number) for number in operation.inputs]
        inputs[place] = change(inputs[place])
        return rules.evaluate(operation, inputs)

    return compute
