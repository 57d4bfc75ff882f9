"""Running the jobs of a plan: each once, in the environment of its backend, with its state told by files.

A job's directory holds, beside what the command itself writes::

    log.txt         what it printed
    done.json       its identity, command, time and energy; written last, so a job is done where this fits
    failed.json     the same with its exit code, where it failed; the next call tries again

A training that was cut short goes on from its last checkpoint, which changes nothing in its numbers; what else was cut
short is begun anew.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.callbacks import Callbacks  # a launcher asks for them, and nothing public makes them
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.files.lock import lock_directory
from diffusion_core.files.safe_read import read_json
from diffusion_core.runs.checkpoint import list_checkpoints
from diffusion_core.runs.run_directory import exclusive_directory, write_json
from diffusion_core.runtime import signals
from experiments.config.convert import plain
from experiments.studies import energy
from experiments.studies.plan import ENTRIES, Job, Plan, make_plan, make_study, merge
from hydra_plugins.duet_launcher.launcher import backend_python

__all__ = ["State", "check", "launch", "perform", "plan_of", "runs_of", "state", "task"]

_composing = threading.Lock()  # Hydra composes one configuration at a time


@dataclass(frozen=True)
class State:
    """How a job stands: "done", "failed", "unfinished" or "missing", and what its marker says."""

    word: str
    facts: dict[str, Any]


def state(job: Job, runs: Path) -> State:
    """How a job stands, by its directory alone."""
    directory = runs / job.name
    if not directory.is_dir():
        return State("missing", {})
    for word, name in (("done", "done.json"), ("failed", "failed.json")):
        if (directory / name).is_file():
            facts = read_json(directory / name)
            fits = facts.get("identity") == job.identity and (
                word == "failed" or (directory / ENTRIES[job.entry].result).is_file()
            )
            if fits:
                return State(word, facts)
    return State("unfinished", {})


def plan_of(cfg: DictConfig) -> Plan:
    """The plan of a configuration of `experiments.study`, whose `study` part is a study file."""
    return make_plan(make_study(plain(cfg.study)))


def runs_of(cfg: DictConfig) -> Path:
    """Where the directories of its jobs lie."""
    return Path(cfg.out).absolute() / "runs"


def task(cfg: DictConfig) -> int:
    """Perform the job that a configuration names, and say how it ended; gives its exit code.

    Raises:
        DuetError: the plan has no such job, or a job before it is not done.
    """
    plan, runs = plan_of(cfg), runs_of(cfg)
    jobs = {job.name: job for job in plan.jobs}
    if cfg.job not in jobs:
        raise one_of("job", cfg.job, jobs)
    job = jobs[cfg.job]
    for before in job.before:
        if state(before, runs).word != "done":
            raise DuetError(f"job: {job.name} goes on from {before.name}, which is not done; run that one first")
    arms = dict.fromkeys(run.arm.name for run in plan.runs if job in run.jobs)
    print(f"  start   {job.name}  ({'; '.join(arms)})", flush=True)
    code = perform(job, runs)
    facts = state(job, runs).facts
    if code:
        print(f"  FAILED  {job.name}  exit code {code}: {facts['said']}", flush=True)
    else:
        print(f"  done    {job.name}  {facts['seconds']:.0f} s", flush=True)
    return code


def check(plan: Plan) -> None:
    """Compose the configuration of commands with every level at least once, so that a mistake is found before any runs.

    Raises:
        DuetError: a key, a value or a file of the configuration does not exist, or the Python of a backend; it names
            the stage.
    """
    known, first = set(), plan.runs[0].arm.levels
    for run in plan.runs:
        apart = sum(own != other for own, other in zip(run.arm.levels, first, strict=True))
        for job in run.jobs if apart <= 1 and run.seed == plan.runs[0].seed else ():
            if job.identity not in known:
                known.add(job.identity)
                _backends[_of_backend(job)] = _composed(job.stage, job.entry, job.overrides).backend
                command(job, Path())


@functools.cache  # composing takes its time, and what is asked of it repeats
def _composed(stage: str, entry: str, overrides: tuple[str, ...]) -> DictConfig:
    try:
        with _composing:
            return compose(entry, list(overrides))
    except Exception as error:
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise DuetError(f"stage {stage!r}, told {' '.join(overrides)}: {line}") from error


_backends: dict[tuple[str, ...], DictConfig] = {}


def _of_backend(job: Job) -> tuple[str, ...]:
    return tuple(o for o in job.overrides if o.startswith(("backend=", "backend.")))


def command(job: Job, runs: Path) -> list[str]:
    """The command of a job, for the Python that owns its backend."""
    told = _of_backend(job)
    if told not in _backends:
        _backends[told] = _composed(job.stage, job.entry, told).backend
    python = backend_python(_backends[told], os.environ)
    return [str(python), "-m", f"experiments.{job.entry}", *job.arguments(runs)]


def perform(job: Job, runs: Path) -> int:
    """Run a job to its end, unless it is done; gives its exit code.

    Raises:
        DuetError: it cannot start, or another process runs it.
    """
    runs.mkdir(parents=True, exist_ok=True)
    with lock_directory(runs, f".{job.name}.lock"):
        return 0 if state(job, runs).word == "done" else _perform(job, runs)


def _perform(job: Job, runs: Path) -> int:
    directory = runs / job.name
    words, resumed = command(job, runs), False
    if directory.exists():
        with exclusive_directory(directory):  # which a training may hold that outlived its study
            if job.entry == "train" and list_checkpoints(directory / "checkpoints"):
                words, resumed = list(merge(words, ["resume=latest"])), True
            else:
                shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("done.json", "failed.json"):
        (directory / name).unlink(missing_ok=True)
    facts: dict[str, Any] = {
        "identity": job.identity,
        "stage": job.stage,
        "command": ["python3", "-m", "duet", job.entry, *words[3:]],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "resumed": resumed,
    }
    before, began = energy.read_counters(), time.perf_counter()
    with open(directory / "log.txt", "ab") as log:
        code = signals.run_command(words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    facts |= {"seconds": time.perf_counter() - began, "joules": energy.spent(before, energy.read_counters())}
    if code:
        write_json(directory / "failed.json", facts | {"exit_code": code, "said": last_line(directory / "log.txt")})
        return code
    write_json(directory / "done.json", facts)
    return 0


def last_line(log: Path) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "nothing was printed"


def launch(plan: Plan, runs: Path, overrides: Sequence[str]) -> None:
    """Run what is not done, stage by stage, with the launcher of the configuration.

    A launcher may run jobs elsewhere, so how they ended is read from their directories.

    Args:
        plan: what there is to do.
        runs: where the jobs' directories lie.
        overrides: those of the study's own command.
    """
    loader = GlobalHydra.instance().config_loader()
    config = loader.load_configuration("study", list(overrides), RunMode.MULTIRUN, from_shell=False)
    context = HydraContext(config_loader=loader, callbacks=Callbacks(config))
    given, number = list(config.hydra.overrides.task), 0
    for wave in plan.waves:
        ready = [
            job
            for job in wave
            if state(job, runs).word != "done" and all(state(b, runs).word == "done" for b in job.before)
        ]
        if not ready:
            continue
        launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)
        returns = launcher.launch([[*given, f"job={job.name}"] for job in ready], number)
        number += len(ready)
        for job, result in zip(ready, returns, strict=True):
            if result.status is JobStatus.FAILED and state(job, runs).word not in ("done", "failed"):
                print(f"  FAILED  {job.name}  it could not start: {_raised(result)}", flush=True)


def _raised(result: JobReturn) -> str:
    try:
        return str(result.return_value)
    except Exception as error:
        return str(error)
