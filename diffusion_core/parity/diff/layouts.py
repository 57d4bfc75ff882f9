"""Which arrays are the same numbers in another order.

A *layout* leads from one array to another of the same numbers: the axes of the first are split into factors, the
factors permuted and merged again,

    b = a.reshape(factors).transpose(axes).reshape(b.shape)

which covers channels first and last, transposed matrices, heads that are split off, pixels that are merged into tokens,
and axes of length 1. Axes along which an array repeats itself (a broadcast bias) are left out before and put back
afterwards.

Two numbers are equal within a tolerance r if ``|a - b| <= r max(|a|, s)``, where s is the typical size of the array's
numbers: the error of a sum is proportional to its terms, not to its result, and a mask of -1e9 beside scores of order 1
must not hide a difference of the scores.

Comparing every value of one side with every value of the other would take long; `Lookup` finds the few candidates by a
fingerprint (moments and extremes) that no reordering changes, and no repetition either.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Layout",
    "Lookup",
    "close",
    "find_layout",
    "find_permutation",
    "fingerprint",
    "natural_orders",
    "typical_size",
    "without_ones",
]

_PROBES = 256
_SEARCH_LIMIT = 3000
_SAMPLE = 4096


@dataclass(frozen=True)
class Layout:
    """The way from an array a to an array b of the same numbers, and back.

    Attributes:
        a_shape: the shape of a.
        b_shape: the shape of b.
        factors: the shape of a with its axes split, without the repeated ones.
        axes: the order in which b has these factors.
        a_repeated: axes of a along which it repeats itself.
        b_repeated: axes of b along which it repeats itself.
    """

    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]
    factors: tuple[int, ...]
    axes: tuple[int, ...]
    a_repeated: tuple[int, ...] = ()
    b_repeated: tuple[int, ...] = ()

    def to_b(self, a: NDArray) -> NDArray:
        """Return the numbers of a in the layout of b."""
        core = _once(a, self.a_repeated).reshape(self.factors).transpose(self.axes)
        return _repeat(core, self.b_shape, self.b_repeated)

    def to_a(self, b: NDArray) -> NDArray:
        """Return the numbers of b in the layout of a."""
        shape = tuple(self.factors[i] for i in self.axes)
        core = _once(b, self.b_repeated).reshape(shape).transpose(np.argsort(self.axes))
        return _repeat(core, self.a_shape, self.a_repeated)

    @property
    def identity(self) -> bool:
        """Whether both arrays have the same shape and the same order."""
        return self.a_shape == self.b_shape and self.in_order and self.a_repeated == self.b_repeated

    @property
    def reverse(self) -> Layout:
        """The layout from b to a."""
        factors = tuple(self.factors[i] for i in self.axes)
        order = tuple(int(i) for i in np.argsort(self.axes))
        return Layout(self.b_shape, self.a_shape, factors, order, self.b_repeated, self.a_repeated)

    @property
    def permutation(self) -> tuple[int, ...] | None:
        """The order of a's axes in b, if b is a transposed and nothing more."""
        if self.a_repeated or self.b_repeated or sorted(self.a_shape) != sorted(self.b_shape):
            return None
        for order in natural_orders(self.a_shape, self.b_shape):
            index = np.arange(math.prod(self.a_shape)) if math.prod(self.a_shape) < _SAMPLE else None
            if index is None:
                if _same_order(self.a_shape, order, self):
                    return order
            elif np.array_equal(index.reshape(self.a_shape).transpose(order), self.to_b(index.reshape(self.a_shape))):
                return order
        return None

    @property
    def in_order(self) -> bool:
        """Whether the numbers stand in the same order, whatever the shapes."""
        return [i for i in self.axes if self.factors[i] != 1] == [i for i, n in enumerate(self.factors) if n != 1]

    def describe(self) -> str:
        """Say in words how b differs from a."""
        parts = []
        if self.identity:
            return "the same order"
        order = self.permutation
        if order is not None:
            parts.append(f"axes in the order {' '.join(map(str, order))}")
        elif self.in_order and not (self.a_repeated or self.b_repeated):
            parts.append(f"reshaped from {self.a_shape} to {self.b_shape}")
        elif not self.in_order:
            split = " x ".join(map(str, self.factors))
            parts.append(f"{split} in the order {' '.join(map(str, self.axes))}")
        if self.a_repeated:
            parts.append(f"repeated along axis {', '.join(map(str, self.a_repeated))} of the first")
        if self.b_repeated:
            parts.append(f"repeated along axis {', '.join(map(str, self.b_repeated))} of the second")
        return ", ".join(parts)


def _once(array: NDArray, repeated: tuple[int, ...]) -> NDArray:
    return array[tuple(slice(0, 1) if i in repeated else slice(None) for i in range(array.ndim))]


def _repeat(core: NDArray, shape: tuple[int, ...], repeated: tuple[int, ...]) -> NDArray:
    core = core.reshape(tuple(1 if i in repeated else n for i, n in enumerate(shape)))
    return np.broadcast_to(core, shape).copy() if repeated else core


def typical_size(array: NDArray) -> float:
    """Return the size that most of the numbers of an array have: outliers such as a mask of -1e9 do not count."""
    flat = array.reshape(-1)
    sample = np.abs(flat[:: max(1, flat.size // _SAMPLE)]).astype(np.float64)
    sample = sample[np.isfinite(sample) & (sample > 0)]
    if not sample.size:
        sample = np.abs(flat.astype(np.float64))
        sample = sample[np.isfinite(sample) & (sample > 0)]
        if not sample.size:
            return 0.0
    usual = sample[sample <= 1e3 * np.median(sample)]
    return float(np.sqrt(np.mean(usual**2)))


def close(a: NDArray, b: NDArray, tolerance: float, size: float | None = None) -> bool:
    """Return whether two arrays of one shape are equal within a tolerance; NaN equals NaN."""
    if a.shape != b.shape:
        return False
    if a.dtype.kind not in "fc" and b.dtype.kind not in "fc":
        return bool(np.array_equal(a, b))
    size = typical_size(a) if size is None else size
    wide = np.complex128 if "c" in (a.dtype.kind, b.dtype.kind) else np.float64
    a, b = a.astype(wide, copy=False), b.astype(wide, copy=False)
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(a - b)
        good = (apart <= tolerance * np.maximum(np.abs(a), size)) & (apart < np.inf)
    if good.all():
        return True
    bad = ~good
    x, y = a[bad], b[bad]
    return bool(np.all((x == y) | (np.isnan(x) & np.isnan(y))))


def find_layout(a: NDArray, b: NDArray, tolerance: float) -> Layout | None:
    """Return the layout in which b is the numbers of a, or None.

    Where several layouts fit, because numbers repeat, the one that moves the fewest axes is returned.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.size != b.size:
        return _find_repeated(a, b, tolerance)
    size = typical_size(a)
    flat_a, flat_b = np.ascontiguousarray(a).reshape(-1), np.ascontiguousarray(b).reshape(-1)
    if not _similar(flat_a, flat_b, tolerance, size):
        return None

    def fits(factors: tuple[int, ...], axes: tuple[int, ...]) -> bool:
        moved = flat_a.reshape(factors).transpose(axes)
        return _probe(moved, flat_b, tolerance, size) and close(moved.reshape(-1), flat_b, tolerance, size)

    short_a, short_b = without_ones(a.shape), without_ones(b.shape)
    for axes in natural_orders(short_a, short_b):
        if fits(short_a, axes):
            return Layout(a.shape, b.shape, short_a, axes)
    in_order = tuple(range(len(short_a)))
    if short_a != short_b and fits(short_a, in_order):
        return Layout(a.shape, b.shape, short_a, in_order)
    if max(len(short_a), len(short_b)) < 2 or not _same_numbers(flat_a, flat_b, tolerance, size):
        return None
    for factors, axes in _search(flat_a, flat_b, short_a, tolerance, size):
        if fits(factors, axes):
            return Layout(a.shape, b.shape, factors, axes)
    return None


def find_permutation(a: NDArray, b: NDArray, tolerance: float) -> tuple[Layout, int, NDArray] | None:
    """Return how b is a with the entries of one axis in another order, or None.

    The result is (layout, axis, order) with ``b = layout.to_b(a).take(order, axis)``: channels or classes that one side
    counts in another order. Only transpositions of axes are tried as layouts.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.size != b.size or sorted(without_ones(a.shape)) != sorted(without_ones(b.shape)):
        return None
    size = typical_size(a)
    if not _similar(a.reshape(-1), b.reshape(-1), tolerance, size):
        return None
    short = without_ones(a.shape)
    for axes in natural_orders(short, without_ones(b.shape)):
        moved = a.reshape(short).transpose(axes).reshape(b.shape)
        for axis, length in enumerate(b.shape):
            order = _order_of_slices(moved, b, axis, tolerance, size) if length > 1 else None
            if order is not None and close(moved.take(order, axis), b, tolerance, size):
                return Layout(a.shape, b.shape, short, axes), axis, order
    return None


def _order_of_slices(a: NDArray, b: NDArray, axis: int, tolerance: float, size: float) -> NDArray | None:
    """Match the slices of two arrays along an axis by a random projection of each, which is the same for both."""
    rows_a = np.moveaxis(a, axis, 0).reshape(a.shape[axis], -1).astype(np.float64, copy=False)
    rows_b = np.moveaxis(b, axis, 0).reshape(b.shape[axis], -1).astype(np.float64, copy=False)
    weights = np.cos(np.arange(rows_a.shape[1]) * 1.2345 + 0.5)
    if not (np.isfinite(rows_a).all() and np.isfinite(rows_b).all()):
        return None
    key_a, key_b = rows_a @ weights, rows_b @ weights
    first, second = np.argsort(key_a, kind="stable"), np.argsort(key_b, kind="stable")
    spread = tolerance * size * math.sqrt(rows_a.shape[1]) * 8 + tolerance * np.abs(key_a).max()
    if np.abs(key_a[first] - key_b[second]).max() > spread:
        return None
    order = np.empty(len(key_a), int)
    order[second] = first
    return order


def without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without its axes of length 1."""
    return tuple(n for n in shape if n != 1)


def natural_orders(a: tuple[int, ...], b: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the orders of a's axes that give the shape b: those first that move the fewest axes."""
    if len(a) > 6 or sorted(a) != sorted(b):
        return []
    found = [axes for axes in permutations(range(len(a))) if tuple(a[i] for i in axes) == b]

    def moved(axes: tuple[int, ...]) -> tuple[int, int]:
        # The longest increasing subsequence stays in place; the rest moves.
        best: list[int] = []
        for i in axes:
            at = bisect.bisect_left(best, i)
            best[at : at + 1] = [i]
        return len(axes) - len(best), sum(x > y for n, x in enumerate(axes) for y in axes[n + 1 :])

    return sorted(found, key=moved)


def _same_order(shape: tuple[int, ...], order: tuple[int, ...], layout: Layout) -> bool:
    """Return whether a transposition is the given layout, by the positions of one step along each axis."""
    strides = [math.prod(layout.factors[i + 1 :]) for i in range(len(layout.factors))]
    lead = [(layout.factors[i], strides[i]) for i in layout.axes if layout.factors[i] != 1]
    own = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    there = [(shape[i], own[i]) for i in order if shape[i] != 1]
    return _merged(lead) == _merged(there)


def _merged(axes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Merge neighbouring (length, stride) pairs that follow one another in memory."""
    result: list[tuple[int, int]] = []
    for length, stride in axes:
        if result and result[-1][1] == length * stride:
            result[-1] = (result[-1][0] * length, stride)
        else:
            result.append((length, stride))
    return result


def _similar(a: NDArray, b: NDArray, tolerance: float, size: float) -> bool:
    """Return whether two arrays may hold the same numbers, by their extremes."""
    if not a.size:
        return True
    if "c" in (a.dtype.kind, b.dtype.kind) or "b" in (a.dtype.kind, b.dtype.kind):
        return True
    for x, y in ((a.max(), b.max()), (a.min(), b.min())):
        if not (abs(float(x) - float(y)) <= 2 * tolerance * max(abs(float(x)), size)) and np.isfinite([x, y]).any():
            return False
    return True


def _same_numbers(a: NDArray, b: NDArray, tolerance: float, size: float) -> bool:
    """Return whether two arrays may hold the same numbers in another order; sorting is quicker than trying orders."""
    if a.dtype.kind not in "fiu" or b.dtype.kind not in "fiu":
        return True
    x, y = (np.sort(array.astype(np.float64, copy=False)) for array in (a, b))
    with np.errstate(invalid="ignore"):
        apart = np.nanmax(np.abs(x - y), initial=0.0)
        most = np.nanmax(np.where(np.isfinite(x), np.abs(x), 0.0), initial=size)
    return bool(apart <= tolerance * most)


def _probe(moved: NDArray, flat: NDArray, tolerance: float, size: float) -> bool:
    """Compare some elements of a transposed view before all of them."""
    if flat.size <= _PROBES:
        return True
    index = _places(flat.size)
    return close(moved[np.unravel_index(index, moved.shape)], flat[index], tolerance, size)


def _places(size: int, count: int = _PROBES) -> NDArray:
    """Return places of an array, spread by the golden ratio."""
    return ((np.arange(1, count + 1) * 0.6180339887498949) % 1.0 * size).astype(np.int64)


def _search(
    a: NDArray, b: NDArray, shape: tuple[int, ...], tolerance: float, size: float
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield layouts that split axes: b's elements are followed from its last axis to its first.

    b[j] is a[p(j)], where p is linear in the digits of j. Each digit, (length, stride), is a factor of one axis of a; a
    digit is kept while some elements of b up to its length agree. The search stops after a fixed amount of work, which
    only arrays of many equal numbers need.
    """
    steps = [(int(stride), n) for stride, n in zip(_strides(shape), shape, strict=True)]
    candidates = [(s * q, n // q) for s, n in steps for q in _divisors(n) if q < n]
    work = _SEARCH_LIMIT

    def extend(digits: list[tuple[int, int]], covered: int) -> Iterator[list[tuple[int, int]]]:
        nonlocal work
        if covered == b.size:
            yield digits
            return
        for stride, room in sorted(candidates):
            for length in reversed(_divisors(room)):
                if length == 1 or (b.size // covered) % length or _overlap(digits, length, stride):
                    continue
                work -= 1
                if work < 0:
                    return
                index = _places(covered * length, min(_PROBES, covered * length))
                if close(a[_positions([*digits, (length, stride)], index)], b[index], tolerance, size):
                    yield from extend([*digits, (length, stride)], covered * length)

    for digits in extend([], 1):
        by_stride = sorted(range(len(digits)), key=lambda i: -digits[i][1])
        factors = tuple(digits[i][0] for i in by_stride)
        if [digits[i][1] for i in by_stride] == list(_strides(factors)):
            place = {i: at for at, i in enumerate(by_stride)}
            yield factors, tuple(place[i] for i in reversed(range(len(digits))))


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0] if n <= 4096 else [1, n]


def _overlap(digits: list[tuple[int, int]], length: int, stride: int) -> bool:
    return any(s < stride * length and stride < s * n for n, s in digits)


def _positions(digits: list[tuple[int, int]], index: NDArray) -> NDArray:
    place = np.zeros_like(index)
    for length, stride in digits:
        place += index % length * stride
        index = index // length
    return place


def _find_repeated(a: NDArray, b: NDArray, tolerance: float) -> Layout | None:
    """Return the layout of two arrays of different size, of which one repeats the other."""
    if not (a.size and b.size) or max(a.size, b.size) % min(a.size, b.size):
        return None
    repeated_a, repeated_b = (), ()
    if b.size > a.size:
        repeated_b = _repeated_axes(b, a.size, tolerance)
    else:
        repeated_a = _repeated_axes(a, b.size, tolerance)
    if not (repeated_a or repeated_b):
        return None
    inner = find_layout(_once(a, repeated_a), _once(b, repeated_b), tolerance)
    if inner is None:
        return None
    return Layout(a.shape, b.shape, inner.factors, inner.axes, repeated_a, repeated_b)


def _repeated_axes(array: NDArray, size: int, tolerance: float) -> tuple[int, ...]:
    """Return the axes along which an array repeats itself, if it has the given number of elements without them."""
    axes, left, scale = [], array.size, typical_size(array)
    for axis, length in enumerate(array.shape):
        if length == 1 or left // length < size or (left // length) % size:
            continue
        first = array.take([0], axis)
        if not close(first, array.take([length - 1], axis), tolerance, scale):
            continue
        if close(np.broadcast_to(first, array.shape), array, tolerance, scale):
            axes.append(axis)
            left //= length
    return tuple(axes) if left == size else ()


@dataclass(frozen=True)
class Fingerprint:
    """What no reordering and no repetition of an array changes, up to rounding."""

    size: int
    typical: float
    moments: tuple[float, ...]

    def near(self, other: Fingerprint, tolerance: float) -> bool:
        """Return whether two arrays may hold the same numbers, each as often or more often by one factor."""
        if max(self.size, other.size) % max(1, min(self.size, other.size)):
            return False
        scale = max(abs(self.moments[0]), abs(other.moments[0]))
        # Moments of n numbers, each off by r times its size, are off by r times the root mean square; twice for safety.
        return all(
            x == y or abs(x - y) <= 4 * (tolerance + 1e-14) * scale
            for x, y in zip(self.moments, other.moments, strict=True)
        )


def fingerprint(array: NDArray) -> Fingerprint:
    """Return the fingerprint of an array: root mean square, mean, mean size, maximum and minimum of its numbers."""
    flat = np.asarray(array).reshape(-1)
    if flat.dtype.kind == "c":
        flat = np.concatenate([flat.real, flat.imag])
    flat = flat.astype(np.float64, copy=False)
    size = flat.size
    if not size:
        return Fingerprint(0, 0.0, (0.0,) * 5)
    high, low = float(flat.max()), float(flat.min())
    if not (math.isfinite(high) and math.isfinite(low)):
        flat = flat[np.isfinite(flat)]
        if not flat.size:
            return Fingerprint(size, 0.0, (0.0,) * 5)
        high, low = float(flat.max()), float(flat.min())
    with np.errstate(over="ignore"):
        square = float(np.dot(flat, flat)) / flat.size
    moments = (math.sqrt(square), float(flat.mean()), float(np.abs(flat).mean()), high, low)
    return Fingerprint(size, moments[0], moments)


class Lookup:
    """Arrays by their fingerprints, to find those that may hold the numbers of another."""

    def __init__(self) -> None:
        self._keys: list[tuple[float, int]] = []
        self._entries: list[tuple[Fingerprint, Hashable]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, key: Hashable, array: NDArray) -> None:
        """Add an array under a key."""
        print_ = fingerprint(array)
        bisect.insort(self._keys, (print_.moments[0], len(self._entries)))
        self._entries.append((print_, key))

    def find(self, array: NDArray, tolerance: float) -> list[Hashable]:
        """Return the keys of the arrays that may hold the numbers of this one: same size first, then as added."""
        wanted = fingerprint(array)
        centre = wanted.moments[0]
        width = 4 * (tolerance + 1e-14) * centre * (1 + 1e-9)
        start = bisect.bisect_left(self._keys, (centre - width, -1))
        end = bisect.bisect_right(self._keys, (centre + width, len(self._entries)))
        found = sorted(index for _, index in self._keys[start:end] if self._entries[index][0].near(wanted, tolerance))
        found.sort(key=lambda index: self._entries[index][0].size != wanted.size)
        return [self._entries[index][1] for index in found]
