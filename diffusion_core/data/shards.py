"""An array in several files, opened without reading them.

The parts are arrays or memory maps whose first axes follow one another. What is asked for is copied into memory; no
more than that is read.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError

__all__ = ["Shards"]


def _place(part: NDArray) -> NDArray | tuple[Any, ...]:
    """Where a whole memory map lies; an array, or a part of one, as it is."""
    if not isinstance(part, np.memmap) or not isinstance(part.base, mmap.mmap) or part.filename is None:
        return np.asarray(part)
    return str(part.filename), part.dtype, part.shape, part.offset


def _reopened(places: Sequence[NDArray | tuple[Any, ...]]) -> Shards:
    parts = []
    for place in places:
        if isinstance(place, tuple):
            file, dtype, shape, offset = place
            place = np.memmap(file, dtype, "r", offset, shape)
        parts.append(place)
    return Shards(parts)


class Shards:
    """Several arrays as one, along the first axis; read-only.

    Args:
        parts: arrays of one type that are alike beyond the first axis.

    Raises:
        DuetError: there are none, or they differ.
    """

    def __init__(self, parts: Sequence[NDArray]) -> None:
        self.parts = tuple(parts)
        if not self.parts or len({(part.dtype, part.shape[1:]) for part in self.parts}) != 1:
            kinds = sorted({f"{part.dtype} {part.shape[1:]}" for part in self.parts})
            raise DuetError(f"shards: {kinds} were given; there must be at least one, all of one type and shape")
        self.ends = np.cumsum([len(part) for part in self.parts])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""
        return (int(self.ends[-1]), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """Of every part."""
        return self.parts[0].dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.parts[0].ndim

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: int | slice | NDArray) -> NDArray:
        """An item, a slice of them, or those at whole numbers or where a mask is true, in memory."""
        if isinstance(key, slice):
            key = np.arange(*key.indices(len(self)))
        key = np.asarray(key)
        if key.dtype == bool:
            key = np.flatnonzero(key)
        places = np.where(key < 0, key + len(self), key).reshape(-1)
        if places.size and not 0 <= places.min() <= places.max() < len(self):
            raise IndexError(f"{key} is out of 0..{len(self) - 1}")
        found = np.empty((places.size, *self.shape[1:]), self.dtype)
        which = np.searchsorted(self.ends, places, side="right")
        for k in np.unique(which):
            here = which == k
            found[here] = self.parts[k][places[here] - (self.ends[k] - len(self.parts[k]))]
        return found.reshape(*key.shape, *self.shape[1:])

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process opens the same files instead of being sent what they hold.
        return _reopened, ([_place(part) for part in self.parts],)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> NDArray:
        return np.concatenate(self.parts).astype(dtype or self.dtype, copy=False)
