"""Resize images for a feature network: bilinear, with antialiasing.

Pixel j of N has its centre at ``j + 1/2``. Pixel i of the M new ones has its centre at ``(i + 1/2) N / M`` in the old
image, and is a weighted mean of the old pixels::

    w[i, j] ~ max(0, 1 - |j + 1/2 - (i + 1/2) N / M| / s)      s = max(1, N / M)

with weights that sum to 1 in each row, along the height and along the width. Where an image shrinks, the triangle is
as wide as two new pixels, so that every old pixel counts; where it grows, s = 1 and this is plain bilinear
interpolation, clamped at the border. This is what ``torch.nn.functional.interpolate(mode="bilinear", antialias=True,
align_corners=False)`` computes, and Pillow's ``Image.resize`` with ``BILINEAR``, which rounds after each of its two
passes; here both passes are computed in float64 and the result is rounded once.

It is *not* the resize inside the TensorFlow graph of 2015 with which published FIDs were measured: that one places the
corner of the first pixel, not its centre, at 0, and has no antialiasing. The choice changes a Fréchet distance, so
every number records it.

References:
    On aliased resizing and surprising subtleties in GAN evaluation (Parmar, Zhang and Zhu, 2022),
    https://arxiv.org/abs/2104.11222
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError

__all__ = ["resize", "resize_matrix"]


def resize(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize images to a square, computed in float64 and rounded once.

    Args:
        images: uint8 with shape (N, H, W, C).
        size: the new height and width, in pixels.

    Returns:
        uint8 with shape (N, size, size, C).

    Raises:
        DuetError: the images are not uint8 with shape (N, H, W, C), or the size is not positive.
    """
    shape = np.shape(images)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or len(shape) != 4 or 0 in shape:
        kind = getattr(images, "dtype", type(images).__name__)
        raise DuetError(f"resize: {kind} with shape {shape} was given; it must be uint8 with shape (N, H, W, C)")
    rows, columns = resize_matrix(shape[1], size), resize_matrix(shape[2], size)
    narrowed = np.einsum("pw, nhwc -> nhpc", columns, images, optimize=True)
    return np.rint(np.einsum("qh, nhpc -> nqpc", rows, narrowed, optimize=True)).astype(np.uint8)


def resize_matrix(old: int, new: int) -> NDArray[np.float64]:
    """Return the weights w along one side, with shape (new, old).

    Raises:
        DuetError: a size is not positive.
    """
    if min(old, new) < 1:
        raise DuetError(f"resize: from {old} to {new} pixels was given; both must be at least 1")
    centres = (np.arange(new) + 0.5) * (old / new)
    distance = np.abs(np.arange(old) + 0.5 - centres[:, None])
    weights = np.maximum(0.0, 1.0 - distance / max(1.0, old / new))
    return weights / weights.sum(axis=1, keepdims=True)
