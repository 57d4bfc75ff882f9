r"""Euler's method for the probability flow, with or without fresh noise.

    euler              x_s = sigma_s/sigma_t x_t + (alpha_s - alpha_t sigma_s/sigma_t) D
    euler_ancestral    the same to the level d, sigma_d/alpha_d = r_down, then noise r_up up to s:
                       r_up = min(r_s, eta r_s sqrt(1 - r_s^2/r_t^2)),    r_down^2 = r_s^2 - r_up^2

with r = sigma/alpha. Euler's step is the same in any variable in which known data move on a straight line, so it is
DDIM's with eta = 0, and flow_euler its name where a grid can be shifted; the ancestral one is DDIM's with its eta, and
goes on beyond eta = 1 to where a step makes all its noise anew. Churn raises a level before it is looked at.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), algorithm 2 without its
    second evaluation, https://arxiv.org/abs/2206.00364
    k-diffusion (crowsonkb/k-diffusion, k_diffusion/sampling.py, sample_euler, sample_euler_ancestral)
    Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Esser et al., 2024), section 5.3.2, shift,
    https://arxiv.org/abs/2403.03206
"""

from __future__ import annotations

from diffusion_core.diffusion.process import Process
from diffusion_core.sampling.grid import make_timesteps
from diffusion_core.sampling.plan import SamplerPlan
from diffusion_core.sampling.spacing import Spacing, Steps
from diffusion_core.sampling.steps import add_churn, ancestral_fractions, one_step_plan, shift_timesteps

__all__ = ["euler", "euler_ancestral", "flow_euler"]


def euler(
    process: Process,
    steps: Steps = 50,
    spacing: Spacing = "linspace",
    clip: float | None = 1.0,
    s_churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float | None = None,
    s_noise: float = 1.0,
) -> SamplerPlan:
    """Euler's method, with churn where s_churn is positive; one evaluation per step.

    Args:
        process: what the network was trained for.
        steps: how many, or another answer of `spacing`.
        spacing: see `grid` and `spacing`.
        clip: see `SamplerPlan`.
        s_churn: see `steps.add_churn`; so are s_min and s_max.
        s_min: least sigma/alpha that is raised.
        s_max: largest one; None is no bound.
        s_noise: standard deviation of the noise that raises.

    Raises:
        DuetError: if a number does not fit.
    """
    t = make_timesteps(process.schedule, steps, spacing)
    starts, left = add_churn(process.schedule, t, s_churn, s_min, s_max)
    return one_step_plan(process, "euler", starts, left, s_noise=s_noise, clip=clip)


def euler_ancestral(
    process: Process,
    steps: Steps = 50,
    eta: float = 1.0,
    s_noise: float = 1.0,
    spacing: Spacing = "linspace",
    clip: float | None = 1.0,
) -> SamplerPlan:
    """Euler's method with the noise of ancestral sampling; one evaluation per step.

    Args:
        process: what the network was trained for.
        steps: how many, or another answer of `spacing`.
        eta: share of ancestral sampling's noise, at least 0.
        s_noise: what the fresh noise is multiplied with.
        spacing: see `grid` and `spacing`.
        clip: see `SamplerPlan`.

    Raises:
        DuetError: if a number does not fit.
    """
    t = make_timesteps(process.schedule, steps, spacing)
    return one_step_plan(
        process, "euler_ancestral", t, ancestral_fractions(process.schedule, t, eta), s_noise=s_noise, clip=clip
    )


def flow_euler(
    process: Process,
    steps: Steps = 50,
    shift: float = 1.0,
    spacing: Spacing = "linspace",
    clip: float | None = None,
) -> SamplerPlan:
    """Euler's method along the straight line of flow matching; one evaluation per step.

    Args:
        process: what the network was trained for.
        steps: how many, or another answer of `spacing`.
        shift: see `steps.shift_timesteps`; 1 is none.
        spacing: see `grid` and `spacing`.
        clip: see `SamplerPlan`.

    Raises:
        DuetError: if a number does not fit.
    """
    t = shift_timesteps(process.schedule, make_timesteps(process.schedule, steps, spacing), shift)
    return one_step_plan(process, "flow_euler", t, clip=clip)
