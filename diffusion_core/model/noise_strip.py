r"""Noise strips: at which noise levels to show noisy images, and how to convert them to pixels.

x_t = alpha x_0 + sigma eps is shown as

    m + (x_t - alpha m) / sqrt(alpha^2 + (sigma/h)^2)         m the middle of the value range, h half its length

which is x_0 itself without noise, and h eps + m for pure noise, so that one standard deviation fills the range. In
[-1, 1] this is x_t/sqrt(alpha^2 + sigma^2): a variance-preserving process is shown unchanged, and all others look like
it at the same sigma/alpha, however large their x_t are.

The levels have equal distances in log(sigma/alpha), minus half of the log-SNR, between two values beyond which nothing
changes visibly: noise of a fortieth of the range, and images of a tenth of the noise. With equal distances in t, most
would crowd at one end: almost all of EDM's lie beyond the noisier one.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.data.pixels import VALUE_RANGE, to_uint8
from diffusion_core.diffusion.schedule import AnySchedule
from diffusion_core.sampling.plan import SamplerPlan

__all__ = ["visible_timesteps", "visible_rows", "to_visible"]

# The smallest and the largest log(sigma/alpha) to show, in a value range of [-1, 1].
_ENDS = (math.log(0.05), math.log(10.0))


def to_visible(
    x: ArrayLike, alpha: float, sigma: float, value_range: tuple[float, float] = VALUE_RANGE
) -> NDArray[np.uint8]:
    """Convert x_t at the noise level (alpha, sigma) to pixels, with the shape of `x`."""
    middle, half = (value_range[0] + value_range[1]) / 2, (value_range[1] - value_range[0]) / 2
    x = np.asarray(x, np.float64)
    return to_uint8(middle + (x - alpha * middle) / math.hypot(alpha, sigma / half), value_range)


def visible_timesteps(schedule: AnySchedule, n: int) -> NDArray[np.float64]:
    """Return n timesteps, rising, at equal distances in log(sigma/alpha), with shape (n,)."""
    return schedule.t_at_log_ratio(np.linspace(*np.clip(_ENDS, *schedule.log_ratio_range), n))


def visible_rows(plan: SamplerPlan, n: int) -> NDArray[np.int64]:
    """Return at most n rows of a plan, rising, the last one among them.

    The levels to which the other rows lead are those nearest to equal distances in log(sigma/alpha).
    """
    with np.errstate(divide="ignore"):
        visible = np.clip(np.log(plan.sigma[1:]) - np.log(plan.alpha[1:]), *_ENDS)
    wanted = np.linspace(visible.min(), visible.max(), max(1, n - 1))
    return np.unique([*np.abs(visible - wanted[:, None]).argmin(axis=1), plan.rows - 1])
