r"""Noise schedules in continuous time: a function t -> (alpha, sigma) for every real t of a span, and its inverse.

    x_t = alpha_t x_0 + sigma_t eps,      eps ~ N(0, 1),      t in [t_min, t_max]

    name               alpha                                  sigma                              t
    vp_sde             exp(-B/2), B = beta_min t + beta_d t^2/2    sqrt(1 - exp(-B))             [1e-5, 1]
    ve_sde             1                                      sigma_min (sigma_max/sigma_min)^t  [0, 1]
    edm                1                                      t                                  [0.002, 80]
    cosine_continuous  cos(a)                                 sin(a), a rising evenly with t     [0, 1]
    flow_continuous    1 - t                                  noise_scale (s + (1 - s) t)        [0.001, 1]
    linear_vp          1 - t                                  sqrt(t (2 - t))                    [0.001, 1]
    polynomial         (1 - t)^n, or 1 - sigma                1 - alpha, or t^n                  [0.001, 1]

with beta_d = beta_max - beta_min, and s = sigma_min, 0 by default. Where sigma/alpha vanishes for t -> 0, the span ends
slightly above 0, as x_t without noise does not determine eps. There is no table, and so no number of timesteps. Calling
a schedule returns (alpha, sigma), and `t_at_log_ratio` inverts the call, as for a table, `schedule.Schedule`.

The derivatives by t follow from one function, the Wronskian w = alpha sigma' - sigma alpha' > 0, since each schedule
preserves a norm:

    alpha^2 + sigma^2 = 1    alpha' = -sigma w,    sigma' = alpha w
    a alpha + sigma/k = 1    alpha' = -w/k,        sigma' = a w        k = noise_scale, a = 1 - s, otherwise 1
    alpha = 1                alpha' = 0,           sigma' = w

If the log-SNR is shifted by s, with k = exp(s/2), then w becomes k w / norm(k alpha, sigma)^2.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021), VP and VE SDE,
    https://arxiv.org/abs/2011.13456
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), table 1,
    https://arxiv.org/abs/2206.00364
    simple diffusion: End-to-end diffusion for high resolution images (Hoogeboom et al., 2023), the cosine between two
    log-SNR, https://arxiv.org/abs/2301.11093
    Flow Matching for Generative Modeling (Lipman et al., 2022), https://arxiv.org/abs/2210.02747
    Flow Straight and Fast (Liu et al., 2022), https://arxiv.org/abs/2209.03003
    Flow Matching Guide and Code (Lipman et al., 2024), section 4.8, linear_vp and polynomial,
    https://arxiv.org/abs/2412.06264
    SiT: Exploring Flow and Diffusion-based Generative Models with Scalable Interpolant Transformers (Ma et al., 2024),
    the velocity of interpolants, https://arxiv.org/abs/2401.08740
    Back to Basics: Let Denoising Generative Models Denoise (Li & He, 2025), noise_scale, https://arxiv.org/abs/2511.13720
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.diffusion.plot import plot_schedule

__all__ = [
    "CONTINUOUS",
    "ContinuousSchedule",
    "ScaledSum",
    "cosine_continuous",
    "edm",
    "flow_continuous",
    "linear_vp",
    "polynomial",
    "straight_line",
    "sum_scale",
    "sum_signal",
    "ve_sde",
    "vp_sde",
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


def _alpha_norm(alpha: Array, sigma: Array) -> Array:
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


def vp_sde(
    beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-5, t_max: float = 1.0
) -> ContinuousSchedule:
    """Return the variance-preserving SDE, beta(t) on a line (Song et al., 2021): DDPM's linear schedule for large T.

    Raises:
        DuetError: for a negative beta, a last beta of 0, or a t_min that is not positive.
    """
    slope = beta_max - beta_min
    if not (0 <= beta_min < math.inf and 0 < beta_min + slope * t_max < math.inf and t_min > 0):
        raise DuetError(
            f"schedule vp_sde: beta_min {beta_min:g}, beta_max {beta_max:g}, t from {t_min:g} to {t_max:g} were given; "
            "no beta may be negative, and the last beta and t_min must be positive"
        )

    def alpha_sigma(t: Array) -> tuple[Array, Array]:
        power = t * (beta_min + 0.5 * slope * t)
        return np.exp(-0.5 * power), np.sqrt(-np.expm1(-power))

    def inverse(log_ratio: Array) -> Array:
        # sigma^2/alpha^2 = exp(B) - 1. Of the two forms of the quadratic's root, this is the one without cancellation.
        power = np.logaddexp(0.0, 2.0 * log_ratio)
        return 2.0 * power / (beta_min + np.sqrt(np.maximum(beta_min**2 + 2.0 * slope * power, 0.0)))

    def wronskian(t: Array) -> Array:
        alpha, sigma = alpha_sigma(t)
        return 0.5 * (beta_min + slope * t) * alpha / sigma

    return ContinuousSchedule("vp_sde", alpha_sigma, inverse, (t_min, t_max), wronskian_at=wronskian)


def ve_sde(sigma_min: float = 0.02, sigma_max: float = 100.0) -> ContinuousSchedule:
    """Return the variance-exploding SDE, sigma geometric in t (Song et al., 2021), with its range in EDM.

    Raises:
        DuetError: unless 0 < sigma_min < sigma_max.
    """
    _check_range("ve_sde", sigma_min, sigma_max)
    low, step = math.log(sigma_min), math.log(sigma_max / sigma_min)

    def alpha_sigma(t: Array) -> tuple[Array, Array]:
        return np.ones_like(t), sigma_min * np.exp(step * t)

    return ContinuousSchedule(
        "ve_sde",
        alpha_sigma,
        lambda log_ratio: (log_ratio - low) / step,
        (0.0, 1.0),
        _alpha_norm,
        lambda t: step * alpha_sigma(t)[1],
    )


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> ContinuousSchedule:
    """Return the schedule alpha = 1, sigma = t of EDM (Karras et al., 2022, table 1).

    Raises:
        DuetError: unless 0 < sigma_min < sigma_max.
    """
    _check_range("edm", sigma_min, sigma_max)
    return ContinuousSchedule(
        "edm", lambda t: (np.ones_like(t), t.copy()), np.exp, (sigma_min, sigma_max), _alpha_norm, np.ones_like
    )


def _check_range(name: str, sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max < math.inf:
        raise DuetError(
            f"schedule {name}: sigma_min {sigma_min:g} and sigma_max {sigma_max:g} were given; "
            "both must be positive and finite, the second the larger"
        )


def cosine_continuous(
    log_snr_min: float = -15.0, log_snr_max: float = 15.0, t_min: float = 0.0, t_max: float = 1.0
) -> ContinuousSchedule:
    """Return the cosine schedule between two log-SNR: log-SNR = -2 log tan(angle), the angle linear in t.

    See Hoogeboom et al., 2023. Between -100 and 100 the angle is pi t/2 up to rounding, the path GVP of SiT.

    Args:
        log_snr_min: log-SNR at t = 1.
        log_snr_max: log-SNR at t = 0.
        t_min: the least noisy t.
        t_max: the noisiest t.

    Raises:
        DuetError: unless -100 <= log_snr_min < log_snr_max <= 100 and 0 <= t_min < t_max <= 1.
    """
    if not -100 <= log_snr_min < log_snr_max <= 100:
        raise DuetError(
            f"schedule cosine_continuous: log_snr_min {log_snr_min:g} and log_snr_max {log_snr_max:g} were given; "
            "they must be in -100 .. 100, the second the larger"
        )
    if not 0 <= t_min < t_max <= 1:
        raise DuetError(
            f"schedule cosine_continuous: t_min {t_min:g} and t_max {t_max:g} were given; they must be 0 to 1, the "
            "second the larger"
        )
    low, high = math.atan(math.exp(-0.5 * log_snr_max)), math.atan(math.exp(-0.5 * log_snr_min))

    def alpha_sigma(t: Array) -> tuple[Array, Array]:
        angle = low + (high - low) * t
        return np.cos(angle), np.sin(angle)

    def inverse(log_ratio: Array) -> Array:
        return (np.arctan(np.exp(log_ratio)) - low) / (high - low)

    return ContinuousSchedule(
        "cosine_continuous", alpha_sigma, inverse, (t_min, t_max), wronskian_at=lambda t: np.full_like(t, high - low)
    )


def straight_line(t: ArrayLike) -> tuple[Array, Array]:
    """Return alpha = 1 - t and sigma = t, the straight line of flow matching, for t in [0, 1]."""
    t = np.asarray(t, dtype=np.float64)
    return 1.0 - t, t


def flow_continuous(
    t_min: float = 1e-3, t_max: float = 1.0, noise_scale: float = 1.0, sigma_min: float = 0.0
) -> ContinuousSchedule:
    """Return the schedule of `straight_line`: rectified flow, or the conditional optimal transport path.

    See Liu et al., 2022; Lipman et al., 2022.

    Args:
        t_min: the least noisy t.
        t_max: the noisiest t.
        noise_scale: standard deviation of x_t at t = 1; images of twice the size have about the same signal-to-noise
            ratio with 2 (Li & He, 2025).
        sigma_min: standard deviation of the noise that is left at t = 0, relative to noise_scale, as in Lipman et al.,
            eq. 20; with it t_min may be 0.

    Raises:
        DuetError: unless 0 < t_min < t_max <= 1, for a noise_scale that is not positive, or a sigma_min outside [0, 1).
    """
    if not 0 <= sigma_min < 1:
        raise DuetError(f"schedule.sigma_min: {sigma_min} was given; it must be at least 0 and below 1")
    if not (sigma_min and t_min == 0 and 0 < t_max <= 1):
        _check_times("flow_continuous", t_min, t_max)
    if not 0 < noise_scale < math.inf:
        raise DuetError(f"schedule.noise_scale: {noise_scale} was given; it must be a positive number")
    if noise_scale == 1 and not sigma_min:
        return ContinuousSchedule("flow_continuous", straight_line, _logistic, (t_min, t_max), np.add, np.ones_like)

    def alpha_sigma(t: Array) -> tuple[Array, Array]:
        alpha, sigma = straight_line(t)
        return alpha, noise_scale * (sigma_min + (1.0 - sigma_min) * sigma)

    def inverse(log_ratio: Array) -> Array:
        ratio = log_ratio - math.log(noise_scale)
        if not sigma_min:
            return _logistic(ratio)
        # t = (r - s)/(r + 1 - s), 1 for infinite r.
        return 1.0 - 1.0 / (np.exp(ratio) + 1.0 - sigma_min)

    return ContinuousSchedule(
        "flow_continuous",
        alpha_sigma,
        inverse,
        (t_min, t_max),
        ScaledSum(noise_scale, 1.0 - sigma_min),
        lambda t: np.full_like(t, noise_scale),
    )


def _logistic(log_ratio: Array) -> Array:
    """Return sigma for alpha + sigma = 1."""
    return 1.0 / (1.0 + np.exp(-log_ratio))


def _check_times(name: str, t_min: float, t_max: float) -> None:
    if not 0 < t_min < t_max <= 1:
        raise DuetError(
            f"schedule {name}: t_min {t_min:g} and t_max {t_max:g} were given; "
            "they must be above 0 and at most 1, the second the larger"
        )


def linear_vp(t_min: float = 1e-3, t_max: float = 1.0) -> ContinuousSchedule:
    """Return the schedule with alpha on a line and the variance preserved (Lipman et al., 2024, section 4.8).

    Raises:
        DuetError: unless 0 < t_min < t_max <= 1.
    """
    _check_times("linear_vp", t_min, t_max)

    def alpha_sigma(t: Array) -> tuple[Array, Array]:
        # 1 - (1 - t)^2, without cancellation for small t.
        return 1.0 - t, np.sqrt(t * (2.0 - t))

    def inverse(log_ratio: Array) -> Array:
        # 1 - cos(phi) with tan(phi) = sigma/alpha, as 2 sin(phi/2)^2.
        return 2.0 * np.sin(0.5 * np.arctan(np.exp(log_ratio))) ** 2

    return ContinuousSchedule(
        "linear_vp", alpha_sigma, inverse, (t_min, t_max), wronskian_at=lambda t: 1.0 / alpha_sigma(t)[1]
    )


def polynomial(n: float = 2.0, of: str = "alpha", t_min: float = 1e-3, t_max: float = 1.0) -> ContinuousSchedule:
    """Return a schedule with alpha + sigma = 1, where alpha or sigma is a power (Lipman et al., 2024, section 4.8).

    Args:
        n: the power; 1 is `flow_continuous`.
        of: ``"alpha"`` for alpha = (1 - t)^n, as in flow_matching, whose time is 1 - t; ``"sigma"`` for sigma = t^n.
        t_min: the least noisy t.
        t_max: the noisiest t.

    Raises:
        DuetError: for an n that is not positive, another `of`, or unless 0 < t_min < t_max <= 1.
    """
    _check_times("polynomial", t_min, t_max)
    if not 0 < n < math.inf:
        raise DuetError(f"schedule polynomial: n {n} was given; it must be a positive number")
    if of not in ("alpha", "sigma"):
        raise one_of("schedule.of", of, ("alpha", "sigma"))

    def alpha_sigma(t: Array) -> tuple[Array, Array]:
        if of == "sigma":
            return -np.expm1(n * np.log(t)), t**n
        with np.errstate(divide="ignore"):
            return (1.0 - t) ** n, -np.expm1(n * np.log1p(-t))

    def inverse(log_ratio: Array) -> Array:
        if of == "sigma":
            return _logistic(log_ratio) ** (1.0 / n)
        # 1 - alpha^(1/n) with log alpha = -log(1 + r).
        return -np.expm1(-np.logaddexp(0.0, log_ratio) / n)

    def wronskian(t: Array) -> Array:
        # With alpha + sigma = 1 it is sigma'.
        with np.errstate(divide="ignore"):
            return n * (t if of == "sigma" else 1.0 - t) ** (n - 1.0)

    return ContinuousSchedule("polynomial", alpha_sigma, inverse, (t_min, t_max), np.add, wronskian)


CONTINUOUS: dict[str, Callable[..., ContinuousSchedule]] = {
    "vp_sde": vp_sde,
    "ve_sde": ve_sde,
    "edm": edm,
    "cosine_continuous": cosine_continuous,
    "flow_continuous": flow_continuous,
    "linear_vp": linear_vp,
    "polynomial": polynomial,
}
