"""Evaluating samples from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.data import Dataset
from diffusion_core.metrics.evaluate import METRICS, random_sets
from diffusion_core.metrics.metric import SampleSet
from diffusion_core.metrics.protocol import Number
from experiments.evaluation.context import dataset_reference
from experiments.evaluation.samples import SampleEvaluator, make_features
from experiments.runtime.processes import discard_output

__all__ = ["Scores", "evaluate"]


@dataclass(frozen=True, repr=False)
class Scores(Mapping[str, Number]):
    """The numbers of an evaluation by name; each has a value, an interval and the protocol that it was measured by.

    Args:
        numbers: by name, such as ``"digits Fréchet distance"``.
        skipped: by metric, why it was not measured.
    """

    numbers: Mapping[str, Number]
    skipped: Mapping[str, str]

    def __getitem__(self, name: str) -> Number:
        return self.numbers[name]

    def __iter__(self):
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __repr__(self) -> str:
        parts = []
        for number in self.numbers.values():
            interval = number.interval
            parts.append(
                f"{number.name} {number.value:.4g}"
                + (f" [{interval.low:.4g}, {interval.high:.4g}]" if interval else "")
            )
        parts += [f"skipped {name}: {reason}" for name, reason in self.skipped.items()]
        return f"Scores({'; '.join(parts)})"


def evaluate(
    images: NDArray[np.uint8],
    reference: Dataset,
    *,
    metrics: Sequence[str] | Mapping[str, Mapping[str, Any]] = ("frechet",),
    features: str | Mapping[str, Any] | None = None,
    labels: ArrayLike | None = None,
    training: Dataset | None = None,
    sets: int = 5,
    confidence: float = 0.95,
    seed: int = 0,
) -> Scores:
    """Compare images with a data set by metrics, each with an interval over disjoint sets of the images.

    Args:
        images: uint8 with shape (N, H, W, C).
        reference: the data set to compare with; its images have the same shape.
        metrics: names of `duet.METRICS`, or names with options.
        features: what the metrics read of images: ``"digits"``, ``"inception"`` or ``"onnx"``, or a name with options;
            None for metrics on pixels alone.
        labels: the class of each image, for metrics that compare classes.
        training: what the network was trained on, where it is not `reference`.
        sets: number of disjoint sets, at least 3.
        confidence: of the intervals.
        seed: of the sets and of metrics that draw.

    Raises:
        DuetError: for unknown names or options, images that do not fit the reference, or if no metric applies.

    Example:
        Digits against themselves::

            digits = duet.load_dataset("digits")
            scores = duet.evaluate(digits.images[:500], digits, features="digits")
    """
    if not isinstance(metrics, Mapping):
        metrics = {name: {} for name in metrics}
    features = {"name": features} if isinstance(features, str) else features
    evaluator = SampleEvaluator(
        make_features(features or {}), metrics, dataset_reference(reference, {}, training), seed, confidence
    )
    arrays = {"images": np.asarray(images)} | ({} if labels is None else {"labels": np.asarray(labels)})
    evaluator.check(arrays, len(images), sets)
    samples = SampleSet(arrays, {"name": "array", "count": len(images)})
    with discard_output():
        evaluation, _, _ = evaluator(samples, random_sets(len(images), sets, seed))
    if not evaluation.numbers:
        reading = [name for name in metrics if METRICS[name].reads_features]
        if reading and not features:
            raise DuetError(
                f"features: metric {reading[0]!r} needs a feature network; give features='digits' or "
                f"features='inception'"
            )
        reasons = "; ".join(f"{name}: {reason}" for name, reason in evaluation.skipped.items())
        raise DuetError(f"metrics: no metric can be computed: {reasons or 'give the name of at least one'}")
    return Scores({number.name: number for number in evaluation.numbers}, evaluation.skipped)
