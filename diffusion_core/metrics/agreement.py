"""Do samples show the class that they were asked for, as a network of features sees it.

Class id k of the labels must mean what class k of the network means. Where the names of both are known they are
compared, and the metric does not apply where they differ; else the protocol says that they were not. Arrays without
names have their class ids as names ("0", "1", ...), as digits have: what these show, only who gave them knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError
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
    """How often images show the class they were asked for.

    Args:
        confusion: counts with shape (K, K): row is the class asked for, column the class seen.
    """

    confusion: NDArray[np.int64]

    @property
    def rate(self) -> float:
        """The share of images that show their class."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def per_class(self) -> NDArray[np.float64]:
        """The share within each class asked for, with shape (K,); NaN where there was no such image."""
        asked = self.confusion.sum(axis=1)
        share = np.full(len(asked), np.nan)
        return np.divide(np.diagonal(self.confusion), asked, out=share, where=asked > 0)


def agreement(seen: NDArray[np.integer], labels: ArrayLike, classes: int) -> Agreement:
    """How often the class seen is the class asked for.

    Args:
        seen: class ids 0..K-1 with shape (N,).
        labels: those asked for, with shape (N,).
        classes: K.

    Raises:
        DuetError: the labels are not as many whole numbers in 0..K-1.
    """
    labels = np.asarray(labels)
    whole = np.issubdtype(labels.dtype, np.integer) and labels.shape == seen.shape
    if not whole or labels.min() < 0 or labels.max() >= classes:
        raise DuetError(
            f"class agreement: labels of {labels.dtype} with shape {labels.shape} were given; "
            f"there must be {len(seen)} whole numbers in 0..{classes - 1}"
        )
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, seen), 1)
    return Agreement(confusion)


def _fit(reference: Arrays, seed: int) -> Measure:
    classes = int(reference["labels"].max()) + 1

    def measure(samples: Arrays) -> MetricResult:
        given = samples["probabilities"]
        if given.shape[1] != classes:
            raise NotApplicable(f"the features tell {given.shape[1]} classes apart and the reference has {classes}")
        found = agreement(given.argmax(axis=1), samples["labels"], classes)
        return MetricResult({"rate": found.rate}, arrays={"confusion": found.confusion})

    return measure


def _compared(kind: FeatureKind, reference: SampleSet) -> dict[str, Any]:
    """Whether the classes have the same names on both sides."""
    sides = {"the features": kind.classes, "the reference": reference.classes}
    if unknown := [what for what, names in sides.items() if not names]:
        return {"classes": f"not compared by name: the names of {' and '.join(unknown)} are not known"}
    if kind.classes != reference.classes:
        told, asked = (_brief(names) for names in sides.values())
        raise NotApplicable(f"the classes of the features are {told}, and those of the reference {asked}")
    return {"classes": "of the same names"}


def _brief(names: tuple[str, ...]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


AGREEMENT = Metric(
    _fit,
    ("labels", "probabilities"),
    ("labels",),
    {"rate": NumberInfo("recognised as the class asked for", better="higher", bounds=FRACTION)},
    compared=_compared,
)
