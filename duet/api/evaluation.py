"""Evaluating samples from Python."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.data.arrays import host_array
from diffusion_core.data.pixels import from_uint8
from diffusion_core.metrics.evaluate import METRICS, random_sets
from diffusion_core.metrics.files import align_labels, read_sample_set
from diffusion_core.metrics.metric import SampleSet
from diffusion_core.metrics.protocol import Number
from duet.api.data import as_loaded
from duet.api.options import check_types
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


@check_types
def evaluate(
    images: NDArray[np.uint8] | str | Path,
    reference: Any,
    *,
    metrics: Sequence[str] | Mapping[str, Mapping[str, Any]] = ("frechet",),
    features: str | Mapping[str, Any] | None = None,
    labels: ArrayLike | None = None,
    training: Any = None,
    sets: int | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    reference_sets: int | None = 0,
    floors: int = 0,
) -> Scores:
    """Compare images with a data set by metrics, each with an interval over disjoint sets of the images.

    What is left out of a folder, and labels that cannot be compared, are warnings.

    Args:
        images: uint8 with shape (N, H, W, C); or floats of any shape, in the values of the network, for a reference of
            the same kind; or the path of a run, a folder of images or an `.npz` file.
        reference: the data set to compare with, or what `duet.load_dataset` takes of objects, whose images have the
            same shape; or such a path, or that of an `.npz` file with published statistics, `mu` and `sigma`.
        metrics: names of `duet.METRICS`, or names with options.
        features: what the metrics read of images: ``"digits"``, ``"inception"``, ``"onnx"`` or ``"values"`` (the values
            themselves, for data of any shape), or a name with options; None for metrics on pixels alone.
        labels: the class of each image, for metrics that compare classes.
        training: what the network was trained on, where it is not `reference`.
        sets: number of disjoint sets, at least 3; None means 20, or fewer for fewer than 40 images.
        confidence: of the intervals.
        seed: of the sets and of metrics that draw.
        reference_sets: number of disjoint sets of the reference, for `interval_both` of a number, which also covers the
            draw of the reference; 0 for none, None for the default of `sets`.
        floors: number of sets drawn from the reference, as many images each as there are samples, whose mean is the
            `floor` of a number; 0 for none.

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
    if isinstance(reference, str | Path):
        compared = _read(reference)
    else:
        compared = dataset_reference(as_loaded(reference), {}, None if training is None else as_loaded(training))
    if isinstance(images, str | Path):
        samples = _read(images)
    else:
        given = host_array(images)
        kind = "images" if given.dtype == np.uint8 else "values"
        values = compared.arrays.get("values")
        is_like_values = values is not None and "images" not in compared.arrays and given.shape[1:] == values.shape[1:]
        if kind == "images" and is_like_values:  # bytes that are no pictures, such as two channels
            kind, given = "values", from_uint8(given, np.float64)
        samples = SampleSet({kind: given}, {"name": "array", "count": len(given)})
    if labels is not None:
        samples = replace(samples, arrays={**samples.arrays, "labels": np.asarray(labels)}, classes=())
    samples, remark = align_labels(samples, compared)
    if remark:
        warnings.warn(remark, stacklevel=2)
    evaluator = SampleEvaluator(
        make_features(features or {}), metrics, compared, seed, confidence, reference_sets, floors
    )
    evaluator.check(samples.arrays, len(samples), sets)
    with discard_output():
        evaluation, _, _ = evaluator(samples, random_sets(len(samples), sets, seed))
    if not evaluation.numbers:
        reading = [name for name in metrics if METRICS[name].reads_features]
        if reading and not features:
            raise DuetError(
                f"features: metric {reading[0]!r} needs a feature network; give features='digits' or "
                f"features='inception', or features='values' for data without one"
            )
        reasons = "; ".join(f"{name}: {reason}" for name, reason in evaluation.skipped.items())
        raise DuetError(f"metrics: no metric can be computed: {reasons or 'give the name of at least one'}")
    return Scores({number.name: number for number in evaluation.numbers}, evaluation.skipped)


def _read(path: str | Path) -> SampleSet:
    read = read_sample_set(path)
    for remark in read.remarks:
        warnings.warn(f"{path}: {remark}", stacklevel=3)
    return read
