"""Make the batches to come in other processes while the run computes.

A batch is a function of its position alone, so it does not matter which process makes it, nor when: a run with any
number of worker processes sees the same bits. A batch that was not prefetched is made on request.

A worker opens a store by its file name, so the images of a store are in memory once; a data set in memory is copied to
each worker.
"""

from __future__ import annotations

from concurrent.futures import BrokenExecutor, Future
from dataclasses import replace
from types import TracebackType

import numpy as np

from diffusion_core.common.errors import DuetError
from diffusion_core.data.loader import ImageBatch, Loader
from diffusion_core.data.shards import Shards
from diffusion_core.runtime.process_pool import spawn_pool

__all__ = ["Prefetch"]

_LOADER: Loader | None = None  # of a worker process


def _open(loader: Loader) -> None:
    global _LOADER
    _LOADER = loader


def _batch(images_seen: int, size: int) -> ImageBatch:
    return _LOADER.batch(images_seen, size)


class Prefetch:
    """A loader whose batches are made ahead by several processes; a context manager.

    Args:
        loader: the loader to read.
        workers: the number of processes, at least 1.

    Raises:
        DuetError: the number of workers is below 1.
    """

    def __init__(self, loader: Loader, workers: int) -> None:
        if workers < 1:
            raise DuetError(f"data.workers: {workers} was given; it must be 0 (one thread) or a number of processes")
        self.loader, self.workers = loader, workers
        self._pending: dict[tuple[int, int], Future[ImageBatch]] = {}

    @property
    def dtype(self) -> np.dtype:
        """The type of the pixels."""
        return self.loader.dtype

    def __enter__(self) -> Prefetch:
        dataset = self.loader.dataset
        for name in ("images", "noise"):
            if isinstance(array := getattr(dataset, name), np.memmap):  # pickling it would send its content
                dataset = replace(dataset, **{name: Shards([array])})
        self._pool = spawn_pool(self.workers, _open, replace(self.loader, dataset=dataset))
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

    def batch(self, images_seen: int, size: int) -> ImageBatch:
        """Return `Loader.batch`, and start the batches that follow it."""
        try:
            if (images_seen, size) not in self._pending:
                self._start(images_seen, size)
            next_batches = [(images_seen + k * size, size) for k in range(1, self.workers + 1)]
            for one in next_batches:
                if one not in self._pending:
                    self._start(*one)
            # Drop batches that the run will not request next.
            for one in self._pending.keys() - {(images_seen, size), *next_batches}:
                self._pending.pop(one).cancel()
            return self._pending.pop((images_seen, size)).result()
        except BrokenExecutor as error:
            raise DuetError(
                "data.workers: a worker process died, perhaps out of memory; use fewer workers, or 0"
            ) from error

    def _start(self, images_seen: int, size: int) -> None:
        self._pending[images_seen, size] = self._pool.submit(_batch, images_seen, size)
