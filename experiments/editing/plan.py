"""What a mode of editing returns: a checked edit, which then draws the edited images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diffusion_core.sampling import SamplerPlan, edit

__all__ = ["EditPlan", "Edited", "Sample", "sample_once"]

Edited = tuple[NDArray, NDArray[np.int32]]


class Sample(Protocol):
    """Draws the samples of an edit, near the range of the data."""

    def __call__(self, made: edit.Edit, labels: NDArray[np.int32], *, guided: bool = True) -> NDArray:
        """Draw them with these labels; without `guided`, other networks do not guide."""


@dataclass(frozen=True, eq=False)
class EditPlan:
    """A checked edit.

    Args:
        run: from a function that draws the samples of an edit to the edited images, with shape (N, H, W, C), and
            their labels.
        drawn: the plans that will be run, each with its number of images.
        shown: for each row of edited images, what stands in front of it: caption, and uint8 images (K, H, W, C).
        heads: captions of those K columns, and last that of the edited images.
    """

    run: Callable[[Sample], Edited]
    drawn: list[tuple[SamplerPlan, int]]
    shown: list[tuple[str, NDArray[np.uint8]]]
    heads: tuple[str, ...]


def sample_once(made: edit.Edit, labels: NDArray[np.int32], sample: Sample) -> Edited:
    """Draw the samples of one edit."""
    return sample(made, labels), labels
