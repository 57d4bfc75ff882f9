"""The kernel distance of two sets of features: the squared maximum mean discrepancy, without bias.

With ``k(x, y) = (x y / D + 1)^3`` and sets of n and m features::

    d^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

Its mean over sets of any size is the value of the distributions, so sets of different sizes compare, and it may be
negative. As is the custom, it is averaged over subsets of 1,000, drawn without replacement by stream
"metrics/kernel"; their standard deviation is what is printed behind ±. It is how far one subset varies, not the error
of their mean.

References:
    Demystifying MMD GANs (Bińkowski et al., 2018), https://arxiv.org/abs/1801.01401
    A kernel two-sample test (Gretton et al., 2012), https://jmlr.org/papers/v13/gretton12a.html
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.metrics.blocks import blocks, rows
from diffusion_core.metrics.metric import Arrays, Measure, Metric, MetricResult, NumberInfo

__all__ = ["KERNEL", "kernel_distance"]


def kernel_distance(a: NDArray, b: NDArray) -> float:
    """The unbiased estimate of the squared discrepancy, with the cubic kernel.

    Args:
        a: with shape (N, D).
        b: with shape (M, D).

    Raises:
        DuetError: a set has fewer than two samples, or the widths differ.
    """
    if a.ndim != 2 or b.ndim != 2 or min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise DuetError(
            f"kernel distance: features with shapes {a.shape} and {b.shape} were given; "
            f"they must be (samples, features), as wide as each other and at least 2 samples each"
        )
    own = [(_sum(x, x) - _diagonal(x)) / (len(x) * (len(x) - 1)) for x in (a, b)]
    return own[0] + own[1] - 2.0 * _sum(a, b) / (len(a) * len(b))


def _sum(a: NDArray, b: NDArray) -> float:
    """The sum of the kernel over all pairs."""
    within = [(some, rows(b, some)) for some in blocks(b)] if len(blocks(b)) == 1 else None
    total = 0.0
    for here in blocks(a):
        x = rows(a, here)
        for there in blocks(b):
            y = within[0][1] if within else rows(b, there)
            total += float(np.sum((x @ y.T / a.shape[1] + 1.0) ** 3))
    return total


def _diagonal(a: NDArray) -> float:
    return sum(float(np.sum((np.sum(rows(a, some) ** 2, axis=1) / a.shape[1] + 1.0) ** 3)) for some in blocks(a))


def _fit(reference: Arrays, seed: int, *, subsets: int = 100, size: int = 1000) -> Measure:
    """The mean over subsets.

    Args:
        subsets: how many; where a subset would be all of both sets, there is only one.
        size: of each, or the size of the smaller set where that has fewer.
    """
    if subsets < 1 or size < 2:
        raise DuetError(f"kernel: {subsets} subsets of {size} were given; they must be at least 1 and 2")
    real, stream = reference["features"], Stream(seed, "metrics/kernel")

    def measure(samples: Arrays) -> MetricResult:
        given = samples["features"]
        taken = min(size, len(given), len(real))
        if taken == len(given) == len(real):
            return MetricResult({"distance": kernel_distance(given, real)})
        pairs = (
            [x[np.sort(stream.permutation(len(x), 2 * k + side)[:taken])] for side, x in enumerate((given, real))]
            for k in range(subsets)
        )
        found = np.array([kernel_distance(*pair) for pair in pairs])
        return MetricResult({"distance": found.mean()}, {"distance": found.std()}, {"subsets": found})

    return measure


KERNEL = Metric(_fit, ("features",), ("features",), {"distance": NumberInfo("kernel distance", "KID", "lower")})
