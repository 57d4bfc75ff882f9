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

The class of these schedules and their derivatives by t are in `continuous_schedule.py`.

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
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.diffusion.continuous_schedule import Array, ContinuousSchedule, ScaledSum, alpha_norm

__all__ = [
    "CONTINUOUS",
    "cosine_continuous",
    "edm",
    "flow_continuous",
    "linear_vp",
    "polynomial",
    "straight_line",
    "ve_sde",
    "vp_sde",
]


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
        alpha_norm,
        lambda t: step * alpha_sigma(t)[1],
    )


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> ContinuousSchedule:
    """Return the schedule alpha = 1, sigma = t of EDM (Karras et al., 2022, table 1).

    Raises:
        DuetError: unless 0 < sigma_min < sigma_max.
    """
    _check_range("edm", sigma_min, sigma_max)
    return ContinuousSchedule(
        "edm", lambda t: (np.ones_like(t), t.copy()), np.exp, (sigma_min, sigma_max), alpha_norm, np.ones_like
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
