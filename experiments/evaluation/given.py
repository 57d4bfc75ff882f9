"""What every metric is given: checkpoint, samples, data and network of a configuration, each read when first asked.

A metric is a function of this and of its options. It checks all that a person can get wrong and gives a `Measure`,
which then measures, writes files of its own into a directory and gives its numbers with their protocol.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from diffusion_core.backend import Backend, Network
from diffusion_core.checkpoint import Checkpoint, load_checkpoint, weights_hash
from diffusion_core.data import Dataset
from diffusion_core.errors import DuetError
from diffusion_core.run import read_samples
from experiments import common
from experiments.entry import plain

__all__ = ["Given", "Measure", "Measured", "Row"]


@dataclass(frozen=True)
class Row:
    """A number for people; `error` is its standard error, None where it has none."""

    name: str
    value: float
    error: float | None = None
    unit: str = ""


@dataclass(frozen=True)
class Measured:
    """What a metric found.

    Args:
        facts: its numbers and their protocol, as plain data: its part of evaluation.json.
        rows: what is printed of it.
    """

    facts: dict[str, Any]
    rows: tuple[Row, ...]


# Measures, and writes its files into the directory.
Measure = Callable[[Path], Measured]


class Given:
    """The parts of a configuration of `experiments.evaluate`, as objects of the core."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg, self.seed = cfg, int(cfg.seed)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """What is evaluated."""
        if not self.cfg.checkpoint:
            raise DuetError("checkpoint: none was given; add checkpoint=RUN, a run directory or one of its checkpoints")
        found = load_checkpoint(self.cfg.checkpoint)
        common.check_which("weights", self.cfg.weights, len(found.state.averages))
        return found

    @cached_property
    def samples(self) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """The pictures that are judged, uint8 with shape (N, H, W, C), and what their file says of them."""
        if not self.cfg.samples:
            raise DuetError("samples: none were given; add samples=RUN/samples/samples.npz, or another file of samples")
        images, _, facts = read_samples(Path(self.cfg.samples))
        if images.dtype != np.uint8 or images.ndim != 4:
            raise DuetError(f"{self.cfg.samples}: it holds {images.dtype} of {images.shape}, no uint8 pictures")
        return images, facts

    @cached_property
    def dataset(self) -> Dataset:
        """The pictures, as they are stored: never mirrored, whatever training did."""
        if "name" not in self.cfg.data:
            raise DuetError(
                "data: none was given; add data=NAME, and the part with data.options.part where it has parts"
            )
        return common.load_data(self.cfg.data)

    @cached_property
    def backend(self) -> Backend:
        """The backend; a metric opens it when it measures, not when it checks."""
        return common.open_backend(self.cfg)

    @cached_property
    def network(self) -> Network:
        """The network of the checkpoint, with the weights that were asked for."""
        return self.backend.network(
            self.checkpoint.problem.program, common.weights_of(self.checkpoint.state, self.cfg.weights)
        )

    def checkpoint_facts(self) -> dict[str, Any]:
        """Which weights."""
        return {
            "checkpoint": str(self.cfg.checkpoint),
            "images_seen": self.checkpoint.images_seen,
            "weights": self.cfg.weights,
            "weights_sha256": weights_hash(self.cfg.checkpoint, self.cfg.weights),
        }

    def sample_facts(self) -> dict[str, Any]:
        """Which samples, and how they were made."""
        images, facts = self.samples
        sha256 = hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()
        return {"file": str(self.cfg.samples), "images": len(images), "sha256": sha256, "made": facts}

    def data_facts(self) -> dict[str, Any]:
        """Which pictures."""
        return {
            "name": self.dataset.name,
            "options": plain(self.cfg.data.options),
            "sha256": self.dataset.sha256,
            "images": len(self.dataset),
            "flip": False,
        }
