"""The rows of a plan as an executor takes them: numbers, and what rows have in common beside them.

A `RowSignature` is all that is not a number, so that whatever is traced or compiled for one row serves every row of its form.
A plan has one form, or two where some of its rows are guided and others are not; a `RowSegment` is a run of rows of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["RowSignature", "Row", "RowSegment"]

# A float, or a tensor of no axes.
Number = Any


class Row(NamedTuple):
    """The numbers of one row, under the names of the plan's tables; for R registers and H estimates.

    Args:
        c_noise: column of the process; so are c_in, c_skip and c_out.
        guidance_scale: weight of the class over no class.
        classifier: weight of the classifier's gradient; 0 without one.
        learned: (a, b) of a learned variance; (0, 0) without one.
        state: registers to registers, R of R.
        denoised: estimates to registers, R of H.
        noise: of the fresh noise, R.
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


@dataclass(frozen=True)
class RowSignature:
    """What rows that are computed alike have in common; see `plan.SamplerPlan`.

    Args:
        guided: whether two outputs are mixed.
        classified: whether a classifier's gradient moves the estimate.
        learned: whether the output scales the noise.
        registers: R.
        history: H.
        bounds: the least and the largest estimate, or None.
        scale: (middle, half) of the value range.
        clip: the bound in units of half of the range, or None.
        threshold: the quantile of dynamic thresholding, or None.
        rescale: share of the rescaling of guided outputs.
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

    def row(self, numbers: Sequence[Number]) -> Row:
        """One row of `SamplerPlan.coefficients`, taken apart."""
        columns, r = len(Row._fields) - 4, self.registers
        a, b, *rest = numbers[columns:]
        state = tuple(tuple(rest[q * r : (q + 1) * r]) for q in range(r))
        rest, h = rest[r * r :], self.history
        denoised = tuple(tuple(rest[q * h : (q + 1) * h]) for q in range(r))
        return Row(*numbers[:columns], (a, b), state, denoised, tuple(rest[r * h :]))

    def quantile(self, n: int) -> tuple[int, int, float]:
        """Where the quantile of dynamic thresholding lies among n sorted numbers: (below, above, share of above)."""
        at = (self.threshold or 0.0) * (n - 1)
        below = int(at)
        return below, min(below + 1, n - 1), at - below


class RowSegment(NamedTuple):
    """Rows in order that share a form."""

    form: RowSignature
    rows: range
