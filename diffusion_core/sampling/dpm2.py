r"""DPM-Solver-2 as in k-diffusion: each step uses the slope of the level halfway in log(sigma/alpha).

    x_m = Euler's step from t to m,      r_m = sqrt(r_t r_d)
    y_d = y_t + (r_d - r_t) (y_m - D_m)/r_m,               y = x/alpha,   r = sigma/alpha

The ancestral form goes to the r_down of `euler_ancestral` and adds r_up of noise. The step to clean data is Euler's,
and so is a step that replaces all of its noise. diffusers calls both KDPM2.

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
from diffusion_core.sampling.declaration import Method, sampler
from diffusion_core.sampling.families import RATIO
from diffusion_core.sampling.grid import Grid, make_grid
from diffusion_core.sampling.plan import SamplerPlan
from diffusion_core.sampling.spacing import Spacing, Steps
from diffusion_core.sampling.steps import add_churn, ancestral_fractions, log_ratio, needs_signal, one_step_plan

__all__ = ["dpm2", "dpm2_ancestral"]


@sampler(
    Method("DPM2", order=2, evaluations=2, needs_signal=True),
    family=RATIO,
    paper="k-diffusion",
    url="https://github.com/crowsonkb/k-diffusion",
    equation="sample_dpm_2, after Lu et al. 2022a",
    notes="KDPM2 in diffusers. Stochastic with order 1 if `s_churn` > 0.",
)
def dpm2(
    process: Process,
    steps: Steps = 25,
    spacing: Spacing = RATIO.spacing,
    clip: float | None = RATIO.clip,
    s_churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float | None = None,
    s_noise: float = 1.0,
) -> SamplerPlan:
    """Make a plan of DPM2, with churn if s_churn is positive; two evaluations per step, one for the last.

    Args:
        process: the process that the network was trained for; the first level must contain signal (alpha > 0).
        steps: number of steps, or another form of `spacing`.
        spacing: where the timesteps lie, see `grid` and `spacing`.
        clip: bound of the estimates, see `SamplerPlan`.
        s_churn: amount of churn over all steps, see `steps.add_churn`; 0 for none.
        s_min: smallest sigma/alpha with churn.
        s_max: largest sigma/alpha with churn; None for no bound.
        s_noise: factor of the fresh noise.

    Raises:
        DuetError: if a number is out of range, or for a first level without signal.

    Example:
        >>> from diffusion_core.diffusion.schedule import linear
        >>> dpm2(Process(linear(), "v"), steps=10)
        SamplerPlan('dpm2-10', rows=19, registers=2, stochastic=False)
    """
    grid = make_grid(process.schedule, steps, spacing)
    starts, kept = add_churn(process.schedule, grid.t, s_churn, s_min, s_max)
    raised = Grid(starts, grid.end)
    second = _halfway("dpm2", process.schedule, raised, kept)
    return one_step_plan(process, "dpm2", raised, kept, second, 1.0, s_noise=s_noise, clip=clip)


@sampler(
    Method("DPM2 ancestral", order=1, stochastic=True, evaluations=2, needs_signal=True),
    family=RATIO,
    paper="k-diffusion",
    url="https://github.com/crowsonkb/k-diffusion",
    equation="sample_dpm_2_ancestral",
)
def dpm2_ancestral(
    process: Process,
    steps: Steps = 25,
    eta: float = 1.0,
    s_noise: float = 1.0,
    spacing: Spacing = RATIO.spacing,
    clip: float | None = RATIO.clip,
) -> SamplerPlan:
    """Make a plan of DPM2 with the fresh noise of ancestral sampling; two evaluations per step, one for the last.

    Args:
        process: the process that the network was trained for; the first level must contain signal (alpha > 0).
        steps: number of steps, or another form of `spacing`.
        eta: fresh noise relative to that of ancestral sampling, at least 0.
        s_noise: factor of the fresh noise.
        spacing: where the timesteps lie, see `grid` and `spacing`.
        clip: bound of the estimates, see `SamplerPlan`.

    Raises:
        DuetError: if a number is out of range, or for a first level without signal.

    Example:
        >>> from diffusion_core.diffusion.schedule import linear
        >>> dpm2_ancestral(Process(linear(), "v"), steps=10)
        SamplerPlan('dpm2_ancestral-10', rows=19, registers=2, stochastic=True)
    """
    grid = make_grid(process.schedule, steps, spacing)
    kept = ancestral_fractions(process.schedule, grid.points, eta)
    second = _halfway("dpm2_ancestral", process.schedule, grid, kept)
    return one_step_plan(process, "dpm2_ancestral", grid, kept, second, 1.0, s_noise=s_noise, clip=clip)


def _halfway(name: str, schedule: AnySchedule, grid: Grid, kept: NDArray) -> NDArray:
    """Return the t halfway between each start and the level that its step leads to; NaN where that is clean data."""
    alpha, _ = schedule(grid.t)
    needs_signal(name, alpha)
    now = log_ratio(schedule, grid.points)
    # An end to which no fraction is given is reached without fresh noise.
    kept = np.append(kept, np.ones(len(now) - len(kept)))
    second = np.full(len(now), np.nan)
    noisy = kept[1:] > 0
    down = now[1:][noisy] + np.log(kept[1:][noisy])
    second[:-1][noisy] = schedule.t_at_log_ratio((now[:-1][noisy] + down) / 2)
    return second[: len(grid.t)]
