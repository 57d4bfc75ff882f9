"""The figures of the pages: data, positions and SVG paths; the templates draw them.

A plot is an SVG that stretches with its box (lines keep their width). Its numbers are HTML placed by percentages, so
text has the same size on a telephone and on a wide screen. Positions run from 0 to 1, left to right and bottom to top.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import pluralize

from .text import brief, number

__all__ = [
    "SERIES", "Axis", "Chart", "Key", "Path", "Plot", "Series", "Tick", "compact", "decimate", "line", "linear_axis",
    "loss_chart", "make_ticks", "smooth",
]  # fmt: skip

SERIES = 8  # colours of the style sheet, s0 to s7
_SIZE = 1000  # units of the stretched drawing, each way
_COLUMNS = 400  # points per drawn line: about one for every two pixels of a wide plot


@dataclass(frozen=True)
class Series:
    """How a run is called and drawn: its title, and the class that gives its colour and the shape of its mark."""

    title: str
    mark: str


@dataclass(frozen=True)
class Tick:
    """A number on an axis, at a position from 0 to 1."""

    position: float
    label: str

    @property
    def percent(self) -> str:
        """The distance from the left or bottom in percent."""
        return f"{100 * self.position:.2f}"

    @property
    def from_top(self) -> str:
        """The distance from the top in percent."""
        return f"{100 * (1 - self.position):.2f}"

    @property
    def last(self) -> bool:
        """Whether the number must be moved inwards to stay on the page."""
        return self.position > 0.96


@dataclass(frozen=True)
class Path:
    """An SVG path with its class and style."""

    name: str
    d: str
    style: str = ""


@dataclass(frozen=True)
class Plot:
    """A drawing with its axes; `kind` is "tall" or "low", and `key` tells the plots of a page apart."""

    kind: str
    title: str
    description: str
    y_label: str
    y_ticks: Sequence[Tick]
    x_ticks: Sequence[Tick]
    paths: Sequence[Path]
    key: str = ""

    @property
    def grid(self) -> str:
        """The path of the lines behind the numbers."""
        lines = [f"M{t.position * _SIZE:.1f} 0V{_SIZE}" for t in self.x_ticks]
        return "".join([*lines, *(f"M0 {(1 - t.position) * _SIZE:.1f}H{_SIZE}" for t in self.y_ticks)])


@dataclass(frozen=True)
class Key:
    """An entry of a legend."""

    name: str
    label: str


@dataclass(frozen=True)
class Chart:
    """Plots over one x axis; `points` are (position, text) pairs that the page shows under the pointer."""

    plots: Sequence[Plot]
    legend: Sequence[Key]
    points: Sequence[tuple[float, str]]
    x_label: str

    @property
    def x_ticks(self) -> Sequence[Tick]:
        """The numbers below the last plot."""
        return self.plots[-1].x_ticks


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic scale from `low` to `high`."""

    low: float
    high: float
    log: bool = False

    def position(self, value: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """Return positions clipped to [0, 1]; zero lies on the floor of a logarithmic axis, and NaN stays NaN."""
        value = np.asarray(value, dtype=np.float64)
        low, high = self.low, self.high
        if self.log:
            with np.errstate(divide="ignore", invalid="ignore"):
                value, low, high = np.log10(value), math.log10(low), math.log10(high)
        return np.clip((value - low) / (high - low), 0.0, 1.0)

    def ticks(self, most: int = 6) -> list[float]:
        """Return round numbers on the axis: 1, 2 or 5 times a power of ten, at most `most` of them."""
        if not self.log or self.high < 2 * self.low:
            step = (self.high - self.low) / most
            step = next(m * s for s in [10.0 ** math.floor(math.log10(step))] for m in (1, 2, 5, 10) if m * s >= step)
            first = math.ceil(self.low / step - 1e-9)
            return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for digits in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
            fine = [d * 10.0**e for e in range(first, last + 1) for d in digits]
            fine = [t for t in fine if self.low * 0.999 <= t <= self.high * 1.001]
            if len(fine) <= most:
                return fine
        return fine[:: -(-len(fine) // most)]


def smooth(y: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return the centred moving average over `window` values, fewer at the ends; NaN where a window has no number."""
    kernel = np.ones(max(1, window))
    known = np.isfinite(y)
    half = (len(kernel) - 1) // 2
    total = np.convolve(np.where(known, y, 0.0), kernel)[half : half + len(y)]
    with np.errstate(invalid="ignore"):
        return total / np.convolve(known, kernel)[half : half + len(y)]


def decimate(y: NDArray[np.float64], columns: int = _COLUMNS) -> NDArray[np.int64]:
    """Return sorted indices: the smallest and largest value of each of `columns` equal segments, and both ends.

    A peak that lasts one step survives, and so does a segment without numbers, as one NaN.
    """
    if len(y) <= 2 * columns:
        return np.arange(len(y))
    kept = {0, len(y) - 1}
    for part in np.array_split(np.arange(len(y)), columns):
        known = part[np.isfinite(y[part])]
        kept |= {int(known[np.argmin(y[known])]), int(known[np.argmax(y[known])])} if len(known) else {int(part[0])}
    return np.array(sorted(kept))


def linear_axis(values: Sequence[float]) -> Axis:
    """Return a linear axis that holds all values, with a margin."""
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return Axis(low - pad, high + pad)


def make_ticks(axis: Axis, most: int, label: Any = "{:g}".format) -> list[Tick]:
    """Return at most `most` ticks of an axis."""
    return [Tick(float(axis.position(t)), label(t)) for t in axis.ticks(most)]


def line(x: NDArray[np.float64], y: NDArray[np.float64], *, closed: bool = False) -> str:
    """Return the path through positions; it is broken where a value is not finite."""
    steps, pen = [], "M"
    for a, b in zip(x * _SIZE, (1 - y) * _SIZE, strict=True):
        if not (math.isfinite(a) and math.isfinite(b)):
            pen = "M"
            continue
        steps.append(f"{pen}{a:.1f} {b:.1f}")
        pen = "L"
    return "".join([*steps, "Z"]) if closed and steps else "".join(steps)


def dots(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    """Return the path of a dot at each position: a line without length and with round ends."""
    known = zip(x * _SIZE, (1 - y) * _SIZE, strict=True)
    return "".join(f"M{a:.1f} {b:.1f}h0" for a, b in known if math.isfinite(a) and math.isfinite(b))


def images_axis(seen: NDArray[np.float64], total: float = 0.0) -> Axis:
    """Return the axis of a run: from 0, or from where it continues another run; to its planned end."""
    end, first = max(float(total), float(seen.max()), 1.0), float(seen.min())
    start = first - float(seen[1] - seen[0]) if len(seen) > 1 else 0.0
    return Axis(start if 0.1 * end < start < end else min(0.0, first), end)


# --- the loss of several runs -------------------------------------------------------------------------------------


def loss_chart(loss: Mapping, series: Mapping[str, Series], what: str = "training loss", key: str = "") -> Chart | None:
    """Return the loss of each run above and their relative difference below, over the images seen; None without data.

    Args:
        loss: the report's `loss`: "images_seen", "runs" and optionally "relative_difference", equally long.
        series: how each run is called and drawn.
        what: which loss it is.
        key: tells the plots of a page apart; empty for the first.

    Raises:
        DuetError: the series differ in length, or a step has no count of images.
    """
    seen = np.array(loss.get("images_seen") or [], dtype=np.float64)
    if not np.isfinite(seen).all():
        step = int(np.argmin(np.isfinite(seen)))
        raise DuetError(f"loss.images_seen: step {step} has no count; every step needs one")
    runs = {key: _read(values, f"runs.{key}", len(seen)) for key, values in (loss.get("runs") or {}).items()}
    if not len(seen) or not runs:
        return None
    gap = loss.get("relative_difference")
    gap = None if gap is None else np.abs(_read(gap, "relative_difference", len(seen)))
    x_axis = images_axis(seen)
    x, x_ticks = x_axis.position(seen), make_ticks(x_axis, 5, compact)
    # The first of several runs is drawn wide and pale, so that a curve that agrees with it lies visibly inside.
    wide = {key: " wide" if len(runs) > 1 and key == next(iter(runs)) else "" for key in runs}
    plots = [replace(_loss_plot(runs, series, wide, x, x_ticks, what), key=key and f"{key}-tall")]
    if gap is not None:
        plots.append(replace(_difference_plot(gap, seen, x, x_ticks), key=key and f"{key}-low"))
    points = []
    for i in np.unique(np.linspace(0, len(seen) - 1, _COLUMNS).astype(int)):
        parts = [f"{seen[i]:,.0f} images", *(f"{series[key].title} {number(run[i])}" for key, run in runs.items())]
        parts += [f"difference {brief(float(gap[i]))}"] if gap is not None else []
        points.append((round(float(x[i]), 4), " · ".join(parts)))
    legend = [Key(f"stroke {series[key].mark}{wide[key]}", series[key].title) for key in runs]
    return Chart(plots, legend, points, "images seen")


def _read(values: Sequence[float | None], name: str, length: int) -> NDArray[np.float64]:
    series = np.array([math.nan if v is None else v for v in values], dtype=np.float64)
    if len(series) != length:
        raise DuetError(f"loss.{name}: {len(series)} values were given; images_seen has {length}, and they must match")
    return series


def compact(value: float) -> str:
    """Format a count of images in thousands, millions or billions, as in 25k."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _loss_plot(
    runs: Mapping[str, NDArray[np.float64]], series: Mapping[str, Series], wide: Mapping[str, str],
    x: NDArray[np.float64], x_ticks: list[Tick], what: str,
) -> Plot:  # fmt: skip
    """Draw every step of each run pale, and its moving average over it."""
    axis = _loss_axis(np.concatenate(list(runs.values())))
    window = max(1, len(x) // 60)
    raw, means, ends = [], [], []
    for key, run in runs.items():
        kept = decimate(run)
        raw.append(Path(f"raw {series[key].mark}", line(x[kept], axis.position(run[kept]))))
        mean = smooth(run, window)
        kept = np.unique(np.linspace(0, len(x) - 1, _COLUMNS).astype(int))
        means.append(Path(f"line {series[key].mark}{wide[key]}", line(x[kept], axis.position(mean[kept]))))
        if len(x) == 1:  # a line needs a second moment
            means.append(Path(f"points {series[key].mark}", dots(x, axis.position(run))))
        ends.append(f"{series[key].title} ends at {number(mean[-1])}")
    label = f"{what}{', log scale' if axis.log else ''}"
    if window > 1:
        label += f"; line: mean of {window} steps; pale: every step"
    ticks = make_ticks(axis, 5)
    return Plot("tall", f"{what.capitalize()} of every run", "; ".join(ends), label, ticks, x_ticks, [*raw, *means])


def _loss_axis(values: NDArray[np.float64]) -> Axis:
    values = values[np.isfinite(values)]
    if not len(values):
        return Axis(0.0, 1.0)
    low, high = float(values.min()), float(values.max())
    if low > 0:
        pad = (high / low) ** 0.05 if high > 1.0001 * low else 1.5
        return Axis(low / pad, high * pad, log=True)
    pad = 0.05 * (high - low) or 1.0
    return Axis(low - pad, high + pad)


def _difference_axis(values: NDArray[np.float64]) -> Axis:
    """Return whole decades around the positive values, and one decade below them as the floor for exact zeros."""
    positive = values[np.isfinite(values) & (values > 0)]
    if not len(positive):
        return Axis(1e-17, 1.0, log=True)
    low = math.floor(math.log10(positive.min())) - bool((values == 0).any())
    return Axis(10.0**low, 10.0 ** max(low + 1, math.ceil(math.log10(positive.max()))), log=True)


def _difference_plot(
    difference: NDArray[np.float64], seen: NDArray[np.float64], x: NDArray[np.float64], x_ticks: list[Tick]
) -> Plot:
    """Draw every step pale, the largest of each segment over it, and marks on the floor for exact zeros."""
    axis, zero = _difference_axis(difference), difference == 0
    kept = decimate(difference)
    bounds = np.unique(np.linspace(0, len(seen), min(len(seen), 60) + 1).astype(int))
    segments = [np.arange(a, b) for a, b in itertools.pairwise(bounds)]
    segments = [segment[np.isfinite(difference[segment])] for segment in segments]
    worst = np.array([segment[np.argmax(difference[segment])] for segment in segments if len(segment)], dtype=int)
    paths = [
        Path("raw gap", line(x[kept], axis.position(difference[kept]))),
        Path("line gap", line(x[worst], axis.position(difference[worst]))),
    ]
    if len(x) == 1:
        paths.append(Path("points gap", dots(x, axis.position(difference))))
    ticks = make_ticks(axis, 4, brief)
    if zero.any():
        marks = sorted({round(float(p) * _SIZE, 0) for p in x[zero]})
        paths.append(Path("zero", "".join(f"M{p:.0f} {_SIZE}v-30" for p in marks)))
        above = [t for t, value in zip(ticks, axis.ticks(4), strict=True) if value > axis.low * 1.5]
        ticks = [*above, Tick(0.0, "0")]
    finite = np.flatnonzero(np.isfinite(difference))
    description = "no finite value"
    if len(finite):
        top = finite[np.argmax(difference[finite])]
        description = f"largest {brief(difference[top])}, at {seen[top]:,.0f} images seen"
    if zero.any():
        description += f"; exactly zero at {int(zero.sum()):,} of {pluralize(len(seen), 'step')}, marked on the axis"
    width = -(-len(seen) // 60)
    lines = f"; line: largest of each {width} steps; pale: every step" if width > 1 else ""
    label = f"relative difference, log scale{lines}; {description}"
    return Plot("low", "Relative difference of the losses", description, label, ticks, x_ticks, paths)
