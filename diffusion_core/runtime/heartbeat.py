"""Signs of life: what a process prints while a long call returns nothing.

Nothing is silent for more than ten seconds. A thread prints, since the call itself cannot.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from types import TracebackType
from typing import ClassVar

from diffusion_core.common.text import format_seconds

__all__ = ["EVERY_SECONDS", "Ticker", "heartbeat"]

EVERY_SECONDS = 10.0


class Ticker:
    """Calls a function every few seconds in a thread, as a context manager.

    Of several that are entered within each other only the innermost calls: it knows best what is being done. After
    another one has been left, a call waits as long as the others do.

    Args:
        function: what is called; it must return quickly.
        every: seconds between calls.
    """

    _entered: ClassVar[list[Ticker]] = []
    _left_at: ClassVar[float] = -math.inf

    def __init__(self, function: Callable[[], None], every: float) -> None:
        self.function, self.every = function, every
        self._stop, self._thread = Event(), Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(self.every):
            if self._entered[-1:] == [self] and time.monotonic() - Ticker._left_at >= 0.9 * self.every:
                try:
                    self.function()
                except BrokenPipeError:  # nobody reads the output; the main thread finds out when it prints
                    return

    def __enter__(self) -> Ticker:
        self._entered.append(self)
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._entered.remove(self)
        Ticker._left_at = time.monotonic()
        self._thread.join()


@contextmanager
def heartbeat(work: str, at_once: bool = False, every: float = EVERY_SECONDS, says_end: bool = True) -> Iterator[None]:
    """Print what is being done and for how long, every `every` seconds while the body runs.

    Args:
        work: what the body does, as in "reading the images".
        at_once: whether to print it before the body too, and how long it took after it.
        every: seconds between lines.
        says_end: whether to print how long it took, if anything was printed before.
    """
    began = time.monotonic()
    if at_once:
        print(f"{work} ...", flush=True)

    def elapsed() -> str:
        return format_seconds(time.monotonic() - began)

    with Ticker(lambda: print(f"{work}: {elapsed()}", flush=True), every):
        yield
    if says_end and (at_once or time.monotonic() - began >= every):
        print(f"{work}: done in {elapsed()}", flush=True)
