r"""Ancestral sampling: each row draws from the posterior q(x_s | x_t, x_0 = D).

    x_s = mean(x_t, D) + sqrt(variance) z           see `process.posterior`

    fixed_small    variance = b sigma_s^2 / sigma_t^2     the posterior's own, which preserves the marginals
    fixed_large    variance = b                           beta_t when every timestep is used

    learned        variance = exp G                       G from a network with twice the channels of its image
    learned_range  variance = b^((1+G)/2) small^((1-G)/2) between the small variance, G = -1, and b, G = 1

A last row that leads to clean data adds no noise, whatever the variance. Any subset of the timesteps is again a
diffusion process with its own betas, so fewer steps need no other formula.

Some implementations train and sample only t = T-1 .. 1, and return the mean of the row of t = 1, without noise, as the
image. Use ``last_t = 1`` for these: the last noise level is then that of t = 0, one noise step away from clean data.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), algorithm 2 and section 3.2,
    https://arxiv.org/abs/2006.11239
    Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021), eq. 15, learned_range,
    https://arxiv.org/abs/2102.09672
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.diffusion.process import Process, posterior
from diffusion_core.diffusion.variational import STEP_VARIANCES, log_variance
from diffusion_core.sampling.declaration import Method, sampler
from diffusion_core.sampling.families import TIMESTEPS
from diffusion_core.sampling.grid import make_grid
from diffusion_core.sampling.plan import SamplerPlan, plan_levels
from diffusion_core.sampling.recurrence import Coefficients, recurrence
from diffusion_core.sampling.spacing import Spacing, Steps

Array = NDArray[np.float64]

__all__ = ["ddpm"]


@sampler(
    Method("DDPM", order=1, stochastic=True),
    family=TIMESTEPS,
    paper="Ho et al. 2020",
    url="https://arxiv.org/abs/2006.11239",
    equation="algorithm 2, eqs. 6 and 7, section 3.2",
)
def ddpm(
    process: Process,
    steps: Steps = None,
    variance: str = "fixed_small",
    spacing: Spacing = TIMESTEPS.spacing,
    clip: float | None = TIMESTEPS.clip,
    last_t: int = 0,
) -> SamplerPlan:
    """Make a plan of ancestral sampling, as in DDPM.

    Args:
        process: the process that the network was trained for.
        steps: number of steps, or another form of `spacing`; None uses every timestep.
        variance: ``"fixed_small"``, ``"fixed_large"``, ``"learned"`` or ``"learned_range"``.
        spacing: where the timesteps lie, see `grid` and `spacing`.
        clip: bound of the estimates, see `SamplerPlan`.
        last_t: the timestep of the last row, which leads to the level of last_t - 1, or from 0 to clean data. A value
            above 0 needs every timestep above it, so `steps` must be None or T.

    Raises:
        DuetError: for an unknown variance, steps and spacing that do not fit the schedule, or an invalid last_t.

    Example:
        >>> from diffusion_core.diffusion.schedule import linear
        >>> ddpm(Process(linear(), "eps"))
        SamplerPlan('ddpm-1000', rows=1000, registers=1, stochastic=True)
    """
    check_choice("sampler.variance", variance, STEP_VARIANCES)
    if last_t and not 0 <= last_t < process.schedule.steps:
        raise DuetError(f"sampler.last_t: {last_t} was given; it must be a timestep, 0..{process.schedule.steps - 1}")
    grid = make_grid(process.schedule, steps, spacing)
    t = grid.t
    if last_t and grid.end is not None:
        raise DuetError(f"sampler.last_t: {last_t} was given with sampler.end, which it determines; use last_t=0")
    if last_t and len(t) < process.schedule.steps:
        raise DuetError(f"sampler.last_t: {last_t} was given with {len(t)} steps; use steps=null, every timestep")
    rows = len(t) - last_t
    levels = plan_levels(process, t[:rows], end=last_t - 1 if last_t else grid.end)
    alpha, sigma = levels["alpha"], levels["sigma"]
    from_x, from_x0, small, large = posterior(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])
    std, learned = _std(variance, small, large)
    if grid.end is None:
        std[-1] = 0.0

    def step(i: int, X: Coefficients, D: Coefficients, z: Coefficients) -> list[Coefficients]:
        return [from_x[i] * X[0] + from_x0[i] * D[0] + std[i] * z]

    return SamplerPlan(
        name=f"ddpm-{rows}",
        **levels,
        **recurrence(rows, 1, 1, step),
        learned=learned,
        clip=clip,
        preserves="marginals" if variance == "fixed_small" and last_t == 0 else "mean",
    )


def _std(variance: str, small: Array, large: Array) -> tuple[Array, Array | None]:
    """Return the standard deviation of each row's noise, and the (a, b) of its factor exp(a + b G) if it is learned."""
    if variance == "fixed_small":
        return np.sqrt(small), None
    if variance == "fixed_large":
        return np.sqrt(large), None
    # On the way to clean data the small variance is 0. That row adds no noise, so any value will do there.
    constant, slope = log_variance(variance, np.log(np.where(small > 0, small, large)), np.log(large))
    # Half the logarithm of the variance is that of the standard deviation.
    return np.ones_like(small), np.stack([constant, slope], axis=1) / 2
