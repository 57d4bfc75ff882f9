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
    "forward": "{ddim_steps} evaluations alone",
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
                **_products(one, problem),
                "seconds_per_image": seconds.tolist(),
            }
        )  # fmt: skip
    return made


def _products(one: Contestant, problem: Problem) -> dict[str, Any]:
    """The rate of a training step's products, in 1e9 operations per second, and by those of products alone."""
    shares = ("share_of_convolutions", "share_of_matrix")
    found = dict.fromkeys(("gflops", *(f"{name}{end}" for name in shares for end in ("", "_low", "_high"))))
    if not set(one.seconds) >= {"train", *ALONE}:
        return found
    image = problem.spec.image_shape
    # A multiplication and an addition, forward once and backward twice.
    rate = 6e-9 * multiply_adds(problem.program, image) / one.rounds("train")
    convolved = sum(shape.multiply_adds for shape in convolutions(problem.program, image))
    alone = 6e-9 * convolved / one.rounds("convolutions"), 2e-9 * one.facts["matrix"] ** 3 / one.rounds("matrix")
    found["gflops"] = float(np.median(rate))
    for name, peak in zip(shares, alone, strict=True):
        found[name] = float(np.median(rate / peak))
        found[f"{name}_low"], found[f"{name}_high"] = median_interval(rate / peak)
    return found


def table(made: Sequence[Mapping[str, Any]], rounds: Mapping[str, int], title: str) -> Table:
    """The rows for a terminal.

    "first" is the time from the start of the process to the end of the first round: import, build, trace and compile.
    "of conv." is the rate of a step's products by that of its convolutions alone, and "of matrix" by that of matrices.
    """
    found = Table(title=title)
    heads = ("work", "contestant", "ms", "images/s", "range", "time by first", "first, s", "peak MiB", "GFLOP/s")
    for name in (*heads, "of conv.", "of matrix"):
        found.add_column(name, justify="left" if name in ("work", "contestant") else "right")
    for row in made:
        rate, shares = row["gflops"], (row["share_of_convolutions"], row["share_of_matrix"])
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
