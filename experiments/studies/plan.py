"""The plan of a study: its arms, its runs, and the jobs that make them.

A study has *factors* with *settings*. An arm is one setting of each factor, and a run is an arm with a seed. Every run
goes through the same *stages*, each a command such as `experiments.train`. A stage continues the one before: a training
resumes its checkpoint, sampling draws from it. The overrides of a stage, where later ones win, are ::

    those of the stage, those common to all, those of the arm's settings, the seed

A stage with its overrides and the stages before it is a job. Its identity is the hash of exactly that. So two runs that
begin alike share their first jobs, and a job that an earlier call completed is not repeated.

An arm is compared with the arm that has the settings of `baseline` and equals it in every other factor. With one factor
that is one arm for all; with solvers, numbers of steps and the baseline ``{solver: DDIM}`` it is DDIM with the same
number of steps.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diffusion_core.common.errors import DuetError, check_choice, one_of
from diffusion_core.statistics.paired import SCALES
from diffusion_core.statistics.sequential import SPENDING

__all__ = ["COMMANDS", "Arm", "Command", "Job", "Metric", "Plan", "Run", "Study", "make_plan", "make_study", "merge"]

BETTER = ("higher", "lower")


@dataclass(frozen=True)
class Command:
    """How a command takes part in a study.

    Args:
        seed: overrides that set its seed.
        out: the key of its output directory.
        result: the last file that it writes.
        samples: the folder of its samples, relative to its directory; None if it draws none.
    """

    seed: tuple[str, ...]
    out: str
    result: str
    samples: str | None = None


COMMANDS: Mapping[str, Command] = {
    "train": Command(("seed={}", "sample.seed={}"), "hydra.run.dir", "result.json", "samples"),
    "sample": Command(("sample.seed={}",), "out", "samples.npz", ""),
    "evaluate": Command(("seed={}",), "out", "evaluation.json"),
}


@dataclass(frozen=True)
class Metric:
    """A number that is compared between arms.

    Args:
        name: its key.
        title: its name in the report.
        read: where the number is found; see `experiments.studies.results`.
        better: "higher" or "lower".
        scale: "difference", or "ratio" for a positive number whose relative change matters.
        margin: the largest difference that would not matter, stated before the study is run; on the scale "ratio" a
            number above 1, as 1.02 for two percent either way. None if equivalence is not tested.
        unit: its unit in the report.
    """

    name: str
    title: str
    read: str
    better: str = "lower"
    scale: str = "difference"
    margin: float | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        where = f"study.metrics.{self.name}"
        check_choice(f"{where}.better", self.better, BETTER)
        check_choice(f"{where}.scale", self.scale, SCALES)
        least = 1.0 if self.scale == "ratio" else 0.0
        if self.margin is not None and not (least < self.margin < math.inf):
            raise DuetError(
                f"{where}.margin: {self.margin} was given; on the scale {self.scale} it must be above {least:g}"
            )

    @property
    def bound(self) -> float | None:
        """The margin in the unit of the differences: its logarithm on the scale "ratio"."""
        return math.log(self.margin) if self.margin and self.scale == "ratio" else self.margin


@dataclass(frozen=True)
class Study:
    """A checked study file.

    Args:
        name: the name of the study and of its directory.
        title: one line, best the question itself.
        question: what is asked, and how the margins were chosen.
        seeds: distinct seeds; every arm is run with each.
        stages: (name, command, overrides) in order.
        factors: settings by factor; a setting is its overrides by stage.
        baseline: the settings that others are compared with; see the module.
        metrics: the numbers that are compared, in order.
        alpha: significance level of the tests, of all looks together.
        looks: the planned numbers of seeds at which the report may be made, ascending; empty for a single look.
        spending: how the level is spent over the looks, a name of `statistics.sequential.SPENDING`.
    """

    name: str
    title: str
    question: str
    seeds: tuple[int, ...]
    stages: tuple[tuple[str, str, tuple[str, ...]], ...]
    factors: Mapping[str, Mapping[str, Mapping[str, tuple[str, ...]]]]
    baseline: Mapping[str, str]
    metrics: tuple[Metric, ...]
    alpha: float = 0.05
    looks: tuple[int, ...] = ()
    spending: str = "pocock"


@dataclass(frozen=True)
class Arm:
    """One setting of each factor, as (factor, setting) in the order of the factors."""

    settings: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """Its name in the report."""
        return ", ".join(setting for _, setting in self.settings)


@dataclass(frozen=True)
class Job:
    """A command of a run.

    Args:
        stage: the name of its stage.
        command: a key of `COMMANDS`.
        overrides: its overrides, without directories.
        before: the jobs of its run before it, in order.
        seed: the seed of its run.
    """

    stage: str
    command: str
    overrides: tuple[str, ...]
    before: tuple[Job, ...]
    seed: int

    @cached_property
    def identity(self) -> str:
        """The hash of everything that decides its result."""
        chain = [[job.command, sorted(job.overrides)] for job in (*self.before, self)]
        return hashlib.sha256(json.dumps(chain).encode()).hexdigest()

    @property
    def name(self) -> str:
        """The name of its directory: readable, and distinct for distinct identities."""
        return f"{re.sub(r'[^a-z0-9]+', '-', self.stage.lower()).strip('-')}-seed{self.seed}-{self.identity[:10]}"

    def arguments(self, runs: Path) -> list[str]:
        """Return its overrides together with its directories, all of which lie in `runs`."""
        paths = {COMMANDS[self.command].out: runs / self.name}
        trained = [job for job in self.before if job.command == "train"]
        drawn = [job for job in self.before if COMMANDS[job.command].samples is not None]
        if self.command == "train" and trained:
            paths["resume"] = runs / trained[-1].name
        if self.command in ("sample", "evaluate") and trained:
            paths["checkpoint"] = runs / trained[-1].name
        if self.command == "evaluate" and drawn:
            paths["samples"] = runs / drawn[-1].name / str(COMMANDS[drawn[-1].command].samples) / "samples.npz"
        return [*self.overrides, *(f"{key}={_quoted(path)}" for key, path in paths.items())]


@dataclass(frozen=True)
class Run:
    """An arm with a seed, and its jobs, one per stage."""

    arm: Arm
    seed: int
    jobs: tuple[Job, ...]


@dataclass(frozen=True)
class Plan:
    """Every run of a study, arm by arm and seed by seed."""

    study: Study
    runs: tuple[Run, ...]

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        """The arms in the order of their settings."""
        return tuple(dict.fromkeys(run.arm for run in self.runs))

    @cached_property
    def waves(self) -> tuple[tuple[Job, ...], ...]:
        """The distinct jobs by stage; jobs of one wave do not depend on each other."""
        stages = range(len(self.study.stages))
        return tuple(tuple({run.jobs[k].identity: run.jobs[k] for run in self.runs}.values()) for k in stages)

    @property
    def jobs(self) -> tuple[Job, ...]:
        """All distinct jobs, each after the jobs that it depends on."""
        return tuple(itertools.chain.from_iterable(self.waves))

    def baseline_of(self, arm: Arm) -> Arm:
        """Return the arm that this one is compared with; a baseline is its own."""
        return Arm(tuple((factor, self.study.baseline.get(factor, setting)) for factor, setting in arm.settings))

    def comparisons(self) -> list[tuple[Arm, Arm]]:
        """Return (arm, its baseline) for every arm that is not a baseline."""
        return [(arm, self.baseline_of(arm)) for arm in self.arms if self.baseline_of(arm) != arm]


def merge(*parts: Sequence[str]) -> tuple[str, ...]:
    """Join lists of overrides; of two that set the same key the later one stays, at its own position."""
    by_key: dict[str, str] = {}
    for override in itertools.chain.from_iterable(parts):
        key = _key(override)
        by_key.pop(key, None)
        by_key[key] = override
    return tuple(by_key.values())


def _key(override: str) -> str:
    return override.split("=", 1)[0].lstrip("+~")


def _quoted(path: Path) -> str:
    """Return a path as Hydra's grammar reads it."""
    text = path.as_posix().replace("'", r"\'")
    return f"'{text}'"


def make_study(options: Mapping[str, Any]) -> Study:
    """Check a study file.

    Args:
        options: the content of `configs/study/*.yaml` as plain data.

    Raises:
        DuetError: a name is unknown, a list is empty, or something is stated twice.
    """
    for name in ("name", "seeds", "stages", "factors", "baseline", "metrics"):
        if not options.get(name):
            raise DuetError(f"study.{name}: nothing was given; name a study, as in study=framework_equivalence")
    seeds = options["seeds"]
    if len(set(seeds)) != len(seeds):
        raise DuetError(f"study.seeds: {list(seeds)} were given; they must be distinct")
    stages = _stages(options["stages"], _overrides("study.common", options.get("common", [])))
    factors = _factors(options["factors"], [name for name, *_ in stages])
    for factor, setting in options["baseline"].items():
        check_choice("study.baseline", factor, factors)
        if str(setting) not in factors[factor]:
            raise one_of(f"study.baseline.{factor}", setting, factors[factor])
    if not 0 < options.get("alpha", 0.05) < 0.5:
        raise DuetError(f"study.alpha: {options['alpha']} was given; it must lie between 0 and 0.5")
    looks = options.get("looks") or []
    if any(not isinstance(n, int) or n < 2 for n in looks) or sorted(set(looks)) != list(looks):
        raise DuetError(
            f"study.looks: {looks} was given; it must be ascending numbers of seeds, at least 2 each, as in [5, 10, 20]"
        )
    if looks and len(seeds) > looks[-1]:
        raise DuetError(
            f"study.looks: {looks} was given, but there are {len(seeds)} seeds; the last look must be at the largest "
            f"number of seeds, and must be planned before the first look"
        )
    if (spending := options.get("spending", "pocock")) not in SPENDING:
        raise one_of("study.spending", spending, SPENDING)
    return Study(
        name=options["name"],
        title=options.get("title") or options["name"],
        question=options.get("question") or "",
        seeds=tuple(seeds),
        stages=stages,
        factors=factors,
        baseline={factor: str(setting) for factor, setting in options["baseline"].items()},
        metrics=tuple(_metric(name, metric) for name, metric in options["metrics"].items()),
        alpha=options.get("alpha", 0.05),
        looks=tuple(looks),
        spending=spending,
    )


def _stages(stages: Mapping[str, Any], common: tuple[str, ...]) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """Return (name, command, overrides) of each stage."""
    result = []
    for name, stage in stages.items():
        where = f"study.stages.{name}"
        if not isinstance(stage, Mapping) or set(stage) - {"entry", "overrides"}:
            raise DuetError(f"{where}: {stage!r} was given; it must have the key entry, and may have overrides")
        check_choice(f"{where}.entry", stage.get("entry"), COMMANDS)
        result.append((name, stage["entry"], merge(_overrides(where, stage.get("overrides", [])), common)))
    return tuple(result)


def _factors(factors: Mapping[str, Any], stages: Sequence[str]) -> dict[str, dict[str, dict[str, tuple[str, ...]]]]:
    """Return the overrides of each setting of each factor by stage."""
    result = {}
    for factor, settings in factors.items():
        if not isinstance(settings, Mapping) or not settings:
            raise DuetError(f"study.factors.{factor}: {settings!r} was given; it must map settings to overrides")
        result[factor] = {
            str(setting): _by_stage(f"study.factors.{factor}.{setting}", overrides, stages)
            for setting, overrides in settings.items()
        }
    return result


def _metric(name: str, options: Mapping[str, Any]) -> Metric:
    allowed = [field for field in Metric.__dataclass_fields__ if field != "name"]
    for option in options:
        check_choice(f"option of study.metrics.{name}", option, allowed)
    if not options.get("read"):
        raise DuetError(f"study.metrics.{name}.read: nothing was given; say where it is found, as in result.objective")
    return Metric(name, **{"title": name} | dict(options))


def _overrides(where: str, overrides: Any) -> tuple[str, ...]:
    if not isinstance(overrides, (list, tuple)) or not all(
        isinstance(o, str) and ("=" in o or "~" in o) for o in overrides
    ):
        raise DuetError(f"{where}: {overrides!r} was given; it must be a list of overrides, as in [backend=torch]")
    return tuple(overrides)


def _by_stage(where: str, overrides: Any, stages: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the overrides of a setting by stage; a list holds for all stages."""
    if not isinstance(overrides, Mapping):
        return dict.fromkeys(stages, _overrides(where, overrides))
    for stage in overrides:
        if stage not in stages:
            raise one_of(where, stage, stages)
    return {stage: _overrides(f"{where}.{stage}", overrides.get(stage, [])) for stage in stages}


def make_plan(study: Study) -> Plan:
    """Return every run of the study.

    Raises:
        DuetError: two factors set the same key, two arms are the same runs, or there is nothing to compare.
    """
    for (one, first), (other, second) in itertools.combinations(study.factors.items(), 2):
        for stage, *_ in study.stages:
            keys = [{_key(o) for setting in settings.values() for o in setting[stage]} for settings in (first, second)]
            if both := keys[0] & keys[1]:
                raise DuetError(
                    f"study.factors: {one} and {other} both set {min(both)}; a key may be set by one factor only"
                )
    runs = []
    for settings in itertools.product(*study.factors.values()):
        arm = Arm(tuple(zip(study.factors, settings, strict=True)))
        for seed in study.seeds:
            jobs: tuple[Job, ...] = ()
            for stage, command, overrides in study.stages:
                own = [study.factors[factor][setting][stage] for factor, setting in arm.settings]
                seeded = [override.format(seed) for override in COMMANDS[command].seed]
                jobs += (Job(stage, command, merge(overrides, *own, seeded), jobs, seed),)
            runs.append(Run(arm, seed, jobs))
    plan = Plan(study, tuple(runs))
    known: dict[str, Arm] = {}
    for run in plan.runs:
        other = known.setdefault(run.jobs[-1].identity, run.arm)
        if other != run.arm:
            raise DuetError(f"study.factors: the arms {other.name!r} and {run.arm.name!r} have the same overrides")
    if not plan.comparisons():
        raise DuetError("study.factors: there is only one arm; a comparison needs a second setting")
    return plan
