"""The report of a study, from the outcomes of its runs: findings, evidence, runs, and the appendix.

The verdict on top is in `experiments.studies.verdict`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from diffusion_core.files.atomic import write_atomically
from diffusion_core.runs.run_directory import describe_environment
from diffusion_core.statistics.bootstrap import Interval
from diffusion_core.statistics.proportion import unseen_fraction
from diffusion_core.statistics.sign_flip import sign_flip_floor
from experiments.report.page import templates, write_page
from experiments.report.study import render
from experiments.studies import evidence, figures
from experiments.studies.analysis import Comparison, Finding, analyse
from experiments.studies.endings import Ending, endings
from experiments.studies.evidence import Drawings
from experiments.studies.looks import Look, changed_margins, next_look, record
from experiments.studies.plan import Plan, Study
from experiments.studies.results import Outcome, digits_floor
from experiments.studies.verdict import ANSWERS, excludes, verdict

__all__ = ["build", "report"]

_ENVIRONMENT = (
    "backend", "mode", "device", "precision", "versions", "commit", "processor", "cores", "python", "platform",
)  # fmt: skip


def report(plan: Plan, outcomes: Sequence[Outcome], out: Path) -> tuple[Path, dict[str, Any]]:
    """Write report.html, report.json, figures/ and the record of looks; return the path of the page and the report."""
    look, remarks = next_look(plan.study, out), changed_margins(plan.study, out)
    content, images, drawings = build(plan, outcomes, look, remarks)
    files: dict[str, bytes] = {}
    for name, (draw, rows) in drawings.items():
        files |= figures.files(name, draw, rows)
    for name, data in files.items():
        write_atomically(out / "figures" / name, data)
    if any(c["p"] is not None for finding in content["findings"] for c in finding["comparisons"]):
        record(plan.study, out, look)
    return write_page(content, render(content, images, files), out), content


def build(
    plan: Plan, outcomes: Sequence[Outcome], look: Look | None = None, remarks: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[str, bytes], Drawings]:
    """Return the report as JSON values, its images, and its figures for papers, which are not drawn yet.

    Args:
        plan: the plan of the study.
        outcomes: the outcomes of its runs, in the order of the plan.
        look: the levels of the tests; by default those of a study that is looked at once.
        remarks: more sentences for its reader.
    """
    here, study = describe_environment(), plan.study
    look = look or next_look(study)
    findings, ends = analyse(plan, outcomes, look), endings(plan, outcomes)
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
        "endings": [_ending(one) for one in ends],
        "look": {
            "counts": list(look.counts), "planned": look.planned, "spending": study.spending,
            "difference": look.difference, "equivalence": look.equivalence,
        },
        "remarks": [*filter(None, [look.remark, *(one.sentence for one in ends)]), *remarks, *_floors(study, complete)],
        "verdict": verdict(findings, outcomes, look, study.alpha),
        "excludes": [line for finding in findings for line in excludes(finding)],
    }  # fmt: skip
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
        "answer_text": ANSWERS[c.answer],
        "p": _finite(c.p),
        "tost_p": _finite(c.equivalence.p) if c.equivalence else None,
        "margin": c.bound,
        "needed": c.needed,
    }
    if paired is None:
        return facts | dict.fromkeys(
            ("mean", "std", "effect", "effect_unbiased", "excluded", "sign_flip_p", "sign_flip_tost_p", "within")
        ) | {"interval": [None, None], "tost_interval": [None, None], "identical": False}  # fmt: skip
    tested = not c.missing and paired.has_spread
    return facts | {
        "mean": _finite(paired.mean),
        "std": _finite(paired.std),
        "interval": _ends(paired.interval(0.95)),
        "tost_interval": _ends(paired.interval(1 - 2 * c.one_sided)) if tested else [None, None],
        "effect": _finite(paired.effect),
        "effect_unbiased": _finite(paired.effect_unbiased),
        "excluded": _finite(paired.excluded(c.one_sided)) if tested else None,
        "identical": paired.identical,
        "sign_flip_p": paired.sign_flip() if tested else None,
        "sign_flip_tost_p": paired.sign_flip(c.bound) if tested and c.bound is not None else None,
        "sign_flip_floor": sign_flip_floor(paired.count),
        "within": None if c.bound is None else paired.within(c.bound),
        "unseen": unseen_fraction(paired.count, c.one_sided) if paired.identical else None,
    }


def _floors(study: Study, complete: Sequence[Outcome]) -> list[str]:
    """Return what real digits score in place of as many samples, for a study of digits Fréchet distances."""
    drawn = next((outcome.samples for outcome in complete if outcome.samples is not None), None)
    metrics = [metric.title for metric in study.metrics if metric.read == "digits.frechet"]
    if drawn is None or len(drawn[0]) < 2:
        return []
    count = len(drawn[0])
    return [
        f"{title} of {count:,} digits drawn from the training digits themselves: {digits_floor(count):.2f}. Lower is "
        f"better only down to this floor."
        for title in metrics
    ]


def _ending(ending: Ending) -> dict[str, Any]:
    return {
        "arm": ending.arm.name,
        "counts": dict(ending.counts),
        "diverged": _ends(ending.diverged),
        "only_arm": ending.only_arm,
        "only_baseline": ending.only_baseline,
        "p": None if ending.baseline is None else ending.p,
        "sentence": ending.sentence,
    }


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
        "trouble": outcome.problem or ("its loss is not finite" if outcome.ending == "diverged" else ""),
        "ending": outcome.ending,
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
