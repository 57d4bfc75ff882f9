"""The sign-flip test of paired differences, which does not need them to be normal.

If neither arm is better, exchanging the arms of a pair changes nothing: each difference d_i is as probable as -d_i.
So, given the sizes of the differences, all 2^n assignments of signs are equally probable, and ::

    p = fraction of sign assignments s with |sum s_i d_i| >= |sum d_i|                                  (two-sided)

is exact for any distribution. Its smallest value, reached if all differences have one sign, is ``2 / 2^n``: 1/16 for
five pairs, which no data can get below. For equivalence the two one-sided tests are applied to ``margin - d_i`` and to
``margin + d_i``, with the smallest value ``1 / 2^n``: 1/32 for five pairs. These need differences that are symmetric
about their mean; the test of a difference does not.

With more than 16 pairs, 65,536 random assignments by the stream "statistics/signs" replace the enumeration, and the
observed one counts as one of them.

References:
    The design of experiments (Fisher, 1935), section 21
    Nonparametric permutation tests for functional neuroimaging (Nichols and Holmes, 2002),
    https://doi.org/10.1002/hbm.1058, on signs of differences
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.random import Stream

__all__ = ["sign_flip_equivalence", "sign_flip_floor", "sign_flip_p_value"]

_ENUMERATED = 16  # pairs whose assignments are all formed
_TIES = 1e-12  # of the largest sum: rounding must not break a tie


def sign_flip_p_value(differences: ArrayLike) -> float:
    """Return the two-sided p value of the hypothesis that neither arm is better.

    Example:
        >>> sign_flip_p_value([0.1, 0.3, 0.2, 0.1, 0.2])
        0.0625
    """
    values = np.asarray(differences, np.float64)
    return _fraction(np.abs(_sums(values)), abs(float(values.sum())), values)


def sign_flip_equivalence(differences: ArrayLike, margin: float) -> float:
    """Return the larger p value of the two one-sided tests of a margin, for symmetric differences.

    Example:
        >>> sign_flip_equivalence([0.1, -0.3, 0.2, -0.1, 0.2], margin=1.0)
        0.03125
    """
    values = np.asarray(differences, np.float64)
    sides = (margin - values, margin + values)
    return max(_fraction(_sums(side), float(side.sum()), side) for side in sides)


def sign_flip_floor(pairs: int, sides: int = 2) -> float:
    """Return the smallest p value of n pairs: of the two-sided test of a difference, or of one side for equivalence.

    Example:
        >>> sign_flip_floor(5), sign_flip_floor(5, sides=1)
        (0.0625, 0.03125)
    """
    return sides * 2.0**-pairs if pairs <= _ENUMERATED else 1.0 / (1 << _ENUMERATED)


def _fraction(sums: NDArray[np.float64], observed: float, values: NDArray[np.float64]) -> float:
    return float(np.mean(sums >= observed - _TIES * np.abs(values).sum()))


def _sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums of the values under the assignments of signs."""
    return _signs(len(values)) @ values


@functools.cache
def _signs(pairs: int) -> NDArray[np.float64]:
    if pairs <= _ENUMERATED:
        return 1.0 - 2.0 * (np.arange(1 << pairs)[:, None] >> np.arange(pairs) & 1)
    drawn = Stream(0, "statistics/signs").uniform(np.arange(1 << _ENUMERATED), pairs)
    signs = np.where(drawn < 0.5, -1.0, 1.0)
    signs[0] = 1.0
    return signs
