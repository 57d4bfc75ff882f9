"""What a comparison says: its title, the rungs that it checked, and what its verdict is about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffusion_core.common.text import pluralize
from diffusion_core.parity.compare import own_checks
from diffusion_core.parity.ladder import RUNGS, Check
from experiments.comparison.result import Comparison
from experiments.comparison.runs import FinishedRun
from experiments.config.backends import read_backends

__all__ = ["default_title", "describe_rungs", "describe_subject", "share_a_backend", "verdict_sentence"]


def default_title(runs: Sequence[FinishedRun], traces: Sequence[str | Path], evaluations: Sequence[str | Path]) -> str:
    """Return the default title of the page."""
    if runs and not traces and share_a_backend(runs):
        return f"Comparison of {len(runs)} runs"
    if traces and len({check.backend for path in traces for check in own_checks(Path(path))}) == 1:
        return f"Comparison of {pluralize(len(traces), 'parity record')} of one framework"
    if runs or traces:
        return "Do the frameworks agree?"
    return f"Comparison of {pluralize(len(evaluations), 'evaluation')}"


def share_a_backend(runs: Sequence[FinishedRun]) -> bool:
    """Return whether runs have one backend."""
    return len({run.backend.name for run in runs}) == 1


def describe_rungs(checks: Sequence[Check]) -> str:
    """Return which rungs of the ladder the checks belong to, and which were not run.

    Example:
        >>> describe_rungs([])
        'no rung; rungs 0 to 8 were not run'
    """
    run = sorted({check.rung for check in checks})
    missing = [rung.number for rung in RUNGS if rung.number not in run]
    if not missing:
        return _rung_list(run)
    return f"{_rung_list(run)}; {_rung_list(missing)} {'was' if len(missing) == 1 else 'were'} not run"


def _rung_list(numbers: Sequence[int]) -> str:
    """Return numbers as text with ranges, such as "rungs 0 to 5 and 7"."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    parts = [f"{g[0]} to {g[-1]}" if len(g) > 2 else " and ".join(map(str, g)) for g in groups]
    return f"rung{'s' if len(numbers) > 1 else ''} {_join(parts)}" if parts else "no rung"


def describe_subject(runs: Sequence[FinishedRun], checks: Sequence[Check]) -> str:
    """Return what a verdict is about: the frameworks, or runs or records of one of them."""
    known = read_backends()
    traced = [known[c.backend].title for c in checks if c.backend in known]
    titles = list(dict.fromkeys([*(run.backend.title for run in runs), *traced]))
    if len(titles) > 1:
        return _join(titles)
    what = pluralize(len(runs), "run") if runs else "parity records"
    return f"{what} of {titles[0]}" if titles else what


def verdict_sentence(comparison: Comparison, runs: Sequence[FinishedRun]) -> str:
    """Return the sentence below the verdict; without a verdict, the reason."""
    describes = "The tables below describe them; they test nothing."
    if comparison.different and comparison.agree is None:
        return f"The runs differ in {', '.join(comparison.different)}. {describes}"
    if runs and comparison.agree is None:
        return f"No tolerance is published for precision {runs[0].config['precision']}. {describes}"
    if comparison.agree is None:
        return "No tolerance is published for evaluations. The table below describes them; it tests nothing."
    if comparison.agree:
        precisions = " and in ".join(sorted({c.precision for c in comparison.checks}, reverse=True))
        return f"Every comparison lies within its published tolerance, in {precisions}."
    failed = [c for c in comparison.checks if not c.passed]
    first = f"first on rung {min(c.rung for c in failed)}."
    if len(failed) == 1:
        return f"1 comparison lies outside its tolerance, {first}"
    return f"{len(failed)} comparisons lie outside their tolerances, {first}"


def _join(parts: Sequence[str]) -> str:
    """Return "a, b and c"."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
