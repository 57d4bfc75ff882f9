"""The handwritten digits that scikit-learn bundles: 1,797 grey images of 8 x 8 pixels.

They need no download. Their 17 values v = 0..16 become ``round(v * 255 / 16)``. A larger size repeats each pixel as a
square block, so a box average restores the small image exactly, and metrics on the digits do not depend on the size.

A fixed fifth, drawn from stream ``"data/digits/held-out"`` with seed 0, is held out: the metrics report their accuracy
on it.

References:
    Optical recognition of handwritten digits (Alpaydin and Kaynak, 1998),
    https://archive.ics.uci.edu/dataset/80
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.common.random import Stream
from diffusion_core.data.dataset import Dataset

__all__ = ["NATIVE_SIZE", "digits"]

NATIVE_SIZE = 8
_HELD_OUT = 360


def digits(size: int = NATIVE_SIZE, part: str = "all") -> Dataset:
    """Load the digits, with class names "0" to "9".

    Args:
        size: height and width in pixels, a multiple of 8.
        part: ``"train"`` for 1,437 digits, ``"held_out"`` for 360, ``"all"`` for both.

    Raises:
        DuetError: the size is not a multiple of 8, or the part is unknown.
    """
    if size < NATIVE_SIZE or size % NATIVE_SIZE:
        raise DuetError(f"digits: size {size} was given; it must be a multiple of {NATIVE_SIZE}")
    values, labels = _bundled()
    images = np.round(values * (255.0 / 16.0)).astype(np.uint8)[..., None]
    scale = size // NATIVE_SIZE
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    every = Dataset(images, labels.copy(), tuple("0123456789"), "digits")
    order = Stream(0, "data/digits/held-out").permutation(len(every))
    match part:
        case "all":
            return every
        case "train":
            return every.select(np.sort(order[_HELD_OUT:]))
        case "held_out":
            return every.select(np.sort(order[:_HELD_OUT]))
        case _:
            raise one_of("data.options.part", part, ("all", "train", "held_out"))


@cache
def _bundled() -> tuple[NDArray, NDArray]:
    """Return the values and labels as scikit-learn reads them, a text file of a tenth of a second."""
    from sklearn.datasets import load_digits  # slow to import, and needed only here

    bunch = load_digits()
    return bunch.images, bunch.target
