"""Do samples have the colours of the data: histograms of each channel, in levels of 0..255.

The distance of two histograms with distribution functions F and G is that of Wasserstein,
``sum over v of |F(v) - G(v)|``: by how many levels a value must be moved, on average, to turn one into the other. A
diffusion model that is a little too bright, too flat or clipped shows here long before it is seen.

References:
    The earth mover's distance as a metric for image retrieval (Rubner, Tomasi and Guibas, 2000),
    https://doi.org/10.1023/A:1026543900054
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.metrics.blocks import blocks
from diffusion_core.metrics.metric import NON_NEGATIVE, Arrays, Measure, Metric, MetricResult, NumberInfo

__all__ = ["COLOUR", "histograms"]

_LEVELS = np.arange(256)


def histograms(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The share of each level in each channel of images (N, H, W, C), with shape (C, 256)."""
    counts = np.zeros((images.shape[3], 256), np.int64)
    for some in blocks(images):
        block = images[some]
        for channel, line in enumerate(counts):
            line += np.bincount(block[..., channel].reshape(-1), minlength=256)
    return counts / counts.sum(axis=1, keepdims=True)


def _moments(given: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each channel."""
    mean = given @ _LEVELS
    return mean, np.sqrt(np.maximum(given @ _LEVELS**2 - mean**2, 0.0))


def _fit(reference: Arrays, seed: int) -> Measure:
    real = histograms(reference["images"])
    mean, deviation = _moments(real)

    def measure(samples: Arrays) -> MetricResult:
        found = histograms(samples["images"])
        if len(found) != len(real):
            raise DuetError(f"colour: {len(found)} and {len(real)} channels were given; there must be as many")
        its_mean, its_deviation = _moments(found)
        apart = np.abs(np.cumsum(found - real, axis=1)).sum(axis=1)
        clipped = (found[:, [0, 255]] - real[:, [0, 255]]).sum(axis=1)
        return MetricResult(
            {
                "distance": apart.mean(),
                "brightness": (its_mean - mean).mean(),
                "contrast": its_deviation.mean() / deviation.mean() if deviation.any() else np.nan,
                "clipped": clipped.mean(),
            },
            arrays={"histograms": found, "reference_histograms": real, "mean": its_mean, "reference_mean": mean},
        )

    return measure


COLOUR = Metric(
    _fit,
    ("images",),
    ("images",),
    {
        "distance": NumberInfo("colour histogram distance", better="lower", unit="levels", bounds=NON_NEGATIVE),
        "brightness": NumberInfo("brighter than the reference", unit="levels"),
        "contrast": NumberInfo("contrast, as a share of that of the reference"),
        "clipped": NumberInfo("more black and white values than the reference, as a share"),
    },
)
