"""The results of a bench: medians with their intervals, and ratios within a round.

Another load on the machine slows down everything in a round. So where rounds are interleaved, a ratio is the median
over rounds of one time divided by another time in the same round. Its interval is that of the median by order
statistics: the k-th smallest and the k-th largest of n rounds enclose it with probability
1 - 2 P(Binomial(n, 1/2) < k), whatever the distribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from scipy.stats import binom

from benchmarks.contestants import Contestant
from benchmarks.convolutions import convolutions
from benchmarks.work import PARTS
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks.flops import multiply_adds

__all__ = ["TITLES", "compare_times", "make_rows", "make_table", "median_interval"]

TITLES = {
    "train": "training step",
    "ddim": "DDIM-{ddim_steps}",
    "ddpm": "DDPM, every step",
}


def median_interval(values: NDArray[np.float64], confidence: float = 0.95) -> tuple[float, float]:
    """Return the narrowest interval of order statistics that covers the median with this confidence, or the range."""
    ordered, n = np.sort(values), len(values)
    k = max(0, int(binom.ppf((1 - confidence) / 2, n, 0.5)) - 1)  # values left out at either end
    return float(ordered[k]), float(ordered[n - 1 - k])


def compare_times(ours: NDArray[np.float64], theirs: NDArray[np.float64], together: bool) -> tuple[float, float, float]:
    """Return (ratio, low, high) of one series of times divided by another.

    For interleaved rounds, the ratio is the median of the ratios within a round. Otherwise it is the ratio of the
    medians, with the conservative interval [our low / their high, our high / their low].
    """
    if together:
        return float(np.median(ours / theirs)), *median_interval(ours / theirs)
    (low, high), (least, most) = median_interval(ours), median_interval(theirs)
    return float(np.median(ours) / np.median(theirs)), low / most, high / least


def make_rows(
    contestants: Sequence[Contestant],
    work: str,
    model: DiffusionModel,
    rounds: Mapping[str, int],
    together: bool = True,
) -> list[dict[str, Any]]:
    """Return the result of each contestant at a workload, as plain data.

    Args:
        contestants: contestants that have completed their rounds; ratios are to the first with this workload.
        work: the workload.
        model: Duet's network and process.
        rounds: batch, steps, images and ddim_steps.
        together: whether the rounds were interleaved.
    """
    rows = []
    able = [contestant for contestant in contestants if work in contestant.seconds]
    convolved = sum(shape.multiply_adds for shape in convolutions(model.program, model.spec.image_shape))
    for contestant in able:
        seconds = contestant.rounds(work)
        ratio, low, high = compare_times(seconds, able[0].rounds(work), together)
        images = rounds["batch"] * rounds["steps"] if work == "train" else rounds["images"]
        unit = rounds["steps"] if work == "train" else 1
        same_precision = [other for other in able if other.mode.precision == contestant.mode.precision]
        rates = [
            6e-9 * convolved / other.rounds("convolutions")
            for other in same_precision
            if "convolutions" in other.seconds
        ]
        rows.append(
            {
                "work": work, "contestant": contestant.mode.name, "parameters": contestant.facts["parameters"],
                "who": contestant.mode.contestant, "precision": contestant.mode.precision,
                "compiled": contestant.mode.compile,
                "images_per_second": float(1 / np.median(seconds)),
                "milliseconds": float(1e3 * np.median(seconds) * images / unit),
                "slowest": float(1 / seconds.max()), "fastest": float(1 / seconds.min()),
                "ratio": ratio, "ratio_low": low, "ratio_high": high,
                "ready_seconds": contestant.ready,
                "compile_seconds": max(0.0, contestant.first - float(np.median(seconds)) * images),
                "peak_memory_mib": contestant.memory,
                **_compare_with_parts(contestant, work, model, np.max(rates, axis=0) if rates else None),
                "seconds_per_image": seconds.tolist(), "together": together,
            }
        )  # fmt: skip
    return rows


def _compare_with_parts(
    contestant: Contestant, work: str, model: DiffusionModel, convolved: NDArray[np.float64] | None
) -> dict[str, Any]:
    """Compare a workload with its parts alone: numbers with the ends of their intervals, None if not measured.

    For a training step: the rate of its products in 1e9 operations per second; that rate as a fraction of the fastest
    rate of convolutions alone among all contestants of the round, `convolved`, and of the rate of matrix products; and
    the fraction of its time outside the passes through the network. For sampling: its time divided by the time of the
    same number of evaluations alone.
    """
    names = ("gflops", "share_of_convolutions", "share_of_matrix", "share_beside_passes", "by_evaluations")
    measured: dict[str, NDArray] = {}
    seconds = contestant.rounds(work)
    if work == "ddim" and "evaluations" in contestant.seconds:
        measured["by_evaluations"] = seconds / contestant.rounds("evaluations")
    if work == "train" and convolved is not None and set(contestant.seconds) >= set(PARTS["train"]):
        # A multiplication and an addition, forward once and backward twice.
        rate = 6e-9 * multiply_adds(model.program, model.spec.image_shape) / seconds
        measured["gflops"], measured["share_of_convolutions"] = rate, rate / convolved
        measured["share_of_matrix"] = rate * contestant.rounds("matrix") / (2e-9 * contestant.facts["matrix"] ** 3)
        measured["share_beside_passes"] = 1 - contestant.rounds("passes") / seconds
    columns: dict[str, Any] = {}
    for name in names:
        ends = (float(np.median(measured[name])), *median_interval(measured[name])) if name in measured else [None] * 3
        columns |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
    return columns


def make_table(rows: Sequence[Mapping[str, Any]], rounds: Mapping[str, int], title: str) -> Table:
    """Return the rows as a table for a terminal.

    "ready" is the time for imports and construction; "compile" is the time of the first round beyond that of the
    others. "of conv." is the rate of a step's products as a fraction of the fastest rate of its convolutions alone, and
    "of matrix" as a fraction of that of matrix products. "overhead" is the fraction of a step outside its passes
    through the network; for sampling, the time beyond that of the evaluations alone, as a fraction of it.
    """
    table = Table(title=title)
    heads = ("work", "contestant", "ms", "images/s", "range", "time / first", "ready, s", "compile, s", "MiB")
    for name in (*heads, "GFLOP/s", "of conv.", "of matrix", "overhead"):
        text = name in ("work", "contestant")
        table.add_column(name, justify="left" if text else "right", no_wrap=not text)
    for row in rows:
        rate, overhead = row["gflops"], row["share_beside_passes"]
        if row["by_evaluations"] is not None:
            overhead = row["by_evaluations"] - 1
        fractions = row["share_of_convolutions"], row["share_of_matrix"], overhead
        table.add_row(
            TITLES[row["work"]].format(**rounds),
            row["contestant"],
            f"{row['milliseconds']:,.1f}",
            f"{row['images_per_second']:,.1f}",
            f"{row['slowest']:,.1f} .. {row['fastest']:,.1f}",
            f"{row['ratio']:.2f} [{row['ratio_low']:.2f} .. {row['ratio_high']:.2f}]",
            f"{row['ready_seconds']:.1f}",
            f"{row['compile_seconds']:.1f}",
            f"{row['peak_memory_mib']:,.0f}",
            "" if rate is None else f"{rate:,.0f}",
            *("" if fraction is None else f"{fraction:.0%}" for fraction in fractions),
        )
    return table
