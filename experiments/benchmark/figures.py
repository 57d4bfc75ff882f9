"""The figures of a bench: for each work how long each contestant takes, and how that grows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.benchmark.table import TITLES
from experiments.studies.figures import COLOURS, files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["bars", "growth"]

_MARKS = "os^Dv<>p"
_KEPT = ("contestant", "images_per_second", "milliseconds", "ratio", "ratio_low", "ratio_high", "peak_memory_mib")


def bars(made: Sequence[Mapping[str, Any]], rounds: Mapping[str, int]) -> dict[str, bytes]:
    """One figure per work: time by the first contestant's, with its interval."""
    found: dict[str, bytes] = {}
    for what in dict.fromkeys(row["work"] for row in made):
        chosen = [row for row in made if row["work"] == what]
        title = TITLES[what].format(**rounds)

        def draw(chosen: Sequence[Mapping[str, Any]] = chosen, title: str = title) -> Figure:
            from matplotlib.figure import Figure  # drawn without a display, and slow to import

            figure = Figure((6, 0.7 + 0.32 * len(chosen)))
            axes, places = figure.subplots(), range(len(chosen))[::-1]
            ratios = [row["ratio"] for row in chosen]
            low, high = ([row[f"ratio_{end}"] for row in chosen] for end in ("low", "high"))
            beyond = [np.subtract(ratios, low), np.subtract(high, ratios)]
            axes.barh(places, ratios, 0.6, color=[_colour(row["contestant"]) for row in chosen])
            axes.errorbar(ratios, places, xerr=beyond, fmt="none", ecolor="black", elinewidth=1, capsize=2)
            for place, row in zip(places, chosen, strict=True):
                axes.annotate(
                    f"{row['milliseconds']:,.0f} ms", (row["ratio_high"], place), (4, 0), textcoords="offset points",
                    va="center", fontsize=7.5,
                )  # fmt: skip
            axes.axvline(1, color="#7f7f7f", linewidth=0.8, linestyle=":")
            axes.set(yticks=list(places), yticklabels=[row["contestant"] for row in chosen], xlim=(0, 1.2 * max(high)))
            axes.set(title=title, xlabel=f"time, by that of {chosen[0]['contestant']} in the same round")
            return figure

        found |= files(f"time-{what}", draw, [{key: row[key] for key in _KEPT} for row in chosen])
    return found


def growth(key: str, made: Sequence[Mapping[str, Any]], rounds: Mapping[str, int]) -> dict[str, bytes]:
    """One figure per work: time and memory of each contestant as what `key` names grows.

    Args:
        key: of the rows: what is varied.
        made: the rows of every value.
        rounds: as given, for the titles.
    """
    found: dict[str, bytes] = {}
    for what in dict.fromkeys(row["work"] for row in made):
        chosen = [row for row in made if row["work"] == what]
        title = "DDIM" if what == "ddim" and key == "ddim_steps" else TITLES[what].format(**rounds)

        def draw(chosen: Sequence[Mapping[str, Any]] = chosen, title: str = title) -> Figure:
            from matplotlib.figure import Figure
            from matplotlib.ticker import LogLocator

            figure = Figure((7.5, 3.2))
            both = figure.subplots(1, 2)
            names = list(dict.fromkeys(row["contestant"] for row in chosen))
            for axes, column, label in zip(both, ("milliseconds", "peak_memory_mib"), ("ms", "peak MiB"), strict=True):
                for mark, name in zip(itertools.cycle(_MARKS), names, strict=False):
                    points = sorted((row[key], row[column]) for row in chosen if row["contestant"] == name)
                    axes.plot(*zip(*points, strict=True), marker=mark, color=_colour(name), label=name, markersize=4)
                values = sorted({row[key] for row in chosen})
                axes.set(xscale="log", xlabel=key.replace("_", " "), ylabel=label)
                axes.set_xticks(values, [f"{value:g}" for value in values])
                if column == "milliseconds":
                    axes.set_yscale("log")
                    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                else:
                    axes.set_ylim(bottom=0)  # most of it is there before any work
                axes.yaxis.set_major_formatter("{x:,.0f}")
                axes.minorticks_off()
            both[0].legend(fontsize=7.5)
            figure.suptitle(title, fontsize=10)
            return figure

        kept = [{key: row[key]} | {name: row[name] for name in _KEPT} for row in chosen]
        found |= files(f"growth-{what}-by-{key}", draw, kept)
    return found


def _colour(name: str) -> str:
    """One colour for a contestant in all its modes."""
    owners = ("torch", "tf", "diffusers", "denoising-diffusion-pytorch", "keras")
    return COLOURS[owners.index(name.split()[0])]
