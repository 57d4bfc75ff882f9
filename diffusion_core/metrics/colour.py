"""Colour statistics of samples against data: histograms of each channel, in pixel values 0..255.

The distance of two histograms with distribution functions F and G is the Wasserstein distance, ``sum over v of |F(v) -
G(v)|``: by how much pixel values must change, on average, to turn one into the other. It shows a diffusion model whose
samples are slightly too bright, too flat or clipped long before an eye does.

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

_VALUES = np.arange(256)


def histograms(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the fraction of each pixel value in each channel of images (N, H, W, C), with shape (C, 256)."""
    counts = np.zeros((images.shape[3], 256), np.int64)
    for some in blocks(images):
        block = images[some]
        for channel, line in enumerate(counts):
            line += np.bincount(block[..., channel].reshape(-1), minlength=256)
    return counts / counts.sum(axis=1, keepdims=True)


def _moments(fractions: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean and standard deviation of each channel."""
    mean = fractions @ _VALUES
    return mean, np.sqrt(np.maximum(fractions @ _VALUES**2 - mean**2, 0.0))


def _fit(reference: Arrays, seed: int) -> Measure:
    real = histograms(reference["images"])
    mean, std = _moments(real)

    def measure(samples: Arrays) -> MetricResult:
        fake = histograms(samples["images"])
        if len(fake) != len(real):
            raise DuetError(f"colour: {len(fake)} and {len(real)} channels were given; they must be equal")
        fake_mean, fake_std = _moments(fake)
        distances = np.abs(np.cumsum(fake - real, axis=1)).sum(axis=1)
        clipped = (fake[:, [0, 255]] - real[:, [0, 255]]).sum(axis=1)
        return MetricResult(
            {
                "distance": distances.mean(),
                "brightness": (fake_mean - mean).mean(),
                "contrast": fake_std.mean() / std.mean() if std.any() else np.nan,
                "clipped": clipped.mean(),
            },
            arrays={"histograms": fake, "reference_histograms": real, "mean": fake_mean, "reference_mean": mean},
        )

    return measure


COLOUR = Metric(
    _fit,
    ("images",),
    ("images",),
    {
        "distance": NumberInfo("colour histogram distance", better="lower", unit="levels", bounds=NON_NEGATIVE),
        "brightness": NumberInfo("brightness difference", unit="levels"),
        "contrast": NumberInfo("contrast, relative to the reference"),
        "clipped": NumberInfo("excess fraction of black and white values"),
    },
)
