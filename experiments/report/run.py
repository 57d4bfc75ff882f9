"""The page of one run: how it went, what it draws, how good that is, what it cost, and how to go on.

    header and verdict, numbers, samples, losses, noise levels, learning rate, evaluation, speed, experiment,
    environment, commands, configuration

Everything is read from the directory of the run, so that the page can be made at any time. A part whose files are
missing is left out.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.text import pluralize
from diffusion_core.files.atomic import write_atomically
from diffusion_core.images import render
from diffusion_core.images.points import class_colours, point_coordinates, scatter

from .curves import Curve, Panel, curve_chart, curves_of
from .page import Section, render_page
from .run_facts import RunFacts, Samples
from .text import DASH, moment, number, text

__all__ = ["write"]

_TRAINING = ("training", "s7")
_WEIGHTS = {"weights": ("validation, weights", "s0"), "ema": ("validation, average", "s1")}
_LEVELS = ("s2", "s5", "s3", "s6")  # from the least noise to the most
_ROWS, _COLUMNS, _PLAIN = 12, 16, 80  # classes shown, samples of each, samples without classes
_MOMENTS = 6
_FIGURE_BYTES = 1 << 20


def write(run: RunFacts) -> Path:
    """Write report.html into the directory of the run, atomically; return its path.

    Raises:
        DuetError: a file of the run is corrupt.
    """
    path = run.path / "report.html"
    write_atomically(path, _page(run).encode())
    return path


def _page(run: RunFacts) -> str:
    data = (run.environment.get("data") or {}).get("name") or run.option("data", "name")
    title = f"{text(data)}, {text(_backend(run))}"
    sections = [
        Section("samples", "Samples", _samples(run), _samples_lead(run)),
        Section("progress", "Samples during training", _progress(run), "The same noise and labels at every moment.",
                "Progress"),
        Section("loss", "Loss", _loss(run), _loss_lead(run)),
        Section("levels", "Validation loss by noise level", _levels(run), _levels_lead(run), "Levels"),
        Section("rate", "Learning rate and gradient", _rate(run), "", "Rate"),
        Section("quality", "Evaluation", _quality(run), _quality_lead(run)),
        Section("cost", "Speed", _cost(run)),
        Section("generation", "From noise to images", _generation(run), "", "Noise"),
        Section("experiment", "Experiment", _experiment(run)),
        Section("environment", "Environment", _environment(run)),
        Section("commands", "What to do next", _commands(run), "", "Commands"),
        Section("configuration", "Configuration", run.config_text and {"text": run.config_text}),
    ]  # fmt: skip
    header = {**_verdict(run), "facts": _facts(run), "command": run.environment.get("command"), "tiles": _tiles(run)}
    return render_page("run.html", title, header, sections, mark=f"{header['mark']} ", style=header["style"])


def _backend(run: RunFacts) -> Any:
    return run.option("backend", "title") or run.option("backend", "name") or run.environment.get("backend")


# --- header -------------------------------------------------------------------------------------------------------


def _verdict(run: RunFacts) -> dict[str, str]:
    """Return how the run ended."""
    seen, total = f"{run.images_seen:,}", f"{run.total:,}"
    if run.problem:
        checkpoint = _last_checkpoint(run)
        return {"style": "differ", "mark": "✗", "claim": f"Stopped by an error at {seen} of {total} images",
                "sentence": f"{run.problem}\n{checkpoint}"}  # fmt: skip
    if run.is_complete:
        steps = len(run.metrics.get("loss", ()))
        batch = run.option("trainer", "batch", default=DASH)
        return {"style": "agree", "mark": "✓", "claim": f"Complete: {pluralize(run.images_seen, 'image')} seen",
                "sentence": f"{pluralize(steps, 'step')} of {batch} images"}  # fmt: skip
    return {"style": "unknown", "mark": "…", "claim": f"Not complete: {seen} of {total} images seen",
            "sentence": _last_checkpoint(run)}  # fmt: skip


def _last_checkpoint(run: RunFacts) -> str:
    if run.last_checkpoint is None:
        return "It has no checkpoint yet, so that it starts again from the beginning."
    return f"Its last checkpoint is at {run.last_checkpoint:,} images."


def _facts(run: RunFacts) -> list[str]:
    """Return the line below the title."""
    env, network = run.environment, run.option("model", "architecture")
    parameters = env.get("parameters")
    facts = [
        network and f"network {network}" + (f", {parameters:,} parameters" if isinstance(parameters, int) else ""),
        env.get("device") and f"{env['device']}, {env.get('precision', DASH)}",
        env.get("seed") is not None and f"seed {env['seed']}",
        env.get("commit") and f"commit {env['commit']}",
    ]
    return [fact for fact in facts if fact]


def _last(run: RunFacts, name: str) -> float | None:
    values = run.metrics.get(name, np.zeros(0))
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else None


def _tiles(run: RunFacts) -> list[dict[str, str]]:
    """Return the numbers on top of the page."""
    tiles = []

    def add(label: str, value: str, note: str = "") -> None:
        tiles.append({"label": label, "value": value, "note": note})

    loss = run.result.get("objective", _mean_of_last(run.metrics.get("loss", np.zeros(0))))
    if loss is not None:
        add("training loss", number(loss), "mean of the last log interval" if run.result else "mean of the last steps")
    for weights in run.weights()[:2]:
        title = "of the weights" if weights == "weights" else "of the moving average"
        suffix = "" if weights == "weights" else f"_{weights}"
        add("validation loss", number(_last(run, f"validation_loss{suffix}")), title)
        accuracy = _last(run, f"validation_accuracy{suffix}")
        if accuracy is not None:
            add("validation accuracy", f"{accuracy:.1%}", f"{title}, over all noise levels")
    for entry in _numbers(run)[:2]:
        low, high = entry["interval"] or (None, None)
        add(entry["name"], number(entry["value"]), f"{number(low)} to {number(high)}" if low is not None else "")
    if speed := run.result.get("images_per_second"):
        add("images per second", number(round(speed, 1)), f"trained in {_seconds(run.result.get('train_seconds'))}")
    return tiles


def _mean_of_last(values: NDArray[np.float64], steps: int = 20) -> float | None:
    known = values[np.isfinite(values)][-steps:]
    return float(known.mean()) if len(known) else None


def _seconds(value: Any) -> str:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return DASH
    if value < 10:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


# --- samples ------------------------------------------------------------------------------------------------------


def _is_points(samples: Samples) -> bool:
    """Whether the images are points of the plane: one pixel, red is x and green is y."""
    return samples.images.shape[1:] == (1, 1, 3)


def _by_class(run: RunFacts, samples: Samples) -> list[tuple[str, NDArray[np.uint8]]]:
    """Return class names with the first samples of each class; one row without a name if there are no classes."""
    if not samples.facts.get("conditional"):
        return [("", samples.images)]
    labels = list(dict.fromkeys(samples.labels.tolist()))
    return [(run.class_name(label), samples.images[samples.labels == label]) for label in sorted(labels)]


def _samples(run: RunFacts) -> dict[str, Any] | None:
    """Return rows of samples, one for each class, or a scatter plot of points."""
    if not run.samples:
        return None
    last = run.samples[-1]
    if _is_points(last):
        return {"points": _points(run, last)}
    groups = _by_class(run, last)
    scale = max(1, 56 // last.images.shape[1])
    if groups[0][0] == "":
        return {"grid": render.png_bytes(render.grid(groups[0][1][:_PLAIN], min(_COLUMNS, len(last.images)), scale))}
    columns = min(_COLUMNS, max(len(images) for _, images in groups))
    rows = [(name, _strip(images, columns, scale)) for name, images in groups[:_ROWS]]
    return {"rows": rows, "more": max(0, len(groups) - _ROWS)}


def _strip(images: NDArray[np.uint8], columns: int, scale: int) -> bytes:
    """Return the first images in a row of this many places."""
    return render.png_bytes(render.grid(images[:columns], columns, scale))


def _samples_lead(run: RunFacts) -> str:
    if not run.samples:
        return ""
    last = run.samples[-1]
    weights = run.option("sample", "weights", default="ema")
    source = "the weights" if weights == "weights" else f"the moving average ({weights})"
    when = "" if run.is_complete else f" at {last.images_seen:,} images"
    shown = len(last.images) if _is_points(last) else min(len(last.images), _PLAIN)
    return f"Drawn with {source}{when} by {last.facts.get('plan', DASH)}, seed {last.facts.get('seed', DASH)}. " + (
        f"{pluralize(len(last.images), 'sample')}; the first are shown." if shown < len(last.images) else ""
    )


def _points(run: RunFacts, samples: Samples, most: int = 2000) -> list[dict[str, str]]:
    """Return name, colour and path of dots for the points of each class in [-1, 1]^2, as `scatter` colours them."""
    labels = samples.labels if samples.facts.get("conditional") else np.zeros(len(samples.images), int)
    colours, groups = class_colours(int(labels.max()) + 1), []
    for label in np.unique(labels):
        x, y = point_coordinates(samples.images[labels == label])[: most // len(np.unique(labels)) + 1].T
        dots = "".join(f"M{500 * (a + 1):.0f} {500 * (1 - b):.0f}h0" for a, b in zip(x, y, strict=True))
        name = run.class_name(int(label)) if samples.facts.get("conditional") else ""
        groups.append({"name": name, "colour": "rgb({}, {}, {})".format(*colours[label]), "dots": dots})
    return groups


def _progress(run: RunFacts) -> dict[str, Any] | None:
    """Return the first samples of a few moments, or all points of each, if there are several."""
    moments = run.samples
    if len(moments) < 2:
        return None
    chosen = np.unique(np.linspace(0, len(moments) - 1, _MOMENTS).astype(int))
    if all(map(_is_points, moments)):
        shown = [moments[k] for k in chosen]
        plots = [scatter(point_coordinates(s.images), s.labels, size=240, legend=False) for s in shown]
        names = [f"{s.images_seen:,} images" for s in shown]
        return {"plots": [(name, render.png_bytes(plot)) for name, plot in zip(names, plots, strict=True)]}
    scale = max(1, 56 // moments[0].images.shape[1])
    columns = min(_COLUMNS, max(len(s.images) for s in moments))
    rows = [(f"{moments[k].images_seen:,} images", _strip(moments[k].images, columns, scale)) for k in chosen]
    return {"rows": rows}


def _generation(run: RunFacts) -> list[dict[str, Any]] | None:
    """Return the figures of the folder of samples."""
    titles = {
        "denoising.png": ("Denoising", "The state and the estimate of the image along one trajectory."),
        "noising.png": ("Noising", "Three training images from clean to noise."),
    }
    if run.samples and _is_points(run.samples[-1]):
        titles |= {
            "denoising.png": (
                "Denoising",
                "The states of the samples and the estimates of x_0 at falling noise levels.",
            ),
            "trajectories.png": (
                "Trajectories",
                "From noise (grey) to samples; at every level noise has unit variance.",
            ),
            "flow.png": ("Probability flow", "Its velocity at falling noise levels, for up to three classes."),
            "noising.png": ("Noising", "Points of the data at rising noise levels."),
        }
    found = []
    for name, (title, caption) in titles.items():
        data = run.picture(name) if name == "noising.png" or run.result else None
        if data and len(data) <= _FIGURE_BYTES:
            found.append({"title": title, "caption": caption, "data": data})
    return found


# --- curves -------------------------------------------------------------------------------------------------------


def _chart(run: RunFacts, key: str, panels: Sequence[Panel]) -> Any:
    return curve_chart(key, run.metrics.get("images_seen", np.zeros(0)), run.total, panels)


def _weights_curves(run: RunFacts, metric: str) -> list[Curve]:
    """Return a curve of the validation for the weights and each average."""
    extra = {f"ema{k}": (f"validation, average {k + 1}", f"s{k + 2}") for k in range(1, 5)}
    names = {}
    for weights, style in (_WEIGHTS | extra).items():
        names[f"validation_{metric}" + ("" if weights == "weights" else f"_{weights}")] = style
    return curves_of(run.metrics, names)


def _loss(run: RunFacts) -> Any:
    loss = run.metrics.get("loss")
    if loss is None:
        return None
    validation = _weights_curves(run, "loss")
    label = "training and validation loss" if validation else "training loss"
    panels = [Panel("Loss", label, [Curve(*_TRAINING, loss, is_noisy=True), *validation])]
    accuracy = _weights_curves(run, "accuracy")
    panels.append(Panel("Validation accuracy", "validation accuracy", accuracy, is_low=True, is_log=False))
    return _chart(run, "loss", panels)


def _loss_lead(run: RunFacts) -> str:
    validation = run.environment.get("validation")
    if not validation or not run.weights():
        return ""
    images, of = validation.get("images", 0), validation.get("of_images", 0)
    which = f"{images:,} of {of:,}" if images < of else f"{of:,}"
    return (
        f"The validation loss is that of {which} held-out images ({validation.get('part')}), in evaluation mode, with "
        f"the same noise at every moment. A training loss that falls while it rises shows overfitting."
    )


def _level_names(run: RunFacts) -> tuple[str, list[tuple[str, str]]]:
    """Return the weights that the run samples with, and for each level the name and the range of its noise."""
    weights = run.option("sample", "weights", default="ema")
    weights = weights if weights in run.weights() else "weights"
    levels = (run.environment.get("validation") or {}).get("levels") or []
    suffix = "" if weights == "weights" else f"_{weights}"
    last = len(levels) - 1
    ranges = [_range(level, k == 0, k == last) for k, level in enumerate(levels)]
    return weights, [(f"validation_loss{suffix}_level{k + 1}", name) for k, name in enumerate(ranges)]


def _range(level: Mapping[str, Any], is_first: bool, is_last: bool) -> str:
    """Return the range of noise over signal of a level; the first and the last are open."""
    low, high = (f"{end:.2g}" if isinstance(end, int | float) else "∞" for end in level["sigma_over_alpha"])
    return f"σ/α below {high}" if is_first else f"σ/α above {low}" if is_last else f"σ/α {low} to {high}"


def _levels(run: RunFacts) -> Any:
    names = {name: (title, _LEVELS[k % 4]) for k, (name, title) in enumerate(_level_names(run)[1])}
    curves = curves_of(run.metrics, names)
    if curves and max(np.isfinite(curve.values).sum() for curve in curves) == 1:  # a chart needs a second moment
        return {"rows": [(curve.title, number(float(np.nansum(curve.values)))) for curve in curves]}
    return _chart(run, "levels", [Panel("Validation loss by noise level", "validation loss", curves)])


def _levels_lead(run: RunFacts) -> str:
    weights, _ = _level_names(run)
    which = "the weights" if weights == "weights" else f"the moving average ({weights})"
    return f"Of {which}; each level holds a quarter of the noise levels that training draws, σ/α is noise over signal."


def _rate(run: RunFacts) -> Any:
    panels = []
    for name, label, log in (
        ("lr", "learning rate", False),
        ("grad_norm", "norm of the gradient before its clip", True),
    ):
        if name in run.metrics:
            curve = Curve(label, "s4" if name == "lr" else "s7", run.metrics[name], is_noisy=name == "grad_norm")
            panels.append(Panel(label, label, [curve], is_low=True, is_log=log))
    return _chart(run, "rate", panels)


# --- tables -------------------------------------------------------------------------------------------------------


def _numbers(run: RunFacts) -> list[dict[str, Any]]:
    """Return the evaluated numbers: name, value, interval, unit, and which direction is better."""
    found = []
    for metric in ((run.result.get("evaluation") or {}).get("numbers") or {}).values():
        for entry in metric.values() if isinstance(metric, Mapping) else ():
            if not isinstance(entry, Mapping) or "value" not in entry:
                continue
            interval = entry.get("interval")
            ends = (interval.get("low"), interval.get("high")) if isinstance(interval, Mapping) else interval
            found.append({"name": entry.get("name"), "value": entry["value"], "interval": ends or None,
                          "unit": entry.get("unit"), "better": entry.get("better")})  # fmt: skip
    return found


def _quality(run: RunFacts) -> dict[str, Any] | None:
    evaluation, numbers = run.result.get("evaluation") or {}, _numbers(run)
    skipped = dict(evaluation.get("left_out") or {})
    if not (numbers or skipped or evaluation.get("reason")):
        return None
    return {"numbers": numbers, "skipped": skipped, "reason": evaluation.get("reason")}


def _quality_lead(run: RunFacts) -> str:
    count = run.result.get("sampled")
    return f"Of {pluralize(count, 'sample')}; brackets hold confidence intervals." if count and _numbers(run) else ""


def _cost(run: RunFacts) -> list[tuple[str, str]] | None:
    """Return the facts of the table of speed."""
    result = run.result
    if not result:
        return None
    sampled, seconds = result.get("sampled"), result.get("sample_seconds")
    rows = [
        ("training, images per second", number(round(result.get("images_per_second") or 0, 1))),
        ("training time", _seconds(result.get("train_seconds"))),
        ("of which steps", _seconds((result.get("seconds") or 0) + (result.get("first_step_seconds") or 0))),
        ("first step, with tracing and compiling", _seconds(result.get("first_step_seconds"))),
        ("sampling, images per second", number(round(sampled / seconds, 1)) if sampled and seconds else ""),
        ("sampling time", _seconds(seconds) if seconds else ""),
        ("peak memory", f"{result['peak_memory_mib']:,.0f} MiB" if result.get("peak_memory_mib") else ""),
    ]
    return [row for row in rows if row[1]]


def _experiment(run: RunFacts) -> list[tuple[str, str]]:
    """Return what was trained on what."""
    option, env = run.option, run.environment
    data, validation = env.get("data") or {}, env.get("validation")
    schedule, averages = option("process", "schedule", "name"), option("ema", "name")
    rows = [
        ("data", f"{text(data.get('name'))}, {data.get('images', 0):,} images" if data else ""),
        ("SHA-256 of the data", str(data.get("sha256", ""))[:16]),
        (
            "validation",
            f"{validation.get('part')}, {validation.get('of_images', 0):,} images" if validation else "none",
        ),
        ("network", text(option("model", "architecture"))),
        ("parameters", f"{env['parameters']:,}" if isinstance(env.get("parameters"), int) else ""),
        ("process", f"{option('process', 'prediction')} on {schedule}" if schedule else ""),
        ("batch", str(option("trainer", "batch", default=""))),
        ("learning rate", f"{option('lr', 'peak')}, {option('lr', 'decay', default='constant')}"),
        ("moving average", str(averages or "")),
        ("sampler", " ".join(str(v) for v in (option("sampler", "name"), option("sampler", "steps")) if v is not None)),
        ("seed", str(option("seed", default=""))),
    ]
    resumed = env.get("resumed_from")
    if isinstance(resumed, Mapping):
        rows.append(("resumed from", f"{resumed.get('source')} at {resumed.get('images_seen', 0):,} images"))
    return [row for row in rows if row[1]]


def _environment(run: RunFacts) -> list[tuple[str, str]]:
    env = run.environment
    rows = [("started", moment(env.get("started")))]
    rows += [(name, env.get(name)) for name in ("device", "precision", "mode", "threads")]
    rows += [(name, version) for name, version in (env.get("versions") or {}).items()]
    rows += [(name, env.get(name)) for name in ("platform", "processor", "cores", "commit")]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def _commands(run: RunFacts) -> list[tuple[str, str]]:
    """Return titles and commands."""
    path, backend = shlex.quote(str(run.path)), run.option("backend", "name") or run.environment.get("backend")
    with_backend = f"backend={backend} " if backend else ""
    commands = []
    longer = "" if not run.is_complete else f" trainer.images={2 * run.total}"
    resume = run.resume_command or f"python3 -m duet train from={path} resume=latest hydra.run.dir={path}"
    commands.append(("Train longer" if run.is_complete else "Go on with this run", resume + longer))
    if run.last_checkpoint is not None and run.samples:
        out = shlex.quote(str(run.path / "more"))
        commands.append(("Sample", f"python3 -m duet sample {with_backend}checkpoint={path} out={out}"))
    if run.result.get("sampled"):
        out = shlex.quote(str(run.path / "evaluation"))
        commands.append(("Evaluate the samples", f"python3 -m duet evaluate from={path} out={out}"))
    if any(run.path.glob("events.out.tfevents*")):
        title = "Open the curves in TensorBoard (of any Python: pip install tensorboard)"
        commands.append((title, f"tensorboard --logdir {path}"))
    commands.append(("Make this page again", f"python3 -m duet page run={path}"))
    return commands
