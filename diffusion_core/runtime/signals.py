"""Stopping on SIGTERM, SIGUSR1, SIGUSR2 and Ctrl-C, as a scheduler or a person sends them.

A process stops immediately where nothing would be lost (`raise_on_signal`), or at the next suitable moment
(`flag_on_signal`). Its exit code is then 128 + n for signal n, as a shell reports a process that the signal ended.

A process that waits for another one, such as a sweep for its job, passes the signal on and keeps waiting, since the
other one has something to save. Ctrl-C is not passed on, since a terminal sends it to both.

SIGUSR2 is handled only if no other handler is installed: submitit, which the launcher `slurm` uses, handles it to
submit the same task again.
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
    """A signal asked the process to stop. It is not an `Exception`, so that no handler of errors catches it.

    Args:
        number: the signal.
        advice: what the user can do now.
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
    """The signal that was received, or None; true if there is one."""

    number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None


@contextmanager
def raise_on_signal() -> Iterator[None]:
    """Raise `Stopped` when a signal arrives within the block."""

    def handle(number: int, frame: FrameType | None) -> None:
        _pass_on(number)
        raise Stopped(number)

    with _handled(handle):
        yield


@contextmanager
def flag_on_signal() -> Iterator[StopFlag]:
    """Set the yielded flag when a signal arrives within the block; a second Ctrl-C ends the process immediately."""
    flag = StopFlag()

    def handle(number: int, frame: FrameType | None) -> None:
        flag.number = number
        _pass_on(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    with _handled(handle):
        yield flag


@contextmanager
def _handled(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield
        return
    before = {number: signal.signal(number, handle) for number in SIGNALS if not _has_foreign_handler(number)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _has_foreign_handler(number: int) -> bool:
    """Return whether the launcher of this process handles the signal itself."""
    handler = signal.getsignal(number)
    is_ours = not callable(handler) or getattr(handler, "__module__", None) == __name__
    return signal.Signals(number).name == "SIGUSR2" and not is_ours


def _pass_on(number: int) -> None:
    for process in tuple(_running) if number != signal.SIGINT else ():
        process.send_signal(number)


def run_command(words: Sequence[str], **options: Any) -> int:
    """Run a command to its end, even if a signal asks this process to stop; return its exit code as a shell does."""
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
