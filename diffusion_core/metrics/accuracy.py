"""The accuracy of a classifier of noisy images at each noise level.

Image k has the same noise at every level, Stream(seed, "accuracy/noise") at index k, so the accuracy differs between
levels only because of the level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from diffusion_core.backend.interface import Forward
from diffusion_core.common.random import Stream
from diffusion_core.data.pixels import VALUE_RANGE, from_stored
from diffusion_core.diffusion.process import Process, add_noise

__all__ = ["correct_predictions"]


def correct_predictions(
    forward: Forward,
    process: Process,
    images: NDArray[np.uint8],
    labels: NDArray,
    levels: ArrayLike,
    seed: int,
    batch: int = 256,
    progress: Callable[[int], None] | None = None,
    *,
    dtype: DTypeLike = np.float32,
    value_range: Sequence[float] = VALUE_RANGE,
    subset: slice | None = None,
    stored_range: Sequence[float] | None = None,
) -> NDArray[np.bool_]:
    """Return whether the class of each image has the largest logit at each noise level, with shape (levels, N).

    Images are read one batch at a time, so they may be memory maps of any length.

    Args:
        forward: the classifier's logits of (x, c_noise, label); see `backend.Network.forward`.
        process: the process that the classifier was trained for.
        images: uint8 or floats with shape (N, H, W, C).
        labels: their classes, with shape (N,).
        levels: the t of each noise level.
        seed: the seed of the noise.
        batch: images per batch.
        progress: called with the number of evaluations done after each batch.
        dtype: the type of the network's input.
        value_range: the values of the pixels 0 and 255.
        subset: the slice of images to evaluate, for one of several processes; None means all. The result covers this
            slice.
        stored_range: the range of floats, see `pixels.from_stored`.
    """
    levels, stream = np.asarray(levels), Stream(seed, "accuracy/noise")
    first, last, _ = (subset or slice(None)).indices(len(images))
    correct = np.zeros((len(levels), last - first), bool)
    for at in range(first, last, batch):
        batch_slice = slice(at, min(at + batch, last))
        clean = from_stored(images[batch_slice], dtype, value_range, stored_range)
        eps = stream.normal(np.arange(at, at + len(clean)), clean.shape[1:])
        for level, t in enumerate(levels):
            (alpha, sigma), columns = process.schedule(t), process.columns(t)
            x = add_noise(clean, eps, alpha, sigma).astype(clean.dtype)
            c_noise = np.full(len(x), columns.c_noise, np.float64)
            logits = forward((columns.c_in * x).astype(x.dtype), c_noise, np.zeros(len(x), np.int32))
            correct[level, at - first : at - first + len(x)] = logits.argmax(axis=1) == labels[batch_slice]
            if progress is not None:
                progress(len(levels) * (at - first) + (level + 1) * len(x))
    return correct
