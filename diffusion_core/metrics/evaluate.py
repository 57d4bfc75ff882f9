"""Measuring samples by several metrics: each number of all samples together, with an interval from disjoint sets.

The samples are cut into sets by stream "evaluate/sets", or several sets are given, at least three either way. A number
is measured on all samples and once more on each of the S sets. The spread of the latter shows how far the number varies
with the samples drawn: with s_k the numbers of the sets, `bootstrap_interval` of them is an interval of a number of
S times fewer samples, whose mean varies as the number of all of them does (random groups). So the interval is moved
from the mean of the s_k to the number of all samples; where the number depends on how many samples there are, as a
Fréchet distance does, the interval then belongs to the number it stands beside. It covers the draw of the samples:
not that of the reference, nor another training.

References:
    Introduction to variance estimation (Wolter, 2007), https://doi.org/10.1007/978-0-387-35099-8, on random groups
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.errors import DuetError
from diffusion_core.metrics.agreement import AGREEMENT
from diffusion_core.metrics.colour import COLOUR
from diffusion_core.metrics.frechet import FRECHET, SPATIAL_FRECHET
from diffusion_core.metrics.kernel import KERNEL
from diffusion_core.metrics.manifold import MANIFOLD
from diffusion_core.metrics.metric import DoesNotApply, FeatureKind, Found, Meaning, Metric, Source
from diffusion_core.metrics.nearest import MEMORISATION, SPREAD
from diffusion_core.metrics.protocol import Number
from diffusion_core.metrics.score import SCORE
from diffusion_core.random import Stream
from diffusion_core.registry import build
from diffusion_core.statistics import Interval, bootstrap_interval
from diffusion_core.statistics.bootstrap import LEAST

__all__ = ["METRICS", "Evaluation", "Sets", "cut", "evaluate", "given"]

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
}


@dataclass(frozen=True, eq=False)
class Sets:
    """Disjoint sets of samples.

    Args:
        members: the places of the members of each, in rising order.
        facts: how they came about, as plain data.
    """

    members: tuple[NDArray[np.int64], ...]
    facts: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was found.

    Args:
        numbers: each with its protocol and interval.
        left_out: by metric, why it was not measured.
        found: by metric, its details for all samples together.
    """

    numbers: tuple[Number, ...]
    left_out: Mapping[str, str]
    found: Mapping[str, Found]


def cut(count: int, sets: int, seed: int) -> Sets:
    """So many samples cut into sets that differ in size by one at most, by stream "evaluate/sets".

    Raises:
        DuetError: there are fewer than three sets, or fewer than two samples in each.
    """
    if sets < LEAST:
        raise DuetError(f"sets: {sets} was given; an interval needs at least {LEAST}")
    if count < 2 * sets:
        raise DuetError(f"samples: {count} were given; {sets} sets of at least 2 need {2 * sets}")
    order = Stream(seed, "evaluate/sets").permutation(count)
    members = tuple(np.sort(part) for part in np.array_split(order, sets))
    return Sets(members, {"by": "stream evaluate/sets", "seed": seed, "count": sets})


def given(sizes: Sequence[int]) -> Sets:
    """Sets that were given, one after another.

    Raises:
        DuetError: there are fewer than three sets, or fewer than two samples in one.
    """
    if len(sizes) < LEAST or min(sizes) < 2:
        raise DuetError(f"sets: {len(sizes)} of {list(sizes)} samples were given; at least {LEAST} of 2 are needed")
    ends = np.cumsum([0, *sizes])
    members = tuple(np.arange(a, b) for a, b in itertools.pairwise(ends))
    return Sets(members, {"by": "given", "count": len(sizes), "sizes": list(sizes)})


def evaluate(
    metrics: Mapping[str, Mapping[str, Any]],
    samples: Source,
    sets: Sets,
    reference: Source,
    seed: int = 0,
    confidence: float = 0.95,
    progress: Callable[[int, str], None] | None = None,
) -> Evaluation:
    """Measure samples by metrics.

    Args:
        metrics: names of `METRICS` with their options.
        samples: all of them.
        sets: how they are cut.
        reference: what they are compared with.
        seed: of the metrics' streams.
        confidence: of the intervals.
        progress: called with the number of metrics that are done, and the next one's name.

    Raises:
        DuetError: a metric or an option does not exist, or what was given does not fit; no metric that merely lacks
            something raises, but is left out.
    """
    kind = samples.kind
    if kind != reference.kind and None not in (kind, reference.kind):
        raise DuetError(
            f"features: those of the samples are {kind.name} {dict(kind.facts)} and those of the reference "
            f"{reference.kind.name} {dict(reference.kind.facts)}; they must be the same"
        )
    count = sum(len(part) for part in sets.members)
    numbers, left_out, found = [], {}, {}
    fits = {name: metric.fit for name, metric in METRICS.items()}
    for done, (name, options) in enumerate(metrics.items()):
        if progress:
            progress(done, name)
        metric = METRICS.get(name)
        if metric and (missing := metric.missing(samples.parts, reference.parts)):
            left_out[name] = f"there are no {', '.join(missing)}"
            continue
        try:
            measure = build(f"metrics.{name}", fits, name, options, reference.parts, seed)
            whole = measure(samples.parts)
            parts = [measure({part: samples.parts[part][some] for part in metric.samples}) for some in sets.members]
        except DoesNotApply as reason:
            left_out[name] = str(reason)
            continue
        found[name] = whole
        protocol = {"metric": name, "samples": {"count": count, "sets": dict(sets.facts)}}
        protocol |= {"options": options} if (options := _options(metric, options)) else {}
        protocol |= {"reference": dict(reference.facts)} if metric.reference else {}
        protocol |= {"features": dict(kind.facts)} if metric.reads_features else {"quantised": "uint8"}
        protocol |= {"seed": seed, "confidence": confidence}
        for key, value in whole.numbers.items():
            meaning, of_sets = metric.numbers[key], tuple(float(part.numbers[key]) for part in parts)
            title = _title(meaning, kind if metric.reads_features else None)
            error = whole.errors.get(key)
            numbers.append(
                Number(
                    title, float(value), protocol | {"number": key}, _interval(float(value), of_sets, confidence),
                    of_sets, None if error is None else float(error), meaning.better, meaning.unit,
                )
            )  # fmt: skip
    if progress:
        progress(len(metrics), "")
    return Evaluation(tuple(numbers), left_out, found)


def _title(meaning: Meaning, kind: FeatureKind | None) -> str:
    if kind is None:
        return meaning.title
    return meaning.published if kind.is_published and meaning.published else f"{kind.name} {meaning.title}"


def _options(metric: Metric, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a metric, with the defaults of those that were not given."""
    parameters = inspect.signature(metric.fit).parameters.values()
    return {p.name: options.get(p.name, p.default) for p in parameters if p.kind is p.KEYWORD_ONLY}


def _interval(value: float, of_sets: Sequence[float], confidence: float) -> Interval | None:
    """See above; None where a set's number, or that of all, is not finite."""
    if not np.isfinite([value, *of_sets]).all():
        return None
    return bootstrap_interval(of_sets, confidence=confidence).around(float(np.mean(of_sets)), value)
