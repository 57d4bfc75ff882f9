r"""Heun's method: each step goes to the next level, looks again, and takes the mean of both slopes.

    heun         in the variable r = sigma/alpha, with churn, as EDM has it
    flow_heun    in sigma/(alpha + sigma), along the straight line of flow matching

See `steps` for the two variables. The step to clean data is Euler's, so N steps have 2N - 1 evaluations.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), algorithms 1 and 2,
    https://arxiv.org/abs/2206.00364
    diffusers (huggingface/diffusers, scheduling_flow_match_heun_discrete.py)
"""

from __future__ import annotations

import numpy as np

from diffusion_core.diffusion.process import Process
from diffusion_core.sampling.grid import make_timesteps
from diffusion_core.sampling.plan import SamplerPlan
from diffusion_core.sampling.spacing import Spacing, Steps
from diffusion_core.sampling.steps import add_churn, one_step_plan, shift_timesteps

__all__ = ["flow_heun", "heun"]


def heun(
    process: Process,
    steps: Steps = 18,
    spacing: Spacing = "karras",
    clip: float | None = None,
    s_churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float | None = None,
    s_noise: float = 1.0,
) -> SamplerPlan:
    """Heun's method of EDM, with churn where s_churn is positive; two evaluations per step, and one for the last.

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
    return one_step_plan(process, "heun", starts, left, np.append(t[1:], np.nan), s_noise=s_noise, clip=clip)


def flow_heun(
    process: Process,
    steps: Steps = 25,
    shift: float = 1.0,
    spacing: Spacing = "linspace",
    clip: float | None = None,
) -> SamplerPlan:
    """Heun's method along the straight line of flow matching; two evaluations per step, and one for the last.

    Args:
        process: what the network was trained for; the first level may be noise alone.
        steps: how many, or another answer of `spacing`.
        shift: see `steps.shift_timesteps`; 1 is none.
        spacing: see `grid` and `spacing`.
        clip: see `SamplerPlan`.

    Raises:
        DuetError: if a number does not fit.
    """
    t = shift_timesteps(process.schedule, make_timesteps(process.schedule, steps, spacing), shift)
    return one_step_plan(process, "flow_heun", t, second=np.append(t[1:], np.nan), variable="flow", clip=clip)
