"""Precision, recall, density and coverage: whether samples lie where the data lie, and data where samples lie.

The ball of a point reaches to its k-th neighbour within its own set. With samples x and reference points y::

    precision = fraction of x in the ball of some y          recall   = fraction of y in the ball of some x
    density   = mean over x of (balls of y it lies in) / k   coverage = fraction of y whose ball holds some x

Distances do not depend on the origin, but ``|x|^2 + |y|^2 - 2 x y`` loses their digits if it is far away: features
with an offset of 1e8 would all be equally near. So the mean of the reference is subtracted from both sets, rounded to
integers if the features are integers, which keeps their distances exact.

Precision and recall use k = 3, density and coverage k = 5, as in the papers. Density is about 1 for perfect samples and
may exceed it. All depend on the size of both sets, so the same number of points is used of each if there are enough,
drawn by stream "metrics/manifold".

References:
    Improved precision and recall metric for assessing generative models (Kynkäänniemi et al., 2019),
    https://arxiv.org/abs/1904.06991
    Reliable fidelity and diversity metrics for generative models (Naeem et al., 2020), https://arxiv.org/abs/2002.09797
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.metrics.blocks import check_finite, neighbours, squared_distances
from diffusion_core.metrics.metric import (
    FRACTION,
    NON_NEGATIVE,
    Arrays,
    Measure,
    Metric,
    MetricResult,
    NotApplicable,
    NumberInfo,
)

__all__ = ["MANIFOLD", "radii"]


def radii(points: NDArray, nearest: int) -> NDArray[np.float64]:
    """Return the squared distances of each point to its `nearest` neighbours in its set, with shape (N, nearest)."""
    return neighbours(points, points, nearest, is_same=True)[1]


def _origin(points: NDArray) -> NDArray[np.float64]:
    """Return the mean of points, rounded if all of them are integers."""
    mean = points.mean(axis=0, dtype=np.float64)
    return np.rint(mean) if np.array_equal(points, np.rint(points)) else mean


def _fit(reference: Arrays, seed: int, *, nearest: int = 3, nearest_density: int = 5, most: int = 10_000) -> Measure:
    """Compute the balls of the reference.

    Args:
        nearest: k of precision and recall.
        nearest_density: k of density and coverage.
        most: the largest number of points of each set; a larger set is subsampled.
    """
    largest = max(nearest, nearest_density)
    if min(nearest, nearest_density) < 1 or most <= largest:
        raise DuetError(
            f"manifold: nearest {nearest}, nearest_density {nearest_density} and most {most} were given; the first two "
            f"must be at least 1 and the last larger than both"
        )

    def subset(points: NDArray, what: str, row: int) -> NDArray:
        if len(points) <= largest:
            raise NotApplicable(f"{len(points)} {what} were given; {largest} nearest neighbours need more")
        if len(points) <= most:
            return points
        return points[np.sort(Stream(seed, "metrics/manifold").permutation(len(points), row)[:most])]

    real = subset(reference["features"], "reference images", 0)
    check_finite(real, "manifold: features of the reference")
    origin = _origin(real)
    real = real - origin
    real_radii = radii(real, largest)

    def measure(samples: Arrays) -> MetricResult:
        fake = subset(samples["features"], "samples", 1)
        if fake.shape[1] != real.shape[1]:
            raise DuetError(
                f"manifold: {fake.shape[1]} and {real.shape[1]} features were given; the widths must be equal"
            )
        check_finite(fake, "manifold: features of the samples")
        fake = fake - origin
        fake_radii = radii(fake, nearest)[:, -1:]
        in_real, in_fake, covered = (np.zeros(len(x), bool) for x in (fake, real, real))
        inside = 0
        for x_slice, y_slice, squares in squared_distances(fake, real):
            in_real[x_slice] |= (squares <= real_radii[y_slice, nearest - 1]).any(axis=1)
            in_fake[y_slice] |= (squares <= fake_radii[x_slice]).any(axis=0)
            dense = squares <= real_radii[y_slice, nearest_density - 1]
            covered[y_slice] |= dense.any(axis=0)
            inside += np.count_nonzero(dense)
        return MetricResult(
            {
                "precision": in_real.mean(),
                "recall": in_fake.mean(),
                "density": inside / (nearest_density * len(fake)),
                "coverage": covered.mean(),
            },
            trials={"precision": len(fake)},  # given the reference, each sample is in its balls or not
        )

    return measure


MANIFOLD = Metric(
    _fit,
    ("features",),
    ("features",),
    {
        name: NumberInfo(name, better="higher", bounds=NON_NEGATIVE if name == "density" else FRACTION)
        for name in ("precision", "recall", "density", "coverage")
    },
)
