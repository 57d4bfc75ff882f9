"""What gives the weights of a checkpoint their meaning: the data, the classes, the process, and how a run samples.

A label is a number; only the class names say that 0 is a bird. A null class is a row of an embedding table; only the
number of images that were trained without their class says whether that row means anything. A checkpoint therefore
keeps a `TrainingRecord` with its weights, as ``"training"`` in state.json::

    data        name, content hash, number of images, class names in their order, images of each class,
                part and options, flip, augment
    process     schedule, prediction, value range and the other options of process and objective
    labels      the present label dropout, and the images that were trained without their class so far
    optimiser   options of the optimiser, the learning rate, the batch and the averages
    sampling    sampler and sample options of the run
    init        how the weights of the network began

Keys are only ever added: a reader ignores keys that it does not know, and gives defaults to those that are missing.
Checkpoints of earlier versions, and imported weights, have no record.

May import: common.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from diffusion_core.common.errors import DuetError

__all__ = ["DataRecord", "TrainingRecord"]


@dataclass(frozen=True)
class DataRecord:
    """The data that a network was trained on.

    Args:
        name: of the data set.
        sha256: of shape, class names, labels and pixels; see `Dataset.sha256`. It depends on neither path nor date.
        images: their number.
        class_names: the name of each class id, in order.
        class_images: the number of images of each class.
        part: of the data set, such as ``"train"``; None if the data set has one part or names none.
        options: of the data set, as they were given.
        flip: whether half of the images were mirrored.
        augment: the probability of each change of EDM's augmentation.
        dtype: of the stored items; those of floats are no bytes that samples could be rounded to.
        condition_names: the name of each condition of an image.
        latents: how the items were encoded, if they are latents, see `data.latents.LatentRecord`; empty for others.
    """

    name: str
    sha256: str
    images: int
    class_names: tuple[str, ...]
    class_images: tuple[int, ...] = ()
    part: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    flip: bool = False
    augment: float = 0.0
    dtype: str = "uint8"
    condition_names: tuple[str, ...] = ()
    latents: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_text(self, "name", "sha256", "dtype")
        _check_counts("data", "images", [self.images])
        _check_counts("data", "class_images", self.class_images)
        if not self.class_names or not all(isinstance(name, str) for name in self.class_names):
            raise DuetError(f"training record: class_names is {self.class_names!r}, not a list of names")
        if self.class_images and len(self.class_images) != len(self.class_names):
            raise DuetError(
                f"training record: class_images has {len(self.class_images)} entries for {len(self.class_names)} "
                f"classes"
            )

    def __repr__(self) -> str:
        return f"DataRecord({self.name!r}, {self.images:,} images, {len(self.class_names)} classes, {self.sha256[:12]})"

    @property
    def empty_class_ids(self) -> tuple[int, ...]:
        """The ids of the classes without an image."""
        return tuple(k for k, count in enumerate(self.class_images) if not count)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the record of the plain data that `to_dict` made; unknown keys are ignored."""
        return cls(**_known(cls, data, tuples=("class_names", "class_images", "condition_names")))


@dataclass(frozen=True)
class TrainingRecord:
    """What gives the weights of a checkpoint their meaning.

    Args:
        data: what the network was trained on last.
        process: options of the diffusion process and of the objective, as in the configuration group `process`.
        label_dropout: the probability of training an image without its class, at present.
        dropped_labels: the number of images that were trained without their class over the whole history of the
            weights, as label_dropout predicts it; None if a part of that history is not known, as for imported weights.
        earlier_data: what the weights were trained on before, oldest first.
        batch: images per update.
        optimiser: options of the optimiser.
        learning_rate: options of the learning rate.
        averages: name and options of each average of the weights.
        sampler: name and options of the sampler of the run.
        sample: number, labels, seed, batch and weights of the samples of the run.
        init: the name of the initialisation of the network; None for a network that has only one.
    """

    data: DataRecord
    process: Mapping[str, Any] = field(default_factory=dict)
    label_dropout: float = 0.0
    dropped_labels: int | None = None
    earlier_data: tuple[DataRecord, ...] = ()
    batch: int | None = None
    optimiser: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: Mapping[str, Any] = field(default_factory=dict)
    averages: tuple[Mapping[str, Any], ...] = ()
    sampler: Mapping[str, Any] = field(default_factory=dict)
    sample: Mapping[str, Any] = field(default_factory=dict)
    init: str | None = None

    def __post_init__(self) -> None:
        for name in ("process", "optimiser", "learning_rate", "sampler", "sample"):
            if not isinstance(getattr(self, name), Mapping):
                raise DuetError(f"training record: {name} is {getattr(self, name)!r}, not a table of options")
        if self.dropped_labels is not None:
            _check_counts("training record", "dropped_labels", [self.dropped_labels])
        if not isinstance(self.label_dropout, int | float) or not 0 <= self.label_dropout <= 1:
            raise DuetError(f"training record: label_dropout is {self.label_dropout!r}, not a probability")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class of the data, in order."""
        return self.data.class_names

    @property
    def value_range(self) -> tuple[float, float]:
        """The network's values of black and white."""
        low, high = self.process.get("value_range", (-1.0, 1.0))
        return float(low), float(high)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the record of the plain data that `to_dict` made; unknown keys are ignored.

        Raises:
            DuetError: if a value is of another type.
        """
        known = _known(cls, data, tuples=("averages",))
        known["data"] = DataRecord.from_dict(known["data"])
        known["earlier_data"] = tuple(DataRecord.from_dict(one) for one in known.get("earlier_data", ()))
        return cls(**known)


def _known(cls: type, data: Mapping[str, Any], tuples: Sequence[str]) -> dict[str, Any]:
    """Return the entries that a dataclass has fields for, with lists as tuples where it has tuples."""
    known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
    return known | {name: tuple(known[name]) for name in tuples if name in known}


def _check_text(record: Any, *names: str) -> None:
    for name in names:
        if not isinstance(getattr(record, name), str):
            raise DuetError(f"training record: {name} is {getattr(record, name)!r}, not text")


def _check_counts(what: str, name: str, values: Sequence[Any]) -> None:
    for value in values:
        if type(value) is not int or value < 0:
            raise DuetError(f"training record: {what} has {name} {value!r}, not a whole number of at least 0")
