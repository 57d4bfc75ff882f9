"""Worker processes that end when their parent does, and not before.

The workers of a pool wait for work. If their parent were killed, by a scheduler or because memory ran out, they would
wait forever and keep what they hold, so each of them watches its parent. A terminal or a scheduler sends its signals to
the workers as well as to the parent, which may still need the workers to save its results. They therefore ignore the
signals and end with the parent.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import connection
from types import FrameType
from typing import Any

from diffusion_core.runtime.signals import SIGNALS

__all__ = ["spawn_pool"]


def spawn_pool(workers: int, initialise: Callable[..., None] | None = None, *arguments: Any) -> ProcessPoolExecutor:
    """Start worker processes, which share no memory with this one; use the result as a context manager.

    Args:
        workers: the number of processes.
        initialise: called first in each process.
        arguments: of `initialise`.
    """
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _initialise, (initialise, arguments))


# Seconds from SIGTERM to the end of a worker, enough for its parent to finish its work with it. A worker must not
# ignore SIGTERM altogether, since a pool that ends its workers after one of them died sends it and waits.
_GRACE = 5.0


def _initialise(initialise: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit_soon)
    threading.Thread(target=_exit_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    if initialise is not None:
        initialise(*arguments)


def _exit_with(parent: Any) -> None:
    connection.wait([parent.sentinel])
    os._exit(1)  # immediately: no process is left that needs the results


def _exit_soon(number: int, frame: FrameType | None) -> None:
    timer = threading.Timer(_GRACE, os._exit, (128 + number,))
    timer.daemon = True
    timer.start()
