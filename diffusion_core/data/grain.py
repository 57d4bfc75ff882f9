"""Prefetch batches with Grain, the data loader of the JAX ecosystem, in its threads.

Grain maps positions to batches. `Loader` alone decides which image is at a position, so the order is the same bit by
bit. Grain is an optional package; it is imported when a run selects it.

References:
    Grain, feeding JAX models, https://github.com/google/grain
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from types import TracebackType

import numpy as np

from diffusion_core.common.errors import DuetError
from diffusion_core.data.loader import ImageBatch, Loader

__all__ = ["Grain"]

_BATCHES = 1 << 31  # more than any run reads


class Grain:
    """A loader whose batches are prefetched by Grain; a context manager.

    Args:
        loader: the loader to read.
        workers: the number of threads; 0 means 1.

    Raises:
        DuetError: grain is not installed, or the number is negative.
    """

    def __init__(self, loader: Loader, workers: int) -> None:
        if find_spec("grain") is None:
            raise DuetError("data.loader: grain was given but is not installed; run `pip install grain`, or use duet")
        if workers < 0:
            raise DuetError(f"data.workers: {workers} was given; it must be at least 0")
        self.loader, self.threads = loader, max(1, workers)
        self._next: tuple[int, int] | None = None
        self._batches: Iterator[ImageBatch] = iter(())

    @property
    def dtype(self) -> np.dtype:
        """The type of the pixels."""
        return self.loader.dtype

    def __enter__(self) -> Grain:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._next, self._batches = None, iter(())

    def batch(self, images_seen: int, size: int) -> ImageBatch:
        """Return `Loader.batch`, and prefetch the batches that follow it."""
        if self._next != (images_seen, size):
            import grain

            positions = grain.MapDataset.range(images_seen, images_seen + _BATCHES * size, size)
            options = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=self.threads + 1)
            batches = positions.map(lambda position: self.loader.batch(int(position), size))
            self._batches = iter(batches.to_iter_dataset(options))
        self._next = (images_seen + size, size)
        return next(self._batches)
