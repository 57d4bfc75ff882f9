"""Looking at a data set: how many, how bright, what on average, and which images are nearly alike.

All is found in one pass over the images, in blocks, so that memory does not grow with their number but for a
thumbnail of 8 x 8 pixels of each. Mean and deviation come from the histograms of the 256 levels, so they are exact.

Two images are near when the root mean square difference of their thumbnails, in levels of 0..255, is small: that
finds copies that were compressed again, made lighter by a little, or resized, but not mirrored or cut ones. All pairs
are compared. Sums of squares of thumbnails stay below 2^24, so they are exact in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.data.dataset import Dataset
from diffusion_core.images.resize import resize

__all__ = ["THUMBNAIL", "Pairs", "Survey", "find_near_pairs", "survey"]

THUMBNAIL = 8
_BLOCK_BYTES = 1 << 24
_BLOCK_ROWS = 2048


@dataclass(frozen=True, eq=False)
class Survey:
    """What was found in a data set of N images with shape (S, S, C) in K classes.

    Args:
        counts: images of each class, with shape (K,).
        histograms: how often each level occurs in each channel, with shape (C, 256).
        mean: of each channel, in levels, with shape (C,).
        std: the deviation of all values of a channel, in levels, with shape (C,).
        class_means: the mean image of each of the first classes, float64 with shape (K', S, S, C); NaN for none.
        thumbnails: uint8 with shape (N, 64 C).
    """

    counts: NDArray[np.int64]
    histograms: NDArray[np.int64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    class_means: NDArray[np.float64]
    thumbnails: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of images that are near, the nearest first.

    Args:
        count: how many there are.
        places: of the nearest of them, with shape (P, 2).
        distances: of those, root mean square in levels, with shape (P,).
    """

    count: int
    places: NDArray[np.int64]
    distances: NDArray[np.float64]


def survey(dataset: Dataset, shown: int = 64, progress: Callable[[int], None] = lambda done: None) -> Survey:
    """Look at every image once.

    Args:
        dataset: what to look at.
        shown: of how many classes mean images are made.
        progress: called with the number of images that are done.
    """
    size, channels, classes = dataset.image_size, dataset.channels, min(shown, dataset.num_classes)
    histograms = np.zeros((channels, 256), np.int64)
    sums = np.zeros((classes, size, size, channels), np.int64)
    thumbnails = np.empty((len(dataset), THUMBNAIL * THUMBNAIL * channels), np.uint8)
    for here in _blocks(len(dataset), size * size * channels):
        images, labels = np.asarray(dataset.images[here]), dataset.labels[here]
        for c in range(channels):
            histograms[c] += np.bincount(images[..., c].reshape(-1), minlength=256)
        for k in np.unique(labels[labels < classes]):
            sums[k] += images[labels == k].sum(axis=0, dtype=np.int64)
        thumbnails[here] = resize(images, THUMBNAIL).reshape(len(images), -1)
        progress(here.stop)
    counts = np.bincount(dataset.labels, minlength=dataset.num_classes)
    levels, total = np.arange(256.0), histograms.sum(axis=1)
    mean = histograms @ levels / total
    std = np.sqrt(np.maximum(histograms @ levels**2 / total - mean**2, 0.0))
    with np.errstate(invalid="ignore"):
        class_means = sums / np.where(counts[:classes], counts[:classes], np.nan)[:, None, None, None]
    return Survey(counts, histograms, mean, std, class_means, thumbnails)


def find_near_pairs(
    first: NDArray[np.uint8], second: NDArray[np.uint8] | None, within: float, most: int = 100,
    progress: Callable[[int], None] = lambda done: None,
) -> Pairs:  # fmt: skip
    """The pairs of thumbnails that are at most so far apart.

    Args:
        first: thumbnails with shape (N, D).
        second: others, with shape (M, D); None compares the first with each other, each pair once.
        within: the largest distance, in levels.
        most: of how many, the nearest, the places are given.
        progress: called with the number of the first that are done.

    Raises:
        DuetError: the thumbnails are of different kinds, or a number is negative.
    """
    others = first if second is None else second
    if first.shape[1:] != others.shape[1:] or within < 0 or most < 0:
        raise DuetError(
            f"near pairs: thumbnails {first.shape} and {others.shape}, a distance of {within} and at most {most} pairs "
            f"were given; the thumbnails must be of one kind, and the numbers at least 0"
        )
    width = first.shape[1]
    limit = within * within * width
    count, kept, found = 0, np.zeros((0, 2), np.int64), np.zeros(0)
    for start in range(0, len(first), _BLOCK_ROWS):
        a = first[start : start + _BLOCK_ROWS].astype(np.float32)
        for begin in range(start if second is None else 0, len(others), _BLOCK_ROWS):
            b = others[begin : begin + _BLOCK_ROWS].astype(np.float32)
            squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2 * (a @ b.T)
            near = squares <= limit
            if second is None and begin == start:
                near &= np.triu(np.ones(near.shape, bool), 1)
            rows, columns = np.nonzero(near)
            if not len(rows):
                continue
            count += len(rows)
            kept = np.concatenate([kept, np.stack([rows + start, columns + begin], axis=1)])
            found = np.concatenate([found, squares[rows, columns].astype(np.float64)])
            if len(kept) > most:
                # By distance, then by place, so that the choice does not depend on the blocks.
                order = np.lexsort((kept[:, 1], kept[:, 0], found))[:most]
                kept, found = kept[order], found[order]
        progress(min(start + _BLOCK_ROWS, len(first)))
    order = np.lexsort((kept[:, 1], kept[:, 0], found))
    return Pairs(count, kept[order], np.sqrt(found[order] / width))


def _blocks(count: int, image_bytes: int) -> Iterator[slice]:
    step = max(1, _BLOCK_BYTES // image_bytes)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
