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
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_core.statistics.bootstrap import Interval
from diffusion_core.statistics.paired import Equivalence, Paired, compare, holm, pairs_needed
from experiments.studies.plan import Arm, Metric, Plan, Study
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
    by_run = {(outcome.run.arm, outcome.run.seed): value(outcome, metric) for outcome in outcomes}
    values = {arm: np.array([by_run[arm, seed] for seed in plan.study.seeds]) for arm in plan.arms}
    pairs = plan.comparisons()
    known = [np.isfinite(values[arm]) & np.isfinite(values[baseline]) for arm, baseline in pairs]
    paired = [
        compare(values[baseline][both], values[arm][both], metric.scale) if both.any() else None
        for (arm, baseline), both in zip(pairs, known, strict=True)
    ]
    adjusted = holm([math.nan if one is None else one.p_value() for one in paired])
    comparisons = [
        _comparison(plan.study, metric, arm, baseline, both, one, p)
        for (arm, baseline), both, one, p in zip(pairs, known, paired, adjusted, strict=True)
    ]
    return Finding(metric, tuple(Summary(arm, own) for arm, own in values.items()), tuple(comparisons))


def _comparison(
    study: Study, metric: Metric, arm: Arm, baseline: Arm, both: NDArray[np.bool_], paired: Paired | None, p: float
) -> Comparison:
    """Test the margin of a comparison; `both` marks the seeds for which both arms have a value."""
    seeds = tuple(seed for seed, known in zip(study.seeds, both, strict=True) if known)
    equivalence = needed = None
    if paired is not None and metric.bound is not None:
        equivalence = paired.equivalence(metric.bound, study.alpha)
        needed = pairs_needed(metric.bound, paired.std, alpha=study.alpha) if math.isfinite(paired.std) else None
    missing = len(study.seeds) - len(seeds)
    return Comparison(arm, baseline, seeds, missing, paired, p, equivalence, needed, study.alpha)
