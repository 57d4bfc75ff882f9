r"""Averages made afterwards: any profile as a combination of the averages that were stored.

After n updates an average is a weighted mean of all weights that there were,

    e(n) = sum_{j=0..n} w_j p_j,      w_j = (1 - d_j) d_{j+1} ... d_n,      d_0 = 0,      sum_j w_j = 1

with j = 0 for the initial weights. So a combination ``sum_i x_i e_i`` of stored averages is again one, with the weights
``sum_i x_i w_i``, and x is chosen so that they come nearest to those that are wanted (Karras et al., 2024, section on
post-hoc EMA and Algorithm 3, https://arxiv.org/abs/2312.02696):

    minimise  sum_j (sum_i x_i w_ij - w_j)^2      with  sum_i x_i = 1

The paper does it for power functions, whose inner products have a closed form. Here w is what the trainer applied,
step by step, so that every profile can be stored and every profile can be made. The sum of x is held at 1 exactly: what
all weights have in common is then kept. It is held by writing x as a change from the one stored average that is nearest
to the wanted one, which also gives back an average that was stored with all its bits.

It needs no array of steps times averages. Between two moments at which something was stored, all averages of one
profile are multiples of one curve, so there the curves, one per profile, stand for them, and an orthogonal
transformation leaves of each stretch as many rows as there are profiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.optim.ema import Profile

__all__ = ["Combination", "combine", "step_weights"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Combination:
    """How stored averages are added up.

    Args:
        coefficients: x, one per stored average, with sum 1.
        error: what is left of the wanted weights of the steps, as a share of their root sum of squares.
    """

    coefficients: Array
    error: float


def step_weights(profile: Profile, updates: int, batch: int) -> Array:
    """What each step's weights count in an average after so many updates, with shape (updates + 1,).

    Entry 0 is that of the initial weights; the sum is 1.
    """
    decays = _decays(profile, updates, batch)
    return (1.0 - np.append(0.0, decays)) * _products(decays)


def combine(stored: Sequence[tuple[Profile, int]], wanted: tuple[Profile, int], batch: int) -> Combination:
    """The combination of stored averages that is nearest to a wanted one.

    Args:
        stored: profile and number of updates of each; the profiles were tracked side by side in one run.
        wanted: profile and number of updates of what is to be made.
        batch: images per update.

    Raises:
        DuetError: if nothing was stored, or what is wanted lies beyond the last that was.
    """
    if not stored:
        raise DuetError("snapshots: there are none to combine")
    last = max(updates for _, updates in stored)
    if not 1 <= wanted[1] <= last:
        raise DuetError(f"images: {wanted[1] * batch} were given; it must be between {batch} and {last * batch}")
    columns = _rows([*stored, wanted], batch)
    target, columns = columns[:, -1], columns[:, :-1]
    misfits = columns - target[:, None]
    nearest = int(np.argmin(np.linalg.norm(misfits, axis=0)))
    others = np.delete(np.arange(len(stored)), nearest)
    changes = columns[:, others] - columns[:, [nearest]]
    coefficients = np.zeros(len(stored))
    coefficients[others] = np.linalg.lstsq(changes, -misfits[:, nearest])[0]
    coefficients[nearest] = 1.0 - coefficients[others].sum()
    error = np.linalg.norm(columns @ coefficients - target) / np.linalg.norm(target)
    return Combination(coefficients, float(error))


def _decays(profile: Profile, updates: int, batch: int) -> Array:
    """d_1 ... d_n."""
    update = np.arange(1, updates + 1)
    return np.broadcast_to(profile(update, update * batch, batch), update.shape)


def _products(decays: Array) -> Array:
    """For each of j = 0 ... n the product of d_{j+1} ... d_n."""
    return np.append(np.cumprod(decays[::-1])[::-1], 1.0)


def _rows(averages: Sequence[tuple[Profile, int]], batch: int) -> Array:
    """Columns that have the inner products of the averages' weights of steps, but few rows."""
    profiles = list(dict.fromkeys(profile for profile, _ in averages))
    of = np.array([profiles.index(profile) for profile, _ in averages])
    ends = np.array([updates for _, updates in averages])
    moments = np.unique(ends)
    decays = np.stack([_decays(profile, moments[-1], batch) for profile in profiles])
    # What is kept of the end of a stretch until the end of each average.
    kept = np.ones(len(averages))
    rows = []
    for begin, end in reversed(list(zip(np.append(0, moments[:-1]), moments, strict=True))):
        stretch = decays[:, begin:end]
        products = np.stack([_products(d) for d in stretch])
        curves = (1.0 - stretch) * products[:, 1:]
        rows.append(np.linalg.qr(curves.T, mode="r")[:, of] * np.where(ends >= end, kept, 0.0))
        kept = np.where(ends >= end, kept * products[of, 0], kept)
    return np.concatenate([*rows, kept[None]])
