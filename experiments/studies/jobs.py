"""Running the jobs of a plan: each once, in the environment of its backend; files record their state.

A job's directory holds, in addition to what the command itself writes::

    log.txt         the output of the command
    done.json       its identity, command, time and energy; written last, so a job is done if this file matches it
    failed.json     the same with the exit code, if the command failed; the next call runs the job again

An interrupted training resumes from its last checkpoint, which does not change its numbers. Any other interrupted job
starts again from the beginning.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.files.lock import lock_directory
from diffusion_core.files.safe_read import read_json
from diffusion_core.runs.checkpoint import list_checkpoints
from diffusion_core.runs.run_directory import exclusive_directory, write_json
from diffusion_core.runtime import signals
from diffusion_core.runtime.heartbeat import heartbeat
from experiments.config.launch import JobLauncher, compose_group
from experiments.studies import energy
from experiments.studies.plan import COMMANDS, Job, Plan, make_plan, make_study, merge
from hydra_plugins.duet_launcher.launcher import backend_python

__all__ = ["State", "check", "job_command", "job_state", "launch", "perform", "perform_named", "runs_directory"]


@dataclass(frozen=True)
class State:
    """The state of a job: "done", "failed", "unfinished" or "missing", and the content of its marker file."""

    status: str
    facts: dict[str, Any]


def job_state(job: Job, runs: Path) -> State:
    """Return the state of a job, read from its directory alone."""
    directory = runs / job.name
    if not directory.is_dir():
        return State("missing", {})
    for status, name in (("done", "done.json"), ("failed", "failed.json")):
        if (directory / name).is_file():
            facts = read_json(directory / name)
            complete = status == "failed" or (directory / COMMANDS[job.command].result).is_file()
            if facts.get("identity") == job.identity and complete:
                return State(status, facts)
    return State("unfinished", {})


def runs_directory(out: str | Path) -> Path:
    """Return the directory that holds the directories of all jobs of a study."""
    return Path(out).absolute() / "runs"


def perform_named(options: Mapping[str, Any]) -> int:
    """Perform one job, print how it ended, and return its exit code. A launcher may call this on another machine.

    Args:
        options: the configuration of `experiments.study` as plain data; `job` names the job.

    Raises:
        DuetError: the plan has no such job, or a job before it is not done.
    """
    plan, runs = make_plan(make_study(options["study"])), runs_directory(options["out"])
    jobs = {job.name: job for job in plan.jobs}
    check_choice("job", options["job"], jobs)
    job = jobs[options["job"]]
    for before in job.before:
        if job_state(before, runs).status != "done":
            raise DuetError(f"job: {job.name} continues {before.name}, which is not done; run that job first")
    arms = dict.fromkeys(run.arm.name for run in plan.runs if job in run.jobs)
    print(f"  start   {job.name}  ({'; '.join(arms)})", flush=True)
    with heartbeat(f"  running {job.name}", says_end=False):
        code = perform(job, runs)
    facts = job_state(job, runs).facts
    if code:
        print(f"  FAILED  {job.name}  exit code {code}: {facts['said']}", flush=True)
    else:
        print(f"  done    {job.name}  {timedelta(seconds=round(facts['seconds']))}", flush=True)
    return code


def check(plan: Plan) -> None:
    """Compose configurations with every setting at least once, so that a mistake is found before any job runs.

    Raises:
        DuetError: a key, a value or a file of the configuration does not exist, or the Python of a backend; the
            message names the stage.
    """
    known, first = set(), plan.runs[0].arm.settings
    for run in plan.runs:
        apart = sum(own != other for own, other in zip(run.arm.settings, first, strict=True))
        for job in run.jobs if apart <= 1 and run.seed == plan.runs[0].seed else ():
            if job.identity not in known:
                known.add(job.identity)
                _compose_backend(job.stage, job.command, job.overrides)
                job_command(job, Path())


@functools.cache  # composing is slow, and many jobs have the same backend
def _compose_backend(stage: str, command: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    try:
        return compose_group(command, overrides, "backend")
    except DuetError as error:
        raise DuetError(f"stage {stage!r} with the overrides {' '.join(overrides)}: {error}") from error


def job_command(job: Job, runs: Path) -> list[str]:
    """Return the command line of a job, for the Python that owns its backend."""
    of_backend = tuple(o for o in job.overrides if o.startswith(("backend=", "backend.")))
    python = backend_python(_compose_backend(job.stage, job.command, of_backend), os.environ)
    return [str(python), "-m", f"experiments.{job.command}", *job.arguments(runs)]


def perform(job: Job, runs: Path) -> int:
    """Run a job to its end, unless it is done; return its exit code.

    Raises:
        DuetError: the job cannot start, or another process runs it.
    """
    runs.mkdir(parents=True, exist_ok=True)
    with lock_directory(runs, f".{job.name}.lock"):
        return 0 if job_state(job, runs).status == "done" else _perform(job, runs)


def _perform(job: Job, runs: Path) -> int:
    directory = runs / job.name
    command, resumed = job_command(job, runs), False
    if directory.exists():
        with exclusive_directory(directory):  # a training that outlived its study may still hold it
            if job.command == "train" and list_checkpoints(directory / "checkpoints"):
                command, resumed = list(merge(command, ["resume=latest"])), True
            else:
                shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("done.json", "failed.json"):
        (directory / name).unlink(missing_ok=True)
    facts: dict[str, Any] = {
        "identity": job.identity,
        "stage": job.stage,
        "command": ["python3", "-m", "duet", job.command, *command[3:]],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "resumed": resumed,
    }
    before, began = energy.read_counters(), time.perf_counter()
    with open(directory / "log.txt", "ab") as log:
        code = signals.run_command(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    facts |= {"seconds": time.perf_counter() - began, "joules": energy.spent(before, energy.read_counters())}
    if code:
        write_json(directory / "failed.json", facts | {"exit_code": code, "said": last_line(directory / "log.txt")})
        return code
    write_json(directory / "done.json", facts)
    return 0


def last_line(log: Path) -> str:
    """Return the last line that is not blank."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "nothing was printed"


def launch(plan: Plan, runs: Path) -> None:
    """Run the jobs that are not done, wave by wave, with the launcher that the running command selects.

    A launcher may run jobs elsewhere, so their outcome is read from their directories.
    """
    launcher = JobLauncher("study", perform_named)
    for wave in plan.waves:
        ready = [
            job
            for job in wave
            if job_state(job, runs).status != "done"
            and all(job_state(before, runs).status == "done" for before in job.before)
        ]
        reasons = launcher.launch([[f"job={job.name}"] for job in ready]) if ready else []
        for job, reason in zip(ready, reasons, strict=True):
            if reason is not None and job_state(job, runs).status not in ("done", "failed"):
                print(f"  FAILED  {job.name}  it could not start: {reason}", flush=True)
