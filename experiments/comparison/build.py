"""The report of a comparison: checks, headlines, loss, samples, images, quality and cost.

Every pair of runs, and every pair of parity records, is checked. A pair is written with a dash, as "torch–tf".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
from diffusion_core.metrics.files import read_sample_set
from diffusion_core.metrics.metric import SampleSet
from diffusion_core.metrics.protocol import Number, columns, comparable_values, read_numbers
from diffusion_core.parity.compare import compare_records, own_checks, pixel_difference
from diffusion_core.parity.ladder import RUNGS, Check, check, ladder
from diffusion_core.runs.run_directory import describe_environment, read_samples
from diffusion_core.statistics.bootstrap import MIN_VALUES
from experiments.comparison.runs import FinishedRun, check_different, describe_differences, read_runs
from experiments.config.backends import read_backends
from experiments.evaluation.context import dataset_reference
from experiments.evaluation.samples import SampleEvaluator, make_features, select_samples

__all__ = ["Comparison", "compare", "describe_rungs", "different_draws"]

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
    "A row compares numbers with the same reference, sample count, features and options. Brackets: 95 % bootstrap "
    "intervals."
)


@dataclass(eq=False)
class Comparison:
    """A comparison while it is built.

    Args:
        report: JSON values, see `experiments.report.comparison`.
        images: PNG and GIF files by the names that the report uses.
        checks: comparisons with their tolerances.
        headlines: the numbers on top of the page.
        different: what makes the runs different experiments.
    """

    report: dict[str, Any]
    images: dict[str, bytes] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    headlines: list[dict[str, str]] = field(default_factory=list)
    different: list[str] = field(default_factory=list)

    @property
    def passed(self) -> int:
        """The number of checks that pass."""
        return sum(c.passed for c in self.checks)

    @property
    def agree(self) -> bool | None:
        """Whether all checks pass; None if there is none."""
        return self.passed == len(self.checks) if self.checks else None

    def add_headline(self, label: str, value: str, note: str) -> None:
        """Add a number to the top of the page."""
        self.headlines.append({"label": label, "value": value, "note": note})


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
        "title": title or _title(finished, traces, evaluations),
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
    tally = {"label": "checks of the parity ladder passed", "value": f"{passed} of {total}", "note": rungs}
    tallies = [tally] if total else []
    comparison.report |= {
        "backends": _backends(finished, comparison.checks),
        "rungs": ladder(comparison.checks),
        "headlines": [*tallies, *comparison.headlines],
        "verdict": {
            "agree": comparison.agree, "passed": passed, "total": total, "sentence": _sentence(comparison, finished),
            "subject": _subject(finished, comparison.checks),
        },
    }  # fmt: skip
    return comparison


def _title(runs: Sequence[FinishedRun], traces: Sequence[str | Path], evaluations: Sequence[str | Path]) -> str:
    """Return the default title of the page."""
    if runs and not traces and _share_a_backend(runs):
        return f"Comparison of {len(runs)} runs"
    if traces and len({check.backend for path in traces for check in own_checks(Path(path))}) == 1:
        return f"Comparison of {pluralize(len(traces), 'parity record')} of one framework"
    if runs or traces:
        return "Do the frameworks agree?"
    return f"Comparison of {pluralize(len(evaluations), 'evaluation')}"


def _share_a_backend(runs: Sequence[FinishedRun]) -> bool:
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
    text = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1] if parts else ""
    return f"rung{'s' if len(numbers) > 1 else ''} {text}" if parts else "no rung"


def _subject(runs: Sequence[FinishedRun], checks: Sequence[Check]) -> str:
    """Return what a verdict is about: the frameworks, or runs or records of one of them."""
    known = read_backends()
    traced = [known[c.backend].title for c in checks if c.backend in known]
    titles = list(dict.fromkeys([*(run.backend.title for run in runs), *traced]))
    if len(titles) > 1:
        return f"{', '.join(titles[:-1])} and {titles[-1]}"
    what = pluralize(len(runs), "run") if runs else "parity records"
    return f"{what} of {titles[0]}" if titles else what


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


def _sentence(comparison: Comparison, runs: Sequence[FinishedRun]) -> str:
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
        _add_loss(comparison, runs)
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


def _relative_difference(a: FinishedRun, b: FinishedRun, steps: int) -> NDArray[np.float64]:
    one, two = (run.metrics["loss"][:steps] for run in (a, b))
    return np.abs(one - two) / np.abs(one)


def _add_loss(comparison: Comparison, runs: Sequence[FinishedRun]) -> None:
    """Add the loss of every step, its largest difference from the first run, and a check of every pair."""
    first = runs[0]
    steps = min(len(run.metrics["loss"]) for run in runs)
    difference = np.max([_relative_difference(first, run, steps) for run in runs[1:]], axis=0)
    comparison.report["loss"] = {
        "images_seen": first.metrics["images_seen"][:steps].tolist(),
        "runs": {run.key: run.metrics["loss"][:steps].tolist() for run in runs},
        "relative_difference": difference.tolist(),
    }
    for a, b in itertools.combinations(runs, 2):
        if a.has_tolerances:
            total = len(a.metrics["loss"])
            largest = max(_relative_difference(a, b, steps), default=float("inf"))
            name, pair = f"{a.config['data']['name']}, {total} steps", f"{a.key}–{b.key}"
            comparison.checks.append(check(7, name, a.config["precision"], pair, _loss_kind(total), largest))
    _check_validation(comparison, runs)
    _add_validation(comparison, runs)
    largest = f"{max(difference, default=float('inf')):.1e}"
    note = f"over {len(first.metrics['loss']):,} lock-step steps"
    comparison.add_headline("largest relative difference of the loss", largest, note)


def _check_validation(comparison: Comparison, runs: Sequence[FinishedRun]) -> None:
    """Check the validation losses of every pair that was validated on the same images; missing moments fail."""
    for a, b in itertools.combinations(runs, 2):
        validated = a.environment.get("validation")
        if not a.has_tolerances or not validated or validated != b.environment.get("validation"):
            continue
        names = dict.fromkeys(name for name in (*a.metrics, *b.metrics) if name.startswith("validation_loss"))
        largest = max((_largest_gap(a.metrics.get(name), b.metrics.get(name)) for name in names), default=math.inf)
        name, pair = f"{a.config['data']['name']}, validation loss", f"{a.key}–{b.key}"
        kind = _loss_kind(len(a.metrics["loss"]))
        comparison.checks.append(check(7, name, a.config["precision"], pair, kind, largest))


def _add_validation(comparison: Comparison, runs: Sequence[FinishedRun]) -> None:
    """Add the validation loss of the weights at the moments that all runs have, if they share its images."""
    curves = {run.key: run.metrics.get("validation_loss") for run in runs}
    shared = all(run.environment.get("validation") == runs[0].environment.get("validation") for run in runs)
    if not shared or any(values is None or values.shape != curves[runs[0].key].shape for values in curves.values()):
        return
    known = np.all(np.isfinite(list(curves.values())), axis=0)
    first = curves[runs[0].key][known]
    if not len(first):
        return
    gaps = [np.abs(values[known] - first) / np.abs(first) for values in curves.values()]
    comparison.report["validation"] = {
        "images_seen": runs[0].metrics["images_seen"][known].tolist(),
        "runs": {key: values[known].tolist() for key, values in curves.items()},
        "relative_difference": np.max(gaps, axis=0).tolist(),
    }


def _loss_kind(steps: int) -> str:
    """Return the kind of tolerance of the losses of a run with this number of steps."""
    return f"training loss, {next(k for k in (10, 100, 1000) if steps <= k or k == 1000)} steps"


def _largest_gap(one: NDArray | None, other: NDArray | None) -> float:
    """Return the largest relative difference of two curves with gaps at the same moments; infinite for others."""
    if one is None or other is None or one.shape != other.shape or np.any(np.isnan(one) != np.isnan(other)):
        return math.inf
    known = ~np.isnan(one)
    return float(np.max(np.abs(one - other)[known] / np.abs(one[known]), initial=0.0)) if known.any() else math.inf


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
    title = f"each {'run' if _share_a_backend(pair) else 'framework'}'s own checkpoint"
    if a.config["seed"] == b.config["seed"]:
        title += ", the same noise"
    return [*pairs, (a.samples, b.samples, title)]


def _sample_images(key: str, left: NDArray, right: NDArray, labels: NDArray) -> dict[str, bytes]:
    if is_point(left.shape):
        plots = {name: scatter(point_coordinates(one), labels) for name, one in (("left", left), ("right", right))}
        plots["difference"] = shifts(left, right, _GAIN)
        return {f"{key}-{name}": render.png_bytes(plot) for name, plot in plots.items()}
    count, columns = min(100, len(left)), max(len(np.unique(labels)), 5)
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
    size = runs[0].samples[0].shape[1]
    train, held_out = (load_dataset("digits", size=size, part=part) for part in ("train", "held_out"))
    subjects = {run.label: read_sample_set(run.path) for run in runs}
    subjects["real digits, held out"] = SampleSet({"images": held_out.images, "labels": held_out.labels}, {})
    metrics = {"agreement": {}, "frechet": {}, "spread": {}, "memorisation": {}}
    evaluate = SampleEvaluator(make_features({"name": "digits"}), metrics, dataset_reference(train, {"part": "train"}))
    fewest = min(map(len, subjects.values()))
    numbers = {}
    for label, subject in subjects.items():
        samples, sets = select_samples(subject, (len(subject),), fewest, MIN_VALUES, evaluate.seed)
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
        })  # fmt: skip
    return {"columns": list(subjects), "rows": rows, "note": _NOTE}
