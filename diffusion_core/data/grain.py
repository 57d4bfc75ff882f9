"""Batches that are made ahead by grain, the loader of the JAX world, in its threads.

Grain maps positions to batches; which image is at a position is decided by `Loader` alone, so the order is the same
bit by bit. It is an optional package, and is imported when a run asks for it.

References:
    Grain, feeding JAX models, https://github.com/google/grain
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from types import TracebackType

import numpy as np

from diffusion_core.common.errors import DuetError
from diffusion_core.data.loader import Images, Loader

__all__ = ["Grain"]

_BATCHES = 1 << 31  # more than any run has


class Grain:
    """A loader whose batches are made ahead by grain; as a context manager.

    Args:
        loader: what to show.
        workers: threads; 0 is one.

    Raises:
        DuetError: grain is not installed here, or the number is negative.
    """

    def __init__(self, loader: Loader, workers: int) -> None:
        if find_spec("grain") is None:
            raise DuetError("data.loader: grain was given, which this Python has not; install it, or use duet")
        if workers < 0:
            raise DuetError(f"data.workers: {workers} was given; it must be at least 0")
        self.loader, self.threads = loader, max(1, workers)
        self._next: tuple[int, int] | None = None
        self._batches: Iterator[Images] = iter(())

    @property
    def dtype(self) -> np.dtype:
        """Of the pixels."""
        return self.loader.dtype

    def __enter__(self) -> Grain:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._next, self._batches = None, iter(())

    def batch(self, images_seen: int, size: int) -> Images:
        """As `Loader.batch`; those that follow it are made meanwhile."""
        if self._next != (images_seen, size):
            import grain

            places = grain.MapDataset.range(images_seen, images_seen + _BATCHES * size, size)
            options = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=self.threads + 1)
            made = places.map(lambda place: self.loader.batch(int(place), size))
            self._batches = iter(made.to_iter_dataset(options))
        self._next = (images_seen + size, size)
        return next(self._batches)
