"""The number of samples, their classes, their seed, and the weights of the network that draw them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.backend.interface import average_names
from diffusion_core.common.errors import DuetError, check_choice, one_of
from diffusion_core.data.augment import LABEL
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.model.generate import describe_labels, known_labels
from diffusion_core.networks.program import Program
from diffusion_core.runs.checkpoint import Checkpoint
from experiments.sampling.classes import labels_with_images, named_labels, names_of_checkpoint

__all__ = ["RUN", "SampleOptions", "check_weights_name", "choose_weights", "sample_features", "sample_labels"]

RUN = "run"  # the labels that the run of a checkpoint samples


@dataclass(frozen=True)
class SampleOptions:
    """What is sampled.

    Args:
        count: number of samples.
        labels: one class for all, a list of classes that repeats, or None for every class in turn; a class is a
            number, or the name that it had in the data that the network was trained on.
        seed: of the noise.
        batch: samples per network call; it does not change any sample.
        weights: a moving average (``"ema"``, ``"ema1"`` ...) or ``"weights"``.
        files: ``"png"`` also writes each sample as a PNG file, in a folder per class; None does not.
        conditions: of a network with features: one vector for all samples, a list of vectors that repeats, or numbers
            by the names that they have in the data; None is zeros.
        autoencoder: the folder that decodes the samples of a network of latents; None is the one that encoded its data.
        latent_scaling: how latents are scaled, for a network that does not know what encoded its data: one of
            `networks.autoencoder.CONVENTIONS`.

    For samples of a checkpoint, None, and the labels ``"run"``, stand for the value of its run; `for_checkpoint` looks
    it up, and takes the default of this class where the checkpoint does not know it.
    """

    count: int | None = 64
    labels: int | str | Sequence[int | str] | None = None
    seed: int | None = 0
    batch: int | None = 128
    weights: str | None = None
    files: str | None = None
    conditions: Sequence[Any] | Mapping[str, float] | float | None = None
    autoencoder: str | None = None
    latent_scaling: str = "autoencoder"

    def check(self, model: DiffusionModel, averages: int, classifier: Program | None = None) -> None:
        """Refuse options that do not fit the network, or name an average that a run with `averages` of them lacks."""
        sample_labels(self.labels, self.count, model, classifier)
        if not isinstance(self.conditions, Mapping):
            sample_features(self.conditions, self.count, model.program)
        if self.batch < 1:
            raise DuetError(f"sample.batch: {self.batch} was given; it must be at least 1")
        if self.files not in (None, "png"):
            raise DuetError(
                f"sample.files: {self.files!r} was given; it must be png, which keeps every pixel, or null for none"
            )
        if self.weights is not None:
            check_weights_name("sample.weights", self.weights, averages)

    def with_names(self, names: Mapping[int, str]) -> SampleOptions:
        """Return the options with numbers in place of the names of classes; see `named_labels`."""
        return replace(self, labels=named_labels("sample.labels", self.labels, names))

    def for_checkpoint(self, checkpoint: Checkpoint, classifier: Checkpoint | None = None) -> SampleOptions:
        """Return the options with every value that was left open chosen as in the run of the checkpoint.

        Names of classes become numbers.
        """
        own = {} if checkpoint.training is None else checkpoint.training.sample
        chosen = {name: own.get(name, getattr(SampleOptions, name)) for name in self.left_open if name != "weights"}
        weights = choose_weights("sample.weights", self.weights, checkpoint)
        options = replace(self, **chosen, weights=weights).with_names(names_of_checkpoint(checkpoint, classifier))
        return options.with_classes(labels_with_images(checkpoint))

    def with_classes(self, labels: Sequence[int] | None) -> SampleOptions:
        """Return the options with these labels in turn if every class was asked for; None changes nothing."""
        return self if self.labels is not None or labels is None else replace(self, labels=labels)

    @property
    def left_open(self) -> tuple[str, ...]:
        """The options that are those of the run."""
        unset = [name for name in ("count", "seed", "batch", "weights", "conditions") if getattr(self, name) is None]
        return (*unset, *(["labels"] if self.labels == RUN else []))


def check_weights_name(key: str, name: str, averages: int) -> None:
    """Refuse a name of weights that a run with this number of averages does not have; the error names `key`."""
    names = (*average_names(averages), "weights")
    if name not in names:
        raise one_of(key, name, names)


def choose_weights(key: str, name: str | None, checkpoint: Checkpoint) -> str:
    """Return which weights of a checkpoint are used: the named ones, or those that its run samples with.

    Raises:
        DuetError: for weights that the checkpoint does not have; it names `key`.
    """
    name = checkpoint.notes.get("weights", "ema") if name is None else name
    check_weights_name(key, name, len(checkpoint.state.averages))
    return name


def sample_labels(
    labels: int | Sequence[int] | None, count: int, model: DiffusionModel, classifier: Program | None = None
) -> NDArray[np.int32]:
    """Return the label of each sample, with shape (count,).

    Args:
        labels: one class for all, a list of classes that repeats, or None for every class in turn.
        count: number of samples.
        model: the network.
        classifier: the program of a classifier that guides; its classes count if the network has none.

    Raises:
        DuetError: for a class that does not exist, or `count` below 1.
    """
    program, known = model.program, known_labels(model.program, classifier)
    if count < 1:
        raise DuetError(f"sample.count: {count} was given; it must be at least 1")
    every = program.labels or (classifier.labels if classifier else range(1))
    chosen = every if labels is None else labels
    try:
        chosen = np.atleast_1d(np.asarray(list(chosen) if isinstance(chosen, range) else chosen))
        is_valid = chosen.size > 0 and np.issubdtype(chosen.dtype, np.integer)
    except (TypeError, ValueError):
        is_valid = False
    if not is_valid:
        raise DuetError(f"sample.labels: {labels!r} was given; it must be a class, a list of classes, or null")
    if labels is not None and not np.all(is_known := np.isin(chosen, known)):
        wrong = ", ".join(map(str, dict.fromkeys(chosen[~is_known].tolist())))
        raise DuetError(f"sample.labels: {wrong} was given; {describe_labels(program, classifier)}")
    return np.resize(chosen, count).astype(np.int32)


def sample_features(
    conditions: ArrayLike | Mapping[str, float] | None, count: int, program: Program, names: Sequence[str] = ()
) -> NDArray[np.float64] | None:
    """Return the features of each sample, with shape (count, program.features); None for zeros.

    Args:
        conditions: one vector for all samples, vectors that repeat with shape (M, D), or numbers by name, the others
            being 0. The features of a network that was also trained with EDM's augmentation end with its nine numbers,
            which are 0.
        count: number of samples.
        program: the network.
        names: of the conditions, in the data that the network was trained on.

    Raises:
        DuetError: the network takes no conditions, or others; or a name is unknown.
    """
    if conditions is None:
        return None
    size = program.features
    if not size:
        raise DuetError(f"sample.conditions: {conditions!r} was given, but the network takes no conditions")
    if isinstance(conditions, Mapping):
        if not names:
            raise DuetError("sample.conditions: names were given, but the checkpoint has none; give a list of numbers")
        for name in conditions:
            check_choice("sample.conditions", name, names)
        conditions = [conditions.get(name, 0.0) for name in names]
    try:
        values = np.asarray(conditions, np.float64)
    except (TypeError, ValueError):
        values = np.full(1, np.nan)
    values = values.reshape(1, -1) if values.ndim < 2 else values
    width = values.shape[-1]
    if values.ndim != 2 or not len(values) or width not in (size, size - LABEL) or not np.isfinite(values).all():
        raise DuetError(
            f"sample.conditions: {conditions!r} was given; it must be {len(names) or size} numbers, a list of such "
            f"vectors, or numbers by name"
        )
    return np.pad(values[np.arange(count) % len(values)], ((0, 0), (0, size - width)))
