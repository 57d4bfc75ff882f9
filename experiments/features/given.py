"""Features that another program computed, read from files and called by the name of their network.

Numbers on them get their published names: the Fréchet distance of DINOv2 features is "FD-DINOv2", the Gaussian kernel
distance of CLIP embeddings "CMMD". The file says nothing about its network, so the width is checked, and vectors that
are compared with unit length are scaled to it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.metrics.metric import Arrays, FeatureKind
from experiments.features.kind import Features

__all__ = ["features"]

# The width of the network of published numbers, by title; numbers on another size get its width in their name.
_PUBLISHED = {"DINOv2": 1024, "CLIP": 768}


def features(*, title: str, width: int | None = None, unit_length: bool = False) -> Features:
    """Return the features of files.

    Args:
        title: the name of the network, the prefix of every number.
        width: the number of features that it has; None for any.
        unit_length: whether vectors are scaled to length 1.
    """
    if not title:
        raise DuetError("features.title: nothing was given; name the network that computed the features, as in DINOv2")

    def compute(values: NDArray) -> Arrays:
        if width is not None and values.shape[1] != width:
            raise DuetError(
                f"features: {values.shape[1]} features were given, but {title} has {width}; for another size of the "
                f"network set features.width={values.shape[1]}, which is part of the protocol"
            )
        vectors = values.astype(np.float64)
        if unit_length:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float64).tiny)
        return {"features": vectors}

    facts = {"kind": "given", "title": title, "width": width, "unit_length": unit_length}
    name = title if _PUBLISHED.get(title, width) == width else f"{title} of width {width}"
    return Features(FeatureKind(name, facts), compute, reads="features")
