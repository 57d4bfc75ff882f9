"""Named, counter-based random streams: a number depends on where it is used, never on when.

A stream is a function of (seed, name). Its value for one item is a function of the item's counter alone (an image's
position in the training run, a sample's index) and of a `row` (a sampling step). Neither the batch size, nor the number
of processes, nor the framework can change it::

    key     = first 8 bytes of BLAKE2b("duet:<seed>:<name>")
    counter = (block, row, low word of index, high word of index)
    words   = Philox4x32-10(counter, key)                      four 32-bit words per block

Uniforms are ``u = (word + 1/2) / 2^32``, so 0 < u < 1. Normals are Box-Muller pairs in float64::

    r = sqrt(-2 log u_0),   z_0 = r cos(2 pi u_1),   z_1 = r sin(2 pi u_1)

cast once to the requested precision. The largest normal is sqrt(66 log 2) = 6.76.

References:
    Parallel random numbers: as easy as 1, 2, 3 (Salmon et al., 2011),
    https://doi.org/10.1145/2063384.2063405
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = ["LOW", "Stream", "philox4x32", "random_words"]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
LOW = 0xFFFFFFFF
_HALF = np.uint64(32)


def _high(product: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return product >> _HALF


def philox4x32(
    counter: tuple[Any, Any, Any, Any], key: tuple[Any, Any], high: Callable[[Any], Any] = _high
) -> tuple[Any, ...]:
    """Apply ten rounds of Philox4x32 (Salmon et al., 2011, section 3.3), on the arrays of any framework.

    Args:
        counter: four arrays of 32-bit words stored as 64-bit integers, signed or not; they broadcast together.
        key: two 32-bit words.
        high: returns the upper 32 of 64 bits; the default is for NumPy's uint64.

    Returns:
        Four arrays of 32-bit words stored as 64-bit integers.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = high(p1) ^ c1 ^ k0, p1 & LOW, high(p0) ^ c3 ^ k1, p0 & LOW
        k0, k1 = (k0 + _WEYL[0]) & LOW, (k1 + _WEYL[1]) & LOW
    return c0, c1, c2, c3


def random_words(key: tuple[int, int], index: ArrayLike, n: int, row: ArrayLike = 0) -> NDArray[np.uint32]:
    """Return random 32-bit words with shape (B, n) of the stream with this key.

    Args:
        key: two 32-bit words.
        index: the counters of the items, whole numbers of up to 64 bits, with shape (B,).
        n: words per item.
        row: a second counter of up to 32 bits, such as the sampling step; one number, or one per item.
    """
    index = np.atleast_1d(np.asarray(index)).astype(np.uint64)[:, None]
    block = np.arange(-(-n // 4), dtype=np.uint64)[None, :]
    counter = (block, np.asarray(row).astype(np.uint64).reshape(-1, 1), index & np.uint64(LOW), _high(index))
    blocks = philox4x32(counter, key, _high)
    return np.stack(blocks, axis=-1).astype(np.uint32).reshape(len(index), 4 * block.size)[:, :n]


@dataclass(frozen=True)
class Stream:
    """The random numbers of one purpose.

    Args:
        seed: the seed of the run.
        name: the purpose, as in ``"train/noise"``. Streams with different names are independent.

    Example:
        >>> noise = Stream(seed=0, name="train/noise")
        >>> noise.normal([7, 8], (2, 2)).shape
        (2, 2, 2)
        >>> bool(np.array_equal(noise.normal([7, 8], (3,))[1], noise.normal([8], (3,))[0]))
        True
    """

    seed: int
    name: str

    @cached_property
    def key(self) -> tuple[int, int]:
        """The two 32-bit words of the Philox key."""
        digest = hashlib.blake2b(f"duet:{self.seed}:{self.name}".encode(), digest_size=8).digest()
        return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")

    def bits(self, index: ArrayLike, n: int, row: ArrayLike = 0) -> NDArray[np.uint32]:
        """Return random 32-bit words with shape (B, n); see `random_words`."""
        return random_words(self.key, index, n, row)

    def uniform(self, index: ArrayLike, n: int, row: ArrayLike = 0) -> NDArray[np.float64]:
        """Return uniform numbers in the open interval (0, 1), float64, with shape (B, n)."""
        return (self.bits(index, n, row) + 0.5) * 2.0**-32

    def normal(
        self, index: ArrayLike, shape: tuple[int, ...], row: ArrayLike = 0, dtype: DTypeLike = np.float64
    ) -> NDArray:
        """Return standard normal numbers with shape (B, *shape), computed in float64 and cast once to `dtype`."""
        n = math.prod(shape)
        uniform = self.uniform(index, n + n % 2, row)
        pairs = uniform.reshape(len(uniform), (n + 1) // 2, 2)
        radius = np.sqrt(-2.0 * np.log(pairs[..., 0]))
        angle = (2.0 * np.pi) * pairs[..., 1]
        values = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
        return values.reshape(uniform.shape)[:, :n].reshape(len(uniform), *shape).astype(dtype)

    def integers(self, index: ArrayLike, high: int, row: ArrayLike = 0) -> NDArray[np.int64]:
        """Return whole numbers in [0, high) with shape (B,): the high word of ``word * high`` (bias high / 2^32)."""
        return (self.bits(index, 1, row)[:, 0].astype(np.uint64) * np.uint64(high) >> _HALF).astype(np.int64)

    def permutation(self, n: int, row: int = 0) -> NDArray[np.int64]:
        """Return a random order of n items, which sorts them by random 64-bit keys."""
        high, low = self.bits(np.arange(n), 2, row).astype(np.uint64).T
        return np.argsort(high << _HALF | low, kind="stable")
