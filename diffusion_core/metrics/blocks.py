"""Distances between the rows of two arrays in blocks, so that memory does not grow with the number of rows.

``|a - b|^2 = |a|^2 + |b|^2 - 2 a b`` in float64. Sums of products of uint8 values are exact there, so a copy of a
image has distance 0 exactly; of other numbers the error is some 1e-16 of ``|a|^2 + |b|^2``.

A row is what an array holds at its first index, flattened. Only a block of either array is cast at once, so both may be
memory maps of any type and length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["RowSelection", "blocks", "neighbours", "rows", "squared_distances"]

_BLOCK_BYTES = 1 << 25


@dataclass(frozen=True, eq=False)
class RowSelection:
    """Some rows of an array as one; what is asked for is copied, and no more.

    Args:
        array: an array, a memory map, or `data.shards.Shards`.
        places: of the rows, with shape (N,).
    """

    array: Any
    places: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the rows together."""
        return (len(self.places), *self.array.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """Of the array."""
        return self.array.dtype

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, key: int | slice | NDArray) -> NDArray:
        """A row, or several."""
        return self.array[self.places[key]]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> NDArray:
        return np.asarray(self.array[self.places], dtype)


def blocks(array: NDArray) -> list[slice]:
    """Slices of the rows of an array: a block, and a table of numbers for two blocks, stay within a bound."""
    values = max(1, _BLOCK_BYTES // 8)
    width = max(1, math.prod(array.shape[1:]))
    step = max(1, min(values // width, math.isqrt(values)))
    return [slice(start, min(start + step, len(array))) for start in range(0, len(array), step)]


def rows(array: NDArray, some: slice) -> NDArray[np.float64]:
    """Some rows, flattened, as float64."""
    part = array[some]
    return part.reshape(len(part), -1).astype(np.float64)


def squared_distances(a: NDArray, b: NDArray) -> Iterator[tuple[slice, slice, NDArray[np.float64]]]:
    """The squared distances of all rows of a to all of b, block by block: all of b for one block of a, then the next.

    Yields:
        Which rows of a, which of b, and their squared distances, with shape (rows of a, rows of b) and at least 0.
    """
    within = blocks(b)
    for here in blocks(a):
        x = rows(a, here)
        xx = np.sum(x**2, axis=1)[:, None]
        for there in within:
            y = rows(b, there)
            # First the sum of both squares: so the distance of a to b is that of b to a, bit for bit.
            between = xx + np.sum(y**2, axis=1)
            between -= 2.0 * (x @ y.T)
            yield here, there, np.maximum(between, 0.0, out=between)


def neighbours(
    a: NDArray, b: NDArray, count: int, is_same: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The rows of b closest to each row of a, nearest first, and of equally close ones the first.

    Args:
        a: with shape (N, ...).
        b: with shape (M, ...).
        count: how many, at most M, or M - 1 of the same array.
        is_same: whether a is b, where a row is no neighbour of itself.

    Returns:
        Indices into b and squared distances, both with shape (N, count).
    """
    indices = np.zeros((len(a), count), np.int64)
    squares = np.full((len(a), count), np.inf)
    for here, there, between in squared_distances(a, b):
        lines = np.arange(here.stop - here.start)
        if is_same:
            both = np.arange(max(here.start, there.start), min(here.stop, there.stop))
            between[both - here.start, both - there.start] = np.inf
        best_indices, best = [indices[here]], [squares[here]]
        for _ in range(min(count, between.shape[1])):
            at = between.argmin(axis=1)
            best.append(between[lines, at][:, None])
            best_indices.append(there.start + at[:, None])
            between[lines, at] = np.inf
        joined, joined_indices = np.concatenate(best, axis=1), np.concatenate(best_indices, axis=1)
        # A stable order keeps what came first.
        kept = np.argsort(joined, axis=1, kind="stable")[:, :count]
        squares[here] = np.take_along_axis(joined, kept, axis=1)
        indices[here] = np.take_along_axis(joined_indices, kept, axis=1)
    return indices, squares
