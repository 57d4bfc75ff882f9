"""Ending when the scheduler or a person says so: SIGTERM, SIGUSR1, SIGUSR2 and Ctrl-C.

Either at once, where nothing would be lost (`raise_on_signal`), or when it suits (`flag_on_signal`). A process that was stopped leaves
with exit code 128 + n, n being the signal, as a shell says it of one that the signal ended.

A process that waits for another one, as that of a sweep does, passes the signal on and waits on: the other one has
something to save. Ctrl-C is not passed on, since a terminal sends it to both.

SIGUSR2 is handled where nobody else does: submitit, which starts the launcher `slurm`, takes it to call the same task
again, and would wait for that in vain if it were handled here.
"""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

__all__ = ["SIGNALS", "StopFlag", "Stopped", "flag_on_signal", "raise_on_signal", "run_command"]

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)  # Windows has neither of the last two

_running: set[subprocess.Popen] = set()


class Stopped(BaseException):
    """The process was told to end; no error, so nothing that handles errors holds it up.

    Args:
        number: the signal.
        advice: what there is to do now.
    """

    def __init__(self, number: int, advice: str = "") -> None:
        self.number = signal.Signals(number)
        name = "Ctrl-C" if number == signal.SIGINT else self.number.name
        super().__init__(f"stopped by {name}" + (f"; {advice}" if advice else ""))

    @property
    def code(self) -> int:
        """The exit code."""
        return 128 + self.number


@dataclass
class StopFlag:
    """The signal that came, or None."""

    number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None


@contextmanager
def raise_on_signal() -> Iterator[None]:
    """While in it, a signal raises `Stopped`."""

    def handle(number: int, frame: FrameType | None) -> None:
        _pass_on(number)
        raise Stopped(number)

    with _handled(handle):
        yield


@contextmanager
def flag_on_signal() -> Iterator[StopFlag]:
    """While in it, a signal is noted in what it gives; a second Ctrl-C ends the process at once."""
    found = StopFlag()

    def handle(number: int, frame: FrameType | None) -> None:
        found.number = number
        _pass_on(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    with _handled(handle):
        yield found


@contextmanager
def _handled(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    before = {number: signal.signal(number, handle) for number in SIGNALS if not _is_anothers(number)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _is_anothers(number: int) -> bool:
    """Whether who started this process waits for the signal itself."""
    handler = signal.getsignal(number)
    is_ours = not callable(handler) or getattr(handler, "__module__", None) == __name__
    return signal.Signals(number).name == "SIGUSR2" and not is_ours


def _pass_on(number: int) -> None:
    for process in tuple(_running) if number != signal.SIGINT else ():
        process.send_signal(number)


def run_command(words: Sequence[str], **options: Any) -> int:
    """Run a command to its end, also where this process is told to end; gives the exit code, as a shell says it."""
    process = subprocess.Popen(words, **options)
    _running.add(process)
    try:
        code = process.wait()
    except BaseException:
        process.wait()
        raise
    finally:
        _running.discard(process)
    return code if code >= 0 else 128 - code
