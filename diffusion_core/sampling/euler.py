r"""Euler's method for the probability-flow ODE, with or without fresh noise.

    euler              x_s = sigma_s/sigma_t x_t + (alpha_s - alpha_t sigma_s/sigma_t) D
    euler_ancestral    the same to the level d, sigma_d/alpha_d = r_down, then noise r_up up to s:
                       r_up = min(r_s, eta r_s sqrt(1 - r_s^2/r_t^2)),    r_down^2 = r_s^2 - r_up^2

with r = sigma/alpha. Euler's step is the same in any variable in which an x with a known x_0 moves on a straight line.
So `euler` and `flow_euler` are DDIM with eta = 0, the latter with a shift of the timesteps. `euler_ancestral` is DDIM
with the same eta, which may exceed 1, up to the point where a step replaces all of its noise. Churn raises a noise
level before the network sees it.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), algorithm 2 without its
    second evaluation, https://arxiv.org/abs/2206.00364
    k-diffusion (crowsonkb/k-diffusion, k_diffusion/sampling.py, sample_euler, sample_euler_ancestral)
    Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Esser et al., 2024), section 5.3.2, shift,
    https://arxiv.org/abs/2403.03206
"""

from __future__ import annotations

from diffusion_core.diffusion.process import Process
from diffusion_core.sampling.clock import Variable, make_clock
from diffusion_core.sampling.declaration import Method, sampler
from diffusion_core.sampling.families import FLOW, SCHEDULERS
from diffusion_core.sampling.grid import Grid, make_grid
from diffusion_core.sampling.plan import SamplerPlan
from diffusion_core.sampling.spacing import Spacing, Steps
from diffusion_core.sampling.steps import add_churn, ancestral_fractions, one_step_plan, shift_timesteps

__all__ = ["euler", "euler_ancestral", "flow_euler"]


@sampler(
    Method("Euler", order=1),
    family=SCHEDULERS,
    paper="Karras et al. 2022",
    url="https://arxiv.org/abs/2206.00364",
    equation="algorithm 2 without its second evaluation",
    notes="Equal to `ddim`, except with `variable` t, vp or ve (EDM's algorithm 1 without its second evaluation). "
    "Stochastic with `s_churn` > 0.",
)
def euler(
    process: Process,
    steps: Steps = 50,
    spacing: Spacing = SCHEDULERS.spacing,
    clip: float | None = SCHEDULERS.clip,
    s_churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float | None = None,
    s_noise: float = 1.0,
    variable: Variable = "ratio",
) -> SamplerPlan:
    """Make a plan of Euler's method, with churn if s_churn is positive; one evaluation per step.

    Args:
        process: the process that the network was trained for.
        steps: number of steps, or another form of `spacing`.
        spacing: where the timesteps lie, see `grid` and `spacing`.
        clip: bound of the estimates, see `SamplerPlan`.
        s_churn: amount of churn over all steps, see `steps.add_churn`; 0 for none.
        s_min: smallest sigma/alpha with churn.
        s_max: largest sigma/alpha with churn; None for no bound.
        s_noise: factor of the fresh noise.
        variable: the time in which steps are straight: ``"ratio"``, ``"t"``, ``"vp"`` or ``"ve"``, see `clock`.

    Raises:
        DuetError: if a number is out of range.

    Example:
        >>> from diffusion_core.diffusion.schedule import linear
        >>> euler(Process(linear(), "v"), steps=10, s_churn=4.0)
        SamplerPlan('euler-10', rows=10, registers=1, stochastic=True)
    """
    grid = make_grid(process.schedule, steps, spacing)
    starts, kept = add_churn(process.schedule, grid.t, s_churn, s_min, s_max)
    clock = make_clock(process.schedule, variable)
    return one_step_plan(process, "euler", Grid(starts, grid.end), kept, s_noise=s_noise, clip=clip, clock=clock)


@sampler(
    Method("Euler ancestral", order=1, stochastic=True),
    family=SCHEDULERS,
    paper="k-diffusion",
    url="https://github.com/crowsonkb/k-diffusion",
    equation="sample_euler_ancestral",
    notes="Equal to `ddim` with the same `eta`, which may exceed 1 here.",
)
def euler_ancestral(
    process: Process,
    steps: Steps = 50,
    eta: float = 1.0,
    s_noise: float = 1.0,
    spacing: Spacing = SCHEDULERS.spacing,
    clip: float | None = SCHEDULERS.clip,
) -> SamplerPlan:
    """Make a plan of Euler's method with the fresh noise of ancestral sampling; one evaluation per step.

    Args:
        process: the process that the network was trained for.
        steps: number of steps, or another form of `spacing`.
        eta: fresh noise relative to that of ancestral sampling, at least 0.
        s_noise: factor of the fresh noise.
        spacing: where the timesteps lie, see `grid` and `spacing`.
        clip: bound of the estimates, see `SamplerPlan`.

    Raises:
        DuetError: if a number is out of range.

    Example:
        >>> from diffusion_core.diffusion.schedule import linear
        >>> euler_ancestral(Process(linear(), "v"), steps=10)
        SamplerPlan('euler_ancestral-10', rows=10, registers=1, stochastic=True)
    """
    grid = make_grid(process.schedule, steps, spacing)
    kept = ancestral_fractions(process.schedule, grid.points, eta)
    return one_step_plan(process, "euler_ancestral", grid, kept, s_noise=s_noise, clip=clip)


@sampler(
    Method("Flow Euler", order=1),
    family=FLOW,
    paper="Esser et al. 2024",
    url="https://arxiv.org/abs/2403.03206",
    equation="section 5.3.2",
)
def flow_euler(
    process: Process,
    steps: Steps = 50,
    shift: float = 1.0,
    spacing: Spacing = FLOW.spacing,
    clip: float | None = FLOW.clip,
) -> SamplerPlan:
    """Make a plan of Euler's method along the straight line of flow matching; one evaluation per step.

    Args:
        process: the process that the network was trained for.
        steps: number of steps, or another form of `spacing`.
        shift: factor of every sigma/alpha, see `steps.shift_timesteps`; 1 for no shift.
        spacing: where the timesteps lie, see `grid` and `spacing`.
        clip: bound of the estimates, see `SamplerPlan`.

    Raises:
        DuetError: if a number is out of range.

    Example:
        >>> from diffusion_core.diffusion.schedule import flow
        >>> flow_euler(Process(flow(), "flow"), steps=10, shift=3.0)
        SamplerPlan('flow_euler-10', rows=10, registers=1, stochastic=False)
    """
    grid = shift_timesteps(process.schedule, make_grid(process.schedule, steps, spacing), shift)
    return one_step_plan(process, "flow_euler", grid, clip=clip)
