"""Exercises about DDIM and guidance.

x is a batch of any shape at the timestep t, a whole number; alpha_bar has shape (T,), and entry 0 is the level after
one noise step.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffusion_core.diffusion.process import Process, x0_from_eps
from diffusion_core.diffusion.schedule import Schedule
from diffusion_core.sampling.ddim import ddim
from duet.exercises.definition import Solution, add, distance, normal
from duet.exercises.predictions import ALPHA_BAR

Array = NDArray[np.float64]

DDIM = "Song et al., 2020, https://arxiv.org/abs/2010.02502"
_X, _X0, _EPS, _Z = (normal(f"step {name}", 2, 3, 2) for name in ("x", "x0", "eps", "z"))


def _signal(alpha_bar: Array, t: int) -> float:
    """Return alpha_bar of t, 1 for clean data, t = -1."""
    return 1.0 if t < 0 else alpha_bar[t]


def ddim_step(x, eps, t, s, alpha_bar):
    """Return x_s after one deterministic DDIM step from timestep t to a less noisy s, with the shape of x.

        x_0 = (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t)
        x_s = sqrt(alpha_bar_s) x_0 + sqrt(1 - alpha_bar_s) eps

    eps is the network's output at t, with the shape of x. t and s are whole numbers, s < t, and need not be neighbours;
    s = -1 stands for clean data, with alpha_bar = 1. alpha_bar is the table, with shape (T,).
    """
    return ddim_eta_step(x, eps, 0.0, t, s, alpha_bar, 0.0)


def ddim_eta_step(x, eps, z, t, s, alpha_bar, eta):
    """Return x_s after one DDIM step with fresh noise from timestep t to a less noisy s, with the shape of x.

        v   = eta^2 (1 - alpha_bar_s) / (1 - alpha_bar_t) (1 - alpha_bar_t / alpha_bar_s)      the variance of the noise
        x_0 = (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t)
        x_s = sqrt(alpha_bar_s) x_0 + sqrt(1 - alpha_bar_s - v) eps + sqrt(v) z

    eps is the network's output at t and z normal noise, both with the shape of x. t and s are whole numbers, s < t,
    and need not be neighbours; s = -1 stands for clean data, with alpha_bar = 1. alpha_bar is the table, with shape
    (T,). eta = 0 is deterministic, and eta = 1 is DDPM with the variance of the posterior.
    """
    bars = np.array([_signal(alpha_bar, s), alpha_bar[t]])[int(s < 0) :]
    plan = ddim(Process(Schedule("exercise", np.sqrt(bars), np.sqrt(1 - bars))), None, eta, "linspace", None)
    estimate = x0_from_eps(x, eps, plan.alpha[0], plan.sigma[0])
    return plan.state[0, 0, 0] * x + plan.denoised[0, 0, 0] * estimate + plan.noise[0, 0] * z


def _ddim(estimate=None, mix=None, levels=None, clip=False) -> Solution:
    """Return a deterministic step with another estimate of x_0, another sum or other levels."""

    def solution(x, eps, t, s, alpha_bar):
        at, to = levels(t, s, alpha_bar) if levels else (alpha_bar[t], _signal(alpha_bar, s))
        x0 = estimate(x, eps, at) if estimate else (x - np.sqrt(1 - at) * eps) / np.sqrt(at)
        x0 = np.clip(x0, -1, 1) if clip else x0
        return mix(x, x0, eps, at, to) if mix else np.sqrt(to) * x0 + np.sqrt(1 - to) * eps

    return solution


def _forgot_roots(x, eps, t, s, alpha_bar):
    at, to = alpha_bar[t], _signal(alpha_bar, s)
    return to * (x - (1 - at) * eps) / at + (1 - to) * eps


_STEPS = {
    "a step from t = 7 to s = 4": (7, 4),
    "a step from t = 4 to s = 3": (4, 3),
    "the last step, from t = 2 to clean data, s = -1": (2, -1),
}
_NOISY = np.sqrt(ALPHA_BAR[7]) * _X0 + np.sqrt(1 - ALPHA_BAR[7]) * _EPS

add(
    ddim_step,
    title="One deterministic step of DDIM",
    source=DDIM + ", eq. 12 with sigma_t = 0",
    cases={name: {"x": _X, "eps": _EPS, "t": t, "s": s, "alpha_bar": ALPHA_BAR} for name, (t, s) in _STEPS.items()},
    laws={
        "With the true noise the step stays on the image's own line: x_s has the same x_0 and eps.": lambda f: distance(
            f(_NOISY, _EPS, 7, 2, ALPHA_BAR), np.sqrt(ALPHA_BAR[2]) * _X0 + np.sqrt(1 - ALPHA_BAR[2]) * _EPS
        ),
        "The step to clean data, s = -1, returns the estimate of x_0.": lambda f: distance(
            f(_NOISY, _EPS, 7, -1, ALPHA_BAR), _X0
        ),
        "With the same eps, two steps are one: t to r and r to s is t to s.": lambda f: distance(
            f(f(_X, _EPS, 8, 5, ALPHA_BAR), _EPS, 5, 1, ALPHA_BAR), f(_X, _EPS, 8, 1, ALPHA_BAR)
        ),
    },
    mistakes={
        "last_entry_for_clean_data": (
            "At the last step alpha_bar[s] is alpha_bar[-1], which Python reads as the noisiest level; s = -1 is "
            "clean data, alpha_bar = 1.",
            _ddim(levels=lambda t, s, bar: (bar[t], bar[s])),
        ),
        "first_entry_for_clean_data": (
            "The last step leads to the level of t = 0, which is still noisy; s = -1 is clean data, alpha_bar = 1.",
            _ddim(levels=lambda t, s, bar: (bar[t], bar[max(s, 0)])),
        ),
        "steps_of_one": (
            "The step leads to t - 1; it must lead to s, however far that is.",
            _ddim(levels=lambda t, s, bar: (bar[t], _signal(bar, t - 1))),
        ),
        "off_by_one_earlier": (
            "The table is read one timestep too early; alpha_bar[t] is the level of timestep t.",
            _ddim(levels=lambda t, s, bar: (bar[t - 1], _signal(bar, s - 1))),
            _ddim(levels=lambda t, s, bar: (bar[t - 1], bar[s - 1])),
            _ddim(levels=lambda t, s, bar: (bar[t - 1], _signal(bar, s))),
            _ddim(levels=lambda t, s, bar: (np.append(1.0, bar)[t], np.append(1.0, bar)[s])),
            _ddim(levels=lambda t, s, bar: (bar[t], _signal(bar, s - 1))),
        ),
        "off_by_one_later": (
            "The table is read one timestep too late; alpha_bar[t] is the level of timestep t.",
            _ddim(levels=lambda t, s, bar: (bar[t + 1], bar[s + 1])),
            _ddim(levels=lambda t, s, bar: (bar[t + 1], _signal(bar, s))),
            _ddim(levels=lambda t, s, bar: (bar[t], bar[s + 1])),
        ),
        "t_and_s_exchanged": (
            "alpha_bar_t and alpha_bar_s are exchanged, so the step goes towards more noise.",
            _ddim(levels=lambda t, s, bar: (_signal(bar, s), bar[t])),
        ),
        "roots_forgotten": ("alpha_bar and 1 - alpha_bar are used where their square roots belong.", _forgot_roots),
        "signal_root_forgotten": (
            "x_0 is multiplied by alpha_bar_s; it must be sqrt(alpha_bar_s).",
            _ddim(mix=lambda x, x0, eps, at, to: to * x0 + np.sqrt(1 - to) * eps),
        ),
        "noise_root_forgotten": (
            "eps is multiplied by the variance 1 - alpha_bar_s; it must be sqrt(1 - alpha_bar_s).",
            _ddim(mix=lambda x, x0, eps, at, to: np.sqrt(to) * x0 + (1 - to) * eps),
        ),
        "estimate_root_forgotten": (
            "In the estimate of x_0, 1 - alpha_bar_t stands where sqrt(1 - alpha_bar_t) belongs.",
            _ddim(lambda x, eps, at: (x - (1 - at) * eps) / np.sqrt(at)),
        ),
        "estimate_divided_by_alpha_bar": (
            "The estimate of x_0 is divided by alpha_bar_t; it must be sqrt(alpha_bar_t).",
            _ddim(lambda x, eps, at: (x - np.sqrt(1 - at) * eps) / at),
        ),
        "estimate_not_divided": (
            "The estimate of x_0 is not divided by sqrt(alpha_bar_t).",
            _ddim(lambda x, eps, at: x - np.sqrt(1 - at) * eps),
        ),
        "estimate_sign": (
            "The noise is added in the estimate of x_0; it must be subtracted.",
            _ddim(lambda x, eps, at: (x + np.sqrt(1 - at) * eps) / np.sqrt(at)),
        ),
        "noise_of_t": (
            "eps is multiplied by sqrt(1 - alpha_bar_t), the noise that was there; it must be sqrt(1 - alpha_bar_s), "
            "the noise that remains.",
            _ddim(mix=lambda x, x0, eps, at, to: np.sqrt(to) * x0 + np.sqrt(1 - at) * eps),
        ),
        "signal_of_t": (
            "x_0 is multiplied by sqrt(alpha_bar_t); it must be sqrt(alpha_bar_s).",
            _ddim(mix=lambda x, x0, eps, at, to: np.sqrt(at) * x0 + np.sqrt(1 - to) * eps),
        ),
        "x_and_eps_in_each_others_place": (
            "x_0 and eps are exchanged in the last line: sqrt(alpha_bar_s) belongs to x_0.",
            _ddim(mix=lambda x, x0, eps, at, to: np.sqrt(to) * eps + np.sqrt(1 - to) * x0),
        ),
        "x_t_for_x0": (
            "x_t stands where the estimate of x_0 belongs.",
            _ddim(mix=lambda x, x0, eps, at, to: np.sqrt(to) * x + np.sqrt(1 - to) * eps),
        ),
        "noise_forgotten": (
            "The noise that remains at s is missing: sqrt(1 - alpha_bar_s) eps.",
            _ddim(mix=lambda x, x0, eps, at, to: np.sqrt(to) * x0),
        ),
        "noise_subtracted": (
            "The noise that remains at s is subtracted; it must be added.",
            _ddim(mix=lambda x, x0, eps, at, to: np.sqrt(to) * x0 - np.sqrt(1 - to) * eps),
        ),
        "clipped": (
            "The estimate of x_0 is clipped to [-1, 1]; the exercise asks for the plain step.",
            _ddim(clip=True),
        ),
    },
)


def _noisy_ddim(variance=None, kept=None, fresh=np.sqrt, clean=_signal, noise=None) -> Solution:
    """Return a step with another variance, remaining noise, or fresh noise."""

    def solution(x, eps, z, t, s, alpha_bar, eta):
        at, to = alpha_bar[t], clean(alpha_bar, s)
        v = variance(at, to, eta) if variance else eta**2 * (1 - to) / (1 - at) * (1 - at / to)
        x0 = (x - np.sqrt(1 - at) * eps) / np.sqrt(at)
        remaining = kept(to, v) if kept else np.sqrt(1 - to - v)
        return np.sqrt(to) * x0 + (noise(eps, z, remaining, fresh(v)) if noise else remaining * eps + fresh(v) * z)

    return solution


_ETAS = (0.7, 1.0, 0.7)

add(
    ddim_eta_step,
    title="One step of DDIM with fresh noise, eta",
    source=DDIM + ", eqs. 12 and 16",
    cases={
        f"{name}, eta = {eta}": {"x": _X, "eps": _EPS, "z": _Z, "t": t, "s": s, "alpha_bar": ALPHA_BAR, "eta": eta}
        for (name, (t, s)), eta in zip(_STEPS.items(), _ETAS, strict=True)
    },
    laws={
        "eta = 0 is the deterministic step, whatever z is.": lambda f: distance(
            f(_NOISY, _EPS, _Z, 7, 2, ALPHA_BAR, 0.0), np.sqrt(ALPHA_BAR[2]) * _X0 + np.sqrt(1 - ALPHA_BAR[2]) * _EPS
        ),
        "eta does not change the noise level: the squared factors of eps and z add up to 1 - alpha_bar_s.": (
            lambda f: distance(_noise_power(f), 1 - ALPHA_BAR[3])
        ),
        "The step to clean data adds no noise.": lambda f: distance(f(_NOISY, _EPS, _Z, 7, -1, ALPHA_BAR, 1.0), _X0),
    },
    mistakes={
        "remaining_noise_not_reduced": (
            "The noise that remains is sqrt(1 - alpha_bar_s); it must be sqrt(1 - alpha_bar_s - v), because fresh "
            "noise takes the place of some of it.",
            _noisy_ddim(kept=lambda to, v: np.sqrt(1 - to)),
        ),
        "variance_for_deviation": (
            "The fresh noise is multiplied by its variance v; it must be sqrt(v).",
            _noisy_ddim(fresh=lambda v: v),
        ),
        "deviation_subtracted": (
            "The standard deviation sqrt(v) is subtracted under the root; it must be the variance v.",
            _noisy_ddim(kept=lambda to, v: np.sqrt(1 - to - np.sqrt(v))),
        ),
        "remaining_root_forgotten": (
            "eps is multiplied by 1 - alpha_bar_s - v; it must be the square root of that.",
            _noisy_ddim(kept=lambda to, v: 1 - to - v),
        ),
        "eta_not_squared": (
            "The variance has eta; it must be eta^2.",
            _noisy_ddim(lambda at, to, eta: eta * (1 - to) / (1 - at) * (1 - at / to)),
        ),
        "eta_ignored": (
            "eta is ignored: the noise is that of eta = 1.",
            _noisy_ddim(lambda at, to, eta: (1 - to) / (1 - at) * (1 - at / to)),
        ),
        "fraction_inverted": (
            "The first fraction is upside down: it is (1 - alpha_bar_s) / (1 - alpha_bar_t).",
            _noisy_ddim(lambda at, to, eta: eta**2 * (1 - at) / (1 - to) * (1 - at / to)),
        ),
        "beta_forgotten": (
            "The factor 1 - alpha_bar_t / alpha_bar_s, the beta of the step, is missing.",
            _noisy_ddim(lambda at, to, eta: eta**2 * (1 - to) / (1 - at)),
        ),
        "beta_for_beta_tilde": (
            "The variance is that of the step, 1 - alpha_bar_t / alpha_bar_s; the posterior's has the factor "
            "(1 - alpha_bar_s) / (1 - alpha_bar_t) too.",
            _noisy_ddim(lambda at, to, eta: eta**2 * (1 - at / to)),
        ),
        "noise_forgotten": ("No fresh noise is added: sqrt(v) z is missing.", _noisy_ddim(fresh=lambda v: 0.0)),
        "eps_and_z_exchanged": (
            "eps and z are exchanged: sqrt(v) belongs to the fresh noise z.",
            _noisy_ddim(noise=lambda eps, z, kept, fresh: kept * z + fresh * eps),
        ),
        "last_entry_for_clean_data": (
            "At the last step alpha_bar[s] is alpha_bar[-1], which Python reads as the noisiest level; s = -1 is "
            "clean data, alpha_bar = 1.",
            _noisy_ddim(clean=lambda bar, s: bar[s]),
        ),
    },
)


def _noise_power(f: Solution) -> Array:
    """Return the sum of the squared factors of eps and z in a step at a fixed x_0."""
    zero, one = np.zeros((1, 2)), np.ones((1, 2))
    noise = f(np.sqrt(1 - ALPHA_BAR[6]) * one, one, zero, 6, 3, ALPHA_BAR, 0.8)
    fresh = f(zero, zero, one, 6, 3, ALPHA_BAR, 0.8)
    return noise**2 + fresh**2
