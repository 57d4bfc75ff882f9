r"""Processes: what the network is asked for, as columns of numbers.

With ``x_t = alpha x_0 + sigma eps`` and the network's raw output F, every parameterisation is

    D(x_t) = c_skip x_t + c_out F(c_in x_t, c_noise)       the estimate of x_0
    target = target_x0 x_0 + target_eps eps                what F is trained to match

    prediction   target                         c_skip                    c_out
    eps          eps                            1/alpha                   -sigma/alpha
    x0           x_0                            0                         1
    v            alpha eps - sigma x_0          alpha/(alpha^2+sigma^2)   -sigma/(alpha^2+sigma^2)
    next_level   alpha_s x_0 + sigma_s eps      sigma_s/d                 -sigma_t/d

Here c_in = 1 and c_noise = t, the level's index (times a scale, for networks that count otherwise). v is
stated for any schedule; with alpha^2 + sigma^2 = 1 it is the usual one. next_level maps x_t to x_s, the same
picture with the same eps at the next less noisy level s = t - 1, which is clean data, (1, 0), after t = 0. Its
columns solve the two equations of x_t and x_s for x_0, with ``d = sigma_s alpha_t - sigma_t alpha_s``. As
alpha/sigma falls with t, d < 0 on every schedule, also where alpha_t is 0; but 1/d magnifies an error of F where
levels are close, so it is meant for few levels. All columns are float64; t = 0 means one noise step.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239
    Progressive Distillation for Fast Sampling (Salimans & Ho, 2022), appendix D, https://arxiv.org/abs/2202.00512
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), eq. 7,
    https://arxiv.org/abs/2206.00364
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.errors import DuetError, one_of
from diffusion_core.schedule import Schedule

__all__ = [
    "PREDICTIONS",
    "Columns",
    "Process",
    "add_noise",
    "eps_from_x0",
    "posterior",
    "score_from_x0",
    "v_from_x0_eps",
    "x0_from_eps",
    "x0_from_score",
    "x0_from_v",
]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Columns:
    """The numbers of a process at some levels; each has the shape of the levels asked for."""

    c_skip: Array
    c_out: Array
    c_in: Array
    c_noise: Array
    target_x0: Array
    target_eps: Array


def _eps(alpha: Array, sigma: Array, alpha_next: Array, sigma_next: Array) -> tuple[Array, ...]:
    if np.any(alpha == 0):
        raise DuetError("process eps: x_0 cannot be recovered from eps where alpha is 0; use prediction v or x0")
    return 1.0 / alpha, -sigma / alpha, np.zeros_like(alpha), np.ones_like(alpha)


def _x0(alpha: Array, sigma: Array, alpha_next: Array, sigma_next: Array) -> tuple[Array, ...]:
    return np.zeros_like(alpha), np.ones_like(alpha), np.ones_like(alpha), np.zeros_like(alpha)


def _v(alpha: Array, sigma: Array, alpha_next: Array, sigma_next: Array) -> tuple[Array, ...]:
    power = alpha**2 + sigma**2
    return alpha / power, -sigma / power, -sigma, alpha


def _next_level(alpha: Array, sigma: Array, alpha_next: Array, sigma_next: Array) -> tuple[Array, ...]:
    determinant = sigma_next * alpha - sigma * alpha_next
    return sigma_next / determinant, -sigma / determinant, alpha_next, sigma_next


# Each law takes (alpha, sigma) at a level and at the next less noisy one, and gives
# (c_skip, c_out, target_x0, target_eps).
PREDICTIONS: dict[str, Callable[[Array, Array, Array, Array], tuple[Array, ...]]] = {
    "eps": _eps,
    "x0": _x0,
    "v": _v,
    "next_level": _next_level,
}


@dataclass(frozen=True, eq=False)
class Process:
    """A schedule with a parameterisation.

    Args:
        schedule: the noise levels.
        prediction: ``"eps"``, ``"x0"``, ``"v"`` or ``"next_level"``.
        time_scale: what t is multiplied with on its way to the network; 1000/T for networks that were trained with
            "rescaled timesteps".
    """

    schedule: Schedule
    prediction: str = "eps"
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise one_of("process.prediction", self.prediction, PREDICTIONS)
        if not 0 < self.time_scale < np.inf:
            raise DuetError(f"process.time_scale: {self.time_scale} was given; it must be a positive number")
        self.columns(np.arange(self.schedule.steps))

    def columns(self, t: ArrayLike) -> Columns:
        """The columns at the levels t, in [0, T-1]; next_level has levels at whole t alone."""
        t = np.asarray(t)
        alpha, sigma = self.schedule(t)
        if self.prediction == "next_level" and np.any(t != np.floor(t)):
            raise DuetError(f"process next_level: it has no level between two, so t must be whole, not {t.ravel()[:5]}")
        # The table shifted by one level: entry t is level t - 1, and entry 0 is clean data.
        whole = np.floor(t).astype(np.int64)
        alpha_next, sigma_next = np.append(1.0, self.schedule.alpha)[whole], np.append(0.0, self.schedule.sigma)[whole]
        law = PREDICTIONS[self.prediction]
        c_skip, c_out, target_x0, target_eps = law(alpha, sigma, alpha_next, sigma_next)
        return Columns(c_skip, c_out, np.ones_like(alpha), self.time_scale * t, target_x0, target_eps)


def _per_image(column: ArrayLike, like: NDArray) -> Array:
    """A column with shape (B,), or a number, made to multiply images with shape (B, ...)."""
    column = np.asarray(column, dtype=np.float64)
    return column.reshape(column.shape + (1,) * (like.ndim - column.ndim)) if column.ndim else column


def add_noise(x0: NDArray, eps: NDArray, alpha: ArrayLike, sigma: ArrayLike) -> Array:
    """Forward noising, x_t = alpha x_0 + sigma eps (Ho et al., eq. 4); levels broadcast over (B, ...)."""
    return _per_image(alpha, x0) * x0 + _per_image(sigma, eps) * eps


def x0_from_eps(x: NDArray, eps: NDArray, alpha: ArrayLike, sigma: ArrayLike) -> Array:
    """x_0 = (x_t - sigma eps) / alpha."""
    return (x - _per_image(sigma, x) * eps) / _per_image(alpha, x)


def eps_from_x0(x: NDArray, x0: NDArray, alpha: ArrayLike, sigma: ArrayLike) -> Array:
    """Eps = (x_t - alpha x_0) / sigma."""
    return (x - _per_image(alpha, x) * x0) / _per_image(sigma, x)


def v_from_x0_eps(x0: NDArray, eps: NDArray, alpha: ArrayLike, sigma: ArrayLike) -> Array:
    """v = alpha eps - sigma x_0 (Salimans & Ho, appendix D)."""
    return _per_image(alpha, x0) * eps - _per_image(sigma, x0) * x0


def x0_from_v(x: NDArray, v: NDArray, alpha: ArrayLike, sigma: ArrayLike) -> Array:
    """x_0 = (alpha x_t - sigma v) / (alpha^2 + sigma^2)."""
    a, s = _per_image(alpha, x), _per_image(sigma, x)
    return (a * x - s * v) / (a**2 + s**2)


def score_from_x0(x: NDArray, x0: NDArray, alpha: ArrayLike, sigma: ArrayLike) -> Array:
    """The score grad log p(x_t | x_0) = -(x_t - alpha x_0) / sigma^2 = -eps / sigma."""
    return -eps_from_x0(x, x0, alpha, sigma) / _per_image(sigma, x)


def x0_from_score(x: NDArray, score: NDArray, alpha: ArrayLike, sigma: ArrayLike) -> Array:
    """x_0 = (x_t + sigma^2 score) / alpha (Tweedie)."""
    return (x + _per_image(sigma, x) ** 2 * score) / _per_image(alpha, x)


def posterior(
    alpha_t: ArrayLike, sigma_t: ArrayLike, alpha_s: ArrayLike, sigma_s: ArrayLike
) -> tuple[Array, Array, Array, Array]:
    r"""q(x_s | x_t, x_0) for a less noisy level s < t, of any schedule (Ho et al., eqs. 6 and 7).

    With ``a = alpha_t/alpha_s`` and ``b = sigma_t^2 - a^2 sigma_s^2`` (beta_t when s = t - 1)::

        mean     = (a sigma_s^2 / sigma_t^2) x_t + (alpha_s b / sigma_t^2) x_0
        variance = b sigma_s^2 / sigma_t^2

    Returns:
        (coefficient of x_t, coefficient of x_0, variance, b). At s = clean data, (1, 0), the variance is 0.
    """
    alpha_t, sigma_t, alpha_s, sigma_s = (np.asarray(v, dtype=np.float64) for v in (alpha_t, sigma_t, alpha_s, sigma_s))
    ratio = alpha_t / alpha_s
    # sigma_t^2 - a^2 sigma_s^2 as a product of sum and difference: fewer digits cancel at close levels.
    step = (sigma_t - ratio * sigma_s) * (sigma_t + ratio * sigma_s)
    return ratio * (sigma_s / sigma_t) ** 2, alpha_s * step / sigma_t**2, step * (sigma_s / sigma_t) ** 2, step
