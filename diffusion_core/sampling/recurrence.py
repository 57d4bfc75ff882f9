"""Turn a solver's formula into the tables of a plan.

A solver is written once, as the update that its paper prints: a function of the registers X, the recent estimates D
and fresh noise z that returns the new registers. `recurrence` calls it with unit vectors in their place. As every
update is linear in them, the vectors that come back are the coefficients of the plan's row:

    def step(i, X, D, z):                                       DDIM without noise, in this notation
        eps = (X[0] - alpha[i] * D[0]) / sigma[i]
        return [alpha[i + 1] * D[0] + sigma[i + 1] * eps]

so the code of a solver can be read next to its paper, and no table is filled in by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Coefficients", "recurrence", "split_unclipped"]

# A linear combination: the coefficients of every register, every estimate and the noise, with shape (R + H + 1,).
Coefficients = NDArray[np.float64]


def recurrence(
    rows: int,
    registers: int,
    history: int,
    step: Callable[[int, Coefficients, Coefficients, Coefficients], Sequence[Coefficients]],
) -> dict[str, NDArray[np.float64]]:
    """Return the tables `state`, `denoised` and `noise` of a plan whose rows are given by a formula.

    Args:
        rows: N, the number of network evaluations.
        registers: R, the number of images that the solver carries from row to row.
        history: H, the number of recent estimates that it combines.
        step: the formula. It takes the row i, the registers X (R of them), the estimates D (H of them, newest first)
            and the noise z, and returns the R new registers, each a linear combination of X, D and z.

    Example:
        Euler's method for dx/dt = x - D with steps of length 0.1, over 5 rows.

        >>> tables = recurrence(5, 1, 1, lambda i, X, D, z: [X[0] + 0.1 * (X[0] - D[0])])
        >>> {name: table[0].tolist() for name, table in tables.items()}
        {'state': [[1.1]], 'denoised': [[-0.1]], 'noise': [0.0]}
    """
    unit = np.eye(registers + history + 1)
    table = np.stack([np.stack(step(i, unit[:registers], unit[registers:-1], unit[-1])) for i in range(rows)])
    return {
        "state": table[:, :, :registers],
        "denoised": table[:, :, registers:-1],
        "noise": table[:, :, -1],
    }


def split_unclipped(denoised: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Return the tables of a formula whose last estimate is the unclipped one of the same row.

    Args:
        denoised: the table of `recurrence`, with shape (N, R, H + 1).

    Returns:
        The tables `denoised`, `clipped` and `unclipped` of a plan.
    """
    clipped = np.tile([0.0, 1.0], (len(denoised), 1))
    return {"denoised": denoised[:, :, :-1].copy(), "clipped": clipped, "unclipped": denoised[:, :, -1].copy()}
