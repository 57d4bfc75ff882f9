"""Operations that only move numbers: their values are exact, and their gradients move the cotangents back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff.operations.elementwise import sum_to
from diffusion_core.parity.diff.operations.registry import differentiates, evaluates

__all__ = ["slices"]

Arrays = Sequence[NDArray]
_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "symmetric": "symmetric"}


@evaluates("reshape")
def reshape(x: NDArray, shape: Sequence[int]) -> NDArray:
    """Reshape; -1 stands for the length that fits."""
    return x.reshape(tuple(shape))


@evaluates("transpose")
def transpose(x: NDArray, axes: Sequence[int]) -> NDArray:
    """Permute axes: axis i of the result is axis `axes[i]` of the input."""
    return x.transpose(tuple(axes))


@evaluates("expand")
def expand(x: NDArray, shape: Sequence[int]) -> NDArray:
    """Broadcast to a shape; -1 keeps a length."""
    old = (1,) * (len(shape) - x.ndim) + x.shape
    return np.broadcast_to(x, [m if n == -1 else n for n, m in zip(shape, old, strict=True)])


@evaluates("concat")
def concat(*inputs: NDArray, axis: int) -> NDArray:
    """Join along an axis."""
    return np.concatenate(inputs, axis)


@evaluates("stack")
def stack(*inputs: NDArray, axis: int) -> NDArray:
    """Join along a new axis."""
    return np.stack(inputs, axis)


@evaluates("split")
def split(x: NDArray, axis: int, sizes: Sequence[int]) -> tuple[NDArray, ...]:
    """Cut into parts of these lengths."""
    return tuple(np.split(x, np.cumsum(sizes)[:-1], axis))


@evaluates("unstack")
def unstack(x: NDArray, axis: int) -> tuple[NDArray, ...]:
    """Cut into parts of one place each, without the axis."""
    return tuple(np.moveaxis(x, axis, 0))


def slices(start: Sequence[int | None], stop: Sequence[int | None], step: Sequence[int | None]) -> tuple[slice, ...]:
    """Return Python's slices; None stands for "from the end at which the step begins" or "to the other"."""
    return tuple(slice(*parts) for parts in zip(start, stop, step, strict=True))


@evaluates("slice")
def slice_(
    x: NDArray, start: Sequence[int | None], stop: Sequence[int | None], step: Sequence[int | None] | None = None
) -> NDArray:
    """Take a slice of each axis; axes behind the last one given stay whole."""
    return x[slices(start, stop, step or [1] * len(start))]


@evaluates("update_slice")
def update_slice(
    x: NDArray,
    value: NDArray,
    start: Sequence[int | None],
    stop: Sequence[int | None],
    step: Sequence[int | None] | None = None,
) -> NDArray:
    """Return x with another value in a slice, as ``x[:, 0] = value`` writes it."""
    result = np.array(x)
    result[slices(start, stop, step or [1] * len(start))] = value
    return result


@evaluates("pad")
def pad(x: NDArray, padding: Sequence[Sequence[int]], mode: str = "constant", value: float | None = 0) -> NDArray:
    """Pad each axis before and after; a negative number cuts."""
    if any(n < 0 for pair in padding for n in pair):
        cut = [(max(-a, 0), n - max(-b, 0)) for (a, b), n in zip(padding, x.shape, strict=True)]
        x = x[tuple(slice(*pair) for pair in cut)]
        padding = [(max(a, 0), max(b, 0)) for a, b in padding]
    padding = [tuple(pair) for pair in padding]
    if mode == "circular":
        return np.pad(x, padding, "wrap")
    extra = {"constant_values": value or 0} if mode == "constant" else {}
    return np.pad(x, padding, _PAD_MODES[mode], **extra)


@evaluates("flip")
def flip(x: NDArray, axes: Sequence[int]) -> NDArray:
    """Reverse axes."""
    return np.flip(x, tuple(axes))


@evaluates("roll")
def roll(x: NDArray, shifts: Sequence[int], axes: Sequence[int] | None = None) -> NDArray:
    """Shift along axes; what leaves at one end comes in at the other."""
    return np.roll(x, tuple(shifts), None if not axes else tuple(axes))


@evaluates("tile")
def tile(x: NDArray, repeats: Sequence[int]) -> NDArray:
    """Repeat the whole array along axes."""
    return np.tile(x, tuple(repeats))


@evaluates("repeat")
def repeat(x: NDArray, repeats: int, axis: int) -> NDArray:
    """Repeat each place of an axis."""
    return np.repeat(x, repeats, axis)


@evaluates("gather")
def gather(x: NDArray, indices: NDArray, axis: int = 0) -> NDArray:
    """Take places of an axis; the axes of the indices stand where that axis was."""
    return np.take(x, indices.astype(np.int64, copy=False), axis)


@evaluates("take_along")
def take_along(x: NDArray, indices: NDArray, axis: int) -> NDArray:
    """Take one place per place of the other axes, as torch.gather does; those may be shorter than the axes of x."""
    cut = tuple(slice(None) if i == axis else slice(n) for i, n in enumerate(indices.shape))
    return np.take_along_axis(x[cut], indices.astype(np.int64, copy=False), axis)


@evaluates("triangle")
def triangle(x: NDArray, low: int | None = None, high: int | None = None) -> NDArray:
    """Keep where ``low <= column - row <= high`` in the last two axes, and write 0 elsewhere."""
    return np.where(_band(x.shape[-2], x.shape[-1], low, high), x, x.dtype.type(0))


@evaluates("causal_mask")
def causal_mask(rows: int, columns: int) -> NDArray:
    """Return True where a column is not behind its row."""
    return _band(rows, columns, None, 0)


def _band(rows: int, columns: int, low: int | None, high: int | None) -> NDArray:
    distance = np.arange(columns) - np.arange(rows)[:, None]
    above = np.ones(distance.shape, bool) if low is None else distance >= low
    return above if high is None else above & (distance <= high)


@evaluates("one_hot")
def one_hot(x: NDArray, size: int, axis: int = -1, dtype: str = "int64") -> NDArray:
    """Return 1 at the place of each index on a new axis; an index outside gives zeros."""
    axis = axis % (x.ndim + 1)
    return np.moveaxis(x[..., None] == np.arange(size), -1, axis).astype(dtype)


def _blocks(x: NDArray, layout: str) -> NDArray:
    return x if layout == "channels_last" else np.moveaxis(x, 1, -1)


def _unblocked(x: NDArray, layout: str) -> NDArray:
    return x if layout == "channels_last" else np.moveaxis(x, -1, 1)


@evaluates("depth_to_space")
def depth_to_space(x: NDArray, block: int, order: str, layout: str) -> NDArray:
    """Turn channels into blocks of pixels.

    "CRD" reads a channel as (channel, row, column), as torch.pixel_shuffle does; "DCR" as (row, column, channel).
    """
    x = _blocks(x, layout)
    batch, height, width, channels = x.shape
    rest = channels // block**2
    if order == "CRD":
        x = x.reshape(batch, height, width, rest, block, block).transpose(0, 1, 4, 2, 5, 3)
    else:
        x = x.reshape(batch, height, width, block, block, rest).transpose(0, 1, 3, 2, 4, 5)
    return _unblocked(x.reshape(batch, height * block, width * block, rest), layout)


@evaluates("space_to_depth")
def space_to_depth(x: NDArray, block: int, order: str, layout: str) -> NDArray:
    """Turn blocks of pixels into channels; the inverse of `depth_to_space`."""
    x = _blocks(x, layout)
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // block, block, width // block, block, channels)
    x = x.transpose(0, 1, 3, 5, 2, 4) if order == "CRD" else x.transpose(0, 1, 3, 2, 4, 5)
    return _unblocked(x.reshape(batch, height // block, width // block, -1), layout)


# Gradients. Where an operation reads each number at most once or adds copies, its adjoint is written out; `unfold` and
# `extract_patches` are in `windows`.


@differentiates("reshape")
def reshape_vjp(g: NDArray, inputs: Arrays, output: NDArray, **_: Any) -> tuple[NDArray]:
    """Reshape back."""
    return (g.reshape(inputs[0].shape),)


@differentiates("transpose")
def transpose_vjp(g: NDArray, inputs: Arrays, output: NDArray, axes: Sequence[int]) -> tuple[NDArray]:
    """Permute back."""
    return (g.transpose(np.argsort(axes)),)


@differentiates("expand")
def expand_vjp(g: NDArray, inputs: Arrays, output: NDArray, **_: Any) -> tuple[NDArray]:
    """Sum over the copies."""
    return (sum_to(g, inputs[0].shape),)


@differentiates("concat")
def concat_vjp(g: NDArray, inputs: Arrays, output: NDArray, axis: int) -> tuple[NDArray, ...]:
    """Cut into the parts."""
    return split(g, axis, [x.shape[axis] for x in inputs])


@differentiates("stack")
def stack_vjp(g: NDArray, inputs: Arrays, output: NDArray, axis: int) -> tuple[NDArray, ...]:
    """Cut into the parts."""
    return unstack(g, axis)


@differentiates("split")
def split_vjp(g: Arrays, inputs: Arrays, output: Arrays, axis: int, **_: Any) -> tuple[NDArray]:
    """Join the parts."""
    return (np.concatenate(g, axis),)


@differentiates("unstack")
def unstack_vjp(g: Arrays, inputs: Arrays, output: Arrays, axis: int) -> tuple[NDArray]:
    """Join the parts."""
    return (np.stack(g, axis),)


@differentiates("slice")
def slice_vjp(
    g: NDArray,
    inputs: Arrays,
    output: NDArray,
    start: Sequence[int | None],
    stop: Sequence[int | None],
    step: Sequence[int | None] | None = None,
) -> tuple[NDArray]:
    """Write into zeros."""
    gradient = np.zeros_like(inputs[0])
    gradient[slices(start, stop, step or [1] * len(start))] = g
    return (gradient,)


@differentiates("update_slice")
def update_slice_vjp(
    g: NDArray,
    inputs: Arrays,
    output: NDArray,
    start: Sequence[int | None],
    stop: Sequence[int | None],
    step: Sequence[int | None] | None = None,
) -> tuple[NDArray, NDArray]:
    """Give the slice to the value and the rest to x."""
    place = slices(start, stop, step or [1] * len(start))
    rest = np.array(g)
    rest[place] = 0
    return rest, sum_to(g[place], inputs[1].shape)


def _moved(g: NDArray, shape: tuple[int, ...], places: NDArray) -> tuple[NDArray]:
    """Add each cotangent to the place that its number came from; places are flat, and -1 means from none."""
    taken = places.ravel() >= 0
    total = np.bincount(places.ravel()[taken], g.ravel()[taken], math.prod(shape))
    return (total.reshape(shape).astype(g.dtype),)


@differentiates("pad")
def pad_vjp(
    g: NDArray,
    inputs: Arrays,
    output: NDArray,
    padding: Sequence[Sequence[int]],
    mode: str = "constant",
    value: Any = 0,
) -> tuple[NDArray]:
    """Add what was copied to the number that it copies."""
    places = pad(np.arange(1, inputs[0].size + 1).reshape(inputs[0].shape), padding, mode, 0) - 1
    return _moved(g, inputs[0].shape, places)


@differentiates("flip")
def flip_vjp(g: NDArray, inputs: Arrays, output: NDArray, axes: Sequence[int]) -> tuple[NDArray]:
    """Reverse back."""
    return (np.flip(g, tuple(axes)),)


@differentiates("roll")
def roll_vjp(
    g: NDArray, inputs: Arrays, output: NDArray, shifts: Sequence[int], axes: Sequence[int] | None = None
) -> tuple[NDArray]:
    """Shift back."""
    return (roll(g, [-n for n in shifts], axes),)


@differentiates("tile")
def tile_vjp(g: NDArray, inputs: Arrays, output: NDArray, repeats: Sequence[int]) -> tuple[NDArray]:
    """Sum over the copies."""
    return _moved(g, inputs[0].shape, tile(np.arange(inputs[0].size).reshape(inputs[0].shape), repeats))


@differentiates("repeat")
def repeat_vjp(g: NDArray, inputs: Arrays, output: NDArray, repeats: int, axis: int) -> tuple[NDArray]:
    """Sum over the copies."""
    return _moved(g, inputs[0].shape, repeat(np.arange(inputs[0].size).reshape(inputs[0].shape), repeats, axis))


@differentiates("gather")
def gather_vjp(g: NDArray, inputs: Arrays, output: NDArray, axis: int = 0) -> tuple[NDArray, None]:
    """Add each cotangent to the place that was taken."""
    x, indices = inputs
    gradient = np.zeros_like(np.moveaxis(x, axis, 0))
    front = np.moveaxis(g, range(axis, axis + indices.ndim), range(indices.ndim))
    np.add.at(gradient, indices.astype(np.int64, copy=False), front)
    return np.moveaxis(gradient, 0, axis), None


@differentiates("take_along")
def take_along_vjp(g: NDArray, inputs: Arrays, output: NDArray, axis: int) -> tuple[NDArray, None]:
    """Add each cotangent to the place that was taken."""
    places = take_along(np.arange(inputs[0].size).reshape(inputs[0].shape), inputs[1], axis)
    return *_moved(g, inputs[0].shape, places), None


@differentiates("triangle")
def triangle_vjp(
    g: NDArray, inputs: Arrays, output: NDArray, low: int | None = None, high: int | None = None
) -> tuple[NDArray]:
    """Keep the same places."""
    return (triangle(g, low, high),)


@differentiates("depth_to_space")
def depth_to_space_vjp(g: NDArray, inputs: Arrays, output: NDArray, **attributes: Any) -> tuple[NDArray]:
    """Turn blocks of pixels back into channels."""
    return (space_to_depth(g, **attributes),)


@differentiates("space_to_depth")
def space_to_depth_vjp(g: NDArray, inputs: Arrays, output: NDArray, **attributes: Any) -> tuple[NDArray]:
    """Turn channels back into blocks of pixels."""
    return (depth_to_space(g, **attributes),)
