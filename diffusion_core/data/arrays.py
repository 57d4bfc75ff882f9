"""Arrays of any library as stored items: on the host, with the channels last, as bytes or as floats.

The axes are decided by the shape, never by the library that an array comes from:

    (N, D)                     vectors
    (N, H, W) of uint8         grey images
    (N, H, W, C)               if the last axis alone is 1 or 3, or the axes between are equal that way alone
    (N, C, H, W)               the same for the second axis; it is moved to the end
    (N, D, H, W, C)            volumes, by the same rule

Everything else has two readings and is refused with both; ``layout`` chooses: "channels_last", "channels_first", or
"grey" for (N, H, W).

Bytes stay bytes and floats stay floats. Floats of 16 bits become float32. Integers of other types become float32 where
``value_range`` says what black and white are; otherwise they are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.data.pixels import check_value_range

__all__ = ["LAYOUTS", "arrange", "host_array", "is_array", "store_values"]

LAYOUTS = ("channels_last", "channels_first", "grey")
_BLOCK_BYTES = 1 << 26


def is_array(value: Any) -> bool:
    """Return whether a value is an array or a tensor of any library, and no sequence, text or image file."""
    return hasattr(value, "__array__") and hasattr(value, "shape") and hasattr(value, "dtype")


def host_array(value: Any) -> NDArray:
    """Return an array or a tensor of any library as a NumPy array; values of 16-bit types are kept.

    Raises:
        DuetError: it cannot become one.
    """
    if np.ma.is_masked(value):
        raise DuetError("a masked array was given, whose masked values are unknown; fill them, as in array.filled(0)")
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "detach"):  # a tensor that may have a gradient, or lie on another device
        value = value.detach().cpu()
    try:
        array = np.asarray(value)
    except TypeError:
        # NumPy has no bfloat16; every value of it is a float32.
        if not hasattr(value, "float"):
            raise DuetError(f"an array of {type(value).__name__} was given; NumPy cannot read it") from None
        array = np.asarray(value.float())
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def arrange(what: str, array: NDArray, layout: str | None = None) -> tuple[NDArray, str | None]:
    """Return an array with the channels last, and a remark if equal axes alone say which these are.

    Args:
        what: the data, with which errors begin.
        array: with shape (N, ...).
        layout: one of `LAYOUTS`; None decides by the shape.

    Raises:
        DuetError: the shape has two readings, or none.

    Example:
        >>> arrange("cells", np.zeros((10, 3, 32, 48), np.uint8))[0].shape
        (10, 32, 48, 3)
    """
    shape = array.shape
    if 0 in shape:
        raise DuetError(f"{what}: an array with shape {shape} was given; the array is empty")
    if layout is not None and layout not in LAYOUTS:
        raise one_of("data.options.layout", layout, LAYOUTS)
    if array.ndim not in ((3,) if layout == "grey" else (2, 3, 4, 5)):
        needed = "(N, H, W)" if layout == "grey" else "(N, ...) with two to five axes, the first of which is the item"
        raise DuetError(f"{what}: an array with shape {shape} was given; it must be {needed}")
    if array.ndim == 2 or layout == "channels_last":
        return array, None
    if layout == "grey":
        return array[..., None], None
    if layout == "channels_first":
        return np.moveaxis(array, 1, -1), None
    if array.ndim == 3:
        return _grey(what, array), None
    return _by_lengths(what, array)


def _grey(what: str, array: NDArray) -> NDArray:
    shape = array.shape
    if array.dtype == np.uint8 and shape[2] <= 4:  # (H, W, 3) is one image, and not H images that are 3 pixels wide
        raise DuetError(
            f"{what}: an array of uint8 with shape {shape} was given; it looks like one image, which is given as "
            f"images[None]; for sequences (N, L, C), set data.options.layout=channels_last"
        )
    if array.dtype == np.uint8:
        return array[..., None]
    raise DuetError(
        f"{what}: an array of {array.dtype} with shape {shape} can be read in several ways; choose with "
        f"data.options.layout: grey for {shape[0]} grey images of {shape[1]} x {shape[2]}; channels_last for sequences "
        f"of length {shape[1]} with {shape[2]} channels; channels_first for sequences of length {shape[2]} with "
        f"{shape[1]} channels"
    )


def _by_lengths(what: str, array: NDArray) -> tuple[NDArray, str | None]:
    """Decide where the channels are of an array with at least two axes of space."""
    shape = array.shape
    last, first = (shape[-1], shape[1:-1]), (shape[1], shape[2:])  # channels and space of the two readings
    if array.dtype == np.uint8 and array.ndim == 4 and last[0] == 4 and shape[1] not in (1, 3):
        raise DuetError(
            f"{what}: an array of uint8 with shape {shape} was given; of RGBA, give images[..., :3]; four channels of "
            f"another kind are kept with data.options.layout=channels_last"
        )
    rules = (lambda reading: reading[0] in (1, 3), lambda reading: len(set(reading[1])) == 1)
    rule = next((rule for rule in rules if rule(last) != rule(first)), None)
    if rule is None:
        readings = (
            f"channels_{name} for items of {' x '.join(map(str, space))} with {channels} channels"
            for name, (channels, space) in (("last", last), ("first", first))
        )
        raise DuetError(
            f"{what}: an array with shape {shape} can be read in two ways; choose with data.options.layout: "
            f"{', or '.join(readings)}"
        )
    arranged = array if rule(last) else np.moveaxis(array, 1, -1)
    if rule is rules[0]:
        return arranged, None
    return arranged, f"the shape {shape} is read as channels {'last' if rule(last) else 'first'}, by its equal axes"


def store_values(
    what: str, array: NDArray, value_range: Sequence[float] | None = None
) -> tuple[NDArray, tuple[float, float] | None, str | None]:
    """Return values as they are stored, their range, and a remark on how floats are understood.

    Args:
        what: the data, with which errors begin.
        array: with shape (N, ..., C).
        value_range: the values of black and white; None says that floats are network values already.

    Raises:
        DuetError: the type is none of numbers, a value is not finite, or floats look like pixels without a range.
    """
    if value_range is not None:
        value_range = check_value_range(value_range, "data.options.value_range")
    if array.dtype == np.uint8:
        if value_range not in (None, (0.0, 255.0)):
            raise DuetError(
                f"data.options.value_range: {value_range} was given, but {what} is uint8, which is 0 to 255"
            )
        return array, None, None
    if array.dtype.kind not in "iuf":
        hint = ", as images.astype(np.uint8) * 255 is" if array.dtype.kind == "b" else ""
        raise DuetError(f"{what}: an array of {array.dtype} was given; it must be uint8, or floats{hint}")
    low, high = _ends(what, array)
    if array.dtype.kind in "iu" and value_range is None:
        bytes_hint = ": give images.astype(np.uint8)" if low >= 0 and high <= 255 else ""
        raise DuetError(
            f"{what}: an array of {array.dtype} was given; it must be uint8, or floats; the values are {low:g} to "
            f"{high:g}{bytes_hint}, or set data.options.value_range=[LOW, HIGH], the values of black and white"
        )
    small = array.dtype.kind in "iu" or array.dtype.itemsize == 2
    kept = np.dtype(np.float32 if small else np.float64 if array.dtype.itemsize >= 8 else np.float32)
    stored = array if array.dtype == kept else array.astype(kept)
    if value_range is not None:
        if low >= value_range[0] and high <= value_range[1]:
            return stored, value_range, None
        text = f"values from {low:.4g} to {high:.4g} reach beyond the range {value_range[0]:g} to {value_range[1]:g}"
        return stored, value_range, f"{text}; they are kept"
    if array.ndim == 4 and array.shape[3] in (1, 3) and low >= 0 and high <= 255:
        top = "1" if high <= 1 else "255"
        raise DuetError(
            f"{what}: the values are floats from {low:.4g} to {high:.4g}, which can be pixels or network values; set "
            f"data.options.value_range=[0, {top}] for pixels, or data.options.value_range=[-1, 1] to take them as they "
            f"are"
        )
    return stored, None, f"float values from {low:.4g} to {high:.4g} are network values, taken as they are"


def _ends(what: str, array: NDArray) -> tuple[float, float]:
    """Return the least and the largest value, read in blocks."""
    ends = [(float(block.min()), float(block.max())) for block in _blocks(array)]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    # The minimum and the maximum of a block with NaN are NaN, and min() may lose it.
    if not np.isfinite(np.array(ends)).all():
        raise DuetError(f"{what}: some values are NaN or infinite; they must be finite numbers")
    return low, high


def _blocks(array: NDArray) -> Iterator[NDArray]:
    step = max(1, _BLOCK_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), step):
        yield np.asarray(array[start : start + step])
