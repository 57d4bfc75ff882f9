"""Is a sample a copy of a training picture, and do samples of a class differ as real pictures do.

A distance is Euclidean over all values of a picture on the scale 0..1, that is uint8 / 255.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.errors import DuetError

__all__ = ["nearest", "spread"]

_BLOCK_BYTES = 1 << 25


def nearest(samples: NDArray[np.uint8], train: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The training picture closest to each sample; the first of them where several are.

    Both sets are read in blocks, so `train` may be a memory map of any length. Sums of squares of
    uint8 values are exact in float64, so a copy has distance 0 exactly.

    Args:
        samples: uint8 with shape (N, H, W, C).
        train: uint8 with shape (M, H, W, C).

    Returns:
        Indices into `train` and distances, both with shape (N,).
    """
    _check("samples", samples)
    _check("training pictures", train)
    if samples.shape[1:] != train.shape[1:]:
        raise DuetError(
            f"nearest: samples of {samples.shape[1:]} and training pictures of {train.shape[1:]} were given; "
            f"they must have one shape"
        )
    indices = np.zeros(len(samples), np.int64)
    squares = np.full(len(samples), np.inf)
    # A block of either set, and a block of distances, stays within _BLOCK_BYTES of float64.
    values = _BLOCK_BYTES // 8
    step = max(1, min(values // samples[0].size, math.isqrt(values)))
    for start in range(0, len(train), step):
        b = _rows(train[start : start + step])
        for first in range(0, len(samples), step):
            here = slice(first, first + step)
            a = _rows(samples[here])
            between = np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1) - 2.0 * a @ b.T
            best = between.argmin(axis=1)
            value = between[np.arange(len(a)), best]
            closer = value < squares[here]
            indices[here] = np.where(closer, start + best, indices[here])
            squares[here] = np.where(closer, value, squares[here])
    return indices, np.sqrt(squares) / 255.0


def spread(images: NDArray[np.uint8], labels: ArrayLike, num_classes: int) -> NDArray[np.float64]:
    """The root mean square distance between two different pictures of a class.

    Over all pairs the mean square distance is twice the summed unbiased variance, so no pair is
    formed. Against the spread of real pictures, a smaller value shows samples that are too alike.

    Args:
        images: uint8 with shape (N, H, W, C).
        labels: class ids with shape (N,).
        num_classes: K.

    Returns:
        With shape (K,); NaN for a class with fewer than two pictures.
    """
    _check("images", images)
    labels = np.asarray(labels)
    if labels.shape != (len(images),):
        raise DuetError(f"spread: labels with shape {labels.shape} were given; the shape must be ({len(images)},)")
    result = np.full(num_classes, np.nan)
    for k in range(num_classes):
        members = images[labels == k]
        if len(members) > 1:
            result[k] = np.sqrt(2.0 * np.var(members, axis=0, ddof=1, dtype=np.float64).sum()) / 255.0
    return result


def _rows(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    return images.reshape(len(images), -1).astype(np.float64)


def _check(what: str, images: NDArray[np.uint8]) -> None:
    shape = np.shape(images)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or len(shape) != 4 or 0 in shape:
        kind = getattr(images, "dtype", type(images).__name__)
        raise DuetError(f"{what}: {kind} with shape {shape} was given; it must be uint8 with shape (N, H, W, C)")
