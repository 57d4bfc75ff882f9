"""Distances between the rows of two arrays, in blocks, so that memory does not grow with the number of rows.

``|a - b|^2 = |a|^2 + |b|^2 - 2 a b`` in float64. Sums of products of uint8 values are exact, so a copy of an
image has distance exactly 0; for other numbers the error is about 1e-16 of ``|a|^2 + |b|^2``.

A row is the item at a first index, flattened. Only one block of each array is converted at a time, so both may be
memory maps of any type and length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError

__all__ = ["RowSelection", "blocks", "check_finite", "neighbours", "rows", "squared_distances"]

_BLOCK_BYTES = 1 << 25


@dataclass(frozen=True, eq=False)
class RowSelection:
    """Some rows of an array, viewed as an array; only requested rows are copied.

    Args:
        array: an array, a memory map, or `data.shards.Shards`.
        indices: the selected rows, with shape (N,).
    """

    array: Any
    indices: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the selection."""
        return (len(self.indices), *self.array.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """The type of the array."""
        return self.array.dtype

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: int | slice | NDArray) -> NDArray:
        """Return a row, or several rows."""
        return self.array[self.indices[key]]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> NDArray:
        return np.asarray(self.array[self.indices], dtype)


def blocks(array: NDArray) -> list[slice]:
    """Return slices of the rows of an array that bound the size of a block, and of a table of numbers for two."""
    values = max(1, _BLOCK_BYTES // 8)
    width = max(1, math.prod(array.shape[1:]))
    step = max(1, min(values // width, math.isqrt(values)))
    return [slice(start, min(start + step, len(array))) for start in range(0, len(array), step)]


def check_finite(array: NDArray, what: str) -> None:
    """Refuse an array with values that are not finite: NaN would count as far, near or perfect, as comparisons go.

    Raises:
        DuetError: the error has `what` and the number of rows.
    """
    bad = sum(int(np.count_nonzero(~np.isfinite(rows(array, some)).all(axis=1))) for some in blocks(array))
    if bad:
        raise DuetError(
            f"{what}: {bad:,} of {len(array):,} rows hold values that are not finite; leave these rows out, or find "
            f"out why the network that computed them overflows"
        )


def rows(array: NDArray, selection: slice) -> NDArray[np.float64]:
    """Return a slice of rows, flattened, as float64."""
    part = array[selection]
    return part.reshape(len(part), -1).astype(np.float64)


def squared_distances(a: NDArray, b: NDArray) -> Iterator[tuple[slice, slice, NDArray[np.float64]]]:
    """Compute the squared distances of all rows of a to all rows of b, block by block: all of b for a block of a.

    Yields:
        The slice of a, the slice of b, and their squared distances, at least 0, with shape (rows of a, rows of b).
    """
    b_slices = blocks(b)
    for a_slice in blocks(a):
        x = rows(a, a_slice)
        xx = np.sum(x**2, axis=1)[:, None]
        for b_slice in b_slices:
            y = rows(b, b_slice)
            # Adding both squares first makes the distance of a to b equal that of b to a, bit for bit.
            squares_ab = xx + np.sum(y**2, axis=1)
            squares_ab -= 2.0 * (x @ y.T)
            yield a_slice, b_slice, np.maximum(squares_ab, 0.0, out=squares_ab)


def neighbours(
    a: NDArray, b: NDArray, count: int, is_same: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Find the rows of b nearest to each row of a, nearest first; among equally near rows, the first.

    Args:
        a: with shape (N, ...).
        b: with shape (M, ...).
        count: the number of neighbours, at most M, or M - 1 within one array.
        is_same: whether a is b, in which case a row is not its own neighbour.

    Returns:
        Indices into b and squared distances, both with shape (N, count).
    """
    indices = np.zeros((len(a), count), np.int64)
    squares = np.full((len(a), count), np.inf)
    for a_slice, b_slice, squares_ab in squared_distances(a, b):
        lines = np.arange(a_slice.stop - a_slice.start)
        if is_same:
            both = np.arange(max(a_slice.start, b_slice.start), min(a_slice.stop, b_slice.stop))
            squares_ab[both - a_slice.start, both - b_slice.start] = np.inf
        best_indices, best = [indices[a_slice]], [squares[a_slice]]
        for _ in range(min(count, squares_ab.shape[1])):
            at = squares_ab.argmin(axis=1)
            best.append(squares_ab[lines, at][:, None])
            best_indices.append(b_slice.start + at[:, None])
            squares_ab[lines, at] = np.inf
        joined, joined_indices = np.concatenate(best, axis=1), np.concatenate(best_indices, axis=1)
        # A stable sort keeps the first of equally near rows.
        kept = np.argsort(joined, axis=1, kind="stable")[:, :count]
        squares[a_slice] = np.take_along_axis(joined, kept, axis=1)
        indices[a_slice] = np.take_along_axis(joined_indices, kept, axis=1)
    return indices, squares
