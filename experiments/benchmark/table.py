"""What the rounds say: medians with their spread, and ratios within a round.

A machine that slows down slows all that is done in a round, so a ratio is the median over rounds of one time by another
in the same round, wherever rounds are done together. Its interval is that of the median by order statistics: the k-th
smallest and the k-th largest of n rounds enclose it with probability 1 - 2 P(Binomial(n, 1/2) < k), whatever the
distribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from scipy.stats import binom

from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks.flops import convolutions, multiply_adds
from experiments.benchmark.contestants import Contestant
from experiments.benchmark.work import ALONE

__all__ = ["TITLES", "compared", "median_interval", "rows", "table"]

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


def compared(ours: NDArray[np.float64], theirs: NDArray[np.float64], together: bool) -> tuple[float, float, float]:
    """(ratio, low, high) of seconds by seconds.

    Of rounds that were done together it is the median of the ratios within a round. Else it is that of the medians, in
    an interval from the least by the most to the most by the least of theirs, which holds it more often.
    """
    if together:
        return float(np.median(ours / theirs)), *median_interval(ours / theirs)
    (low, high), (least, most) = median_interval(ours), median_interval(theirs)
    return float(np.median(ours) / np.median(theirs)), low / most, high / least


def rows(
    contestants: Sequence[Contestant],
    what: str,
    model: DiffusionModel,
    rounds: Mapping[str, int],
    together: bool = True,
) -> list[dict[str, Any]]:
    """A row for each contestant at a work, as plain data; ratios of time are to the first that does it.

    Args:
        contestants: who did their rounds.
        what: the work.
        model: Duet's network and process.
        rounds: batch, steps, images and ddim_steps.
        together: whether their rounds were interleaved.
    """
    made = []
    able = [one for one in contestants if what in one.seconds]
    convolved = sum(shape.multiply_adds for shape in convolutions(model.program, model.spec.image_shape))
    for one in able:
        seconds = one.rounds(what)
        ratio, low, high = compared(seconds, able[0].rounds(what), together)
        images = rounds["batch"] * rounds["steps"] if what == "train" else rounds["images"]
        unit = rounds["steps"] if what == "train" else 1
        alike = [other for other in able if other.mode.precision == one.mode.precision]
        fastest = [
            6e-9 * convolved / other.rounds("convolutions") for other in alike if "convolutions" in other.seconds
        ]
        made.append(
            {
                "work": what, "contestant": one.mode.name, "parameters": one.facts["parameters"],
                "who": one.mode.contestant, "precision": one.mode.precision, "compiled": one.mode.compile,
                "images_per_second": float(1 / np.median(seconds)),
                "milliseconds": float(1e3 * np.median(seconds) * images / unit),
                "slowest": float(1 / seconds.max()), "fastest": float(1 / seconds.min()),
                "ratio": ratio, "ratio_low": low, "ratio_high": high,
                "ready_seconds": one.ready,
                "compile_seconds": max(0.0, one.first - float(np.median(seconds)) * images),
                "peak_memory_mib": one.memory,
                **_beside(one, what, model, np.max(fastest, axis=0) if fastest else None),
                "seconds_per_image": seconds.tolist(), "together": together,
            }
        )  # fmt: skip
    return made


def _beside(one: Contestant, what: str, model: DiffusionModel, convolved: NDArray[np.float64] | None) -> dict[str, Any]:
    """A work beside what it is compared with: numbers, each with the ends of its interval; None where it was not done.

    Of a training step: the rate of its products, in 1e9 operations per second, by that of convolutions alone, of
    whoever does them fastest in the round, and by that of matrices; and the share of its time beside the passes through
    the network. Of sampling: its time by that of as many evaluations alone.
    """
    names = ("gflops", "share_of_convolutions", "share_of_matrix", "share_beside_passes", "by_evaluations")
    measured: dict[str, NDArray] = {}
    seconds = one.rounds(what)
    if what == "ddim" and "evaluations" in one.seconds:
        measured["by_evaluations"] = seconds / one.rounds("evaluations")
    if what == "train" and convolved is not None and set(one.seconds) >= set(ALONE["train"]):
        # A multiplication and an addition, forward once and backward twice.
        rate = 6e-9 * multiply_adds(model.program, model.spec.image_shape) / seconds
        measured["gflops"], measured["share_of_convolutions"] = rate, rate / convolved
        measured["share_of_matrix"] = rate * one.rounds("matrix") / (2e-9 * one.facts["matrix"] ** 3)
        measured["share_beside_passes"] = 1 - one.rounds("passes") / seconds
    told: dict[str, Any] = {}
    for name in names:
        ends = (float(np.median(measured[name])), *median_interval(measured[name])) if name in measured else [None] * 3
        told |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
    return told


def table(made: Sequence[Mapping[str, Any]], rounds: Mapping[str, int], title: str) -> Table:
    """The rows for a terminal.

    "ready" is the time to import and build, and "compile" what the first round takes more than the others. "of conv."
    is the rate of a step's products by the fastest of its convolutions alone, "of matrix" by that of matrices; "beside"
    is what a step takes beside its passes through the network, or sampling more than as many evaluations.
    """
    found = Table(title=title)
    heads = ("work", "contestant", "ms", "images/s", "range", "time by first", "ready, s", "compile, s", "MiB")
    for name in (*heads, "GFLOP/s", "of conv.", "of matrix", "beside"):
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
            f"{row['ready_seconds']:.1f}",
            f"{row['compile_seconds']:.1f}",
            f"{row['peak_memory_mib']:,.0f}",
            "" if rate is None else f"{rate:,.0f}",
            *("" if share is None else f"{share:.0%}" for share in shares),
        )
    return found
