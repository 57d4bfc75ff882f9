r"""The timesteps of a sampler: integer timesteps of the table, times, or a grid of noise levels.

A grid is N values of the noise-to-signal ratio r = sigma/alpha (the sigma of EDM, where alpha = 1), from r_max down to
r_min, with u_i = i/(N-1):

    karras            (r_max^(1/rho) + u (r_min^(1/rho) - r_max^(1/rho)))^rho          rho = 7
    exponential       exp(log r_max + u (log r_min - log r_max)), that is uniform in log-SNR; also called log_snr
    polyexponential   exp(log r_min + (1 - u)^rho (log r_max - log r_min))             rho = 1: exponential
    beta              r_min + (r_max - r_min) Q(1 - u), Q the quantiles of Beta(a, b)  a = b = 0.6

The ends are those of the schedule unless `sigma_min` and `sigma_max` are given, but by default no grid starts above
r = 100. Beyond that almost nothing of the image is left, and steps would be wasted: the last level of the cosine table
has r = 20,000, and a level without signal has infinite r. Each r is converted to a t of the schedule, in general
between two integers, at which the network is evaluated. The last row leads to clean data.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), eq. 5,
    https://arxiv.org/abs/2206.00364
    k-diffusion (crowsonkb/k-diffusion, k_diffusion/sampling.py), exponential and polyexponential
    Beta Sampling is All You Need (Lee et al., 2024), https://arxiv.org/abs/2407.12173
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.registry import build
from diffusion_core.diffusion.schedule import AnySchedule
from diffusion_core.sampling.spacing import SPACINGS, Spacing, Steps, continuous_timesteps, table_timesteps

__all__ = ["GRIDS", "karras", "make_timesteps"]

Array = NDArray[np.float64]

# The sigma/alpha at which grids start by default.
MAX_RATIO = 100.0


def karras(steps: int, low: float, high: float, rho: float = 7.0) -> Array:
    """Return ratios at equal distances of r^(1/rho) (Karras et al., eq. 5)."""
    root = 1 / _positive("rho", rho)
    return (high**root + _fractions(steps) * (low**root - high**root)) ** rho


def exponential(steps: int, low: float, high: float) -> Array:
    """Return ratios at equal distances of log r, half the log-SNR."""
    return polyexponential(steps, low, high)


def polyexponential(steps: int, low: float, high: float, rho: float = 1.0) -> Array:
    """Return ratios whose log r falls from its largest to its smallest value as (1 - u)^rho."""
    return np.exp(math.log(low) + (1 - _fractions(steps)) ** _positive("rho", rho) * (math.log(high) - math.log(low)))


def beta(steps: int, low: float, high: float, a: float = 0.6, b: float = 0.6) -> Array:
    """Return quantiles of a Beta distribution over r (Lee et al., 2024), as in diffusers."""
    from scipy.special import betaincinv  # slow to import, and no other grid needs it

    quantiles = betaincinv(_positive("a", a), _positive("b", b), 1 - _fractions(steps))
    return low + quantiles * (high - low)


GRIDS: Mapping[str, Callable[..., Array]] = {
    "karras": karras,
    "exponential": exponential,
    "log_snr": exponential,
    "polyexponential": polyexponential,
    "beta": beta,
}


def make_timesteps(schedule: AnySchedule, steps: Steps = None, spacing: Spacing = None) -> NDArray:
    """Return the t at which each step starts, decreasing, with shape (N,).

    Args:
        schedule: the schedule that the network was trained on.
        steps: number of steps, or another form of `spacing`.
        spacing: a name of `SPACINGS` or `GRIDS`, a grid's name and options (``{name: karras, rho: 7}``, with
            sigma_min and sigma_max), or the timesteps themselves.

    Raises:
        DuetError: for an unknown name or option, or numbers that are out of range.

    Example:
        >>> from diffusion_core.diffusion.schedule import linear
        >>> make_timesteps(linear(), 4, "trailing").tolist()
        [999, 749, 499, 249]
        >>> make_timesteps(linear(), 4, {"name": "karras", "sigma_max": 80.0}).round(1).tolist()
        [929.6, 695.0, 217.3, 0.0]
    """
    if isinstance(spacing, Mapping):
        options = dict(spacing)
        name = options.pop("name", None)
        if name not in GRIDS:
            return _without_grid(schedule, steps, name) if name in SPACINGS and not options else _refuse(spacing)
    elif isinstance(spacing, str) and spacing in GRIDS:
        name, options = spacing, {}
    else:
        if isinstance(spacing, str) and spacing not in SPACINGS:
            _refuse(spacing)
        return _without_grid(schedule, steps, spacing)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise DuetError(f"sampler.steps: {steps!r} was given; the grid {name} takes a whole number, at least 1")
    low, high = np.exp(schedule.log_ratio_range)
    high = high if low >= MAX_RATIO else min(high, MAX_RATIO)
    low, high = float(options.pop("sigma_min", low)), float(options.pop("sigma_max", high))
    if not 0 < low < high < math.inf:
        raise DuetError(
            f"sampler.spacing: {name} from sigma_max {high:g} to sigma_min {low:g} was given; both must be positive "
            "and finite, the first the larger"
        )
    ratios = build("sampler.spacing", GRIDS, name, options, steps, low, high)
    return schedule.t_at_log_ratio(np.log(ratios))


def _without_grid(schedule: AnySchedule, steps: Steps, spacing: Spacing) -> NDArray:
    """Return timesteps of the table, or times."""
    if schedule.is_table:
        return table_timesteps(schedule.steps, steps, spacing)
    return continuous_timesteps(schedule.span, steps, spacing)


def _fractions(steps: int) -> Array:
    """Return `steps` points from 0 to 1; a single one is 0, the noisiest."""
    return np.linspace(0.0, 1.0, steps)


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise DuetError(f"sampler.spacing.{name}: {value} was given; it must be a positive number")
    return value


def _refuse(spacing: object) -> NDArray:
    raise DuetError(
        f"sampler.spacing: {spacing!r} was given; it must be one of {', '.join([*SPACINGS, *GRIDS])}, "
        "a grid's name and options, or a list of decreasing timesteps"
    )
