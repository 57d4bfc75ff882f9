"""The page of one run: how it ended, its samples, their evaluation, its cost, and the commands that continue it.

    header and verdict, numbers, samples, losses, noise levels, learning rate, evaluation, speed, experiment,
    environment, commands, configuration

Everything is read from the directory of the run, so that the page can be made at any time. A part whose files are
missing is left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.text import pluralize
from diffusion_core.files.atomic import write_atomically
from diffusion_core.training.validation import metric_name

from . import run_curves, run_images, run_tables
from .page import Section, render_page
from .run_facts import RunFacts
from .text import DASH, number, text

__all__ = ["write"]

_SAME = "The same noise and labels at every moment."
_LEVELS = "Validation loss by noise level"


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
        Section("samples", "Samples", run_images.samples(run), run_images.samples_lead(run)),
        Section("progress", "Samples during training", run_images.progress(run), _SAME, "Progress"),
        Section("loss", "Loss", run_curves.loss(run), run_curves.loss_lead(run)),
        Section("levels", _LEVELS, run_curves.levels(run), run_curves.levels_lead(run), "Levels"),
        Section("rate", "Learning rate and gradient", run_curves.rate(run), "", "Rate"),
        Section("quality", "Evaluation", run_tables.quality(run), run_tables.quality_lead(run)),
        Section("cost", "Speed", run_tables.cost(run)),
        Section("generation", "From noise to images", run_images.generation(run), "", "Noise"),
        Section("experiment", "Experiment", run_tables.experiment(run)),
        Section("environment", "Environment", run_tables.environment(run)),
        Section("commands", "What to do next", run_tables.commands(run), "", "Commands"),
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
        return "It has no checkpoint yet; it will start again from the beginning."
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
        add("training loss", number(loss), "mean of the last steps")
    for weights in run.weights()[:2]:
        title = "of the weights" if weights == "weights" else "of the moving average"
        add("validation loss", number(_last(run, metric_name(weights))), title)
        accuracy = _last(run, metric_name(weights, "accuracy"))
        if accuracy is not None:
            add("validation accuracy", f"{accuracy:.1%}", f"{title}, over all noise levels")
    for entry in run_tables.numbers(run)[:2]:
        low, high = entry["interval"] or (None, None)
        add(entry["name"], number(entry["value"]), f"{number(low)} to {number(high)}" if low is not None else "")
    if speed := run.result.get("images_per_second"):
        add(
            "images per second",
            number(round(speed, 1)),
            f"trained in {run_tables.seconds(run.result.get('train_seconds'))}",
        )
    return tiles


def _mean_of_last(values: NDArray[np.float64], steps: int = 20) -> float | None:
    known = values[np.isfinite(values)][-steps:]
    return float(known.mean()) if len(known) else None
