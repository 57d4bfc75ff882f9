"""Exercises about DDPM: the posterior, and one step of the sampler.

x is a batch of any shape at the timestep t, a whole number; betas has shape (T,), and entry 0 is the first noise step.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffusion_core.diffusion.process import posterior, x0_from_eps
from diffusion_core.diffusion.schedule import from_betas
from duet.exercises.definition import Solution, add, distance, normal
from duet.exercises.predictions import ALPHA_BAR, BETAS

Array = NDArray[np.float64]

DDPM = "Ho et al., 2020, https://arxiv.org/abs/2006.11239"
_X, _X0, _EPS, _Z = (normal(f"step {name}", 2, 3, 2) for name in ("x", "x0", "eps", "z"))


def _levels(betas: Array, t: int) -> tuple[float, float, float, float]:
    """Return (alpha_t, sigma_t, alpha_s, sigma_s) of the step from t to s = t - 1, clean data after t = 0."""
    table = from_betas(betas)
    alpha, sigma = np.append(1.0, table.alpha), np.append(0.0, table.sigma)
    return alpha[t + 1], sigma[t + 1], alpha[t], sigma[t]


def _signal(alpha_bar: Array, t: int) -> float:
    """Return alpha_bar of t, 1 for clean data, t = -1."""
    return 1.0 if t < 0 else alpha_bar[t]


def posterior_mean(x, x0, t, betas):
    """Return the mean of the posterior q(x_{t-1} | x_t, x_0), with the shape of x.

        mean = sqrt(alpha_bar_{t-1}) beta_t / (1 - alpha_bar_t) x_0
             + sqrt(alpha_t) (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) x_t

    with alpha_t = 1 - beta_t and alpha_bar_t = alpha_0 ... alpha_t. x and x0 are arrays of one shape, t is one whole
    number, and betas has shape (T,). The level before t = 0 is clean data, alpha_bar_{-1} = 1, so at t = 0 the mean is
    x_0.
    """
    from_x, from_x0, _, _ = posterior(*_levels(betas, t))
    return from_x * x + from_x0 * x0


def _mean(level=None, before=None, root_bar=np.sqrt, root_alpha=np.sqrt, mix=None, alpha_of=None) -> Solution:
    """Return the posterior mean with one thing changed."""

    def solution(x, x0, t, betas):
        bars = np.cumprod(1 - betas)
        t = level(t, len(betas)) if level else t
        bar, beta = bars[t], betas[t]
        prior = before(bars, t) if before else _signal(bars, t - 1)
        alpha = alpha_of(bars, betas, t) if alpha_of else 1 - beta
        of_x0 = root_bar(prior) * beta / (1 - bar)
        of_x = root_alpha(alpha) * (1 - prior) / (1 - bar)
        return mix(x, x0, of_x, of_x0) if mix else of_x * x + of_x0 * x0

    return solution


def _not_cumulative(x, x0, t, betas):
    alpha, before = 1 - betas[t], 1 - betas[t - 1] if t else 1.0
    return np.sqrt(before) * betas[t] / (1 - alpha) * x0 + np.sqrt(alpha) * (1 - before) / (1 - alpha) * x


add(
    posterior_mean,
    title="The mean of DDPM's posterior",
    source=DDPM + ", eq. 7",
    cases={
        "a step from t = 6": {"x": _X, "x0": _X0, "t": 6, "betas": BETAS},
        "a step from t = 3": {"x": _EPS, "x0": _X0, "t": 3, "betas": BETAS},
        "the last step, from t = 0": {"x": _X, "x0": _X0, "t": 0, "betas": BETAS},
    },
    laws={
        "At t = 0 the mean is x_0.": lambda f: distance(f(_X, _X0, 0, BETAS), _X0),
        "Without noise, x_t = sqrt(alpha_bar_t) x_0, the mean is sqrt(alpha_bar_{t-1}) x_0.": lambda f: distance(
            f(np.sqrt(ALPHA_BAR[5]) * _X0, _X0, 5, BETAS), np.sqrt(ALPHA_BAR[4]) * _X0
        ),
    },
    mistakes={
        "last_entry_at_t_0": (
            "At t = 0, alpha_bar[t - 1] is alpha_bar[-1], which Python reads as the last entry; the level before t = "
            "0 is clean data, alpha_bar = 1.",
            _mean(before=lambda bars, t: bars[t - 1]),
        ),
        "first_entry_at_t_0": (
            "At t = 0, alpha_bar of t = 0 is used for the level before it, which is clean data, alpha_bar = 1.",
            _mean(before=lambda bars, t: bars[max(t - 1, 0)]),
        ),
        "off_by_one_earlier": (
            "All tables are read at t - 1 in place of t; entry t belongs to timestep t.",
            _mean(level=lambda t, T: t - 1),
            _mean(level=lambda t, T: t - 1, before=lambda bars, t: bars[t - 1]),
        ),
        "off_by_one_later": (
            "All tables are read at t + 1 in place of t; entry t belongs to timestep t.",
            _mean(level=lambda t, T: t + 1),
        ),
        "level_after": (
            "alpha_bar_{t+1} stands where alpha_bar_{t-1} belongs: the step leads to less noise.",
            _mean(before=lambda bars, t: bars[t + 1]),
        ),
        "roots_forgotten": (
            "Both square roots are missing: sqrt(alpha_bar_{t-1}) and sqrt(alpha_t).",
            _mean(root_bar=lambda a: a, root_alpha=lambda a: a),
        ),
        "alpha_bar_root_forgotten": (
            "alpha_bar_{t-1} is used where its square root belongs.",
            _mean(root_bar=lambda a: a),
        ),
        "alpha_root_forgotten": ("alpha_t is used where its square root belongs.", _mean(root_alpha=lambda a: a)),
        "factors_exchanged": (
            "The coefficients of x_t and x_0 are exchanged.",
            _mean(mix=lambda x, x0, of_x, of_x0: of_x0 * x + of_x * x0),
        ),
        "alpha_bar_for_alpha": (
            "The coefficient of x_t has sqrt(alpha_bar_t); it must be sqrt(alpha_t), of the one step.",
            _mean(alpha_of=lambda bars, betas, t: bars[t]),
        ),
        "beta_for_alpha": (
            "The coefficient of x_t has sqrt(beta_t); it must be sqrt(alpha_t), with alpha_t = 1 - beta_t.",
            _mean(alpha_of=lambda bars, betas, t: betas[t]),
        ),
        "denominator_forgotten": (
            "The sum is not divided by 1 - alpha_bar_t.",
            lambda x, x0, t, betas: (1 - np.prod(1 - betas[: t + 1])) * _mean()(x, x0, t, betas),
        ),
        "denominator_root": (
            "The sum is divided by sqrt(1 - alpha_bar_t); it must be 1 - alpha_bar_t.",
            lambda x, x0, t, betas: np.sqrt(1 - np.prod(1 - betas[: t + 1])) * _mean()(x, x0, t, betas),
        ),
        "not_cumulative": (
            "alpha_t = 1 - beta_t stands where its product alpha_bar_t belongs (cumprod).",
            _not_cumulative,
        ),
    },
)


def posterior_variance(betas):
    """Return the variances of the posterior q(x_{t-1} | x_t, x_0), often called beta_tilde, with shape (T,).

        beta_tilde_t = (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) beta_t

    betas has shape (T,), and alpha_bar_t = (1 - beta_0) ... (1 - beta_t). The level before t = 0 is clean data,
    alpha_bar_{-1} = 1, so beta_tilde_0 = 0.
    """
    return np.array([posterior(*_levels(betas, t))[2] for t in range(len(betas))])


def _variances(
    before=lambda bars: np.append(1.0, bars[:-1]), change=lambda variance: variance, invert=False
) -> Solution:
    def solution(betas):
        bars = np.cumprod(1 - betas)
        ratio = (1 - before(bars)) / (1 - bars)
        return change(betas / ratio if invert else betas * ratio)

    return solution


def _variance_of_alphas(betas):
    return betas * (1 - np.append(1.0, 1 - betas[:-1])) / betas


add(
    posterior_variance,
    title="The variance of DDPM's posterior",
    source=DDPM + ", eq. 7",
    cases={"10 betas, 0.02 to 0.35": {"betas": BETAS}, "6 betas": {"betas": np.array([0.1, 0.3, 0.2, 0.4, 0.1, 0.5])}},
    laws={
        "The last step of sampling has no variance: entry 0 is 0.": lambda f: abs(float(np.asarray(f(BETAS))[0])),
        "No variance exceeds its beta.": lambda f: float(np.maximum(np.asarray(f(BETAS)) - BETAS, 0).max()),
    },
    mistakes={
        "beta_for_beta_tilde": (
            "The result is beta_t itself, the larger of the two variances of DDPM; the posterior's is beta_tilde_t.",
            lambda betas: betas,
        ),
        "standard_deviation": (
            "The result is the standard deviation, sqrt(beta_tilde); the exercise asks for the variance.",
            _variances(change=np.sqrt),
        ),
        "squared": ("The variances are squared.", _variances(change=np.square)),
        "last_entry_at_t_0": (
            "alpha_bar[-1], the last entry, is used as the level before t = 0, which is clean data, alpha_bar = 1.",
            _variances(before=lambda bars: np.roll(bars, 1)),
        ),
        "level_after": (
            "alpha_bar_{t+1} stands where alpha_bar_{t-1} belongs.",
            _variances(before=lambda bars: np.append(bars[1:], bars[-1])),
            _variances(before=lambda bars: np.append(bars[1:], 0.0)),
            _variances(before=lambda bars: np.roll(bars, -1)),
        ),
        "fraction_inverted": (
            "The fraction is upside down: 1 - alpha_bar_{t-1}, the smaller one, is its numerator.",
            _variances(invert=True),
        ),
        "first_replaced": (
            "Entry 0 has the value of entry 1, as code does that takes the logarithm; the variance itself is 0 there.",
            _variances(change=lambda v: np.append(v[1], v[1:])),
        ),
        "not_cumulative": (
            "alpha_t = 1 - beta_t stands where its product alpha_bar_t belongs (cumprod).",
            _variance_of_alphas,
        ),
        "log_variance": (
            "The result is the logarithm of the variance.",
            _variances(change=np.log),
            _variances(change=lambda v: np.log(np.append(v[1], v[1:]))),
        ),
    },
)


def ddpm_step(x, eps, z, t, betas):
    """Return x_{t-1} after one step of DDPM's sampler, with the shape of x.

        x_{t-1} = (x_t - beta_t / sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_t) + sqrt(beta_t) z      for t > 0

    and without the last term at t = 0. eps is the network's output and z fresh normal noise, both with the shape of x;
    t is one whole number, and betas has shape (T,). alpha_t = 1 - beta_t, and alpha_bar_t = alpha_0 ... alpha_t. The
    variance is beta_t, the paper's first choice.
    """
    alpha, sigma, alpha_s, sigma_s = _levels(betas, t)
    from_x, from_x0, _, variance = posterior(alpha, sigma, alpha_s, sigma_s)
    fresh = np.sqrt(variance) if t else 0.0
    return from_x * x + from_x0 * x0_from_eps(x, eps, alpha, sigma) + fresh * z


def _ddpm(mean=None, std=None, level=lambda t: t, bars=lambda betas: np.cumprod(1 - betas)) -> Solution:
    """Return a step with another mean, a function of (x, eps, alpha, bar, beta), or another standard deviation."""

    def solution(x, eps, z, t, betas):
        at = level(t)
        beta, bar = betas[at], bars(betas)[at]
        alpha = 1 - beta
        centre = mean(x, eps, alpha, bar, beta) if mean else (x - beta / np.sqrt(1 - bar) * eps) / np.sqrt(alpha)
        return centre + (std(betas, at) if std else np.sqrt(beta) if t else 0.0) * z

    return solution


def _clipped(x, eps, z, t, betas):
    bars = np.cumprod(1 - betas)
    x0 = np.clip((x - np.sqrt(1 - bars[t]) * eps) / np.sqrt(bars[t]), -1, 1)
    return _mean()(x, x0, t, betas) + (np.sqrt(betas[t]) if t else 0.0) * z


def _tilde(betas: Array, t: int) -> float:
    bars = np.cumprod(1 - betas)
    return (1 - _signal(bars, t - 1)) / (1 - bars[t]) * betas[t]


add(
    ddpm_step,
    title="One step of DDPM's sampler",
    source=DDPM + ", algorithm 2, with sigma_t^2 = beta_t",
    cases={
        "a step from t = 6": {"x": _X, "eps": _EPS, "z": _Z, "t": 6, "betas": BETAS},
        "a step from t = 1": {"x": _X0, "eps": _EPS, "z": _Z, "t": 1, "betas": BETAS},
        "the last step, from t = 0": {"x": _X, "eps": _EPS, "z": _Z, "t": 0, "betas": BETAS},
    },
    laws={
        "At t = 0 no noise is added, and the result is the estimate of x_0.": lambda f: distance(
            f(_X, _EPS, _Z, 0, BETAS), (_X - np.sqrt(BETAS[0]) * _EPS) / np.sqrt(1 - BETAS[0])
        ),
        "The fresh noise has the variance beta_t.": lambda f: distance(
            (f(_X, _EPS, _Z, 5, BETAS) - f(_X, _EPS, 0 * _Z, 5, BETAS)) ** 2, BETAS[5] * _Z**2
        ),
    },
    mistakes={
        "noise_at_last_step": (
            "Noise is added at the last step too; at t = 0 the mean itself is the result.",
            _ddpm(std=lambda betas, t: np.sqrt(betas[t])),
        ),
        "noise_stops_too_early": (
            "At t = 1 no noise is added; here t counts from 0, so only the step from t = 0 is without noise.",
            _ddpm(std=lambda betas, t: np.sqrt(betas[t]) if t > 1 else 0.0),
        ),
        "noise_forgotten": (
            "No noise is added; DDPM's sampler draws fresh noise z at every step but the last.",
            _ddpm(std=lambda betas, t: 0.0),
        ),
        "beta_tilde_for_beta": (
            "The noise has the variance beta_tilde of the posterior; the exercise asks for beta_t.",
            _ddpm(std=lambda betas, t: np.sqrt(_tilde(betas, t))),
        ),
        "variance_for_deviation": (
            "The noise is multiplied by its variance beta_t; it must be the standard deviation, sqrt(beta_t).",
            _ddpm(std=lambda betas, t: betas[t] if t else 0.0),
        ),
        "noise_root_forgotten": (
            "eps is divided by 1 - alpha_bar; it must be sqrt(1 - alpha_bar).",
            _ddpm(lambda x, eps, alpha, bar, beta: (x - beta / (1 - bar) * eps) / np.sqrt(alpha)),
        ),
        "alpha_root_forgotten": (
            "The mean is divided by alpha_t; it must be sqrt(alpha_t).",
            _ddpm(lambda x, eps, alpha, bar, beta: (x - beta / np.sqrt(1 - bar) * eps) / alpha),
        ),
        "beta_root": (
            "eps is multiplied by sqrt(beta_t); it must be beta_t.",
            _ddpm(lambda x, eps, alpha, bar, beta: (x - np.sqrt(beta) / np.sqrt(1 - bar) * eps) / np.sqrt(alpha)),
        ),
        "alpha_multiplied": (
            "The mean is multiplied by sqrt(alpha_t); it must be divided by it.",
            _ddpm(lambda x, eps, alpha, bar, beta: (x - beta / np.sqrt(1 - bar) * eps) * np.sqrt(alpha)),
        ),
        "alpha_bar_for_alpha": (
            "The mean is divided by sqrt(alpha_bar_t); it must be sqrt(alpha_t), of the one step.",
            _ddpm(lambda x, eps, alpha, bar, beta: (x - beta / np.sqrt(1 - bar) * eps) / np.sqrt(bar)),
        ),
        "not_cumulative": (
            "alpha_t = 1 - beta_t stands where its product alpha_bar_t belongs (cumprod).",
            _ddpm(bars=lambda betas: 1 - betas),
        ),
        "noise_sign": (
            "The predicted noise is added; it must be subtracted.",
            _ddpm(lambda x, eps, alpha, bar, beta: (x + beta / np.sqrt(1 - bar) * eps) / np.sqrt(alpha)),
        ),
        "parenthesis_forgotten": (
            "Only x_t is divided by sqrt(alpha_t); the whole difference must be.",
            _ddpm(lambda x, eps, alpha, bar, beta: x / np.sqrt(alpha) - beta / np.sqrt(1 - bar) * eps),
        ),
        "x0_returned": (
            "The mean is the estimate of x_0; a step removes only the noise of one step.",
            _ddpm(lambda x, eps, alpha, bar, beta: (x - np.sqrt(1 - bar) * eps) / np.sqrt(bar)),
        ),
        "clipped": (
            "The estimate of x_0 is clipped to [-1, 1], as in the code of DDPM; the exercise asks for the plain step.",
            _clipped,
        ),
        "off_by_one_earlier": (
            "The tables are read at t - 1 in place of t; entry t belongs to timestep t.",
            _ddpm(level=lambda t: t - 1),
        ),
        "off_by_one_later": (
            "The tables are read at t + 1 in place of t; entry t belongs to timestep t.",
            _ddpm(level=lambda t: t + 1),
        ),
    },
)
