"""The accuracy of a classifier of noisy pictures, level by level.

Picture k has the same noise at every level, Stream(seed, "accuracy/noise") at index k: what falls from one level to the
next is due to the level.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.backend import Forward
from diffusion_core.process import Process, add_noise
from diffusion_core.random import Stream

__all__ = ["recognised"]


def recognised(
    forward: Forward,
    process: Process,
    pictures: NDArray,
    labels: NDArray,
    levels: ArrayLike,
    seed: int,
    batch: int = 256,
    progress: Callable[[int], None] | None = None,
) -> NDArray[np.bool_]:
    """Whether each picture's class has the largest logit at each level, with shape (levels, N).

    Args:
        forward: the classifier's logits of (x, c_noise, label); see `backend.Network.forward`.
        process: what it was trained for.
        pictures: x_0 in the range of the data, with shape (N, H, W, C).
        labels: their classes, with shape (N,).
        levels: t of each.
        seed: of the noise.
        batch: pictures at once.
        progress: called with the number of evaluations done after each batch.
    """
    eps = Stream(seed, "accuracy/noise").normal(np.arange(len(pictures)), pictures.shape[1:])
    right = np.zeros((len(np.asarray(levels)), len(pictures)), bool)
    for level, t in enumerate(np.asarray(levels)):
        (alpha, sigma), columns = process.schedule(t), process.columns(t)
        for at in range(0, len(pictures), batch):
            some = slice(at, at + batch)
            x = add_noise(pictures[some], eps[some], alpha, sigma).astype(pictures.dtype)
            c_noise = np.full(len(x), columns.c_noise, np.float64)
            logits = forward((columns.c_in * x).astype(x.dtype), c_noise, np.zeros(len(x), np.int32))
            right[level, some] = logits.argmax(axis=1) == labels[some]
            if progress is not None:
                progress(level * len(pictures) + at + len(x))
    return right
