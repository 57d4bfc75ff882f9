"""What all kinds of features are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.errors import DuetError

__all__ = ["Features", "NotGiven", "as_colour", "extract"]


class NotGiven(DuetError):
    """Features need a file that nobody named; who can go on without them may."""


@dataclass(frozen=True, eq=False)
class Features:
    """A function from pictures to vectors, with its name and its protocol.

    Args:
        score: what a Fréchet distance of these features is called; "FID" is kept for Inception with the published
            weights.
        of: the function: uint8 pictures (N, H, W, C) to float64 (N, D), for as many pictures as fit into memory.
        facts: all that the numbers depend on beside the pictures, as plain data.
    """

    score: str
    of: Callable[[NDArray[np.uint8]], NDArray[np.float64]]
    facts: Mapping[str, Any]


def extract(
    features: Features, images: NDArray[np.uint8], batch: int, progress: Callable[[int], None] | None = None
) -> NDArray[np.float64]:
    """The features of any number of pictures, `batch` of them at once.

    Args:
        features: what to compute.
        images: uint8 with shape (N, H, W, C); a memory map is read piece by piece.
        batch: pictures at once.
        progress: called with the number of pictures that are done.

    Returns:
        float64 with shape (N, D).
    """
    if batch < 1:
        raise DuetError(f"features: a batch of {batch} was given; it must be at least 1")
    found = []
    for start in range(0, len(images), batch):
        found.append(features.of(np.ascontiguousarray(images[start : start + batch])))
        if progress:
            progress(min(start + batch, len(images)))
    return np.concatenate(found)


def as_colour(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures with three channels; those of a grey picture are alike."""
    return images if images.shape[3] == 3 else np.repeat(images, 3, axis=3)
