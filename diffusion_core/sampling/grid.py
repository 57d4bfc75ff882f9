r"""The levels that a sampler visits: those of the trained table, times, or noise levels of its own.

A grid is N values of the noise-to-signal ratio r = sigma/alpha (the sigma of EDM, where alpha = 1), from r_max down to
r_min, with u_i = i/(N-1):

    karras            (r_max^(1/rho) + u (r_min^(1/rho) - r_max^(1/rho)))^rho          rho = 7
    exponential       exp(log r_max + u (log r_min - log r_max)), that is uniform in log-SNR; also called log_snr
    polyexponential   exp(log r_min + (1 - u)^rho (log r_max - log r_min))             rho = 1: exponential
    beta              r_min + (r_max - r_min) Q(1 - u), Q the quantiles of Beta(a, b)  a = b = 0.6

The ends are those of the schedule unless `sigma_min` and `sigma_max` say otherwise; but no grid starts above r = 100
unasked. Beyond it next to nothing of the picture is left, and steps are lost there: the last level of the cosine table
has r = 20,000, and one without signal has no largest r. Each r is a t of the schedule, in general a fractional one, at
which the network is asked. The last row leads on to clean data.

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

NOISE_ENOUGH = 100.0


def karras(steps: int, low: float, high: float, rho: float = 7.0) -> Array:
    """Steps of equal length in r^(1/rho) (Karras et al., eq. 5)."""
    root = 1 / _positive("rho", rho)
    return (high**root + _shares(steps) * (low**root - high**root)) ** rho


def exponential(steps: int, low: float, high: float) -> Array:
    """Steps of equal length in log r, half the log-SNR."""
    return polyexponential(steps, low, high)


def polyexponential(steps: int, low: float, high: float, rho: float = 1.0) -> Array:
    """Steps of equal length in a power of log r's share."""
    return np.exp(math.log(low) + (1 - _shares(steps)) ** _positive("rho", rho) * (math.log(high) - math.log(low)))


def beta(steps: int, low: float, high: float, a: float = 0.6, b: float = 0.6) -> Array:
    """Quantiles of a Beta distribution over r (Lee et al., 2024), as diffusers has them."""
    from scipy.special import betaincinv  # slow to import, and no other grid needs it

    share = betaincinv(_positive("a", a), _positive("b", b), 1 - _shares(steps))
    return low + share * (high - low)


GRIDS: Mapping[str, Callable[..., Array]] = {
    "karras": karras,
    "exponential": exponential,
    "log_snr": exponential,
    "polyexponential": polyexponential,
    "beta": beta,
}


def make_timesteps(schedule: AnySchedule, steps: Steps = None, spacing: Spacing = None) -> NDArray:
    """The t of every row, falling, with shape (N,).

    Args:
        schedule: what the network was trained on.
        steps: how many, or another answer of `spacing`.
        spacing: a name of `SPACINGS` or `GRIDS`, a grid's name and options (``{name: karras, rho: 7}``, with
            sigma_min and sigma_max), or the levels themselves.

    Raises:
        DuetError: for a name or an option that does not exist, or numbers that do not fit.
    """
    if isinstance(spacing, Mapping):
        options = dict(spacing)
        name = options.pop("name", None)
        if name not in GRIDS:
            return _plain(schedule, steps, name) if name in SPACINGS and not options else _refuse(spacing)
    elif isinstance(spacing, str) and spacing in GRIDS:
        name, options = spacing, {}
    else:
        if isinstance(spacing, str) and spacing not in SPACINGS:
            _refuse(spacing)
        return _plain(schedule, steps, spacing)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise DuetError(f"sampler.steps: {steps!r} was given; the grid {name} takes a whole number, at least 1")
    low, high = np.exp(schedule.ends)
    high = high if low >= NOISE_ENOUGH else min(high, NOISE_ENOUGH)
    low, high = float(options.pop("sigma_min", low)), float(options.pop("sigma_max", high))
    if not 0 < low < high < math.inf:
        raise DuetError(
            f"sampler.spacing: {name} from sigma_max {high:g} to sigma_min {low:g} was given; both must be positive "
            "and finite, the first the larger"
        )
    ratios = build("sampler.spacing", GRIDS, name, options, steps, low, high)
    return schedule.t_at_log_ratio(np.log(ratios))


def _plain(schedule: AnySchedule, steps: Steps, spacing: Spacing) -> NDArray:
    """Levels of the table, or times."""
    if schedule.is_table:
        return table_timesteps(schedule.steps, steps, spacing)
    return continuous_timesteps(schedule.span, steps, spacing)


def _shares(steps: int) -> Array:
    """0 .. 1 in so many points; one point is the noisiest."""
    return np.linspace(0.0, 1.0, steps)


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise DuetError(f"sampler.spacing.{name}: {value} was given; it must be a positive number")
    return value


def _refuse(spacing: object) -> NDArray:
    raise DuetError(
        f"sampler.spacing: {spacing!r} was given; it must be one of {', '.join([*SPACINGS, *GRIDS])}, "
        "a grid's name and options, or a list of falling levels"
    )
