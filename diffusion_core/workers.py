"""Processes that work for this one, and end when it does.

The workers of a pool wait for work, and those whose parent was killed, by a scheduler or for want of memory, would wait
for ever, with all that they hold. So each watches its parent.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import connection
from typing import Any

__all__ = ["pool"]


def pool(workers: int, begin: Callable[..., None] | None = None, *given: Any) -> ProcessPoolExecutor:
    """New processes, which share nothing with this one, to submit work to; as a context manager.

    Args:
        workers: how many.
        begin: what each does first.
        given: what it is called with.
    """
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (begin, given))


def _begin(begin: Callable[..., None] | None, given: tuple[Any, ...]) -> None:
    threading.Thread(target=_leave_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    if begin is not None:
        begin(*given)


def _leave_with(parent: Any) -> None:
    connection.wait([parent.sentinel])
    os._exit(1)  # at once: nobody is left to hear of it
