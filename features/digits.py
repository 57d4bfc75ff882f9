"""The kernel features of handwritten digits. A score on them is called "digits Fréchet", never FID."""

from __future__ import annotations

from diffusion_core.metrics.digits import fit_judge
from features.kind import Features

__all__ = ["features"]


def features() -> Features:
    """The kernel between a grey picture, averaged to 8 x 8, and 100 training digits."""
    judge = fit_judge()
    facts = {"features": "digits", "width": len(judge.landmarks), "resize": "mean of square blocks to 8 x 8"}
    return Features("digits Fréchet", judge.features, facts)
