"""One array in several files, opened without reading them.

The shards are arrays or memory maps whose first axes follow one another. Indexing copies the selected items into
memory and reads nothing else.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError

__all__ = ["Shards"]


def _file_location(part: NDArray) -> NDArray | tuple[Any, ...]:
    """Return the file, type, shape and offset of a memory map; anything else unchanged."""
    if not isinstance(part, np.memmap) or not isinstance(part.base, mmap.mmap) or part.filename is None:
        return np.asarray(part)
    return str(part.filename), part.dtype, part.shape, part.offset


def _reopen(locations: Sequence[NDArray | tuple[Any, ...]]) -> Shards:
    parts = []
    for location in locations:
        if isinstance(location, tuple):
            file, dtype, shape, offset = location
            location = np.memmap(file, dtype, "r", offset, shape)
        parts.append(location)
    return Shards(parts)


class Shards:
    """Several arrays as one, along the first axis; read-only.

    Args:
        parts: arrays with one type and one shape beyond the first axis.

    Raises:
        DuetError: there are no arrays, or they differ in type or shape.
    """

    def __init__(self, parts: Sequence[NDArray]) -> None:
        self.parts = tuple(parts)
        if not self.parts or len({(part.dtype, part.shape[1:]) for part in self.parts}) != 1:
            kinds = sorted({f"{part.dtype} {part.shape[1:]}" for part in self.parts})
            raise DuetError(f"shards: {kinds} were given; there must be at least one, all of one type and shape")
        self.ends = np.cumsum([len(part) for part in self.parts])

    def __repr__(self) -> str:
        return f"Shards({self.shape} {self.dtype} in {len(self.parts)} arrays)"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole array."""
        return (int(self.ends[-1]), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """The type of every shard."""
        return self.parts[0].dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.parts[0].ndim

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: int | slice | NDArray) -> NDArray:
        """Return an item, a slice, or the items at an array of indices or a mask, in memory."""
        if isinstance(key, slice):
            key = np.arange(*key.indices(len(self)))
        key = np.asarray(key)
        if key.dtype == bool:
            key = np.flatnonzero(key)
        indices = np.where(key < 0, key + len(self), key).reshape(-1)
        if indices.size and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"{key} is outside 0..{len(self) - 1}")
        items = np.empty((indices.size, *self.shape[1:]), self.dtype)
        shard = np.searchsorted(self.ends, indices, side="right")
        for k in np.unique(shard):
            here = shard == k
            items[here] = self.parts[k][indices[here] - (self.ends[k] - len(self.parts[k]))]
        return items.reshape(*key.shape, *self.shape[1:])

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process reopens the files instead of receiving their content.
        return _reopen, ([_file_location(part) for part in self.parts],)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> NDArray:
        return np.concatenate(self.parts).astype(dtype or self.dtype, copy=False)
