"""Convolutions, pools and patches: what looks through a window, in one, two or three dimensions.

Arrays are computed as ``batch, channels, *space`` or ``batch, *space, channels``, as they come. A convolution copies
the numbers that each tap of the kernel sees into one block per image, and multiplies that by the kernel; a transposed
one multiplies first and adds the block back.

Places of a window: output i, tap k reads ``i stride + k dilation - before``. With `ceil_mode` an output whose window
sticks out behind the padded input counts if it starts inside the input or the padding before it (PyTorch's rule).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff.operations.registry import differentiates, evaluates

__all__ = ["output_sizes"]

Ints = Sequence[int]
Pairs = Sequence[Sequence[int]]


def output_sizes(
    sizes: Ints, window: Ints, strides: Ints, padding: Pairs, dilation: Ints, ceil_mode: bool = False
) -> tuple[int, ...]:
    """Return the number of windows along each spatial axis."""
    result = []
    for n, k, s, (before, after), d in zip(sizes, window, strides, padding, dilation, strict=True):
        free = n + before + after - d * (k - 1) - 1
        count = (-(-free // s) if ceil_mode else free // s) + 1
        if ceil_mode and (count - 1) * s >= n + before:
            count -= 1
        result.append(count)
    return tuple(result)


def _fields(ndim: int, window: Ints, strides: Ints | None, padding: Pairs | None, dilation: Ints | None) -> tuple:
    return strides or [1] * len(window), padding or [(0, 0)] * len(window), dilation or [1] * len(window)


def _first(x: NDArray, layout: str) -> NDArray:
    return x if layout == "channels_first" else np.moveaxis(x, -1, 1)


def _back(x: NDArray, layout: str) -> NDArray:
    return x if layout == "channels_first" else np.moveaxis(x, 1, -1)


def _padded(x: NDArray, padding: Pairs, value: float, needed: Ints) -> NDArray:
    """Pad channels-first images, behind them by as much as the last window needs; a negative number cuts."""
    pairs = [(0, 0), (0, 0)]
    for n, (before, _), size in zip(x.shape[2:], padding, needed, strict=True):
        pairs.append((before, size - n - before))
    if any(n < 0 for pair in pairs for n in pair):
        x = x[tuple(slice(max(-a, 0), n - max(-b, 0)) for (a, b), n in zip(pairs, x.shape, strict=True))]
        pairs = [(max(a, 0), max(b, 0)) for a, b in pairs]
    if not any(n for pair in pairs for n in pair):
        return x
    return np.pad(x, pairs, constant_values=value)


def _taps(window: Ints, strides: Ints, dilation: Ints, outputs: Ints) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """Yield each tap's number and the places that it sees, as slices of the spatial axes."""
    for number, tap in enumerate(itertools.product(*map(range, window))):
        starts = [k * d for k, d in zip(tap, dilation, strict=True)]
        yield (
            number,
            tuple(
                slice(start, start + (n - 1) * s + 1, s) for start, n, s in zip(starts, outputs, strides, strict=True)
            ),
        )


def _needed(window: Ints, strides: Ints, dilation: Ints, outputs: Ints) -> list[int]:
    return [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(outputs, strides, dilation, window, strict=True)]


# A kernel in one form: (groups, outputs per group, taps * inputs per group). Taps come first, then input channels.

_SPATIAL_FIRST = {"HWIO", "HWIM", "HWOI"}


def _kernel_parts(w: NDArray, kernel: str, groups: int) -> tuple[tuple[int, ...], NDArray]:
    """Return the window and the kernel as (groups, taps, inputs per group, outputs per group).

    For transposed kernels inputs are those of the transposed convolution, which are the outputs of its adjoint.
    """
    if kernel in _SPATIAL_FIRST:
        window, (first, second) = w.shape[:-2], w.shape[-2:]
        flat = w.reshape(-1, first, second)
    else:
        window, (second, first) = w.shape[2:], w.shape[:2]
        flat = w.reshape(second, first, -1).transpose(2, 1, 0)
    taps = len(flat)
    if kernel == "HWIM":  # (taps, channels, multiplier): every channel is a group of its own
        return window, flat.transpose(1, 0, 2)[:, :, None, :]
    return window, flat.reshape(taps, first, groups, second // groups).transpose(2, 0, 1, 3)


def _kernel_whole(parts: NDArray, shape: tuple[int, ...], kernel: str) -> NDArray:
    """Undo `_kernel_parts`."""
    groups, taps, first, second = parts.shape
    if kernel == "HWIM":
        return parts[:, :, 0, :].transpose(1, 0, 2).reshape(shape)
    flat = parts.transpose(1, 2, 0, 3).reshape(taps, first, groups * second)
    return flat.reshape(shape) if kernel in _SPATIAL_FIRST else flat.transpose(2, 1, 0).reshape(shape)


def _columns(x: NDArray, groups: int, window: Ints, strides: Ints, dilation: Ints, outputs: Ints) -> NDArray:
    """Return what the taps see of one padded image (channels, *space): (groups, taps * channels, outputs)."""
    taps, channels = math.prod(window), x.shape[0] // groups
    block = np.empty((groups, taps, channels, *outputs), x.dtype)
    grouped = x.reshape(groups, channels, *x.shape[1:])
    for number, place in _taps(window, strides, dilation, outputs):
        block[:, number] = grouped[:, :, *place]
    return block.reshape(groups, taps * channels, -1)


def _scattered(block: NDArray, channels: int, window: Ints, strides: Ints, dilation: Ints, outputs: Ints) -> NDArray:
    """Add (groups, taps * channels, outputs) to the places that the taps see; the adjoint of `_columns`."""
    groups = len(block)
    block = block.reshape(groups, math.prod(window), channels, *outputs)
    image = np.zeros((groups, channels, *_needed(window, strides, dilation, outputs)), block.dtype)
    for number, place in _taps(window, strides, dilation, outputs):
        image[:, :, *place] += block[:, number]
    return image.reshape(groups * channels, *image.shape[2:])


def _cut(image: NDArray, padding: Pairs, sizes: Ints) -> NDArray:
    """Take `sizes` places behind the padding of (channels, *space); what is not there is 0."""
    result = np.zeros((len(image), *sizes), image.dtype)
    here, there = [slice(None)], [slice(None)]
    for (before, _), n, size in zip(padding, image.shape[1:], sizes, strict=True):
        start, stop = max(before, 0), min(n, before + size)
        here.append(slice(start, max(stop, start)))
        there.append(slice(start - before, max(stop, start) - before))
    result[tuple(there)] = image[tuple(here)]
    return result


def _direct(x: NDArray, parts: NDArray, window: Ints, strides: Ints, padding: Pairs, dilation: Ints) -> NDArray:
    """Convolve channels-first images with a kernel (groups, taps, inputs, outputs)."""
    groups, _, _, channels = parts.shape
    outputs = output_sizes(x.shape[2:], window, strides, padding, dilation)
    x = _padded(x, padding, 0, _needed(window, strides, dilation, outputs))
    matrix = parts.reshape(groups, -1, channels).swapaxes(1, 2)
    result = np.empty((len(x), groups * channels, *outputs), np.result_type(x, parts))
    for image, y in zip(x, result, strict=True):
        y[...] = (matrix @ _columns(image, groups, window, strides, dilation, outputs)).reshape(y.shape)
    return result


def _adjoint(
    y: NDArray, parts: NDArray, window: Ints, strides: Ints, padding: Pairs, dilation: Ints, sizes: Ints
) -> NDArray:
    """Return the adjoint of `_direct` in x, for images of these sizes."""
    groups, _, inputs, channels = parts.shape
    matrix = parts.reshape(groups, -1, channels)
    result = np.empty((len(y), groups * inputs, *sizes), np.result_type(y, parts))
    for image, x in zip(y, result, strict=True):
        block = matrix @ image.reshape(groups, channels, -1)
        x[...] = _cut(_scattered(block, inputs, window, strides, dilation, image.shape[1:]), padding, sizes)
    return result


def _kernel_gradient(
    x: NDArray, y: NDArray, groups: int, window: Ints, strides: Ints, padding: Pairs, dilation: Ints
) -> NDArray:
    """Return the adjoint of `_direct` in the kernel, for inputs x and cotangents y."""
    x = _padded(x, padding, 0, _needed(window, strides, dilation, y.shape[2:]))
    total = 0
    for image, g in zip(x, y, strict=True):
        columns = _columns(image, groups, window, strides, dilation, g.shape[1:])
        total = total + columns @ g.reshape(groups, len(g) // groups, -1).swapaxes(1, 2)
    return total.reshape(groups, math.prod(window), x.shape[1] // groups, -1)


@evaluates("conv")
def conv(
    x: NDArray,
    w: NDArray,
    layout: str,
    kernel: str,
    strides: Ints | None = None,
    padding: Pairs | None = None,
    dilation: Ints | None = None,
    groups: int = 1,
) -> NDArray:
    """Convolve, without turning the kernel round."""
    window, parts = _kernel_parts(w, kernel, groups)
    strides, padding, dilation = _fields(x.ndim, window, strides, padding, dilation)
    return _back(_direct(_first(x, layout), parts, window, strides, padding, dilation), layout)


@differentiates("conv")
def conv_vjp(
    g: NDArray,
    inputs: Sequence[NDArray],
    output: NDArray,
    layout: str,
    kernel: str,
    strides: Ints | None = None,
    padding: Pairs | None = None,
    dilation: Ints | None = None,
    groups: int = 1,
) -> tuple[NDArray, NDArray]:
    """Return the gradients of the images and of the kernel."""
    x, w = inputs
    window, parts = _kernel_parts(w, kernel, groups)
    fields = _fields(x.ndim, window, strides, padding, dilation)
    first, cotangent = _first(x, layout), _first(g, layout)
    to_x = _adjoint(cotangent, parts, window, *fields, first.shape[2:])
    to_w = _kernel_gradient(first, cotangent, len(parts), window, *fields)
    return _back(to_x, layout), _kernel_whole(to_w, w.shape, kernel)


@evaluates("conv_transpose")
def conv_transpose(
    x: NDArray,
    w: NDArray,
    layout: str,
    kernel: str,
    strides: Ints | None = None,
    padding: Pairs | None = None,
    dilation: Ints | None = None,
    groups: int = 1,
    output_size: Ints | None = None,
) -> NDArray:
    """Apply the adjoint of a convolution; `padding` is cut from the full result, and what is missing behind is 0."""
    window, parts = _transposed_parts(w, kernel, groups)
    strides, padding, dilation = _fields(x.ndim, window, strides, padding, dilation)
    first = _first(x, layout)
    sizes = output_size or [
        n - before - after
        for n, (before, after) in zip(_needed(window, strides, dilation, first.shape[2:]), padding, strict=True)
    ]
    return _back(_adjoint(first, parts, window, strides, padding, dilation, sizes), layout)


def _transposed_parts(w: NDArray, kernel: str, groups: int) -> tuple[tuple[int, ...], NDArray]:
    # "IOHW" and "HWOI" are the OIHW and the HWIO of the convolution whose adjoint this is.
    return _kernel_parts(w, {"IOHW": "OIHW", "HWOI": "HWIO"}.get(kernel, kernel), groups)


@differentiates("conv_transpose")
def conv_transpose_vjp(
    g: NDArray,
    inputs: Sequence[NDArray],
    output: NDArray,
    layout: str,
    kernel: str,
    strides: Ints | None = None,
    padding: Pairs | None = None,
    dilation: Ints | None = None,
    groups: int = 1,
    output_size: Ints | None = None,
) -> tuple[NDArray, NDArray]:
    """Return the gradients of the images and of the kernel."""
    x, w = inputs
    window, parts = _transposed_parts(w, kernel, groups)
    strides, padding, dilation = _fields(x.ndim, window, strides, padding, dilation)
    first, cotangent = _first(x, layout), _first(g, layout)
    # The padding behind, so that the convolution of the cotangent has as many windows as x has pixels.
    needed = _needed(window, strides, dilation, first.shape[2:])
    pairs = [(b, total - n - b) for (b, _), total, n in zip(padding, needed, cotangent.shape[2:], strict=True)]
    to_x = _direct(cotangent, parts, window, strides, pairs, dilation)
    to_w = _kernel_gradient(cotangent, first, len(parts), window, strides, pairs, dilation)
    whole = _kernel_whole(to_w, w.shape, {"IOHW": "OIHW", "HWOI": "HWIO"}.get(kernel, kernel))
    return _back(to_x, layout), whole


def _lowest(dtype: np.dtype) -> float | int:
    return -np.inf if dtype.kind == "f" else np.iinfo(dtype).min if dtype.kind in "iu" else 0


def _seen(x: NDArray, window: Ints, strides: Ints, dilation: Ints, outputs: Ints) -> Iterator[NDArray]:
    for _, place in _taps(window, strides, dilation, outputs):
        yield x[:, :, *place]


@evaluates("max_pool")
def max_pool(
    x: NDArray,
    window: Ints,
    layout: str,
    strides: Ints | None = None,
    padding: Pairs | None = None,
    dilation: Ints | None = None,
    ceil_mode: bool = False,
) -> NDArray:
    """Return the largest number of each window; padding is never the largest."""
    strides, padding, dilation = _fields(x.ndim, window, strides or window, padding, dilation)
    first = _first(x, layout)
    outputs = output_sizes(first.shape[2:], window, strides, padding, dilation, ceil_mode)
    full = _padded(first, padding, _lowest(x.dtype), _needed(window, strides, dilation, outputs))
    result = np.full((*first.shape[:2], *outputs), _lowest(x.dtype), x.dtype)
    for part in _seen(full, window, strides, dilation, outputs):
        np.maximum(result, part, out=result)
    return _back(result, layout)


@differentiates("max_pool")
def max_pool_vjp(
    g: NDArray,
    inputs: Sequence[NDArray],
    output: NDArray,
    window: Ints,
    layout: str,
    strides: Ints | None = None,
    padding: Pairs | None = None,
    dilation: Ints | None = None,
    ceil_mode: bool = False,
) -> tuple[NDArray]:
    """Give each cotangent to the first tap that has the largest number, as both frameworks do."""
    strides, padding, dilation = _fields(g.ndim, window, strides or window, padding, dilation)
    first, cotangent, y = _first(inputs[0], layout), _first(g, layout), _first(output, layout)
    outputs = y.shape[2:]
    full = _padded(first, padding, -np.inf, _needed(window, strides, dilation, outputs))
    gradient, free = np.zeros_like(full), np.ones(y.shape, bool)
    for _, place in _taps(window, strides, dilation, outputs):
        taken = free & (full[:, :, *place] == y)
        gradient[:, :, *place] += np.where(taken, cotangent, 0)
        free &= ~taken
    flat = gradient.reshape(-1, *gradient.shape[2:])
    return (_back(_cut(flat, padding, first.shape[2:]).reshape(first.shape), layout),)


def _counts(
    sizes: Ints, window: Ints, strides: Ints, padding: Pairs, outputs: Ints, count_include_pad: bool
) -> NDArray:
    """Return how many places of each window count: those of the input, or also those of the padding around it."""
    counts = []
    for n, k, s, (before, after), m in zip(sizes, window, strides, padding, outputs, strict=True):
        start = np.arange(m) * s - before
        low, high = (-before, n + after) if count_include_pad else (0, n)
        counts.append(np.maximum(np.minimum(start + k, high) - np.maximum(start, low), 0))
    result = counts[0]
    for count in counts[1:]:
        result = result[..., None] * count
    return result


@evaluates("avg_pool")
def avg_pool(
    x: NDArray,
    window: Ints,
    layout: str,
    strides: Ints | None = None,
    padding: Pairs | None = None,
    dilation: Ints | None = None,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> NDArray:
    """Return the mean of each window, or its sum over a divisor."""
    strides, padding, dilation = _fields(x.ndim, window, strides or window, padding, dilation)
    first = _first(x, layout)
    outputs = output_sizes(first.shape[2:], window, strides, padding, dilation, ceil_mode)
    full = _padded(first, padding, 0, _needed(window, strides, dilation, outputs))
    total = np.zeros((*first.shape[:2], *outputs), x.dtype)
    for part in _seen(full, window, strides, dilation, outputs):
        total += part
    counts = divisor or _counts(first.shape[2:], window, strides, padding, outputs, count_include_pad).astype(x.dtype)
    return _back(total / counts, layout)


@differentiates("avg_pool")
def avg_pool_vjp(
    g: NDArray,
    inputs: Sequence[NDArray],
    output: NDArray,
    window: Ints,
    layout: str,
    strides: Ints | None = None,
    padding: Pairs | None = None,
    dilation: Ints | None = None,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> tuple[NDArray]:
    """Spread each cotangent evenly over what counted."""
    strides, padding, dilation = _fields(g.ndim, window, strides or window, padding, dilation)
    first, cotangent = _first(inputs[0], layout), _first(g, layout)
    outputs = cotangent.shape[2:]
    sizes = first.shape[2:]
    share = cotangent / (
        divisor or _counts(sizes, window, strides, padding, outputs, count_include_pad).astype(g.dtype)
    )
    gradient = np.zeros((*first.shape[:2], *_needed(window, strides, dilation, outputs)), g.dtype)
    for _, place in _taps(window, strides, dilation, outputs):
        gradient[:, :, *place] += share
    flat = gradient.reshape(-1, *gradient.shape[2:])
    return (_back(_cut(flat, padding, sizes).reshape(first.shape), layout),)


def _bins(old: int, new: int) -> list[slice]:
    """Return the pixels of each bin of an adaptive pool; neighbouring bins may share one."""
    return [slice(i * old // new, -(-(i + 1) * old // new)) for i in range(new)]


def _adaptive(x: NDArray, output_size: Ints, layout: str, largest: bool) -> NDArray:
    first = _first(x, layout)
    for axis, new in enumerate(output_size, start=2):
        parts = [first[(slice(None),) * axis + (place,)] for place in _bins(first.shape[axis], new)]
        first = np.stack([p.max(axis=axis) if largest else p.mean(axis=axis) for p in parts], axis)
    return _back(first, layout)


@evaluates("adaptive_avg_pool")
def adaptive_avg_pool(x: NDArray, output_size: Ints, layout: str) -> NDArray:
    """Return the means of `output_size` bins, from ``floor(i n / m)`` to ``ceil((i + 1) n / m)``."""
    return _adaptive(x, output_size, layout, largest=False)


@evaluates("adaptive_max_pool")
def adaptive_max_pool(x: NDArray, output_size: Ints, layout: str) -> NDArray:
    """Return the largest numbers of the bins of `adaptive_avg_pool`."""
    return _adaptive(x, output_size, layout, largest=True)


@differentiates("adaptive_avg_pool")
def adaptive_avg_pool_vjp(
    g: NDArray, inputs: Sequence[NDArray], output: NDArray, output_size: Ints, layout: str
) -> tuple[NDArray]:
    """Spread each cotangent evenly over its bin."""
    first, gradient = _first(inputs[0], layout), _first(g, layout)
    for axis, new in enumerate(output_size, start=2):
        old = first.shape[axis]
        matrix = np.zeros((new, old), g.dtype)
        for row, place in zip(matrix, _bins(old, new), strict=True):
            row[place] = 1 / (place.stop - place.start)
        gradient = np.moveaxis(np.tensordot(gradient, matrix, (axis, 0)), -1, axis)
    return (_back(gradient, layout),)


@differentiates("adaptive_max_pool")
def adaptive_max_pool_vjp(
    g: NDArray, inputs: Sequence[NDArray], output: NDArray, output_size: Ints, layout: str
) -> tuple[NDArray]:
    """Give each cotangent to the first largest number of its bin."""
    first, cotangent = _first(inputs[0], layout), _first(g, layout)
    gradient = np.zeros_like(first)
    bins = [list(enumerate(_bins(old, new))) for old, new in zip(first.shape[2:], output_size, strict=True)]
    for cell in itertools.product(*bins):
        place = (slice(None), slice(None), *(part for _, part in cell))
        block = first[place].reshape(*first.shape[:2], -1)
        chosen = np.zeros(block.shape, g.dtype)
        value = cotangent[(slice(None), slice(None), *(i for i, _ in cell))]
        np.put_along_axis(chosen, block.argmax(axis=-1)[..., None], value[..., None], -1)
        gradient[place] += chosen.reshape(gradient[place].shape)
    return (_back(gradient, layout),)


# Patches. torch's unfold has channels before taps, TensorFlow's extract_patches taps before channels.


def _patches(x: NDArray, window: Ints, strides: Ints, padding: Pairs, dilation: Ints) -> NDArray:
    """Return (batch, taps, channels, *outputs) of channels-first images."""
    outputs = output_sizes(x.shape[2:], window, strides, padding, dilation)
    full = _padded(x, padding, 0, _needed(window, strides, dilation, outputs))
    return np.stack(list(_seen(full, window, strides, dilation, outputs)), axis=1)


def _unpatched(g: NDArray, x: NDArray, window: Ints, strides: Ints, padding: Pairs, dilation: Ints) -> NDArray:
    """Return the adjoint of `_patches`."""
    result = np.empty_like(x)
    for block, image in zip(g, result, strict=True):
        flat = block.reshape(1, -1, math.prod(block.shape[2:]))
        image[...] = _cut(
            _scattered(flat, len(image), window, strides, dilation, block.shape[2:]), padding, image.shape[1:]
        )
    return result


@evaluates("unfold")
def unfold(
    x: NDArray,
    window: Ints,
    strides: Ints | None = None,
    padding: Pairs | None = None,
    dilation: Ints | None = None,
) -> NDArray:
    """Return patches of b c h w as b (c kh kw) places."""
    patches = _patches(x, window, *_fields(x.ndim, window, strides, padding, dilation))
    return patches.swapaxes(1, 2).reshape(len(x), x.shape[1] * math.prod(window), -1)


@differentiates("unfold")
def unfold_vjp(
    g: NDArray,
    inputs: Sequence[NDArray],
    output: NDArray,
    window: Ints,
    strides: Ints | None = None,
    padding: Pairs | None = None,
    dilation: Ints | None = None,
) -> tuple[NDArray]:
    """Add the patches back."""
    (x,) = inputs
    strides, padding, dilation = _fields(x.ndim, window, strides, padding, dilation)
    outputs = output_sizes(x.shape[2:], window, strides, padding, dilation)
    patches = g.reshape(len(x), x.shape[1], math.prod(window), *outputs).swapaxes(1, 2)
    return (_unpatched(patches, x, window, strides, padding, dilation),)


@evaluates("extract_patches")
def extract_patches(
    x: NDArray,
    window: Ints,
    strides: Ints | None = None,
    padding: Pairs | None = None,
    dilation: Ints | None = None,
) -> NDArray:
    """Return patches of b h w c as b h w (kh kw c)."""
    first = np.moveaxis(x, -1, 1)
    patches = _patches(first, window, *_fields(x.ndim, window, strides, padding, dilation))
    patches = np.moveaxis(patches, (1, 2), (-2, -1))
    return patches.reshape(*patches.shape[:-2], -1)


@differentiates("extract_patches")
def extract_patches_vjp(
    g: NDArray,
    inputs: Sequence[NDArray],
    output: NDArray,
    window: Ints,
    strides: Ints | None = None,
    padding: Pairs | None = None,
    dilation: Ints | None = None,
) -> tuple[NDArray]:
    """Add the patches back."""
    (x,) = inputs
    fields = _fields(x.ndim, window, strides, padding, dilation)
    patches = np.moveaxis(g.reshape(*g.shape[:-1], math.prod(window), -1), (-2, -1), (1, 2))
    return (np.moveaxis(_unpatched(patches, np.moveaxis(x, -1, 1), window, *fields), 1, -1),)
