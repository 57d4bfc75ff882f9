"""Metrics: functions that are fitted to a reference and then measure sample sets.

A sample set or a reference is a mapping of named arrays with one row per image:

    images          uint8 (N, H, W, C)
    labels          class ids (N,); for a sample, the requested class
    features        (N, D), the features of each image as a whole
    spatial         (N, D'), the features of all positions of an image
    probabilities   (N, K), the probability of each class

A sample set has the arrays that were loaded, or computed by a feature network; a metric declares which arrays it
reads. A reference of which only mean and covariance of the features were published has `mu` (D,) and `sigma` (D, D), or
`mu_s` and `sigma_s` for spatial features, and no other array. A reference may also have `training`, the uint8 images
that the network was trained on, and `class_count`, the number of its classes. Without `training`, the images of the
reference serve as training images. The entry "training" of its facts describes this array alone.
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
    "STATISTICS",
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

ARRAY_NAMES = ("images", "values", "labels", "features", "spatial", "probabilities")
OPTIONAL_ARRAYS = ("training", "class_count")
# The arrays that depend on the feature network.
FEATURE_ARRAYS = ("features", "spatial", "probabilities")
# Mean and covariance of features, and of spatial features: all that is known of some published references.
STATISTICS = ("mu", "sigma", "mu_s", "sigma_s")


class NotApplicable(DuetError):
    """A metric cannot be computed for this sample set and reference; `evaluate` skips it and reports the reason."""


@dataclass(frozen=True)
class FeatureKind:
    """The feature network of a sample set.

    Args:
        name: the prefix of the names of numbers that are measured on it, as in "digits Fréchet distance".
        facts: everything besides the images that the features depend on, as plain data.
        is_published: whether it is the network for which FID and similar names are defined.
        departure: how the features still differ from those of published numbers; appended to the name of every number,
            as in "FID, antialiased resize".
        classes: the class names of its probabilities, in order, if they are known.
    """

    name: str
    facts: Mapping[str, Any]
    is_published: bool = False
    departure: str = ""
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))  # a list if read from a file

    @property
    def plain(self) -> dict[str, Any]:
        """The kind as plain data."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class SampleSet:
    """Samples or a reference, with facts about them.

    Args:
        arrays: the named arrays, see above.
        facts: which images they are, as plain data; those of a reference are part of every protocol.
        kind: the kind of its features, if it has any.
        classes: the name of each class id of its labels, if they are known; an empty text for an id that is no class.
        remarks: what a person should know about how it was read, one line each.
    """

    arrays: Arrays
    facts: Mapping[str, Any]
    kind: FeatureKind | None = None
    classes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"SampleSet({len(self):,} rows: {', '.join(self.arrays)})"

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))


@dataclass(frozen=True)
class NumberInfo:
    """The name and the meaning of a number.

    Args:
        title: its name, such as "Fréchet distance"; the name of the features is prepended if the metric reads any.
        published: the name reserved for Inception with the published weights, such as "FID".
        better: "lower" or "higher", or "" if neither is better.
        unit: the unit of the number.
        bounds: the interval in which the number always lies.
        published_on: by the name of other features, the name of the number on them, such as "FD-DINOv2".
    """

    title: str
    published: str = ""
    better: str = ""
    unit: str = ""
    bounds: tuple[float, float] = (-np.inf, np.inf)
    published_on: Mapping[str, str] = field(default_factory=dict)

    def bounded(self, interval: Interval | None) -> Interval | None:
        """Return the part of a confidence interval within the bounds."""
        if interval is None:
            return None
        low, high = np.clip([interval.low, interval.high], *self.bounds)
        return Interval(float(low), float(high), interval.confidence)


@dataclass(frozen=True, eq=False)
class MetricResult:
    """What a metric measured on a sample set.

    Args:
        numbers: values by the names of `Metric.numbers`.
        errors: the standard deviations that are conventionally printed after ±, for some numbers.
        arrays: details per sample or class.
        image_rows: rows of images with captions, to look at.
        without: returns the numbers of all samples except those at some indices, for metrics that can compute them
            faster than by measuring again.
        without_reference: the same for some rows of the reference.
        trials: by name, the number of independent trials of which the number is the fraction of successes.
        remaining_bias: by name, the size of the bias that remains after that of first order in 1/n is removed.
    """

    numbers: Mapping[str, float]
    errors: Mapping[str, float] = field(default_factory=dict)
    arrays: Mapping[str, NDArray] = field(default_factory=dict)
    image_rows: tuple[tuple[str, NDArray], ...] = ()
    without: Callable[[NDArray[np.int64]], Mapping[str, float]] | None = None
    without_reference: Callable[[NDArray[np.int64]], Mapping[str, float]] | None = None
    trials: Mapping[str, int] = field(default_factory=dict)
    remaining_bias: Mapping[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in self.numbers.items())
        return f"MetricResult({numbers})"


Measure = Callable[[Arrays], MetricResult]


@dataclass(frozen=True)
class Metric:
    """A metric.

    Args:
        fit: takes the reference, the seed of its streams, and its options as keyword-only arguments; checks them, and
            returns a function that measures a sample set against that reference.
        samples: the arrays of the samples that it reads.
        reference: the arrays of the reference that it reads.
        numbers: the numbers that it returns.
        optional: the arrays of the reference that it reads if they exist.
        compatibility: takes the kind of the features and the reference, and returns protocol entries on how they match;
            raises `NotApplicable` if they do not.
        substitutes: by array of the reference, other arrays of it that together can replace that array.
        has_floor: whether images of the reference itself, as many as there are samples, have a number worth knowing.
    """

    fit: Callable[..., Measure]
    samples: tuple[str, ...]
    reference: tuple[str, ...]
    numbers: Mapping[str, NumberInfo]
    optional: tuple[str, ...] = ()
    compatibility: Callable[[FeatureKind, SampleSet], Mapping[str, Any]] | None = None
    substitutes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    has_floor: bool = False

    @property
    def reads_features(self) -> bool:
        """Whether its numbers depend on the feature network."""
        return any(part in FEATURE_ARRAYS for part in (*self.samples, *self.reference))

    def missing(self, samples: Arrays, reference: Arrays) -> tuple[str, ...]:
        """Return the missing arrays, as texts such as "labels of the samples"."""
        missing = [f"{part} of the samples" for part in self.samples if part not in samples]
        for part in self.reference:
            others = self.substitutes.get(part)
            if part not in reference and not (others and all(other in reference for other in others)):
                missing.append(f"{part} of the reference")
        return tuple(missing)
