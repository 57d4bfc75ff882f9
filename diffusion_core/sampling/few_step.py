r"""Sampling in few steps with networks that were trained for it, see `training.targets`.

    consistency    D = f(x_t, t),    x_s = alpha_s D + sigma_s sqrt(1 - (b/r_s)^2) z       the last step returns D
    mean_flow      x_s = x_t - (t - s) u(x_t, t, h),        h = t - s                       on the straight line
    shortcut       x_s = x_t + s(x_t, t, d) / N,            d = log2 N                      N equal steps

A consistency model adds the noise of the level s to its estimate; b is the `boundary` of the process, the level at
which its estimates lie. Its N steps lie between N + 1 levels, the last of which is the least noise, and is not noised
unless sampling is asked to end at a noisy level. ECT's code trains networks without a boundary, and samples them with
the scalings of one, 0.003, and the whole noise: the sampler's own `boundary` is that of D alone.

mean_flow and shortcut are Euler's method with a network that reads the length of the step as its second time.

References:
    Consistency Models (Song et al., 2023), algorithm 1, https://arxiv.org/abs/2303.01469, with its code
    (openai/consistency_models, stochastic_iterative_sampler)
    Mean Flows for One-step Generative Modeling (Geng et al., 2025), algorithm 2, https://arxiv.org/abs/2505.13447
    One Step Diffusion via Shortcut Models (Frans et al., 2024), algorithm 2, https://arxiv.org/abs/2410.12557
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process
from diffusion_core.sampling.declaration import sampler
from diffusion_core.sampling.families import OWN_TIMES, RATIO
from diffusion_core.sampling.grid import GRIDS, Grid, make_grid
from diffusion_core.sampling.plan import SamplerPlan, plan_levels
from diffusion_core.sampling.recurrence import Coefficients, recurrence
from diffusion_core.sampling.spacing import Spacing, Steps, is_whole
from diffusion_core.sampling.steps import one_step_plan

__all__ = ["consistency", "mean_flow", "shortcut"]

Array = NDArray[np.float64]


@sampler(
    family=RATIO,
    paper="Song et al. 2023",
    url="https://arxiv.org/abs/2303.01469",
    equation="algorithm 1",
    notes="For networks of `objective=consistency_training` and the like. In one step it is the network itself.",
)
def consistency(
    process: Process,
    steps: Steps = 1,
    spacing: Spacing = RATIO.spacing,
    clip: float | None = RATIO.clip,
    boundary: float | None = None,
) -> SamplerPlan:
    """Make the plan of multistep consistency sampling; one evaluation per step.

    Args:
        process: the process that the network was trained for.
        steps: number of steps, or another form of `spacing`.
        spacing: where the steps start, see `grid` and `spacing`; a grid, as karras, has one level more than steps, the
            least noise, where the last step ends.
        clip: bound of the estimates, see `SamplerPlan`.
        boundary: the sigma/alpha at which an estimate is x itself, of prediction edm, in place of the process's; None
            is that of the process.

    Raises:
        DuetError: if a number is out of range, or a boundary was given for another prediction.

    Example:
        >>> from diffusion_core.diffusion.schedule import make_schedule
        >>> consistency(Process(make_schedule("edm"), "edm", boundary=0.002), steps=2)
        SamplerPlan('consistency-2', rows=2, registers=1, stochastic=True)
    """
    options = {"name": spacing} if isinstance(spacing, str) else spacing
    to_data = not isinstance(options, Mapping) or not options.get("end")
    if to_data and isinstance(options, Mapping) and options.get("name") in GRIDS:
        options = dict(options) | {"end": "sigma_min"}  # the least noise, where the steps of a grid end
    grid = make_grid(process.schedule, steps, options)
    levels = plan_levels(process, grid.t) if to_data else plan_levels(process, *grid)
    levels |= {} if boundary is None else _scalings(process, grid.t, boundary)
    rows, alpha, sigma = len(grid.t), levels["alpha"], levels["sigma"]
    fresh = np.sqrt(np.maximum(sigma**2 - (process.boundary * alpha) ** 2, 0.0))

    def step(i: int, X: Coefficients, D: Coefficients, z: Coefficients) -> list[Coefficients]:
        return [alpha[i + 1] * D[0] + fresh[i + 1] * z]

    tables = recurrence(rows, 1, 1, step)
    return SamplerPlan(name=f"consistency-{rows}", **levels, **tables, clip=clip, preserves="mean")


def _scalings(process: Process, t: Array, boundary: float) -> dict[str, Array]:
    """Return c_skip and c_out of the estimates with another boundary."""
    if process.prediction != "edm":
        raise DuetError(
            f"sampler.boundary: {boundary} was given with process.prediction={process.prediction}; only the estimates "
            "of edm have one, so use null"
        )
    alpha, sigma = process.schedule(t)
    if not 0 <= boundary <= np.min(sigma / alpha) * (1 + 1e-9):
        raise DuetError(
            f"sampler.boundary: {boundary} was given; it must be at least 0, and not above the least sigma/alpha that "
            f"is evaluated, {np.min(sigma / alpha):.4g}"
        )
    columns = process.columns_at(t, alpha, sigma, boundary)
    return {"c_skip": columns.c_skip, "c_out": columns.c_out}


@sampler(
    family=OWN_TIMES,
    paper="Geng et al. 2025",
    url="https://arxiv.org/abs/2505.13447",
    equation="algorithm 2",
    requires="the straight line",
    notes="For networks of `objective=mean_flow`, which read the length of the step.",
)
def mean_flow(
    process: Process, steps: int = 1, times: Sequence[float] | None = None, clip: float | None = OWN_TIMES.clip
) -> SamplerPlan:
    """Make the plan of steps of the average velocity; one evaluation per step.

    Args:
        process: the process that the network was trained for.
        steps: number of steps of equal length to t = 0.
        times: where the steps start instead, decreasing; None is equal steps.
        clip: bound of the estimates, see `SamplerPlan`.

    Raises:
        DuetError: for another process, or if a number is out of range.

    Example:
        >>> from diffusion_core.diffusion.schedule import make_schedule
        >>> mean_flow(Process(make_schedule("flow_continuous"), "flow"), steps=2).second_time.tolist()
        [0.5, 0.5]
    """
    _check_line(process, "mean_flow")
    grid = _equal_steps(process, "mean_flow", steps)
    if times is not None:
        grid = make_grid(process.schedule, None, {"timesteps": list(times)})
    plan = one_step_plan(process, "mean_flow", grid, variable="flow", clip=clip)
    lengths = grid.t - np.append(grid.t[1:], 0.0 if grid.end is None else grid.end)
    return replace(plan, second_time=process.time_scale * lengths, second_time_meaning="length")


@sampler(
    family=OWN_TIMES,
    paper="Frans et al. 2024",
    url="https://arxiv.org/abs/2410.12557",
    equation="algorithm 2",
    requires="the straight line",
    notes="For networks of `objective=shortcut`, which read log2 of the number of steps, a power of two.",
)
def shortcut(process: Process, steps: int = 1, clip: float | None = OWN_TIMES.clip) -> SamplerPlan:
    """Make the plan of a shortcut model; one evaluation per step.

    Args:
        process: the process that the network was trained for.
        steps: N, a power of two.
        clip: bound of the estimates, see `SamplerPlan`.

    Raises:
        DuetError: for another process, or another number of steps.

    Example:
        >>> from diffusion_core.diffusion.schedule import make_schedule
        >>> process = Process(make_schedule("flow_continuous"), "velocity_to_data", time_scale=-1.0, time_offset=1.0)
        >>> plan = shortcut(process, steps=4)
        >>> plan.second_time.tolist(), plan.c_noise.tolist()
        ([2.0, 2.0, 2.0, 2.0], [0.0, 0.25, 0.5, 0.75])
    """
    if not is_whole(steps) or steps < 1 or int(steps) & (int(steps) - 1):
        raise DuetError(f"sampler.steps: {steps!r} was given; shortcut takes a power of two, as 1, 2 or 4")
    _check_line(process, "shortcut")
    plan = one_step_plan(process, "shortcut", _equal_steps(process, "shortcut", steps), variable="flow", clip=clip)
    second_time = np.full(plan.rows, float(int(steps).bit_length() - 1))
    return replace(plan, second_time=second_time, second_time_meaning="log2_steps")


def _check_line(process: Process, name: str) -> None:
    """Refuse another process than the straight line."""
    if process.schedule.is_table or process.schedule.norm is not np.add:
        raise DuetError(
            f"sampler.name: {name} was given on the schedule {process.schedule.name}; its steps are those of the "
            "straight line, flow_continuous"
        )


def _equal_steps(process: Process, name: str, steps: Steps) -> Grid:
    """Return N steps of equal length from the noisiest time to t = 0."""
    _check_line(process, name)
    if not is_whole(steps) or steps < 1:
        raise DuetError(f"sampler.steps: {steps!r} was given; {name} takes a whole number, at least 1")
    high, t = process.schedule.span[1], np.arange(int(steps)) / int(steps)
    return Grid(high * (1.0 - t))
