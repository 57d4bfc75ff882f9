"""The processes that compute together: which of them this one is, how all are started, and who speaks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from omegaconf import DictConfig

from diffusion_core.errors import DuetError
from diffusion_core.world import World

__all__ = ["one_speaks", "starter", "world_of"]


def world_of(cfg: DictConfig) -> World:
    """The place of this process among those that compute together.

    Raises:
        DuetError: if `parallel` is not what this process was started with.
    """
    if "parallel" not in cfg:
        return World()
    name = cfg.parallel.name
    if name == "none" and int(os.environ.get("WORLD_SIZE", "1")) > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        raise DuetError(
            "parallel: none was given, but torchrun started several processes, which would all do the same; "
            "add parallel=ddp"
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


def starter(world: World) -> list[str]:
    """The words before ``-m MODULE`` that start as many processes, all on one machine."""
    words = {
        "none": ["python"],
        "ddp": ["torchrun", f"--nproc-per-node={world.size}"],
        "multiworker": ["python", "-m", "experiments.workers", str(world.size)],
    }
    return words[world.kind]
