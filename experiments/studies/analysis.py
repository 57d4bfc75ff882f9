"""The answer of a study: each metric of each arm over the seeds, and its paired comparison with the baseline.

The seeds of a comparison are those for which both arms have a finite value; the number of seeds left out is reported.
A comparison asks two questions, each with its own test, so there are four answers:

    equivalent      a difference of the margin is excluded, and none is shown
    within margin   a difference is shown, and it is smaller than the margin
    different       a difference is shown, and one of the margin is not excluded
    undecided       neither: there are too few seeds for this standard deviation, or there is no margin

The p values of the differences are adjusted by Holm over all comparisons of a metric. Those of the equivalence tests
are not: that *all* arms are equivalent is claimed only where every single test says so, which needs no adjustment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_core.statistics.bootstrap import Interval
from diffusion_core.statistics.paired import Equivalence, Paired, compare, holm, pairs_needed
from experiments.studies.plan import Arm, Metric, Plan
from experiments.studies.results import Outcome, check_protocol, value

__all__ = ["Comparison", "Finding", "Summary", "analyse"]


@dataclass(frozen=True, eq=False)
class Summary:
    """A metric of an arm over the seeds.

    Args:
        arm: the arm.
        values: the values with shape (seeds,); NaN where a run has none.
    """

    arm: Arm
    values: NDArray[np.float64]

    @property
    def known(self) -> NDArray[np.float64]:
        """The finite values."""
        return self.values[np.isfinite(self.values)]

    @property
    def mean(self) -> float:
        """The mean over the seeds; NaN if there is no value."""
        return float(self.known.mean()) if len(self.known) else math.nan

    @property
    def std(self) -> float:
        """The standard deviation over the seeds; NaN for fewer than two values."""
        return float(self.known.std(ddof=1)) if len(self.known) > 1 else math.nan

    def interval(self) -> Interval | None:
        """Return Student's interval of 95 % confidence; None for fewer than two values."""
        return Paired(self.known).interval() if len(self.known) > 1 else None


@dataclass(frozen=True, eq=False)
class Comparison:
    """An arm against its baseline.

    Args:
        arm: the arm.
        baseline: the arm that it is compared with.
        seeds: the seeds of the pairs.
        missing: the number of seeds without a pair.
        paired: the differences, or logarithms of ratios; None without a pair.
        p: the p value of no difference, adjusted by Holm.
        equivalence: the test of the margin; None without a margin or a pair.
        needed: the number of seeds with which equal arms of this standard deviation would be found equivalent four
            times out of five.
        alpha: significance level of the tests.
    """

    arm: Arm
    baseline: Arm
    seeds: tuple[int, ...]
    missing: int
    paired: Paired | None
    p: float
    equivalence: Equivalence | None
    needed: int | None
    alpha: float

    @property
    def answer(self) -> str:
        """One of the four answers; "no pairs" without a pair."""
        if self.paired is None:
            return "no pairs"
        shown = self.p < self.alpha
        if self.equivalence is not None and self.equivalence.holds:
            return "within margin" if shown else "equivalent"
        return "different" if shown else "undecided"


@dataclass(frozen=True, eq=False)
class Finding:
    """A metric of all arms, and all its comparisons."""

    metric: Metric
    summaries: tuple[Summary, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def equivalent(self) -> bool | None:
        """Whether every arm is within the margin of its baseline; None if no margin was stated."""
        if self.metric.margin is None:
            return None
        return all(c.answer in ("equivalent", "within margin") for c in self.comparisons)


def analyse(plan: Plan, outcomes: Sequence[Outcome]) -> list[Finding]:
    """Return every metric of the study, from the outcomes of its runs in the order of the plan."""
    return [_finding(plan, metric, outcomes) for metric in plan.study.metrics]


def _finding(plan: Plan, metric: Metric, outcomes: Sequence[Outcome]) -> Finding:
    check_protocol(metric, outcomes)
    found: dict[Arm, dict[int, float]] = {arm: {} for arm in plan.arms}
    for outcome in outcomes:
        found[outcome.run.arm][outcome.run.seed] = value(outcome, metric)
    seeds = plan.study.seeds
    values = {arm: np.array([of[seed] for seed in seeds]) for arm, of in found.items()}
    pairs = [_paired(metric, seeds, values, arm, baseline) for arm, baseline in plan.comparisons()]
    adjusted = holm([math.nan if paired is None else paired.p_value() for *_, paired in pairs])
    comparisons = []
    for (arm, baseline, kept, paired), p in zip(pairs, adjusted, strict=True):
        bound, alpha = metric.bound, plan.study.alpha
        tested = paired is not None and bound is not None
        known_std = tested and math.isfinite(paired.std)
        comparisons.append(
            Comparison(
                arm,
                baseline,
                kept,
                len(seeds) - len(kept),
                paired,
                p,
                equivalence=paired.equivalence(bound, alpha) if tested else None,
                needed=pairs_needed(bound, paired.std, alpha=alpha) if known_std else None,
                alpha=alpha,
            )
        )
    return Finding(metric, tuple(Summary(arm, of) for arm, of in values.items()), tuple(comparisons))


def _paired(
    metric: Metric, seeds: Sequence[int], values: Mapping[Arm, NDArray[np.float64]], arm: Arm, baseline: Arm
) -> tuple[Arm, Arm, tuple[int, ...], Paired | None]:
    a, b = values[baseline], values[arm]
    both = np.isfinite(a) & np.isfinite(b)
    kept = tuple(seed for seed, known in zip(seeds, both, strict=True) if known)
    return arm, baseline, kept, compare(a[both], b[both], metric.scale) if kept else None
