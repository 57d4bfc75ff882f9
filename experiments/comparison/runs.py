"""A finished run, read from its directory, and what makes two runs the same experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.paths import similar_path
from diffusion_core.files.safe_read import read_json
from diffusion_core.runs.run_directory import metric_columns, read_metrics, read_samples
from experiments.config.backends import BackendInfo
from experiments.config.safe_yaml import read_config

__all__ = ["FinishedRun", "check_different", "describe_differences", "read_runs"]

# What runs must share to be the same experiment. How and where they are computed is what is compared.
_SAME = ("seed", "precision", "data", "model", "process", "optimiser", "lr", "ema", "trainer", "sampler", "sample")
# Options of `data` that change no batch: how batches are read, and where the pixels are stored.
_HOW_READ = ("workers", "loader", "store")
# Options of `trainer` that change no number of the training.
_WHEN_LOOKED = ("validation_images",)
_MOST_DIFFERENCES = 3  # a part of the configuration with more differences is named without them


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A finished run of experiments.train.

    Args:
        path: its directory.
        letter: tells it from other runs of the same backend; empty if there is none.
    """

    path: Path
    letter: str = ""

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its configuration."""
        if not self.path.exists():
            raise DuetError(
                f"runs: {str(self.path)!r} does not exist; give the directory of a run{similar_path(self.path)}"
            )
        try:
            return read_config(self.path / "config.yaml")
        except DuetError as error:
            raise DuetError(f"{self.path}: it is not a run of experiments.train ({error})") from error

    @cached_property
    def environment(self) -> dict[str, Any]:
        """The machine and the versions that it ran with."""
        return read_json(self.path / "environment.json")

    @cached_property
    def result(self) -> dict[str, Any]:
        """The content of its result.json."""
        return read_json(self.path / "result.json")

    @cached_property
    def metrics(self) -> dict[str, NDArray]:
        """Its metrics by name, with shape (steps,); NaN where a step has no such number, as a validation loss."""
        lines = list(read_metrics(self.path / "metrics.jsonl"))
        if not lines:
            raise DuetError(f"{self.path}: metrics.jsonl is empty, so nothing was trained")
        return metric_columns(lines)

    @cached_property
    def samples(self) -> tuple[NDArray, NDArray, dict[str, Any]]:
        """Images, labels and facts of its final samples."""
        return read_samples(self.path / "samples" / "samples.npz")

    @cached_property
    def backend(self) -> BackendInfo:
        """Its backend, as its configuration describes it."""
        return BackendInfo.from_options(self.config["backend"])

    @property
    def label(self) -> str:
        """The title of its backend, with its letter."""
        return f"{self.backend.title} {self.letter}".strip()

    @property
    def key(self) -> str:
        """The name of its backend, with its letter."""
        return f"{self.backend.name} {self.letter}".strip()

    @property
    def has_tolerances(self) -> bool:
        """Whether tolerances are published for its precision."""
        return self.config["precision"] in ("float64", "float32")


def check_different(key: str, paths: Sequence[str | Path]) -> None:
    """Refuse the same directory twice, under any of its names, and a copy: what is compared with itself agrees.

    A copy has the same environment.json, which holds the command and the second in which it started.
    """
    seen: dict[object, str] = {}
    for path in map(Path, paths):
        file = path / "environment.json"
        marks = [path.resolve(), *([file.read_bytes()] if file.is_file() else [])]
        for mark in marks:
            if (other := seen.get(mark)) is not None:
                relation = "is the same directory as" if mark == marks[0] else "is a copy of"
                raise DuetError(f"{key}: {path} {relation} {other}; a comparison with itself says nothing")
        seen |= {mark: str(path) for mark in marks}


def read_runs(paths: Sequence[str | Path]) -> tuple[FinishedRun, ...]:
    """Return the runs in these directories; runs of one backend are told apart by the letters a, b, c, ...

    Raises:
        DuetError: a directory does not hold a run.
    """
    runs = [FinishedRun(Path(path)) for path in paths]
    names = [run.backend.name for run in runs]
    letters = [chr(ord("a") + names[:k].count(name)) if names.count(name) > 1 else "" for k, name in enumerate(names)]
    return tuple(FinishedRun(run.path, letter) for run, letter in zip(runs, letters, strict=True))


def describe_differences(runs: Sequence[FinishedRun]) -> list[str]:
    """Return what makes the runs different experiments, as in "seed (0, 1)"; empty if they are the same experiment."""

    def shared(run: FinishedRun) -> dict[str, Any]:
        data = {key: value for key, value in (run.config.get("data") or {}).items() if key not in _HOW_READ}
        trainer = {key: value for key, value in (run.config.get("trainer") or {}).items() if key not in _WHEN_LOOKED}
        return {part: run.config.get(part) for part in _SAME} | {"data": data, "trainer": trainer}

    configs = [shared(run) for run in runs]
    found = [text for part in _SAME for text in _differences(part, [config[part] for config in configs])]
    if len({run.environment["data"]["sha256"] for run in runs}) > 1:
        found.append("pixels of the data")
    return found


def _differences(key: str, values: Sequence[Any]) -> list[str]:
    """Return each key below `key` whose values differ, with the values; `key` alone if they are many."""
    if all(value == values[0] for value in values):
        return []
    if all(isinstance(value, dict) for value in values):
        names = dict.fromkeys(name for value in values for name in value)
        found = [text for name in names for text in _differences(f"{key}.{name}", [v.get(name) for v in values])]
        return found if len(found) <= _MOST_DIFFERENCES else [key]
    if any(isinstance(value, dict | list) for value in values):
        return [key]
    return [f"{key} ({', '.join(dict.fromkeys(map(_show, values)))})"]


def _show(value: Any) -> str:
    return "null" if value is None else str(value)
