"""Measure training and sampling of each backend on the same network, in interleaved rounds.

    python -m experiments.bench out=outputs/bench
    python -m experiments.bench out=outputs/bench model=ddpm_cifar10 batch=8 compile=[false,true] repeats=9

Every contestant is a process of its own, in the environment that owns its backend, and waits while another works.
A figure is the median over rounds, and a ratio the median of the ratios within a round: a machine that slows down
slows all. It loads no framework itself.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from diffusion_core.backend import Settings
from diffusion_core.errors import DuetError, one_of
from diffusion_core.problem import Problem
from diffusion_core.run import environment, write_json
from diffusion_core.weights import count
from experiments.common import problem_of
from experiments.entry import CONFIGS, entry
from hydra_plugins.duet_launcher.launcher import backend_python

WORK = ("train", "sample")


@dataclass
class Contestant:
    """A backend in a mode, as a waiting process, with the rounds that it did."""

    name: str
    process: subprocess.Popen
    line: str = ""
    rounds: dict[str, list[float]] = field(default_factory=dict)
    warmup: dict[str, float] = field(default_factory=dict)
    memory: float = 0.0

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Send one line and read the answer."""
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise DuetError(f"bench: {self.name} stopped with exit code {self.process.wait()}; its output is above")
        told = json.loads(answer)
        if "error" in told:
            raise DuetError(f"bench: {self.name}: {told['error']}")
        return told

    def work(self, what: str) -> float:
        """One round; images per second."""
        answer = self.ask({"work": what})
        self.memory = max(self.memory, answer["peak_memory_mib"])
        return answer["images"] / answer["seconds"]


@entry("bench")
def main(cfg: DictConfig) -> None:
    """Start the contestants, interleave their rounds, write bench.json and print the table."""
    for what in cfg.work:
        if what not in WORK:
            raise one_of("work", what, WORK)
    for name in ("repeats", "batch", "steps", "images"):
        if cfg[name] < 1:
            raise DuetError(f"{name}: {cfg[name]} was given; it must be at least 1")
    problem = problem_of(cfg)
    names = _backends(cfg)
    _settings(cfg, False)  # refused here rather than in every contestant
    contestants = [_start(cfg, problem, name, mode) for name in names for mode in cfg.compile]
    try:
        for what in cfg.work:
            for contestant in contestants:
                answer = contestant.ask({"work": what})
                contestant.warmup[what] = answer["seconds"]
            for _ in range(cfg.repeats):
                for contestant in contestants:
                    contestant.rounds.setdefault(what, []).append(contestant.work(what))
    finally:
        for contestant in contestants:
            contestant.process.stdin.close()
            contestant.process.wait()
    rows = [_row(contestant, contestants[0], what) for what in cfg.work for contestant in contestants]
    facts = environment() | {"batch": cfg.batch, "repeats": cfg.repeats, "parameters": count(problem.program)}
    facts |= {"problem": problem.to_dict(), "precision": cfg.precision}
    write_json(Path(cfg.out) / "bench.json", {"environment": facts, "rows": rows})
    _print(rows, cfg, count(problem.program))


def _backends(cfg: DictConfig) -> list[str]:
    known = sorted((path.stem for path in (CONFIGS / "backend").glob("*.yaml")), reverse=True)
    for name in cfg.backends:
        if name not in known:
            raise one_of("backends", name, known)
    return list(cfg.backends) or known


def _start(cfg: DictConfig, problem: Problem, name: str, mode: bool) -> Contestant:
    backend = OmegaConf.load(CONFIGS / "backend" / f"{name}.yaml")
    python = backend_python(backend, os.environ, CONFIGS.parent)
    process = subprocess.Popen(
        [str(python), "-m", "experiments.bench_worker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=CONFIGS.parent,
    )  # fmt: skip
    contestant = Contestant(f"{name}, compiled" if mode else name, process)
    task = {"backend": name, "settings": asdict(_settings(cfg, mode)), "problem": problem.to_dict()}
    contestant.line = contestant.ask(task | {"batch": cfg.batch, "steps": cfg.steps, "images": cfg.images})["line"]
    print(contestant.line, flush=True)
    return contestant


def _settings(cfg: DictConfig, mode: bool) -> Settings:
    return Settings(cfg.device, cfg.precision, mode, cfg.threads, cfg.deterministic)


def _row(contestant: Contestant, first: Contestant, what: str) -> dict[str, Any]:
    speeds = contestant.rounds[what]
    ratios = [mine / other for mine, other in zip(speeds, first.rounds[what], strict=True)]
    return {
        "work": what,
        "contestant": contestant.name,
        "images_per_second": median(speeds),
        "slowest": min(speeds),
        "fastest": max(speeds),
        "ratio_to_first": median(ratios),
        "ratio_lowest": min(ratios),
        "ratio_highest": max(ratios),
        "first_round_seconds": contestant.warmup[what],
        "peak_memory_mib": contestant.memory,
        "on": contestant.line,
    }


def _print(rows: list[dict[str, Any]], cfg: DictConfig, parameters: int) -> None:
    title = f"{parameters:,} parameters, batch {cfg.batch}, {cfg.precision}, median of {cfg.repeats} interleaved rounds"
    table = Table(title=title)
    for name in ("work", "contestant", "images/s", "range", "ratio to first", "first round, s", "peak memory, MiB"):
        table.add_column(name, justify="left" if name in ("work", "contestant") else "right")
    for row in rows:
        table.add_row(
            {"train": "training step", "sample": "DDIM-50"}[row["work"]],
            row["contestant"],
            f"{row['images_per_second']:,.1f}",
            f"{row['slowest']:,.1f} .. {row['fastest']:,.1f}",
            f"{row['ratio_to_first']:.2f} [{row['ratio_lowest']:.2f} .. {row['ratio_highest']:.2f}]",
            f"{row['first_round_seconds']:.1f}",
            f"{row['peak_memory_mib']:,.0f}",
        )
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
