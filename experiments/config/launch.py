"""Composing further configurations, and launching jobs, from inside a running command."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hydra import compose
from hydra._internal.callbacks import Callbacks  # HydraContext requires one, and nothing public makes it
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from diffusion_core.common.errors import DuetError
from experiments.config.convert import plain

__all__ = ["JobLauncher", "compose_group"]

_composing = threading.Lock()  # Hydra composes one configuration at a time


def compose_group(command: str, overrides: Sequence[str], group: str) -> dict[str, Any]:
    """Return one group of a command's configuration as plain data; the whole configuration is composed and checked.

    Raises:
        DuetError: a key, a value or a file of the configuration does not exist.
    """
    try:
        with _composing:
            return plain(compose(command, list(overrides))[group])
    except Exception as error:
        lines = (line.strip() for line in str(error).splitlines() if line.strip())
        raise DuetError(next(lines, type(error).__name__)) from error


@dataclass(frozen=True)
class _Task:
    """Calls a function with the plain data of a configuration; launchers may pickle it."""

    function: Callable[[dict[str, Any]], Any]

    def __call__(self, cfg: DictConfig) -> Any:
        return self.function(plain(cfg))


class JobLauncher:
    """Runs jobs of the running command with the launcher that its configuration selects (``hydra/launcher=...``).

    Args:
        command: the name of the running command's configuration file.
        function: called for each job with the plain data of its configuration; a launcher may call it elsewhere.
    """

    def __init__(self, command: str, function: Callable[[dict[str, Any]], Any]) -> None:
        overrides = HydraConfig.get().overrides
        own = [
            override for override in overrides.hydra if not override.startswith("hydra.mode=")
        ]  # added by Hydra itself
        loader = GlobalHydra.instance().config_loader()
        self._config = loader.load_configuration(command, [*own, *overrides.task], RunMode.MULTIRUN, from_shell=False)
        self._context = HydraContext(config_loader=loader, callbacks=Callbacks(self._config))
        self._task, self._count = _Task(function), 0

    def launch(self, jobs: Sequence[Sequence[str]]) -> list[str | None]:
        """Run jobs, each with the overrides of the command and its own; return why each did not start, or None."""
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self._context, task_function=self._task, config=self._config
        )
        common = list(self._config.hydra.overrides.task)
        returns = launcher.launch([[*common, *job] for job in jobs], self._count)
        self._count += len(jobs)
        return [_reason(result) if result.status is JobStatus.FAILED else None for result in returns]


def _reason(result: JobReturn) -> str:
    try:
        return str(result.return_value)  # which raises what the job raised
    except Exception as error:
        return str(error)
