"""The Fréchet distance of infinitely many samples, by extrapolation.

The distance from n samples is biased upwards by a quantity that is about proportional to 1/n. So it is measured on
subsets of n/2 .. n samples, and the line ``d(m) = d_infinity + c/m`` is fitted by least squares; its value at 1/m = 0
is the result. The subsets of each size are the first samples in an order of stream "metrics/frechet_infinity".

Like the jackknife's value without bias (`metrics.intervals`), it removes the bias of first order in 1/n, from subsets
of half the size and with a standard deviation that is 1.1 to 1.7 times as large (see `metrics.frechet`); the bias of a
finite reference stays. Below five samples per feature neither holds, and the metric does not apply.

References:
    Effectively unbiased FID and Inception Score and where to find them (Chong and Forsyth, 2020),
    https://arxiv.org/abs/1911.07023
"""

from __future__ import annotations

import numpy as np

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.metrics.frechet import FRECHET, LARGEST_RATIO, distance, fit_reference
from diffusion_core.metrics.frechet import fit_gaussian as fit
from diffusion_core.metrics.metric import Arrays, Measure, Metric, MetricResult, NotApplicable, NumberInfo

__all__ = ["FRECHET_INFINITY"]


def _fit(reference: Arrays, seed: int, *, sizes: int = 15) -> Measure:
    """Extrapolate the distance.

    Args:
        sizes: the number of subset sizes.
    """
    if sizes < 3:
        raise DuetError(f"frechet_infinity.sizes: {sizes} was given; a line with an error needs at least 3")
    real = fit_reference("features", reference)

    def measure(samples: Arrays) -> MetricResult:
        features = samples["features"]
        count, width = features.shape
        if width >= LARGEST_RATIO * count / 2:
            raise NotApplicable(
                f"{count} samples of {width} features were given; subsets of half of them need more than "
                f"{1 / LARGEST_RATIO:g} per feature"
            )
        order = Stream(seed, "metrics/frechet_infinity").permutation(count)
        counts = np.linspace(count // 2, count, sizes).astype(int)
        # Subsets from different places of the order share as few samples as possible.
        starts = (np.arange(sizes) * (count // sizes)) % count
        values = [
            distance(fit(features[np.sort(np.roll(order, -start)[:size])], "features of the samples"), real)
            for start, size in zip(starts, counts, strict=True)
        ]
        _, limit = np.polyfit(1.0 / counts, values, 1)
        return MetricResult({"distance": float(limit)}, arrays={"sizes": counts, "distances": np.array(values)})

    return measure


FRECHET_INFINITY = Metric(
    _fit,
    ("features",),
    ("features",),
    {"distance": NumberInfo("Fréchet distance, extrapolated to infinitely many samples", "FID infinity", "lower")},
    substitutes=FRECHET.substitutes,
)
