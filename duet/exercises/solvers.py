"""Exercises about solvers of the probability-flow ODE: Euler, Heun and DPM-Solver++(2M).

Euler and Heun are in the variables of Karras et al., x = x_0 + sigma eps, where the ODE is dx/dsigma = (x - D)/sigma
with the estimate D of x_0. DPM-Solver++ is for any alpha and sigma.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import Schedule
from diffusion_core.sampling.dpm_solver import dpm_solver
from diffusion_core.sampling.euler import euler
from diffusion_core.sampling.heun import heun
from diffusion_core.sampling.plan import SamplerPlan
from duet.exercises.definition import Network, Solution, add, distance, normal
from duet.exercises.predictions import ALPHA_BAR

Array = NDArray[np.float64]

KARRAS = "Karras et al., 2022, algorithm 1, https://arxiv.org/abs/2206.00364"
_SHAPE = (2, 3, 2)
_X, _D, _BEFORE, _X0, _EPS = (normal(f"solver {name}", *_SHAPE) for name in ("x", "D", "before", "x0", "eps"))
# Data with mean 0.3 and standard deviation 0.8, whose best estimate of x_0 is this.
_DENOISE = Network(lambda x, sigma: 0.3 + (x - 0.3) * 0.64 / (0.64 + sigma * sigma))


def _first_step(make: Callable[..., SamplerPlan], sigma: float, sigma_next: float) -> SamplerPlan:
    """Return a plan whose first step leads from sigma to sigma_next, 0 for clean data."""
    levels = np.array([sigma_next or sigma / 2, sigma], np.float64)
    schedule = Schedule("exercise", np.ones(2), levels)
    return make(Process(schedule), steps=None, spacing=[1, 0] if sigma_next else [1], clip=None)


def euler_step(x, denoised, sigma, sigma_next):
    """Return x at the noise level sigma_next after one Euler step from sigma, with the shape of x.

        d = (x - denoised) / sigma                  the slope dx/dsigma
        x_next = x + (sigma_next - sigma) d

    denoised is the network's estimate of x_0 at (x, sigma), with the shape of x. sigma and sigma_next are numbers, with
    sigma > sigma_next >= 0.
    """
    plan = _first_step(euler, sigma, sigma_next)
    return plan.state[0, 0, 0] * x + plan.denoised[0, 0, 0] * denoised


def _euler(slope: Callable[..., Array], way: Callable[[float, float], float] = lambda s, n: n - s) -> Solution:
    return lambda x, denoised, sigma, sigma_next: x + way(sigma, sigma_next) * slope(x, denoised, sigma, sigma_next)


def _slope(x: Array, D: Array, sigma: float, sigma_next: float) -> Array:
    return (x - D) / sigma


add(
    euler_step,
    title="One Euler step of the probability-flow ODE",
    source=KARRAS + ", without the correction",
    cases={
        "a step from sigma = 3 to 1.5": {"x": _X, "denoised": _D, "sigma": 3.0, "sigma_next": 1.5},
        "a step from sigma = 0.5 to 0.2": {"x": _X, "denoised": _D, "sigma": 0.5, "sigma_next": 0.2},
        "the last step, from sigma = 0.2 to 0": {"x": _X, "denoised": _D, "sigma": 0.2, "sigma_next": 0.0},
    },
    laws={
        "The step to sigma_next = 0 returns the estimate of x_0.": lambda f: distance(f(_X, _D, 2.0, 0.0), _D),
        "With an exact estimate, x_0 + sigma eps becomes x_0 + sigma_next eps.": lambda f: distance(
            f(_X0 + 2 * _EPS, _X0, 2.0, 0.7), _X0 + 0.7 * _EPS
        ),
    },
    mistakes={
        "wrong_direction": (
            "The step goes towards more noise: one sign is reversed, that of sigma_next - sigma or that of x - "
            "denoised.",
            _euler(_slope, lambda s, n: s - n),
        ),
        "sigma_squared": (
            "The slope is divided by sigma^2, as the score is; the slope dx/dsigma is divided by sigma.",
            _euler(lambda x, D, s, n: (x - D) / s**2),
        ),
        "slope_not_divided": ("x - denoised is not divided by sigma.", _euler(lambda x, D, s, n: x - D)),
        "divided_by_sigma_next": (
            "The slope is divided by sigma_next; it is the slope at the start, sigma, and sigma_next may be 0.",
            _euler(lambda x, D, s, n: (x - D) / np.float64(n)),
        ),
        "denoised_for_noise": (
            "The estimate of x_0 is used as if it were the noise; the slope is (x - denoised) / sigma.",
            _euler(lambda x, D, s, n: D),
        ),
        "variances_for_sigmas": (
            "The step has the length sigma_next^2 - sigma^2; it must be sigma_next - sigma.",
            _euler(_slope, lambda s, n: n**2 - s**2),
        ),
        "half_the_slope": (
            "Half the slope is taken; the factor 1/2 belongs to Heun's correction.",
            _euler(lambda x, D, s, n: (x - D) / s / 2),
        ),
        "whole_way": (
            "The step goes all the way to the estimate of x_0; it must stop at sigma_next.",
            lambda x, D, s, n: D + 0 * x,
        ),
    },
)


def heun_step(x, denoise, sigma, sigma_next):
    """Return x at the noise level sigma_next after one step of Heun's method from sigma, with the shape of x.

        d  = (x - denoise(x, sigma)) / sigma
        x' = x + (sigma_next - sigma) d                                    Euler
        d' = (x' - denoise(x', sigma_next)) / sigma_next                   only if sigma_next > 0
        x_next = x + (sigma_next - sigma) (d + d')/2

    and x_next = x' if sigma_next = 0. denoise is a function that returns the estimate of x_0 for an array x and a
    number sigma. sigma and sigma_next are numbers, with sigma > sigma_next >= 0.
    """
    plan = _first_step(heun, sigma, sigma_next)
    registers = np.stack([x, *[np.zeros_like(x)] * (plan.state.shape[1] - 1)])
    for row in range(2 if sigma_next else 1):
        estimate = denoise(registers[0], plan.sigma[row])
        moved = np.tensordot(plan.state[row], registers, 1)
        registers = moved + plan.denoised[row][:, 0].reshape(-1, *[1] * x.ndim) * estimate
    return registers[0]


def _heun(
    second: Callable[..., Array], mix=lambda d1, d2: (d1 + d2) / 2, start_at_euler=False, always=False
) -> Solution:
    """Return a step with another second slope, of (denoise, x, euler's x, sigma, sigma_next, first slope)."""

    def solution(x, denoise, sigma, sigma_next):
        d1 = (x - denoise(x, sigma)) / sigma
        moved = x + (sigma_next - sigma) * d1
        if not sigma_next and not always:
            return moved
        d2 = second(denoise, x, moved, sigma, np.float64(sigma_next), d1)
        return (moved if start_at_euler else x) + (sigma_next - sigma) * mix(d1, d2)

    return solution


def _second(denoise, x, moved, sigma, sigma_next, d1):
    return (moved - denoise(moved, sigma_next)) / sigma_next


def _midpoint(denoise, x, moved, sigma, sigma_next, d1):
    middle = (sigma + sigma_next) / 2
    half = x + (middle - sigma) * d1
    return (half - denoise(half, middle)) / middle


def _true_path(sigma: float) -> Array:
    """Return the exact solution of the ODE for this data that is _X at sigma = 1."""
    return 0.3 + (_X - 0.3) * np.sqrt((0.64 + sigma**2) / 1.64)


def _order(f: Solution) -> float:
    """Return how far the error of a step is from falling as the third power of its length."""
    errors = [np.abs(f(_X, _DENOISE, 1.0, 1.0 - h) - _true_path(1.0 - h)).max() for h in (0.1, 0.05)]
    return float(max(0.0, 2.5 - np.log2(errors[0] / errors[1])))


add(
    heun_step,
    title="One step of Heun's method on the probability-flow ODE",
    source=KARRAS,
    cases={
        "a step from sigma = 3 to 1.5": {"x": _X, "denoise": _DENOISE, "sigma": 3.0, "sigma_next": 1.5},
        "a step from sigma = 0.8 to 0.3": {"x": _X, "denoise": _DENOISE, "sigma": 0.8, "sigma_next": 0.3},
        "the last step, from sigma = 0.3 to 0": {"x": _X, "denoise": _DENOISE, "sigma": 0.3, "sigma_next": 0.0},
    },
    laws={
        "The step to sigma_next = 0 returns the estimate of x_0.": lambda f: distance(
            f(_X, _DENOISE, 0.5, 0.0), _DENOISE(_X, 0.5)
        ),
        "The error of a step falls as the third power of its length (order 2).": _order,
        "Where the estimate is always the same image, the step is exact.": lambda f: distance(
            f(_X, Network(lambda x, sigma: 0 * x + 0.5), 2.0, 1.0), 0.5 + (_X - 0.5) / 2
        ),
    },
    mistakes={
        "euler_only": (
            "There is no correction: this is Euler's step; the second slope must be averaged in.",
            _heun(lambda denoise, x, moved, s, n, d1: d1),
        ),
        "slopes_added": ("The slopes are added; their mean is needed, (d + d')/2.", _heun(_second, lambda a, b: a + b)),
        "second_slope_only": (
            "Only the second slope is used; the mean of both is needed.",
            _heun(_second, lambda a, b: b),
        ),
        "second_slope_at_old_x": (
            "The second slope is taken at the old x; it belongs to x', where Euler's step ends.",
            _heun(lambda denoise, x, moved, s, n, d1: (x - denoise(x, n)) / n),
        ),
        "network_at_old_sigma": (
            "The network is called with the old sigma at x'; it must be sigma_next.",
            _heun(lambda denoise, x, moved, s, n, d1: (moved - denoise(moved, s)) / n),
        ),
        "second_slope_with_old_sigma": (
            "The second slope has the old sigma throughout; at x' the level is sigma_next.",
            _heun(lambda denoise, x, moved, s, n, d1: (moved - denoise(moved, s)) / s),
        ),
        "second_slope_divided_by_old_sigma": (
            "The second slope is divided by the old sigma; it must be sigma_next.",
            _heun(lambda denoise, x, moved, s, n, d1: (moved - denoise(moved, n)) / s),
        ),
        "corrected_from_euler": (
            "The corrected step starts at x', so the way is gone twice; it starts at x.",
            _heun(_second, start_at_euler=True),
        ),
        "correction_at_last_step": (
            "The last step is corrected too, which divides by sigma_next = 0; there Euler's step is the result.",
            _heun(_second, always=True),
        ),
        "midpoint": (
            "The second slope is taken in the middle: that is the midpoint method; Heun's is the mean of both ends.",
            _heun(_midpoint, lambda a, b: b),
            _heun(_midpoint, lambda a, b: b, always=True),
        ),
        "wrong_direction": (
            "The step goes towards more noise; the step is sigma_next - sigma.",
            lambda x, denoise, s, n: 2 * x - _heun(_second)(x, denoise, s, n),
            lambda x, denoise, s, n: _backwards(x, denoise, s, n),
        ),
    },
)


def _backwards(x, denoise, sigma, sigma_next):
    """Return Heun's step with sigma - sigma_next throughout."""
    d1 = (x - denoise(x, sigma)) / sigma
    moved = x + (sigma - sigma_next) * d1
    if not sigma_next:
        return moved
    return x + (sigma - sigma_next) * (d1 + (moved - denoise(moved, sigma_next)) / sigma_next) / 2


def dpmpp_2m_step(x, denoised, denoised_before, alpha, sigma):
    """Return x at the next level after one multistep step of DPM-Solver++(2M), with the shape of x.

        lambda = log(alpha / sigma),   h = lambda_2 - lambda_1,   h' = lambda_1 - lambda_0,   r = h' / h
        D      = denoised + (denoised - denoised_before) / (2 r)
        x_next = sigma_2 / sigma_1 x - alpha_2 (exp(-h) - 1) D

    denoised is the estimate of x_0 at the present level 1, where x is, and denoised_before that of the level 0 before
    it; both have the shape of x. alpha and sigma have shape (3,): of the levels before, now and next, with noise
    falling.
    """
    schedule = Schedule("exercise", np.asarray(alpha)[::-1].copy(), np.asarray(sigma)[::-1].copy())
    plan = dpm_solver(Process(schedule), steps=None, spacing="linspace", clip=None, lower_order_final=False)
    return plan.state[1, 0, 0] * x + plan.denoised[1, 0, 0] * denoised + plan.denoised[1, 0, 1] * denoised_before


def _multistep(
    mix: Callable[..., Array] | None = None,
    weight: Callable[[float, float], float] = lambda h, r: 1 / (2 * r),
    log: Callable[[Array, Array], Array] = lambda a, s: np.log(a / s),
    ratio: Callable[[float, float], float] = lambda h, before: before / h,
) -> Solution:
    """Return a step with another sum of (x, D, alpha, sigma, h), weight of the difference, lambda or r."""

    def solution(x, denoised, denoised_before, alpha, sigma):
        lam = log(np.asarray(alpha), np.asarray(sigma))
        h, before = lam[2] - lam[1], lam[1] - lam[0]
        D = denoised + weight(h, ratio(h, before)) * (denoised - denoised_before)
        return mix(x, D, alpha, sigma, h) if mix else sigma[2] / sigma[1] * x - alpha[2] * np.expm1(-h) * D

    return solution


_THREE = np.sqrt(ALPHA_BAR[[8, 5, 3]]), np.sqrt(1 - ALPHA_BAR[[8, 5, 3]])
_FLOW = np.array([0.2, 0.5, 0.9]), np.array([0.8, 0.5, 0.1])
_STEP = {"x": _X, "denoised": _D, "denoised_before": _BEFORE}

add(
    dpmpp_2m_step,
    title="One step of DPM-Solver++(2M)",
    source="Lu et al., 2022, algorithm 2, https://arxiv.org/abs/2211.01095",
    cases={
        "alpha^2 + sigma^2 = 1": {**_STEP, "alpha": _THREE[0], "sigma": _THREE[1]},
        "alpha + sigma = 1": {**_STEP, "alpha": _FLOW[0], "sigma": _FLOW[1]},
    },
    laws={
        "With exact estimates, alpha_1 x_0 + sigma_1 eps becomes alpha_2 x_0 + sigma_2 eps.": lambda f: distance(
            f(_THREE[0][1] * _X0 + _THREE[1][1] * _EPS, _X0, _X0, *_THREE), _THREE[0][2] * _X0 + _THREE[1][2] * _EPS
        ),
        "Where the estimate does not change, the one before does not matter.": lambda f: distance(
            f(_X, _D, _D, *_FLOW), _FLOW[1][2] / _FLOW[1][1] * _X + (0.9 - 0.5 * 0.1 / 0.5) * _D
        ),
    },
    mistakes={
        "first_order": (
            "The estimate before is not used: this is the first-order step (DDIM).",
            _multistep(weight=lambda h, r: 0.0),
        ),
        "r_inverted": (
            "r is upside down: it is the last step's length over this one's, h'/h.",
            _multistep(ratio=lambda h, before: h / before),
        ),
        "half_forgotten": (
            "The factor 1/2 is missing: D has (denoised - denoised_before) / (2 r).",
            _multistep(weight=lambda h, r: 1 / r),
        ),
        "difference_sign": (
            "The difference has the wrong sign: the estimate is continued in the direction denoised - denoised_before.",
            _multistep(weight=lambda h, r: -1 / (2 * r)),
        ),
        "equal_steps": (
            "r is taken as 1, which is right only for steps of equal length in lambda.",
            _multistep(weight=lambda h, r: 0.5),
        ),
        "sigma_ratio_inverted": (
            "The factor of x is sigma_1 / sigma_2; it must be sigma_2 / sigma_1, below 1.",
            _multistep(lambda x, D, a, s, h: s[1] / s[2] * x - a[2] * np.expm1(-h) * D),
        ),
        "alpha_ratio_for_sigma_ratio": (
            "The factor of x is alpha_2 / alpha_1, that of the solver for eps; for estimates of x_0 it is sigma_2 / "
            "sigma_1.",
            _multistep(lambda x, D, a, s, h: a[2] / a[1] * x - a[2] * np.expm1(-h) * D),
        ),
        "alpha_of_the_present_level": (
            "The estimate is multiplied by the present alpha; it must be that of the next level.",
            _multistep(lambda x, D, a, s, h: s[2] / s[1] * x - a[1] * np.expm1(-h) * D),
        ),
        "sigma_for_alpha": (
            "The estimate is multiplied by sigma of the next level; it must be alpha.",
            _multistep(lambda x, D, a, s, h: s[2] / s[1] * x - s[2] * np.expm1(-h) * D),
        ),
        "h_sign": (
            "The exponent has the wrong sign: it is exp(-h), with h > 0.",
            _multistep(lambda x, D, a, s, h: s[2] / s[1] * x - a[2] * np.expm1(h) * D),
        ),
        "estimate_sign": (
            "The estimate is subtracted: -alpha (exp(-h) - 1) is positive.",
            _multistep(lambda x, D, a, s, h: s[2] / s[1] * x + a[2] * np.expm1(-h) * D),
        ),
        "log_snr_for_half_log_snr": (
            "lambda is the log-SNR, log(alpha^2 / sigma^2); it is half of that, log(alpha / sigma).",
            _multistep(log=lambda a, s: 2 * np.log(a / s)),
        ),
        "log_sigma": ("lambda is -log(sigma); it is log(alpha / sigma).", _multistep(log=lambda a, s: -np.log(s))),
        "log_10": (
            "The logarithm has base 10; it must be the natural one.",
            _multistep(log=lambda a, s: np.log10(a / s)),
        ),
    },
)
