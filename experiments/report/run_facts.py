"""The content of a run directory, for the page of the run; every file may be missing or of an earlier version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.interface import average_names
from diffusion_core.files.safe_read import read_json
from diffusion_core.runs.checkpoint import list_checkpoints
from diffusion_core.runs.run_directory import metric_columns, read_metrics, read_samples
from diffusion_core.training.validation import metric_name

__all__ = ["RunFacts", "Samples"]


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of one moment of a run.

    Args:
        images_seen: the moment.
        images: uint8 with shape (N, H, W, C).
        labels: the network's label of each, with shape (N,).
        facts: how they were drawn.
    """

    images_seen: int
    images: NDArray[np.uint8]
    labels: NDArray
    facts: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class RunFacts:
    """A run as its directory describes it.

    Args:
        path: its directory.
        config: its configuration, as plain data.
        config_text: the same as YAML.
        problem: why training failed; empty if it did not fail, or if the reason is not known.
        resume_command: the command that continues it; by default one that takes everything from the directory.
    """

    path: Path
    config: Mapping[str, Any]
    config_text: str = ""
    problem: str = ""
    resume_command: str = ""

    def option(self, *keys: str, default: Any = None) -> Any:
        """Return a value of the configuration by its path."""
        node: Any = self.config
        for key in keys:
            node = node.get(key) if isinstance(node, Mapping) else None
        return default if node is None else node

    @cached_property
    def environment(self) -> dict[str, Any]:
        """The content of environment.json."""
        file = self.path / "environment.json"
        return read_json(file) if file.is_file() else {}

    @cached_property
    def metrics(self) -> dict[str, NDArray[np.float64]]:
        """The metrics by name with shape (steps,); NaN where a step has no such number."""
        file = self.path / "metrics.jsonl"
        lines = list(read_metrics(file)) if file.is_file() else []
        return metric_columns(lines)

    @cached_property
    def images_seen(self) -> int:
        """Images seen at the last logged step."""
        seen = self.metrics.get("images_seen", np.zeros(0))
        return int(seen[-1]) if len(seen) else 0

    @property
    def total(self) -> int:
        """The planned length of the run in images."""
        return int(self.option("trainer", "images", default=self.images_seen))

    @cached_property
    def result(self) -> dict[str, Any]:
        """The content of result.json; empty if the run did not end, or was continued since."""
        file = self.path / "result.json"
        result = read_json(file) if file.is_file() else {}
        return result if result.get("images_seen") == self.images_seen else {}

    @property
    def is_complete(self) -> bool:
        """Whether the run reached its end."""
        return bool(self.result) and self.images_seen >= self.total

    @cached_property
    def last_checkpoint(self) -> int | None:
        """Images seen at the last checkpoint."""
        checkpoints = list_checkpoints(self.path / "checkpoints")
        return int(checkpoints[-1].name) if checkpoints else None

    @cached_property
    def samples(self) -> list[Samples]:
        """The samples of each moment, in order; the last are those of the end, if the run reached it."""
        found = []
        for file in sorted((self.path / "samples").glob("samples-*.npz")):
            moment = file.stem.removeprefix("samples-")
            if moment.isdecimal() and int(moment) <= self.images_seen:
                found.append(Samples(int(moment), *read_samples(file)))
        final = self.path / "samples" / "samples.npz"
        if self.result and final.is_file():
            found.append(Samples(self.images_seen, *read_samples(final)))
        return found

    def class_name(self, label: int) -> str:
        """Return the name of a label of the network."""
        names = self.environment.get("labels") or {}
        return str(names.get(str(label), f"class {label}"))

    def figure(self, name: str) -> bytes | None:
        """Return a figure of the folder of samples, or None."""
        file = self.path / "samples" / name
        return file.read_bytes() if file.is_file() else None

    def weights(self) -> Sequence[str]:
        """Return the names of the weights that were validated: "weights", then the averages."""
        return [name for name in ("weights", *average_names(9)) if metric_name(name) in self.metrics]
