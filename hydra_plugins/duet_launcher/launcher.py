"""The launcher `hydra/launcher: duet`: each job of a sweep is an ordinary single run in the environment of its backend.

Hydra's own launchers run every job of ``-m backend=torch,tf seed=0,1`` in the Python that reads the sweep. Here, job n
is the command ::

    <Python of its backend> -m <the same module> <its overrides> hydra.run.dir=<hydra.sweep.dir>/<n>

Jobs run one after another, and their output is passed through. The Python is the first of these that is set, where
``backend`` is the group of the job's configuration::

    backend.python                  a path
    DUET_<backend.name>_PYTHON      an environment variable, as DUET_TORCH_PYTHON
    backend.environment             a virtual environment, as .venvs/torch

Relative paths start at the root of the repository. Where Duet was installed as a package, there are no environments of
its own: jobs run in the Python that reads the sweep, and relative paths start in the working directory. A job may
return a number to the sweeper as ``objective`` in the ``result.json`` of its run directory. A job that fails does not
stop the others of its batch; the sweeper raises its error when the batch is done.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from diffusion_core.common.errors import DuetError
from diffusion_core.runtime import signals
from duet.layout import INSTALLED, working_folder

__all__ = [
    "DuetLauncher",
    "LaunchError",
    "backend_python",
    "entry_command",
    "inherited_overrides",
    "job_config",
    "read_objective",
    "run_dir_override",
    "source_flags",
]

log = logging.getLogger(__name__)

# Overrides of the sweep itself: they would turn a job into a sweep, or move its output.
_SWEEP_ONLY = re.compile(r"[+~]*hydra(\.(mode|run|sweep|sweeper|launcher)\b|/(sweeper|launcher)\b)")


class LaunchError(DuetError, CompactHydraException):
    """A job that cannot start or that failed; Hydra prints it as one line."""


def backend_python(
    backend: Mapping[str, Any], environ: Mapping[str, str], root: Path | None = None, installed: bool = INSTALLED
) -> Path:
    """Return the Python of the environment that contains a backend.

    Args:
        backend: the group `backend` of the job's configuration; `name`, `python` and `environment` are read.
        environ: environment variables.
        root: where relative paths start; None is the checkout, or the working directory where there is none.
        installed: whether Duet was installed as a package.

    Raises:
        LaunchError: the interpreter does not exist, or the configuration does not name one.
    """
    name = backend.get("name")
    if not name:
        raise LaunchError(f"backend.name: {name!r} was given; it must name a backend, as in backend=torch")
    variable = f"DUET_{re.sub(r'[^A-Z0-9]', '_', str(name).upper())}_PYTHON"
    environment = backend.get("environment")
    if backend.get("python"):
        source, path = "backend.python", str(backend["python"])
    elif environ.get(variable):
        source, path = variable, environ[variable]
    elif installed:
        package = next(iter(backend.get("packages") or ()), None)
        if package and find_spec(package) is None:
            raise LaunchError(
                f"backend {name}: {package} is not installed in {sys.executable}; install it there, or name a Python "
                f"that has it and Duet with {variable}=PATH"
            )
        return Path(sys.executable)
    elif environment:
        source, path = (
            "backend.environment",
            f"{environment}/{'Scripts/python.exe' if os.name == 'nt' else 'bin/python'}",
        )
    else:
        raise LaunchError(f"backend {name}: no Python is named; set backend.environment, backend.python or {variable}")
    # The link is not resolved: a virtual environment is recognised by the path of its Python.
    python = (working_folder() if root is None else root) / Path(path).expanduser()
    if not (python.is_file() and os.access(python, os.X_OK)):
        raise LaunchError(
            f"{source}: there is no Python at {python}; run `python3 -m duet setup {name}` or name another"
        )
    return python


def entry_command(main: ModuleType, task_function: Callable[..., Any]) -> list[str]:
    """Return the arguments with which a Python starts the running program again.

    Args:
        main: the module `__main__`.
        task_function: the function that `hydra.main` decorates; its module counts if a console script was started.
    """
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return ["-m", spec.name.removesuffix(".__main__")]
    if getattr(task_function, "__module__", "__main__") != "__main__":
        return ["-m", task_function.__module__]
    file = getattr(main, "__file__", None)
    if file is None:
        raise LaunchError("a sweep was started without a module or a file; start it as `python3 -m duet train -m`")
    return [os.path.abspath(file)]


def inherited_overrides(overrides: Sequence[str]) -> list[str]:
    """Return the `hydra` overrides of a sweep that also hold for each of its jobs."""
    return [override for override in overrides if not _SWEEP_ONLY.match(override)]


def source_flags(config_name: str | None, sources: Sequence[Mapping[str, str]]) -> list[str]:
    """Return flags that make a job read the same configuration files as the sweep.

    Args:
        config_name: `hydra.job.config_name`.
        sources: `hydra.runtime.config_sources`, each with `provider`, `schema` and `path`.
    """
    flags = ["--config-name", config_name] if config_name else []
    for source in sources:
        path = source["path"]
        if source["provider"] == "main" and path:
            flags += ["--config-path", path if source["schema"] == "file" else f"{source['schema']}://{path}"]
        elif source["provider"] == "command-line":
            flags += ["--config-dir", path]
    return flags


def run_dir_override(directory: Path) -> str:
    """Return the override that makes `directory` the run directory, quoted for Hydra's grammar."""
    path = directory.as_posix().replace("'", r"\'")
    return f"hydra.run.dir='{path}'"


def job_config(context: HydraContext, sweep: DictConfig, overrides: Sequence[str], number: int) -> DictConfig:
    """Return the configuration of one job of a sweep, with its number."""
    config = context.config_loader.load_sweep_config(sweep, list(overrides))
    with open_dict(config):
        config.hydra.job.id = config.hydra.job.num = number
    return config


def read_objective(run_dir: Path) -> float | None:
    """Return the number that a finished job returns to the sweeper, or None.

    Raises:
        LaunchError: `objective` in `result.json` is not a number.
    """
    file = run_dir / "result.json"
    if not file.exists():
        return None
    try:
        objective = json.loads(file.read_text(encoding="utf-8")).get("objective")
        return None if objective is None else float(objective)
    except (ValueError, TypeError, AttributeError) as error:
        raise LaunchError(f"{file}: 'objective' must be a number in a JSON object ({error})") from error


class DuetLauncher(Launcher):
    """Runs each job as a process in the environment of its backend, one after another."""

    def __init__(self) -> None:
        self.config: DictConfig | None = None
        self.task_function: TaskFunction | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store what Hydra passes before the first batch."""
        self.config, self.task_function, self.hydra_context = config, task_function, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run one batch of jobs.

        Args:
            job_overrides: the overrides of each job.
            initial_job_idx: the number of the first.

        Raises:
            LaunchError: the Python of a job is missing; then no job has run.
        """
        assert self.config is not None and self.task_function is not None and self.hydra_context is not None
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        shared = [
            *source_flags(self.config.hydra.job.config_name, self.config.hydra.runtime.config_sources),
            *inherited_overrides(self.config.hydra.overrides.hydra),
        ]
        entry = entry_command(sys.modules["__main__"], self.task_function)
        jobs = []
        for number, overrides in enumerate(job_overrides, start=initial_job_idx):
            config = job_config(self.hydra_context, self.config, overrides, number)
            backend = OmegaConf.select(config, "backend")
            if not isinstance(backend, DictConfig):
                raise LaunchError(f"job {number}: its config has no group 'backend', which hydra/launcher=duet needs")
            run_dir = Path(str(self.config.hydra.sweep.dir)) / str(config.hydra.sweep.subdir)
            command = [str(backend_python(backend, os.environ)), *entry, *shared, *overrides, run_dir_override(run_dir)]
            jobs.append((number, config, run_dir, command))
        log.info(f"Launching {len(jobs)} jobs, each with the Python of its backend")
        return [_run(*job) for job in jobs]


def _run(number: int, config: DictConfig, run_dir: Path, command: list[str]) -> JobReturn:
    """Run one job to its end."""
    overrides = OmegaConf.to_container(config.hydra.overrides.task)
    log.info(f"\t#{number} : {' '.join(filter_overrides(overrides))} [{command[0]}]")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    code = signals.run_command(command)
    result = JobReturn(
        overrides=overrides,
        cfg=OmegaConf.masked_copy(config, [key for key in config if key != "hydra"]),
        hydra_cfg=OmegaConf.masked_copy(config, ["hydra"]),
        working_dir=os.getcwd(),
        task_name=config.hydra.job.name,
    )
    try:
        if code:
            raise LaunchError(
                f"job {number} ({' '.join(overrides)}) failed with exit code {code}; it wrote to {run_dir}"
            )
        result.return_value, result.status = read_objective(run_dir), JobStatus.COMPLETED
    except LaunchError as error:
        result.return_value, result.status = error, JobStatus.FAILED
    return result


# A dictionary, because Hydra loads plugins in a way in which a dataclass cannot find its own module.
ConfigStore.instance().store(
    group="hydra/launcher",
    name="duet",
    node={"_target_": f"{DuetLauncher.__module__}.{DuetLauncher.__name__}"},
    provider="duet_launcher",
)
