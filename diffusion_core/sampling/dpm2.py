r"""DPM-Solver-2 as k-diffusion has it: each step takes the slope of the level halfway in log(sigma/alpha).

    x_m = Euler's step from t to m,      r_m = sqrt(r_t r_d)
    y_d = y_t + (r_d - r_t) (y_m - D_m)/r_m,               y = x/alpha,   r = sigma/alpha

The ancestral form goes to the r_down of `euler_ancestral` and adds r_up of noise. The step to clean data is Euler's,
and so is one that makes all its noise anew. diffusers calls both KDPM2.

References:
    DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps (Lu et al., 2022),
    https://arxiv.org/abs/2206.00927
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
    https://arxiv.org/abs/2206.00364
    k-diffusion (crowsonkb/k-diffusion, k_diffusion/sampling.py, sample_dpm_2, sample_dpm_2_ancestral)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import AnySchedule
from diffusion_core.sampling.grid import make_timesteps
from diffusion_core.sampling.plan import SamplerPlan
from diffusion_core.sampling.spacing import Spacing, Steps
from diffusion_core.sampling.steps import add_churn, ancestral_fractions, log_ratio, needs_signal, one_step_plan

__all__ = ["dpm2", "dpm2_ancestral"]


def dpm2(
    process: Process,
    steps: Steps = 25,
    spacing: Spacing = "karras",
    clip: float | None = None,
    s_churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float | None = None,
    s_noise: float = 1.0,
) -> SamplerPlan:
    """The deterministic form, or one with churn; two evaluations per step, and one for the last.

    Args:
        process: what the network was trained for; the first level must have some signal (alpha > 0).
        steps: how many, or another answer of `spacing`.
        spacing: see `grid` and `spacing`.
        clip: see `SamplerPlan`.
        s_churn: see `steps.add_churn`; so are s_min and s_max.
        s_min: least sigma/alpha that is raised.
        s_max: largest one; None is no bound.
        s_noise: standard deviation of the noise that raises.

    Raises:
        DuetError: if a number does not fit, or for a first level without signal.
    """
    t = make_timesteps(process.schedule, steps, spacing)
    starts, left = add_churn(process.schedule, t, s_churn, s_min, s_max)
    second = _halfway("dpm2", process.schedule, starts, left)
    return one_step_plan(process, "dpm2", starts, left, second, 1.0, s_noise=s_noise, clip=clip)


def dpm2_ancestral(
    process: Process,
    steps: Steps = 25,
    eta: float = 1.0,
    s_noise: float = 1.0,
    spacing: Spacing = "karras",
    clip: float | None = None,
) -> SamplerPlan:
    """The form with the noise of ancestral sampling; two evaluations per step, and one for the last.

    Args:
        process: what the network was trained for; the first level must have some signal (alpha > 0).
        steps: how many, or another answer of `spacing`.
        eta: share of ancestral sampling's noise, at least 0.
        s_noise: what the fresh noise is multiplied with.
        spacing: see `grid` and `spacing`.
        clip: see `SamplerPlan`.

    Raises:
        DuetError: if a number does not fit, or for a first level without signal.
    """
    t = make_timesteps(process.schedule, steps, spacing)
    left = ancestral_fractions(process.schedule, t, eta)
    second = _halfway("dpm2_ancestral", process.schedule, t, left)
    return one_step_plan(process, "dpm2_ancestral", t, left, second, 1.0, s_noise=s_noise, clip=clip)


def _halfway(name: str, schedule: AnySchedule, starts: NDArray, left: NDArray) -> NDArray:
    """The t halfway between each start and the level that its move leads to, NaN where that is clean data."""
    alpha, _ = schedule(starts)
    needs_signal(name, alpha)
    now = log_ratio(schedule, starts)
    second = np.full(len(starts), np.nan)
    moves = left[1:] > 0
    down = now[1:][moves] + np.log(left[1:][moves])
    second[:-1][moves] = schedule.t_at_log_ratio((now[:-1][moves] + down) / 2)
    return second
