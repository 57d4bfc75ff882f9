"""Several processes that compute one run together: which one prints, and how they stop together.

A process that exits alone leaves the others waiting for it. So when several run together, a signal sets a flag in the
process that receives it, and all stop at the next point where they exchange their flags (`stop_requested`). A process
that computes alone stops at once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout

from diffusion_core.runtime import signals
from diffusion_core.runtime.distributed import Collective, ProcessGroup

__all__ = ["discard_output", "main_process_prints", "stop_check", "stop_if_requested", "stop_requested"]


@contextmanager
def discard_output() -> Iterator[None]:
    """Discard what is printed to standard output."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


@contextmanager
def main_process_prints(group: ProcessGroup) -> Iterator[None]:
    """Discard what every process but the main one prints to standard output; errors are printed by all."""
    if group.is_main_process:
        yield
        return
    with discard_output():
        yield


def stop_requested(collective: Collective, stop: signals.StopFlag) -> bool:
    """Return whether any process received a stop signal, and set `stop` in every process if so.

    Every process must call this at the same point. A signal that arrives during the exchange counts at the next call.
    """
    agreed = collective.any(bool(stop))
    if agreed and not stop:
        stop.number = signal.SIGTERM  # another process received the signal
    return agreed


def stop_if_requested(collective: Collective, stop: signals.StopFlag) -> None:
    """Stop all processes if any of them received a stop signal; every process must call this at the same point.

    Raises:
        Stopped: in every process.
    """
    if stop_requested(collective, stop):
        raise signals.Stopped(stop.number)


@contextmanager
def stop_check(collective: Collective, stop: signals.StopFlag) -> Iterator[Callable[[], None]]:
    """Yield a function to call between pieces of work, which raises `Stopped` if a stop was requested.

    In a process that computes alone, a signal raises `Stopped` at once.
    """
    with signals.raise_on_signal() if collective.group.size == 1 else nullcontext():
        yield lambda: stop_if_requested(collective, stop)
