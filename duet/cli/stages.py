"""Stages of `duet test` and `duet demo`: tables of commands, two of which run at a time.

A stage has jobs and a template. A job is a backend and a part of the work: a precision or a selection of tests. The
template is the command of each job, as one types it after `duet`, with

    {b} the backend      {o} the next backend in the list, for two the other one
    {p} the part, which may be several words      {t} the number of threads      {x} the folder of results
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping
from subprocess import DEVNULL, PIPE, STDOUT
from typing import NamedTuple

from duet.cli.experiments import command_variables, experiments
from duet.cli.terminal import say
from duet.layout import working_folder

__all__ = ["Job", "Result", "Stage", "ladder", "make_jobs", "run_jobs", "split_template"]


class Stage(NamedTuple):
    """A title for people, the jobs, each a backend and a part, and the template of their commands.

    `after` are the titles of stages whose jobs must have ended, however they ended, before a job of this stage starts.
    """

    title: str
    jobs: tuple[tuple[str, str], ...]
    template: str
    after: tuple[str, ...] = ()


class Job(NamedTuple):
    """A command of a stage: as a user types it, as it is run, and with which environment variables."""

    stage: Stage
    backend: str
    typed: str
    command: list[str]
    env: Mapping[str, str] | None


class Result(NamedTuple):
    """The exit code of a stage, and the seconds from the start of its first job to the end of its last."""

    code: int
    seconds: float


def ladder(names: list[str]) -> tuple[tuple[str, str], ...]:
    """Return the jobs of the parity ladder; the slower ones come first, so that none is left over at the end."""
    return tuple((name, precision) for name in reversed(names) for precision in ("float64", "float32"))


def make_jobs(
    pythons: dict[str, str], stages: Iterable[Stage], folder: str, tests: Iterable[str] = (), **variables: str
) -> list[Job]:
    """Return the jobs of stages.

    Args:
        pythons: the interpreter of each backend.
        stages: the stages, in the order in which their jobs should start.
        folder: the folder of results.
        tests: arguments that every call of pytest gets.
        variables: environment variables that every command gets.
    """
    names, jobs = list(pythons), []
    for stage in stages:
        for backend, part in stage.jobs:
            other = names[(names.index(backend) + 1) % len(names)]
            values = {"x": folder, "b": backend, "o": other, "p": part, "t": str(threads_per_job())}
            name, *args = split_template(stage.template, values)
            args += tests if name == "pytest" else ()
            is_experiment = name in experiments()
            typed = ["python3", "-m", "duet", *([name] if is_experiment else ["run", backend, "--", "-m", name]), *args]
            command = [pythons[backend], "-m", experiments()[name].module if is_experiment else name, *args]
            env = dict(command_variables() if is_experiment else os.environ, DUET_BACKEND=backend, **variables)
            jobs.append(Job(stage, backend, " ".join(map(shlex.quote, typed)), command, env))
    return jobs


def split_template(template: str, values: dict[str, str]) -> list[str]:
    """Fill in a template and split it into arguments; a folder is escaped as Hydra's grammar requires."""
    template = template.replace("{p}", values.get("p", ""))
    escaped = {**values, "x": re.sub(r"([\\()\[\]{}:=, ])", r"\\\1", values["x"])}
    return [re.sub(r"{(\w)}", lambda found: escaped[found.group(1)], word) for word in shlex.split(template)]


def threads_per_job() -> int:
    """Return half of the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // 2)


def run_jobs(jobs: list[Job]) -> dict[str, Result]:
    """Run jobs, two at a time on half of the cores each, and return the result of each stage by its title.

    A job that is alone runs in the foreground and on all cores. Otherwise each line of output follows the name of the
    job's backend. The code of a stage is the highest exit code of its jobs; the 5 of a pytest that selects no test
    counts as the lowest failure.
    """
    if len(jobs) == 1:
        (job,), started = jobs, time.monotonic()
        say(f"{job.stage.title}: {job.typed}")
        code = shell_code(subprocess.run(job.command, check=False, cwd=working_folder(), env=job.env).returncode)
        return {job.stage.title: Result(code, time.monotonic() - started)}
    queue = _Queue(jobs)
    workers = [threading.Thread(target=queue.work, daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            while worker.is_alive():
                worker.join(0.2)  # a join without a time limit would not notice Ctrl-C on every system
    except BaseException:
        queue.stop()
        raise
    return queue.results()


class _Queue:
    """Jobs that wait, run and have ended."""

    def __init__(self, jobs: list[Job]):
        self.waiting, self.running, self.ended = list(jobs), [], []
        self.processes: list[subprocess.Popen] = []
        self.titles = list(dict.fromkeys(job.stage.title for job in jobs))
        self.width = max(len(job.backend) for job in jobs)
        self.change = threading.Condition()

    def work(self) -> None:
        """Run one job after another until none waits."""
        while True:
            job = self._take()
            if job is None:
                return
            started = time.monotonic()
            try:
                code = self._run(job)
            except OSError as error:  # it cannot start
                say(f"{job.stage.title}: {error}")
                code = 1
            with self.change:
                self.running.remove(job)
                self.ended.append((job, code, started, time.monotonic()))
                self.change.notify_all()

    def _take(self) -> Job | None:
        """Return the first job that may start, as soon as there is one; None when no job waits."""
        with self.change:
            while self.waiting:
                unfinished = {job.stage.title for job in [*self.waiting, *self.running]}
                for job in self.waiting:
                    if not unfinished.intersection(job.stage.after):
                        self.waiting.remove(job)
                        self.running.append(job)
                        return job
                self.change.wait()
            return None

    def _run(self, job: Job) -> int:
        say(f"{job.stage.title}: {job.typed}")
        env = dict(os.environ if job.env is None else job.env)
        env.setdefault("OMP_NUM_THREADS", str(threads_per_job()))  # for NumPy too, which takes all cores otherwise
        options = {"stdin": DEVNULL, "stdout": PIPE, "stderr": STDOUT, "text": True, "errors": "replace"}
        with subprocess.Popen(job.command, cwd=working_folder(), env=env, **options) as process:
            self.processes.append(process)
            for line in process.stdout:
                print(f"{job.backend:>{self.width}} | {line}", end="", flush=True)
        return shell_code(process.returncode)

    def stop(self) -> None:
        """Start no more jobs, and end those that run."""
        with self.change:
            self.waiting.clear()
            self.change.notify_all()
        for process in self.processes:
            process.terminate()

    def results(self) -> dict[str, Result]:
        """Return the result of each stage by its title."""
        results = {}
        for title in self.titles:
            rows = [row for row in self.ended if row[0].stage.title == title]
            code = max((row[1] for row in rows), key=lambda code: (code != 5, code) if code else (False, 0))
            results[title] = Result(code, max(row[3] for row in rows) - min(row[2] for row in rows))
        return results


def shell_code(code: int) -> int:
    """Return an exit code as a shell does: 128 plus the signal for a process that a signal ended."""
    return code if code >= 0 else 128 - code
