r"""RePaint: ancestral sampling that returns to noisier levels and comes down again, for inpainting.

Where a part of an image is known, it replaces the sampled part after each row (`edit.inpaint`). What is sampled around
it at that row did not depend on it yet. Going back up j levels by fresh noise,

    x_u = (alpha_u/alpha_s) x_s + sqrt(sigma_u^2 - (alpha_u/alpha_s)^2 sigma_s^2) z

and down again makes the two parts consistent; this is done r - 1 times from every j-th level. Going up is linear, as a
row is, so both together are one row, whose z has the summed variance. With ratio = alpha_u/alpha_s,

    X <- ratio (state X + denoised D) + sqrt((ratio noise)^2 + sigma_u^2 - (ratio sigma_s)^2) z

The known part then replaces x_u, not x_s. As noise is independent from pixel to pixel, both have the same distribution.

Going up and down at one level is a random walk whose stationary distribution depends on its own steps only: an error of
their variance remains, however short they are. For two jointly normal pixels with exact estimates, one of them known,
the other's mean and variance approach those of the conditional distribution with the large variance of `ddpm`, as r
grows and j is 1. With the small variance, their variance ends little above half of the true one. So the large variance
is the default.

References:
    RePaint: Inpainting using Denoising Diffusion Probabilistic Models (Lugmayr et al., 2022), algorithm 1 and the
    appendix on the schedule of jumps, https://arxiv.org/abs/2201.09865
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process
from diffusion_core.sampling.ddpm import ddpm
from diffusion_core.sampling.declaration import sampler
from diffusion_core.sampling.families import TIMESTEPS
from diffusion_core.sampling.plan import SamplerPlan
from diffusion_core.sampling.recurrence import Coefficients, recurrence
from diffusion_core.sampling.spacing import Spacing, Steps

__all__ = ["add_resampling", "repaint"]


@sampler(
    family=TIMESTEPS,
    paper="Lugmayr et al. 2022",
    url="https://arxiv.org/abs/2201.09865",
    equation="algorithm 1",
    evaluations="N + (`resamples` - 1) `jump` floor((N - 1)/`jump`)",
    notes="For inpainting. Stochastic.",
)
def repaint(
    process: Process,
    steps: Steps = None,
    jump: int = 10,
    resamples: int = 10,
    variance: str = "fixed_large",
    spacing: Spacing = TIMESTEPS.spacing,
    clip: float | None = TIMESTEPS.clip,
) -> SamplerPlan:
    """Make a plan of DDPM with resampling; see `add_resampling` for jump and resamples, and `ddpm` for the rest.

    Raises:
        DuetError: for numbers that are out of range, or a learned variance.

    Example:
        >>> from diffusion_core.diffusion.schedule import linear
        >>> repaint(Process(linear(), "v"), steps=20, jump=5, resamples=2)
        SamplerPlan('ddpm-20, 2 times each 5', rows=35, registers=1, stochastic=True)
    """
    return add_resampling(ddpm(process, steps, variance, spacing, clip), jump, resamples)


def add_resampling(plan: SamplerPlan, jump: int, resamples: int) -> SamplerPlan:
    """Return a plan that goes through each block of `jump` rows `resamples` times.

    Blocks are counted upwards from the least noisy level; nothing goes back from clean data. N rows become
    N + (resamples - 1) jump floor((N - 1)/jump).

    Args:
        plan: a plan with independent rows, such as those of ddpm and ddim.
        jump: the number of levels to go back up, 1 to N - 1.
        resamples: how often to go through each block; 1 returns the rows of the plan.

    Raises:
        DuetError: for numbers that are out of range, or a plan whose rows depend on earlier ones.
    """
    if plan.registers > 1 or plan.history > 1 or plan.learned is not None:
        why = "its variance is learned" if plan.learned is not None else "its rows depend on earlier ones"
        raise DuetError(f"resampling: {plan.name} was given, but {why}; use ddpm or ddim with a fixed variance")
    if not 1 <= jump < plan.rows:
        raise DuetError(f"sampler.jump: {jump} was given; {plan.rows} steps can go back by 1 to {plan.rows - 1}")
    if resamples < 1:
        raise DuetError(f"sampler.resamples: {resamples} was given; it must be at least 1")
    order = _order(plan.rows, jump, resamples)
    tables = {name: table[order] for name, table in plan.tables().items()}
    tables |= {name: np.append(tables[name], getattr(plan, name)[-1]) for name in ("alpha", "sigma")}
    # The level that each row of the plan leads to, and the noisier one at which the next row starts.
    down, up = order + 1, np.append(order[1:], plan.rows)
    ratio = plan.alpha[up] / plan.alpha[down]
    # Where the variance is 0, rounding may leave a negative number.
    fresh = np.sqrt(np.maximum(plan.sigma[up] ** 2 - (ratio * plan.sigma[down]) ** 2, 0.0))

    def step(i: int, X: Coefficients, D: Coefficients, z: Coefficients) -> list[Coefficients]:
        state, denoised, noise = (table[order[i], 0] for table in (plan.state, plan.denoised, plan.noise))
        return [ratio[i] * (state @ X + denoised @ D) + np.hypot(ratio[i] * noise, fresh[i]) * z]

    tables |= recurrence(len(order), 1, 1, step)
    if plan.unclipped is not None:
        tables["unclipped"] = ratio[:, None] * plan.unclipped[order]
    return replace(plan, name=f"{plan.name}, {resamples} times each {jump}", **tables)


def _order(rows: int, jump: int, resamples: int) -> NDArray[np.int64]:
    """Return the row of the plan for each row of the resampled plan."""
    left = {level: resamples - 1 for level in range(rows - 1, jump - 1, -jump)}
    order, row = [], 0
    while row < rows:
        order.append(row)
        row += 1
        if left.get(row, 0):
            left[row] -= 1
            row -= jump
    return np.array(order)
