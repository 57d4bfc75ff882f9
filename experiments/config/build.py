"""Configuration values as the objects that the applications take."""

from __future__ import annotations

import os

from omegaconf import DictConfig

from diffusion_core.common.errors import DuetError
from diffusion_core.runtime.distributed import ProcessGroup, find_parallel_launch

__all__ = ["process_group"]


def process_group(cfg: DictConfig) -> ProcessGroup:
    """Return the rank and size of this process among those that compute together.

    Raises:
        DuetError: if `parallel` does not match how this process was started.
    """
    if "parallel" not in cfg:
        return ProcessGroup()
    name = cfg.parallel.name
    if name == "none" and (variable := find_parallel_launch(os.environ)):
        raise DuetError(
            f"parallel: none was given, but {variable} says that several processes were started, which would all do the "
            f"same work; add parallel=ddp (PyTorch) or parallel=multiworker (TensorFlow), or unset {variable} to run a "
            f"single process"
        )
    return ProcessGroup.from_environment(name, os.environ, cfg.parallel.timeout_seconds)
