"""The results of the runs of a study: metrics by name, curves, cost and samples, read from their directories.

The key `read` of a metric, `<reader>.<path>`, says where its number is found:

    result.KEY            result.json of the last stage that has one, as `result.objective`, `result.validation_loss`
    evaluation.KEY.KEY    evaluation.json of the last stage that has one, as `evaluation.numbers.frechet.distance`;
                          all numbers that are compared must have been measured by one protocol
    cost.KEY              a row of the table of cost, as `cost.images_per_second`
    digits.frechet        the digits Fréchet distance of the last samples to the training digits
    digits.agreement      the fraction of the samples that are recognised as the requested class
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.common.random import Stream
from diffusion_core.data.digits import digits
from diffusion_core.files.safe_read import open_npz, read_json
from diffusion_core.metrics.agreement import agreement
from diffusion_core.metrics.digits import layers
from diffusion_core.metrics.frechet import Gaussian, distance, fit_gaussian
from diffusion_core.metrics.protocol import Number, comparable_values
from diffusion_core.runs.run_directory import metric_columns, read_metrics, read_samples
from experiments.config.safe_yaml import read_config
from experiments.studies import jobs
from experiments.studies.plan import COMMANDS, Metric, Plan, Run, Study

__all__ = [
    "COSTS",
    "ENDINGS",
    "READERS",
    "Outcome",
    "check_protocol",
    "check_reads",
    "digits_floor",
    "outcomes",
    "value",
]

# How a run can end; a run that is not finished has no numbers to compare.
ENDINGS = ("finished", "diverged", "failed", "unfinished")
_NOT_FINITE = re.compile(r"\b(nan|-?inf|not finite)\b", re.IGNORECASE)

# The rows of the table of cost: title, and which direction is better.
COSTS: Mapping[str, tuple[str, str]] = {
    "images_per_second": ("training, images per second", "higher"),
    "sampled_per_second": ("sampling, images per second", "higher"),
    "first_step_seconds": ("first step, seconds (tracing and compiling)", "lower"),
    "peak_memory_mib": ("peak memory, MiB", "lower"),
    "seconds": ("whole run, seconds", "lower"),
    "joules": ("energy, joules (of the whole machine)", "lower"),
}


@dataclass(frozen=True, eq=False)
class Outcome:
    """The outcome of a run.

    Args:
        run: the run.
        directories: the directories of its stages that are done, in order.
        problem: why it has no result; empty if all its stages are done.
    """

    run: Run
    directories: tuple[Path, ...]
    problem: str = ""

    @property
    def ending(self) -> str:
        """How the run ended, one of `ENDINGS`.

        A training diverged if it stopped because a number was not finite, or if its final loss is not.
        """
        if self.problem:
            said = self.problem.partition(": ")[2]
            return "diverged" if _NOT_FINITE.search(said) else "failed" if said else "unfinished"
        trained = [result for command, result in self.results if command == "train"]
        lost = trained and any(
            key in trained[-1] and _is_not_finite(trained[-1][key]) for key in ("objective", "validation_loss")
        )
        return "diverged" if lost else "finished"

    def last(self, name: str) -> Path | None:
        """Return the file of this name in the last stage that has one."""
        return next((path / name for path in reversed(self.directories) if (path / name).is_file()), None)

    @cached_property
    def results(self) -> list[tuple[str, dict[str, Any]]]:
        """(command, result.json) of each stage that has one."""
        pairs = zip(self.run.jobs, self.directories, strict=False)
        return [(j.command, read_json(d / "result.json")) for j, d in pairs if (d / "result.json").is_file()]

    @cached_property
    def markers(self) -> list[dict[str, Any]]:
        """done.json of each stage."""
        return [read_json(path / "done.json") for path in self.directories]

    @cached_property
    def environments(self) -> list[dict[str, Any]]:
        """environment.json of each stage."""
        return [
            read_json(path / "environment.json") for path in self.directories if (path / "environment.json").is_file()
        ]

    @cached_property
    def precision(self) -> str:
        """The precision of its last stage."""
        return str(read_config(self.directories[-1] / "config.yaml").get("precision", ""))

    @cached_property
    def curves(self) -> dict[str, NDArray[np.float64]]:
        """Metrics of training by name with shape (steps,), of all stages; where two overlap, the later one counts.

        A number that a step does not have, such as a validation loss that was not due, is NaN.
        """
        lines: dict[int, dict[str, float]] = {}
        for path in self.directories:
            if (path / "metrics.jsonl").is_file():
                lines |= {int(line["images_seen"]): line for line in read_metrics(path / "metrics.jsonl")}
        return metric_columns([lines[seen] for seen in sorted(lines)])

    @cached_property
    def samples(self) -> tuple[NDArray[np.uint8], NDArray, dict[str, Any]] | None:
        """Images, labels and facts of the last stage that draws samples."""
        file = self._sample_file("samples.npz")
        return None if file is None else read_samples(file)

    @cached_property
    def trajectory(self) -> dict[str, NDArray] | None:
        """Row, x and estimate of the states between noise and samples, if they were kept."""
        path = self._sample_file("trajectory.npz")
        if path is None:
            return None
        with open_npz(path, "a file of states") as file:
            return dict(file)

    def _sample_file(self, name: str) -> Path | None:
        for job, path in reversed(list(zip(self.run.jobs, self.directories, strict=False))):
            folder = COMMANDS[job.command].samples
            if folder is not None and (path / folder / name).is_file():
                return path / folder / name
        return None

    @cached_property
    def cost(self) -> dict[str, float | None]:
        """The cost of all stages together; None where a stage or the machine does not report it."""
        trained = [result for command, result in self.results if command == "train"]
        drawn = [result for _, result in self.results if result.get("sampled")]
        joules = [marker.get("joules") for marker in self.markers]
        speeds = [(r["images_per_second"], r["seconds"]) for r in trained if r["seconds"]]
        time = sum(seconds for _, seconds in speeds)
        sampling = sum(r["sample_seconds"] for r in drawn)
        memory = [r["peak_memory_mib"] for _, r in self.results if r.get("peak_memory_mib") is not None]
        return {
            "images_per_second": sum(speed * seconds for speed, seconds in speeds) / time if time else None,
            "sampled_per_second": sum(r["sampled"] for r in drawn) / sampling if sampling else None,
            "first_step_seconds": max((r["first_step_seconds"] for r in trained), default=None),
            "peak_memory_mib": max(memory, default=None),
            "seconds": sum(marker["seconds"] for marker in self.markers) if self.markers else None,
            "joules": None if not joules or None in joules else sum(joules),
        }


def outcomes(plan: Plan, runs: Path) -> list[Outcome]:
    """Return the outcome of every run of a plan, in the order of the plan."""
    results = []
    for run in plan.runs:
        directories, problem = [], ""
        for job in run.jobs:
            state = jobs.job_state(job, runs)
            if state.status != "done":
                problem = f"{job.name} {state.status}"
                if state.status == "failed":
                    problem += f", exit code {state.facts['exit_code']}: {state.facts['said']}"
                break
            directories.append(runs / job.name)
        results.append(Outcome(run, tuple(directories), problem))
    return results


# The names of `training.validation.metric_name`; any other one is a mistake.
_VALIDATION = re.compile(r"validation_(loss|accuracy)(_ema\d*)?(_level\d)?")


def _read_file(name: str, outcome: Outcome, path: Sequence[str]) -> object:
    file = outcome.last(name)
    if file is None:
        raise DuetError(f"no stage of the arm {outcome.run.arm.name!r} writes {name}")
    node = read_json(file)
    for key in path:
        if isinstance(node, Mapping) and _VALIDATION.fullmatch(key) and key not in node:
            return None  # a run without held-out images, or of an earlier version
        if not isinstance(node, Mapping) or key not in node:
            raise one_of(f"{file}: key", key, node if isinstance(node, Mapping) else ())
        node = node[key]
    return node


def _cost(outcome: Outcome, path: Sequence[str]) -> object:
    return outcome.cost[path[0]]


@functools.cache
def _training_features() -> NDArray[np.float32]:
    return layers(digits(part="train").images)["features"]


@functools.cache
def _training_digits() -> Gaussian:
    return fit_gaussian(_training_features())


@functools.cache
def digits_floor(count: int, draws: int = 20) -> float:
    """Return the mean distance of `count` digits drawn with replacement from the training digits to all of them."""
    features, stream = _training_features(), Stream(0, "studies/floor")
    drawn = (stream.uniform(np.arange(draws), count) * len(features)).astype(np.int64)
    return float(np.mean([distance(fit_gaussian(features[rows]), _training_digits()) for rows in drawn]))


def _digits(outcome: Outcome, path: Sequence[str]) -> object:
    if outcome.samples is None:
        raise DuetError(f"no stage of the arm {outcome.run.arm.name!r} draws samples")
    images, labels, _ = outcome.samples
    outputs = layers(images)
    if path == ["frechet"]:
        return distance(fit_gaussian(outputs["features"]), _training_digits())
    return agreement(outputs["probabilities"].argmax(axis=1), labels, outputs["probabilities"].shape[1]).rate


READERS: Mapping[str, Callable[[Outcome, Sequence[str]], object]] = {
    "result": functools.partial(_read_file, "result.json"),
    "evaluation": functools.partial(_read_file, "evaluation.json"),
    "cost": _cost,
    "digits": _digits,
}

# The paths of the readers that have a fixed list.
_PATHS = {"cost": tuple(COSTS), "digits": ("frechet", "agreement")}


def check_reads(study: Study) -> None:
    """Refuse a metric that is read from a place that does not exist."""
    for metric in study.metrics:
        reader, _, path = metric.read.partition(".")
        where = f"study.metrics.{metric.name}.read"
        if reader not in READERS:
            raise one_of(where, reader, READERS)
        if reader in _PATHS and path not in _PATHS[reader]:
            raise one_of(f"{where}: {reader}", path, _PATHS[reader])


def value(outcome: Outcome, metric: Metric) -> float:
    """Return the metric of a run; NaN if the run has none.

    Raises:
        DuetError: the study reads it from a key that does not exist, or it is not a number.
    """
    if outcome.problem:
        return math.nan
    reader, *path = metric.read.split(".")
    try:
        result = READERS[reader](outcome, path)
    except DuetError as error:
        raise DuetError(f"study.metrics.{metric.name}.read: {error}") from error
    if _is_evaluated(result):
        result = result["value"]
    if result is None:
        return math.nan
    if isinstance(result, bool) or not isinstance(result, (int, float)):
        raise DuetError(f"study.metrics.{metric.name}.read: {metric.read} is {result!r}; it must be a number")
    return float(result)


def check_protocol(metric: Metric, outcomes: Sequence[Outcome]) -> None:
    """Refuse to compare evaluations by different protocols, and Fréchet distances of different numbers of samples."""
    reader, *path = metric.read.split(".")
    if metric.read == "digits.frechet":
        drawn = {len(o.samples[0]): o.run.arm.name for o in outcomes if not o.problem and o.samples is not None}
        if len(drawn) > 1:
            counts = ", ".join(f"{count} in {arm!r}" for count, arm in drawn.items())
            raise DuetError(
                f"study.metrics.{metric.name}.read: {metric.read} was given, but the arms have different numbers of "
                f"samples ({counts}), on which a Fréchet distance depends; set the same sample.count in all of them"
            )
    if reader != "evaluation":
        return
    results = (READERS[reader](outcome, path) for outcome in outcomes if not outcome.problem)
    if numbers := [Number.from_plain(node) for node in results if _is_evaluated(node)]:
        comparable_values(numbers)


def _is_not_finite(number: object) -> bool:
    """Return whether a number of result.json was not finite; such numbers are null there."""
    return number is None or (isinstance(number, float) and not math.isfinite(number))


def _is_evaluated(node: object) -> bool:
    """Return whether this is a number of an evaluation, with its protocol."""
    return isinstance(node, Mapping) and "protocol_sha256" in node
