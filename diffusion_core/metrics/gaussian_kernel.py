"""The squared maximum mean discrepancy of features with a Gaussian kernel; CMMD on CLIP embeddings.

With ``k(x, y) = exp(-|x - y|^2 / (2 sigma^2))`` and all pairs, also those of a member with itself::

    d^2 = scale ( mean_{i, j} k(x_i, x_j) + mean_{i, j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j) )

CMMD has sigma 10 and scale 1,000 on embeddings of CLIP ViT-L/14 at 336 pixels with unit length: `features=clip` reads
them from files. Including the pairs of a member with itself adds about ``scale (1 - mean k) (1/n + 1/m)``, so compare
equal numbers of samples; the floor is the value of as many images of the reference.

References:
    Rethinking FID: towards a better evaluation metric for image generation (Jayasumana et al., 2024),
    https://arxiv.org/abs/2401.09603
    A kernel two-sample test (Gretton et al., 2012), https://jmlr.org/papers/v13/gretton12a.html
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.metrics.blocks import check_finite, squared_distances
from diffusion_core.metrics.metric import NON_NEGATIVE, Arrays, Measure, Metric, MetricResult, NumberInfo

__all__ = ["GAUSSIAN_KERNEL"]

RowSums = tuple[NDArray[np.float64], NDArray[np.float64]]


def _row_sums(a: NDArray, b: NDArray, sigma: float) -> RowSums:
    """Return the sums of the kernel over all pairs, for each row of a and for each row of b."""
    of_a, of_b = np.zeros(len(a)), np.zeros(len(b))
    for here, there, squares in squared_distances(a, b):
        k = np.exp(squares / (-2.0 * sigma**2))
        of_a[here] += k.sum(axis=1)
        of_b[there] += k.sum(axis=0)
    return of_a, of_b


def _fit(reference: Arrays, seed: int, *, sigma: float = 10.0, scale: float = 1000.0) -> Measure:
    """Measure the discrepancy over all pairs.

    Args:
        sigma: the width of the kernel, in the unit of the features.
        scale: the factor of the discrepancy.
    """
    if not (sigma > 0 and scale > 0):
        raise DuetError(f"cmmd: sigma {sigma} and scale {scale} were given; both must be above 0")
    real = reference["features"]
    check_finite(real, "cmmd: features of the reference")
    origin = real.mean(axis=0, dtype=np.float64)
    real = real - origin  # keeps the digits of distances between features with an offset
    own_real = _row_sums(real, real, sigma)[0]

    def measure(samples: Arrays) -> MetricResult:
        fake = samples["features"]
        if fake.shape[1] != real.shape[1]:
            raise DuetError(f"cmmd: {fake.shape[1]} and {real.shape[1]} features were given; the widths must be equal")
        check_finite(fake, "cmmd: features of the samples")
        sets = fake - origin, real
        own, across = (_row_sums(sets[0], sets[0], sigma)[0], own_real), _row_sums(*sets, sigma)
        n, m = map(len, sets)
        value = own[0].sum() / n**2 + own[1].sum() / m**2 - 2.0 * across[0].sum() / (n * m)

        def without(side: int) -> Callable[[NDArray[np.int64]], dict[str, float]]:
            def rest(removed: NDArray[np.int64]) -> dict[str, float]:
                part, left, count = sets[side][removed], len(sets[side]) - len(removed), len(sets[1 - side])
                among = _row_sums(part, part, sigma)[0].sum()  # counted twice in the sums of the removed rows
                inside = (own[side].sum() - 2.0 * own[side][removed].sum() + among) / left**2
                cross = (across[side].sum() - across[side][removed].sum()) / (left * count)
                return {"distance": scale * float(inside + own[1 - side].sum() / count**2 - 2.0 * cross)}

            return rest

        return MetricResult(
            {"distance": scale * float(max(0.0, value))}, without=without(0), without_reference=without(1)
        )

    return measure


GAUSSIAN_KERNEL = Metric(
    _fit,
    ("features",),
    ("features",),
    {
        "distance": NumberInfo(
            "Gaussian kernel distance", better="lower", bounds=NON_NEGATIVE, published_on={"CLIP": "CMMD"}
        )
    },
    has_floor=True,
)
