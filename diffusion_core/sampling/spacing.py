r"""Which of the T trained levels a sampler visits, from the noisiest down.

    leading    0, k, 2k, ...  with k = floor(T / N)       starts below T-1 and ends at t = 0
    linspace   N levels from 0 to T-1, rounded            starts at T-1 and ends at t = 0
    trailing   T-1, T-1-T/N, ...  rounded                 starts at T-1 and ends above t = 0

Every row is explicit: the level after the one at row i is the one at row i+1, never ``t - T/N``.

References:
    Common Diffusion Noise Schedules and Sample Steps are Flawed (Lin et al., 2023), table 2,
    https://arxiv.org/abs/2305.08891
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffusion_core.errors import DuetError, one_of

__all__ = ["SPACINGS", "spaced"]


def _leading(T: int, steps: int) -> NDArray:
    return np.arange(steps) * (T // steps)


def _linspace(T: int, steps: int) -> NDArray:
    return np.round(np.linspace(0, T - 1, steps)) if steps > 1 else np.array([T - 1])


def _trailing(T: int, steps: int) -> NDArray:
    return np.round(T - np.arange(steps) * (T / steps))[::-1] - 1


SPACINGS = {"leading": _leading, "linspace": _linspace, "trailing": _trailing}


def spaced(T: int, steps: int, spacing: str = "leading") -> NDArray[np.int64]:
    """The visited levels, falling, with shape (steps,).

    Raises:
        DuetError: for an unknown spacing, or steps outside 1..T.
    """
    if spacing not in SPACINGS:
        raise one_of("sampler.spacing", spacing, SPACINGS)
    if not 1 <= steps <= T:
        raise DuetError(f"sampler.steps: {steps} was given; a schedule of {T} levels has 1 to {T} steps")
    return SPACINGS[spacing](T, steps).astype(np.int64)[::-1].copy()
