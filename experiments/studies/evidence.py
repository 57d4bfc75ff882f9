"""The parts of a study's report that show runs: learning curves, cost, samples, and the states between noise and them.

Each function takes the outcomes that have a result, and adds figures to `drawings` or images to `images`.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.images import render
from diffusion_core.images.points import is_point, point_coordinates, scatter, shifts
from diffusion_core.statistics.bootstrap import Interval
from diffusion_core.statistics.paired import Paired
from experiments.report.figures import decimate, smooth
from experiments.studies import figures
from experiments.studies.plan import Plan
from experiments.studies.results import COSTS, Outcome

__all__ = ["Drawings", "cost", "curves", "samples", "steps"]

# Figures by name: the function that draws it, and its numbers.
Drawings = dict[str, tuple[Callable[[], Any], list[dict[str, Any]]]]

_COLUMNS = 300  # points of a curve
_BYTES = 3_000_000  # of all states that the page carries
_GAIN = 64  # by which differences of pixels are multiplied


def curves(plan: Plan, complete: Sequence[Outcome], drawings: Drawings) -> dict[str, Any] | None:
    """Return the smoothed loss of each arm: its mean over seeds, with the interval of the mean as a band.

    The curve of an arm ends where the first of its runs diverges for good; a skipped update keeps the loss before it.
    """
    series: dict[str, Any] = {}
    for arm in plan.arms:
        runs = [o.curves for o in complete if o.run.arm == arm and "loss" in o.curves]
        if not runs:
            continue
        filled = [_until_divergence(run["loss"]) for run in runs]
        count = min(map(len, filled))
        if not count:
            continue
        window = max(1, count // 40)
        losses = np.stack([smooth(loss[:count], window) for loss in filled])
        mean = losses.mean(axis=0)
        kept = np.unique(np.concatenate([decimate(mean, _COLUMNS // 2), np.linspace(0, count - 1, 60).astype(int)]))
        ends = [_band(losses[:, k]) for k in kept]
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
        for arm, own in series.items()
        for x, m, low, high in zip(own["x"], own["mean"], own["low"], own["high"], strict=True)
    ]
    drawings["curves"] = (lambda: figures.curves("training loss", series), rows)
    return {"series": series, "figures": ["curves"]}


def _until_divergence(loss: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a loss up to its last finite value; earlier values that are not finite become the one before them."""
    known = np.flatnonzero(np.isfinite(loss))
    if not len(known):
        return loss[:0]
    steps = np.arange(known[-1] + 1)
    return loss[known[np.maximum(np.searchsorted(known, steps, side="right") - 1, 0)]]


def _band(losses: NDArray[np.float64]) -> Interval:
    """Return the interval of the mean; a point if the losses have no spread."""
    paired = Paired(losses)
    return paired.interval() if paired.has_spread else Interval(paired.mean, paired.mean, 0.95)


def cost(plan: Plan, complete: Sequence[Outcome], drawings: Drawings) -> dict[str, Any]:
    """Return mean and standard deviation of each cost of each arm."""
    rows, table = [], []
    for arm in plan.arms:
        costs = [o.cost for o in complete if o.run.arm == arm]
        cells = {}
        for key in COSTS:
            known = [own[key] for own in costs if own[key] is not None]
            std = float(np.std(known, ddof=1)) if len(known) > 1 else None
            cells[key] = {"mean": float(np.mean(known)), "std": std} if known else None
            table += [{"arm": arm.name, "cost": key} | cells[key]] if known else []
        rows.append({"arm": arm.name, "cells": cells})
    if table:
        seconds = {o.run.arm.name: [p.cost["seconds"] for p in complete if p.run.arm == o.run.arm] for o in complete}
        drawings["cost"] = (lambda: figures.values("whole run, seconds", seconds), table)
    return {
        "columns": {key: {"title": title, "better": better} for key, (title, better) in COSTS.items()},
        "rows": rows,
        "resumed": sum(any(marker.get("resumed") for marker in o.markers) for o in complete),
        "figures": ["cost"] if table else [],
    }


def _first_seed(plan: Plan, complete: Sequence[Outcome]) -> int | None:
    """Return the first of the seeds with the most runs."""
    count = {seed: sum(o.run.seed == seed for o in complete) for seed in plan.study.seeds}
    return max(count, key=lambda seed: count[seed]) if any(count.values()) else None


def samples(plan: Plan, complete: Sequence[Outcome], images: dict[str, bytes]) -> dict[str, Any] | None:
    """Return a sheet of each arm from the same noise, and its difference from the sheet of its baseline."""
    seed = _first_seed(plan, complete)
    drawn = {o.run.arm: o.samples for o in complete if o.run.seed == seed and o.samples is not None}
    sheets = []
    for k, (arm, (own, labels, _)) in enumerate(drawn.items()):
        columns, scale = max(5, min(10, len(np.unique(labels)))), max(1, 32 // own.shape[1])
        shown = _selection(labels, columns)
        key = f"sheet{k}"
        points = is_point(own.shape)
        grid = scatter(point_coordinates(own), labels) if points else render.grid(own[shown], columns, scale)
        images[key] = render.png_bytes(grid)
        sheet: dict[str, Any] = {"arm": arm.name, "picture": key}
        baseline = plan.baseline_of(arm)
        if baseline != arm and baseline in drawn and drawn[baseline][0].shape == own.shape:
            other = drawn[baseline][0]
            if points:
                grid = shifts(other, own, _GAIN)
            else:
                grid = render.grid(render.difference(other[shown], own[shown], gain=_GAIN), columns, scale)
            images[f"{key}d"] = render.png_bytes(grid)
            sheet |= {
                "difference": f"{key}d",
                "baseline": baseline.name,
                "differing": int(np.count_nonzero(own != other)),
                "total": own.size,
                "largest": int(np.abs(own.astype(int) - other).max()),
            }
        sheets.append(sheet)
    return {"seed": seed, "gain": _GAIN, "sheets": sheets} if sheets else None


def _selection(labels: NDArray, columns: int) -> NDArray:
    """Return the indices of up to fifty images, with a class per column if there are two to ten classes."""
    classes = np.unique(labels)
    if 1 < len(classes) <= 10:
        rows = min(5, min(int(np.sum(labels == c)) for c in classes))
        return np.stack([np.flatnonzero(labels == c)[:rows] for c in classes], axis=1).ravel()
    order = np.argsort(labels, kind="stable") if len(classes) > 1 else np.arange(len(labels))
    return order[: 5 * columns]


def steps(plan: Plan, complete: Sequence[Outcome]) -> dict[str, Any] | None:
    """Return the states between noise and samples of each arm, reduced to a size that the page can carry."""
    seed = _first_seed(plan, complete)
    kept = [(o.run.arm, o.trajectory) for o in complete if o.run.seed == seed and o.trajectory is not None]
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
