"""The order of the data, without state: position p of a run always shows the same image.

With n items and p = images seen so far::

    epoch e = p // n
    item    = permutation_e[p mod n]        from Stream(seed, "data/order") at row e
    flip    = word(p) even                  from Stream(seed, "data/flip") at counter p
    draw    = mean + std normal(p)          from Stream(seed, "data/posterior") at counter p, of items with a std

A batch is a slice of this infinite sequence, and the part of one process is a slice of the batch. So the batch size,
the number of processes and restarts do not change what a run sees. Batches cross the border of an epoch; no image is
dropped. The augmentation of EDM, if it is on, is a function of p as well; see `augment`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import DTypeLike, NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.data.augment import augment
from diffusion_core.data.dataset import Dataset
from diffusion_core.data.pixels import VALUE_RANGE, check_value_range, from_stored
from diffusion_core.runtime.distributed import ProcessGroup

__all__ = ["ImageBatch", "Loader"]


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """A slice of the data order.

    Args:
        pixels: network values in the loader's range, with shape (B, H, W, C), or (B, ...) for other data.
        labels: class ids, int32 with shape (B,).
        indices: the index of each item in the data set, int64 with shape (B,).
        epochs: the epoch of each item, int64 with shape (B,).
        counters: the position of each item in the run, int64 with shape (B,); random streams take them.
        features: the conditions of each item, then its augmentation label of nine numbers, with shape (B, F); None
            without either.
        noise: the noise of each item, of pairs; None if training draws it.
    """

    pixels: NDArray
    labels: NDArray[np.int32]
    indices: NDArray[np.int64]
    epochs: NDArray[np.int64]
    counters: NDArray[np.int64]
    features: NDArray | None = None
    noise: NDArray | None = None

    def __repr__(self) -> str:
        first, last = self.counters[0], self.counters[-1]
        return f"ImageBatch({self.pixels.shape} {self.pixels.dtype}, positions {first}..{last})"


@dataclass(frozen=True, eq=False)
class Loader:
    """Read a data set in an order that is a function of the seed alone.

    Args:
        dataset: the data set.
        seed: the seed of the run.
        flip: mirror half of the images left to right, drawn anew at each position.
        dtype: the type of the pixels.
        value_range: the network values of black and of white.
        augment: the probability of each change of the augmentation of EDM; 0 turns it off.
        group: the process group; with several processes, `batch` returns the part of this one.

    Raises:
        DuetError: the value range is not (low, high) with low < high, or the probability is not in [0, 1].

    Example:
        >>> from diffusion_core.data import load_dataset
        >>> loader = Loader(load_dataset("digits", part="train"), seed=0)
        >>> loader
        Loader(Dataset('digits': 1,437 images, 8 x 8 x 1, 10 classes), seed=0)
        >>> loader.batch(0, 64).pixels.shape
        (64, 8, 8, 1)
    """

    dataset: Dataset
    seed: int
    flip: bool = False
    dtype: DTypeLike = np.float32
    value_range: Sequence[float] = VALUE_RANGE
    augment: float = 0.0
    group: ProcessGroup = field(default_factory=ProcessGroup)

    def __post_init__(self) -> None:
        object.__setattr__(self, "value_range", check_value_range(self.value_range))
        if not 0 <= self.augment <= 1:
            raise DuetError(f"data.augment: {self.augment} was given; it must be a probability, from 0 to 1")
        shape = self.dataset.shape
        changed = "flip: true" if self.flip else f"augment: {self.augment}" if self.augment else None
        if self.dataset.noise is not None and changed:
            raise DuetError(
                f"data.{changed} was given, but data {self.dataset.name} are pairs of noise and image: a changed image "
                f"is not what the teacher made of its noise; use {'false' if self.flip else 0}"
            )
        if self.flip and len(shape) < 3:
            raise DuetError(
                f"data.flip: true was given, but data {self.dataset.name} of shape {shape} has no left and right; it "
                f"needs (height, width, channels)"
            )
        if self.augment and len(shape) != 3:
            raise DuetError(
                f"data.augment: {self.augment} was given, but data {self.dataset.name} has shape {shape}; it needs "
                f"(height, width, channels)"
            )

    def __repr__(self) -> str:
        return f"Loader({self.dataset!r}, seed={self.seed})"

    def batch(self, images_seen: int, size: int) -> ImageBatch:
        """Return the `size` images that follow the first `images_seen` of the run, or this process's part of them.

        Raises:
            DuetError: `images_seen` is negative or `size` is not positive.
        """
        if self.group.size > 1:
            return replace(self, group=ProcessGroup()).local_batch(images_seen, size, self.group.rank, self.group.size)
        if images_seen < 0 or size < 1:
            raise DuetError(
                f"batch: {size} images from position {images_seen} were requested; "
                f"the size must be at least 1 and the position at least 0"
            )
        counters = np.arange(images_seen, images_seen + size, dtype=np.int64)
        epochs, offsets = np.divmod(counters, len(self.dataset))
        indices = np.empty(len(counters), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = _permutation(self.seed, len(self.dataset), int(epoch))[offsets[here]]
        images = np.asarray(self.dataset.images[indices])
        std = None if self.dataset.std is None else np.asarray(self.dataset.std[indices])
        if self.flip:
            mirrored = Stream(self.seed, "data/flip").bits(counters, 1)[:, 0] % 2 == 0
            mirrored = mirrored.reshape(-1, *[1] * (images.ndim - 1))
            images = np.where(mirrored, images[..., ::-1, :], images)
            std = None if std is None else np.where(mirrored, std[..., ::-1, :], std)
        if std is not None:
            images = images + std * Stream(self.seed, "data/posterior").normal(counters, images.shape[1:])
        labels, stored_range = self.dataset.labels[indices], self.dataset.value_range
        described = [] if self.dataset.conditions is None else [self.dataset.conditions[indices]]
        if self.augment:
            exact = from_stored(images, np.float64, self.value_range, stored_range)
            exact, changes = augment(exact, counters, self.seed, self.augment)
            pixels = exact.astype(self.dtype)
            described.append(changes)
        else:
            pixels = from_stored(images, self.dtype, self.value_range, stored_range)
        features = np.concatenate(described, axis=1).astype(self.dtype) if described else None
        noise = None if self.dataset.noise is None else np.asarray(self.dataset.noise[indices]).astype(self.dtype)
        return ImageBatch(pixels, labels, indices, epochs, counters, features, noise)

    def local_batch(self, images_seen: int, size: int, rank: int, group: int) -> ImageBatch:
        """Return the part of process `rank` of `group`; the parts in order of rank are the batch.

        Raises:
            DuetError: as `batch`; or there is no such process, or its part would be empty.
        """
        if not 0 <= rank < group or not 0 < group <= size:
            raise DuetError(
                f"local batch: process {rank} of {group} was given for {size} images; there are processes "
                f"0..{group - 1}, each with at least one image"
            )
        mine = ProcessGroup(rank, group).slice_of(size)
        return self.batch(images_seen + mine.start, mine.stop - mine.start)


@lru_cache(maxsize=4)
def _permutation(seed: int, n: int, epoch: int) -> NDArray[np.int64]:
    order = Stream(seed, "data/order").permutation(n, row=epoch)
    order.setflags(write=False)  # the cache shares it between the batches of the epoch
    return order
