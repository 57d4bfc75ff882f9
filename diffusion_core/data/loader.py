"""The order of the data, without state: position p of a run always shows the same image.

With n items and p = images seen so far::

    epoch e = p // n
    item    = permutation_e[p mod n]        from Stream(seed, "data/order") at row e
    flip    = word(p) even                  from Stream(seed, "data/flip") at counter p

A batch is a slice of this one infinite sequence, and a share of it, for one of several processes, is a slice of
that. So neither the batch size, nor the number of processes, nor a restart changes what is seen; batches run over the
border of an epoch and nothing is dropped. The augmentation of EDM, where it is wanted, is a function of p as well; see
`augment`.
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
from diffusion_core.data.pixels import VALUE_RANGE, check_value_range, from_uint8
from diffusion_core.runtime.distributed import ProcessGroup

__all__ = ["Images", "Loader"]


@dataclass(frozen=True, eq=False)
class Images:
    """A slice of the data order.

    Args:
        pixels: network values in the loader's range, with shape (B, H, W, C).
        labels: class ids, int32 with shape (B,).
        indices: the items shown, int64 with shape (B,).
        epochs: the epoch of each, int64 with shape (B,).
        counters: the position of each in the run, int64 with shape (B,); random streams take them.
        features: what was done to each by augmentation, with shape (B, 9); None without.
    """

    pixels: NDArray
    labels: NDArray[np.int32]
    indices: NDArray[np.int64]
    epochs: NDArray[np.int64]
    counters: NDArray[np.int64]
    features: NDArray | None = None


@dataclass(frozen=True, eq=False)
class Loader:
    """Shows a data set in an order that is a function of the seed alone.

    Args:
        dataset: what to show.
        seed: the seed of the run.
        flip: mirror half of the images left to right, drawn anew at each position.
        dtype: the type of the pixels.
        value_range: what the network sees for black and for white.
        augment: the probability of each change of the augmentation of EDM; 0 makes none.
        group: of several processes, the one whose share of each batch is shown.

    Raises:
        DuetError: the value range is not two numbers, the first below the second, or the probability is none.
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
            raise DuetError(f"data.augment: {self.augment} was given; it is a probability, 0 to 1")

    def batch(self, images_seen: int, size: int) -> Images:
        """The `size` images that follow the first `images_seen` of the run, or this process's share of them.

        Raises:
            DuetError: `images_seen` is negative or `size` is not positive.
        """
        if self.group.size > 1:
            return replace(self, group=ProcessGroup()).share(images_seen, size, self.group.rank, self.group.size)
        if images_seen < 0 or size < 1:
            raise DuetError(
                f"batch: {size} images from position {images_seen} were asked for; "
                f"the size must be at least 1 and the position at least 0"
            )
        counters = np.arange(images_seen, images_seen + size, dtype=np.int64)
        epochs, places = np.divmod(counters, len(self.dataset))
        indices = np.empty(len(counters), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = _permutation(self.seed, len(self.dataset), int(epoch))[places[here]]
        images = np.asarray(self.dataset.images[indices])
        if self.flip:
            mirrored = Stream(self.seed, "data/flip").bits(counters, 1)[:, 0] % 2 == 0
            images = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
        labels = self.dataset.labels[indices]
        if not self.augment:
            return Images(from_uint8(images, self.dtype, self.value_range), labels, indices, epochs, counters)
        exact = from_uint8(images, np.float64, self.value_range)
        pixels, features = augment(exact, counters, self.seed, self.augment)
        pixels, features = (array.astype(self.dtype) for array in (pixels, features))
        return Images(pixels, labels, indices, epochs, counters, features)

    def share(self, images_seen: int, size: int, rank: int, group: int) -> Images:
        """What process `rank` of `group` takes of a batch; all shares, one after another, are the batch.

        Raises:
            DuetError: as `batch`, or there is no such process, or it would have nothing.
        """
        if not 0 <= rank < group or not 0 < group <= size:
            raise DuetError(
                f"share: process {rank} of {group} was given for {size} images; the processes are 0..{group - 1}, "
                f"each with at least one image"
            )
        mine = ProcessGroup(rank, group).slice_of(size)
        return self.batch(images_seen + mine.start, mine.stop - mine.start)


@lru_cache(maxsize=4)
def _permutation(seed: int, n: int, epoch: int) -> NDArray[np.int64]:
    order = Stream(seed, "data/order").permutation(n, row=epoch)
    order.setflags(write=False)  # it is shared by every later batch of the epoch
    return order
