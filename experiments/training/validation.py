"""The validation of a run: which held-out images, and the loss of every set of weights on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import DTypeLike

from diffusion_core.backend.interface import Network
from diffusion_core.common.errors import DuetError
from diffusion_core.data import Dataset
from diffusion_core.data.held_out import AUTO
from diffusion_core.data.layout import UNLABELLED
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks.weights import Weights
from diffusion_core.runtime.distributed import Collective
from diffusion_core.training.objective import Objective
from diffusion_core.training.validation import Validation
from experiments.runtime.data import HeldOut, check_data

__all__ = ["ValidationOptions", "make_validation", "measure_all"]


@dataclass(frozen=True)
class ValidationOptions:
    """What the validation loss is measured on: the group `validation`.

    Args:
        part: the part of the data set; "auto" for its held-out part, if it has one; "none" or None for no validation.
        count: the number of images with their noise; see `training.validation.Validation`.
        batch: images that the network computes at a time.
    """

    part: str | None = AUTO
    count: int = 512
    batch: int = 128


def make_validation(
    model: DiffusionModel,
    objective: Objective,
    dataset: Dataset,
    held_out: HeldOut | None,
    options: ValidationOptions,
    dtype: DTypeLike,
) -> Validation | None:
    """Return the validation of a run; None without held-out images.

    Args:
        model: the network and its process.
        objective: what is trained.
        dataset: the training images.
        held_out: the held-out images; a part without classes, unless named, validates no network with classes.
        options: part, count and batch.
        dtype: the type of images and noise.

    Raises:
        DuetError: if the held-out images are the training images, or do not fit the network or its classes.
    """
    if held_out is None:
        return None
    if model.program.classes and options.part == AUTO and held_out.dataset.class_names == (UNLABELLED,):
        return None
    others = _with_classes_of(dataset, held_out) if model.program.classes else held_out.dataset
    check_data(others, model.spec, is_trained=False)
    if len(others) == len(dataset) and others.sha256 == dataset.sha256:
        raise DuetError(
            f"validation.part: the part {held_out.part!r} holds the training images; give other images, or none"
        )
    return Validation(model, objective, others, held_out.part, options.count, options.batch, dtype)


def _with_classes_of(dataset: Dataset, held_out: HeldOut) -> Dataset:
    """Return the held-out images with the class ids of the training images, matched by name."""
    names, own = dataset.class_names, held_out.dataset
    if own.class_names == names:
        return own
    unknown = [name for name in own.class_names if name not in names]
    if unknown:
        raise DuetError(
            f"validation.part: {held_out.part!r} has the class {unknown[0]!r}, but the training images have "
            f"{', '.join(names)}; give another part, or none"
        )
    ids = np.array([names.index(name) for name in own.class_names], np.int32)
    return replace(own, labels=ids[own.labels], class_names=names)


def measure_all(
    validation: Validation,
    parts: Mapping[str, Weights],
    network: Callable[[Weights], Network],
    collective: Collective,
    others: Mapping[str, Network] | None = None,
) -> dict[str, float]:
    """Return the numbers of the weights and of each moving average, by their names in the metrics of a run.

    Args:
        validation: the held-out images.
        parts: the weights of a training and their averages; see `TrainerState.evaluated`.
        network: returns a network with these weights.
        collective: the processes that each compute a part.
        others: the networks of a target beside the evaluated one, by name; None for an objective without.
    """
    numbers: dict[str, float] = {}
    for name, weights in parts.items():
        made = network(weights)
        given = made.forward if others is None else {**others, "trained": made}
        numbers |= validation.measure(given, name, collective)
    return numbers
