"""What every metric is given: checkpoint, samples, data and network of a configuration, each read when first asked.

A metric is a function of this and of its options. It checks all that a person can get wrong and gives a `Measure`,
which then measures, writes files of its own into a directory and gives its numbers with their protocol.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from diffusion_core.backend.interface import Backend, Network
from diffusion_core.common.errors import DuetError
from diffusion_core.data import Dataset
from diffusion_core.files.atomic import write_atomically
from diffusion_core.metrics.evaluate import jackknife_interval, random_sets
from diffusion_core.metrics.files import join, read_sample_set
from diffusion_core.metrics.metric import SampleSet
from diffusion_core.metrics.protocol import Number
from diffusion_core.runs.checkpoint import Checkpoint, load_checkpoint, weights_hash
from experiments.config import build
from experiments.config.convert import plain
from experiments.sampling.options import choose_weights

__all__ = ["EvaluationContext", "Measure", "Measurement", "mean_number", "dataset_reference", "write_arrays"]


@dataclass(frozen=True)
class Measurement:
    """What a metric found.

    Args:
        facts: details and provenance, as plain data: its part of evaluation.json.
        numbers: each with its protocol.
    """

    facts: dict[str, Any]
    numbers: tuple[Number, ...]


# Measures, and writes its files into the directory.
Measure = Callable[[Path], Measurement]


class EvaluationContext:
    """The parts of a configuration of `experiments.evaluate`, as objects of the core."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg, self.seed = cfg, int(cfg.seed)
        self.calls = 0

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """What is evaluated."""
        if not self.cfg.checkpoint:
            raise DuetError("checkpoint: none was given; add checkpoint=RUN, a run directory or one of its checkpoints")
        found = load_checkpoint(self.cfg.checkpoint)
        self.cfg.weights = choose_weights("weights", self.cfg.weights, found)
        return found

    @cached_property
    def _sources(self) -> list[SampleSet]:
        given = self.cfg.samples
        return [read_sample_set(path) for path in ([given] if isinstance(given, str) else given)]

    @cached_property
    def samples(self) -> SampleSet:
        """What is judged: images, features of them, or both."""
        return join(self._sources)

    @property
    def sets_given(self) -> tuple[int, ...]:
        """How many samples each of the files has."""
        return tuple(len(source) for source in self._sources)

    @cached_property
    def reference(self) -> SampleSet:
        """What samples are compared with."""
        if self.cfg.reference:
            if "name" in self.cfg.data:
                raise DuetError("reference: a file and data were given; samples are compared with one of them")
            return read_sample_set(self.cfg.reference)
        training = build.load_data(self.cfg.training) if "name" in self.cfg.training else None
        return dataset_reference(self.dataset, plain(self.cfg.data.options), training)

    @cached_property
    def dataset(self) -> Dataset:
        """The images, as they are stored: never mirrored, whatever training did."""
        if "name" not in self.cfg.data:
            raise DuetError(
                "data: none was given; add data=NAME, and the part with data.options.part where it has parts "
                "(or, for samples, reference=FILE)"
            )
        return build.load_data(self.cfg.data)

    @cached_property
    def backend(self) -> Backend:
        """The backend; a metric opens it when it measures, not when it checks, and says before what it `asks`."""
        return build.backend_setup(self.cfg).open(self.calls)

    def asks(self, images: int, batch: int) -> None:
        """Note how many images the network will evaluate, in batches of which size; `compile=auto` decides by it."""
        self.calls = -(-images // batch)

    @cached_property
    def network(self) -> Network:
        """The network of the checkpoint, with the weights that were asked for."""
        return self.backend.network(self.checkpoint.model.program, self.checkpoint.state.parts[self.cfg.weights])

    def checkpoint_facts(self) -> dict[str, Any]:
        """Which weights."""
        return {
            "checkpoint": str(self.cfg.checkpoint),
            "images_seen": self.checkpoint.images_seen,
            "weights": self.cfg.weights,
            "weights_sha256": weights_hash(self.cfg.checkpoint, self.cfg.weights),
        }

    def data_facts(self) -> dict[str, Any]:
        """Which images."""
        return dict(dataset_reference(self.dataset, plain(self.cfg.data.options)).facts)


def dataset_reference(dataset: Dataset, options: Mapping[str, Any], training: Dataset | None = None) -> SampleSet:
    """A data set as a reference, with the images that the network was trained on, where these are others."""
    parts = {"images": dataset.images, "labels": dataset.labels}
    split = next((str(options[key]) for key in ("part", "split") if options.get(key)), "all")
    facts = {"name": dataset.name, "split": split, "count": len(dataset), "sha256": dataset.sha256}
    if training is not None:
        parts["training"] = training.images
        facts["training"] = {"name": training.name, "count": len(training), "sha256": training.sha256}
    return SampleSet(parts, facts, classes=dataset.class_names if dataset.has_class_names else ())


def mean_number(
    given: EvaluationContext,
    name: str,
    values: NDArray,
    key: str,
    protocol: Mapping[str, Any],
    better: str,
    unit: str = "",
) -> Number:
    """The mean of a value per image, with its interval over disjoint sets of the images, where there are enough."""
    whole, sets = float(values.mean()), given.cfg.sets
    without: tuple[float, ...] = ()
    if len(values) >= 2 * sets:
        parts = random_sets(len(values), sets, given.seed)
        without = tuple(float(np.delete(values, some).mean()) for some in parts.members)
        protocol = {**protocol, "sets": dict(parts.facts)}
    confidence = given.cfg.confidence
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    protocol = {**protocol, "confidence": confidence, "number": key}
    return Number(name, whole, protocol, jackknife_interval(whole, without, confidence), without, error, better, unit)


def write_arrays(path: Path, **arrays: NDArray) -> None:
    """Arrays as a compressed `.npz`."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())
