"""The rows of a plan as a backend takes them: the numbers of each row, and a signature that rows have in common.

A `RowSignature` holds everything that is not a number, so that a computation traced or compiled for one row serves
every row with the same signature. A plan has one signature, or two if only some of its rows are guided. A `RowSegment`
is a range of consecutive rows with one signature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["Row", "RowSegment", "RowSignature"]

# A float, or a tensor without axes.
Number = Any


class Row(NamedTuple):
    """The numbers of one row, under the names of the plan's tables; for R registers and H estimates.

    Args:
        c_noise: column of the process; so are c_in, c_skip and c_out.
        guidance_scale: weight of the conditional over the unconditional output.
        classifier: weight of the classifier's gradient; 0 without a classifier.
        learned: (a, b) of a learned variance; (0, 0) without one.
        state: coefficients of the registers in the new registers, R by R.
        denoised: coefficients of the estimates in the new registers, R by H.
        noise: standard deviation of the fresh noise in each register, R numbers.
        clipped: weights of register 0 and of the unclipped estimate in the estimate before clipping; (0, 1) by default.
        unclipped: coefficients of the unclipped estimate in the new registers, R numbers; empty by default.
        second_time: for a network of two times; None means zero.
    """

    c_noise: Number
    c_in: Number
    c_skip: Number
    c_out: Number
    guidance_scale: Number
    classifier: Number
    learned: tuple[Number, Number]
    state: tuple[tuple[Number, ...], ...]
    denoised: tuple[tuple[Number, ...], ...]
    noise: tuple[Number, ...]
    clipped: tuple[Number, Number] = (0.0, 1.0)
    unclipped: tuple[Number, ...] = ()
    second_time: Number | None = None


@dataclass(frozen=True)
class RowSignature:
    """What rows with the same computation have in common; see `plan.SamplerPlan`.

    Args:
        guided: whether two outputs are combined.
        classified: whether a classifier's gradient changes the estimate.
        learned: whether the output scales the noise.
        registers: R.
        history: H.
        bounds: the smallest and the largest estimate, or None.
        scale: (middle, half) of the value range.
        clip: the bound in units of half of the range, or None.
        threshold: the quantile of dynamic thresholding, or None.
        rescale: fraction of the rescaling of guided outputs.
        threshold_max: the largest bound of dynamic thresholding, or None.
        unclipped: whether the unclipped estimate is used besides the clipped one.
        guidance_channels: number of channels that guidance applies to, or None for all.
        two_times: whether each row has a second time, the last of its numbers.
    """

    guided: bool
    classified: bool
    learned: bool
    registers: int
    history: int
    bounds: tuple[float, float] | None
    scale: tuple[float, float]
    clip: float | None
    threshold: float | None
    rescale: float
    threshold_max: float | None = None
    unclipped: bool = False
    two_times: bool = False
    guidance_channels: int | None = None

    def row(self, numbers: Sequence[Number]) -> Row:
        """Unpack one row of `SamplerPlan.coefficients`."""
        columns, r = Row._fields.index("learned"), self.registers
        a, b, *rest = numbers[columns:]
        state = tuple(tuple(rest[q * r : (q + 1) * r]) for q in range(r))
        rest, h = rest[r * r :], self.history
        denoised = tuple(tuple(rest[q * h : (q + 1) * h]) for q in range(r))
        noise, rest = tuple(rest[r * h : r * h + r]), rest[r * h + r :]
        row = Row(*numbers[:columns], (a, b), state, denoised, noise)
        if self.two_times:
            *rest, second_time = rest
            row = row._replace(second_time=second_time)
        return row._replace(clipped=tuple(rest[:2]), unclipped=tuple(rest[2:])) if self.unclipped else row

    def quantile(self, n: int) -> tuple[int, int, float]:
        """Return the place of the threshold's quantile in n sorted numbers: (below, above, weight of above)."""
        at = (self.threshold or 0.0) * (n - 1)
        below = int(at)
        return below, min(below + 1, n - 1), at - below


class RowSegment(NamedTuple):
    """Consecutive rows with one signature."""

    signature: RowSignature
    rows: range
