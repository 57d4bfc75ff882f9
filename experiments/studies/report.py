"""From the runs of a study to its report: findings, curves, cost, samples, the files of figures, and the appendix."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.text import pluralize as count_of
from diffusion_core.files.atomic import write_atomically
from diffusion_core.images import render
from diffusion_core.runs.run_directory import describe_environment
from diffusion_core.statistics.bootstrap import Interval
from diffusion_core.statistics.paired import Paired
from experiments.report.figures import decimate, smooth
from experiments.report.page import write_page
from experiments.report.study import render as render_study
from experiments.report.study import within
from experiments.studies import figures
from experiments.studies.analysis import Comparison, Finding, analyse
from experiments.studies.plan import Plan
from experiments.studies.results import COSTS, Outcome

__all__ = ["build", "report"]

_COLUMNS = 300  # points of a curve
_BYTES = 3_000_000  # of all states that the page carries
_GAIN = 64  # by which differences of pixels are shown

# Figures by name: what draws each, and its numbers.
Drawings = dict[str, tuple[Callable[[], Any], list[dict[str, Any]]]]

ANSWERS = {
    "equivalent": "equivalent within the margin",
    "within margin": "different, by less than the margin",
    "different": "different",
    "undecided": "undecided",
    "no pairs": "no pair of runs",
}


def report(plan: Plan, outcomes: Sequence[Outcome], out: Path) -> tuple[Path, dict[str, Any]]:
    """Write report.html, report.json and figures/; gives the path of the page and what it says."""
    content, images, drawings = build(plan, outcomes)
    files: dict[str, bytes] = {}
    for name, (draw, rows) in drawings.items():
        files |= figures.files(name, draw, rows)
    for name, data in files.items():
        write_atomically(out / "figures" / name, data)
    return write_page(content, render_study(content, images, files), out), content


def build(plan: Plan, outcomes: Sequence[Outcome]) -> tuple[dict[str, Any], dict[str, bytes], Drawings]:
    """The report as JSON values, its pictures, and its figures for papers, which are not drawn yet."""
    here, study = describe_environment(), plan.study
    findings = analyse(plan, outcomes)
    whole = [outcome for outcome in outcomes if not outcome.trouble]
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
        "curves": _curves(plan, whole, drawings),
        "samples": _samples(plan, whole, images),
        "steps": _steps(plan, whole),
        "cost": _cost(plan, whole, drawings),
        "runs": [_run(plan, outcome, findings) for outcome in outcomes],
        "environments": _environments(whole),
        "machine": {key: here[key] for key in ("platform", "processor", "cores", "python")},
    }
    content["verdict"] = _verdict(findings, outcomes)
    content["excludes"] = [line for finding in findings for line in _excludes(finding)]
    content["appendix"] = _appendix(plan, whole, content)
    return content, images, drawings


def _plain(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _ends(interval: Interval | None) -> list[float | None]:
    return [None, None] if interval is None else [_plain(interval.low), _plain(interval.high)]


def _finding(finding: Finding, seeds: Sequence[int], drawings: Drawings) -> dict[str, Any]:
    metric = finding.metric
    arms = [
        {
            "arm": summary.arm.name,
            "values": [_plain(v) for v in summary.values],
            "mean": _plain(summary.mean),
            "std": _plain(summary.std),
            "interval": _ends(summary.interval()),
        }
        for summary in finding.summaries
    ]
    comparisons = [_comparison(c) for c in finding.comparisons]
    axis = f"ln ratio of {metric.title}" if metric.scale == "ratio" else f"difference of {metric.title}"
    names = [f"values-{metric.name}", f"differences-{metric.name}"]
    rows = [
        {"arm": a["arm"], "seed": seed, "value": v} for a in arms for seed, v in zip(seeds, a["values"], strict=True)
    ]
    drawings[names[0]] = (lambda: figures.values(metric.title, {a["arm"]: a["values"] for a in arms}), rows)
    known = [c for c in comparisons if c["mean"] is not None]
    drawn = [
        {name: c[name] for name in ("arm", "differences", "mean")} | {"low": c["interval"][0], "high": c["interval"][1]}
        for c in known
    ]
    keys = ("arm", "baseline", "pairs", "mean", "effect", "p", "tost_p", "margin", "excluded", "answer")
    told = [{k: c[k] for k in keys} | {"low": c["interval"][0], "high": c["interval"][1]} for c in known]
    drawings[names[1]] = (lambda: figures.differences(axis, drawn, metric.bound), told)
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
        "p": _plain(c.p),
        "tost_p": _plain(c.equivalence.p) if c.equivalence else None,
        "margin": c.equivalence.margin if c.equivalence else None,
        "needed": c.needed,
    }
    if paired is None:
        return facts | dict.fromkeys(("mean", "std", "effect", "effect_unbiased", "excluded")) | {
            "interval": [None, None], "tost_interval": [None, None], "identical": False,
        }  # fmt: skip
    return facts | {
        "mean": _plain(paired.mean),
        "std": _plain(paired.std),
        "interval": _ends(paired.interval(0.95)),
        "tost_interval": _ends(paired.interval(1 - 2 * c.alpha)),
        "effect": _plain(paired.effect),
        "effect_unbiased": _plain(paired.effect_unbiased),
        "excluded": _plain(paired.excluded(c.alpha)),
        "identical": paired.identical,
    }


def _verdict(findings: Sequence[Finding], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The claim on top of the page: what holds of all comparisons, and which do not."""
    comparisons = [(finding, c) for finding in findings for c in finding.comparisons]
    count = {answer: sum(c.answer == answer for _, c in comparisons) for answer in ANSWERS}
    broken = sum(bool(outcome.trouble) for outcome in outcomes)
    tested = [finding for finding in findings if finding.equivalent is not None]
    total = len(comparisons)
    told = ", ".join(f"{n} {ANSWERS[answer]}" for answer, n in count.items() if n)
    if tested and len(tested) == len(findings) and all(finding.equivalent for finding in tested):
        identical = all(c.paired is not None and c.paired.identical for _, c in comparisons)
        claim = "The arms give identical results" if identical else "The arms are equivalent within the stated margins"
        style = "agree"
    elif count["different"]:
        claim, style = "The arms differ", "unknown"
    else:
        claim, style = "The study leaves its question open", "unknown"
    sentence = f"Of {count_of(total, 'comparison')} over {_pairs(comparisons)} of runs: {told}."
    if broken:
        style = "differ"
        sentence += f" {broken} of {len(outcomes)} runs have no result; see the table of runs."
    return {"claim": claim, "style": style, "sentence": sentence, "counts": count, "broken": broken}


def _pairs(comparisons: Sequence[tuple[Finding, Comparison]]) -> str:
    counts = sorted({len(c.seeds) for _, c in comparisons})
    return count_of(counts[0], "pair") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} pairs"


def _excludes(finding: Finding) -> list[dict[str, Any]]:
    """What the equivalence test of each comparison could and could not exclude, in a sentence."""
    lines = []
    for c in finding.comparisons:
        if c.paired is None:
            continue
        edge = c.paired.excluded(c.alpha)
        pair = f"{c.arm.name} against {c.baseline.name}"
        scale = finding.metric.scale
        if not math.isfinite(edge):
            text = "nothing is excluded: one pair tells nothing of the spread between seeds."
        elif edge == 0:
            text = f"all {len(c.seeds)} pairs are equal to the last bit; any difference is excluded for these seeds."
        else:
            text = f"differences beyond {within(edge, scale)} are excluded, smaller ones are not"
            if c.equivalence is None:
                text += "; no margin was stated."
            else:
                margin = within(c.equivalence.margin, scale)
                text += f"; the margin stated beforehand is {margin}, so equivalence is "
                text += "shown." if c.equivalence.holds else "not shown."
                if not c.equivalence.holds and c.answer == "undecided":
                    needed = f"about {c.needed}" if c.needed else "more than 1,000"
                    text += f" With this spread, {needed} seeds would show it in four of five such studies."
        same = next((line for line in lines if line["text"] == text), None)
        if same is None:
            lines.append({"metric": finding.metric.title, "pairs": [pair], "text": text})
        else:
            same["pairs"].append(pair)
    return lines


# --- curves -------------------------------------------------------------------------------------------------------


def _curves(plan: Plan, whole: Sequence[Outcome], drawings: Drawings) -> dict[str, Any] | None:
    """The smoothed loss of each arm: mean over seeds, with the interval of the mean as its band."""
    series: dict[str, Any] = {}
    for arm in plan.arms:
        runs = [o.curves for o in whole if o.run.arm == arm and "loss" in o.curves]
        if not runs:
            continue
        steps = min(len(run["loss"]) for run in runs)
        window = max(1, steps // 40)
        losses = np.stack([smooth(run["loss"][:steps], window) for run in runs])
        mean = losses.mean(axis=0)
        kept = np.unique(np.concatenate([decimate(mean, _COLUMNS // 2), np.linspace(0, steps - 1, 60).astype(int)]))
        ends = [Paired(losses[:, k]).interval() if len(runs) > 1 else Interval(mean[k], mean[k], 0.95) for k in kept]
        series[arm.name] = {
            "x": runs[0]["images_seen"][kept].tolist(),
            "mean": mean[kept].tolist(),
            "low": [float(end.low) for end in ends],
            "high": [float(end.high) for end in ends],
            "seeds": len(runs),
            "window": window,
        }
    if not series:
        return None
    rows = [
        {"arm": arm, "images_seen": x, "mean": m, "low": low, "high": high}
        for arm, of in series.items()
        for x, m, low, high in zip(of["x"], of["mean"], of["low"], of["high"], strict=True)
    ]
    drawings["curves"] = (lambda: figures.curves("training loss", series), rows)
    return {"series": series, "figures": ["curves"]}


# --- cost ---------------------------------------------------------------------------------------------------------


def _cost(plan: Plan, whole: Sequence[Outcome], drawings: Drawings) -> dict[str, Any]:
    rows = []
    for arm in plan.arms:
        costs = [o.cost for o in whole if o.run.arm == arm]
        cells = {}
        for key in COSTS:
            known = [cost[key] for cost in costs if cost[key] is not None]
            spread = float(np.std(known, ddof=1)) if len(known) > 1 else None
            cells[key] = {"mean": float(np.mean(known)), "std": spread} if known else None
        rows.append({"arm": arm.name, "cells": cells})
    table = [
        {"arm": row["arm"], "cost": key, "mean": cell["mean"], "std": cell["std"]}
        for row in rows
        for key, cell in row["cells"].items()
        if cell
    ]
    seconds = {o.run.arm.name: [p.cost["seconds"] for p in whole if p.run.arm == o.run.arm] for o in whole}
    if table:
        drawings["cost"] = (lambda: figures.values("whole run, seconds", seconds), table)
    resumed = sum(any(marker.get("resumed") for marker in o.markers) for o in whole)
    return {
        "columns": {key: {"title": title, "better": better} for key, (title, better) in COSTS.items()},
        "rows": rows,
        "resumed": resumed,
        "figures": ["cost"] if table else [],
    }


# --- samples ------------------------------------------------------------------------------------------------------


def _first_seed(plan: Plan, whole: Sequence[Outcome]) -> int | None:
    """The first seed of which the most arms have a run."""
    count = {seed: sum(o.run.seed == seed for o in whole) for seed in plan.study.seeds}
    return max(count, key=lambda seed: count[seed]) if any(count.values()) else None


def _samples(plan: Plan, whole: Sequence[Outcome], images: dict[str, bytes]) -> dict[str, Any] | None:
    """A sheet of each arm from the same noise, and how far it is from its baseline's."""
    seed = _first_seed(plan, whole)
    drawn = {o.run.arm: o.samples for o in whole if o.run.seed == seed and o.samples is not None}
    sheets = []
    for k, (arm, (own, labels, _)) in enumerate(drawn.items()):
        columns, scale = max(5, min(10, len(np.unique(labels)))), max(1, 32 // own.shape[1])
        order = np.argsort(labels, kind="stable") if len(np.unique(labels)) > 1 else np.arange(len(labels))
        shown = _spread(order, labels, columns)
        key = f"sheet{k}"
        images[key] = render.png_bytes(render.grid(own[shown], columns, scale))
        sheet: dict[str, Any] = {"arm": arm.name, "picture": key}
        base = drawn.get(plan.baseline_of(arm))
        if base is not None and plan.baseline_of(arm) != arm and base[0].shape == own.shape:
            apart = render.difference(base[0][shown], own[shown], gain=_GAIN)
            images[f"{key}d"] = render.png_bytes(render.grid(apart, columns, scale))
            differing = int(np.count_nonzero(own != base[0]))
            largest = int(np.abs(own.astype(int) - base[0]).max())
            sheet |= {
                "difference": f"{key}d",
                "baseline": plan.baseline_of(arm).name,
                "differing": differing,
                "total": own.size,
                "largest": largest,
            }
        sheets.append(sheet)
    return {"seed": seed, "gain": _GAIN, "sheets": sheets} if sheets else None


def _spread(order: NDArray, labels: NDArray, columns: int) -> NDArray:
    """Up to fifty pictures, a class per column where there are classes."""
    classes = np.unique(labels)
    if 1 < len(classes) <= 10:
        rows = min(5, min(int(np.sum(labels == c)) for c in classes))
        return np.stack([np.flatnonzero(labels == c)[:rows] for c in classes], axis=1).ravel()
    return order[: 5 * columns]


def _steps(plan: Plan, whole: Sequence[Outcome]) -> dict[str, Any] | None:
    """The states on the way from noise to samples of each arm, small enough to be carried by the page."""
    seed = _first_seed(plan, whole)
    kept = [(o.run.arm, o.trajectory) for o in whole if o.run.seed == seed and o.trajectory is not None]
    kept = [(arm, states) for arm, states in kept if states["x"].shape[1:] == kept[0][1]["x"].shape[1:]]
    if len(kept) < 2:
        return None
    _, number, height, width, channels = kept[0][1]["x"].shape
    rows = max(len(states["row"]) for _, states in kept)
    rows, number = min(rows, 30), min(number, 10)
    each = height * width * channels * 2
    while len(kept) * rows * number * each > _BYTES and (number > 2 or rows > 8):
        number, rows = (number - 1, rows) if number > 2 else (number, rows - 1)
    most = max(2, _BYTES // (rows * number * each))
    arms = []
    for arm, states in kept[:most]:
        chosen = np.unique(np.linspace(0, len(states["row"]) - 1, min(rows, len(states["row"]))).astype(int))
        part = {name: _packed(states[name][chosen, :number]) for name in ("x", "estimate")}
        ratio = states["sigma_alpha"][chosen].tolist() if "sigma_alpha" in states else None
        arms.append({"name": arm.name, "row": states["row"][chosen].tolist(), "sigma_alpha": ratio, **part})
    return {
        "seed": seed, "gain": _GAIN, "count": number, "shape": [height, width, channels], "arms": arms,
        "left_out": len(kept) - len(arms),
    }  # fmt: skip


def _packed(array: NDArray[np.uint8]) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


# --- runs and appendix --------------------------------------------------------------------------------------------


def _run(plan: Plan, outcome: Outcome, findings: Sequence[Finding]) -> dict[str, Any]:
    place = plan.study.seeds.index(outcome.run.seed)
    values = {}
    for finding in findings:
        summary = next(s for s in finding.summaries if s.arm == outcome.run.arm)
        values[finding.metric.name] = _plain(float(summary.values[place]))
    return {
        "arm": outcome.run.arm.name,
        "seed": outcome.run.seed,
        "values": values,
        "seconds": None if outcome.trouble else outcome.cost["seconds"],
        "folders": [f"runs/{path.name}" for path in outcome.directories],
        "stages": [job.stage for job in outcome.run.jobs[: len(outcome.directories)]],
        "trouble": outcome.trouble,
    }


def _environments(whole: Sequence[Outcome]) -> list[dict[str, Any]]:
    """The distinct environments of the runs: device, precision, versions and commit, with how many jobs each had."""
    found: dict[str, dict[str, Any]] = {}
    for outcome in whole:
        for env in outcome.environments:
            facts = {
                key: env.get(key)
                for key in (
                    "backend",
                    "mode",
                    "device",
                    "precision",
                    "versions",
                    "commit",
                    "processor",
                    "cores",
                    "python",
                    "platform",
                )
                if env.get(key) is not None
            }
            entry = found.setdefault(repr(facts), facts | {"jobs": 0})
            entry["jobs"] += 1
    return list(found.values())


def _appendix(plan: Plan, whole: Sequence[Outcome], content: Mapping[str, Any]) -> str:
    """What a paper says of how its numbers were made."""
    study = plan.study
    lines = [
        f"Study: {study.title} ({study.name}).",
        f"Command: {content['command']}",
        f"Commit: {content['commit'] or 'unknown'}. Made: {content['created']}.",
        "",
        "Design.",
    ]
    for factor, levels in study.factors.items():
        lines.append(f"  Factor {factor}: {', '.join(levels)}.")
    lines += [
        f"  Baseline: {', '.join(f'{factor} = {level}' for factor, level in study.baseline.items())}.",
        f"  Seeds: {', '.join(map(str, study.seeds))}. Every arm is run with every seed; all comparisons are paired by "
        "seed.",
    ]
    for stage, name, overrides in study.stages:
        lines.append(f"  Stage {stage}: experiments.{name} {' '.join(overrides)}")
    for factor, levels in study.factors.items():
        for level, told in levels.items():
            words = {stage: " ".join(overrides) for stage, overrides in told.items()}
            same = len(set(words.values())) == 1
            said = next(iter(words.values())) if same else "; ".join(f"{s}: {w or '-'}" for s, w in words.items())
            lines.append(f"  {factor} = {level}: {said or '-'}")
    lines += ["", "Metrics and margins, stated in the study file before the runs."]
    for metric in study.metrics:
        margin = "none" if metric.margin is None else f"{metric.margin:g}"
        lines.append(
            f"  {metric.title} ({metric.read}), {metric.better} is better, scale {metric.scale}, margin {margin}."
        )
    lines += [
        "",
        "Statistics.",
        "  Intervals of means and of paired differences: Student's t, 95 %. Effect size: Cohen's d_z of the paired",
        "  differences, with Hedges's correction g_z from three pairs on. Equivalence: two one-sided paired t tests",
        f"  (TOST) at level {study.alpha:g}. p values of differences: two-sided paired t tests, adjusted by Holm",
        "  within a metric. Ratios are compared by their logarithms.",
        "",
        "Hardware and software.",
    ]
    for env in content["environments"]:
        versions = ", ".join(f"{name} {version}" for name, version in (env.get("versions") or {}).items())
        where = ", ".join(
            str(env[key]) for key in ("backend", "device", "precision", "mode", "processor") if key in env
        )
        lines += [
            f"  {where}, {env.get('cores')} cores, {env.get('platform')}; Python {env.get('python')}, {versions};",
            f"  commit {env.get('commit')} ({env['jobs']} jobs).",
        ]
    data = {(o["data"]["name"], o["data"]["sha256"]) for r in whole for o in r.environments if o.get("data")}
    lines += [f"  Data: {name}, sha256 {sha256}." for name, sha256 in sorted(data)]
    joules = [o.cost["joules"] for o in whole]
    told = all(value is None for value in joules)
    lines += [
        "  Energy: not reported by this machine." if told else "  Energy: as counted by the machine (RAPL, NVML)."
    ]
    lines += ["", "Commands, in order."]
    done: dict[str, None] = {}
    for outcome in whole:
        for marker in outcome.markers:
            done.setdefault("  " + " ".join(marker["command"]))
    return "\n".join([*lines, *done]) + "\n"
