"""The figures of the report, drawn as SVG and HTML that follow the theme of the page.

A plot is an SVG that stretches with its box (lines keep their width), and its numbers are HTML placed by
percentages, so text has the same size on a telephone and on a wide screen. Positions run from 0 to 1,
left to right and bottom to top.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError

from .text import brief, count, escape, number

__all__ = ["Axis", "bars", "decimate", "loss_figure", "smooth"]

_SIZE = 1000  # units of the stretched drawing, each way
_COLUMNS = 400  # points per drawn line: about one for every two pixels of a wide plot


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic scale from `low` to `high`."""

    low: float
    high: float
    log: bool = False

    def position(self, value: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """Where values lie, clipped to [0, 1]; zero lies on the floor of a logarithmic axis, NaN stays NaN."""
        value = np.asarray(value, dtype=np.float64)
        low, high = self.low, self.high
        if self.log:
            with np.errstate(divide="ignore", invalid="ignore"):
                value, low, high = np.log10(value), math.log10(low), math.log10(high)
        return np.clip((value - low) / (high - low), 0.0, 1.0)

    def ticks(self, most: int = 6) -> list[float]:
        """Round numbers on the axis: 1, 2 or 5 times a power of ten, at most `most` of them."""
        if not self.log or self.high < 2 * self.low:
            step = (self.high - self.low) / most
            step = next(m * s for s in [10.0 ** math.floor(math.log10(step))] for m in (1, 2, 5, 10) if m * s >= step)
            first = math.ceil(self.low / step - 1e-9)
            return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for digits in ((1, 2, 5), (1, 3), (1,)):
            fine = [d * 10.0**e for e in range(first, last + 1) for d in digits]
            fine = [t for t in fine if self.low * 0.999 <= t <= self.high * 1.001]
            if len(fine) <= most:
                return fine
        return fine[:: -(-len(fine) // most)]


def smooth(y: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Centred moving average over `window` values, over fewer at the ends; NaN where a window holds no number."""
    kernel = np.ones(max(1, window))
    known = np.isfinite(y)
    half = (len(kernel) - 1) // 2
    total = np.convolve(np.where(known, y, 0.0), kernel)[half : half + len(y)]
    with np.errstate(invalid="ignore"):
        return total / np.convolve(known, kernel)[half : half + len(y)]


def decimate(y: NDArray[np.float64], columns: int = _COLUMNS) -> NDArray[np.int64]:
    """Indices, in order, of the least and the greatest value of each of `columns` equal stretches and of the ends.

    A peak that lasts one step survives, and so does a stretch without numbers, as one NaN.
    """
    if len(y) <= 2 * columns:
        return np.arange(len(y))
    kept = {0, len(y) - 1}
    for part in np.array_split(np.arange(len(y)), columns):
        known = part[np.isfinite(y[part])]
        kept |= {int(known[np.argmin(y[known])]), int(known[np.argmax(y[known])])} if len(known) else {int(part[0])}
    return np.array(sorted(kept))


def _path(x: NDArray[np.float64], y: NDArray[np.float64], name: str) -> str:
    """A line through positions; it is broken where a value is not finite."""
    steps, pen = [], "M"
    for a, b in zip(x * _SIZE, (1 - y) * _SIZE, strict=True):
        if not (math.isfinite(a) and math.isfinite(b)):
            pen = "M"
            continue
        steps.append(f"{pen}{a:.1f} {b:.1f}")
        pen = "L"
    return f'<path class="{name}" d="{"".join(steps)}"/>' if steps else ""


def _grid(x_ticks: Sequence[float], y_ticks: Sequence[float]) -> str:
    lines = [f"M{p * _SIZE:.1f} 0V{_SIZE}" for p in x_ticks] + [f"M0 {(1 - p) * _SIZE:.1f}H{_SIZE}" for p in y_ticks]
    return f'<path class="grid" d="{"".join(lines)}"/>'


def _plot(
    kind: str, title: str, description: str, y_label: str, y_ticks: list[tuple[float, str]], x_ticks: list, body: str
) -> str:
    key = f"plot-{kind}"
    numbers = "".join(f'<span style="top:{100 * (1 - p):.2f}%">{escape(t)}</span>' for p, t in y_ticks)
    grid = _grid([p for p, _ in x_ticks], [p for p, _ in y_ticks])
    return (
        f'<div class="plot {kind}"><p class="axis-label">{escape(y_label)}</p><div class="plot-box">'
        f'<div class="y-ticks" aria-hidden="true">{numbers}</div>'
        f'<svg viewBox="0 0 {_SIZE} {_SIZE}" preserveAspectRatio="none" role="img" '
        f'aria-labelledby="{key}-t {key}-d"><title id="{key}-t">{escape(title)}</title>'
        f'<desc id="{key}-d">{escape(description)}</desc>{grid}{body}</svg><i class="cursor" hidden></i></div></div>'
    )


def _compact(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _series(values: object, name: str, length: int) -> NDArray[np.float64]:
    series = np.array([math.nan if v is None else v for v in values], dtype=np.float64)
    if len(series) != length:
        raise DuetError(f"loss.{name}: {len(series)} values were given; images_seen has {length}, and they must match")
    return series


def _loss_axis(values: NDArray[np.float64]) -> Axis:
    values = values[np.isfinite(values)]
    if not len(values):
        return Axis(0.0, 1.0)
    low, high = float(values.min()), float(values.max())
    if low > 0:
        pad = (high / low) ** 0.05 if high > low else 1.5
        return Axis(low / pad, high * pad, log=True)
    pad = 0.05 * (high - low) or 1.0
    return Axis(low - pad, high + pad)


def _difference_axis(values: NDArray[np.float64]) -> Axis:
    """Whole decades around the positive values, and one below them as the floor for exact zeros."""
    positive = values[np.isfinite(values) & (values > 0)]
    if not len(positive):
        return Axis(1e-17, 1.0, log=True)
    low = math.floor(math.log10(positive.min())) - bool((values == 0).any())
    return Axis(10.0**low, 10.0 ** max(low + 1, math.ceil(math.log10(positive.max()))), log=True)


def loss_figure(loss: Mapping, names: Mapping[str, str], styles: Mapping[str, str]) -> str:
    """Loss of each run above, their relative difference below, over the images seen.

    Args:
        loss: the report's `loss`: "images_seen", "runs" and optionally "relative_difference", equally long.
        names: what each run is called.
        styles: the class that gives each run its colour and stroke.
    """
    seen = np.array(loss.get("images_seen") or [], dtype=np.float64)
    if not np.isfinite(seen).all():
        raise DuetError(
            f"loss.images_seen: step {int(np.argmin(np.isfinite(seen)))} has no count; every step needs one"
        )
    runs = {key: _series(values, f"runs.{key}", len(seen)) for key, values in (loss.get("runs") or {}).items()}
    if not len(seen) or not runs:
        return ""
    x_axis = Axis(min(0.0, float(seen.min())), max(float(seen.max()), 1.0))
    x = x_axis.position(seen)
    x_ticks = [(float(x_axis.position(t)), _compact(t)) for t in x_axis.ticks(5)]
    window = max(1, len(seen) // 60)

    axis = _loss_axis(np.concatenate(list(runs.values())))
    raw, lines, ends = "", "", []
    for key, series in runs.items():
        kept = decimate(series)
        raw += _path(x[kept], axis.position(series[kept]), f"raw {styles[key]}")
        mean = smooth(series, window)
        kept = np.unique(np.linspace(0, len(seen) - 1, _COLUMNS).astype(int))
        lines += _path(x[kept], axis.position(mean[kept]), f"line {styles[key]}")
        ends.append(f"{names[key]} ends at {number(mean[-1])}")
    y_ticks = [(float(axis.position(t)), f"{t:g}") for t in axis.ticks(5)]
    label = f"training loss{', log scale' if axis.log else ''}; mean of {window:,} steps, every step behind it"
    plots = _plot("tall", "Training loss of both runs", "; ".join(ends), label, y_ticks, x_ticks, raw + lines)

    if loss.get("relative_difference") is not None:
        difference = np.abs(_series(loss["relative_difference"], "relative_difference", len(seen)))
        plots += _difference_plot(difference, seen, x, x_ticks, window)
    legend = "".join(f'<li><i class="stroke {styles[key]}"></i>{escape(names[key])}</li>' for key in runs)
    numbers = "".join(
        f'<span style="left:{100 * p:.2f}%"{" class=last" if p > 0.96 else ""}>{escape(t)}</span>' for p, t in x_ticks
    )
    points = escape(json.dumps(_readout(loss, seen, x, runs, names), separators=(",", ":")))
    return (
        f'<div class="figure loss" data-points="{points}"><ul class="legend">{legend}'
        f'<li class="readout" hidden></li></ul>{plots}'
        f'<div class="x-ticks" aria-hidden="true">{numbers}</div><p class="axis-label x-label">images seen</p></div>'
    )


def _readout(
    loss: Mapping, seen: NDArray[np.float64], x: NDArray[np.float64], runs: Mapping, names: Mapping[str, str]
) -> list[list]:
    """What the page says under the pointer: rows of a position and a text."""
    rows = []
    for i in np.unique(np.linspace(0, len(seen) - 1, _COLUMNS).astype(int)):
        said = [f"{seen[i]:,.0f} images", *(f"{names[key]} {number(series[i])}" for key, series in runs.items())]
        if loss.get("relative_difference") is not None:
            said.append(f"difference {brief(loss['relative_difference'][i])}")
        rows.append([round(float(x[i]), 4), " · ".join(said)])
    return rows


def _difference_plot(
    difference: NDArray[np.float64], seen: NDArray[np.float64], x: NDArray[np.float64], x_ticks: list, window: int
) -> str:
    axis = _difference_axis(difference)
    zero = difference == 0
    kept = decimate(difference)
    body = _path(x[kept], axis.position(difference[kept]), "raw gap")
    bounds = np.unique(np.linspace(0, len(seen), min(len(seen), 60) + 1).astype(int))
    parts = [np.arange(a, b) for a, b in itertools.pairwise(bounds)]
    parts = [part[np.isfinite(difference[part])] for part in parts]
    worst = np.array([part[np.argmax(difference[part])] for part in parts if len(part)], dtype=int)
    body += _path(x[worst], axis.position(difference[worst]), "line gap")
    if zero.any():
        marks = sorted({round(float(p) * _SIZE, 0) for p in x[zero]})
        body += f'<path class="zero" d="{"".join(f"M{p:.0f} {_SIZE}v-30" for p in marks)}"/>'
    ticks = [(float(axis.position(t)), brief(t)) for t in axis.ticks(4) if not (zero.any() and t <= axis.low * 1.5)]
    if zero.any():
        ticks.append((0.0, "0"))
    known = np.flatnonzero(np.isfinite(difference))
    if len(known):
        top = known[np.argmax(difference[known])]
        said = f"largest {brief(difference[top])}, at {seen[top]:,.0f} images seen"
    else:
        said = "no finite value"
    if zero.any():
        said += f"; exactly zero at {int(zero.sum()):,} of {count(len(seen), 'step')}, marked on the floor"
    width = -(-len(seen) // 60)
    label = f"relative difference, log scale; every step, and the largest of each {count(width, 'step')}: {said}"
    return _plot("low", "Relative difference of the two losses", said, label, ticks, x_ticks, body)


def bars(values: Mapping[str, float | None], names: Mapping[str, str], styles: Mapping[str, str]) -> str:
    """Horizontal bars from zero, one per run, with their numbers; the longest fills the box."""
    top = max((v for v in values.values() if v is not None and math.isfinite(v)), default=0.0)
    rows = []
    for key, value in values.items():
        known = value is not None and math.isfinite(value) and top > 0
        share = 100 * max(0.0, value) / top if known else 0.0
        rows.append(
            f'<div class="bar-row"><span class="bar-name">{escape(names[key])}</span><span class="bar-box">'
            f'<i class="bar {styles[key]}" style="width:{share:.1f}%"></i></span>'
            f'<span class="bar-value">{number(value)}</span></div>'
        )
    return f'<div class="bars">{"".join(rows)}</div>'
