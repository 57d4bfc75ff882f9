"""Processes that work for this one, and end when it does and not before.

The workers of a pool wait for work, and those whose parent was killed, by a scheduler or for want of memory, would wait
for ever, with all that they hold. So each watches its parent. A terminal and a scheduler tell them to end as they tell
their parent, which may still need them for what it has to save: they leave the ending to it.
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


def spawn_pool(workers: int, begin: Callable[..., None] | None = None, *given: Any) -> ProcessPoolExecutor:
    """New processes, which share nothing with this one, to submit work to; as a context manager.

    Args:
        workers: how many.
        begin: what each does first.
        given: what it is called with.
    """
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (begin, given))


# Seconds in which a parent that was told to end as well has finished with its workers. Ignored for good, SIGTERM would
# leave a pool waiting that ends its workers after one of them died.
_GRACE = 5.0


def _begin(begin: Callable[..., None] | None, given: tuple[Any, ...]) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave_soon)
    threading.Thread(target=_leave_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    if begin is not None:
        begin(*given)


def _leave_with(parent: Any) -> None:
    connection.wait([parent.sentinel])
    os._exit(1)  # at once: nobody is left to hear of it


def _leave_soon(number: int, frame: FrameType | None) -> None:
    timer = threading.Timer(_GRACE, os._exit, (128 + number,))
    timer.daemon = True
    timer.start()
