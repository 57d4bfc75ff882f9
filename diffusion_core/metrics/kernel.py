"""The kernel distance between two sets of features: the unbiased squared maximum mean discrepancy.

With ``k(x, y) = (x y / D + 1)^3`` and sets of n and m features::

    d^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

Its expectation does not depend on the sizes of the sets, so values from sets of different sizes compare, and it may be
negative. As is usual, it is averaged over subsets of 1,000, drawn without replacement by stream "metrics/kernel";
their standard deviation is printed behind ±. This is the variation of one subset, not the error of the mean. With
``subsets: 0`` all pairs of both sets are used once: the same expectation with a smaller variance, and no random
subsets.

References:
    Demystifying MMD GANs (Bińkowski et al., 2018), https://arxiv.org/abs/1801.01401
    A kernel two-sample test (Gretton et al., 2012), https://jmlr.org/papers/v13/gretton12a.html
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.metrics.blocks import blocks, check_finite, rows
from diffusion_core.metrics.metric import Arrays, Measure, Metric, MetricResult, NumberInfo

__all__ = ["KERNEL", "kernel_distance"]


def kernel_distance(a: NDArray, b: NDArray) -> float:
    """Return the unbiased estimate of the squared discrepancy with the cubic kernel.

    Args:
        a: with shape (N, D).
        b: with shape (M, D).

    Raises:
        DuetError: a set has fewer than two rows, the widths differ, a value is not finite, or the features are so far
            from 0 that rounding decides the result.

    Example:
        >>> kernel_distance(np.array([[0.0], [1.0]]), np.array([[0.0], [1.0]]))
        -3.5
    """
    return _Pairs.count(*_checked(a, b)).distance


def _checked(a: NDArray, b: NDArray) -> tuple[NDArray, NDArray]:
    """Refuse sets whose distance has no meaning."""
    if a.ndim != 2 or b.ndim != 2 or min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise DuetError(
            f"kernel distance: features with shapes {a.shape} and {b.shape} were given; "
            f"they must be (samples, features), with equal widths and at least 2 samples each"
        )
    for x, side in ((a, "a"), (b, "b")):
        check_finite(x, f"kernel distance: features {side}")
        _check_offset(x)
    return a, b


# Largest offset of features from 0 in their standard deviations: beyond it the cubes of the kernel lose the distance.
_LARGEST_OFFSET = 1e6


def _check_offset(x: NDArray) -> None:
    """Refuse features whose mean is so large that the kernel, which is not invariant to it, cannot resolve them."""
    part = x[:: max(1, len(x) // 1000)].astype(np.float64)
    offset, spread = np.sqrt(np.mean(part.mean(axis=0) ** 2)), np.sqrt(part.var(axis=0).mean())
    if spread > 0 and offset > _LARGEST_OFFSET * spread:
        raise DuetError(
            f"kernel distance: the features have the mean {offset:.3g} and the standard deviation {spread:.3g}; their "
            f"cubes differ by rounding alone, so subtract the mean of the reference from both sets"
        )


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Sums of the kernel over the pairs of two sets, by row, so that rows can be left out without a further pass.

    Args:
        sets: both sets, with shapes (N, D) and (M, D).
        own: for each set, the sum over the other rows of the set, with shapes (N,) and (M,).
        across: for each set, the sum over the rows of the other set.
    """

    sets: tuple[NDArray, NDArray]
    own: tuple[NDArray[np.float64], NDArray[np.float64]]
    across: tuple[NDArray[np.float64], NDArray[np.float64]]

    @staticmethod
    def count(a: NDArray, b: NDArray) -> _Pairs:
        """Evaluate the kernel for all pairs."""
        own = tuple(_row_sums(x, x)[0] - _diagonal(x) for x in (a, b))
        return _Pairs((a, b), own, _row_sums(a, b))

    @property
    def distance(self) -> float:
        """The unbiased estimate."""
        n, m = map(len, self.sets)
        own = [sums.sum() / (len(sums) * (len(sums) - 1)) for sums in self.own]
        return float(own[0] + own[1] - 2.0 * self.across[0].sum() / (n * m))

    def without(self, removed: NDArray[np.int64], side: int) -> float:
        """Return the distance without some rows of one of the sets."""
        part, sums, others = self.sets[side][removed], self.own[side], self.own[1 - side]
        left, count = len(sums) - len(removed), len(others)
        # The sums of the removed rows count the pairs among them twice.
        among = _row_sums(part, part)[0].sum() - _diagonal(part).sum()
        own = (sums.sum() - 2.0 * sums[removed].sum() + among) / (left * (left - 1))
        across = (self.across[side].sum() - self.across[side][removed].sum()) / (left * count)
        return float(own + others.sum() / (count * (count - 1)) - 2.0 * across)


def _row_sums(a: NDArray, b: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sums of the kernel over all pairs, for each row of a and for each row of b."""
    cached = rows(b, blocks(b)[0]) if len(blocks(b)) == 1 else None
    of_a, of_b = np.zeros(len(a)), np.zeros(len(b))
    for here in blocks(a):
        x = rows(a, here)
        for there in blocks(b):
            y = rows(b, there) if cached is None else cached
            line = x @ y.T / a.shape[1] + 1.0
            cubes = line * line * line  # several times faster than ** 3
            of_a[here] += cubes.sum(axis=1)
            of_b[there] += cubes.sum(axis=0)
    return of_a, of_b


def _diagonal(a: NDArray) -> NDArray[np.float64]:
    """Return the kernel of each row with itself."""
    return np.concatenate([(np.sum(rows(a, some) ** 2, axis=1) / a.shape[1] + 1.0) ** 3 for some in blocks(a)])


def _fit(reference: Arrays, seed: int, *, subsets: int = 100, size: int = 1000) -> Measure:
    """Measure the mean over subsets, or all pairs.

    Args:
        subsets: the number of subsets; only one if a subset would be all of both sets; 0 for all pairs of both sets.
        size: the size of each, or that of the smaller set if it is smaller.
    """
    if subsets < 0 or size < 2:
        raise DuetError(f"kernel: {subsets} subsets of {size} were given; they must be at least 0 and 2")
    real, stream = reference["features"], Stream(seed, "metrics/kernel")

    def measure(samples: Arrays) -> MetricResult:
        fake = samples["features"]
        rows_used = min(size, len(fake), len(real))
        if not subsets or rows_used == len(fake) == len(real):
            pairs = _Pairs.count(*_checked(fake, real))
            return MetricResult({"distance": pairs.distance}, **_without(pairs, pairs.distance))
        drawn = (
            [x[np.sort(stream.permutation(len(x), 2 * k + side)[:rows_used])] for side, x in enumerate((fake, real))]
            for k in range(subsets)
        )
        distances = np.array([kernel_distance(*pair) for pair in drawn])
        facts = {"distance": distances.mean()}, {"distance": distances.std()}, {"subsets": distances}
        # All pairs vary as the mean over many subsets does, without the noise of drawing them.
        few = max(len(fake), len(real)) <= _MOST_PAIRED
        return MetricResult(*facts, **(_without(_Pairs.count(fake, real), distances.mean()) if few else {}))

    return measure


_MOST_PAIRED = 10_000  # rows of which all pairs are formed to find the interval of a mean over subsets


def _without(pairs: _Pairs, value: float) -> dict[str, Any]:
    """Return the functions that give a value near the distance of all pairs without some rows."""

    def side(which: int) -> Callable[[NDArray[np.int64]], dict[str, float]]:
        return lambda removed: {"distance": value + pairs.without(removed, which) - pairs.distance}

    return {"without": side(0), "without_reference": side(1)}


KERNEL = Metric(_fit, ("features",), ("features",), {"distance": NumberInfo("kernel distance", "KID", "lower")})
