"""The inputs that measurements share: checkpoint, samples, data and network, each loaded on first use.

A method of measurement is a function of this context and of its own options. It checks everything that a user can get
wrong, and returns a `Measure`, which then computes, writes its files into a directory and returns a `Measurement`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.interface import Backend, Network
from diffusion_core.common.errors import DuetError
from diffusion_core.data import Dataset
from diffusion_core.images.files import readable_name
from diffusion_core.metrics.evaluate import random_sets
from diffusion_core.metrics.files import join, read_sample_set
from diffusion_core.metrics.intervals import jackknife_interval
from diffusion_core.metrics.metric import SampleSet
from diffusion_core.metrics.protocol import Number
from diffusion_core.runs.checkpoint import Checkpoint, load_checkpoint, weights_hash
from diffusion_core.statistics.bootstrap import MIN_VALUES
from diffusion_core.statistics.proportion import wilson_interval
from experiments.evaluation.setup import EvaluationSetup
from experiments.runtime.own_networks import with_network
from experiments.sampling.conditions import describe_weights
from experiments.sampling.options import choose_weights

__all__ = ["EvaluationContext", "Measure", "Measurement", "dataset_reference"]


@dataclass(frozen=True)
class Measurement:
    """The result of a measurement.

    Args:
        facts: details and provenance as plain data, for evaluation.json.
        numbers: the numbers, each with its protocol.
    """

    facts: dict[str, Any]
    numbers: tuple[Number, ...]


# Measures, and writes its files into the directory.
Measure = Callable[[Path], Measurement]


class EvaluationContext:
    """The inputs of an evaluation, loaded on first use.

    Args:
        setup: the options of the evaluation.
    """

    def __init__(self, setup: EvaluationSetup) -> None:
        self.setup, self.seed = setup, setup.seed
        self._network_calls = 0
        self.notes: list[str] = []  # printed once everything is known to fit

    def __repr__(self) -> str:
        return f"EvaluationContext(samples={self.setup.samples}, checkpoint={self.setup.checkpoint!r})"

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint to evaluate."""
        if not self.setup.checkpoint:
            raise DuetError("checkpoint: none was given; add checkpoint=RUN, a run directory or one of its checkpoints")
        checkpoint = with_network(load_checkpoint(self.setup.checkpoint), self.setup.network, self.setup.checkpoint)
        weights = choose_weights("weights", self.setup.weights, checkpoint)  # refuses unknown weights early
        self.note(describe_weights(checkpoint, weights))
        return checkpoint

    @cached_property
    def weights(self) -> str:
        """Which weights of the checkpoint to evaluate."""
        return choose_weights("weights", self.setup.weights, self.checkpoint)

    @cached_property
    def _sample_files(self) -> list[SampleSet]:
        return [self._read(path) for path in self.setup.samples]

    def _read(self, path: str) -> SampleSet:
        read = read_sample_set(path, self.setup.max_unreadable)
        self._tell(f"{readable_name(path)}: {remark}" for remark in read.remarks)
        return read

    def _tell(self, lines: Iterable[str]) -> None:
        """Print lines, in the main process alone."""
        if self.setup.backend.group.is_main_process:
            for line in lines:
                print(line, flush=True)

    @cached_property
    def samples(self) -> SampleSet:
        """The samples to evaluate: images, features, or both."""
        for (one, first), (other, second) in combinations(zip(self.setup.samples, self._sample_files, strict=True), 2):
            if _are_equal(first.arrays, second.arrays):
                raise DuetError(
                    f"samples: {other} holds the same samples as {one}; counted twice they would make the intervals "
                    f"too narrow, so give each of them once"
                )
        samples = join(self._sample_files)
        if "statistics" in samples.facts:
            raise DuetError(
                f"samples: {self.setup.samples[0]} holds mean and covariance alone; give it as reference=FILE, and "
                f"images or features as samples"
            )
        return samples

    @property
    def file_sizes(self) -> tuple[int, ...]:
        """The number of samples in each file."""
        return tuple(map(len, self._sample_files))

    @cached_property
    def reference(self) -> SampleSet:
        """The set with which samples are compared."""
        setup = self.setup
        if setup.reference:
            if setup.data is not None:
                raise DuetError("reference: a file and data were given; give one of them to compare the samples with")
            return self._read(setup.reference)
        training = None if setup.training is None else setup.training.load(setup.backend.group.is_main_process)
        return dataset_reference(self.dataset, setup.data.options, training)

    @cached_property
    def dataset(self) -> Dataset:
        """The data set as it is stored; its images are never mirrored, whatever the training did."""
        if self.setup.data is None:
            raise DuetError(
                "data: none was given; add data=NAME, and data.options.part=PART if it has several parts "
                "(or, for samples, reference=FILE)"
            )
        data = self.setup.data
        if parts := data.parts():
            raise DuetError(
                f"data.options.part: none was given for {data.name}; choose one of {', '.join(parts)}, or all of "
                f"them with all"
            )
        return data.load(self.setup.backend.group.is_main_process)

    def note(self, lines: Iterable[str]) -> None:
        """Add lines to print."""
        self.notes += lines

    def plan_calls(self, images: int, batch: int) -> None:
        """Record how many images the network will evaluate, in batches of what size, for `compile=auto`."""
        self._network_calls = -(-images // batch)

    @cached_property
    def backend(self) -> Backend:
        """The backend. Open it only to measure, not to check, and after `plan_calls`."""
        return self.setup.backend.open(self._network_calls)

    @cached_property
    def network(self) -> Network:
        """The network of the checkpoint with the weights to evaluate."""
        return self.backend.network(self.checkpoint.model.program, self.checkpoint.state.parts[self.weights])

    def checkpoint_facts(self) -> dict[str, Any]:
        """Return which checkpoint and weights are evaluated, as plain data."""
        return {
            "checkpoint": str(self.setup.checkpoint),
            "images_seen": self.checkpoint.images_seen,
            "weights": self.weights,
            "weights_sha256": weights_hash(self.setup.checkpoint, self.weights),
        }

    def data_facts(self) -> dict[str, Any]:
        """Return which data set is used, as plain data."""
        return dict(dataset_reference(self.dataset, self.setup.data.options).facts)

    def mean_number(
        self, name: str, values: NDArray, key: str, protocol: Mapping[str, Any], better: str, unit: str = ""
    ) -> Number:
        """Return the mean of one value per image, with an interval if there are at least two images per set.

        The fraction of images for which something holds, given as booleans, has Wilson's interval.

        Args:
            name: the name of the number.
            values: with shape (N,).
            key: the name of the number within its metric.
            protocol: everything that the number depends on.
            better: "lower" or "higher".
            unit: the unit of the values.
        """
        mean, sets = float(values.mean()), self.setup.sets
        without: tuple[float, ...] = ()
        if len(values) >= 2 * (sets or MIN_VALUES):
            partition = random_sets(len(values), sets, self.seed)
            without = tuple(float(np.delete(values, members).mean()) for members in partition.members)
            protocol = {**protocol, "sets": dict(partition.facts)}
        confidence = self.setup.confidence
        error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
        protocol = {**protocol, "confidence": confidence, "number": key}
        if values.dtype == bool:
            return Number(
                name, mean, protocol, wilson_interval(int(values.sum()), len(values), confidence), without, error,
                better, unit, trials=len(values),
            )  # fmt: skip
        interval = jackknife_interval(mean, without, confidence)
        return Number(name, mean, protocol, interval, without, error, better, unit)


def dataset_reference(dataset: Dataset, options: Mapping[str, Any], training: Dataset | None = None) -> SampleSet:
    """Return a data set as a reference for metrics.

    Args:
        dataset: the data set.
        options: its options; the protocol records the part.
        training: the data set on which the network was trained, if it is another one.
    """
    arrays = _comparable(dataset) | {"labels": dataset.labels, "class_count": np.array(dataset.num_classes)}
    split = dataset.reading.part or "all"
    split = next((str(options[key]) for key in ("part", "split") if options.get(key)), split)
    facts = {"name": dataset.name, "split": split, "count": len(dataset), "sha256": dataset.sha256}
    if training is not None:
        seen = _comparable(training)
        arrays |= {"training": seen["images"]} if "images" in seen else {}
        facts["training"] = {"name": training.name, "count": len(training), "sha256": training.sha256}
    return SampleSet(arrays, facts, classes=dataset.class_names if dataset.has_class_names else ())


def _comparable(dataset: Dataset) -> dict[str, Any]:
    """Return what samples are compared with: bytes, or the values of data that are no pictures."""
    if not dataset.is_pictures:
        return {"values": dataset.network_values(slice(None), dataset.images.dtype if not dataset.is_bytes else float)}
    return {"images": dataset.images if dataset.is_bytes else dataset.pictures()}


def _are_equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two sets of samples have the same images, or the same features."""
    names = [name for name in ("images", "features") if name in one and name in other]
    return bool(names) and all(np.array_equal(one[name], other[name]) for name in names)
