"""What a study claims, in sentences that a paper can print.

    In five paired runs with shared streams the largest difference was 6.3e-6 % of the training loss at the end and
    8.6e-6 of the digits Fréchet distance; recognised as the requested class was identical in all five; every margin is
    met by both one-sided tests (n = 5, alpha 0.05).

The sentence has the observed extremes and whether the stated margins hold. It has no p value: the digits of a p value
far below the level say how small the spread is compared with the margin, and nothing about the evidence.

Nothing is claimed if a planned pair is missing, or at a look that was not planned. A metric without a margin takes no
part in the claim; a difference that it shows is named.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffusion_core.common.text import pluralize
from diffusion_core.statistics.proportion import unseen_fraction
from diffusion_core.statistics.sign_flip import sign_flip_floor
from experiments.report.study import amount, within
from experiments.studies.analysis import Comparison, Finding
from experiments.studies.looks import Look
from experiments.studies.results import Outcome

__all__ = ["ANSWERS", "excludes", "verdict"]

ANSWERS = {
    "equivalent": "equivalent within the margin",
    "within margin": "different, by less than the margin",
    "identical": "identical",
    "different": "different",
    "constant": "different by the same amount in every pair",
    "undecided": "undecided",
    "incomplete": "incomplete",
    "no pairs": "no pair of runs",
}
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def verdict(findings: Sequence[Finding], outcomes: Sequence[Outcome], look: Look, alpha: float) -> dict[str, Any]:
    """Return the claim on top of the page, its sentence, and how many comparisons have which answer.

    Args:
        findings: the metrics.
        outcomes: the outcomes of all runs.
        look: the look at the study.
        alpha: the level of all looks together.
    """
    comparisons = [c for finding in findings for c in finding.comparisons]
    count = {answer: sum(c.answer == answer for c in comparisons) for answer in ANSWERS}
    broken = sum(outcome.ending != "finished" for outcome in outcomes)
    stated = [finding for finding in findings if finding.equivalent is not None]
    differ = [f for f in findings if any(c.answer in ("different", "constant") for c in f.comparisons)]
    style = "unknown"
    if broken or not all(finding.is_complete for finding in findings):
        style = "differ"
        claim = f"No claim: {broken} of {pluralize(len(outcomes), 'planned run')} have no result"
        if not broken:
            claim = "No claim: planned pairs are missing"
    elif not look.is_planned:
        claim = "No claim: this look was not planned"
    elif stated and all(finding.equivalent for finding in stated):
        compared = [c for finding in stated for c in finding.comparisons]
        pairs = look.counts[-1]
        identical = all(c.answer == "identical" for c in compared)
        claim = "The arms are equivalent within the stated margins"
        if identical:
            claim = f"The arms give identical results in {pairs} of {pluralize(pairs, 'pair')}"
        style = "agree" if pairs > 1 else "unknown"
    elif differ and (not stated or set(map(id, differ)) & set(map(id, stated))):
        claim = f"The arms differ in {_listed([finding.metric.title for finding in differ])}"
    else:
        claim = "The study leaves its question open"
    sentence = " ".join(filter(None, [_observed(findings, look, alpha), _counted(comparisons, count)]))
    if broken:
        sentence += f" {broken} of {pluralize(len(outcomes), 'run')} have no result; see the table of runs."
    return {"claim": claim, "style": style, "sentence": sentence, "counts": count, "broken": broken}


def _counted(comparisons: Sequence[Comparison], count: dict[str, int]) -> str:
    pairs = sorted({len(c.seeds) for c in comparisons})
    pairs = pluralize(pairs[0], "pair") if len(pairs) == 1 else f"{pairs[0]} to {pairs[-1]} pairs"
    answers = ", ".join(f"{n} {ANSWERS[answer]}" for answer, n in count.items() if n)
    return f"Of {pluralize(len(comparisons), 'comparison')} over {pairs} of runs: {answers}."


def _observed(findings: Sequence[Finding], look: Look, alpha: float) -> str:
    """Return the sentence on the largest differences and the margins; empty without a complete metric."""
    complete = [f for f in findings if f.is_complete and any(c.paired is not None for c in f.comparisons)]
    shown = [f for f in complete if f.metric.margin is not None] or complete
    if not shown:
        return ""
    pairs = look.counts[-1]
    number = _WORDS[pairs] if pairs < len(_WORDS) else f"{pairs:,}"
    runs = f"{number} paired {'run' if pairs == 1 else 'runs'}"
    parts = []
    if largest := [f"{_largest(f)} of {f.metric.title}" for f in shown if not _is_identical(f)]:
        parts.append(f"the largest difference was {_listed(largest)}")
    if same := [f.metric.title for f in shown if _is_identical(f)]:
        unseen = f"at level {alpha:g} up to {100 * unseen_fraction(pairs, alpha):.0f} % of seeds could still differ"
        verb = "was" if len(same) == 1 else "were"
        parts.append(f"{_listed(same)} {verb} identical in all {number} ({unseen})" if pairs > 1 else
                     f"{_listed(same)} {verb} identical")  # fmt: skip
    if differ := [f.metric.title for f in findings if any(c.answer == "different" for c in f.comparisons)]:
        parts.append(f"a difference is shown in {_listed(differ)} (paired t tests, adjusted by Holm over the study)")
    if look.is_planned and pairs > 1:
        parts += _margins(findings, look, alpha)
    return f"In {runs} with shared streams {'; '.join(parts)}."


def _margins(findings: Sequence[Finding], look: Look, alpha: float) -> list[str]:
    """Return which margins are met by both one-sided tests."""
    tested = [f for f in findings if any(c.equivalence is not None for c in f.comparisons)]
    missed = [f.metric.title for f in tested if not f.equivalent]
    facts = f"(n = {look.counts[-1]}, alpha {alpha:g})"
    if not tested:
        return []
    if missed:
        return [f"the margin of {_listed(missed)} is not met by both one-sided tests {facts}"]
    return [f"every margin is met by both one-sided tests {facts}"]


def _largest(finding: Finding) -> str:
    sizes = [np.abs(c.paired.differences).max() for c in finding.comparisons if c.paired is not None]
    return amount(max(sizes), finding.metric.scale, False)


def _is_identical(finding: Finding) -> bool:
    return all(c.answer == "identical" for c in finding.comparisons)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def excludes(finding: Finding) -> list[dict[str, Any]]:
    """Return a sentence on the differences that each comparison excludes; equal sentences are joined."""
    pairs: dict[str, list[str]] = {}
    for c in finding.comparisons:
        if c.paired is not None:
            pairs.setdefault(_excluded(c, finding.metric.scale), []).append(f"{c.arm.name} against {c.baseline.name}")
    return [{"metric": finding.metric.title, "pairs": names, "text": text} for text, names in pairs.items()]


def _excluded(c: Comparison, scale: str) -> str:
    count = c.paired.count
    if c.missing:
        planned = count + c.missing
        return f"{c.missing} of {pluralize(planned, 'planned pair')} are missing, so nothing is tested or excluded."
    if c.answer == "identical":
        text = f"identical in {count} of {count}; no test exists without spread"
        return f"{text}, and up to {100 * unseen_fraction(count, c.one_sided):.0f} % of seeds could still differ."
    if c.answer == "constant":
        size = amount(c.paired.mean, scale)
        return f"every one of {count} pairs differs by {size}; no test exists without spread, and nothing is excluded."
    edge = c.paired.excluded(c.one_sided)
    if not math.isfinite(edge):
        return "nothing is excluded: one pair gives no standard deviation."
    text = f"differences larger than {within(edge, scale)} are excluded, smaller ones are not"
    if c.bound is None:
        return f"{text}; no margin was stated."
    text += f"; the margin stated before the runs is {within(c.bound, scale)}, so equivalence is "
    if c.equivalence is None:
        return f"{text}not tested at this look."
    inside = f"{c.paired.within(c.bound)} of {pluralize(count, 'difference')} lie within it"
    if c.equivalence.holds:
        flip = c.paired.sign_flip(c.bound)
        return f"{text}shown; {inside}, and the sign-flip tests give p = {flip:.2g} ({_floor(count)})."
    text += f"not shown; {inside}."
    if c.answer == "undecided":
        needed = f"about {c.needed}" if c.needed else "more than 1,000"
        text += (
            f" With the upper limit of this standard deviation (80 % confidence), {needed} seeds would show it with a "
            f"probability of 80 % or more."
        )
    return text


def _floor(count: int) -> str:
    return f"{count} pairs cannot give less than {sign_flip_floor(count, sides=1):.2g}"
