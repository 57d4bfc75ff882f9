"""The figures of a bench: for each workload, the time of each contestant, and how time and memory grow."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.contestants import CONTESTANTS
from benchmarks.table import TITLES
from experiments.studies.figures import COLOURS, files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_bars", "draw_growth"]

_MARKS = "os^Dv<>p"
_KEPT = ("contestant", "images_per_second", "milliseconds", "ratio", "ratio_low", "ratio_high", "peak_memory_mib")


def draw_bars(rows: Sequence[Mapping[str, Any]], rounds: Mapping[str, int]) -> dict[str, bytes]:
    """Draw one figure per workload: time divided by that of the first contestant, with its interval.

    Args:
        rows: the results.
        rounds: batch, steps, images and ddim_steps, for the titles.

    Returns:
        The contents of the files by their names.
    """
    figures: dict[str, bytes] = {}
    for work in dict.fromkeys(row["work"] for row in rows):
        chosen = [row for row in rows if row["work"] == work]
        numbers = [{name: row[name] for name in _KEPT} for row in chosen]
        figures |= files(f"time-{work}", partial(_bars, chosen, TITLES[work].format(**rounds)), numbers)
    return figures


def draw_growth(key: str, rows: Sequence[Mapping[str, Any]], rounds: Mapping[str, int]) -> dict[str, bytes]:
    """Draw one figure per workload: time and memory of each contestant by the varied quantity.

    Args:
        key: the varied quantity, which every row has.
        rows: the results for every value.
        rounds: batch, steps, images and ddim_steps, for the titles.

    Returns:
        The contents of the files by their names.
    """
    figures: dict[str, bytes] = {}
    for work in dict.fromkeys(row["work"] for row in rows):
        chosen = [row for row in rows if row["work"] == work]
        title = "DDIM" if work == "ddim" and key == "ddim_steps" else TITLES[work].format(**rounds)
        numbers = [{key: row[key]} | {name: row[name] for name in _KEPT} for row in chosen]
        figures |= files(f"growth-{work}-by-{key}", partial(_growth, key, chosen, title), numbers)
    return figures


def _bars(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    from matplotlib.figure import Figure  # needs no display; imported here because it is slow

    figure = Figure((6, 0.7 + 0.32 * len(rows)))
    axes, positions = figure.subplots(), range(len(rows))[::-1]
    ratios = [row["ratio"] for row in rows]
    low, high = ([row[f"ratio_{end}"] for row in rows] for end in ("low", "high"))
    errors = [np.subtract(ratios, low), np.subtract(high, ratios)]
    axes.barh(positions, ratios, 0.6, color=[_colour(row["contestant"]) for row in rows])
    axes.errorbar(ratios, positions, xerr=errors, fmt="none", ecolor="black", elinewidth=1, capsize=2)
    for position, row in zip(positions, rows, strict=True):
        axes.annotate(
            f"{row['milliseconds']:,.0f} ms", (row["ratio_high"], position), (4, 0), textcoords="offset points",
            va="center", fontsize=7.5,
        )  # fmt: skip
    axes.axvline(1, color="#7f7f7f", linewidth=0.8, linestyle=":")
    axes.set(yticks=list(positions), yticklabels=[row["contestant"] for row in rows], xlim=(0, 1.2 * max(high)))
    axes.set(title=title, xlabel=f"time divided by that of {rows[0]['contestant']} in the same round")
    return figure


def _growth(key: str, rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure((7.5, 3.2))
    time, memory = figure.subplots(1, 2)
    values = sorted({row[key] for row in rows})
    for axes, column, label in ((time, "milliseconds", "ms"), (memory, "peak_memory_mib", "peak MiB")):
        for mark, name in zip(itertools.cycle(_MARKS), dict.fromkeys(row["contestant"] for row in rows), strict=False):
            points = sorted((row[key], row[column]) for row in rows if row["contestant"] == name)
            axes.plot(*zip(*points, strict=True), marker=mark, color=_colour(name), label=name, markersize=4)
        axes.set(xscale="log", xlabel=key.replace("_", " "), ylabel=label)
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.yaxis.set_major_formatter("{x:,.0f}")
    time.set_yscale("log")
    time.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    time.yaxis.set_major_formatter("{x:,.0f}")  # a log scale replaces the formatter
    memory.set_ylim(bottom=0)  # most of it is used before the first round
    for axes in (time, memory):
        axes.minorticks_off()
    time.legend(fontsize=7.5)
    figure.suptitle(title, fontsize=10)
    return figure


def _colour(name: str) -> str:
    """Return the colour of a contestant, the same in all its modes."""
    names = [contestant.replace("_", "-") for contestant in CONTESTANTS]
    return COLOURS[names.index(name.split()[0])]
