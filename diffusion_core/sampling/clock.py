r"""Steps in a time of one's own: the probability-flow ODE for any noise level r(t) and scale s(t), EDM's algorithm 1.

With y = x/alpha, r = sigma/alpha and X = s y, for any function r(t) and any scale s(t),

    dX/dt = (r'/r + s'/s) X - (r' s/r) D

Its exact solutions are the same for every t and s, but Euler's and Heun's steps are not: they are straight in t. As
functions of l = log r, with t' = dt/dl and g = d(log s)/dl, this is

    dX/dt = ((1 + g) X - s D) / t'

    name     t                                                       s                    clean data
    ratio    r                                                       1                    t = 0
    ve       r^2                                                     1                    t = 0
    vp       (sqrt(b^2 + 2 d log(1 + r^2)) - b)/d, b = beta_min,     1/sqrt(1 + r^2)      t = 0
             d = beta_max - b
    t        the process's own, of a continuous schedule             its alpha            where its t leads to r = 0

`ratio` is EDM's choice, and the steps of `steps`; ve and vp are the VE and VP rows of its table 1, and with Euler's
steps the samplers of Song et al. An exact D does not lead exactly from level to level: the path of x is not straight
in t. The own t of `ve_sde` has no clean data, so it needs a noisy `end`.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), table 1 and algorithm 1,
    https://arxiv.org/abs/2206.00364
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
    https://arxiv.org/abs/2011.13456
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.common.registry import build
from diffusion_core.diffusion.continuous_schedule import ContinuousSchedule, sum_scale, sum_signal
from diffusion_core.diffusion.schedule import AnySchedule
from diffusion_core.sampling.recurrence import Coefficients

__all__ = ["CLOCKS", "Clock", "ClockSteps", "Variable", "between", "make_clock"]

Array = NDArray[np.float64]
# The name of a clock, or a mapping of the name and options, as in ``{name: vp, beta_max: 20}``.
Variable = str | Mapping[str, object]
Pair = tuple[Array, Array]

# Central differences of eighth order: weights of f(l + k h) - f(l - k h) for k = 1 .. 4, over h.
_DIFFERENCES = np.array([4 / 5, -1 / 5, 4 / 105, -1 / 280])
_STEP = 0.02


@dataclass(frozen=True, eq=False)
class Clock:
    """A time and a scale as functions of l = log r.

    Args:
        name: for errors.
        time: returns (t, dt/dl).
        scale: returns (s, d(log s)/dl).
        log_ratio: returns the l of a time.
    """

    name: str
    time: Callable[[Array], Pair]
    scale: Callable[[Array], Pair]
    log_ratio: Callable[[Array], Array]


def _no_scale(log_ratio: Array) -> Pair:
    return np.ones_like(log_ratio), np.zeros_like(log_ratio)


def _vp_scale(log_ratio: Array) -> Pair:
    """Return that of alpha^2 + sigma^2 = 1."""
    square = np.exp(2 * log_ratio)
    return 1 / np.sqrt(1 + square), -square / (1 + square)


def _flow_scale(noise_scale: float, signal: float, log_ratio: Array) -> Pair:
    """Return that of signal alpha + sigma / noise_scale = 1."""
    ratio = np.exp(log_ratio) / noise_scale
    return 1 / (signal + ratio), -ratio / (signal + ratio)


def ve() -> Clock:
    """Return the time r^2, in which the variance-exploding noise of EDM grows evenly."""
    return Clock("ve", lambda at: (np.exp(2 * at), 2 * np.exp(2 * at)), _no_scale, lambda t: np.log(t) / 2)


def vp(beta_min: float = 0.1, beta_max: float = 20.0) -> Clock:
    """Return time and scale of the variance-preserving SDE with betas on a line.

    Raises:
        DuetError: unless 0 <= beta_min < beta_max.
    """
    slope = beta_max - beta_min
    if not (beta_min >= 0 and 0 < slope < math.inf):
        raise DuetError(f"sampler.variable: beta_min {beta_min} and beta_max {beta_max} were given; they must rise")

    def time(at: Array) -> Pair:
        power = np.logaddexp(0.0, 2 * at)
        root = np.sqrt(beta_min**2 + 2 * slope * power)
        # (root - beta_min)/slope without cancellation, 0 at clean data; d(power)/dl = 2 r^2/(1 + r^2).
        with np.errstate(invalid="ignore"):
            return np.where(power > 0, 2 * power / (root + beta_min), 0.0), -2 * np.expm1(-power) / root

    return Clock("vp", time, _vp_scale, lambda t: np.log(np.expm1(t * (beta_min + slope * t / 2))) / 2)


CLOCKS: Mapping[str, Callable[..., Clock]] = {"vp": vp, "ve": ve}
NAMES = ("ratio", "t", *CLOCKS)


def make_clock(schedule: AnySchedule, variable: Variable) -> Clock | None:
    """Return a clock by name; None for ratio, in which steps need none.

    Args:
        schedule: of the process, whose own time is the clock ``t``.
        variable: one of ratio, t, vp and ve, or a mapping with the name and the options of vp.

    Raises:
        DuetError: for an unknown name or option, or the own time of a table.
    """
    options = dict(variable) if isinstance(variable, Mapping) else {"name": variable}
    name = options.pop("name", None)
    if name not in NAMES or (options and name not in CLOCKS):
        raise one_of("sampler.variable", name if name not in NAMES else str(variable), NAMES)
    if name == "ratio":
        return None
    if name == "t":
        return _own(schedule)
    return build("sampler.variable", CLOCKS, name, options)


def _own(schedule: AnySchedule) -> Clock:
    """Return the time and the scale of a schedule on continuous time."""
    if not isinstance(schedule, ContinuousSchedule):
        raise DuetError(
            f"sampler.variable: t was given for the schedule {schedule.name}, a table, between whose timesteps there "
            "is no time; use vp, ve or ratio, or a continuous schedule such as vp_sde"
        )

    def time(at: Array) -> Pair:
        steps = _STEP * np.arange(1, 5)
        with np.errstate(invalid="ignore"):  # at clean data, whose l is infinite
            ahead, behind = (schedule.inverse(at[:, None] + sign * steps) for sign in (1, -1))
            return schedule.inverse(at), (ahead - behind) @ _DIFFERENCES / _STEP

    noise_scale = sum_scale(schedule.norm)
    scale = _vp_scale if schedule.norm is np.hypot else _no_scale
    scale = scale if noise_scale is None else partial(_flow_scale, noise_scale, sum_signal(schedule.norm))
    return Clock("t", time, scale, lambda t: _log_ratio(schedule, t))


def between(clock: Clock | None, start: Array, end: Array, part: float) -> Array:
    """Return the l at this part of the way from the l `start` to `end`, in the time of a clock, or in r for None."""
    if clock is None:
        return np.log((1 - part) * np.exp(start) + part * np.exp(end))
    return clock.log_ratio((1 - part) * clock.time(start)[0] + part * clock.time(end)[0])


def _log_ratio(schedule: AnySchedule, t: Array) -> Array:
    alpha, sigma = schedule(t)
    return np.log(sigma) - np.log(alpha)


class ClockSteps:
    """Steps from the levels of a plan, straight in the time of a clock; see `steps.one_step_plan`.

    Args:
        clock: the time and the scale.
        alpha: signal scale of every row, with shape (N,).
        sigma: noise scale of every row, with shape (N,).

    Raises:
        DuetError: if clean data is needed and has no time.
    """

    def __init__(self, clock: Clock, alpha: Array, sigma: Array) -> None:
        self.clock, self.alpha = clock, alpha
        self._t, self._rate, self._s, self._g = self._at(alpha, sigma)

    def _at(self, alpha: ArrayLike, sigma: ArrayLike) -> tuple[Array, Array, Array, Array]:
        with np.errstate(divide="ignore"):
            at = np.atleast_1d(np.log(sigma) - np.log(alpha))
        (t, rate), (s, g) = self.clock.time(at), self.clock.scale(at)
        if not np.all(np.isfinite(t)):
            raise DuetError(
                f"sampler.variable: {self.clock.name} was given; clean data has no time of it, so end at a noisy "
                "level, as with sampler.end=sigma_min, or use ve, vp or ratio"
            )
        return t, rate, s, g

    def _slope(self, i: int, x: Coefficients, D: Coefficients) -> Coefficients:
        """Return dX/dt at level i."""
        return ((1 + self._g[i]) * self._s[i] / self.alpha[i] * x - self._s[i] * D) / self._rate[i]

    def move(
        self, i: int, alpha: float, sigma: float, x: Coefficients, D: Coefficients, part: float = 1.0
    ) -> Coefficients:
        """Return x at the level (alpha, sigma), after this part of the step from level i by the slope there."""
        t, _, s, _ = (float(value[0]) for value in self._at(alpha, sigma))
        return (self._s[i] / self.alpha[i] * x + part * (t - self._t[i]) * self._slope(i, x, D)) * alpha / s

    def add(self, i: int, start: int, alpha: float, sigma: float, x: Coefficients, D: Coefficients) -> Coefficients:
        """Return what the slope at level i adds on the whole way from the level `start` to (alpha, sigma)."""
        t, _, s, _ = (float(value[0]) for value in self._at(alpha, sigma))
        return (t - self._t[start]) * self._slope(i, x, D) * alpha / s
