"""Curves over the images seen of one run: losses, validation losses by noise level, learning rate and gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .figures import (
    Axis,
    Chart,
    Key,
    Path,
    Plot,
    compact,
    decimate,
    dots,
    images_axis,
    line,
    linear_axis,
    make_ticks,
    smooth,
)
from .text import number

__all__ = ["Curve", "Panel", "curve_chart", "curves_of"]

_POINTS = 400  # values under the pointer
_WINDOWS = 60  # parts of the run over which a curve of every step is averaged


@dataclass(frozen=True, eq=False)
class Curve:
    """One quantity over the steps of a run.

    Args:
        title: for the legend.
        mark: the class of its colour, s0 to s7.
        values: with shape (steps,); NaN where the step has no value.
        is_noisy: whether it is drawn pale, under its moving average.
    """

    title: str
    mark: str
    values: NDArray[np.float64]
    is_noisy: bool = False


@dataclass(frozen=True, eq=False)
class Panel:
    """A plot of several curves.

    Args:
        title: for screen readers.
        label: above the plot.
        curves: drawn in this order.
        is_low: whether the plot has less height.
        is_log: whether the axis is logarithmic, if all values are positive.
    """

    title: str
    label: str
    curves: Sequence[Curve]
    is_low: bool = False
    is_log: bool = True


def curves_of(metrics: Mapping[str, NDArray[np.float64]], names: Mapping[str, tuple[str, str]]) -> list[Curve]:
    """Return the curves of those names that have a value, each with its title and its mark."""
    found = {name: metrics[name] for name in names if name in metrics and np.isfinite(metrics[name]).any()}
    return [Curve(*names[name], values) for name, values in found.items()]


def curve_chart(key: str, seen: NDArray[np.float64], total: float, panels: Sequence[Panel]) -> Chart | None:
    """Return panels of curves over one axis of images seen; None if no curve has a value.

    Args:
        key: tells the plots of a page apart.
        seen: images seen after each step, with shape (steps,).
        total: the length of the run; the axis ends there, so that a stopped run is seen to be one.
        panels: from top to bottom; those without curves are left out.
    """
    panels = [panel for panel in panels if any(np.isfinite(curve.values).any() for curve in panel.curves)]
    if not len(seen) or not panels:
        return None
    x_axis = images_axis(seen, total)
    x, x_ticks = x_axis.position(seen), make_ticks(x_axis, 5, compact)
    plots = [_plot(f"{key}-{k}", panel, x, x_ticks) for k, panel in enumerate(panels)]
    curves = [curve for panel in panels for curve in panel.curves]
    entries = dict.fromkeys((curve.mark, curve.title) for curve in curves)  # panels may share a curve's mark and title
    legend = [Key(f"stroke {mark}", title) for mark, title in entries] if len(entries) > 1 else []
    return Chart(plots, legend, _points(seen, x, curves), "images seen")


def _plot(key: str, panel: Panel, x: NDArray[np.float64], x_ticks: Sequence) -> Plot:
    values = np.concatenate([curve.values for curve in panel.curves])
    axis = _axis(values[np.isfinite(values)], panel.is_log)
    paths, ends = [], []
    window = max(1, len(x) // _WINDOWS)
    for curve in panel.curves:
        known = np.flatnonzero(np.isfinite(curve.values))
        if not len(known):
            continue
        drawn = curve.values
        if curve.is_noisy and window > 1:
            kept = decimate(drawn)
            paths.append(Path(f"raw {curve.mark}", line(x[kept], axis.position(drawn[kept]))))
            drawn = smooth(drawn, window)
            known = np.unique(np.linspace(0, len(x) - 1, _POINTS).astype(int))
        y = axis.position(drawn[known])
        paths.append(Path(f"line {curve.mark}", line(x[known], y)))
        if len(known) == 1 or len(known) < min(len(x), _WINDOWS):  # rare, and few enough to see each
            paths.append(Path(f"points {curve.mark}", dots(x[known], y)))
        ends.append(f"{curve.title} ends at {number(drawn[known][-1])}")
    label = panel.label + (", log scale" if axis.log else "")
    if window > 1 and any(curve.is_noisy for curve in panel.curves):
        label += f"; line: mean of {window} steps; pale: every step"
    kind = "low" if panel.is_low else "tall"
    return Plot(kind, panel.title, "; ".join(ends), label, make_ticks(axis, 5), x_ticks, paths, key)


def _axis(values: NDArray[np.float64], is_log: bool) -> Axis:
    """Return an axis that holds all values, with a margin."""
    low, high = float(values.min()), float(values.max())
    if not is_log or low <= 0:
        return linear_axis([low, high])
    pad = (high / low) ** 0.05 if high > low * 1.0001 else 1.2
    return Axis(low / pad, high * pad, log=True)


def _points(
    seen: NDArray[np.float64], x: NDArray[np.float64], curves: Sequence[Curve]
) -> list[tuple[float, str]]:  # fmt: skip
    """Return (position, text) pairs: every step that has a rare value, and others up to a limit."""
    rare = [c.values for c in curves if np.isnan(c.values).any()]
    steps = np.unique(np.linspace(0, len(seen) - 1, _POINTS).astype(int))
    if rare:
        steps = np.union1d(steps, np.flatnonzero(np.isfinite(rare).any(axis=0)))
    points = []
    for i in steps:
        values = [f"{curve.title} {number(curve.values[i])}" for curve in curves if np.isfinite(curve.values[i])]
        points.append((round(float(x[i]), 4), " · ".join([f"{seen[i]:,.0f} images", *values])))
    return points
