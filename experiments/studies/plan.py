"""The plan of a study: which arms, which runs, and which jobs make them.

A study has *factors* with *levels*; an arm is one level of each, and a run is an arm with a seed. Every run goes
through the same *stages*, each an ordinary command such as `experiments.train`, and each goes on from the one before: a
training resumes its checkpoint, a sampling draws from it. What a stage is told is, later words winning over earlier::

    overrides of the stage, overrides common to all, overrides of the arm's levels, the seed

A stage with its overrides and the stages before it is a job. Its identity is the hash of exactly that, so two runs that
begin alike share their first jobs, and a job that was done in an earlier call is not done again.

The comparison of an arm is with the arm that has the levels of `baseline` and is equal in every other factor: with one
factor that is one arm for all, with solvers and numbers of steps and the baseline ``{solver: DDIM}`` it is DDIM with as
many steps.
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

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.statistics.paired import SCALES

__all__ = ["ENTRIES", "Arm", "Entry", "Job", "Metric", "Plan", "Run", "Study", "make_plan", "make_study", "merge"]

BETTER = ("higher", "lower")


@dataclass(frozen=True)
class Entry:
    """How a command takes part in a study.

    Args:
        seed: overrides that give it the seed.
        out: the key that names its directory.
        result: the file that it ends with.
        samples: where in its directory its samples are; None where it draws none.
    """

    seed: tuple[str, ...]
    out: str
    result: str
    samples: str | None = None


ENTRIES: Mapping[str, Entry] = {
    "train": Entry(("seed={}", "sample.seed={}"), "hydra.run.dir", "result.json", "samples"),
    "sample": Entry(("sample.seed={}",), "out", "samples.npz", ""),
    "evaluate": Entry(("seed={}",), "out", "evaluation.json"),
}


@dataclass(frozen=True)
class Metric:
    """What is compared between arms.

    Args:
        name: its key.
        title: for people.
        read: where the number stands; see `results.READERS`.
        better: "higher" or "lower".
        scale: "difference", or "ratio" where it is positive and relative change counts.
        margin: the largest difference that would not matter, stated before the study is run; a ratio above 1 on the
            scale ratio, as 1.02 for two percent either way. None where no equivalence is asked for.
        unit: for people.
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
        if self.better not in BETTER:
            raise one_of(f"{where}.better", self.better, BETTER)
        if self.scale not in SCALES:
            raise one_of(f"{where}.scale", self.scale, SCALES)
        least = 1.0 if self.scale == "ratio" else 0.0
        if self.margin is not None and not (least < self.margin < math.inf):
            raise DuetError(
                f"{where}.margin: {self.margin} was given; on the scale {self.scale} it must be above {least:g}"
            )

    @property
    def bound(self) -> float | None:
        """The margin in the unit of the differences: its logarithm on the scale ratio."""
        return math.log(self.margin) if self.margin and self.scale == "ratio" else self.margin


@dataclass(frozen=True)
class Study:
    """A study file, checked.

    Args:
        name: of the study, and of its directory.
        title: a line for people, best the question itself.
        question: what is asked, and what the margins are chosen by.
        seeds: distinct; every arm is run with each.
        stages: (name, entry, overrides) in order.
        factors: levels by factor; a level gives overrides by stage.
        baseline: levels of the factors that are compared; see the module.
        metrics: what is compared, in order.
        alpha: level of the tests.
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


@dataclass(frozen=True)
class Arm:
    """One level of each factor, as (factor, level) in the order of the factors."""

    levels: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """For people."""
        return ", ".join(level for _, level in self.levels)


@dataclass(frozen=True)
class Job:
    """A command of a run.

    Args:
        stage: its name.
        entry: one of `ENTRIES`.
        overrides: what it is told, but for its directory and those of the jobs before it.
        before: the jobs that it goes on from, in order.
        seed: of its run.
    """

    stage: str
    entry: str
    overrides: tuple[str, ...]
    before: tuple[Job, ...]
    seed: int

    @cached_property
    def identity(self) -> str:
        """The hash of all that decides what it does."""
        chain = [[job.entry, sorted(job.overrides)] for job in (*self.before, self)]
        return hashlib.sha256(json.dumps(chain).encode()).hexdigest()

    @property
    def name(self) -> str:
        """Of its directory: readable, and distinct where the identity is."""
        return f"{re.sub(r'[^a-z0-9]+', '-', self.stage.lower()).strip('-')}-seed{self.seed}-{self.identity[:10]}"

    def arguments(self, runs: Path) -> list[str]:
        """Its overrides with the directories, all of which lie in `runs`."""
        entry = ENTRIES[self.entry]
        links = {entry.out: runs / self.name}
        trained = [job for job in self.before if job.entry == "train"]
        drawn = [job for job in self.before if ENTRIES[job.entry].samples is not None]
        if self.entry == "train" and trained:
            links["resume"] = runs / trained[-1].name
        if self.entry in ("sample", "evaluate") and trained:
            links["checkpoint"] = runs / trained[-1].name
        if self.entry == "evaluate" and drawn:
            links["samples"] = runs / drawn[-1].name / str(ENTRIES[drawn[-1].entry].samples) / "samples.npz"
        return [*self.overrides, *(f"{key}={_quoted(path)}" for key, path in links.items())]


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
        """In the order of their levels."""
        return tuple(dict.fromkeys(run.arm for run in self.runs))

    @cached_property
    def waves(self) -> tuple[tuple[Job, ...], ...]:
        """The distinct jobs by stage; those of one wave do not need each other."""
        stages = range(len(self.study.stages))
        return tuple(tuple({run.jobs[k].identity: run.jobs[k] for run in self.runs}.values()) for k in stages)

    @property
    def jobs(self) -> tuple[Job, ...]:
        """All distinct jobs, each after those that it needs."""
        return tuple(itertools.chain.from_iterable(self.waves))

    def baseline_of(self, arm: Arm) -> Arm:
        """The arm that this one is compared with; itself for a baseline."""
        return Arm(tuple((factor, self.study.baseline.get(factor, level)) for factor, level in arm.levels))

    def comparisons(self) -> list[tuple[Arm, Arm]]:
        """(arm, its baseline) for every arm that is none itself."""
        return [(arm, self.baseline_of(arm)) for arm in self.arms if self.baseline_of(arm) != arm]


def merge(*parts: Sequence[str]) -> tuple[str, ...]:
    """Overrides of several parts as one; of two that set the same key the later stays, at its own place."""
    found: dict[str, str] = {}
    for override in itertools.chain.from_iterable(parts):
        key = _key(override)
        found.pop(key, None)
        found[key] = override
    return tuple(found.values())


def _key(override: str) -> str:
    return override.split("=", 1)[0].lstrip("+~")


def _quoted(path: Path) -> str:
    """A path as Hydra's grammar reads it."""
    text = path.as_posix().replace("'", r"\'")
    return f"'{text}'"


def make_study(options: Mapping[str, Any]) -> Study:
    """Check a study file.

    Args:
        options: as `configs/study/*.yaml` has them, as plain data.

    Raises:
        DuetError: a name is not there, a list is empty, or something is told twice.
    """
    for name in ("name", "seeds", "stages", "factors", "baseline", "metrics"):
        if not options.get(name):
            raise DuetError(f"study.{name}: nothing was given; name a study, as in study=framework_equivalence")
    seeds = options["seeds"]
    if len(set(seeds)) != len(seeds):
        raise DuetError(f"study.seeds: {list(seeds)} were given; they must be distinct")
    common = _overrides("study.common", options.get("common", []))
    stages = []
    for name, stage in options["stages"].items():
        where = f"study.stages.{name}"
        if not isinstance(stage, Mapping) or set(stage) - {"entry", "overrides"}:
            raise DuetError(f"{where}: {stage!r} was given; it must have an entry, and overrides if it needs any")
        if stage.get("entry") not in ENTRIES:
            raise one_of(f"{where}.entry", stage.get("entry"), ENTRIES)
        stages.append((name, stage["entry"], merge(_overrides(where, stage.get("overrides", [])), common)))
    names = [name for name, *_ in stages]
    factors = {}
    for factor, levels in options["factors"].items():
        if not isinstance(levels, Mapping) or not levels:
            raise DuetError(f"study.factors.{factor}: {levels!r} was given; it must have levels")
        factors[factor] = {
            str(level): _by_stage(f"study.factors.{factor}.{level}", told, names) for level, told in levels.items()
        }
    for factor, level in options["baseline"].items():
        if factor not in factors:
            raise one_of("study.baseline", factor, factors)
        if str(level) not in factors[factor]:
            raise one_of(f"study.baseline.{factor}", level, factors[factor])
    if not 0 < options.get("alpha", 0.05) < 0.5:
        raise DuetError(f"study.alpha: {options['alpha']} was given; it must lie between 0 and 0.5")
    return Study(
        name=options["name"],
        title=options.get("title") or options["name"],
        question=options.get("question") or "",
        seeds=tuple(seeds),
        stages=tuple(stages),
        factors=factors,
        baseline={factor: str(level) for factor, level in options["baseline"].items()},
        metrics=tuple(_metric(name, metric) for name, metric in options["metrics"].items()),
        alpha=options.get("alpha", 0.05),
    )


def _metric(name: str, options: Mapping[str, Any]) -> Metric:
    allowed = [field for field in Metric.__dataclass_fields__ if field != "name"]
    for option in options:
        if option not in allowed:
            raise one_of(f"option of study.metrics.{name}", option, allowed)
    if not options.get("read"):
        raise DuetError(f"study.metrics.{name}.read: nothing was given; say where it stands, as in result.objective")
    return Metric(name, **{"title": name} | dict(options))


def _overrides(where: str, given: Any) -> tuple[str, ...]:
    if not isinstance(given, (list, tuple)) or not all(isinstance(o, str) and ("=" in o or "~" in o) for o in given):
        raise DuetError(f"{where}: {given!r} was given; it must be a list of overrides, as in [backend=torch]")
    return tuple(given)


def _by_stage(where: str, told: Any, stages: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """A level's overrides of each stage: a list is for all of them."""
    if not isinstance(told, Mapping):
        return dict.fromkeys(stages, _overrides(where, told))
    for stage in told:
        if stage not in stages:
            raise one_of(where, stage, stages)
    return {stage: _overrides(f"{where}.{stage}", told.get(stage, [])) for stage in stages}


def make_plan(study: Study) -> Plan:
    """Every run of the study.

    Raises:
        DuetError: two factors set the same key, or two arms would be the same runs.
    """
    for (one, first), (other, second) in itertools.combinations(study.factors.items(), 2):
        for stage, *_ in study.stages:
            keys = [{_key(o) for told in levels.values() for o in told[stage]} for levels in (first, second)]
            if both := keys[0] & keys[1]:
                raise DuetError(f"study.factors: {one} and {other} both set {min(both)}; a key belongs to one factor")
    runs = []
    for levels in itertools.product(*study.factors.values()):
        arm = Arm(tuple(zip(study.factors, levels, strict=True)))
        for seed in study.seeds:
            jobs: tuple[Job, ...] = ()
            for stage, entry, overrides in study.stages:
                told = [study.factors[factor][level][stage] for factor, level in arm.levels]
                seeded = [override.format(seed) for override in ENTRIES[entry].seed]
                jobs += (Job(stage, entry, merge(overrides, *told, seeded), jobs, seed),)
            runs.append(Run(arm, seed, jobs))
    plan = Plan(study, tuple(runs))
    known: dict[str, Arm] = {}
    for run in plan.runs:
        other = known.setdefault(run.jobs[-1].identity, run.arm)
        if other != run.arm:
            raise DuetError(f"study.factors: the arms {other.name!r} and {run.arm.name!r} are told the same")
    if not plan.comparisons():
        raise DuetError("study.factors: there is one arm alone; a comparison needs a second level")
    return plan
