"""The handwritten digits that scikit-learn carries: 1,797 grey images of 8 x 8 pixels.

They need no download. Their 17 levels 0..16 become ``round(v * 255 / 16)``. A larger size repeats
each pixel as a square block, so a box average gives back the small image exactly, and what is
measured on the digits does not depend on the size at which they were made.

A fixed fifth, drawn from stream ``"data/digits/held-out"`` with seed 0, is kept apart: the metrics
state their accuracy on it.

References:
    Optical recognition of handwritten digits (Alpaydin and Kaynak, 1998),
    https://archive.ics.uci.edu/dataset/80
"""

from __future__ import annotations

import numpy as np

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.common.random import Stream
from diffusion_core.data.dataset import Dataset

__all__ = ["NATIVE_SIZE", "digits"]

NATIVE_SIZE = 8
_HELD_OUT = 360


def digits(size: int = NATIVE_SIZE, part: str = "all") -> Dataset:
    """The digits, with class names "0" to "9".

    Args:
        size: height and width in pixels, a multiple of 8.
        part: ``"all"`` 1,797 of them, the 1,437 for ``"train"``, or the 360 that are ``"held_out"``.

    Raises:
        DuetError: the size or the part does not fit.
    """
    if size < NATIVE_SIZE or size % NATIVE_SIZE:
        raise DuetError(f"digits: size {size} was given; it must be a multiple of {NATIVE_SIZE}")
    from sklearn.datasets import load_digits  # slow to import, and only this function needs it

    bunch = load_digits()
    images = np.round(bunch.images * (255.0 / 16.0)).astype(np.uint8)[..., None]
    scale = size // NATIVE_SIZE
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    whole = Dataset(images, bunch.target, tuple("0123456789"), "digits")
    order = Stream(0, "data/digits/held-out").permutation(len(whole))
    match part:
        case "all":
            return whole
        case "train":
            return whole.select(np.sort(order[_HELD_OUT:]))
        case "held_out":
            return whole.select(np.sort(order[:_HELD_OUT]))
        case _:
            raise one_of("part of the digits", part, ("all", "train", "held_out"))
