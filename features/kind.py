"""What all kinds of features are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.metrics.metric import Arrays, FeatureKind

__all__ = ["Features", "MissingWeights", "as_colour", "extract"]


class MissingWeights(DuetError):
    """Features need a file that nobody named; who can go on without them may."""


@dataclass(frozen=True, eq=False)
class Features:
    """A function from images to vectors.

    Args:
        kind: name and protocol.
        of: the function: uint8 images (N, H, W, C) to the parts of a set that it computes (`metrics.metric.Arrays`),
            each with a row per image, for as many images as fit into memory.
        versions: of what computes them, which the numbers should not depend on.
    """

    kind: FeatureKind
    of: Callable[[NDArray[np.uint8]], Arrays]
    versions: Mapping[str, str] = field(default_factory=dict)


def extract(
    features: Features, images: NDArray[np.uint8], batch: int, progress: Callable[[int], None] | None = None
) -> dict[str, NDArray]:
    """The features of any number of images, `batch` of them at once.

    Args:
        features: what to compute.
        images: uint8 with shape (N, H, W, C); a memory map is read piece by piece.
        batch: images at once.
        progress: called with the number of images that are done.

    Returns:
        The parts that the features compute, of all images.
    """
    if batch < 1:
        raise DuetError(f"features: a batch of {batch} was given; it must be at least 1")
    found: dict[str, NDArray] = {}
    for start in range(0, len(images), batch):
        for name, values in features.of(np.ascontiguousarray(images[start : start + batch])).items():
            # One array of the final size: joining pieces at the end would take the memory twice.
            whole = found.setdefault(name, np.empty((len(images), *values.shape[1:]), values.dtype))
            whole[start : start + batch] = values
        if progress:
            progress(min(start + batch, len(images)))
    return found


def as_colour(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images with three channels; those of a grey image are alike."""
    return images if images.shape[3] == 3 else np.repeat(images, 3, axis=3)
