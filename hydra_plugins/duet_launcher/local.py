"""The launcher `hydra/launcher: local`: jobs on this machine, several at a time.

The configurations are composed in turn, and the task is called with each on one of `workers` threads. This suits tasks
that start a process and wait for it, as those of `experiments.study` do; tasks that compute in Python would compete for
one interpreter. A job that fails does not stop the others.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.duet_launcher.launcher import LaunchError, job_config

__all__ = ["LocalLauncher"]


class LocalLauncher(Launcher):
    """Calls the task for each job on a thread.

    Args:
        workers: the number of jobs that run at a time.
    """

    def __init__(self, workers: int = 1) -> None:
        if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
            raise LaunchError(f"hydra.launcher.workers: {workers!r} was given; it must be a whole number of at least 1")
        self.workers = workers

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store what Hydra passes before the first batch."""
        self.config, self.task_function, self.hydra_context = config, task_function, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run one batch of jobs; return the outcomes in their order.

        Args:
            job_overrides: the overrides of each job.
            initial_job_idx: the number of the first.
        """
        setup_globals()
        configs = [
            job_config(self.hydra_context, self.config, overrides, number)
            for number, overrides in enumerate(job_overrides, start=initial_job_idx)
        ]
        with ThreadPoolExecutor(self.workers, "duet-jobs") as pool:
            try:
                return list(pool.map(self._run, configs))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _run(self, config: DictConfig) -> JobReturn:
        result = JobReturn(
            overrides=OmegaConf.to_container(config.hydra.overrides.task),
            cfg=OmegaConf.masked_copy(config, [key for key in config if key != "hydra"]),
            hydra_cfg=OmegaConf.masked_copy(config, ["hydra"]),
            working_dir=os.getcwd(),
            task_name=config.hydra.job.name,
        )
        try:
            result.return_value, result.status = self.task_function(result.cfg), JobStatus.COMPLETED
        except Exception as error:
            result.return_value, result.status = error, JobStatus.FAILED
        return result


ConfigStore.instance().store(
    group="hydra/launcher",
    name="local",
    node={"_target_": f"{LocalLauncher.__module__}.{LocalLauncher.__name__}", "workers": 1},
    provider="duet_launcher",
)
