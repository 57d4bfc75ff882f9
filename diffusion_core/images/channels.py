"""Show data that are no pictures: arrays b h w c with any number of channels, as grey images of the first one."""

from __future__ import annotations

from numpy.typing import NDArray

__all__ = ["as_pictures"]


def as_pictures(images: NDArray) -> NDArray:
    """Return images b h w c with one or three channels as they are, and others as images of their first channel.

    A vector (b, 1, 1, c) becomes a row of c grey pixels.

    Example:
        >>> import numpy as np
        >>> as_pictures(np.zeros((2, 8, 8, 4))).shape, as_pictures(np.zeros((2, 1, 1, 7))).shape
        ((2, 8, 8, 1), (2, 1, 7, 1))
    """
    if images.shape[3] in (1, 3):
        return images
    return images[..., :1] if images.shape[1:3] != (1, 1) else images.transpose(0, 1, 3, 2)
