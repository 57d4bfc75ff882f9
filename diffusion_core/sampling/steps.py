r"""Methods of one step: Euler's and those that look at a second level, with or without noise between the steps.

With n a norm of the level, u = x/n and tau = sigma/n, the probability-flow ODE is

    du/dtau = (x - n D)/sigma

    variable   n               tau                    du/dtau
    ratio      alpha           r = sigma/alpha        eps                  the sigma of EDM and k-diffusion
    flow       alpha + sigma   sigma/(alpha+sigma)    eps - D              the velocity of flow matching

Both are stated for any schedule, and along both a picture with a known x_0 moves on a straight line, so an exact
estimate leads from any level to any other. A step from level t to a level d is, with f the slope at t and f_m that at
a level m,

    one evaluation      u_d = u_t + (tau_d - tau_t) f                                 in x the same for every n:
                        x_d = sigma_d/sigma_t x_t + (alpha_d - alpha_t sigma_d/sigma_t) D
    two evaluations     u_m = u_t + (tau_m - tau_t) f
                        u_d = u_t + (tau_d - tau_t) ((1 - b) f + b f_m)

The second row of two takes what is missing of u_d from register 1. At the end of a step fresh noise raises d to the
level at which the next step starts: that is how ancestral sampling stays on its levels, how churn raises them before
they are looked at, and how restarts go back. For the first step the start itself is the raised level: noise that is
added to noise is noise.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), algorithms 1 and 2,
    https://arxiv.org/abs/2206.00364
    Flow Matching for Generative Modeling (Lipman et al., 2022), https://arxiv.org/abs/2210.02747
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import AnySchedule
from diffusion_core.sampling.plan import SamplerPlan, plan_levels

__all__ = [
    "VARIABLES",
    "ancestral_fractions",
    "add_churn",
    "log_ratio",
    "needs_signal",
    "shift_timesteps",
    "one_step_plan",
]

Array = NDArray[np.float64]

VARIABLES: Mapping[str, Callable[[Array, Array], Array]] = {
    "ratio": lambda alpha, sigma: alpha,
    "flow": lambda alpha, sigma: alpha + sigma,
}


def one_step_plan(
    process: Process,
    name: str,
    starts: NDArray,
    left: NDArray | None = None,
    second: NDArray | None = None,
    share: float = 0.5,
    variable: str = "ratio",
    s_noise: float = 1.0,
    clip: float | None = None,
) -> SamplerPlan:
    """The plan of K steps, each with one evaluation or two.

    Args:
        process: what the network was trained for.
        name: of the method.
        starts: the t at which each step starts, with shape (K,); the last step leads to clean data.
        left: the share of each start's sigma/alpha that is there before fresh noise makes up for the rest, with shape
            (K,); None is 1, no noise.
        second: the t of each step's second evaluation, NaN where there is none, with shape (K,); None is none at all.
        share: b, the weight of the second slope.
        variable: one of `VARIABLES`.
        s_noise: what the fresh noise is multiplied with.
        clip: see `SamplerPlan`.

    Raises:
        DuetError: for an s_noise that is no scale, or if the first level has no signal where the method needs it.
    """
    if not 0 <= s_noise < math.inf:
        raise DuetError(f"sampler.s_noise: {s_noise} was given; it must be a number, at least 0")
    K = len(starts)
    second = np.full(K, np.nan) if second is None else second
    left = np.ones(K) if left is None else left
    # A move ends where the next step starts, before fresh noise; the last one at clean data.
    then_left = np.append(left[1:], 1.0)
    two = np.isfinite(second)
    # Row of each step's first evaluation; the rows between are the second ones.
    row = np.arange(K) + np.append(0, np.cumsum(two[:-1]))
    t = np.empty(K + two.sum())
    t[row], t[row[two] + 1] = starts, second[two]
    levels = plan_levels(process, t)
    alpha, sigma = levels["alpha"], levels["sigma"]
    if np.any(two) and variable == "ratio":
        needs_signal(name, alpha)
    norm = VARIABLES[variable]
    registers = 1 + bool(np.any(two))
    state, denoised = np.zeros((len(t), registers, registers)), np.zeros((len(t), registers, 1))
    noise = np.zeros((len(t), registers))
    for k, i in enumerate(row):
        end = i + 1 + two[k]
        down = sigma[end] * then_left[k]
        decay = down / sigma[i]
        gain = alpha[end] - alpha[i] * decay
        if two[k]:
            m = i + 1
            state[i, 0, 0] = sigma[m] / sigma[i]
            denoised[i, 0, 0] = alpha[m] - alpha[i] * sigma[m] / sigma[i]
            # In register 1: b u_t + (1 - b) (u_t + (tau_d - tau_t) f), in units of x at the level d.
            n, n_down = norm(alpha[i], sigma[i]), norm(alpha[end], down)
            state[i, 1, 0] = share * n_down / n + (1 - share) * decay
            denoised[i, 1, 0] = (1 - share) * gain
            length = share * n_down * (down / n_down - sigma[i] / n)
            state[m, 0] = length / sigma[m], 1.0
            denoised[m, 0, 0] = -length * norm(alpha[m], sigma[m]) / sigma[m]
        else:
            state[i, 0, 0], denoised[i, 0, 0] = decay, gain
        noise[end - 1, 0] = s_noise * math.sqrt((sigma[end] - down) * (sigma[end] + down))
    levels["start_scale"] *= math.hypot(left[0], s_noise * math.sqrt(1 - left[0] ** 2))
    return SamplerPlan(
        name=f"{name}-{K}",
        **levels,
        state=state,
        denoised=denoised,
        noise=noise,
        clip=clip,
        preserves="marginals" if s_noise == 1 else "mean",
    )


def log_ratio(schedule: AnySchedule, t: NDArray) -> Array:
    """log(sigma/alpha) at the levels t, inf where there is no signal."""
    alpha, sigma = schedule(t)
    with np.errstate(divide="ignore"):
        return np.log(sigma) - np.log(alpha)


def ancestral_fractions(schedule: AnySchedule, t: NDArray, eta: float) -> Array:
    """What each move of ancestral sampling leaves to fresh noise, as `left` of `one_step_plan`, with shape (N,).

    Raises:
        DuetError: for a negative eta.
    """
    if not 0 <= eta < math.inf:
        raise DuetError(f"sampler.eta: {eta} was given; it must be a number, at least 0 (deterministic)")
    shrink = np.exp(np.diff(log_ratio(schedule, t)))
    # 1 - eta^2 (1 - shrink^2), in which nothing cancels at eta = 1.
    return np.append(1.0, np.sqrt(np.maximum((1 - eta) * (1 + eta) + (eta * shrink) ** 2, 0.0)))


def add_churn(
    schedule: AnySchedule, t: NDArray, s_churn: float, s_min: float, s_max: float | None
) -> tuple[NDArray, Array]:
    """The raised levels of algorithm 2 of Karras et al. and what of each was there before, each with shape (N,).

    sigma/alpha grows by the factor 1 + min(s_churn/N, sqrt(2) - 1) where it is in [s_min, s_max], and no further than
    the schedule's largest.

    Returns:
        (starts, left) of `one_step_plan`.

    Raises:
        DuetError: if a number does not fit.
    """
    if not 0 <= s_churn < math.inf:
        raise DuetError(f"sampler.s_churn: {s_churn} was given; it must be a number, at least 0 (no noise)")
    s_max = math.inf if s_max is None else s_max
    if not 0 <= s_min < s_max:
        raise DuetError(f"sampler.s_min: {s_min} was given with s_max {s_max}; they must be two rising sigma/alpha")
    now = log_ratio(schedule, t)
    inside = (np.exp(now) >= s_min) & (np.exp(now) <= s_max) & (s_churn > 0)
    most = now + math.log1p(min(s_churn / len(t), math.sqrt(2) - 1))
    raised = np.minimum(most, schedule.ends[1])
    inside &= raised > now
    starts = t.astype(np.float64)
    starts[inside] = schedule.t_at_log_ratio(raised[inside])
    left = np.ones(len(t))
    left[inside] = np.exp(now[inside] - raised[inside])
    return starts, left


def shift_timesteps(schedule: AnySchedule, t: NDArray, shift: float) -> NDArray:
    """The levels whose sigma/alpha is `shift` times as large, as far as the schedule goes.

    On the straight line of flow matching that is sigma <- shift sigma / (1 + (shift - 1) sigma) (Esser et al., 2024,
    section 5.3.2).

    Raises:
        DuetError: for a shift that is not positive.
    """
    if not 0 < shift < math.inf:
        raise DuetError(f"sampler.shift: {shift} was given; it must be a positive number, 1 for none")
    if shift == 1:
        return t
    return schedule.t_at_log_ratio(
        np.clip(log_ratio(schedule, t) + math.log(shift), *log_ratio(schedule, np.array(schedule.span)))
    )


def needs_signal(name: str, alpha: Array) -> None:
    """Refuse a first level without signal."""
    if alpha[0] == 0:
        raise DuetError(
            f"sampler {name}: its first level has no signal (alpha 0), so sigma/alpha is infinite; use flow_heun or "
            "ddim, or a grid, as spacing=karras"
        )
