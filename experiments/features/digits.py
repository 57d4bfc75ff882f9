"""Features of the bundled digits network. A number on them is called "digits ...", never FID."""

from __future__ import annotations

from diffusion_core.metrics import digits
from diffusion_core.metrics.metric import FeatureKind
from experiments.features.kind import Features

__all__ = ["features"]


def features() -> Features:
    """Return the network of `diffusion_core.metrics.digits`, for grey images averaged to 8 x 8."""
    facts = {
        "kind": "digits",
        "weights_sha256": digits.SHA256,
        "resize": "mean of square blocks to 8 x 8",
        "quantised": "uint8",
    }
    return Features(FeatureKind("digits", facts, classes=digits.CLASSES), digits.layers)
