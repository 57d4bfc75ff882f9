r"""Noise schedules in continuous time: a law t -> (alpha, sigma) for every real t of a span, and its inverse.

    x_t = alpha_t x_0 + sigma_t eps,      eps ~ N(0, 1),      t in [t_min, t_max]

    name               alpha                                  sigma                              t
    vp_sde             exp(-B/2), B = beta_min t + beta_d t^2/2    sqrt(1 - exp(-B))             [1e-5, 1]
    ve_sde             1                                      sigma_min (sigma_max/sigma_min)^t  [0, 1]
    edm                1                                      t                                  [0.002, 80]
    cosine_continuous  cos(a)                                 sin(a), a rising evenly with t     [0, 1]
    flow_continuous    1 - t                                  t                                  [0.001, 1]

with beta_d = beta_max - beta_min. Where sigma/alpha vanishes for t -> 0, the span ends a little above it: at that end
eps could be found from no x_t. There is no table, so nothing here counts levels; what a table `schedule.Schedule` says
of its levels, this says of its two ends. To both a call gives (alpha, sigma), and `t_at_log_ratio` finds t again.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021), VP and VE SDE,
    https://arxiv.org/abs/2011.13456
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), table 1,
    https://arxiv.org/abs/2206.00364
    simple diffusion: End-to-end diffusion for high resolution images (Hoogeboom et al., 2023), the cosine between two
    log-SNR, https://arxiv.org/abs/2301.11093
    Flow Matching for Generative Modeling (Lipman et al., 2022), https://arxiv.org/abs/2210.02747
    Flow Straight and Fast (Liu et al., 2022), https://arxiv.org/abs/2209.03003
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError

__all__ = [
    "CONTINUOUS",
    "ContinuousSchedule",
    "cosine_continuous",
    "edm",
    "flow_continuous",
    "straight_line",
    "ve_sde",
    "vp_sde",
]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ContinuousSchedule:
    """A law of continuous time, from the cleanest t to the noisiest.

    Args:
        name: its name in a configuration.
        law: (alpha, sigma) at t, arrays of one shape.
        inverse: the t at which log(sigma/alpha) is given.
        span: the least and the largest t.
        curve: what of (alpha, sigma) is 1 at every t: `numpy.hypot`, `numpy.add`, or a function that gives alpha.

    Raises:
        DuetError: if the span is empty, or its ends have no noise, or not the more of it the later.
    """

    name: str
    law: Callable[[Array], tuple[Array, Array]]
    inverse: Callable[[Array], Array]
    span: tuple[float, float]
    curve: Callable[[Array, Array], Array] = np.hypot

    def __post_init__(self) -> None:
        if not (np.all(np.isfinite(self.span)) and self.span[0] < self.span[1]):
            raise DuetError(f"schedule {self.name}: t from {self.span[0]} to {self.span[1]} was given; it must rise")
        alpha, sigma = self(np.array(self.span))
        if not (np.all(np.isfinite([alpha, sigma])) and np.all(alpha >= 0) and np.all(sigma > 0)):
            raise DuetError(f"schedule {self.name}: both ends must be finite, with alpha >= 0 and sigma > 0")
        if not self.ends[0] < self.ends[1]:
            raise DuetError(f"schedule {self.name}: sigma/alpha must rise with t")

    def __call__(self, t: ArrayLike) -> tuple[Array, Array]:
        """(alpha, sigma) at the times t, in the span."""
        t = np.asarray(t, dtype=np.float64)
        low, high = self.span
        if t.size and not (t.min() >= low and t.max() <= high):
            raise DuetError(f"schedule {self.name}: t must be in {low:g}..{high:g}, not {t.ravel()[:5]}")
        return self.law(t)

    def t_at_log_ratio(self, log_ratio: ArrayLike) -> Array:
        """The t whose log(sigma/alpha) is given: the inverse of a call.

        Raises:
            DuetError: for more or less noise than the schedule has.
        """
        wanted = np.asarray(log_ratio, dtype=np.float64)
        low, high = self.ends
        slack = 1e-9 * max(1.0, abs(low), abs(high) if math.isfinite(high) else 0.0)
        if wanted.size and not (wanted.min() >= low - slack and wanted.max() <= high + slack):
            raise DuetError(
                f"schedule {self.name}: sigma/alpha {np.exp(wanted.min()):.6g} .. {np.exp(wanted.max()):.6g} was "
                f"asked for; it has {np.exp(low):.6g} .. {np.exp(high):.6g}"
            )
        return np.clip(self.inverse(wanted), *self.span)

    @cached_property
    def ends(self) -> tuple[float, float]:
        """log(sigma/alpha) at both ends of the span; inf where alpha is 0."""
        alpha, sigma = self(np.array(self.span))
        with np.errstate(divide="ignore"):
            low, high = np.log(sigma) - np.log(alpha)
        return float(low), float(high)

    @property
    def is_table(self) -> bool:
        """Whether there are levels to count; here there are none."""
        return False

    @property
    def tick(self) -> float:
        """The difference of t over which a slope is measured."""
        return 2.0**-13 * self.length

    @property
    def length(self) -> float:
        """The difference of t that is the whole time."""
        return self.span[1] - self.span[0]

    @property
    def variance_preserving(self) -> bool:
        """Whether alpha^2 + sigma^2 = 1 at every t."""
        return self.curve is np.hypot

    def even_timesteps(self, n: int) -> Array:
        """So many times from the cleanest to the noisiest; of one the cleanest."""
        return np.linspace(*self.span, n)

    def shift_log_snr(self, by: float) -> ContinuousSchedule:
        """The schedule with `by` added to its log-SNR at every t; see `schedule.with_log_snr_shift`."""

        def law(t: Array) -> tuple[Array, Array]:
            alpha, sigma = self.law(t)
            alpha = math.exp(0.5 * by) * alpha
            scale = 1.0 / self.curve(alpha, sigma)
            return scale * alpha, scale * sigma

        return ContinuousSchedule(self.name, law, lambda r: self.inverse(r + 0.5 * by), self.span, self.curve)

    def _refuse(self) -> None:
        raise DuetError(
            f"schedule {self.name}: its time is continuous, but what was asked for counts the levels of a table; "
            "use a schedule that has one, as linear, cosine or flow"
        )

    # What a table has beside all this.
    steps = alpha = sigma = log_ratio = log_snr = property(_refuse)


def _alpha(alpha: Array, sigma: Array) -> Array:
    return alpha


def vp_sde(
    beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-5, t_max: float = 1.0
) -> ContinuousSchedule:
    """The variance-preserving SDE, beta(t) on a line (Song et al., 2021): DDPM's linear schedule as T grows.

    Raises:
        DuetError: for a beta below 0, a last one of 0, or a t_min that is not positive.
    """
    slope = beta_max - beta_min
    if not (0 <= beta_min < math.inf and 0 < beta_min + slope * t_max < math.inf and t_min > 0):
        raise DuetError(
            f"schedule vp_sde: beta_min {beta_min:g}, beta_max {beta_max:g}, t from {t_min:g} to {t_max:g} were given; "
            "no beta may be below 0, the last must be above it, and t_min too"
        )

    def law(t: Array) -> tuple[Array, Array]:
        power = t * (beta_min + 0.5 * slope * t)
        return np.exp(-0.5 * power), np.sqrt(-np.expm1(-power))

    def inverse(log_ratio: Array) -> Array:
        # sigma^2/alpha^2 = exp(B) - 1; the root of the quadratic whose digits do not cancel.
        power = np.logaddexp(0.0, 2.0 * log_ratio)
        return 2.0 * power / (beta_min + np.sqrt(np.maximum(beta_min**2 + 2.0 * slope * power, 0.0)))

    return ContinuousSchedule("vp_sde", law, inverse, (t_min, t_max))


def ve_sde(sigma_min: float = 0.02, sigma_max: float = 100.0) -> ContinuousSchedule:
    """The variance-exploding SDE, sigma geometric in t (Song et al., 2021), with the range that EDM gives it.

    Raises:
        DuetError: unless 0 < sigma_min < sigma_max.
    """
    _check_range("ve_sde", sigma_min, sigma_max)
    low, step = math.log(sigma_min), math.log(sigma_max / sigma_min)

    def law(t: Array) -> tuple[Array, Array]:
        return np.ones_like(t), sigma_min * np.exp(step * t)

    return ContinuousSchedule("ve_sde", law, lambda log_ratio: (log_ratio - low) / step, (0.0, 1.0), _alpha)


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> ContinuousSchedule:
    """sigma = t on the data as they are (Karras et al., 2022, table 1).

    Raises:
        DuetError: unless 0 < sigma_min < sigma_max.
    """
    _check_range("edm", sigma_min, sigma_max)
    return ContinuousSchedule("edm", lambda t: (np.ones_like(t), t.copy()), np.exp, (sigma_min, sigma_max), _alpha)


def _check_range(name: str, sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max < math.inf:
        raise DuetError(
            f"schedule {name}: sigma_min {sigma_min:g} and sigma_max {sigma_max:g} were given; "
            "both must be positive and finite, the second the larger"
        )


def cosine_continuous(log_snr_min: float = -15.0, log_snr_max: float = 15.0) -> ContinuousSchedule:
    """The circle between two log-SNR, its angle even in t: log-SNR = -2 log tan(angle) (Hoogeboom et al., 2023).

    Raises:
        DuetError: unless -100 <= log_snr_min < log_snr_max <= 100.
    """
    if not -100 <= log_snr_min < log_snr_max <= 100:
        raise DuetError(
            f"schedule cosine_continuous: log_snr_min {log_snr_min:g} and log_snr_max {log_snr_max:g} were given; "
            "they must be in -100 .. 100, the second the larger"
        )
    low, high = math.atan(math.exp(-0.5 * log_snr_max)), math.atan(math.exp(-0.5 * log_snr_min))

    def law(t: Array) -> tuple[Array, Array]:
        angle = low + (high - low) * t
        return np.cos(angle), np.sin(angle)

    def inverse(log_ratio: Array) -> Array:
        return (np.arctan(np.exp(log_ratio)) - low) / (high - low)

    return ContinuousSchedule("cosine_continuous", law, inverse, (0.0, 1.0))


def straight_line(t: ArrayLike) -> tuple[Array, Array]:
    """The straight line of flow matching: alpha = 1 - t, sigma = t for t in [0, 1]."""
    t = np.asarray(t, dtype=np.float64)
    return 1.0 - t, t


def flow_continuous(t_min: float = 1e-3, t_max: float = 1.0) -> ContinuousSchedule:
    """`straight_line`: rectified flow, or the conditional optimal transport path (Liu et al., 2022; Lipman et al., 2022).

    Raises:
        DuetError: unless 0 < t_min < t_max <= 1.
    """
    if not 0 < t_min < t_max <= 1:
        raise DuetError(
            f"schedule flow_continuous: t_min {t_min:g} and t_max {t_max:g} were given; "
            "they must be above 0 and at most 1, the second the larger"
        )
    return ContinuousSchedule(
        "flow_continuous", straight_line, lambda log_ratio: 1.0 / (1.0 + np.exp(-log_ratio)), (t_min, t_max), np.add
    )


CONTINUOUS: dict[str, Callable[..., ContinuousSchedule]] = {
    "vp_sde": vp_sde,
    "ve_sde": ve_sde,
    "edm": edm,
    "cosine_continuous": cosine_continuous,
    "flow_continuous": flow_continuous,
}
