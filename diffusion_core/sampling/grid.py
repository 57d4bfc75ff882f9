r"""The levels of a sampler: integer timesteps of the table, times, a grid of noise levels, and the level of its end.

A grid is N values of the noise-to-signal ratio r = sigma/alpha (the sigma of EDM, where alpha = 1), from r_max down to
r_min, with u_i = i/(N-1):

    karras            (r_max^(1/rho) + u (r_min^(1/rho) - r_max^(1/rho)))^rho          rho = 7
    exponential       exp(log r_max + u (log r_min - log r_max)), that is uniform in log-SNR; also called log_snr
    polyexponential   exp(log r_min + (1 - u)^rho (log r_max - log r_min))             rho = 1: exponential
    beta              r_min + (r_max - r_min) Q(1 - u), Q the quantiles of Beta(a, b)  a = b = 0.6
    vp                r at equal distances of the t of the VP SDE                    betas 0.1 .. 20

The ends are those of the schedule unless `sigma_min` and `sigma_max` are given, but by default no grid starts above
r = 100. Beyond that almost nothing of the image is left, and steps would be wasted: the last level of the cosine table
has r = 20,000, and a level without signal has infinite r. Each r is converted to a t of the schedule, in general
between two integers, at which the network is evaluated. The values themselves may be given too, `sigmas`.

The last step leads to clean data, unless `end` names a noisy level: an r, or sigma_min, the `sigma_min` of the grid or
else the least noisy level of the schedule. N steps then lie between N + 1 levels, and the last of these is the end: a
grid has N + 1 values, linspace and leading N + 1 timesteps, and trailing N steps of equal length. Levels that are
listed one by one are kept; the last is the end if it is at its level, and otherwise the end follows.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), eq. 5 and table 1,
    https://arxiv.org/abs/2206.00364
    k-diffusion (crowsonkb/k-diffusion, k_diffusion/sampling.py), exponential and polyexponential
    Beta Sampling is All You Need (Lee et al., 2024), https://arxiv.org/abs/2407.12173
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.registry import build
from diffusion_core.diffusion.schedule import MAX_LEVELS, AnySchedule
from diffusion_core.sampling.spacing import SPACINGS, Spacing, Steps, continuous_timesteps, table_timesteps

__all__ = ["GRIDS", "Grid", "karras", "make_grid", "make_timesteps"]

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


def vp(steps: int, low: float, high: float, beta_min: float = 0.1, beta_max: float = 20.0) -> Array:
    """Return the ratios of the VP SDE at equal distances of its t (Karras et al., table 1)."""
    slope = beta_max - beta_min
    if not (beta_min >= 0 and 0 < slope < math.inf):
        raise DuetError(f"sampler.spacing: beta_min {beta_min} and beta_max {beta_max} were given; they must rise")
    # log(1 + r^2) = beta_min t + slope t^2/2.
    most, least = (np.sqrt(beta_min**2 + 2 * slope * np.log1p(r**2)) - beta_min for r in (high, low))
    t = (most + _fractions(steps) * (least - most)) / slope
    return np.sqrt(np.expm1(t * (beta_min + slope * t / 2)))


GRIDS: Mapping[str, Callable[..., Array]] = {
    "karras": karras,
    "exponential": exponential,
    "log_snr": exponential,
    "polyexponential": polyexponential,
    "beta": beta,
    "vp": vp,
}


class Grid(NamedTuple):
    """Where the steps of a sampler start, and where the last one ends; ``plan_levels(process, *grid)`` has its levels.

    Args:
        t: the t at which each step starts, decreasing, with shape (N,).
        end: the t at which the last step ends; None for clean data.
    """

    t: NDArray
    end: float | None = None

    @property
    def points(self) -> NDArray:
        """The t of every noisy level: of the steps and of a noisy end, with shape (N,) or (N+1,)."""
        return self.t if self.end is None else np.append(self.t, self.end)

    @property
    def targets(self) -> NDArray[np.float64]:
        """The t to which each step leads, NaN for clean data, with shape (N,)."""
        return np.append(self.t[1:], np.nan if self.end is None else self.end)


def make_timesteps(schedule: AnySchedule, steps: Steps = None, spacing: Spacing = None) -> NDArray:
    """Return the t at which each step starts, decreasing, with shape (N,), for a sampler that cannot end at noise.

    See `make_grid` for the arguments.

    Raises:
        DuetError: for an unknown name or option, numbers that are out of range, or a noisy end.

    Example:
        >>> from diffusion_core.diffusion.schedule import linear
        >>> make_timesteps(linear(), 4, "trailing").tolist()
        [999, 749, 499, 249]
        >>> make_timesteps(linear(), 4, {"name": "karras", "sigma_max": 80.0}).round(1).tolist()
        [929.6, 695.0, 217.3, 0.0]
    """
    grid = make_grid(schedule, steps, spacing)
    if grid.end is not None:
        raise DuetError("sampler.end: a noisy level was given; this sampler takes none, so use end=null")
    return grid.t


def make_grid(schedule: AnySchedule, steps: Steps = None, spacing: Spacing = None) -> Grid:
    """Return the t at which the steps start and the last one ends.

    Args:
        schedule: the schedule that the network was trained on.
        steps: number of steps, or another form of `spacing`.
        spacing: a name of `SPACINGS` or `GRIDS`; the timesteps themselves; or a mapping of one of name, timesteps and
            sigmas, with the options of a grid (``{name: karras, rho: 7}``, with sigma_min and sigma_max) and an end
            (``{sigmas: [80, 5, 0.3], end: 0.02}``).

    Raises:
        DuetError: for an unknown name or option, or numbers that are out of range.

    Example:
        >>> from diffusion_core.diffusion.schedule import linear
        >>> make_grid(linear(), 3, {"name": "linspace", "end": "sigma_min"})
        Grid(t=array([999, 666, 333]), end=0.0)
        >>> make_grid(linear(), None, {"sigmas": [10.0, 1.0, 0.1, 0.0]}).t.round(1).tolist()
        [673.7, 258.1, 26.4]
    """
    options = dict(spacing) if isinstance(spacing, Mapping) else {"name": spacing}
    if not options:
        raise DuetError("sampler.spacing: {} was given; it must be a name, as in {name: karras}, or null")
    end = options.pop("end", None)
    if "sigmas" in options or "timesteps" in options:
        if len(options) > 1:
            raise DuetError(f"sampler.spacing: {spacing!r} was given; it must have one of name, timesteps and sigmas")
        if "sigmas" in options:
            t = _of_sigmas(schedule, steps, options["sigmas"], end)
        else:
            t = _without_grid(schedule, steps, options["timesteps"])
        return _until(schedule, t, _end(schedule, end))
    name = options.pop("name", None)
    if isinstance(name, str) and name in GRIDS:
        return _of_ratios(schedule, steps, name, options, end)
    if options or (isinstance(spacing, Mapping) and name not in (None, *SPACINGS)):
        _refuse(spacing)
    if isinstance(name, str) and name not in SPACINGS:
        _refuse(spacing)
    t_end = _end(schedule, end)
    return _until(schedule, _without_grid(schedule, steps, name, t_end), t_end)


def _of_ratios(
    schedule: AnySchedule, steps: Steps, name: str, options: dict[str, Any], end: float | str | None
) -> Grid:
    """Return a grid of noise levels."""
    if isinstance(steps, bool) or not isinstance(steps, Integral) or not 1 <= steps <= MAX_LEVELS:
        raise DuetError(
            f"sampler.steps: {steps!r} was given; the grid {name} takes a whole number, at least 1 and at most "
            f"{MAX_LEVELS}"
        )
    least, most = np.exp(schedule.log_ratio_range)
    most = most if least >= MAX_RATIO else min(most, MAX_RATIO)
    if isinstance(end, str) and end == "sigma_min" and "sigma_min" in options:
        end = options["sigma_min"]
    t_end = _end(schedule, end)
    # Without a sigma_min of its own a grid reaches down to its end, and then one level more than steps.
    reaches = t_end is not None and options.get("sigma_min", end) == end
    if reaches and isinstance(end, Real):
        least = max(float(end), float(least))
    low, high = float(options.pop("sigma_min", least)), float(options.pop("sigma_max", most))
    if not 0 < low < high < math.inf:
        raise DuetError(
            f"sampler.spacing: {name} from sigma_max {high:g} to sigma_min {low:g} was given; both must be positive "
            "and finite, the first the larger"
        )
    ratios = build("sampler.spacing", GRIDS, name, options, int(steps) + reaches, low, high)
    t = schedule.t_at_log_ratio(np.log(ratios))
    return Grid(t[:-1], t_end) if reaches else _until(schedule, t, t_end)


def _of_sigmas(schedule: AnySchedule, steps: Steps, sigmas: object, end: object) -> NDArray:
    """Return the t of a list of sigma/alpha, which may end in 0, clean data."""
    try:
        ratios = np.asarray(sigmas, dtype=np.float64)
    except (TypeError, ValueError):
        ratios = np.zeros(0)
    fits = ratios.ndim == 1 and ratios.size > 0 and np.all(np.isfinite(ratios)) and np.all(np.diff(ratios) < 0)
    if not fits or ratios[0] <= 0 or ratios[-1] < 0:
        raise DuetError(
            f"sampler.sigmas: {sigmas!r} was given; it must be a list of decreasing sigma/alpha above 0, as "
            "[80, 10, 1, 0.1]; a last 0 stands for clean data"
        )
    if ratios[-1] == 0:
        if end not in (None, 0):
            raise DuetError(
                f"sampler.end: {end!r} was given with sigmas that end in 0, clean data; leave out one of them"
            )
        ratios = ratios[:-1]
    if steps is not None and steps != len(ratios):
        raise DuetError(f"sampler.steps: {steps} was given with {len(ratios)} sigmas above 0; use steps=null")
    low, high = np.exp(schedule.log_ratio_range)
    # As far beyond the ends as float32 rounds is at the ends.
    if not (low * (1 - 1e-6) <= ratios[-1] and ratios[0] <= high * (1 + 1e-6)):
        raise DuetError(
            f"sampler.sigmas: {ratios[0]:g} .. {ratios[-1]:g} was given; the schedule has sigma/alpha {high:.6g} .. "
            f"{low:.6g}"
        )
    return schedule.t_at_log_ratio(np.clip(np.log(ratios), *schedule.log_ratio_range))


def _end(schedule: AnySchedule, end: float | str | None) -> float | None:
    """Return the t of the level at which the last step ends; None for clean data."""
    if end is None or (isinstance(end, Real) and not isinstance(end, bool) and end == 0):
        return None
    low, high = np.exp(schedule.log_ratio_range)
    if isinstance(end, str) and end == "sigma_min":
        return float(schedule.t_at_log_ratio(schedule.log_ratio_range[0]))
    if isinstance(end, bool) or not isinstance(end, Real) or not low * (1 - 1e-6) <= end < high:
        raise DuetError(
            f"sampler.end: {end!r} was given; it must be a sigma/alpha of the schedule, {low:.6g} .. {high:.6g}, or "
            "sigma_min for the least noisy one, or null for clean data"
        )
    return float(schedule.t_at_log_ratio(max(math.log(end), schedule.log_ratio_range[0])))


def _until(schedule: AnySchedule, t: NDArray, t_end: float | None) -> Grid:
    """Return the levels down to an end; the last of them is the end if it has the same t."""
    if t_end is None:
        return Grid(t)
    if np.isclose(t[-1], t_end, rtol=1e-9, atol=1e-12):
        t = t[:-1]
    if not len(t) or t[-1] <= t_end:
        alpha, sigma = schedule(t[-1] if len(t) else t_end)
        alpha_end, sigma_end = schedule(t_end)
        raise DuetError(
            f"sampler.end: sigma/alpha {sigma_end / alpha_end:.6g} was given, but a step starts at "
            f"{sigma / alpha:.6g}; give a lower end, or fewer or noisier steps"
        )
    return Grid(t, t_end)


def _without_grid(schedule: AnySchedule, steps: Steps, spacing: Spacing, t_end: float | None = None) -> NDArray:
    """Return timesteps of the table, or times."""
    if schedule.is_table:
        return table_timesteps(schedule.steps, steps, spacing, t_end)
    return continuous_timesteps(schedule.span, steps, spacing, t_end)


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
