"""The options of an evaluation, as plain data that can be written in Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusion_core.metrics.evaluate import METRICS
from experiments.runtime.backends import BackendSetup
from experiments.runtime.data import DataSource
from experiments.runtime.own_networks import OwnNetwork

__all__ = ["EvaluationSetup"]


def _none() -> dict[str, Any]:
    return {"name": "none"}


@dataclass(frozen=True)
class EvaluationSetup:
    """The options of an evaluation of saved samples, a checkpoint, or both.

    Args:
        samples: paths of runs, `.npz` files or folders of images; three or more are the sets of the intervals.
        reference: a path like those of `samples` to compare with, instead of `data`; or an `.npz` file of mu and sigma.
        data: the data set to compare samples with, or to evaluate a checkpoint on.
        training: the data set on which the network was trained, if that is not `data`; for memorisation.
        features: name and options of a feature network, see `experiments.features.FEATURES`; ``{"name": "none"}`` is
            none.
        metrics: the options of each metric by its name; by default all metrics with their default options.
        count: the number of samples to evaluate, drawn by stream; None means all.
        sets: the number of disjoint sets for the intervals; None means 20, or fewer for fewer than 40 samples.
        reference_sets: the same of the reference, for intervals over its draw too; 0 leaves them out.
        floors: the number of sets drawn from the reference of which the floor of a number is the mean; 0 for none.
        confidence: the confidence of the intervals.
        keep_features: whether to write the features of samples and reference, for use in another environment.
        checkpoint: a run directory or one of its checkpoints, for `likelihood`, `accuracy` and `loss`.
        weights: "model" or the name of an average; None means those with which its run samples.
        likelihood: name and options, see `experiments.evaluation.likelihood`.
        accuracy: name and options, see `experiments.evaluation.accuracy`.
        loss: name and options, see `experiments.evaluation.loss`.
        seed: the seed of all random streams.
        max_unreadable: the largest fraction of the images of a folder that may be unreadable; they are named.
        backend: the backend that evaluates the network of the checkpoint.
        network: the own network that the checkpoint is of.
    """

    samples: tuple[str, ...] = ()
    reference: str | None = None
    data: DataSource | None = None
    training: DataSource | None = None
    features: Mapping[str, Any] = field(default_factory=_none)
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {name: {} for name in METRICS})
    count: int | None = None
    sets: int | None = None
    reference_sets: int | None = None
    floors: int = 5
    confidence: float = 0.95
    keep_features: bool = False
    checkpoint: str | None = None
    weights: str | None = None
    likelihood: Mapping[str, Any] = field(default_factory=_none)
    accuracy: Mapping[str, Any] = field(default_factory=_none)
    loss: Mapping[str, Any] = field(default_factory=_none)
    seed: int = 0
    max_unreadable: float = 0.01
    backend: BackendSetup = field(default_factory=BackendSetup)
    network: OwnNetwork | None = None
