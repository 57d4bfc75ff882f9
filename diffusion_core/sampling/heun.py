r"""Heun's method: each step goes to the next noise level, evaluates there, and uses the mean of both slopes.

    heun         in the variable r = sigma/alpha, with churn, as in EDM, or in another time (`clock`)
    flow_heun    in sigma/(alpha + sigma), along the straight line of flow matching

With `alpha` below 1 `heun` evaluates again at this part of the step, and the second slope has the weight 1/(2 alpha),
the first the rest: 1/2 is the midpoint method and 2/3 Ralston's. `steps` defines the two variables. The step to clean
data is Euler's, so N steps take 2N - 1 evaluations.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), algorithms 1 to 3,
    https://arxiv.org/abs/2206.00364
    diffusers (huggingface/diffusers, scheduling_flow_match_heun_discrete.py)
"""

from __future__ import annotations

import numpy as np

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process
from diffusion_core.sampling.clock import Variable, between, make_clock
from diffusion_core.sampling.declaration import Method, sampler
from diffusion_core.sampling.families import FLOW, RATIO
from diffusion_core.sampling.grid import Grid, make_grid
from diffusion_core.sampling.plan import SamplerPlan
from diffusion_core.sampling.spacing import Spacing, Steps
from diffusion_core.sampling.steps import add_churn, log_ratio, needs_signal, one_step_plan, shift_timesteps

__all__ = ["flow_heun", "heun"]


@sampler(
    Method("Heun", order=2, evaluations=2, needs_signal=True),
    Method("Heun, churn", order=1, options={"s_churn": 20.0}, stochastic=True, evaluations=2, needs_signal=True),
    family=RATIO,
    paper="Karras et al. 2022",
    url="https://arxiv.org/abs/2206.00364",
    equation="algorithms 1 and 2, 3 for `alpha`",
    notes="Integrates over sigma/alpha, or with `variable` t, vp or ve over another time. `alpha: 0.5` is the midpoint "
    "method.",
)
def heun(
    process: Process,
    steps: Steps = 18,
    spacing: Spacing = RATIO.spacing,
    clip: float | None = RATIO.clip,
    s_churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float | None = None,
    s_noise: float = 1.0,
    variable: Variable = "ratio",
    alpha: float = 1.0,
) -> SamplerPlan:
    """Make a plan of Heun's method as in EDM, with churn if s_churn is positive; two evaluations per step.

    Args:
        process: the process that the network was trained for; the first level must contain signal (alpha > 0).
        steps: number of steps, or another form of `spacing`.
        spacing: where the timesteps lie, see `grid` and `spacing`.
        clip: bound of the estimates, see `SamplerPlan`.
        s_churn: amount of churn over all steps, see `steps.add_churn`; 0 for none.
        s_min: smallest sigma/alpha with churn.
        s_max: largest sigma/alpha with churn; None for no bound.
        s_noise: factor of the fresh noise.
        variable: the time in which steps are straight: ``"ratio"``, ``"t"``, ``"vp"`` or ``"ve"``, see `clock`.
        alpha: where each step evaluates again, as a part of it, above 0 and at most 1.

    Raises:
        DuetError: if a number is out of range, or for a first level without signal.

    Example:
        >>> from diffusion_core.diffusion.schedule import make_schedule
        >>> heun(Process(make_schedule("edm"), "edm"), steps=18)
        SamplerPlan('heun-18', rows=35, registers=2, stochastic=False)
    """
    if not 0 < alpha <= 1:
        raise DuetError(f"sampler.alpha: {alpha} was given; it must be a part of the step, above 0 and at most 1")
    schedule = process.schedule
    grid, clock = make_grid(schedule, steps, spacing), make_clock(schedule, variable)
    starts, kept = add_churn(schedule, grid.t, s_churn, s_min, s_max)
    second = grid.targets
    if alpha < 1:
        needs_signal("heun", schedule(grid.t)[0])
        noisy = np.isfinite(second)
        ends = [log_ratio(schedule, t[noisy]) for t in (starts, second)]
        second[noisy] = schedule.t_at_log_ratio(between(clock, *ends, alpha))
    raised = Grid(starts, grid.end)
    return one_step_plan(
        process, "heun", raised, kept, second, 1 / (2 * alpha), s_noise=s_noise, clip=clip, clock=clock
    )


@sampler(
    Method("Flow Heun", order=2, evaluations=2),
    family=FLOW,
    paper="Lipman et al. 2022",
    url="https://arxiv.org/abs/2210.02747",
    notes="Integrates over sigma/(alpha + sigma).",
)
def flow_heun(
    process: Process,
    steps: Steps = 25,
    shift: float = 1.0,
    spacing: Spacing = FLOW.spacing,
    clip: float | None = FLOW.clip,
) -> SamplerPlan:
    """Make a plan of Heun's method along the straight line of flow matching; two evaluations per step.

    Args:
        process: the process that the network was trained for; the first level may be pure noise.
        steps: number of steps, or another form of `spacing`.
        shift: factor of every sigma/alpha, see `steps.shift_timesteps`; 1 for no shift.
        spacing: where the timesteps lie, see `grid` and `spacing`.
        clip: bound of the estimates, see `SamplerPlan`.

    Raises:
        DuetError: if a number is out of range.

    Example:
        >>> from diffusion_core.diffusion.schedule import flow
        >>> flow_heun(Process(flow(), "flow"), steps=10)
        SamplerPlan('flow_heun-10', rows=19, registers=2, stochastic=False)
    """
    grid = shift_timesteps(process.schedule, make_grid(process.schedule, steps, spacing), shift)
    return one_step_plan(process, "flow_heun", grid, second=grid.targets, variable="flow", clip=clip)
