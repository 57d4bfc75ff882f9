"""The processes that compute together: which of them this one is, who speaks, and how they end.

One that ends by itself leaves the others waiting. So of several that are told to end each notes it, and all end where
they next ask each other (`told`); one that computes alone may end at once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout

from omegaconf import DictConfig

from diffusion_core.common.errors import DuetError
from diffusion_core.runtime import signals as stopping
from diffusion_core.runtime.distributed import Team, World, started_together

__all__ = ["leave_if_told", "one_speaks", "pausing", "told", "world_of"]


def world_of(cfg: DictConfig) -> World:
    """The place of this process among those that compute together.

    Raises:
        DuetError: if `parallel` is not what this process was started with.
    """
    if "parallel" not in cfg:
        return World()
    name = cfg.parallel.name
    if name == "none" and (variable := started_together(os.environ)):
        raise DuetError(
            f"parallel: none was given, but several processes were started, as {variable} says, which would all do the "
            f"same; add parallel=ddp, for TensorFlow parallel=multiworker, or unset {variable} for one that is alone"
        )
    return World.of(name, os.environ, cfg.parallel.timeout_seconds)


@contextmanager
def one_speaks(world: World) -> Iterator[None]:
    """While in it, what a process prints is seen of the one that leads alone; errors are seen of all."""
    if world.leads:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


def told(team: Team, stop: stopping.Noted) -> bool:
    """Whether a process of the team was told to end; every one asks at the same place, and then has it in `stop`.

    A signal that comes while they agree to go on counts the next time.
    """
    agreed = team.any(bool(stop))
    if agreed and not stop:
        stop.number = signal.SIGTERM  # another one was told so
    return agreed


def leave_if_told(team: Team, stop: stopping.Noted) -> None:
    """End all processes here, if one of them was told to end; every one asks at the same place.

    Raises:
        Stopped: in every process.
    """
    if told(team, stop):
        raise stopping.Stopped(stop.number)


@contextmanager
def pausing(team: Team, stop: stopping.Noted) -> Iterator[Callable[[], None]]:
    """While in it, a signal ends a process that computes alone at once, and several where they call what it gives."""
    with stopping.raised() if team.world.size == 1 else nullcontext():
        yield lambda: leave_if_told(team, stop)
