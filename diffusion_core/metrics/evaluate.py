"""Measure samples by several metrics: each number from all samples, with confidence intervals from disjoint sets.

The samples are cut into S sets by stream "evaluate/sets", or S sets are given; S is at least three and by default 20.
The reference is cut in the same way by stream "evaluate/reference-sets". `metrics.intervals` says which interval
follows, and what it is for.

Measuring the sets separately would be S times cheaper but less accurate, because a Fréchet distance or a recall
depends on the number of samples. A 95 % interval of the recall of 300 samples from five sets covered the truth in 83 %
of cases, and in 95 % with pseudo-values; of a Fréchet distance, in 92 and 93 %. Five sets make an interval 1.5 times
as wide as the ideal one, and 20 sets 1.2 times. A metric that draws a subset of many samples draws different ones
without a set, so its interval is too wide: by half, for precision from 500 of 2,500.

**Floors.** Some numbers are not perfect for perfect samples, because both sets are finite. The floor of a number is
its mean over a few sets of as many images as there are samples, drawn with replacement from the reference by stream
"evaluate/floor": what a generator of the distribution of the reference would score.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.common.registry import build
from diffusion_core.metrics.agreement import AGREEMENT
from diffusion_core.metrics.blocks import RowSelection
from diffusion_core.metrics.classifier import CLASSIFIER, PIXEL_CLASSIFIER
from diffusion_core.metrics.colour import COLOUR
from diffusion_core.metrics.frechet import FRECHET, SPATIAL_FRECHET
from diffusion_core.metrics.frechet_infinity import FRECHET_INFINITY
from diffusion_core.metrics.gaussian_kernel import GAUSSIAN_KERNEL
from diffusion_core.metrics.intervals import corrected_value, jackknife_interval, two_sample_interval
from diffusion_core.metrics.kernel import KERNEL
from diffusion_core.metrics.manifold import MANIFOLD
from diffusion_core.metrics.metric import (
    FEATURE_ARRAYS,
    FRACTION,
    OPTIONAL_ARRAYS,
    Arrays,
    FeatureKind,
    Measure,
    Metric,
    MetricResult,
    NotApplicable,
    NumberInfo,
    SampleSet,
)
from diffusion_core.metrics.nearest import MEMORISATION, SPREAD
from diffusion_core.metrics.protocol import Number
from diffusion_core.metrics.score import SCORE
from diffusion_core.statistics.bootstrap import MIN_VALUES
from diffusion_core.statistics.proportion import wilson_interval

__all__ = [
    "DEFAULT_SETS",
    "METRICS",
    "Evaluation",
    "Partition",
    "random_sets",
    "evaluate",
    "sets_from_sizes",
    "jackknife_interval",
    "metric_options",
]

DEFAULT_SETS = 20

METRICS: Mapping[str, Metric] = {
    "frechet": FRECHET,
    "kernel": KERNEL,
    "manifold": MANIFOLD,
    "score": SCORE,
    "spatial": SPATIAL_FRECHET,
    "agreement": AGREEMENT,
    "memorisation": MEMORISATION,
    "spread": SPREAD,
    "colour": COLOUR,
    "classifier": CLASSIFIER,
    "pixel_classifier": PIXEL_CLASSIFIER,
    "cmmd": GAUSSIAN_KERNEL,
    "frechet_infinity": FRECHET_INFINITY,
}


@dataclass(frozen=True, eq=False)
class Partition:
    """A partition of the samples into disjoint sets.

    Args:
        members: the indices of the samples of each set, in ascending order.
        facts: how the partition was made, as plain data for the protocol.
    """

    members: tuple[NDArray[np.int64], ...]
    facts: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"Partition({sum(map(len, self.members)):,} samples in {len(self.members)} sets)"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The result of `evaluate`.

    Args:
        numbers: the numbers, each with its protocol and interval.
        skipped: the reason by name, for each metric that could not be computed.
        results: the result of each metric for all samples together, with details.
    """

    numbers: tuple[Number, ...]
    skipped: Mapping[str, str]
    results: Mapping[str, MetricResult]

    def __repr__(self) -> str:
        return f"Evaluation({len(self.numbers)} numbers, {len(self.skipped)} metrics skipped)"


def random_sets(count: int, sets: int | None, seed: int, stream: str = "evaluate/sets") -> Partition:
    """Cut samples into sets that differ in size by at most one.

    Args:
        count: the number of samples.
        sets: the number of sets, at least three; None means `DEFAULT_SETS`, or fewer sets of two if there are fewer
            samples.
        seed: the seed of the stream.
        stream: the name of the stream.

    Raises:
        DuetError: there are fewer than three sets, or fewer than two samples per set.
    """
    sets = max(MIN_VALUES, min(DEFAULT_SETS, count // 2)) if sets is None else sets
    if sets < MIN_VALUES:
        raise DuetError(f"sets: {sets} was given; it must be at least {MIN_VALUES}")
    if count < 2 * sets:
        raise DuetError(f"samples: {count} were given; {sets} sets of at least 2 need {2 * sets}")
    order = Stream(seed, stream).permutation(count)
    members = tuple(np.sort(part) for part in np.array_split(order, sets))
    return Partition(members, {"by": f"stream {stream}", "seed": seed, "count": sets})


def sets_from_sizes(sizes: Sequence[int]) -> Partition:
    """Return a partition into consecutive sets of the given sizes.

    Raises:
        DuetError: there are fewer than three sets, or fewer than two samples in a set.
    """
    if len(sizes) < MIN_VALUES or min(sizes) < 2:
        raise DuetError(
            f"sets: {len(sizes)} of {list(sizes)} samples were given; at least {MIN_VALUES} of 2 are needed"
        )
    ends = np.cumsum([0, *sizes])
    members = tuple(np.arange(a, b) for a, b in itertools.pairwise(ends))
    return Partition(members, {"by": "given", "count": len(sizes), "sizes": list(sizes)})


def evaluate(
    metrics: Mapping[str, Mapping[str, Any]],
    samples: SampleSet,
    sets: Partition,
    reference: SampleSet,
    seed: int = 0,
    confidence: float = 0.95,
    progress: Callable[[int, str], None] | None = None,
    reference_sets: int | None = 0,
    floors: int = 0,
) -> Evaluation:
    """Measure samples by metrics.

    Args:
        metrics: the options of each metric, by its name in `METRICS`.
        samples: the samples.
        sets: a partition of the samples.
        reference: the set to compare with.
        seed: the seed of the metrics' streams.
        confidence: the confidence of the intervals.
        progress: called with the number of finished metrics, and the name of the next one.
        reference_sets: the number of disjoint sets of the reference, for intervals over its draw too; None means the
            default of `random_sets`, and 0 none.
        floors: the number of sets drawn from the reference of which the floor is the mean; 0 for no floor.

    Returns:
        The numbers. A metric that lacks an array, or does not apply, is skipped and listed with the reason.

    Raises:
        DuetError: a metric or an option is unknown or out of range, or the features of the sets differ.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> kind, draws = FeatureKind("my", {}), rng.standard_normal((2, 60, 3))
        >>> real, fake = (SampleSet({"features": features}, {}, kind) for features in draws)
        >>> result = evaluate({"frechet": {}}, fake, random_sets(60, 3, seed=0), real)
        >>> result.numbers[0].name
        'my Fréchet distance'
    """
    kind = samples.kind
    if kind != reference.kind and None not in (kind, reference.kind):
        raise DuetError(
            f"features: those of the samples are {kind.name} {dict(kind.facts)} and those of the reference "
            f"{reference.kind.name} {dict(reference.kind.facts)}; they must be the same"
        )
    count = sum(len(part) for part in sets.members)
    numbers, skipped, results = [], {}, {}
    fits = {name: metric.fit for name, metric in METRICS.items()}
    for done, (name, options) in enumerate(metrics.items()):
        if progress:
            progress(done, name)
        metric = METRICS.get(name)
        if metric and (missing := metric.missing(samples.arrays, reference.arrays)):
            skipped[name] = _reason(missing, kind)
            continue
        try:
            compatibility = metric.compatibility(kind, reference) if metric and metric.compatibility else {}
            measure = build(f"metrics.{name}", fits, name, options, reference.arrays, seed)
            result = measure(samples.arrays)
            without_sets = [_without(removed, metric, measure, result, samples.arrays) for removed in sets.members]
            fit = functools.partial(build, f"metrics.{name}", fits, name, options)
            without_reference = _without_reference(metric, fit, result, samples, reference, seed, reference_sets)
            floor = _floor(metric, measure, reference.arrays, count, seed, floors)
        except NotApplicable as reason:
            skipped[name] = str(reason)
            continue
        results[name] = result
        protocol = {"metric": name, "samples": {"count": count, "sets": dict(sets.facts)}}
        protocol |= {"options": options} if (options := metric_options(metric) | dict(options)) else {}
        protocol |= {"reference": _facts(metric, reference)} if metric.reference else {}
        protocol |= {"features": dict(kind.facts)} if metric.reads_features else {"quantised": "uint8"}
        protocol |= {**compatibility, "seed": seed, "confidence": confidence}
        for key in result.numbers:
            title = _title(metric.numbers[key], kind if metric.reads_features else None)
            rest, rest_of_reference = (
                tuple(float(values[key]) for values in sides) for sides in (without_sets, without_reference)
            )
            intervals = _intervals(metric.numbers[key], result, key, rest, rest_of_reference, confidence, count)
            numbers.append(replace(intervals, name=title, protocol=protocol | {"number": key}, floor=floor.get(key)))
    if progress:
        progress(len(metrics), "")
    return Evaluation(tuple(numbers), skipped, results)


def _reason(missing: Sequence[str], kind: FeatureKind | None) -> str:
    """Return why a metric cannot be measured without the arrays `missing`, as in "labels of the samples"."""
    arrays = {text.split()[0] for text in missing}
    if len(arrays) > 1 or not arrays <= set(FEATURE_ARRAYS):
        return f"it needs {', '.join(missing)}"
    title = "spatial features" if arrays == {"spatial"} else arrays.pop()
    if kind is None:
        return f"it needs {title}; set features=NAME, a feature network that computes them"
    return f"it needs {title}, which the features {kind.name} do not have"


def _without(
    removed: NDArray[np.int64], metric: Metric, measure: Measure, result: MetricResult, samples: Arrays
) -> Mapping[str, float]:
    """Return the numbers of all samples except some."""
    if result.without:
        return result.without(removed)
    rest = np.delete(np.arange(len(samples[metric.samples[0]])), removed)
    # Images are large, so metrics read them block by block.
    arrays = {name: samples[name][rest] for name in metric.samples if name != "images"}
    if "images" in metric.samples:
        arrays["images"] = RowSelection(samples["images"], rest)
    return measure(arrays).numbers


def _intervals(
    meaning: NumberInfo, result: MetricResult, key: str, without: tuple[float, ...],
    without_reference: tuple[float, ...], confidence: float, count: int,
) -> Number:  # fmt: skip
    """Return a number with its intervals and its corrected value, without its name and its protocol."""
    value, error, trials = float(result.numbers[key]), result.errors.get(key), result.trials.get(key)
    is_certain = meaning.bounds == FRACTION and value in FRACTION and set(without) == {value}
    if is_certain or (trials and np.isfinite(value)):
        fraction = min(max(value, 0.0), 1.0)
        interval = wilson_interval(fraction * (trials or count), trials or count, confidence)
    else:
        interval = meaning.bounded(jackknife_interval(value, without, confidence))
    corrected = None
    if (remaining := result.remaining_bias.get(key)) is not None:
        corrected = corrected_value(value, without, float(remaining))
    return Number(
        "", value, {}, interval, without, None if error is None else float(error), meaning.better, meaning.unit,
        meaning.bounded(two_sample_interval(value, without, without_reference, confidence)), without_reference,
        corrected=corrected, trials=trials,
    )  # fmt: skip


def _without_reference(
    metric: Metric, fit: Callable[..., Measure], result: MetricResult, samples: SampleSet, reference: SampleSet,
    seed: int, sets: int | None,
) -> list[Mapping[str, float]]:  # fmt: skip
    """Return the numbers without each set of the reference; none if its rows are not known, or images."""
    parts = [name for name in metric.reference if name in reference.arrays]
    if sets == 0 or not parts or not set(parts) <= set(FEATURE_ARRAYS):
        return []
    rows, found = len(reference.arrays[parts[0]]), []
    for removed in random_sets(rows, sets, seed, "evaluate/reference-sets").members:
        if result.without_reference:
            found.append(result.without_reference(removed))
            continue
        rest = np.delete(np.arange(rows), removed)
        part = {name: array[rest] if name in parts else array for name, array in reference.arrays.items()}
        found.append(fit(part, seed)(samples.arrays).numbers)
    return found


def _floor(
    metric: Metric, measure: Measure, reference: Arrays, count: int, seed: int, floors: int
) -> Mapping[str, float]:
    """Return the mean of each number over sets drawn from the reference with replacement."""
    if not floors or not metric.has_floor or any(name not in reference for name in metric.samples):
        return {}
    stream, found = Stream(seed, "evaluate/floor"), []
    for k in range(floors):
        drawn = (stream.uniform(np.array([k]), count)[0] * len(reference[metric.samples[0]])).astype(np.int64)
        found.append(measure({name: reference[name][drawn] for name in metric.samples}).numbers)
    return {key: float(np.mean([numbers[key] for numbers in found])) for key in found[0]}


def _facts(metric: Metric, reference: SampleSet) -> dict[str, Any]:
    """Return the facts of the reference, except those on arrays that the metric does not read."""
    return {
        key: value for key, value in reference.facts.items() if key not in OPTIONAL_ARRAYS or key in metric.optional
    }


def _title(meaning: NumberInfo, kind: FeatureKind | None) -> str:
    if kind is None:
        return meaning.title
    published = meaning.published if kind.is_published else meaning.published_on.get(kind.name)
    title = published or f"{kind.name} {meaning.title}"
    return f"{title}, {kind.departure}" if kind.departure else title


def metric_options(metric: Metric) -> dict[str, Any]:
    """Return all options of a metric, with their defaults."""
    parameters = inspect.signature(metric.fit).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
