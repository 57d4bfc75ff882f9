"""Figures of schedules and processes, for notebooks and papers.

matplotlib is imported when a figure is drawn, so that importing the core does not load it. Schedules and processes call
these functions from their `plot` methods, so this module does not import their types.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["plot_process", "plot_schedule"]

POINTS = 400


def plot_schedule(schedule: Any, axes: Any = None) -> Any:
    """Draw alpha, sigma and the log-SNR of a schedule over t.

    Args:
        schedule: a table or a continuous schedule.
        axes: matplotlib axes to draw on; None makes a figure.

    Returns:
        The axes. The log-SNR has an axis of its own on the right.
    """
    axes = _axes(axes)
    t = _points(schedule)
    alpha, sigma = schedule(t)
    lines = axes.plot(t, alpha, label=r"$\alpha$") + axes.plot(t, sigma, label=r"$\sigma$")
    right = axes.twinx()
    with np.errstate(divide="ignore"):
        log_snr = 2 * (np.log(alpha) - np.log(sigma))
    lines += right.plot(t, log_snr, color="0.5", linestyle="--", label="log-SNR")
    right.set_ylabel(r"$\log(\alpha^2/\sigma^2)$")
    axes.set(xlabel="t", ylabel=r"$x_t = \alpha x_0 + \sigma\epsilon$", title=f"schedule {schedule.name}")
    _scale_t(axes, schedule)
    axes.legend(lines, [line.get_label() for line in lines], frameon=False)
    return axes


def plot_process(process: Any, axes: Any = None) -> Any:
    """Draw the coefficients c_skip, c_out and c_in of a process over t.

    Args:
        process: a schedule with what the network predicts.
        axes: matplotlib axes to draw on; None makes a figure.

    Returns:
        The axes.
    """
    axes = _axes(axes)
    t = _points(process.schedule)
    columns = process.columns(t)
    for name, label in (("c_skip", r"$c_{skip}$"), ("c_out", r"$c_{out}$"), ("c_in", r"$c_{in}$")):
        axes.plot(t, getattr(columns, name), label=label)
    axes.set(
        xlabel="t", ylabel=r"$D = c_{skip} x + c_{out} F(c_{in} x)$",
        title=f"{process.prediction} on schedule {process.schedule.name}",
    )  # fmt: skip
    if max(np.max(np.abs(getattr(columns, name))) for name in ("c_skip", "c_out", "c_in")) > 10:
        axes.set_yscale("symlog", linthresh=1.0)
    _scale_t(axes, process.schedule)
    axes.legend(frameon=False)
    return axes


def _points(schedule: Any) -> np.ndarray:
    """The t at which a curve is drawn: every level of a short table, or evenly spaced ones."""
    low, high = schedule.span
    if schedule.is_table:
        return np.unique(np.linspace(low, high, POINTS).round().astype(np.int64))
    return np.geomspace(low, high, POINTS) if _is_wide(schedule) else np.linspace(low, high, POINTS)


def _is_wide(schedule: Any) -> bool:
    """Whether t spans several orders of magnitude, as sigma does in EDM."""
    low, high = schedule.span
    return not schedule.is_table and low > 0 and high > 1000 * low and high > 2


def _scale_t(axes: Any, schedule: Any) -> None:
    if _is_wide(schedule):
        axes.set_xscale("log")


def _axes(axes: Any) -> Any:
    if axes is not None:
        return axes
    from matplotlib import pyplot  # which shows the figure in a notebook or on a screen

    return pyplot.subplots(layout="constrained")[1]
