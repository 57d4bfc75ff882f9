r"""Sampling with a network that predicts the image at the next noise level.

    x <- F(x, t)        for t = T-1 .. 0

As ``F = (D - c_skip x) / c_out``, a row has the coefficient -c_skip/c_out of x and 1/c_out of D. Without a clip this is
the deterministic row of DDIM: the network's one output determines both x_0 and eps.
"""

from __future__ import annotations

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process
from diffusion_core.sampling.declaration import sampler
from diffusion_core.sampling.families import NETWORK
from diffusion_core.sampling.grid import make_grid
from diffusion_core.sampling.plan import SamplerPlan, plan_levels
from diffusion_core.sampling.recurrence import Coefficients, recurrence

__all__ = ["next_level"]


@sampler(
    family=NETWORK,
    paper="a teaching notebook with sixteen noise levels",
    evaluations="T",
    requires="prediction next_level",
    notes="Each row returns the network's output. Without a clip it equals deterministic `ddim` over every timestep.",
)
def next_level(process: Process, clip: float | None = NETWORK.clip, end: float | str | None = None) -> SamplerPlan:
    """Make the plan of a network with prediction next_level: one row per timestep, each the network's output.

    Args:
        process: the process that the network was trained for.
        clip: bound of the estimates, see `SamplerPlan`. With a clipped estimate a row differs from F.
        end: where the last row leads, see `grid`: a level of the table; None for clean data.

    Raises:
        DuetError: for another prediction, or an end between two timesteps.

    Example:
        >>> from diffusion_core.diffusion.schedule import flow
        >>> next_level(Process(flow(16), "next_level"))
        SamplerPlan('next_level-16', rows=16, registers=1, stochastic=False)
    """
    if process.prediction != "next_level":
        raise DuetError(
            f"sampler.name: next_level was given for a network with prediction {process.prediction}; "
            f"use ddim or ddpm, or a network with prediction next_level"
        )
    grid = make_grid(process.schedule, None, {"end": end})
    if grid.end is not None and abs(grid.end - round(grid.end)) > 1e-6:
        raise DuetError(
            f"sampler.end: {end!r} was given; next_level visits the timesteps alone, so use one of their levels"
        )
    levels = plan_levels(process, grid.t, None if grid.end is None else round(grid.end))
    rows = len(grid.t)
    c_skip, c_out = levels["c_skip"], levels["c_out"]

    def step(i: int, X: Coefficients, D: Coefficients, z: Coefficients) -> list[Coefficients]:
        return [(D[0] - c_skip[i] * X[0]) / c_out[i]]

    return SamplerPlan(name=f"next_level-{rows}", **levels, **recurrence(rows, 1, 1, step), clip=clip)
