"""Placeholders for the sweepers and launchers of the extra `sweeps` if it is not installed.

A configuration that names one still composes, so it can be read and tested anywhere; starting it is a one-line error.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper

from hydra_plugins.duet_launcher.launcher import LaunchError

__all__ = ["MissingLauncher", "MissingSweeper"]

# Group and name of each sweeper and launcher, and the package that registers it.
_EXTRAS = (
    ("hydra/sweeper", "optuna", "hydra_optuna_sweeper"),
    ("hydra/launcher", "joblib", "hydra_joblib_launcher"),
    ("hydra/launcher", "submitit_local", "hydra_submitit_launcher"),
    ("hydra/launcher", "submitit_slurm", "hydra_submitit_launcher"),
)


def _missing(group: str, name: str, package: str) -> LaunchError:
    pip = package.replace("_", "-")
    return LaunchError(
        f"{group}: {name} was given, but {pip} is not installed; install it with "
        '`pip install "duet-diffusion[sweeps]"`, or in a checkout with `pip install -e .[sweeps]`'
    )


class MissingSweeper(Sweeper):
    """Raises an error that names the missing package."""

    def __init__(self, absent: str, package: str, **options: Any) -> None:
        raise _missing("hydra/sweeper", absent, package)

    def setup(self, **options: Any) -> None: ...  # noqa: D102

    def sweep(self, arguments: list[str]) -> None: ...  # noqa: D102


class MissingLauncher(Launcher):
    """Raises an error that names the missing package."""

    def __init__(self, absent: str, package: str, **options: Any) -> None:
        raise _missing("hydra/launcher", absent, package)

    def setup(self, **options: Any) -> None: ...  # noqa: D102

    def launch(self, job_overrides: Any, initial_job_idx: int) -> Any: ...  # noqa: D102


for group, name, package in _EXTRAS:
    if find_spec(f"hydra_plugins.{package}") is None:
        owner = MissingSweeper if group == "hydra/sweeper" else MissingLauncher
        node = {"_target_": f"{owner.__module__}.{owner.__name__}", "absent": name, "package": package}
        ConfigStore.instance().store(group=group, name=name, node=node, provider="duet_launcher")
