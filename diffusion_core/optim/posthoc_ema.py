r"""Post-hoc EMA: an average with any profile, as a combination of averages that were stored during training.

After n updates an average is a weighted mean of all weights of the run so far,

    e(n) = sum_{j=0..n} w_j p_j,      w_j = (1 - d_j) d_{j+1} ... d_n,      d_0 = 0,      sum_j w_j = 1

with j = 0 for the initial weights. A combination ``sum_i x_i e_i`` of stored averages is therefore again an average,
with the weights ``sum_i x_i w_i``, and x is chosen so that these are nearest to the requested ones (Karras et al.,
2024, section on post-hoc EMA and Algorithm 3, https://arxiv.org/abs/2312.02696):

    minimise  sum_j (sum_i x_i w_ij - w_j)^2      with  sum_i x_i = 1

The paper solves this for power functions, whose inner products have a closed form. Here w contains the weights that the
trainer applied, step by step, so that every profile can be stored and every profile can be requested. The sum of x is
exactly 1, which preserves what all weights have in common. To this end x is written as a change from the stored average
that is nearest to the requested one; a request for a stored average then returns it bit by bit.

No array of steps times averages is needed. Between two moments at which an average was stored, the step weights of all
averages with the same profile are multiples of one curve. One curve per profile therefore represents them, and an
orthogonal transformation reduces each segment between two moments to as many rows as there are profiles.

The published coefficients are another choice, fit: power. With the exponents g and h of two power functions, which end
at the times n <= m, and an integral in place of the sum over steps, their inner product is

    (g + 1)(h + 1) (n/m)^h / ((g + h + 1) m)

and the solution of the normal equations is divided by its sum. Both choices agree in the limit of small batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.optim.ema import Power, Profile

__all__ = ["FITS", "Combination", "check_fit", "combine", "initial_weight", "step_weights"]

Array = NDArray[np.float64]

FITS = ("steps", "power")


@dataclass(frozen=True, eq=False)
class Combination:
    """The coefficients with which stored averages are summed.

    Args:
        coefficients: x, one per stored average, with sum 1.
        error: norm of the difference between the resulting and the requested step weights, relative to the norm of the
            requested ones.
    """

    coefficients: Array
    error: float


def step_weights(profile: Profile, updates: int, batch: int) -> Array:
    """Return the weight of each step in an average after `updates` updates, with shape (updates + 1,).

    Entry 0 is the weight of the initial weights; the sum is 1.

    Example:
        >>> from diffusion_core.optim.ema import Fixed
        >>> step_weights(Fixed(0.5), updates=2, batch=64)
        array([0.25, 0.25, 0.5 ])
    """
    decays = _decays(profile, updates, batch)
    return (1.0 - np.append(0.0, decays)) * _products(decays)


def initial_weight(profile: Profile, updates: int, batch: int, since: int = 0) -> float:
    """Return the weight that an average still gives to what it was after `since` updates: d_{since+1} ... d_n.

    Example:
        >>> from diffusion_core.optim.ema import Fixed
        >>> initial_weight(Fixed(0.5), updates=3, batch=64)
        0.125
    """
    return float(np.prod(_decays(profile, updates, batch)[since:]))


def combine(
    stored: Sequence[tuple[Profile, int]], wanted: tuple[Profile, int], batch: int, fit: str = "steps"
) -> Combination:
    """Return the combination of stored averages that is nearest to a requested one.

    Args:
        stored: profile and number of updates of each stored average of one run.
        wanted: profile and number of updates of the requested average.
        batch: images per update.
        fit: ``"steps"``, nearest in the weights of the training steps; or ``"power"``, the coefficients of EDM2's code,
            which take power functions of a continuous time, and leave out averages stored after the requested moment.

    Raises:
        DuetError: if nothing was stored, the requested moment is later than the last stored one, or the fit does not
            exist or takes power functions only.
    """
    check_fit(fit)
    if not stored:
        raise DuetError("snapshots: there are none to combine; a run stores them with ema.snapshot_images above 0")
    last = max(updates for _, updates in stored)
    if not 1 <= wanted[1] <= last:
        raise DuetError(f"images: {wanted[1] * batch} were given; it must be between {batch} and {last * batch}")
    columns = _rows([*stored, wanted], batch)
    target, columns = columns[:, -1], columns[:, :-1]
    coefficients = _nearest(columns, target) if fit == "steps" else _published(stored, wanted)
    error = np.linalg.norm(columns @ coefficients - target) / np.linalg.norm(target)
    return Combination(coefficients, float(error))


def check_fit(fit: str) -> None:
    """Raise a `DuetError` for a fit that does not exist."""
    check_choice("fit", fit, FITS)


def _nearest(columns: Array, target: Array) -> Array:
    """Return the coefficients with sum 1 of the combination of columns that is nearest to the target."""
    residuals = columns - target[:, None]
    nearest = int(np.argmin(np.linalg.norm(residuals, axis=0)))
    others = np.delete(np.arange(columns.shape[1]), nearest)
    changes = columns[:, others] - columns[:, [nearest]]
    coefficients = np.zeros(columns.shape[1])
    coefficients[others] = np.linalg.lstsq(changes, -residuals[:, nearest])[0]
    coefficients[nearest] = 1.0 - coefficients[others].sum()
    return coefficients


def _published(stored: Sequence[tuple[Profile, int]], wanted: tuple[Profile, int]) -> Array:
    """Return the coefficients of EDM2's code (Karras et al., 2024, eq. 151 and Algorithm 3)."""
    for profile, _ in (*stored, wanted):
        if not isinstance(profile, Power):
            raise DuetError(f"fit: power was given with {profile!r}; it takes power functions only, so use fit=steps")
    index = [i for i, (_, updates) in enumerate(stored) if updates <= wanted[1]]
    if not index:
        raise DuetError("fit: power was given, but no average was stored until that moment; use fit=steps")
    gamma, ends = (np.array(column, np.float64) for column in zip(*((p.gamma, n) for p, n in stored), strict=True))
    gamma, ends = gamma[index], ends[index]

    def products(other_gamma: Array | float, other_ends: Array | float) -> Array:
        """Return the inner product of each stored average (rows) with others (columns)."""
        g, h = np.broadcast_arrays(gamma[:, None], other_gamma)
        exponent = np.where(ends[:, None] < other_ends, h, -g)
        return (
            (g + 1)
            * (h + 1)
            * (ends[:, None] / other_ends) ** exponent
            / ((g + h + 1) * np.maximum(ends[:, None], other_ends))
        )

    solution = np.linalg.solve(products(gamma[None], ends[None]), products(wanted[0].gamma, wanted[1]))[:, 0]
    coefficients = np.zeros(len(stored))
    coefficients[index] = solution / solution.sum()
    return coefficients


def _decays(profile: Profile, updates: int, batch: int) -> Array:
    """Return d_1 ... d_n."""
    update = np.arange(1, updates + 1)
    return np.broadcast_to(profile(update, update * batch, batch), update.shape)


def _products(decays: Array) -> Array:
    """Return the product of d_{j+1} ... d_n for each j = 0 ... n."""
    return np.append(np.cumprod(decays[::-1])[::-1], 1.0)


def _rows(averages: Sequence[tuple[Profile, int]], batch: int) -> Array:
    """Return a matrix with few rows whose columns have the inner products of the averages' step weights."""
    profiles = list(dict.fromkeys(profile for profile, _ in averages))
    index = np.array([profiles.index(profile) for profile, _ in averages])
    ends = np.array([updates for _, updates in averages])
    moments = np.unique(ends)
    decays = np.stack([_decays(profile, moments[-1], batch) for profile in profiles])
    # The factor by which each average has decayed from the end of a segment to its own end.
    decayed = np.ones(len(averages))
    rows = []
    for begin, end in reversed(list(zip(np.append(0, moments[:-1]), moments, strict=True))):
        segment = decays[:, begin:end]
        products = np.stack([_products(d) for d in segment])
        curves = (1.0 - segment) * products[:, 1:]
        rows.append(np.linalg.qr(curves.T, mode="r")[:, index] * np.where(ends >= end, decayed, 0.0))
        decayed = np.where(ends >= end, decayed * products[index, 0], decayed)
    return np.concatenate([*rows, decayed[None]])
