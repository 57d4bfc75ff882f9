"""The report of a study, from the outcomes of its runs: findings, verdict, evidence, runs, and the appendix."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from diffusion_core.common.text import pluralize
from diffusion_core.files.atomic import write_atomically
from diffusion_core.runs.run_directory import describe_environment
from diffusion_core.statistics.bootstrap import Interval
from experiments.report.page import templates, write_page
from experiments.report.study import render, within
from experiments.studies import evidence, figures
from experiments.studies.analysis import Comparison, Finding, analyse
from experiments.studies.evidence import Drawings
from experiments.studies.plan import Plan
from experiments.studies.results import Outcome

__all__ = ["build", "report"]

_ANSWERS = {
    "equivalent": "equivalent within the margin",
    "within margin": "different, by less than the margin",
    "different": "different",
    "undecided": "undecided",
    "no pairs": "no pair of runs",
}
_ENVIRONMENT = (
    "backend", "mode", "device", "precision", "versions", "commit", "processor", "cores", "python", "platform",
)  # fmt: skip


def report(plan: Plan, outcomes: Sequence[Outcome], out: Path) -> tuple[Path, dict[str, Any]]:
    """Write report.html, report.json and figures/; return the path of the page and the report."""
    content, images, drawings = build(plan, outcomes)
    files: dict[str, bytes] = {}
    for name, (draw, rows) in drawings.items():
        files |= figures.files(name, draw, rows)
    for name, data in files.items():
        write_atomically(out / "figures" / name, data)
    return write_page(content, render(content, images, files), out), content


def build(plan: Plan, outcomes: Sequence[Outcome]) -> tuple[dict[str, Any], dict[str, bytes], Drawings]:
    """Return the report as JSON values, its images, and its figures for papers, which are not drawn yet."""
    here, study = describe_environment(), plan.study
    findings = analyse(plan, outcomes)
    complete = [outcome for outcome in outcomes if not outcome.problem]
    images: dict[str, bytes] = {}
    drawings: Drawings = {}
    content: dict[str, Any] = {
        "title": study.title,
        "question": study.question,
        "name": study.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": here["commit"],
        "command": here["command"],
        "alpha": study.alpha,
        "seeds": list(study.seeds),
        "arms": [arm.name for arm in plan.arms],
        "findings": [_finding(finding, study.seeds, drawings) for finding in findings],
        "curves": evidence.curves(plan, complete, drawings),
        "samples": evidence.samples(plan, complete, images),
        "steps": evidence.steps(plan, complete),
        "cost": evidence.cost(plan, complete, drawings),
        "runs": [_run(plan, outcome, findings) for outcome in outcomes],
        "environments": _environments(complete),
        "machine": {key: here[key] for key in ("platform", "processor", "cores", "python")},
        "verdict": _verdict(findings, outcomes),
        "excludes": [line for finding in findings for line in _excludes(finding)],
    }
    content["appendix"] = _appendix(plan, complete, content)
    return content, images, drawings


# --- findings -----------------------------------------------------------------------------------------------------


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _ends(interval: Interval | None) -> list[float | None]:
    return [None, None] if interval is None else [_finite(interval.low), _finite(interval.high)]


def _finding(finding: Finding, seeds: Sequence[int], drawings: Drawings) -> dict[str, Any]:
    """Return a metric as JSON values, and add its two figures."""
    metric = finding.metric
    arms = [
        {
            "arm": summary.arm.name,
            "values": [_finite(v) for v in summary.values],
            "mean": _finite(summary.mean),
            "std": _finite(summary.std),
            "interval": _ends(summary.interval()),
        }
        for summary in finding.summaries
    ]
    comparisons = [_comparison(c) for c in finding.comparisons]
    names = [f"values-{metric.name}", f"differences-{metric.name}"]
    drawings[names[0]] = _values_figure(metric.title, arms, seeds)
    axis = f"{'ln ratio' if metric.scale == 'ratio' else 'difference'} of {metric.title}"
    drawings[names[1]] = _differences_figure(axis, comparisons, metric.bound)
    return {
        "name": metric.name,
        "title": metric.title,
        "unit": metric.unit,
        "read": metric.read,
        "better": metric.better,
        "scale": metric.scale,
        "margin": metric.margin,
        "bound": metric.bound,
        "equivalent": finding.equivalent,
        "arms": arms,
        "comparisons": comparisons,
        "figures": names,
    }


def _values_figure(title: str, arms: Sequence[Mapping], seeds: Sequence[int]) -> Any:
    rows = [{"arm": a["arm"], "seed": s, "value": v} for a in arms for s, v in zip(seeds, a["values"], strict=True)]
    return lambda: figures.values(title, {a["arm"]: a["values"] for a in arms}), rows


def _differences_figure(axis: str, comparisons: Sequence[Mapping], bound: float | None) -> Any:
    known = [c | dict(zip(("low", "high"), c["interval"], strict=True)) for c in comparisons if c["mean"] is not None]
    keys = ("arm", "baseline", "pairs", "mean", "effect", "p", "tost_p", "margin", "excluded", "answer", "low", "high")
    return lambda: figures.differences(axis, known, bound), [{key: c[key] for key in keys} for c in known]


def _comparison(c: Comparison) -> dict[str, Any]:
    paired = c.paired
    facts: dict[str, Any] = {
        "arm": c.arm.name,
        "baseline": c.baseline.name,
        "pairs": len(c.seeds),
        "missing": c.missing,
        "seeds": list(c.seeds),
        "differences": [] if paired is None else paired.differences.tolist(),
        "answer": c.answer,
        "answer_text": _ANSWERS[c.answer],
        "p": _finite(c.p),
        "tost_p": _finite(c.equivalence.p) if c.equivalence else None,
        "margin": c.equivalence.margin if c.equivalence else None,
        "needed": c.needed,
    }
    if paired is None:
        return facts | dict.fromkeys(("mean", "std", "effect", "effect_unbiased", "excluded")) | {
            "interval": [None, None], "tost_interval": [None, None], "identical": False,
        }  # fmt: skip
    return facts | {
        "mean": _finite(paired.mean),
        "std": _finite(paired.std),
        "interval": _ends(paired.interval(0.95)),
        "tost_interval": _ends(paired.interval(1 - 2 * c.alpha)),
        "effect": _finite(paired.effect),
        "effect_unbiased": _finite(paired.effect_unbiased),
        "excluded": _finite(paired.excluded(c.alpha)),
        "identical": paired.identical,
    }


def _verdict(findings: Sequence[Finding], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the claim on top of the page, and how many comparisons have which answer."""
    comparisons = [c for finding in findings for c in finding.comparisons]
    count = {answer: sum(c.answer == answer for c in comparisons) for answer in _ANSWERS}
    broken = sum(bool(outcome.problem) for outcome in outcomes)
    style = "unknown"
    if findings and all(finding.equivalent for finding in findings):
        identical = all(c.paired is not None and c.paired.identical for c in comparisons)
        claim = "The arms give identical results" if identical else "The arms are equivalent within the stated margins"
        style = "agree"
    elif count["different"]:
        claim = "The arms differ"
    else:
        claim = "The study leaves its question open"
    pairs = sorted({len(c.seeds) for c in comparisons})
    pairs = pluralize(pairs[0], "pair") if len(pairs) == 1 else f"{pairs[0]} to {pairs[-1]} pairs"
    answers = ", ".join(f"{n} {_ANSWERS[answer]}" for answer, n in count.items() if n)
    sentence = f"Of {pluralize(len(comparisons), 'comparison')} over {pairs} of runs: {answers}."
    if broken:
        style = "differ"
        sentence += f" {broken} of {pluralize(len(outcomes), 'run')} have no result; see the table of runs."
    return {"claim": claim, "style": style, "sentence": sentence, "counts": count, "broken": broken}


def _excludes(finding: Finding) -> list[dict[str, Any]]:
    """Return a sentence on the differences that each comparison excludes; equal sentences are joined."""
    pairs: dict[str, list[str]] = {}
    for c in finding.comparisons:
        if c.paired is not None:
            pairs.setdefault(_excluded(c, finding.metric.scale), []).append(f"{c.arm.name} against {c.baseline.name}")
    return [{"metric": finding.metric.title, "pairs": names, "text": text} for text, names in pairs.items()]


def _excluded(c: Comparison, scale: str) -> str:
    edge = c.paired.excluded(c.alpha)
    if not math.isfinite(edge):
        return "nothing is excluded: one pair gives no standard deviation."
    if edge == 0:
        return f"all {len(c.seeds)} pairs are equal bit for bit, so any difference is excluded for these seeds."
    text = f"differences larger than {within(edge, scale)} are excluded, smaller ones are not"
    if c.equivalence is None:
        return f"{text}; no margin was stated."
    text += f"; the margin stated before the runs is {within(c.equivalence.margin, scale)}, so equivalence is "
    if c.equivalence.holds:
        return f"{text}shown."
    text += "not shown."
    if c.answer == "undecided":
        needed = f"about {c.needed}" if c.needed else "more than 1,000"
        text += f" With this standard deviation, {needed} seeds would show it with a probability of 80 %."
    return text


# --- runs and appendix --------------------------------------------------------------------------------------------


def _run(plan: Plan, outcome: Outcome, findings: Sequence[Finding]) -> dict[str, Any]:
    place = plan.study.seeds.index(outcome.run.seed)
    values = {}
    for finding in findings:
        summary = next(s for s in finding.summaries if s.arm == outcome.run.arm)
        values[finding.metric.name] = _finite(float(summary.values[place]))
    return {
        "arm": outcome.run.arm.name,
        "seed": outcome.run.seed,
        "values": values,
        "seconds": None if outcome.problem else outcome.cost["seconds"],
        "folders": [f"runs/{path.name}" for path in outcome.directories],
        "stages": [job.stage for job in outcome.run.jobs[: len(outcome.directories)]],
        "trouble": outcome.problem,
    }


def _environments(complete: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return the distinct environments of the runs, each with its number of jobs."""
    by_facts: dict[str, dict[str, Any]] = {}
    for env in (env for outcome in complete for env in outcome.environments):
        facts = {key: env[key] for key in _ENVIRONMENT if env.get(key) is not None}
        by_facts.setdefault(repr(facts), facts | {"jobs": 0})["jobs"] += 1
    return list(by_facts.values())


def _appendix(plan: Plan, complete: Sequence[Outcome], content: Mapping[str, Any]) -> str:
    """Return the text on how the numbers were made."""
    settings = []
    for factor, options in plan.study.factors.items():
        for setting, by_stage in options.items():
            joined = {stage: " ".join(overrides) for stage, overrides in by_stage.items()}
            text = "; ".join(f"{stage}: {overrides or '-'}" for stage, overrides in joined.items())
            settings.append((factor, setting, text if len(set(joined.values())) > 1 else next(iter(joined.values()))))
    environments = [env for outcome in complete for env in outcome.environments]
    return templates().get_template("appendix.txt").render(
        study=plan.study,
        report=content,
        settings=settings,
        data=sorted({(env["data"]["name"], env["data"]["sha256"]) for env in environments if env.get("data")}),
        energy=any(outcome.cost["joules"] is not None for outcome in complete),
        commands=dict.fromkeys(" ".join(marker["command"]) for o in complete for marker in o.markers),
    )  # fmt: skip
