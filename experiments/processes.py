"""The processes that compute together: which of them this one is, who speaks, and how they end.

One that ends by itself leaves the others waiting. So of several that are told to end each notes it, and all end where
they next ask each other (`stop_requested`); one that computes alone may end at once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout

from omegaconf import DictConfig

from diffusion_core.common.errors import DuetError
from diffusion_core.runtime import signals
from diffusion_core.runtime.distributed import Collective, ProcessGroup, find_parallel_launch

__all__ = ["one_speaks", "stop_check", "stop_if_requested", "stop_requested", "world_of"]


def world_of(cfg: DictConfig) -> ProcessGroup:
    """The place of this process among those that compute together.

    Raises:
        DuetError: if `parallel` is not what this process was started with.
    """
    if "parallel" not in cfg:
        return ProcessGroup()
    name = cfg.parallel.name
    if name == "none" and (variable := find_parallel_launch(os.environ)):
        raise DuetError(
            f"parallel: none was given, but several processes were started, as {variable} says, which would all do the "
            f"same; add parallel=ddp, for TensorFlow parallel=multiworker, or unset {variable} for one that is alone"
        )
    return ProcessGroup.from_environment(name, os.environ, cfg.parallel.timeout_seconds)


@contextmanager
def one_speaks(group: ProcessGroup) -> Iterator[None]:
    """While in it, what a process prints is seen of the one that leads alone; errors are seen of all."""
    if group.is_main_process:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


def stop_requested(collective: Collective, stop: signals.StopFlag) -> bool:
    """Whether a process of the team was told to end; every one asks at the same place, and then has it in `stop`.

    A signal that comes while they agree to go on counts the next time.
    """
    agreed = collective.any(bool(stop))
    if agreed and not stop:
        stop.number = signal.SIGTERM  # another one was told so
    return agreed


def stop_if_requested(collective: Collective, stop: signals.StopFlag) -> None:
    """End all processes here, if one of them was told to end; every one asks at the same place.

    Raises:
        Stopped: in every process.
    """
    if stop_requested(collective, stop):
        raise signals.Stopped(stop.number)


@contextmanager
def stop_check(collective: Collective, stop: signals.StopFlag) -> Iterator[Callable[[], None]]:
    """While in it, a signal ends a process that computes alone at once, and several where they call what it gives."""
    with signals.raise_on_signal() if collective.group.size == 1 else nullcontext():
        yield lambda: stop_if_requested(collective, stop)
