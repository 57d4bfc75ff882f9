"""Data whose exact denoiser is known, and plans on it: trajectories, moments and orders of convergence.

If x_0 is drawn from normal distributions N(m_k, s_k^2) with weights w_k, the exact estimate of x_0 from
x = alpha x_0 + sigma eps is, pixel by pixel,

    D(x) = sum_k p_k (m_k + alpha s_k^2 (x - alpha m_k) / v_k),       v_k = alpha^2 s_k^2 + sigma^2
    p_k  ~ w_k N(x; alpha m_k, v_k)

The probability flow leads x from one level to another. For one normal it keeps (x - alpha m) / sqrt(v) constant; for
several it is integrated here to about 1e-12, over the angle phi with alpha : sigma = cos phi : sin phi, in which it is
smooth up to pure noise:  d(x / sqrt(alpha^2 + sigma^2)) / d phi = cos phi eps - sin phi D.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

from diffusion_core.backend.reference import sampling
from diffusion_core.sampling import SamplerPlan

Array = NDArray[np.float64]
Level = tuple[float, float]


@dataclass(frozen=True)
class Mixture:
    """Pixels drawn from normal distributions.

    Args:
        means: mean of each.
        stds: standard deviation of each.
        weights: weight of each, with sum 1.
    """

    means: tuple[float, ...]
    stds: tuple[float, ...]
    weights: tuple[float, ...] = (1.0,)

    def denoised(self, x: Array, alpha: float, sigma: float) -> Array:
        """Return the exact estimate of x_0 for an array of pixels at a noisy level."""
        mean, std, weight = (np.array(v) for v in (self.means, self.stds, self.weights))
        away, variance = x[..., None] - alpha * mean, (alpha * std) ** 2 + sigma**2
        log_weight = np.log(weight) - 0.5 * np.log(variance) - 0.5 * away**2 / variance
        posterior = np.exp(log_weight - log_weight.max(axis=-1, keepdims=True))
        posterior /= posterior.sum(axis=-1, keepdims=True)
        return np.sum(posterior * (mean + alpha * std**2 / variance * away), axis=-1)

    def follow(self, x: Array, start: Level, end: Level) -> Array:
        """Follow the probability flow of x from one noisy level (alpha, sigma) to another."""
        ends = [np.arctan2(sigma, alpha) for alpha, sigma in (start, end)]

        def slope(phi: float, u: Array) -> Array:
            alpha, sigma = np.cos(phi), np.sin(phi)
            estimate = self.denoised(u, alpha, sigma)
            return alpha * (u - alpha * estimate) / sigma - sigma * estimate

        found = solve_ivp(slope, ends, np.ravel(x) / np.hypot(*start), "DOP853", rtol=1e-12, atol=1e-13)
        return found.y[:, -1].reshape(np.shape(x)) * np.hypot(*end)


NORMAL = Mixture((0.3,), (0.5,))
TWO_NORMALS = Mixture((-0.6, 0.7), (0.3, 0.2), (0.4, 0.6))
POINTS = np.array([-2.0, -0.4, 0.1, 1.5])


def execute(
    plan: SamplerPlan,
    x: Array,
    estimate: Callable[[int, Array], Array],
    rows: int | None = None,
    noise: Callable[[int], Array | float] = lambda row: 0.0,
    clip: bool = False,
) -> Array:
    """Return register 0 after the first rows of a plan (by default all), with estimates D(row, x).

    Estimates are clipped as the plan says if `clip`; without it, a plan's clip is ignored.
    """
    registers = np.zeros((plan.registers, *np.shape(x)))
    registers[0] = x
    history = np.zeros((plan.history, *np.shape(x)))
    for row in range(plan.rows if rows is None else rows):
        unclipped = bounded = estimate(row, registers[0])
        if plan.unclipped is not None:
            bounded = plan.clipped[row, 0] * registers[0] + plan.clipped[row, 1] * unclipped
        bounded = sampling.clip_estimate(plan, bounded) if clip else bounded
        history = np.concatenate([bounded[None], history[:-1]])
        fresh = np.multiply.outer(plan.noise[row], noise(row) * np.ones(np.shape(x)))
        registers = np.tensordot(plan.state[row], registers, 1) + np.tensordot(plan.denoised[row], history, 1) + fresh
        if plan.unclipped is not None:
            registers = registers + np.multiply.outer(plan.unclipped[row], unclipped)
    return registers[0]


def exactly(plan: SamplerPlan, data: Mixture) -> Callable[[int, Array], Array]:
    """Return the exact estimates at the levels of a plan, for `execute`."""
    return lambda row, x: data.denoised(x, plan.alpha[row], plan.sigma[row])


def error(plan: SamplerPlan, data: Mixture = TWO_NORMALS, rows: int | None = None) -> float:
    """Return the largest distance of a plan from the probability flow with the same start, before the last row.

    The last row goes from the least noisy level to clean data in one step, with an error of no order.
    """
    rows = plan.rows - 1 if rows is None else rows
    first, last = ((float(plan.alpha[i]), float(plan.sigma[i])) for i in (0, rows))
    start, exact = _flow_of_points(data, first, last)
    return float(np.abs(execute(plan, start, exactly(plan, data), rows) - exact).max())


@cache
def _flow_of_points(data: Mixture, first: Level, last: Level) -> tuple[Array, Array]:
    start = POINTS * np.hypot(*first)
    return start, data.follow(start, first, last)


def fitted_order(make: Callable[[int], SamplerPlan], counts: Sequence[int], data: Mixture = TWO_NORMALS) -> float:
    """Return the slope of log error over log step length, for plans with these numbers of steps."""
    return float(-np.polyfit(np.log(counts), np.log([error(make(steps), data) for steps in counts]), 1)[0])


def moments(
    plan: SamplerPlan, data: Mixture = NORMAL, rows: int | None = None, shift: float = 0.0
) -> tuple[float, float]:
    """Return the mean and the variance of register 0 after the first rows, for samples of one normal.

    They start from the exact normal of the first level, plus a shift.

    With one normal D is affine in x, so registers and estimates remain normal: their joint mean and covariance follow
    the recurrence in closed form.
    """
    (mean,), (std,) = data.means, data.stds
    R, H = plan.registers, plan.history
    center, covariance = np.zeros(R + H), np.zeros((R + H, R + H))
    center[0] = plan.alpha[0] * mean + shift
    covariance[0, 0] = (plan.alpha[0] * std) ** 2 + plan.sigma[0] ** 2
    for row in range(plan.rows if rows is None else rows):
        alpha, sigma = plan.alpha[row], plan.sigma[row]
        slope = alpha * std**2 / ((alpha * std) ** 2 + sigma**2)
        # The newest estimate is affine in register 0; then every register is linear in all registers and estimates.
        remember = np.zeros((R + H, R + H))
        remember[:R, :R] = np.eye(R)
        remember[R, 0] = slope
        remember[R + 1 :, R : R + H - 1] = np.eye(H - 1)
        advance = np.eye(R + H)
        advance[:R] = np.concatenate([plan.state[row], plan.denoised[row]], axis=1)
        fresh = np.append(plan.noise[row], np.zeros(H))
        center = remember @ center
        center[R] += mean - slope * alpha * mean
        center = advance @ center
        covariance = advance @ remember @ covariance @ remember.T @ advance.T + np.outer(fresh, fresh)
    return float(center[0]), float(covariance[0, 0])
