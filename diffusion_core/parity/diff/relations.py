"""How one parameter is written in terms of another: layouts, permutations, parts of a fused matrix.

Two frameworks store one kernel in different orders (OIHW and HWIO, a transposed matrix), one author fuses three
projections into one matrix, another orders the gates of an LSTM differently. A `Relation` is such a way from an array
of A, or a part of it, to an array of B, or a part of it, and back. It moves numbers and computes none: so it serves for
gradients as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff.layouts import (
    Layout,
    close,
    find_layout,
    find_permutation,
    natural_orders,
    typical_size,
    without_ones,
)

__all__ = ["Part", "Relation", "Whole", "reorder", "relate"]

_KERNELS = {
    (1, 0): "transposed",
    (2, 1, 0): "OIW to WIO or back",
    (2, 3, 1, 0): "OIHW to HWIO",
    (3, 2, 0, 1): "HWIO to OIHW",
    (2, 3, 4, 1, 0): "OIDHW to DHWIO",
    (4, 3, 0, 1, 2): "DHWIO to OIDHW",
    (2, 3, 0, 1): "OIHW to HWOI or back",
    (3, 2, 1, 0): "OIHW to HWIO with height and width swapped",
    (2, 0, 1): "the first axis last or back",
}


@dataclass(frozen=True)
class Part:
    """Some entries along the axes of an array of the given shape, such as the rows of one of three projections."""

    shape: tuple[int, ...]
    index: tuple[NDArray, ...]

    def take(self, whole: NDArray) -> NDArray:
        """Return the part of an array."""
        return whole[np.ix_(*self.index)]

    def put(self, whole: NDArray, part: NDArray) -> None:
        """Write the part into an array."""
        whole[np.ix_(*self.index)] = part

    def describe(self) -> str:
        """Say in words which entries these are."""
        words = []
        for axis, index in enumerate(self.index):
            if len(index) == self.shape[axis]:
                continue
            steps = np.diff(index)
            if np.all(steps == 1):
                words.append(f"{index[0]}..{index[-1]} of axis {axis}")
            elif np.all(steps == steps[0]):
                words.append(f"every {steps[0]}. entry of axis {axis} from {index[0]}")
            else:
                words.append(f"{len(index)} interleaved entries of axis {axis} from {index[0]}")
        return " and ".join(words)


@dataclass(frozen=True)
class Relation:
    """How an array of B, or a part of it, is an array of A, or a part of it.

    Attributes:
        layout: from the part of A to the part of B.
        orders: after that, (axis, order) of entries in another order along an axis.
        elements: places in A of each element of B, where no orders of axes say it; then `layout` is not used.
        a_part: what of A's array B has; None is all of it.
        b_part: what of B's array A has; None is all of it.
    """

    layout: Layout
    orders: tuple[tuple[int, NDArray], ...] = ()
    elements: NDArray | None = None
    a_part: Part | None = None
    b_part: Part | None = None

    def to_b(self, a: NDArray) -> NDArray:
        """Return the part of B in terms of A's array."""
        if self.a_part is not None:
            a = self.a_part.take(a)
        if self.elements is not None:
            return a.reshape(-1)[self.elements].reshape(self.layout.b_shape)
        b = self.layout.to_b(a)
        for axis, order in self.orders:
            b = b.take(order, axis)
        return b

    def to_a(self, b: NDArray) -> NDArray:
        """Return the part of A in terms of B's array."""
        if self.b_part is not None:
            b = self.b_part.take(b)
        if self.elements is not None:
            a = np.empty(b.size, b.dtype)
            a[self.elements] = b.reshape(-1)
            return a.reshape(self.layout.a_shape)
        for axis, order in reversed(self.orders):
            b = b.take(np.argsort(order), axis)
        return self.layout.to_a(b)

    @property
    def permuted(self) -> bool:
        """Whether entries stand in another order, beyond a layout."""
        return bool(self.orders) or self.elements is not None

    @property
    def reverse(self) -> Relation:
        """The relation from B to A."""
        if self.elements is not None:
            return Relation(self.layout.reverse, (), np.argsort(self.elements), self.b_part, self.a_part)
        if not self.orders:
            return Relation(self.layout.reverse, (), None, self.b_part, self.a_part)
        place = np.arange(math.prod(self.layout.a_shape)).reshape(self.layout.a_shape)
        bare = Relation(self.layout, self.orders)
        elements = np.argsort(bare.to_b(place).reshape(-1))
        return Relation(self.layout.reverse, (), elements, self.b_part, self.a_part)

    def describe(self) -> str:
        """Say the relation in words."""
        words = []
        for part, side in ((self.a_part, "A"), (self.b_part, "B")):
            if part is not None:
                words.append(f"{part.describe()} in {side}")
        if self.elements is not None:
            return ", ".join([*words, "the same numbers in another order"])
        if not self.layout.identity:
            words.append(_KERNELS.get(self.layout.permutation or (), "") or self.layout.describe())
        words += [_order_words(order, axis, self.layout.b_shape) for axis, order in self.orders]
        return ", ".join(words) or "the same"


def _order_words(order: NDArray, axis: int, shape: tuple[int, ...]) -> str:
    n = len(order)
    if np.array_equal(order, np.arange(n)[::-1]):
        return f"flipped along axis {axis}"
    for blocks in range(2, min(n, 8) + 1):
        if n % blocks == 0 and n // blocks > 1:
            starts = order.reshape(blocks, -1)
            if np.all(np.diff(starts, axis=1) == 1) and np.all(starts[:, 0] % (n // blocks) == 0):
                blocks_of_a = " ".join(str(start // (n // blocks)) for start in starts[:, 0])
                return f"{blocks} blocks along axis {axis} in the order {blocks_of_a}"
    return f"permuted along axis {axis}"


def relate(a: NDArray, b: NDArray, tolerance: float) -> Relation | None:
    """Return how b is a in another layout, or None."""
    layout = find_layout(a, b, tolerance) if a.size == b.size else None
    return None if layout is None else Relation(layout)


def reorder(a: NDArray, b: NDArray, tolerance: float) -> Relation | None:
    """Return how b has the numbers of a in an order that is no layout: flipped, permuted along axes, or any other."""
    if a.size != b.size or a.size < 2:
        return None
    size = typical_size(a)
    first, second = np.argsort(a, axis=None, kind="stable"), np.argsort(b, axis=None, kind="stable")
    if not close(a.reshape(-1)[first], b.reshape(-1)[second], tolerance, size):
        return None
    flipped = _find_flip(a, b, tolerance, size)
    if flipped is not None:
        return flipped
    found = find_permutation(a, b, tolerance)
    if found is not None:
        layout, axis, order = found
        return Relation(layout, ((axis, order),))
    elements = np.empty(a.size, int)
    elements[second] = first
    whole = Layout(a.shape, b.shape, a.shape, tuple(range(a.ndim)))
    return _by_axes(a.shape, b.shape, elements) or Relation(whole, (), elements)


def _find_flip(a: NDArray, b: NDArray, tolerance: float, size: float) -> Relation | None:
    short = without_ones(a.shape)
    for axes in natural_orders(short, without_ones(b.shape)):
        layout = Layout(a.shape, b.shape, short, axes)
        moved = layout.to_b(a)
        long = [i for i, n in enumerate(b.shape) if n > 1]
        for count in range(1, min(len(long), 3) + 1):
            for flips in combinations(long, count):
                if close(np.flip(moved, flips), b, tolerance, size):
                    return Relation(layout, tuple((i, np.arange(b.shape[i])[::-1]) for i in flips))
    return None


def _by_axes(a_shape: tuple[int, ...], b_shape: tuple[int, ...], elements: NDArray) -> Relation | None:
    """Write an order of elements as orders of axes, if it is one."""
    short_a, short_b = without_ones(a_shape), without_ones(b_shape)
    where = np.unravel_index(elements.reshape(short_b), short_a)
    kept = [i for i, n in enumerate(b_shape) if n != 1]
    for axes in natural_orders(short_a, short_b):
        orders = []
        for k, i in enumerate(axes):
            lead = np.moveaxis(where[i], k, 0).reshape(short_b[k], -1)
            if np.any(lead != lead[:, :1]):
                break
            if not np.array_equal(lead[:, 0], np.arange(short_b[k])):
                orders.append((kept[k], lead[:, 0].copy()))
        else:
            return Relation(Layout(a_shape, b_shape, short_a, axes), tuple(orders))
    return None


class Whole:
    """An array that may hold smaller ones, such as a matrix of three projections: its numbers, sorted once."""

    def __init__(self, array: NDArray) -> None:
        self.array = array
        flat = array.reshape(-1).astype(np.float64, copy=False)
        self._order = np.argsort(flat)
        self._sorted = flat[self._order]
        self._size = typical_size(array)

    def part(self, array: NDArray, tolerance: float) -> tuple[Part, Relation] | None:
        """Return the part that holds the numbers of a smaller array, and the relation from that part to the array."""
        if array.size < 2 or array.size >= self.array.size:
            return None
        flat = array.reshape(-1).astype(np.float64, copy=False)
        if not self._find(flat[:8], tolerance)[1]:
            return None
        places, found, once = self._find(flat, tolerance)
        if not found:
            return None
        # A number that the whole holds twice says nothing about where the part is; among many float32 numbers some are.
        places = places[once] if once.any() else places
        index = tuple(np.flatnonzero(np.bincount(i)) for i in np.unravel_index(places, self.array.shape))
        if math.prod(len(i) for i in index) != array.size:
            return None
        part = Part(self.array.shape, index)
        relation = relate(part.take(self.array), array, tolerance) or reorder(part.take(self.array), array, tolerance)
        return None if relation is None else (part, relation)

    def _find(self, values: NDArray, tolerance: float) -> tuple[NDArray, bool, NDArray]:
        """Return the places of values, whether all were found, and which are the only ones with their number."""
        right = np.clip(np.searchsorted(self._sorted, values), 0, len(self._sorted) - 1)
        left = np.maximum(right - 1, 0)
        nearer = np.abs(self._sorted[left] - values) < np.abs(self._sorted[right] - values)
        at = np.where(nearer, left, right)
        near = tolerance * np.maximum(np.abs(values), self._size)
        good = np.abs(self._sorted[at] - values) <= near
        before, after = self._sorted[np.maximum(at - 1, 0)], self._sorted[np.minimum(at + 1, len(self._sorted) - 1)]
        once = ((at == 0) | (values - before > near)) & ((at == len(self._sorted) - 1) | (after - values > near))
        return self._order[at], bool(good.all()), once
