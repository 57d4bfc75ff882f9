"""The report of a comparison: checks, headlines, samples, images, quality and cost.

Every pair of runs, and every pair of parity records, is checked. A pair is written with a dash, as "torch–tf".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import pluralize
from diffusion_core.data import load_dataset
from diffusion_core.images import render
from diffusion_core.images.points import is_point, point_coordinates, scatter, shifts
from diffusion_core.metrics.difference import difference
from diffusion_core.metrics.files import read_sample_set
from diffusion_core.metrics.metric import SampleSet
from diffusion_core.metrics.protocol import Column, Number, columns, comparable_values, read_numbers
from diffusion_core.parity.compare import compare_records, own_checks, pixel_difference
from diffusion_core.parity.ladder import Check, check, ladder
from diffusion_core.runs.run_directory import describe_environment, read_samples
from diffusion_core.statistics.bootstrap import MIN_VALUES
from experiments.comparison.losses import add_losses
from experiments.comparison.result import Comparison
from experiments.comparison.runs import FinishedRun, check_different, describe_differences, read_runs
from experiments.comparison.verdict import (
    default_title,
    describe_rungs,
    describe_subject,
    share_a_backend,
    verdict_sentence,
)
from experiments.config.backends import read_backends
from experiments.evaluation.context import dataset_reference
from experiments.evaluation.samples import SampleEvaluator, make_features, select_samples
from experiments.sampling.sheet import sheet_columns

__all__ = ["compare", "different_draws"]

Samples = tuple[NDArray, NDArray, dict[str, Any]]
_GAIN = 64  # by which differences of pixels are multiplied
_IMAGES = {
    "noising": ("noising.png", "Forward noising", "three images from clean (left) to noise (right)"),
    "denoising": ("denoising.png", "Denoising", "the state and the estimate of x_0 along one trajectory"),
    "generation": ("generation.gif", "Generation", "samples as they are drawn"),
}
# The same of points of the plane.
_POINT_IMAGES = {
    "noising": ("noising.png", "Forward noising", "points of the data at rising noise levels"),
    "denoising": ("denoising.png", "Denoising", "states and estimates of x_0 at falling noise levels"),
    "trajectories": ("trajectories.png", "Trajectories", "from noise (grey) to samples"),
    "flow": ("flow.png", "Probability flow", "its velocity at falling noise levels, for up to three classes"),
    "generation": ("generation.gif", "Generation", "samples as they move"),
}
_NOTE = (
    "A row compares numbers with the same reference, sample count, features and options. Brackets: intervals over the "
    "draw of the samples; they hold the expected value at this number of samples for this reference. A difference has "
    "an interval of its own: it pairs the sets of both subjects, so that what they share cancels."
)


def compare(
    runs: Sequence[str | Path] = (), traces: Sequence[str | Path] = (), evaluations: Sequence[str | Path] = (),
    crossed: Sequence[str | Path] = (), *, title: str = "", command: str | None = None,
) -> Comparison:  # fmt: skip
    """Compare runs, parity records and evaluations.

    Args:
        runs: directories of experiments.train, none or at least two.
        traces: directories of experiments.trace, none or at least two.
        evaluations: directories of experiments.evaluate.
        crossed: directories of samples that one backend drew from the checkpoint of another.
        title: the title of the page; by default it says what is compared.
        command: the command that the page shows; the present one by default.

    Raises:
        DuetError: a directory does not hold what it should.
    """
    for key, paths in (("runs", runs), ("traces", traces), ("evaluations", evaluations), ("crossed", crossed)):
        check_different(key, paths)
    evaluated = {str(path): read_numbers(path) for path in evaluations}
    here = describe_environment()
    finished = read_runs(runs)
    comparison = Comparison({
        "title": title or default_title(finished, traces, evaluations),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": here["commit"],
        "command": command or here["command"],
        "environment": {key: here[key] for key in ("platform", "processor", "cores", "python")},
    })  # fmt: skip
    comparison.checks += _trace_checks([Path(path) for path in traces])
    if finished:
        samples = [read_samples(Path(path) / "samples.npz") for path in crossed]
        evaluated = _add_runs(comparison, finished, samples) | evaluated
    if evaluated:
        comparison.report["quality"] = _quality(evaluated)
    passed, total = comparison.passed, len(comparison.checks)
    rungs = describe_rungs(comparison.checks)
    tally = {"label": "checks of the parity ladder passed", "value": f"{passed:,} of {total:,}", "note": rungs}
    tallies = [tally] if total else []
    comparison.report |= {
        "backends": _backends(finished, comparison.checks),
        "rungs": ladder(comparison.checks),
        "headlines": [*tallies, *comparison.headlines],
        "verdict": {
            "agree": comparison.agree, "passed": passed, "total": total,
            "sentence": verdict_sentence(comparison, finished),
            "subject": describe_subject(finished, comparison.checks),
        },
    }  # fmt: skip
    return comparison


def _trace_checks(paths: Sequence[Path]) -> list[Check]:
    """Return the checks of each record against the reference, and of every pair of records."""
    own = {path: own_checks(path) for path in paths}
    for path, checks in own.items():
        if not checks:
            raise DuetError(f"{path}: its record holds no checks; write it again with experiments.trace")
    names = {path: checks[0].backend for path, checks in own.items()}
    found = [c for checks in own.values() for c in checks]
    return [*found, *compare_records(paths, [names[path] for path in paths])] if paths else []


def _backends(runs: Sequence[FinishedRun], checks: Sequence[Check]) -> list[dict[str, Any]]:
    """Return key, title and colours of every run and of every backend of the checks, in order."""
    known = read_backends()
    entries = {}
    for run in runs:
        configured = known.get(run.backend.name, run.backend)
        colour = {} if run.letter else run.backend.colour or configured.colour
        entries[run.key] = {"name": run.key, "title": run.label, "colour": dict(colour)}
    for name in (c.backend for c in checks):
        if name in known and name not in entries:
            entries[name] = {"name": name, "title": known[name].title, "colour": dict(known[name].colour)}
    return list(entries.values())


# --- runs ---------------------------------------------------------------------------------------------------------


def _add_runs(
    comparison: Comparison, runs: Sequence[FinishedRun], crossed: Sequence[Samples]
) -> dict[str, tuple[Number, ...]]:
    """Add everything that comes from runs; return the numbers of their samples by subject."""
    report = comparison.report
    report["runs"] = [_run_facts(run) for run in runs]
    comparison.different = describe_differences(runs)
    if comparison.different:
        comparison.add_headline("not the same experiment", "differs", ", ".join(comparison.different))
    else:
        add_losses(comparison, runs)
    report["samples"] = []
    for a, b in itertools.combinations(runs, 2):
        _add_samples(comparison, (a, b), crossed, f" ({a.label}, {b.label})" if len(runs) > 2 else "")
    report["cost"] = _cost(runs)
    report["pictures"] = _add_images(comparison, runs[0])
    numbers = _evaluate_digits(comparison, runs)
    rates = [n for run in runs for n in numbers.get(run.label, ()) if n.protocol["metric"] == "agreement"]
    if rates:
        value = " / ".join(f"{rate:.1%}" for rate in comparable_values(rates))
        comparison.add_headline("samples recognised as the requested class", value, " / ".join(r.label for r in runs))
    return numbers


def _run_facts(run: FinishedRun) -> dict[str, Any]:
    env, result = run.environment, run.result
    facts = {"label": run.label, "backend": run.key}
    facts |= {key: env[key] for key in ("device", "precision", "seed", "command", "commit", "versions")}
    return facts | {
        "images_per_second": result["images_per_second"],
        "peak_memory_mib": result["peak_memory_mib"],
        "wall_seconds": result["train_seconds"],
        "parameters": env["parameters"],
        "images_seen": result["images_seen"],
        "quality": {},
    }


def _add_samples(
    comparison: Comparison, pair: tuple[FinishedRun, FinishedRun], crossed: Sequence[Samples], suffix: str
) -> None:
    """Add the samples of two runs side by side; samples from the same weights are checked as well.

    `suffix` ends the titles, and tells pairs apart if there are several.
    """
    a, b = pair
    samples = comparison.report["samples"]
    for left, right, title in ((left, right, title + suffix) for left, right, title in _sample_pairs(pair, crossed)):
        if left[0].shape != right[0].shape or not np.array_equal(left[1], right[1]):
            continue
        if left[2]["weights_sha256"] == right[2]["weights_sha256"] and a.has_tolerances:
            if reason := different_draws(left[2], right[2]):
                comparison.add_headline("pixels of one checkpoint", "not run", reason)
            else:
                error = pixel_difference(left[0], right[0])
                comparison.checks.append(check(6, title, a.config["precision"], f"{a.key}–{b.key}", "pixels", error))
        apart = int(np.count_nonzero(left[0] != right[0]))
        largest = int(np.abs(left[0].astype(int) - right[0]).max())
        key = f"samples{len(samples)}"
        comparison.images |= _sample_images(key, left[0], right[0], left[1])
        samples.append({"title": title} | {side: f"{key}-{side}" for side in ("left", "right", "difference")} | {
            "left_label": a.label, "right_label": b.label,
            "caption": f"{apart:,} of {left[0].size:,} uint8 values differ, by at most {largest} of 255",
        })  # fmt: skip
        comparison.add_headline("differing sample pixels", f"{apart:,} of {left[0].size:,}", title)


def different_draws(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return why samples of the same weights were not drawn alike; empty if only the framework may differ."""
    if one.get("seed") != other.get("seed"):
        return f"the noise differs: seeds {one.get('seed')} and {other.get('seed')}"
    if one.get("plan") != other.get("plan"):
        return f"the sampler differs: {one.get('plan')} and {other.get('plan')}"
    sums, others = one.get("plan_sums") or {}, other.get("plan_sums") or {}  # earlier versions wrote none
    for name in sums.keys() & others.keys():
        if not math.isclose(sums[name], others[name], rel_tol=1e-9, abs_tol=1e-12):
            return f"the sampler differs: {one.get('plan')} with other {name}"
    return ""


def _sample_pairs(
    pair: tuple[FinishedRun, FinishedRun], crossed: Sequence[Samples]
) -> list[tuple[Samples, Samples, str]]:
    """Return samples of two runs in their order: drawn from one and the same checkpoint, then each from its own."""
    a, b = pair
    pairs = []
    for samples in crossed:
        for owner, other in ((a, b), (b, a)):
            same = samples[2]["weights_sha256"] == owner.samples[2]["weights_sha256"]
            if same and samples[2]["backend"] == other.backend.name != owner.backend.name:
                title = f"the same checkpoint, trained in {owner.label}, the same noise"
                pairs.append((owner.samples, samples, title) if owner is a else (samples, owner.samples, title))
    title = f"each {'run' if share_a_backend(pair) else 'framework'}'s own checkpoint"
    if a.config["seed"] == b.config["seed"]:
        title += ", the same noise"
    return [*pairs, (a.samples, b.samples, title)]


def _sample_images(key: str, left: NDArray, right: NDArray, labels: NDArray) -> dict[str, bytes]:
    if is_point(left.shape):
        plots = {name: scatter(point_coordinates(one), labels) for name, one in (("left", left), ("right", right))}
        plots["difference"] = shifts(left, right, _GAIN)
        return {f"{key}-{name}": render.png_bytes(plot) for name, plot in plots.items()}
    count, columns = min(100, len(left)), sheet_columns(len(np.unique(labels)))
    scale = max(1, 32 // left.shape[1])
    shown = {"left": left, "right": right, "difference": render.difference(left, right, gain=_GAIN)}
    return {
        f"{key}-{name}": render.png_bytes(render.grid(image[:count], columns, scale)) for name, image in shown.items()
    }


def _cost(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    def row(name: str, better: str, value: Callable[[Mapping[str, Any]], Any]) -> dict[str, Any]:
        return {"name": name, "values": {run.key: value(run.result) for run in runs}, "better": better}

    return {
        "rows": [
            row("training, images per second", "higher", lambda r: r["images_per_second"]),
            row("sampling, images per second", "higher", lambda r: r["sampled"] / r["sample_seconds"]),
            row("first step, seconds (tracing and compiling)", "lower", lambda r: r["first_step_seconds"]),
            row("peak memory, MiB", "lower", lambda r: r["peak_memory_mib"]),
        ]
    }


def _add_images(comparison: Comparison, run: FinishedRun) -> list[dict[str, str]]:
    """Add the images that the run has of noising, denoising and generation."""
    entries = []
    images = _POINT_IMAGES if is_point(run.samples[0].shape) else _IMAGES
    for key, (name, title, caption) in images.items():
        path = run.path / "samples" / name
        if path.is_file():
            comparison.images[key] = path.read_bytes()
            entries.append({"title": title, "picture": key, "caption": f"{caption} ({run.label})"})
    return entries


# --- quality ------------------------------------------------------------------------------------------------------


def _evaluate_digits(comparison: Comparison, runs: Sequence[FinishedRun]) -> dict[str, tuple[Number, ...]]:
    """Return the numbers of class-conditional digits by subject; empty if something else was trained.

    The subjects are the runs and, as the best that can be reached, as many held-out digits; the reference is the
    training part.
    """
    if any(run.config["data"]["name"] != "digits" or not run.config["model"].get("num_classes") for run in runs):
        return {}
    fewest, needed = min(len(run.samples[0]) for run in runs), 2 * MIN_VALUES
    if fewest < needed:
        note = f"{pluralize(fewest, 'sample')} of a run; intervals need {needed}"
        comparison.add_headline("quality of the samples", "not measured", note)
        return {}
    size = runs[0].samples[0].shape[1]
    train, held_out = (load_dataset("digits", size=size, part=part) for part in ("train", "held_out"))
    subjects = {run.label: read_sample_set(run.path) for run in runs}
    subjects["real digits, held out"] = SampleSet({"images": held_out.images, "labels": held_out.labels}, {})
    metrics = {"agreement": {}, "frechet": {}, "spread": {}, "memorisation": {}}
    evaluate = SampleEvaluator(make_features({"name": "digits"}), metrics, dataset_reference(train, {"part": "train"}))
    fewest = min(map(len, subjects.values()))
    numbers = {}
    for label, subject in subjects.items():
        samples, sets = select_samples(subject, (len(subject),), fewest, None, evaluate.seed)
        evaluation, _, _ = evaluate(samples, sets, label)
        numbers[label] = evaluation.numbers
        if label == runs[0].label:
            _add_nearest(comparison, evaluation.results["memorisation"].image_rows, label)
    for run, facts in zip(runs, comparison.report["runs"], strict=True):
        facts["quality"] = {number.name: number.value for number in numbers[run.label]}
    return numbers


def _add_nearest(comparison: Comparison, shown: tuple[tuple[str, NDArray], ...], label: str) -> None:
    rows = render.labelled_rows(shown, scale=max(1, 64 // shown[0][1].shape[1]))
    comparison.images["nearest"] = render.png_bytes(rows)
    caption = f"the samples that are most like training images, and the two nearest of these ({label})"
    entry = {"title": "Nearest training images", "picture": "nearest", "caption": caption}
    comparison.report["pictures"].append(entry)


def _differences(column: Column) -> list[dict[str, Any]]:
    """Return the difference of each subject from the first that has the number."""
    (baseline, first), *others = column.numbers.items()
    return [{"subject": subject, "baseline": baseline, **difference(first, number).plain} for subject, number in others]


def _quality(subjects: Mapping[str, tuple[Number, ...]]) -> dict[str, Any]:
    """Return the table of numbers: one row for each protocol by which subjects were measured."""
    rows = []
    for column in columns(subjects):
        numbers = [column.numbers.get(subject) for subject in subjects]
        unit = f" [{column.first.unit}]" if column.first.unit else ""
        rows.append({
            "name": f"{column.title}{unit}",
            "values": [n and n.value for n in numbers],
            "intervals": [n and n.interval and [n.interval.low, n.interval.high] for n in numbers],
            "better": column.first.better,
            "protocol": dict(column.first.protocol),
            "floor": column.first.floor,
            "differences": _differences(column),
        })  # fmt: skip
    return {"columns": list(subjects), "rows": rows, "note": _NOTE}
