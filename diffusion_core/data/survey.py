"""Statistics of a data set: counts, brightness, mean images, and images that are nearly alike.

One pass reads the images in blocks, so memory grows with their number only by a thumbnail of 8 x 8 pixels each. Mean
and standard deviation come from the histograms of the 256 values, so they are exact.

Two images are near if the root mean square difference of their thumbnails, in values of 0..255, is small. This finds
copies that were compressed again, slightly brightened or resized, but not mirrored or cropped copies. All pairs are
compared. Sums of squares of thumbnails stay below 2^24, so they are exact in float32.
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
_CHANNELS = 8
_BLOCK_BYTES = 1 << 24
_BLOCK_ROWS = 2048


@dataclass(frozen=True, eq=False)
class Survey:
    """Statistics of a data set of N images with shape (H, W, C) in K classes.

    Data that are no pictures have no mean images and no thumbnails. Their values are counted in 256 bins of one width
    over `ends`, and their mean and standard deviation are those of the values. More than 8 channels are counted as one.

    Args:
        counts: the number of images of each class, with shape (K,).
        histograms: the count of each value in each channel, with shape (C, 256).
        mean: the mean of each channel, in 0..255, with shape (C,).
        std: the standard deviation of each channel, in 0..255, with shape (C,).
        class_means: the mean image of each of the first K' classes, float64 with shape (K', H, W, C); NaN if empty.
        thumbnails: uint8 with shape (N, 64 C).
        ends: the least and the largest value; 0 and 255 of pictures.
    """

    counts: NDArray[np.int64]
    histograms: NDArray[np.int64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    class_means: NDArray[np.float64]
    thumbnails: NDArray[np.uint8]
    ends: tuple[float, float] = (0.0, 255.0)

    def __repr__(self) -> str:
        return f"Survey({self.counts.sum():,} images in {len(self.counts)} classes)"


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of near images, the nearest first.

    Args:
        count: the number of near pairs.
        indices: the indices of the nearest of them, with shape (P, 2).
        distances: their distances, root mean square in 0..255, with shape (P,).
    """

    count: int
    indices: NDArray[np.int64]
    distances: NDArray[np.float64]

    def __repr__(self) -> str:
        return f"Pairs({self.count:,} pairs, {len(self.indices)} listed)"


def survey(dataset: Dataset, max_classes: int = 64, progress: Callable[[int], None] = lambda done: None) -> Survey:
    """Compute the statistics of a data set.

    Args:
        dataset: the data set.
        max_classes: for how many classes to compute a mean image.
        progress: called with the number of images that are done.
    """
    if not dataset.is_pictures:
        return _survey_values(dataset, progress)
    shape, channels, classes = dataset.shape, dataset.channels, min(max_classes, dataset.num_classes)
    histograms = np.zeros((channels, 256), np.int64)
    sums = np.zeros((classes, *shape), np.int64)
    thumbnails = np.empty((len(dataset), THUMBNAIL * THUMBNAIL * channels), np.uint8)
    for here in _blocks(len(dataset), dataset.images[0].nbytes):
        images, labels = dataset.pictures(here), dataset.labels[here]
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


def _survey_values(dataset: Dataset, progress: Callable[[int], None]) -> Survey:
    """Return the statistics of data that are no pictures."""
    channels = dataset.channels if dataset.channels <= _CHANNELS else 1
    here = list(_blocks(len(dataset), dataset.images[0].nbytes))
    ends = [(float(block.min()), float(block.max())) for block in (np.asarray(dataset.images[h]) for h in here)]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    histograms = np.zeros((channels, 256), np.int64)
    total, sums, squares = 0, np.zeros(channels), np.zeros(channels)
    for block in here:
        values = np.asarray(dataset.images[block], np.float64).reshape(-1, channels) - low
        for c in range(channels):
            histograms[c] += np.histogram(values[:, c], 256, (0.0, max(high - low, 1e-300)))[0]
        total, sums, squares = total + len(values), sums + values.sum(axis=0), squares + (values**2).sum(axis=0)
        progress(block.stop)
    mean = sums / total
    counts = np.bincount(dataset.labels, minlength=dataset.num_classes)
    std = np.sqrt(np.maximum(squares / total - mean**2, 0.0))
    nothing = np.empty((0, *dataset.shape)), np.empty((len(dataset), 0), np.uint8)
    return Survey(counts, histograms, low + mean, std, *nothing, (low, high))


def find_near_pairs(
    first: NDArray[np.uint8], second: NDArray[np.uint8] | None, max_distance: float, max_pairs: int = 100,
    progress: Callable[[int], None] = lambda done: None,
) -> Pairs:  # fmt: skip
    """Find the pairs of thumbnails within a distance.

    Args:
        first: thumbnails with shape (N, D).
        second: other thumbnails, with shape (M, D); None compares the first with each other, each pair once.
        max_distance: the largest distance, in 0..255.
        max_pairs: for how many pairs, the nearest ones, to return indices.
        progress: called with the number of thumbnails of the first that are done.

    Raises:
        DuetError: the thumbnails differ in shape, or a number is negative.
    """
    others = first if second is None else second
    if first.shape[1:] != others.shape[1:] or max_distance < 0 or max_pairs < 0:
        raise DuetError(
            f"near pairs: thumbnails {first.shape} and {others.shape}, max_distance {max_distance} and max_pairs "
            f"{max_pairs} were given; the thumbnails must have one shape, and the numbers must be at least 0"
        )
    width = first.shape[1]
    limit = max_distance * max_distance * width
    count, kept, distances = 0, np.zeros((0, 2), np.int64), np.zeros(0)
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
            distances = np.concatenate([distances, squares[rows, columns].astype(np.float64)])
            if len(kept) > max_pairs:
                # Sort by distance, then by index, so that the result does not depend on the blocks.
                order = np.lexsort((kept[:, 1], kept[:, 0], distances))[:max_pairs]
                kept, distances = kept[order], distances[order]
        progress(min(start + _BLOCK_ROWS, len(first)))
    order = np.lexsort((kept[:, 1], kept[:, 0], distances))
    return Pairs(count, kept[order], np.sqrt(distances[order] / width))


def _blocks(count: int, image_bytes: int) -> Iterator[slice]:
    step = max(1, _BLOCK_BYTES // image_bytes)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
