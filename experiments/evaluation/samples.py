"""Evaluate samples by metrics: for `duet evaluate samples=...`, and at the end of a training.

The metrics are those of `diffusion_core.metrics.evaluate`, on the features of the group `features`. The reference is
every image of a data set as it is stored, never mirrored, with the size of the samples; or a file of samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.common.random import Stream
from diffusion_core.common.registry import build, check_options
from diffusion_core.common.text import pluralize
from diffusion_core.images import render
from diffusion_core.images.points import is_point, panels
from diffusion_core.metrics import evaluate as core
from diffusion_core.metrics.evaluate import METRICS, Evaluation, Partition, evaluate
from diffusion_core.metrics.files import align_labels, write_features, write_statistics
from diffusion_core.metrics.metric import FEATURE_ARRAYS, SampleSet
from diffusion_core.runs.run_directory import write_arrays
from experiments.evaluation.context import EvaluationContext, Measure, Measurement
from experiments.features import FEATURES, Features, extract
from experiments.runtime.progress import Counter

__all__ = ["SampleEvaluator", "make_features", "measure_samples", "select_samples"]

_BATCH = 50  # images of 299 x 299 per batch

# By another common name of a metric, a hint at its name here.
_OTHER_NAMES = {
    "fid": " FID is 'frechet' with features='inception'",
    "sfid": " sFID is 'spatial' with features='inception'",
    "kid": " KID is 'kernel' with features='inception'",
    "is": " The inception score is 'score' with features='inception'",
    "c2st": " A classifier two-sample test is 'classifier' on features and 'pixel_classifier' on pixels",
    "fd-dinov2": " FD-DINOv2 is 'frechet' with features='dinov2' and files of features",
    "precision": " Precision and recall are 'manifold'",
    "recall": " Precision and recall are 'manifold'",
}


def make_features(options: Mapping[str, Any]) -> Features | None:
    """Return the feature network of a configuration group, or None for ``{"name": "none"}``."""
    options = dict(options)
    name = options.pop("name", "none")
    return None if name == "none" else build("features", FEATURES, name, options)


@dataclass(frozen=True, eq=False)
class SampleEvaluator:
    """Evaluates samples by metrics against a reference; checked on construction.

    Args:
        features: the feature network; None if the sets have features of their own, or none are needed.
        metrics: the options of each metric, by its name.
        reference: the set to compare with.
        seed: the seed of the metrics' streams.
        confidence: the confidence of the intervals.
        reference_sets: the number of sets of the reference for intervals over its draw; 0 for none, None for the
            default.
        floors: the number of sets drawn from the reference for the floor of a number; 0 for none.

    Raises:
        DuetError: a metric or an option is unknown, or a number is out of range.
    """

    features: Features | None
    metrics: Mapping[str, Mapping[str, Any]]
    reference: SampleSet
    seed: int = 0
    confidence: float = 0.95
    reference_sets: int | None = 0
    floors: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise DuetError(f"confidence: {self.confidence} was given; it must lie between 0 and 1, as 0.95")
        if self.reference_sets is not None and (self.reference_sets < 0 or 0 < self.reference_sets < core.MIN_VALUES):
            raise DuetError(
                f"reference_sets: {self.reference_sets} was given; it must be at least {core.MIN_VALUES}, 0 for no "
                f"interval over the draw of the reference, or null for the default"
            )
        if self.floors < 0:
            raise DuetError(f"floors: {self.floors} was given; it must be at least 1, or 0 for no floor")
        fits = {name: metric.fit for name, metric in METRICS.items()}
        for name, options in self.metrics.items():
            if name not in METRICS:
                raise DuetError(f"{one_of('metrics', name, METRICS)}{_OTHER_NAMES.get(name.lower(), '')}")
            check_options(f"metrics.{name}", fits, name, options, arguments=2)

    def check(self, arrays: Mapping[str, Any], count: int, sets: int | None) -> None:
        """Refuse samples that cannot be evaluated, before they exist.

        Args:
            arrays: the arrays of the samples; only their shapes count.
            count: the number of samples.
            sets: the number of sets.
        """
        core.random_sets(count, sets, self.seed)
        sides = [{name for name in ("images", "values") if name in side} for side in (arrays, self.reference.arrays)]
        if all(sides) and not sides[0] & sides[1]:
            given, compared = ("images" if "images" in side else "values of other shapes" for side in sides)
            raise DuetError(
                f"samples: they are {given}, but {self.reference.facts['name']} holds {compared}; compare them with "
                f"data of their own kind"
            )
        common = "images" if sides[0] & sides[1] & {"images"} else "values"
        shapes = [np.shape(side[common])[1:] for side in (arrays, self.reference.arrays) if common in side]
        if len(set(shapes)) > 1:
            raise DuetError(
                f"samples: they are {_size(shapes[0])}; the images of {self.reference.facts['name']} are "
                f"{_size(shapes[1])}; resize the data to the size of the samples with data.options.size"
            )
        read = None if self.features is None else self.features.source(self.reference.arrays)
        if self.features is not None and read is None and "values" in self.reference.arrays:
            raise DuetError(
                f"features: {self.features.kind.name} was given, which reads images, but "
                f"{self.reference.facts['name']} holds no pictures; use features=values"
            )
        if read is not None:
            self.features.compute(np.ascontiguousarray(read[:1]))
        self._check_statistics(arrays)

    def _check_statistics(self, arrays: Mapping[str, Any]) -> None:
        """Refuse samples whose features have another width than the statistics that are the reference."""
        statistics = self.reference.facts.get("statistics", {})
        is_computed = self.features is not None and self.features.reads != "features"
        for name, mean in (("features", "mu"), ("spatial", "mu_s")):
            width = None
            if mean in statistics and name in arrays:
                width = arrays[name].shape[1]
            elif mean in statistics and is_computed and "images" in arrays:
                computed = self.features.compute(np.zeros((1, *np.shape(arrays["images"])[1:]), np.uint8))
                width = computed[name].shape[1] if name in computed else None
            if width is not None and width != statistics[mean]:
                raise DuetError(
                    f"reference: {self.reference.facts['name']} has the statistics of {statistics[mean]} {name}, and "
                    f"the samples have {width}; choose the feature network that made it with features=NAME"
                )

    def __call__(self, samples: SampleSet, sets: Partition, name: str = "") -> tuple[Evaluation, SampleSet, SampleSet]:
        """Evaluate samples, whose labels are matched to the reference by class name.

        Returns the evaluation, and samples and reference with their features.

        Progress messages contain `name`, if one is given.
        """
        suffix = f" ({name})" if name else ""
        samples, remark = align_labels(samples, self.reference)
        if remark:
            print(f"{remark}{suffix}", flush=True)
        samples, reference = (
            _with_features(sample_set, self.features, what, suffix)
            for sample_set, what in ((samples, "samples"), (self.reference, "reference"))
        )
        with Counter(f"metrics{suffix}", len(self.metrics), unit="metrics") as progress:
            evaluation = evaluate(
                self.metrics, samples, sets, reference, seed=self.seed, confidence=self.confidence, progress=progress,
                reference_sets=self._reference_sets(reference), floors=self.floors,
            )  # fmt: skip
        return evaluation, samples, reference

    def _reference_sets(self, reference: SampleSet) -> int | None:
        """Return the number of sets of the reference; 0 for statistics, or too few images for the default."""
        few = self.reference_sets is None and len(reference) < 2 * core.MIN_VALUES
        return 0 if few or "statistics" in reference.facts else self.reference_sets


def _size(shape: tuple[int, ...]) -> str:
    """Return the shape of an image as text, as in "8 x 8 x 1"."""
    return " x ".join(map(str, shape))


def _with_features(sample_set: SampleSet, features: Features | None, what: str, suffix: str) -> SampleSet:
    """Return a set with features, which are computed unless it has them."""
    if features is None or (sample_set.kind is not None and sample_set.kind == features.kind):
        return sample_set
    is_named = features.reads == "features"
    if is_named and "features" not in sample_set.arrays and "statistics" not in sample_set.facts:
        raise DuetError(
            f"features: {features.kind.name} was given, which is read from files, but the {what} hold no features; "
            f"compute them with the network and save them as `features` (N, D) of an .npz file"
        )
    if sample_set.kind is not None and not (is_named and sample_set.kind.name == "given"):
        raise DuetError(
            f"features: {features.kind.name} was given, but the {what} have those of {sample_set.kind.name}"
        )
    if (read := features.source(sample_set.arrays)) is None:
        return replace(sample_set, kind=features.kind) if is_named else sample_set
    with Counter(f"features of the {what}{suffix}", len(sample_set)) as progress:
        arrays = extract(features, read, _BATCH, progress)
    return replace(sample_set, arrays={**sample_set.arrays, **arrays}, kind=features.kind)


def measure_samples(context: EvaluationContext) -> Measure:
    """Check the samples of an evaluation, and return the function that evaluates them."""
    setup = context.setup
    features = make_features(setup.features)
    evaluator = SampleEvaluator(
        features, setup.metrics, context.reference, context.seed, setup.confidence, setup.reference_sets, setup.floors
    )
    samples, sets = select_samples(context.samples, context.file_sizes, setup.count, setup.sets, context.seed)
    evaluator.check(samples.arrays, len(samples), setup.sets)
    context.note([_describe_sets(samples, len(context.samples), context.reference)])

    def measure(out: Path) -> Measurement:
        evaluation, with_features, reference = evaluator(samples, sets)
        if not evaluation.numbers:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in evaluation.skipped.items())
            raise DuetError(f"metrics: no metric can be computed: {reasons or 'choose some with metrics=[NAME,NAME]'}")
        _write_details(evaluation, out)
        if setup.keep_features:
            for name, sample_set in (("samples", with_features), ("reference", reference)):
                if set(sample_set.arrays) & set(FEATURE_ARRAYS):
                    write_features(out / "features" / f"{name}.npz", sample_set)
                if "features" in sample_set.arrays:
                    file = out / "features" / f"{name}-statistics.npz"
                    write_statistics(file, sample_set.arrays, sample_set.kind, sample_set.facts)
        facts = {
            "samples": dict(samples.facts), "reference": dict(reference.facts),
            "features": with_features.kind and with_features.kind.plain,
            "versions": dict(features.versions) if features else {}, "left_out": dict(evaluation.skipped),
        }  # fmt: skip
        return Measurement(facts, evaluation.numbers)

    return measure


def _describe_sets(samples: SampleSet, of: int, reference: SampleSet) -> str:
    """Return how many samples are compared with how many images of which reference."""
    drawn = f"{len(samples):,}" if len(samples) == of else f"{len(samples):,} of {of:,}"
    facts = reference.facts
    images = facts.get("count") or (0 if "statistics" in facts else len(reference))
    which = ", ".join(str(facts[key]) for key in ("name", "split") if facts.get(key))
    return f"samples: {drawn}; reference: {which}" + (f", {pluralize(images, 'image')}" if images else "")


def _write_details(evaluation: Evaluation, out: Path) -> None:
    """Write the arrays of all metrics, and the images that some of them show."""
    details = {
        f"{name}/{key}": array for name, result in evaluation.results.items() for key, array in result.arrays.items()
    }
    write_arrays(out / "evaluation.npz", **details)
    for name, result in evaluation.results.items():
        if result.image_rows:
            rows = [
                (caption, panels(images) if is_point(images.shape) else images) for caption, images in result.image_rows
            ]
            scale = max(1, 64 // rows[0][1].shape[1])
            render.save_png(out / f"{name}.png", render.labelled_rows(rows, scale=scale))


def select_samples(
    samples: SampleSet, sizes: tuple[int, ...], count: int | None, sets: int | None, seed: int
) -> tuple[SampleSet, Partition]:
    """Return the samples to evaluate, and their partition into sets.

    Args:
        samples: all samples.
        sizes: the number of samples in each file; if all samples of at least three files are used, files are the sets.
        count: the number of samples to draw by stream "evaluate/samples"; None means all.
        sets: the number of sets otherwise.
        seed: the seed of the streams.
    """
    if count is None:
        from_files = len(sizes) >= core.MIN_VALUES
        return samples, core.sets_from_sizes(sizes) if from_files else core.random_sets(len(samples), sets, seed)
    if not 1 <= count <= len(samples):
        raise DuetError(f"count: {count} was given; count must be 1 to {len(samples)}, or null for all")
    drawn = np.sort(Stream(seed, "evaluate/samples").permutation(len(samples))[:count])
    arrays = {name: array[drawn] for name, array in samples.arrays.items()}
    return replace(samples, arrays=arrays), core.random_sets(count, sets, seed)
