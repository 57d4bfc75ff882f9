"""What a metric is: a function fitted to a reference, which then reads sets of samples and gives numbers.

A set is a mapping of parts, each an array with one row per image:

    images        uint8 (N, H, W, C)
    labels          class ids (N,): of a sample, the class that it was asked for
    features        (N, D), what a network makes of each image as a whole
    spatial         (N, D'), what it makes of each of its places
    probabilities   (N, K), what it gives each class

A set has the parts that someone gave or some kind of features computed, and a metric says which it reads.
A reference may also have `training`, the uint8 images that the network was trained on; where it has none, its own
images stand for them. What its facts say under that name is of this part alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.statistics import Interval

__all__ = [
    "FEATURE_ARRAYS",
    "OPTIONAL_ARRAYS",
    "ARRAY_NAMES",
    "NON_NEGATIVE",
    "FRACTION",
    "NotApplicable",
    "FeatureKind",
    "MetricResult",
    "NumberInfo",
    "Measure",
    "Metric",
    "Arrays",
    "SampleSet",
]

Arrays = Mapping[str, NDArray]

FRACTION, NON_NEGATIVE = (0.0, 1.0), (0.0, np.inf)

ARRAY_NAMES = ("images", "labels", "features", "spatial", "probabilities")
OPTIONAL_ARRAYS = ("training",)
# Those that depend on which features were computed.
FEATURE_ARRAYS = ("features", "spatial", "probabilities")


class NotApplicable(DuetError):
    """A metric says nothing of these sets; whoever measures several leaves it out and says why."""


@dataclass(frozen=True)
class FeatureKind:
    """Which features a set has.

    Args:
        name: what stands before the name of a number that is measured on them, as in "digits Fréchet distance".
        facts: all that they depend on beside the images, as plain data.
        is_published: whether they are of the network that FID and its like are defined by.
        departure: in what they still are not those of published numbers; it stands behind the name of every number, as
            in "FID, antialiased resize".
        classes: the names of the classes that their probabilities are of, in that order, where they are known.
    """

    name: str
    facts: Mapping[str, Any]
    is_published: bool = False
    departure: str = ""
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))  # from a file it comes as a list

    @property
    def plain(self) -> dict[str, Any]:
        """It as plain data."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class SampleSet:
    """A set with what is known of it.

    Args:
        arrays: see above.
        facts: which images they are, as plain data: of a reference they are part of every protocol.
        kind: of its features, where it has some.
        classes: the name of each class id of its labels, where they are known.
    """

    arrays: Arrays
    facts: Mapping[str, Any]
    kind: FeatureKind | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))


@dataclass(frozen=True)
class NumberInfo:
    """How a number is called and read.

    Args:
        title: its name, to which that of the features is added where the metric reads any: "Fréchet distance".
        published: the name that is kept for Inception with the published weights: "FID".
        better: "lower" or "higher", or nothing where neither is.
        unit: of the number.
        bounds: between which the number lies, whatever the sets.
    """

    title: str
    published: str = ""
    better: str = ""
    unit: str = ""
    bounds: tuple[float, float] = (-np.inf, np.inf)

    def bounded(self, interval: Interval | None) -> Interval | None:
        """What of an interval lies within the bounds."""
        if interval is None:
            return None
        low, high = np.clip([interval.low, interval.high], *self.bounds)
        return Interval(float(low), float(high), interval.confidence)


@dataclass(frozen=True, eq=False)
class MetricResult:
    """What a metric found in a set of samples.

    Args:
        numbers: by the names of `Metric.numbers`.
        errors: what is by custom printed behind a number's ±, where it has such a thing.
        arrays: details per sample or class, for who wants to look closer.
        shown: captioned rows of images, where there is something to see.
        without: the numbers of all samples but those at some places, where they follow from what was found of each.
    """

    numbers: Mapping[str, float]
    errors: Mapping[str, float] = field(default_factory=dict)
    arrays: Mapping[str, NDArray] = field(default_factory=dict)
    shown: tuple[tuple[str, NDArray], ...] = ()
    without: Callable[[NDArray[np.int64]], Mapping[str, float]] | None = None


Measure = Callable[[Arrays], MetricResult]


@dataclass(frozen=True)
class Metric:
    """A metric.

    Args:
        fit: takes the reference, the seed of its streams, and its options as keyword-only arguments, checks them, and
            gives what measures a set of samples against that reference.
        samples: the parts of a set of samples that it reads.
        reference: those of the reference.
        numbers: what it gives.
        optional: the parts of the reference that it reads where they are there.
        compared: takes the kind of the features and the reference, and gives what the protocol says of how they fit
            beyond their numbers, as plain data; raises `NotApplicable` where they do not.
    """

    fit: Callable[..., Measure]
    samples: tuple[str, ...]
    reference: tuple[str, ...]
    numbers: Mapping[str, NumberInfo]
    optional: tuple[str, ...] = ()
    compared: Callable[[FeatureKind, SampleSet], Mapping[str, Any]] | None = None

    @property
    def reads_features(self) -> bool:
        """Whether its numbers depend on which features were computed."""
        return any(part in FEATURE_ARRAYS for part in (*self.samples, *self.reference))

    def missing(self, samples: Arrays, reference: Arrays) -> tuple[str, ...]:
        """The parts that it lacks, in words."""
        lacking = [f"{part} of the samples" for part in self.samples if part not in samples]
        return (*lacking, *(f"{part} of the reference" for part in self.reference if part not in reference))
