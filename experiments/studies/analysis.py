"""The answer of a study: each metric of each arm over the seeds, and its paired comparison with the baseline.

Every arm is planned with every seed. A comparison with a missing pair, because a run diverged, failed or was not made,
is "incomplete": its interval describes the pairs that exist, and nothing is tested, because runs that diverge are not a
random part of all runs. How runs ended is an outcome of its own, see `experiments.studies.endings`.

With all pairs a comparison asks two questions, each with its own test, so there are four answers:

    equivalent      a difference of the margin is excluded, and none is shown
    within margin   a difference is shown, and it is smaller than the margin
    different       a difference is shown, and one of the margin is not excluded
    undecided       neither: there are too few seeds for this standard deviation, or there is no margin

Without spread there is no test, and two more answers describe the pairs: "identical" if every difference is zero, and
"constant" if all are equal but not zero.

The p values of the differences are adjusted by Holm over all comparisons of all metrics, so the probability that the
study finds any difference between equal arms is at most alpha. Those of the equivalence tests are not: that *all* arms
are equivalent is claimed only where every single test says so, which needs no adjustment (an intersection-union test).
The levels are those of the present look, see `experiments.studies.looks`.

References:
    Multiparameter hypothesis testing and acceptance sampling (Berger, 1982), https://doi.org/10.1080/00401706.1982.10487790,
    on intersection-union tests
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_core.statistics.bootstrap import Interval
from diffusion_core.statistics.paired import Equivalence, Paired, compare, holm, pairs_needed, upper_std
from experiments.studies.looks import Look, next_look
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
        """Return Student's interval of 95 % confidence; None if fewer than two values differ."""
        return Paired(self.known).interval() if len(self.known) > 1 and self.std > 0 else None


@dataclass(frozen=True, eq=False)
class Comparison:
    """An arm against its baseline.

    Args:
        arm: the arm.
        baseline: the arm that it is compared with.
        seeds: the seeds of the pairs.
        missing: the number of seeds without a pair.
        paired: the differences, or logarithms of ratios; None without a pair.
        p: the p value of no difference, adjusted by Holm over the study; NaN without spread or with a missing pair.
        equivalence: the test of the margin; None without a margin, without spread, or with a missing pair.
        needed: the number of seeds with which equal arms would be found equivalent four times out of five, for the
            upper limit of the standard deviation; None if more than 1,000, or unknown.
        alpha: the level of the test of a difference; 0 at a look that was not planned.
        one_sided: the level of each one-sided test; at a look that was not planned, that of its descriptive interval.
        bound: the margin in the unit of the differences; None if no margin was stated.
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
    one_sided: float
    bound: float | None

    @property
    def answer(self) -> str:
        """One of the four answers, or "identical", "constant", "incomplete" or "no pairs"."""
        if self.paired is None:
            return "no pairs"
        if self.missing:
            return "incomplete"
        if self.paired.identical:
            return "identical"
        if self.paired.count > 1 and not self.paired.has_spread:
            return "constant"
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
        """Whether every arm is identical to its baseline or within the margin; None if no margin was stated."""
        if self.metric.margin is None:
            return None
        return all(c.answer in ("equivalent", "within margin", "identical") for c in self.comparisons)

    @property
    def is_complete(self) -> bool:
        """Whether every planned pair exists; a metric without a margin may have no values at all."""
        unmeasured = self.metric.margin is None and all(c.paired is None for c in self.comparisons)
        return unmeasured or not any(c.missing for c in self.comparisons)


def analyse(plan: Plan, outcomes: Sequence[Outcome], look: Look | None = None) -> list[Finding]:
    """Return every metric of the study.

    Args:
        plan: the plan.
        outcomes: the outcomes of its runs, in the order of the plan.
        look: the levels of the tests; by default those of a study that is looked at once.
    """
    look = look or next_look(plan.study)
    values = {metric: _values(plan, metric, outcomes) for metric in plan.study.metrics}
    pairs = plan.comparisons()
    paired = {
        (metric, arm): _pair(own[baseline], own[arm], metric.scale)
        for metric, own in values.items()
        for arm, baseline in pairs
    }
    raw = [
        one.p_value() if one is not None and one.count == len(plan.study.seeds) else math.nan for one in paired.values()
    ]
    p_values = dict(zip(paired, holm(raw), strict=True))
    findings = []
    for metric, own in values.items():
        comparisons = []
        for arm, baseline in pairs:
            known = np.isfinite(own[arm]) & np.isfinite(own[baseline])
            seeds = tuple(seed for seed, both in zip(plan.study.seeds, known, strict=True) if both)
            key = (metric, arm)
            comparisons.append(_comparison(
                metric, arm, baseline, seeds, len(known) - len(seeds), paired[key], p_values[key], look,
                plan.study.alpha,
            ))  # fmt: skip
        summaries = tuple(Summary(arm, own_values) for arm, own_values in own.items())
        findings.append(Finding(metric, summaries, tuple(comparisons)))
    return findings


def _values(plan: Plan, metric: Metric, outcomes: Sequence[Outcome]) -> dict[Arm, NDArray[np.float64]]:
    """Return the values of each arm in the order of the seeds; NaN where a run has none."""
    check_protocol(metric, outcomes)
    by_run = {(outcome.run.arm, outcome.run.seed): value(outcome, metric) for outcome in outcomes}
    return {arm: np.array([by_run[arm, seed] for seed in plan.study.seeds]) for arm in plan.arms}


def _pair(baseline: NDArray[np.float64], values: NDArray[np.float64], scale: str) -> Paired | None:
    """Return the differences of the pairs that exist; None without any."""
    both = np.isfinite(baseline) & np.isfinite(values)
    return compare(baseline[both], values[both], scale) if both.any() else None


def _comparison(
    metric: Metric, arm: Arm, baseline: Arm, seeds: tuple[int, ...], missing: int, paired: Paired | None, p: float,
    look: Look, alpha: float,
) -> Comparison:  # fmt: skip
    """Test the margin of a comparison of which every pair exists."""
    one_sided = look.equivalence if look.is_planned else alpha
    equivalence = needed = None
    if paired is not None and metric.bound is not None and not missing and paired.has_spread and look.is_planned:
        equivalence = paired.equivalence(metric.bound, one_sided)
        needed = pairs_needed(metric.bound, upper_std(paired.std, paired.count), alpha=one_sided)
    levels = look.difference, one_sided
    return Comparison(arm, baseline, seeds, missing, paired, p, equivalence, needed, *levels, metric.bound)
