"""Class agreement: how often a feature network recognises samples as the class that was requested.

Class id k of the labels must mean the same as class k of the network. If the class names of both are known, they are
compared, and the metric does not apply if they differ; otherwise the protocol records that they were not compared.
Arrays without class names get their class ids as names ("0", "1", ...), as the digits have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import join_some
from diffusion_core.metrics.blocks import check_finite
from diffusion_core.metrics.metric import (
    FRACTION,
    Arrays,
    FeatureKind,
    Measure,
    Metric,
    MetricResult,
    NotApplicable,
    NumberInfo,
    SampleSet,
)

__all__ = ["AGREEMENT", "Agreement", "agreement"]


@dataclass(frozen=True, eq=False)
class Agreement:
    """How often images show the requested class.

    Args:
        confusion: counts with shape (K, K): the row is the requested class, the column the recognised class.
    """

    confusion: NDArray[np.int64]

    def __repr__(self) -> str:
        return f"Agreement(rate {self.rate:.4g}, {len(self.confusion)} classes)"

    @property
    def rate(self) -> float:
        """The fraction of images that show the requested class."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def per_class(self) -> NDArray[np.float64]:
        """The fraction for each requested class, with shape (K,); NaN for a class without images."""
        requested = self.confusion.sum(axis=1)
        rates = np.full(len(requested), np.nan)
        return np.divide(np.diagonal(self.confusion), requested, out=rates, where=requested > 0)


def agreement(predicted: NDArray[np.integer], labels: ArrayLike, classes: int) -> Agreement:
    """Compare recognised with requested classes.

    Args:
        predicted: the recognised class ids 0..K-1, with shape (N,).
        labels: the requested class ids, with shape (N,).
        classes: K.

    Raises:
        DuetError: the labels are not N integers in 0..K-1.

    Example:
        >>> agreement(np.array([0, 1, 1]), [0, 1, 0], classes=2).per_class
        array([0.5, 1. ])
    """
    labels = np.asarray(labels)
    valid = np.issubdtype(labels.dtype, np.integer) and labels.shape == predicted.shape
    if not valid or labels.min() < 0 or labels.max() >= classes:
        raise DuetError(
            f"class agreement: labels of {labels.dtype} with shape {labels.shape} were given; "
            f"there must be {len(predicted)} integers in 0..{classes - 1}"
        )
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    return Agreement(confusion)


def _fit(reference: Arrays, seed: int) -> Measure:
    # A part of a data set may lack its last classes.
    classes = int(reference.get("class_count", reference["labels"].max() + 1))

    def measure(samples: Arrays) -> MetricResult:
        probabilities = samples["probabilities"]
        if probabilities.shape[1] != classes:
            raise NotApplicable(f"the features have {probabilities.shape[1]} classes and the reference has {classes}")
        check_finite(probabilities, "agreement: probabilities of the samples")
        result = agreement(probabilities.argmax(axis=1), samples["labels"], classes)
        trials = {"rate": len(probabilities)}
        return MetricResult({"rate": result.rate}, arrays={"confusion": result.confusion}, trials=trials)

    return measure


def _compare_classes(kind: FeatureKind, reference: SampleSet) -> dict[str, Any]:
    """Return the protocol entry on class names; raise `NotApplicable` if the names differ."""
    sides = {"the features": kind.classes, "the reference": reference.classes}
    if unknown := [what for what, names in sides.items() if not names]:
        return {"classes": f"not compared by name: the names of {' and '.join(unknown)} are not known"}
    if kind.classes != reference.classes:
        recognised, requested = (join_some(names, 10) for names in sides.values())
        raise NotApplicable(f"the classes of the features are {recognised}, and those of the reference {requested}")
    return {"classes": "of the same names"}


AGREEMENT = Metric(
    _fit,
    ("labels", "probabilities"),
    ("labels",),
    {"rate": NumberInfo("recognised as the requested class", better="higher", bounds=FRACTION)},
    optional=("class_count",),
    compatibility=_compare_classes,
)
