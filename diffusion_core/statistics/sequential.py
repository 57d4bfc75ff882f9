"""Levels of a paired t test that is looked at several times, so that all looks together have level alpha.

A test that is repeated as pairs are added rejects too often: at level 0.05, looks at 5, 6, ..., 20 pairs find a
difference between equal arms in 19 % of studies. So the level is spent over the looks. The largest number N of pairs is
planned; a look at n of them has the information fraction t = n/N, and by then at most ``A(t)`` may have been spent::

    pocock            A(t) = alpha ln(1 + (e - 1) t)                      about equal levels at equally spaced looks
    obrien_fleming    A(t) = 2 - 2 Phi(z / sqrt(t)), z = Phi^-1(1 - alpha/2)      almost nothing early, almost all last

The level of look k is the number l_k for which, between equal arms, ::

    P(p_1 >= l_1, ..., p_{k-1} >= l_{k-1}, p_k < l_k) = A(t_k) - A(t_{k-1})

It depends only on the looks so far, so the number and the times of the later ones need not be planned; N must be. For
normal differences the joint distribution of the p values is known: m new pairs add an independent mean ~ N(0, 1/m)
and an independent sum of squares ~ chi^2(m - 1). The levels are quantiles of 200,000 studies that are drawn so, by the
stream "statistics/looks": all looks together then have the level alpha to within 0.001. Those of large samples, from
Brownian motion, would give 0.057 in place of 0.05 for looks at 5, 6, ..., 20 pairs.

References:
    Discrete sequential boundaries for clinical trials (Lan and DeMets, 1983), https://doi.org/10.1093/biomet/70.3.659
    Group sequential methods in the design and analysis of clinical trials (Pocock, 1977),
    https://doi.org/10.1093/biomet/64.2.191
    A multiple testing procedure for clinical trials (O'Brien and Fleming, 1979), https://doi.org/10.2307/2530245
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv, ndtr, ndtri, stdtr

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.common.random import Stream

__all__ = ["SPENDING", "look_levels"]

_STUDIES = 200_000


def _pocock(alpha: float, t: float) -> float:
    return alpha * math.log1p((math.e - 1) * t)


def _obrien_fleming(alpha: float, t: float) -> float:
    return 2.0 * float(ndtr(float(ndtri(alpha / 2)) / math.sqrt(t)))


# The level that may be spent until an information fraction.
SPENDING: Mapping[str, Callable[[float, float], float]] = {"pocock": _pocock, "obrien_fleming": _obrien_fleming}


@functools.cache
def look_levels(
    counts: tuple[int, ...], planned: int, alpha: float, spending: str = "pocock", sides: int = 1
) -> tuple[float, ...]:
    """Return the level of each look, to which its p value is compared.

    Args:
        counts: the number of pairs at each look so far, at least 2, ascending, at most `planned`.
        planned: N, the largest number of pairs that was planned.
        alpha: the level of all looks together.
        spending: a name of `SPENDING`.
        sides: 1 for a one-sided test, 2 for a two-sided test, whose level is that of both sides together.

    Example:
        >>> [round(level, 3) for level in look_levels((5, 10), planned=10, alpha=0.05)]
        [0.031, 0.027]
    """
    check_choice("spending", spending, SPENDING)
    ascends = all(a < b for a, b in itertools.pairwise(counts))
    if not counts or counts[0] < 2 or counts[-1] > planned or not ascends:
        raise DuetError(
            f"looks: {list(counts)} pairs were given, and {planned} planned; there must be at least 2 at the first "
            f"look, more at each later one, and no more than planned"
        )
    if not 0 < alpha < 1 or sides not in (1, 2):
        raise DuetError(f"looks: alpha {alpha} and {sides} sides were given; they must lie in (0, 1), and be 1 or 2")
    spent = [SPENDING[spending](alpha, count / planned) for count in counts]
    levels = [spent[0]]
    if len(counts) > 1:
        p_values = _null_p_values(counts, sides)
        alive = p_values[0] >= levels[0]
        for p, (before, after) in zip(p_values[1:], itertools.pairwise(spent), strict=True):
            position = (after - before) * _STUDIES  # of the level among the p values of the studies still open
            ordered = np.sort(np.append(p[alive], 1.0))
            low = math.floor(position)
            levels.append(float(np.interp(position, [low, low + 1], ordered[[low, min(low + 1, len(ordered) - 1)]])))
            alive &= p >= levels[-1]
    return tuple(levels)


@functools.cache
def _null_p_values(counts: tuple[int, ...], sides: int) -> list[NDArray[np.float64]]:
    """Return p values of t tests at each look at studies of equal arms, with shape (studies,) each."""
    stream, studies = Stream(0, "statistics/looks"), np.arange(_STUDIES)
    drawn = stream.uniform(studies, 2 * len(counts))
    total, squares, seen, found = np.zeros(_STUDIES), np.zeros(_STUDIES), 0, []
    for k, count in enumerate(counts):
        new = count - seen
        own_mean = ndtri(drawn[:, 2 * k]) / math.sqrt(new)
        own_squares = 2.0 * gammaincinv((new - 1) / 2, drawn[:, 2 * k + 1]) if new > 1 else 0.0
        total += new * own_mean
        squares += own_squares + new * own_mean**2
        seen = count
        error = np.sqrt((squares - total**2 / count) / (count - 1) / count)
        t = total / count / error
        found.append(stdtr(count - 1, -t) if sides == 1 else 2.0 * stdtr(count - 1, -np.abs(t)))
    return found
