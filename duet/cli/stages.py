"""Stages of `duet test` and `duet demo`: tables of commands, two of which run at a time.

A stage has jobs and a template. A job is a backend and a part of the work: a precision or a selection of tests. The
template is the command of each job, as one types it after `duet`, with

    {b} the backend      {o} the next backend in the list, for two the other one      {p} the part
    {t} the number of threads      {x} the folder of results
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from subprocess import DEVNULL, PIPE, STDOUT
from typing import NamedTuple

from duet.cli.backends import ROOT
from duet.cli.experiments import experiments
from duet.cli.terminal import say

__all__ = ["Stage", "ladder", "run_stage", "side_by_side", "split_template"]


class Stage(NamedTuple):
    """A title for people, the jobs, each a backend and a part, and the template of their commands."""

    title: str
    jobs: tuple[tuple[str, str], ...]
    template: str


def ladder(names: list[str]) -> tuple[tuple[str, str], ...]:
    """Return the jobs of the parity ladder; the slower ones come first, so that none is left over at the end."""
    return tuple((name, precision) for name in reversed(names) for precision in ("float64", "float32"))


def run_stage(pythons: dict[str, str], stage: Stage, folder: str, *more: str, **variables: str) -> int:
    """Run a stage, two jobs at a time on half of the cores each, and return its exit code.

    Args:
        pythons: the interpreter of each backend.
        stage: the stage.
        folder: the folder of results.
        more: arguments that every command gets.
        variables: environment variables that every command gets.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads, names = str(max(1, cores // 2)), list(pythons)
    jobs = []
    for backend, part in stage.jobs:
        other = names[(names.index(backend) + 1) % len(names)]
        values = {"x": folder, "b": backend, "o": other, "p": part, "t": threads}
        name, *args = [*split_template(stage.template, values), *more]
        say(" ".join(map(shlex.quote, typed(backend, name, args))))
        command = [pythons[backend], "-m", module_of(name), *args]
        jobs.append((backend, command, dict(os.environ, DUET_BACKEND=backend, **variables)))
    if len(jobs) == 1:
        return shell_code(subprocess.run(jobs[0][1], check=False, cwd=ROOT, env=jobs[0][2]).returncode)
    for *_, env in jobs:
        env.setdefault("OMP_NUM_THREADS", threads)  # for NumPy too, which takes all cores otherwise
    return side_by_side(jobs)


def module_of(name: str) -> str:
    """Return the module of a command in a template: of an experiment, or of a tool such as pytest."""
    return experiments()[name].module if name in experiments() else name


def typed(backend: str, name: str, args: list[str]) -> list[str]:
    """Return a command as one types it in a shell."""
    own = [name] if name in experiments() else ["run", backend, "--", "-m", name]
    return ["python3", "-m", "duet", *own, *args]


def split_template(template: str, values: dict[str, str]) -> list[str]:
    """Fill in a template and split it into arguments; a folder is escaped as Hydra's grammar requires."""
    escaped = {**values, "x": re.sub(r"([\\()\[\]{}:=, ])", r"\\\1", values["x"])}
    return [re.sub(r"{(\w)}", lambda found: escaped[found.group(1)], word) for word in shlex.split(template)]


def side_by_side(jobs: list[tuple[str, list[str], dict[str, str]]]) -> int:
    """Run (backend, command, environment) two at a time, and print each line of output after its backend's name.

    Returns the highest exit code; the 5 of a pytest that selects no test counts as the lowest failure.
    """
    width, running = max(len(backend) for backend, *_ in jobs), []

    def run(job: tuple[str, list[str], dict[str, str]]) -> int:
        backend, command, env = job
        options = {"stdin": DEVNULL, "stdout": PIPE, "stderr": STDOUT, "text": True, "errors": "replace"}
        with subprocess.Popen(command, cwd=ROOT, env=env, **options) as process:
            running.append(process)
            for line in process.stdout:
                print(f"{backend:>{width}} | {line}", end="", flush=True)
        return shell_code(process.returncode)

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(run, job) for job in jobs]
        try:
            codes = [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            for process in running:
                process.terminate()
            raise
    return max(codes, key=lambda code: (code != 5, code) if code else (False, 0))


def shell_code(code: int) -> int:
    """Return an exit code as a shell does: 128 plus the signal for a process that a signal ended."""
    return code if code >= 0 else 128 - code
