"""Making the images of later batches in other processes while a run computes.

Which images a batch shows is a function of its position alone, so it does not matter who makes it, nor when: a run
with any number of processes sees the same bits. What is not made ahead is made when it is asked for.

A process opens a store by its name, so its images are in memory once; a data set in memory is copied to each.
"""

from __future__ import annotations

from concurrent.futures import BrokenExecutor, Future
from dataclasses import replace
from types import TracebackType

import numpy as np

from diffusion_core.common.errors import DuetError
from diffusion_core.data.loader import Images, Loader
from diffusion_core.data.shards import Shards
from diffusion_core.runtime.process_pool import spawn_pool

__all__ = ["Prefetch"]

_LOADER: Loader | None = None  # of a worker


def _open(loader: Loader) -> None:
    global _LOADER
    _LOADER = loader


def _batch(images_seen: int, size: int) -> Images:
    return _LOADER.batch(images_seen, size)


class Prefetch:
    """A loader whose batches are made ahead by several processes; as a context manager.

    Args:
        loader: what to show.
        workers: processes, at least 1.

    Raises:
        DuetError: there are no workers.
    """

    def __init__(self, loader: Loader, workers: int) -> None:
        if workers < 1:
            raise DuetError(f"data.workers: {workers} was given; it is 0 for a thread, or a number of processes")
        self.loader, self.workers = loader, workers
        self._made: dict[tuple[int, int], Future[Images]] = {}

    @property
    def dtype(self) -> np.dtype:
        """Of the pixels."""
        return self.loader.dtype

    def __enter__(self) -> Prefetch:
        dataset = self.loader.dataset
        if isinstance(dataset.images, np.memmap):  # which would be sent as what it holds
            dataset = replace(dataset, images=Shards([dataset.images]))
        self._pool = spawn_pool(self.workers, _open, replace(self.loader, dataset=dataset))
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

    def batch(self, images_seen: int, size: int) -> Images:
        """As `Loader.batch`; the batches that follow it are then begun."""
        try:
            if (images_seen, size) not in self._made:
                self._begin(images_seen, size)
            following = [(images_seen + k * size, size) for k in range(1, self.workers + 1)]
            for one in following:
                if one not in self._made:
                    self._begin(*one)
            # What was begun and is not asked for next would be kept for ever.
            for one in self._made.keys() - {(images_seen, size), *following}:
                self._made.pop(one).cancel()
            return self._made.pop((images_seen, size)).result()
        except BrokenExecutor as error:
            raise DuetError(
                "data.workers: a process that makes batches died, perhaps for want of memory; use fewer, or 0"
            ) from error

    def _begin(self, images_seen: int, size: int) -> None:
        self._made[images_seen, size] = self._pool.submit(_batch, images_seen, size)
