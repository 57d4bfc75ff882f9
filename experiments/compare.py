"""Compare two runs, or two traces, or both: one page that says whether two frameworks agree.

    python3 -m duet compare a=outputs/demo/torch b=outputs/demo/tf out=outputs/report
    python3 -m duet compare traces=[outputs/trace/torch,outputs/trace/tf] out=outputs/report
    python3 -m duet compare evaluations=[outputs/a,outputs/b,outputs/c] out=outputs/report

It reads files and loads no framework, and leaves with exit code 1 if a check fails, as `diff` does. `crossed` names
samples that one framework drew from the other's checkpoint (`experiments.sample`); which checkpoint that was is told by
the hash of its weights. `evaluations` are directories of `experiments.evaluate`: their numbers stand in one line where
they were measured by one protocol, and in lines of their own where not.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import pluralize
from diffusion_core.data import load_dataset
from diffusion_core.files.safe_read import read_json
from diffusion_core.images import render
from diffusion_core.metrics.files import read_sample_set
from diffusion_core.metrics.metric import SampleSet
from diffusion_core.metrics.protocol import Number, columns, comparable_values, read_numbers
from diffusion_core.parity.compare import compare_records, own_checks, pixels_apart
from diffusion_core.parity.ladder import Check, check, ladder
from diffusion_core.runs.run_directory import describe_environment, read_metrics, read_samples
from diffusion_core.statistics.bootstrap import MIN_VALUES
from experiments.config.entry import command
from experiments.config.safe_yaml import read_config
from experiments.evaluation.context import dataset_reference
from experiments.evaluation.samples import SampleEvaluator, chosen, make_features
from experiments.report import write

Report = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run, read from its directory."""

    path: Path
    mark: str = ""

    @cached_property
    def config(self) -> DictConfig:
        """Its resolved configuration."""
        try:
            return OmegaConf.create(read_config(self.path / "config.yaml"))
        except DuetError as error:
            raise DuetError(f"{self.path}: it is not a run of experiments.train ({error})") from error

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Where it ran."""
        return read_json(self.path / "environment.json")

    @cached_property
    def result(self) -> dict[str, Any]:
        """What it ended with."""
        return read_json(self.path / "result.json")

    @cached_property
    def metrics(self) -> dict[str, NDArray]:
        """Its metrics by name, one number per step."""
        lines = list(read_metrics(self.path / "metrics.jsonl"))
        if not lines:
            raise DuetError(f"{self.path}: its metrics are empty; nothing was trained")
        return {name: np.array([line[name] for line in lines]) for name in lines[0]}

    @cached_property
    def samples(self) -> tuple[NDArray, NDArray, dict[str, Any]]:
        """Images, labels and facts of its final samples."""
        return read_samples(self.path / "samples" / "samples.npz")

    @property
    def backend(self) -> str:
        """Its backend's name."""
        return self.config.backend.name

    @property
    def label(self) -> str:
        """Its backend's title, for people, and its place among two of the same backend."""
        return f"{self.config.backend.title} {self.mark}".strip()

    @property
    def key(self) -> str:
        """What tells it from the other run."""
        return f"{self.backend} {self.mark}".strip()


@command("compare", result=("report.html", "a report"))
def main(cfg: DictConfig) -> None:
    """Read, compare, and write report.html and report.json."""
    if (cfg.a is None) != (cfg.b is None):
        raise DuetError("compare: one of a and b was given; give two run directories, or traces=[..,..] alone")
    if cfg.traces and len(cfg.traces) != 2:
        raise DuetError(f"compare: {pluralize(len(cfg.traces), 'trace')} given; give two, one of each backend")
    if cfg.a is None and not cfg.traces and not cfg.evaluations:
        raise DuetError(
            "compare: nothing was given; give a=RUN b=RUN, or traces=[TRACE,TRACE], or evaluations=[DIR,DIR], or all"
        )
    evaluated = {str(path): read_numbers(path) for path in cfg.evaluations}
    here = describe_environment()
    report: Report = {
        "title": cfg.title,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": here["commit"],
        "command": cfg.command or here["command"],
        "environment": {key: here[key] for key in ("platform", "processor", "cores", "python")},
    }
    images: dict[str, bytes] = {}
    checks = _trace_checks([Path(path) for path in cfg.traces]) if cfg.traces else []
    headlines: list[dict[str, str]] = []
    if cfg.a is not None:
        runs = Run(Path(cfg.a)), Run(Path(cfg.b))
        if runs[0].backend == runs[1].backend:
            runs = Run(runs[0].path, "a"), Run(runs[1].path, "b")
        crossed = [read_samples(Path(path) / "samples.npz") for path in cfg.crossed]
        found, judged = _run_sections(runs, crossed, report, images, headlines)
        checks += found
        evaluated = judged | evaluated
    if evaluated:
        report["quality"] = _quality(evaluated)
    passed = sum(c.passed for c in checks)
    report["rungs"] = ladder(checks)
    report["headlines"] = [
        {"label": "checks of the parity ladder passed", "value": f"{passed} of {len(checks)}", "note": "rungs 0 to 8"},
        *headlines,
    ]
    agree = passed == len(checks) if checks else None
    report["verdict"] = {"agree": agree, "passed": passed, "total": len(checks), "sentence": _sentence(checks, agree)}
    page = write(report, images, cfg.out)
    if not checks:
        print(f"nothing of the two can be held to a tolerance; see {page}")
        return
    print(f"{passed} of {len(checks)} checks passed; the frameworks {'agree' if agree else 'DO NOT agree'}: {page}")
    if not agree:
        sys.exit(1)


def _trace_checks(paths: list[Path]) -> list[Check]:
    own = [own_checks(path) for path in paths]
    for path, checks in zip(paths, own, strict=True):
        if not checks:
            raise DuetError(f"{path}: its record holds no checks; write it again with experiments.trace")
    names = tuple(checks[0].backend for checks in own)
    return [*own[0], *own[1], *compare_records(*paths, names)]


def _sentence(checks: list[Check], agree: bool | None) -> str:
    if agree is None:
        return "Nothing of the two can be held to a tolerance."
    if agree:
        precisions = " and in ".join(sorted({c.precision for c in checks}, reverse=True))
        return f"Every comparison lies within its published tolerance, in {precisions}."
    failed = [c for c in checks if not c.passed]
    return f"{len(failed)} comparisons lie outside their tolerance, first on rung {min(c.rung for c in failed)}."


# What two runs must share to be the same experiment; how and where it is computed is what is compared.
_SAME = ("seed", "precision", "data", "model", "process", "optimiser", "lr", "ema", "trainer", "sampler", "sample")


# Who makes batches ahead changes none of them, and where pixels lie is not what they are.
_HOW_READ = ("workers", "loader", "store")


def _shared(run: Run) -> dict[str, Any]:
    """The parts of a run's configuration that make the experiment."""
    config = OmegaConf.to_container(run.config, resolve=True)
    data = {key: value for key, value in config.get("data", {}).items() if key not in _HOW_READ}
    return {part: config.get(part) for part in _SAME} | {"data": data}


def _differences(a: Run, b: Run) -> list[str]:
    """What makes two runs different experiments, in words; empty where they run in lock step."""
    one, two = _shared(a), _shared(b)
    found = [part for part in _SAME if one[part] != two[part]]
    if a.environment["data"]["sha256"] != b.environment["data"]["sha256"]:
        found.append("pixels of the data")
    return found


def _run_sections(
    runs: tuple[Run, Run],
    crossed: list[tuple[NDArray, NDArray, dict[str, Any]]],
    report: Report,
    images: dict[str, bytes],
    headlines: list[dict[str, str]],
) -> tuple[list[Check], dict[str, tuple[Number, ...]]]:
    """Fill in everything that comes from runs; gives the checks of training and samples, and numbers."""
    a, b = runs
    pair, checks = f"{a.key}–{b.key}", []
    report["runs"] = [_run_facts(run) for run in runs]
    different = _differences(a, b)
    if different:
        print(f"the runs are not the same experiment; they differ in: {', '.join(different)}")
        headlines.append({"label": "not the same experiment", "value": "differs", "note": ", ".join(different)})
    else:
        loss, steps = _loss(a, b), len(a.metrics["loss"])
        report["loss"] = loss
        largest = max(loss["relative_difference"], default=float("inf"))
        kind = next(k for k in (10, 100, 1000) if steps <= k or k == 1000)
        if a.config.precision in ("float64", "float32"):
            name = f"{a.config.data.name}, {steps} steps"
            checks.append(check(7, name, a.config.precision, pair, f"training loss, {kind} steps", largest))
        headlines.append(
            {
                "label": "largest relative difference of the loss",
                "value": f"{largest:.1e}",
                "note": f"over {steps:,} lock-step steps",
            }
        )
    report["samples"] = []
    for left, right, title in _pairs(runs, crossed):
        same = left[0].shape == right[0].shape and np.array_equal(left[1], right[1])
        if not same:
            continue
        apart = int(np.count_nonzero(left[0] != right[0]))
        weights_equal = left[2]["weights_sha256"] == right[2]["weights_sha256"]
        if weights_equal and a.config.precision in ("float64", "float32"):
            checks.append(check(6, title, a.config.precision, pair, "pixels", pixels_apart(left[0], right[0])))
        key = f"samples{len(report['samples'])}"
        images |= _sample_pictures(key, left[0], right[0], left[1])
        report["samples"].append(
            {
                "title": title,
                "left": f"{key}-left",
                "right": f"{key}-right",
                "difference": f"{key}-difference",
                "left_label": a.label,
                "right_label": b.label,
                "caption": f"{apart:,} of {left[0].size:,} uint8 values differ, by at most "
                f"{int(np.abs(left[0].astype(int) - right[0]).max())} of 255",
            }
        )
        headlines.append({"label": "differing sample pixels", "value": f"{apart:,} of {left[0].size:,}", "note": title})
    report["cost"] = _cost(runs)
    report["pictures"] = _pictures(a, images)
    found = _judged(runs, report, images)
    rates = [number for run in runs for number in found.get(run.label, ()) if number.protocol["metric"] == "agreement"]
    if rates:
        headlines.append(
            {
                "label": "samples recognised as the class asked for",
                "value": " / ".join(f"{rate:.1%}" for rate in comparable_values(rates)),
                "note": " / ".join(run.label for run in runs),
            }
        )
    return checks, found


def _run_facts(run: Run) -> dict[str, Any]:
    env, result = run.environment, run.result
    return {
        "label": run.label,
        "backend": run.key,
        "device": env["device"],
        "precision": env["precision"],
        "seed": env["seed"],
        "command": env["command"],
        "commit": env["commit"],
        "versions": env["versions"],
        "images_per_second": result["images_per_second"],
        "peak_memory_mib": result["peak_memory_mib"],
        "wall_seconds": result["train_seconds"],
        "parameters": env["parameters"],
        "images_seen": result["images_seen"],
        "quality": {},
    }


def _loss(a: Run, b: Run) -> dict[str, Any]:
    steps = min(len(run.metrics["loss"]) for run in (a, b))
    one, two = (run.metrics["loss"][:steps] for run in (a, b))
    return {
        "images_seen": a.metrics["images_seen"][:steps].tolist(),
        "runs": {a.key: one.tolist(), b.key: two.tolist()},
        "relative_difference": (np.abs(one - two) / np.abs(one)).tolist(),
    }


def _pairs(runs: tuple[Run, Run], crossed: list[Any]) -> list[tuple[Any, Any, str]]:
    """Samples to set side by side: each framework's own, and those drawn from one and the same checkpoint."""
    a, b = runs
    found = []
    for samples in crossed:
        for owner in runs:
            same = samples[2]["weights_sha256"] == owner.samples[2]["weights_sha256"]
            if same and samples[2]["backend"] != owner.backend:
                title = f"the same checkpoint, trained in {owner.label}, and the same noise"
                both = (samples, owner.samples) if owner is b else (owner.samples, samples)
                found.append((*both, title))
    return [*found, (a.samples, b.samples, "each framework's own checkpoint, and the same noise")]


def _sample_pictures(key: str, left: NDArray, right: NDArray, labels: NDArray) -> dict[str, bytes]:
    count, columns = min(100, len(left)), max(len(np.unique(labels)), 5)
    scale = max(1, 32 // left.shape[1])
    shown = {"left": left, "right": right, "difference": render.difference(left, right, gain=64)}
    return {
        f"{key}-{name}": render.png_bytes(render.grid(image[:count], columns, scale)) for name, image in shown.items()
    }


def _cost(runs: tuple[Run, Run]) -> dict[str, Any]:
    def row(name: str, better: str, value: Any) -> dict[str, Any]:
        return {"name": name, "values": {run.key: value(run.result) for run in runs}, "better": better}

    return {
        "rows": [
            row("training, images per second", "higher", lambda r: r["images_per_second"]),
            row("sampling, images per second", "higher", lambda r: r["sampled"] / r["sample_seconds"]),
            row("first step, seconds (tracing and compiling)", "lower", lambda r: r["first_step_seconds"]),
            row("peak memory, MiB", "lower", lambda r: r["peak_memory_mib"]),
        ]
    }


def _pictures(run: Run, images: dict[str, bytes]) -> list[dict[str, str]]:
    shown = [
        ("noising", "noising.png", "Forward noising", "three images from clean (left) to noise (right)"),
        ("denoising", "denoising.png", "Denoising", "the state and the estimate of x_0 along one trajectory"),
        ("generation", "generation.gif", "Generation", "samples as they are drawn"),
    ]
    found = []
    for key, name, title, caption in shown:
        path = run.path / "samples" / name
        if path.is_file():
            images[key] = path.read_bytes()
            found.append({"title": title, "picture": key, "caption": f"{caption} ({run.label})"})
    return found


def _judged(runs: tuple[Run, Run], report: Report, images: dict[str, bytes]) -> dict[str, tuple[Number, ...]]:
    """The numbers of class-conditional digits by subject, where that is what was trained.

    The subjects are the runs and, to say what can be hoped for, as many digits that were held out, all against the
    digits that were not.
    """
    if any(run.config.data.name != "digits" or not run.config.model.num_classes for run in runs):
        return {}
    size = runs[0].samples[0].shape[1]
    train, held_out = (load_dataset("digits", size=size, part=part) for part in ("train", "held_out"))
    subjects = {run.label: read_sample_set(run.path) for run in runs}
    subjects["real digits, held out"] = SampleSet({"images": held_out.images, "labels": held_out.labels}, {})
    metrics = {"agreement": {}, "frechet": {}, "spread": {}, "memorisation": {}}
    judge = SampleEvaluator(make_features({"name": "digits"}), metrics, dataset_reference(train, {"part": "train"}))
    fewest = min(map(len, subjects.values()))
    found = {}
    for label, source in subjects.items():
        samples, sets = chosen(source, (len(source),), fewest, MIN_VALUES, judge.seed)
        evaluation, _, _ = judge(samples, sets)
        found[label] = evaluation.numbers
        if label == runs[0].label:
            _show_nearest(evaluation.results["memorisation"].shown, label, report, images)
    for run, facts in zip(runs, report["runs"], strict=True):
        facts["quality"] = {number.name: number.value for number in found[run.label]}
    return found


def _show_nearest(shown: tuple[tuple[str, NDArray], ...], label: str, report: Report, images: dict[str, bytes]) -> None:
    images["nearest"] = render.png_bytes(render.labelled_rows(shown, scale=max(1, 64 // shown[0][1].shape[1])))
    report["pictures"].append(
        {
            "title": "Nearest training images",
            "picture": "nearest",
            "caption": f"the samples that are most like training images, and the two nearest of these ({label})",
        }
    )


def _quality(subjects: dict[str, tuple[Number, ...]]) -> Report:
    """The table of numbers: one line for each that several subjects may be compared by, so by one protocol each."""
    rows = []
    for column in columns(subjects):
        numbers = [column.numbers.get(subject) for subject in subjects]
        rows.append(
            {
                "name": " ".join([column.title, *filter(None, [column.first.unit and f"[{column.first.unit}]"])]),
                "values": [number and number.value for number in numbers],
                "intervals": [
                    number and number.interval and [number.interval.low, number.interval.high] for number in numbers
                ],
                "better": column.first.better,
                "protocol": dict(column.first.protocol),
            }
        )
    note = (
        "Numbers stand in one line only if they were measured by one protocol: the same reference, number of samples, "
        "features and options. In brackets: where a number lies with other samples of the same kind, by the bootstrap "
        "over disjoint sets of them."
    )
    return {"columns": list(subjects), "rows": rows, "note": note}


if __name__ == "__main__":
    main()
