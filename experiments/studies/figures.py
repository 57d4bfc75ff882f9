"""The figures of a study as files for a paper: SVG and PNG by matplotlib, and their numbers as CSV and JSON.

The colours are those of Okabe and Ito, which people with any colour vision can distinguish; the marks differ in shape
as well. Equal numbers give equal bytes.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "curves", "differences", "files", "values"]

COLOURS = ("#d55e00", "#0072b2", "#cc79a7", "#009e73", "#56b4e9", "#e69f00", "#7f7f7f", "#000000")
_MARKS = "os^Dv<>p"
_STYLE = {
    "figure.dpi": 100, "savefig.dpi": 200, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "svg.hashsalt": "duet", "svg.fonttype": "none", "legend.frameon": False, "figure.constrained_layout.use": True,
}  # fmt: skip


def files(name: str, draw: Callable[[], Figure], rows: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """Return a figure as `<name>.svg` and `<name>.png`, and its numbers as `<name>.csv` and `<name>.json`.

    Args:
        name: the name of the files.
        draw: draws the figure.
        rows: its numbers, all with the same keys.
    """
    import matplotlib

    written = {}
    with matplotlib.rc_context(_STYLE):
        figure = draw()
        for kind, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, metadata=metadata)
            written[f"{name}.{kind}"] = buffer.getvalue()
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    written[f"{name}.csv"] = text.getvalue().encode()
    written[f"{name}.json"] = (json.dumps(list(rows), indent=1, ensure_ascii=False) + "\n").encode()
    return written


def _axes(width: float, height: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure  # needs no display; slow to import

    figure = Figure((width, height))
    return figure, figure.subplots()


def curves(title: str, series: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Draw the loss of each arm with its band; `series` has x, mean, low and high by arm."""
    figure, axes = _axes(6, 3.4)
    for k, (arm, own) in enumerate(series.items()):
        colour = COLOURS[k % len(COLOURS)]
        axes.fill_between(own["x"], own["low"], own["high"], color=colour, alpha=0.18, linewidth=0)
        width = 3.2 / (1 + k) if len(series) <= 4 else 1.2  # curves that agree lie on each other
        axes.plot(own["x"], own["mean"], color=colour, linewidth=width + 0.6, label=arm)
    axes.set(xlabel="images seen", ylabel=title)
    if all(min(own["mean"], default=0) > 0 for own in series.values()):
        axes.set_yscale("log")
    axes.legend(fontsize=7)
    return figure


def differences(title: str, rows: Sequence[Mapping[str, Any]], margin: float | None) -> Figure:
    """Draw each comparison as a row: differences of the seeds, their mean and its interval, and the margin.

    Args:
        title: the title of the axis.
        rows: "arm", "differences", "mean", "low" and "high", in the unit of the axis.
        margin: in the same unit, on both sides of zero.
    """
    figure, axes = _axes(6, 1.1 + 0.42 * len(rows))
    for k, row in enumerate(rows):
        colour, y = COLOURS[(k + 1) % len(COLOURS)], len(rows) - 1 - k
        axes.plot(row["differences"], np.full(len(row["differences"]), y + 0.16), ".", color=colour, alpha=0.6)
        if row["low"] is not None:
            axes.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=1.5)
        axes.plot(row["mean"], y, _MARKS[(k + 1) % len(_MARKS)], color=colour)
    axes.axvline(0, color="black", linewidth=0.7)
    if margin is not None:
        axes.axvspan(-margin, margin, color="#009e73", alpha=0.1, linewidth=0)
    axes.set(xlabel=title, ylim=(-0.6, len(rows) - 0.4))
    axes.set_yticks(range(len(rows)), [row["arm"] for row in reversed(rows)])
    return figure


def values(title: str, arms: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the values of each arm as points, with their mean as a line."""
    figure, axes = _axes(6, 1.1 + 0.34 * len(arms))
    for k, own in enumerate(arms.values()):
        y, known = len(arms) - 1 - k, [v for v in own if v is not None]
        axes.plot(known, np.full(len(known), y), _MARKS[k % len(_MARKS)], color=COLOURS[k % len(COLOURS)], alpha=0.7)
        if known:
            axes.plot([np.mean(known)] * 2, [y - 0.3, y + 0.3], color="black", linewidth=1)
    axes.set(xlabel=title, ylim=(-0.6, len(arms) - 0.4))
    axes.set_yticks(range(len(arms)), list(reversed(arms)))
    return figure
