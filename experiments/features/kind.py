"""The common interface of all feature networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.metrics.metric import Arrays, FeatureKind

__all__ = ["Features", "MissingWeights", "as_colour", "extract"]


class MissingWeights(DuetError):
    """A feature network needs a file of weights that was not given; a caller may continue without features."""


@dataclass(frozen=True, eq=False)
class Features:
    """A function from images to vectors.

    Args:
        kind: name and facts, for protocols.
        compute: maps uint8 images (N, H, W, C) to named arrays (`metrics.metric.Arrays`) with one row per image; called
            with as many images as fit into memory.
        versions: the versions of the software that computes them, on which the numbers should not depend.
        reads: "images"; "values" of a set that has them, of any shape (N, ...); or "features" that a file holds.
    """

    kind: FeatureKind
    compute: Callable[[NDArray[np.uint8]], Arrays]
    versions: Mapping[str, str] = field(default_factory=dict)
    reads: str = "images"

    def source(self, arrays: Arrays) -> NDArray | None:
        """Return the array of a set that these features are computed from; None if it has none."""
        if self.reads == "features":
            return arrays.get("features")
        return arrays["values"] if self.reads == "values" and "values" in arrays else arrays.get("images")

    def __repr__(self) -> str:
        return f"Features({self.kind.name!r})"


def extract(
    features: Features, images: NDArray[np.uint8], batch: int, progress: Callable[[int], None] | None = None
) -> dict[str, NDArray]:
    """Compute the features of any number of images in batches.

    Args:
        features: the feature network.
        images: uint8 with shape (N, H, W, C), or values (N, ...); a memory map is read batch by batch.
        batch: images per batch.
        progress: called with the number of images that are done.

    Returns:
        The named arrays of the features, with N rows each.

    Raises:
        DuetError: the batch is below 1, or the images have the wrong shape for these features.

    Example:
        >>> from experiments.features import FEATURES
        >>> images = np.zeros((3, 8, 8, 1), np.uint8)
        >>> {name: array.shape for name, array in extract(FEATURES["digits"](), images, batch=2).items()}
        {'features': (3, 64), 'spatial': (3, 256), 'probabilities': (3, 10)}
    """
    if batch < 1:
        raise DuetError(f"features: a batch of {batch} was given; it must be at least 1")
    arrays: dict[str, NDArray] = {}
    for start in range(0, len(images), batch):
        for name, values in features.compute(np.ascontiguousarray(images[start : start + batch])).items():
            # Allocate the final size: concatenating batches at the end would need the memory twice.
            output = arrays.setdefault(name, np.empty((len(images), *values.shape[1:]), values.dtype))
            output[start : start + batch] = values
        if progress:
            progress(min(start + batch, len(images)))
    return arrays


def as_colour(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return images with three channels, by repeating the channel of grey images."""
    return images if images.shape[3] == 3 else np.repeat(images, 3, axis=3)
