"""Judging samples by metrics: what `experiments.evaluate samples=...` does, and a training at its end.

The metrics are those of `diffusion_core.metrics.evaluate`; on which features, the group `features` says. The reference
is every image of a data set as it is stored, never mirrored, of the size of the samples; or a file, as samples are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.common.registry import build, check_options
from diffusion_core.images import render
from diffusion_core.metrics import evaluate as core
from diffusion_core.metrics.evaluate import METRICS, Evaluation, Partition, evaluate
from diffusion_core.metrics.files import write_features
from diffusion_core.metrics.metric import FEATURE_ARRAYS, SampleSet
from experiments.config.convert import plain
from experiments.evaluation.context import EvaluationContext, Measure, Measurement, write_arrays
from experiments.runtime.progress import Counter
from features import FEATURES, Features, extract

__all__ = ["SampleEvaluator", "chosen", "make_features", "measure"]

BATCH = 50  # images of 299 x 299 at once


def make_features(options: Mapping[str, Any]) -> Features | None:
    """The features of a configuration's group, or None."""
    options = dict(options)
    name = options.pop("name", "none")
    return None if name == "none" else build("features", FEATURES, name, options)


@dataclass(frozen=True, eq=False)
class SampleEvaluator:
    """How samples are judged, checked when made.

    Args:
        features: what the metrics read of images; None where the sets have features of their own, or none.
        metrics: names with their options.
        reference: what samples are compared with.
        seed: of the metrics' streams.
        confidence: of the intervals.
    """

    features: Features | None
    metrics: Mapping[str, Mapping[str, Any]]
    reference: SampleSet
    seed: int = 0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        fits = {name: metric.fit for name, metric in METRICS.items()}
        for name, options in self.metrics.items():
            check_options(f"metrics.{name}", fits, name, options, arguments=2)

    def check(self, parts: Mapping[str, Any], count: int, sets: int) -> None:
        """Refuse samples with such parts, of which the shape counts, that cannot be judged."""
        core.random_sets(count, sets, self.seed)
        shapes = [np.shape(side["images"])[1:] for side in (parts, self.reference.arrays) if "images" in side]
        if len(set(shapes)) > 1:
            raise DuetError(
                f"samples: they are {shapes[0]} (h, w, c) and the images of {self.reference.facts['name']} "
                f"{shapes[1]}; bring the data to the size of the samples with data.options"
            )
        if self.features is not None and "images" in self.reference.arrays:
            self.features.compute(np.ascontiguousarray(self.reference.arrays["images"][:1]))

    def __call__(self, samples: SampleSet, sets: Partition) -> tuple[Evaluation, SampleSet, SampleSet]:
        """Judge them; gives the samples and the reference too, with their features."""
        samples, reference = (
            _with_features(source, self.features, what)
            for source, what in ((samples, "samples"), (self.reference, "reference"))
        )
        with Counter("metrics", len(self.metrics), unit="metrics") as progress:
            found = evaluate(
                self.metrics, samples, sets, reference, seed=self.seed, confidence=self.confidence, progress=progress
            )
        return found, samples, reference


def _with_features(source: SampleSet, features: Features | None, what: str) -> SampleSet:
    """A set with features, computed where it has none."""
    if features is None or (source.kind is not None and source.kind == features.kind):
        return source
    if source.kind is not None:
        raise DuetError(f"features: {features.kind.name} was given, but the {what} have those of {source.kind.name}")
    if "images" not in source.arrays:
        return source
    with Counter(f"features of the {what}", len(source)) as progress:
        parts = extract(features, source.arrays["images"], BATCH, progress)
    return replace(source, arrays={**source.arrays, **parts}, kind=features.kind)


def measure(given: EvaluationContext) -> Measure:
    """Judge the samples of a configuration of `experiments.evaluate`."""
    cfg = given.cfg
    judge = SampleEvaluator(
        make_features(plain(cfg.features)), plain(cfg.metrics), given.reference, given.seed, cfg.confidence
    )
    samples, sets = chosen(given.samples, given.sets_given, cfg.count, cfg.sets, given.seed)
    judge.check(samples.arrays, len(samples), cfg.sets)

    def run(out: Path) -> Measurement:
        found, judged, reference = judge(samples, sets)
        if not found.numbers:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in found.skipped.items())
            raise DuetError(f"metrics: none of them applies; {reasons or 'choose some with metrics=[NAME,NAME]'}")
        arrays = {f"{name}/{key}": array for name, one in found.results.items() for key, array in one.arrays.items()}
        write_arrays(out / "evaluation.npz", **arrays)
        for name, one in found.results.items():
            if one.image_rows:
                scale = max(1, 64 // one.image_rows[0][1].shape[1])
                render.save_png(out / f"{name}.png", render.labelled_rows(one.image_rows, scale=scale))
        if cfg.keep_features:
            for source, name in ((judged, "samples"), (reference, "reference")):
                if set(source.arrays) & set(FEATURE_ARRAYS):
                    write_features(out / "features" / f"{name}.npz", source)
        facts = {
            "samples": dict(samples.facts), "reference": dict(reference.facts),
            "features": judged.kind and judged.kind.plain,
            "versions": dict(judge.features.versions) if judge.features else {}, "left_out": dict(found.skipped),
        }  # fmt: skip
        return Measurement(facts, found.numbers)

    return run


def chosen(
    sources: SampleSet, sizes: tuple[int, ...], count: int | None, sets: int, seed: int
) -> tuple[SampleSet, Partition]:
    """As many samples as asked for, by stream "evaluate/samples", and their sets: those given where they are enough."""
    if count is None:
        return sources, core.sets_from_sizes(sizes) if len(sizes) >= core.MIN_VALUES else core.random_sets(
            len(sources), sets, seed
        )
    if not 1 <= count <= len(sources):
        raise DuetError(f"count: {count} was given; there are 1 to {len(sources)} samples, or null for all")
    some = np.sort(Stream(seed, "evaluate/samples").permutation(len(sources))[:count])
    parts: dict[str, NDArray] = {name: array[some] for name, array in sources.arrays.items()}
    return replace(sources, arrays=parts), core.random_sets(count, sets, seed)
