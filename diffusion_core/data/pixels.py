"""Convert between stored values and network values: one rule each way, the same for every framework.

An image is stored as uint8 in 0..255; a network sees a value range [low, high], by default [-1, 1]::

    k  = 255 / (high - low)                                    127.5 for [-1, 1]
    x  = u8 / k + low
    u8 = clip(floor((x - low) * k + 1/2), 0, 255)              round half up

Both are computed in float64 and cast once, so the rounding of a framework does not affect an image. For [-1, 1] and
[0, 1] the way back recovers every pixel from float64, float32, float16 and bfloat16. In bfloat16 the rounding is up to
0.25 of a pixel step in [-1, 1] and up to 0.4961 in [0, 1], just below the 0.5 that would fail.

Data that are stored as floats are never rounded to bytes. If they have a range [first, last] of their own, it is mapped
to that of the network, and values outside are kept; without one, they are network values already, as latents are::

    x  = (v - first) (high - low) / (last - first) + low       x = v without a range, or if the two ranges are equal
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from diffusion_core.common.errors import DuetError

__all__ = ["VALUE_RANGE", "check_value_range", "from_stored", "from_uint8", "to_uint8"]

VALUE_RANGE = (-1.0, 1.0)


def check_value_range(value_range: Sequence[float], what: str = "process.value_range") -> tuple[float, float]:
    """Return a value range as (low, high).

    Args:
        value_range: two numbers.
        what: the configuration key, for the error.

    Raises:
        DuetError: it is not two finite numbers, the first below the second.
    """
    try:
        low, high = (float(value) if isinstance(value, Real) else math.nan for value in value_range)
    except (TypeError, ValueError):
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise DuetError(f"{what}: {value_range!r} was given; it must be two numbers, low and high, as in [-1, 1]")
    return low, high


def from_uint8(u8: ArrayLike, dtype: DTypeLike = np.float32, value_range: Sequence[float] = VALUE_RANGE) -> NDArray:
    """Return the network values of stored pixels, with the shape of `u8`.

    Args:
        u8: stored pixels.
        dtype: the type of the values.
        value_range: the values of the pixels 0 and 255.

    Raises:
        DuetError: `u8` is not uint8, or the range is invalid.

    Example:
        >>> from_uint8(np.array([0, 51, 255], np.uint8))
        array([-1. , -0.6,  1. ], dtype=float32)
    """
    low, high = check_value_range(value_range)
    u8 = np.asarray(u8)
    if u8.dtype != np.uint8:
        raise DuetError(f"pixels: an array of {u8.dtype} was given; stored pixels are uint8")
    # Apply the float64 rule once to all 256 values, then look them up.
    table = np.arange(256) / (255.0 / (high - low)) + low
    return table.astype(dtype)[u8]


def from_stored(
    stored: NDArray,
    dtype: DTypeLike = np.float32,
    value_range: Sequence[float] = VALUE_RANGE,
    stored_range: Sequence[float] | None = None,
) -> NDArray:
    """Return the network values of stored bytes or floats, with the shape of `stored`.

    Args:
        stored: uint8 pixels, or floats.
        dtype: the type of the values.
        value_range: the range of the network.
        stored_range: the range of stored floats; None says that they are network values.

    Example:
        >>> from_stored(np.array([0.0, 0.25, 1.5]), stored_range=(0, 1))
        array([-1. , -0.5,  2. ], dtype=float32)
    """
    if stored.dtype == np.uint8:
        return from_uint8(stored, dtype, value_range)
    (low, high) = check_value_range(value_range)
    if stored_range is None or tuple(stored_range) == (low, high):
        return stored.astype(dtype)
    first, last = stored_range
    return ((stored.astype(np.float64) - first) * ((high - low) / (last - first)) + low).astype(dtype)


def to_uint8(x: ArrayLike, value_range: Sequence[float] = VALUE_RANGE) -> NDArray[np.uint8]:
    """Return the stored pixels of network values, with the shape of `x`; values outside the range are clipped.

    Args:
        x: network values.
        value_range: the values of the pixels 0 and 255.

    Raises:
        DuetError: a value is NaN, or the range is invalid.

    Example:
        >>> to_uint8([-1.0, 0.0, 3.0])
        array([  0, 128, 255], dtype=uint8)
    """
    low, high = check_value_range(value_range)
    x = np.asarray(x).astype(np.float64)
    if np.isnan(x).any():
        raise DuetError(
            f"pixels: {np.isnan(x).sum()} of {x.size} values are NaN; they must be numbers in [{low:g}, {high:g}]"
        )
    return np.clip(np.floor((x - low) * (255.0 / (high - low)) + 0.5), 0, 255).astype(np.uint8)
