"""How the runs of each arm ended: a run that diverges is an outcome of the study, and not a missing value.

The fraction of runs that diverge has the exact interval of Clopper and Pearson. An arm is compared with its baseline by
McNemar's exact test of the seeds for which one of the two diverged; with five seeds its smallest p value is 1/16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffusion_core.common.text import pluralize
from diffusion_core.statistics.bootstrap import Interval
from diffusion_core.statistics.proportion import discordant_p_value, exact_interval
from experiments.studies.plan import Arm, Plan
from experiments.studies.results import ENDINGS, Outcome

__all__ = ["Ending", "endings"]


@dataclass(frozen=True, eq=False)
class Ending:
    """How the runs of an arm ended.

    Args:
        arm: the arm.
        counts: the number of runs by ending, in the order of `ENDINGS`.
        diverged: the interval of the fraction of runs that diverge, of 95 % confidence; None if no run ended.
        baseline: the arm that it is compared with; None for a baseline.
        only_arm: the number of seeds for which it alone diverged.
        only_baseline: the number of seeds for which its baseline alone diverged.
        p: the p value of equal fractions that diverge; 1 if no seed tells.
    """

    arm: Arm
    counts: dict[str, int]
    diverged: Interval | None
    baseline: Arm | None = None
    only_arm: int = 0
    only_baseline: int = 0
    p: float = 1.0

    @property
    def sentence(self) -> str:
        """How its runs ended, in a sentence; empty if all finished and those of its baseline too."""
        planned = sum(self.counts.values())
        parts = [f"{self.counts[name]} {name}" for name in ENDINGS if self.counts[name]]
        text = f"{self.arm.name}: of {pluralize(planned, 'planned run')} {', '.join(parts)}"
        if self.counts["diverged"] and self.diverged is not None:
            low, high = 100 * self.diverged.low, 100 * self.diverged.high
            text += f" (diverging: {low:.0f} to {high:.0f} % of seeds, exact 95 % interval)"
        if self.baseline is not None and self.only_arm + self.only_baseline:
            text += (
                f"; it alone diverged for {pluralize(self.only_arm, 'seed')}, {self.baseline.name} alone for "
                f"{self.only_baseline} (McNemar's exact test: p = {self.p:.2g})"
            )
        return "" if self.counts["finished"] == planned and not self.only_baseline else f"{text}."


def endings(plan: Plan, outcomes: Sequence[Outcome]) -> list[Ending]:
    """Return how the runs of each arm ended, in the order of the arms."""
    ends = {(outcome.run.arm, outcome.run.seed): outcome.ending for outcome in outcomes}
    found = []
    for arm in plan.arms:
        own = [ends[arm, seed] for seed in plan.study.seeds]
        counts = {name: own.count(name) for name in ENDINGS}
        known = counts["finished"] + counts["diverged"]
        interval = exact_interval(counts["diverged"], known) if known else None
        baseline = plan.baseline_of(arm)
        if baseline == arm:
            found.append(Ending(arm, counts, interval))
            continue
        other = [ends[baseline, seed] for seed in plan.study.seeds]
        told = [(a, b) for a, b in zip(own, other, strict=True) if {a, b} == {"finished", "diverged"}]
        only_arm = sum(a == "diverged" for a, _ in told)
        only_baseline = len(told) - only_arm
        p = discordant_p_value(only_arm, only_baseline)
        found.append(Ending(arm, counts, interval, baseline, only_arm, only_baseline, p))
    return found
