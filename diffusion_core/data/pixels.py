"""Between stored pixels and network values: one rule each way, the same for every framework.

A picture is stored as uint8 in 0..255; a network sees [-1, 1]::

    x  = u8 / 127.5 - 1
    u8 = clip(floor((x + 1) * 127.5 + 1/2), 0, 255)        round half up

Both are computed in float64 and cast once, so a framework's own rounding has no say in a picture.
The way back recovers every pixel from float64, float32, float16 and bfloat16.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from diffusion_core.errors import DuetError

__all__ = ["from_uint8", "to_uint8"]

# A table of all 256 levels: the float64 rule applied once, then looked up.
_LEVELS = np.arange(256) / 127.5 - 1.0


def from_uint8(u8: ArrayLike, dtype: DTypeLike = np.float32) -> NDArray:
    """Network values in [-1, 1] of stored pixels, with the shape of `u8`.

    Raises:
        DuetError: `u8` is not uint8.
    """
    u8 = np.asarray(u8)
    if u8.dtype != np.uint8:
        raise DuetError(f"pixels: an array of {u8.dtype} was given; stored pixels are uint8")
    return _LEVELS.astype(dtype)[u8]


def to_uint8(x: ArrayLike) -> NDArray[np.uint8]:
    """Stored pixels of network values, with the shape of `x`; what lies beyond [-1, 1] is clipped.

    Raises:
        DuetError: a value is not a number, so no pixel stands for it.
    """
    x = np.asarray(x).astype(np.float64)
    if np.isnan(x).any():
        raise DuetError(
            f"pixels: {np.isnan(x).sum()} of {x.size} values are not a number; a pixel needs one in [-1, 1]"
        )
    return np.clip(np.floor((x + 1.0) * 127.5 + 0.5), 0, 255).astype(np.uint8)
