"""Output directories that are named by the time: each run takes a name of its own.

`hydra.run.dir` of `train` and `hydra.sweep.dir` hold ``${now:...}``, which has a resolution of one second, so several
runs that a script starts at once would want one directory. Before Hydra makes the directory, the run creates it; if
another run was faster, it tries NAME-2, NAME-3 ... Creating a directory is atomic, on network file systems too. A
directory that the user names without a time is taken as it is.
"""

from __future__ import annotations

import functools
import itertools
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from diffusion_core.common.errors import DuetError
from experiments.config.arguments import quote
from experiments.config.build import process_group

__all__ = ["OutputDirectories", "claim_directory", "register_output_directories"]


class OutputDirectories(Callback):
    """The callback of Hydra that claims the directory of a run or a sweep before anything is written."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Claim `hydra.run.dir`."""
        _claim(config, "run")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Claim `hydra.sweep.dir`, also for the configurations of the jobs, which Hydra composes anew."""
        _claim(config, "sweep")
        with read_write(config.hydra.overrides):
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quote(config.hydra.sweep.dir)}")


def claim_directory(path: str | Path) -> Path:
    """Create a directory that did not exist, and return its path: `path` itself, or the next free of path-2, path-3 ...

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     [claim_directory(Path(folder, "run")).name for _ in range(3)]
        ['run', 'run-2', 'run-3']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        claimed = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            claimed.mkdir()
            return claimed
        except FileExistsError:
            continue
    raise AssertionError("unreachable")


@functools.cache
def register_output_directories() -> None:
    """Let Hydra call `OutputDirectories` in every command."""
    callbacks = {"output_directories": {"_target_": f"{__name__}.{OutputDirectories.__qualname__}"}}
    ConfigStore.instance().store(group="hydra", name="config", node=HydraConf(callbacks=callbacks), provider="hydra")


def _claim(config: DictConfig, mode: str) -> None:
    """Expand ``~`` in the directory of a run or a sweep, and claim it if its name holds the time."""
    section = config.hydra[mode]
    raw = section._get_node("dir")._value()
    owner, key = (config, "out") if raw == "${out}" and "out" in config else (section, "dir")
    raw = owner._get_node(key)._value()
    if not isinstance(raw, str) or "${now:" not in raw + str(section._get_node("dir")._value()):
        if isinstance(raw, str) and raw.startswith("~"):
            _set(config, owner, key, os.path.expanduser(OmegaConf.select(owner, key)))
        return
    path = Path(str(owner[key])).expanduser()
    rank = 0
    with suppress(DuetError):  # the command raises it
        rank = process_group(config).rank
    # The other processes of a run keep nothing in theirs, which they delete at the end.
    name = path.with_name(f"{path.name}-rank{rank}") if rank else path
    with suppress(OSError):  # Hydra makes the directory then, and reports why it cannot
        _set(config, owner, key, str(claim_directory(name)))


def _set(config: DictConfig, owner: DictConfig, key: str, value: str) -> None:
    with read_write(config), read_write(config.hydra), open_dict(config):
        owner[key] = value
