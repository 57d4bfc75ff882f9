"""Numbers of 8 and 16 bits that NumPy has no type for, as float32, exactly.

    bfloat16        1 sign, 8 exponent, 7 mantissa bits: the upper half of a float32
    float8 e4m3     1, 4, 3: bias 7, no infinity; 0x7f and 0xff are NaN (Micikevicius et al., 2022)
    float8 e5m2     1, 5, 2: the upper half of a float16

Every value of these types is a float32, so nothing is rounded.

References:
    FP8 Formats for Deep Learning (Micikevicius et al., 2022), https://arxiv.org/abs/2209.05433
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["WIDENED", "widen_bfloat16", "widen_e4m3", "widen_e5m2"]


def widen_bfloat16(data: bytes | bytearray | memoryview) -> NDArray[np.float32]:
    """Return the numbers in the bytes of a bfloat16 array, little-endian."""
    return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)


def widen_e5m2(data: bytes | bytearray | memoryview) -> NDArray[np.float32]:
    """Return the numbers in the bytes of a float8 array with 5 exponent bits."""
    return (np.frombuffer(data, np.uint8).astype(np.uint16) << 8).view(np.float16).astype(np.float32)


def widen_e4m3(data: bytes | bytearray | memoryview) -> NDArray[np.float32]:
    """Return the numbers in the bytes of a float8 array with 4 exponent bits and no infinity (e4m3fn)."""
    return _E4M3[np.frombuffer(data, np.uint8)]


def _e4m3_values() -> NDArray[np.float32]:
    code = np.arange(256)
    sign, exponent, mantissa = np.where(code & 0x80, -1.0, 1.0), (code >> 3) & 0xF, code & 0x7
    values = np.where(exponent == 0, mantissa / 8.0 * 2.0**-6, (1.0 + mantissa / 8.0) * 2.0 ** (exponent - 7.0))
    values[(code & 0x7F) == 0x7F] = np.nan
    return (sign * values).astype(np.float32)


_E4M3 = _e4m3_values()

# By their names in safetensors files.
WIDENED: dict[str, Callable[[bytes | bytearray | memoryview], NDArray[np.float32]]] = {
    "BF16": widen_bfloat16,
    "F8_E4M3": widen_e4m3,
    "F8_E5M2": widen_e5m2,
}
