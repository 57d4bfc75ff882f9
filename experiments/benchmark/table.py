"""What the rounds say: medians with their spread, and ratios within a round.

A machine that slows down slows all contestants of a round, so a ratio is the median over rounds of one contestant's
time by another's in the same round. Its interval is that of the median by order statistics: the k-th smallest and the
k-th largest of n rounds enclose it with probability 1 - 2 P(Binomial(n, 1/2) < k), whatever the distribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from scipy.stats import binom

from diffusion_core.problem import Problem
from diffusion_core.unet.work import convolutions, multiply_adds
from experiments.benchmark.contestants import Contestant
from experiments.benchmark.work import ALONE

__all__ = ["TITLES", "median_interval", "rows", "table"]

TITLES = {
    "train": "training step",
    "ddim": "DDIM-{ddim_steps}",
    "ddpm": "DDPM, every step",
}


def median_interval(values: NDArray[np.float64], confidence: float = 0.95) -> tuple[float, float]:
    """The narrowest interval of order statistics that holds the median so often; the range where none does."""
    ordered, n = np.sort(values), len(values)
    k = max(0, int(binom.ppf((1 - confidence) / 2, n, 0.5)) - 1)  # values left out at either end
    return float(ordered[k]), float(ordered[n - 1 - k])


def rows(
    contestants: Sequence[Contestant], what: str, problem: Problem, rounds: Mapping[str, int]
) -> list[dict[str, Any]]:
    """A row for each contestant at a work, as plain data; ratios of time are to the first that does it."""
    made = []
    able = [one for one in contestants if what in one.seconds]
    for one in able:
        seconds, ratio = one.rounds(what), one.rounds(what) / able[0].rounds(what)
        low, high = median_interval(ratio)
        images = rounds["batch"] * rounds["steps"] if what == "train" else rounds["images"]
        unit = rounds["steps"] if what == "train" else 1
        made.append(
            {
                "work": what, "contestant": one.mode.name, "parameters": one.facts["parameters"],
                "who": one.mode.contestant, "precision": one.mode.precision, "compiled": one.mode.compile,
                "images_per_second": float(1 / np.median(seconds)),
                "milliseconds": float(1e3 * np.median(seconds) * images / unit),
                "slowest": float(1 / seconds.max()), "fastest": float(1 / seconds.min()),
                "ratio": float(np.median(ratio)), "ratio_low": low, "ratio_high": high,
                "first_seconds": one.first,
                "peak_memory_mib": one.memory,
                **_beside(one, what, problem),
                "seconds_per_image": seconds.tolist(),
            }
        )  # fmt: skip
    return made


def _beside(one: Contestant, what: str, problem: Problem) -> dict[str, Any]:
    """A work beside what it is compared with: numbers, each with the ends of its interval; None where it was not done.

    Of a training step: the rate of its products, in 1e9 operations per second, by those of convolutions and matrices
    alone, and the share of its time beside the passes through the network. Of sampling: its time by that of as many
    evaluations alone.
    """
    names = ("gflops", "share_of_convolutions", "share_of_matrix", "share_beside_passes", "by_evaluations")
    measured: dict[str, NDArray] = {}
    if set(one.seconds) >= {what, *ALONE[what]}:
        seconds = one.rounds(what)
        if what == "ddim":
            measured["by_evaluations"] = seconds / one.rounds("evaluations")
        if what == "train":
            image = problem.spec.image_shape
            # A multiplication and an addition, forward once and backward twice.
            rate = 6e-9 * multiply_adds(problem.program, image) / seconds
            convolved = sum(shape.multiply_adds for shape in convolutions(problem.program, image))
            measured["gflops"] = rate
            measured["share_of_convolutions"] = rate * one.rounds("convolutions") / (6e-9 * convolved)
            measured["share_of_matrix"] = rate * one.rounds("matrix") / (2e-9 * one.facts["matrix"] ** 3)
            measured["share_beside_passes"] = 1 - one.rounds("passes") / seconds
    told: dict[str, Any] = {}
    for name in names:
        ends = (float(np.median(measured[name])), *median_interval(measured[name])) if name in measured else [None] * 3
        told |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
    return told


def table(made: Sequence[Mapping[str, Any]], rounds: Mapping[str, int], title: str) -> Table:
    """The rows for a terminal.

    "first" is the time from the start of the process to the end of the first round: import, build, trace and compile.
    "of conv." is the rate of a step's products by that of its convolutions alone, and "of matrix" by that of matrices;
    "beside" is what a step takes beside its passes through the network, or sampling more than as many evaluations.
    """
    found = Table(title=title)
    heads = ("work", "contestant", "ms", "images/s", "range", "time by first", "first, s", "peak MiB", "GFLOP/s")
    for name in (*heads, "of conv.", "of matrix", "beside"):
        found.add_column(name, justify="left" if name in ("work", "contestant") else "right")
    for row in made:
        rate, beside = row["gflops"], row["share_beside_passes"]
        if row["by_evaluations"] is not None:
            beside = row["by_evaluations"] - 1
        shares = row["share_of_convolutions"], row["share_of_matrix"], beside
        found.add_row(
            TITLES[row["work"]].format(**rounds),
            row["contestant"],
            f"{row['milliseconds']:,.1f}",
            f"{row['images_per_second']:,.1f}",
            f"{row['slowest']:,.1f} .. {row['fastest']:,.1f}",
            f"{row['ratio']:.2f} [{row['ratio_low']:.2f} .. {row['ratio_high']:.2f}]",
            f"{row['first_seconds']:.1f}",
            f"{row['peak_memory_mib']:,.0f}",
            "" if rate is None else f"{rate:,.0f}",
            *("" if share is None else f"{share:.0%}" for share in shares),
        )
    return found
