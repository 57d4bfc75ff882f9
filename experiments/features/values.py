"""The values themselves as features: for data that have no feature network, such as latents, vectors and volumes.

A Fréchet distance on them compares mean and covariance of the data themselves. Pixels become network values in [-1, 1].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffusion_core.data.pixels import from_stored
from diffusion_core.metrics.metric import Arrays, FeatureKind
from experiments.features.kind import Features

__all__ = ["features"]


def features() -> Features:
    """Return the values of each item, flattened."""
    facts = {"kind": "values", "scale": "network values"}
    return Features(FeatureKind("values", facts), _flat, reads="values")


def _flat(values: NDArray) -> Arrays:
    return {"features": from_stored(values, np.float64).reshape(len(values), -1)}
