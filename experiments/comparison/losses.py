"""The losses of compared runs: every step of the training, and the validation loss at the moments that runs share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.ladder import check
from experiments.comparison.result import Comparison
from experiments.comparison.runs import FinishedRun

__all__ = ["add_losses"]


def add_losses(comparison: Comparison, runs: Sequence[FinishedRun]) -> None:
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


def _relative_difference(a: FinishedRun, b: FinishedRun, steps: int) -> NDArray[np.float64]:
    one, two = (run.metrics["loss"][:steps] for run in (a, b))
    return np.abs(one - two) / np.abs(one)


def _loss_kind(steps: int) -> str:
    """Return the kind of tolerance of the losses of a run with this number of steps."""
    return f"training loss, {next(k for k in (10, 100, 1000) if steps <= k or k == 1000)} steps"


def _largest_gap(one: NDArray | None, other: NDArray | None) -> float:
    """Return the largest relative difference of two curves with gaps at the same moments; infinite for others."""
    if one is None or other is None or one.shape != other.shape or np.any(np.isnan(one) != np.isnan(other)):
        return math.inf
    known = ~np.isnan(one)
    return float(np.max(np.abs(one - other)[known] / np.abs(one[known]), initial=0.0)) if known.any() else math.inf
