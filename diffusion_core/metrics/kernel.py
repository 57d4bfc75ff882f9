"""The kernel distance between two sets of features: the unbiased squared maximum mean discrepancy.

With ``k(x, y) = (x y / D + 1)^3`` and sets of n and m features::

    d^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

Its expectation does not depend on the sizes of the sets, so values from sets of different sizes compare, and it may be
negative. As is usual, it is averaged over subsets of 1,000, drawn without replacement by stream "metrics/kernel"; their
standard deviation is printed behind ±. This is the variation of one subset, not the error of the mean.

References:
    Demystifying MMD GANs (Bińkowski et al., 2018), https://arxiv.org/abs/1801.01401
    A kernel two-sample test (Gretton et al., 2012), https://jmlr.org/papers/v13/gretton12a.html
"""

from __future__ import annotations

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
    if a.ndim != 2 or b.ndim != 2 or min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise DuetError(
            f"kernel distance: features with shapes {a.shape} and {b.shape} were given; "
            f"they must be (samples, features), with equal widths and at least 2 samples each"
        )
    for x, side in ((a, "a"), (b, "b")):
        check_finite(x, f"kernel distance: features {side}")
        _check_offset(x)
    own = [(_sum(x, x) - _diagonal(x)) / (len(x) * (len(x) - 1)) for x in (a, b)]
    return own[0] + own[1] - 2.0 * _sum(a, b) / (len(a) * len(b))


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


def _sum(a: NDArray, b: NDArray) -> float:
    """Return the sum of the kernel over all pairs."""
    cached = rows(b, blocks(b)[0]) if len(blocks(b)) == 1 else None
    total = 0.0
    for here in blocks(a):
        x = rows(a, here)
        for there in blocks(b):
            y = rows(b, there) if cached is None else cached
            total += float(np.sum((x @ y.T / a.shape[1] + 1.0) ** 3))
    return total


def _diagonal(a: NDArray) -> float:
    return sum(float(np.sum((np.sum(rows(a, some) ** 2, axis=1) / a.shape[1] + 1.0) ** 3)) for some in blocks(a))


def _fit(reference: Arrays, seed: int, *, subsets: int = 100, size: int = 1000) -> Measure:
    """Measure the mean over subsets.

    Args:
        subsets: the number of subsets; only one if a subset would be all of both sets.
        size: the size of each, or that of the smaller set if it is smaller.
    """
    if subsets < 1 or size < 2:
        raise DuetError(f"kernel: {subsets} subsets of {size} were given; they must be at least 1 and 2")
    real, stream = reference["features"], Stream(seed, "metrics/kernel")

    def measure(samples: Arrays) -> MetricResult:
        fake = samples["features"]
        rows_used = min(size, len(fake), len(real))
        if rows_used == len(fake) == len(real):
            return MetricResult({"distance": kernel_distance(fake, real)})
        pairs = (
            [x[np.sort(stream.permutation(len(x), 2 * k + side)[:rows_used])] for side, x in enumerate((fake, real))]
            for k in range(subsets)
        )
        distances = np.array([kernel_distance(*pair) for pair in pairs])
        return MetricResult({"distance": distances.mean()}, {"distance": distances.std()}, {"subsets": distances})

    return measure


KERNEL = Metric(_fit, ("features",), ("features",), {"distance": NumberInfo("kernel distance", "KID", "lower")})
