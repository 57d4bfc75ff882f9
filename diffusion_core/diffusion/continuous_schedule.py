r"""A schedule in continuous time: (alpha, sigma) for every real t of a span, its inverse and its derivatives.

The derivatives by t follow from one function, the Wronskian w = alpha sigma' - sigma alpha' > 0, since each schedule
preserves a norm:

    alpha^2 + sigma^2 = 1    alpha' = -sigma w,    sigma' = alpha w
    a alpha + sigma/k = 1    alpha' = -w/k,        sigma' = a w        k = noise_scale, a = 1 - s, otherwise 1
    alpha = 1                alpha' = 0,           sigma' = w

If the log-SNR is shifted by s, with k = exp(s/2), then w becomes k w / norm(k alpha, sigma)^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.plot import plot_schedule

__all__ = [
    "Array",
    "ContinuousSchedule",
    "ScaledSum",
    "alpha_norm",
    "sum_scale",
    "sum_signal",
]


Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ContinuousSchedule:
    """A noise schedule in continuous time, from the least noisy t to the noisiest.

    Args:
        name: the name in a configuration.
        alpha_sigma: the function that returns (alpha, sigma) at t, both with the shape of t.
        inverse: the function that returns the t at which log(sigma/alpha) has a value.
        span: the smallest and the largest t.
        norm: the function of (alpha, sigma) that is 1 at every t: `numpy.hypot`, `numpy.add`, a `ScaledSum`, or one
            that returns alpha.
        wronskian_at: the function that returns alpha sigma' - sigma alpha' at t, with the shape of t; only prediction
            velocity needs it.
        options: the name and the options of `schedule.make_schedule` that made it; None if something else did.

    Raises:
        DuetError: if the span is empty, an end has no noise, or the noise does not increase with t.

    Example:
        >>> from diffusion_core.diffusion.continuous import vp_sde
        >>> schedule = vp_sde()
        >>> schedule
        ContinuousSchedule('vp_sde', t=1e-05..1)
        >>> alpha, sigma = schedule([0.25, 0.5])
        >>> (alpha**2 + sigma**2).round(12).tolist()
        [1.0, 1.0]
        >>> schedule.t_at_log_ratio(np.log(sigma / alpha)).round(6).tolist()
        [0.25, 0.5]
    """

    name: str
    alpha_sigma: Callable[[Array], tuple[Array, Array]]
    inverse: Callable[[Array], Array]
    span: tuple[float, float]
    norm: Callable[[Array, Array], Array] = np.hypot
    wronskian_at: Callable[[Array], Array] | None = None
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not (np.all(np.isfinite(self.span)) and self.span[0] < self.span[1]):
            raise DuetError(f"schedule {self.name}: t from {self.span[0]} to {self.span[1]} was given; it must rise")
        alpha, sigma = self(np.array(self.span))
        if not (np.all(np.isfinite([alpha, sigma])) and np.all(alpha >= 0) and np.all(sigma > 0)):
            raise DuetError(f"schedule {self.name}: both ends must be finite, with alpha >= 0 and sigma > 0")
        if not self.log_ratio_range[0] < self.log_ratio_range[1]:
            raise DuetError(f"schedule {self.name}: sigma/alpha must rise with t")

    def __repr__(self) -> str:
        return f"ContinuousSchedule({self.name!r}, t={self.span[0]:g}..{self.span[1]:g})"

    def __call__(self, t: ArrayLike) -> tuple[Array, Array]:
        """Return (alpha, sigma) at the times t, which must lie in the span, both with the shape of t."""
        return self.alpha_sigma(self._inside(t))

    def _inside(self, t: ArrayLike) -> Array:
        t = np.asarray(t, dtype=np.float64)
        low, high = self.span
        if t.size and not (t.min() >= low and t.max() <= high):
            raise DuetError(f"schedule {self.name}: t must be in {low:g}..{high:g}, not {t.ravel()[:5]}")
        return t

    def wronskian(self, t: ArrayLike) -> Array:
        """Return alpha sigma' - sigma alpha' at the times t, with the shape of t."""
        if self.wronskian_at is None:
            raise DuetError(f"schedule {self.name}: its derivatives are unknown; give wronskian_at")
        return np.asarray(self.wronskian_at(self._inside(t)), np.float64)

    def rates(self, t: ArrayLike) -> tuple[Array, Array]:
        """Return the derivatives (alpha', sigma') at the times t, both with the shape of t."""
        (alpha, sigma), w = self(t), self.wronskian(t)
        if self.norm is np.hypot:
            return -sigma * w, alpha * w
        if (scale := sum_scale(self.norm)) is None:
            return np.zeros_like(w), w
        return -w / scale, sum_signal(self.norm) * w

    def t_at_log_ratio(self, log_ratio: ArrayLike) -> Array:
        """Return the t at which log(sigma/alpha) has these values: the inverse of a call.

        Raises:
            DuetError: for more or less noise than the schedule has.
        """
        wanted = np.asarray(log_ratio, dtype=np.float64)
        low, high = self.log_ratio_range
        slack = 1e-9 * max(1.0, abs(low), abs(high) if math.isfinite(high) else 0.0)
        if wanted.size and not (wanted.min() >= low - slack and wanted.max() <= high + slack):
            raise DuetError(
                f"schedule {self.name}: sigma/alpha {np.exp(wanted.min()):.6g} .. {np.exp(wanted.max()):.6g} was "
                f"given; the schedule has {np.exp(low):.6g} .. {np.exp(high):.6g}"
            )
        return np.clip(self.inverse(wanted), *self.span)

    @cached_property
    def log_ratio_range(self) -> tuple[float, float]:
        """The smallest and the largest log(sigma/alpha); inf where alpha is 0."""
        alpha, sigma = self(np.array(self.span))
        with np.errstate(divide="ignore"):
            low, high = np.log(sigma) - np.log(alpha)
        return float(low), float(high)

    def plot(self, axes: Any = None) -> Any:
        """Draw alpha, sigma and the log-SNR over t with matplotlib; return the axes. See `plot.plot_schedule`."""
        return plot_schedule(self, axes)

    @property
    def is_table(self) -> bool:
        """Whether the schedule is a table of timesteps: no."""
        return False

    @property
    def difference_step(self) -> float:
        """The difference of t for numerical derivatives."""
        return 2.0**-13 * self.length

    @property
    def length(self) -> float:
        """The length of the span."""
        return self.span[1] - self.span[0]

    @property
    def variance_preserving(self) -> bool:
        """Whether alpha^2 + sigma^2 = 1 at every t."""
        return self.norm is np.hypot

    def even_timesteps(self, n: int) -> Array:
        """Return n times at equal distances from the least noisy to the noisiest; for n = 1 the least noisy."""
        return np.linspace(*self.span, n)

    def shift_log_snr(self, by: float) -> ContinuousSchedule:
        """Return the schedule with `by` added to its log-SNR at every t; see `schedule.with_log_snr_shift`."""

        factor = math.exp(0.5 * by)

        def alpha_sigma(t: Array) -> tuple[Array, Array]:
            alpha, sigma = self.alpha_sigma(t)
            scale = 1.0 / self.norm(factor * alpha, sigma)
            return scale * (factor * alpha), scale * sigma

        def wronskian(t: Array) -> Array:
            alpha, sigma = self.alpha_sigma(t)
            assert self.wronskian_at is not None
            return factor * self.wronskian_at(t) / self.norm(factor * alpha, sigma) ** 2

        return ContinuousSchedule(
            self.name,
            alpha_sigma,
            lambda r: self.inverse(r + 0.5 * by),
            self.span,
            self.norm,
            wronskian if self.wronskian_at else None,
        )

    def network_t(self, t: ArrayLike) -> Array:
        """Return the times that the network receives at t: t itself."""
        return np.asarray(t)

    def respaced(self, kept: NDArray) -> ContinuousSchedule:
        """Raise an error: there are no levels to keep."""
        self._refuse()
        return self

    def _refuse(self) -> None:
        raise DuetError(
            f"schedule {self.name}: its time is continuous, but the timesteps of a table are needed here; "
            "use a schedule that is a table, such as linear, cosine or flow"
        )

    # The properties of a table.
    steps = alpha = sigma = timesteps = log_ratio = log_snr = snr = alphas_cumprod = betas = property(_refuse)


def alpha_norm(alpha: Array, sigma: Array) -> Array:
    """Return the norm that a schedule with alpha = 1 preserves."""
    return alpha


@dataclass(frozen=True)
class ScaledSum:
    """The norm signal alpha + sigma / scale."""

    scale: float
    signal: float = 1.0

    def __call__(self, alpha: Array, sigma: Array) -> Array:
        """Return signal alpha + sigma / scale."""
        return self.signal * alpha + sigma / self.scale


def sum_scale(norm: Callable[[Array, Array], Array]) -> float | None:
    """Return the k of a norm a alpha + sigma / k; None for any other norm."""
    if isinstance(norm, ScaledSum):
        return norm.scale
    return 1.0 if norm is np.add else None


def sum_signal(norm: Callable[[Array, Array], Array]) -> float:
    """Return the a of a norm a alpha + sigma / k."""
    return norm.signal if isinstance(norm, ScaledSum) else 1.0
