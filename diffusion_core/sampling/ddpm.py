r"""Ancestral sampling: each row draws from the posterior q(x_s | x_t, x_0 = D).

    x_s = mean(x_t, D) + sqrt(variance) z           see `process.posterior`

    fixed_small    variance = b sigma_s^2 / sigma_t^2     the posterior's own, which keeps the marginals
    fixed_large    variance = b                           beta_t when every level is visited

    learned        variance = exp G                       G from a network with twice the channels of its image
    learned_range  variance = b^((1+G)/2) small^((1-G)/2) between the small variance, G = -1, and b, G = 1

The last row leads to clean data and draws no noise for any. Any subset of the levels is again a
diffusion with its own betas, so fewer steps need no other formula.

Some implementations train and sample t = T-1 .. 1 alone, and take what the row of t = 1 leads to, without noise,
for the picture. That is ``last_t = 1``: the last level is then t = 0, one noise step away from clean data.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), algorithm 2 and section 3.2,
    https://arxiv.org/abs/2006.11239
    Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021), eq. 15, learned_range,
    https://arxiv.org/abs/2102.09672
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.diffusion.process import Process, posterior
from diffusion_core.diffusion.variational import STEP_VARIANCES, log_variance
from diffusion_core.sampling.grid import make_timesteps
from diffusion_core.sampling.plan import SamplerPlan, plan_levels
from diffusion_core.sampling.spacing import Spacing, Steps

Array = NDArray[np.float64]

__all__ = ["ddpm"]


def ddpm(
    process: Process,
    steps: Steps = None,
    variance: str = "fixed_small",
    spacing: Spacing = None,
    clip: float | None = 1.0,
    last_t: int = 0,
) -> SamplerPlan:
    """The ancestral sampler of DDPM.

    Args:
        process: what the network was trained for.
        steps: rows, 1 to T, or another answer of `spacing`; None visits every level.
        variance: ``"fixed_small"``, ``"fixed_large"``, ``"learned"`` or ``"learned_range"``.
        spacing: where the visited levels lie, see `grid` and `spacing`.
        clip: see `SamplerPlan`.
        last_t: the level of the last row, which leads to level last_t - 1, or to clean data from 0. Another
            level than 0 needs every level above it, so `steps` must be None, or T.

    Raises:
        DuetError: for an unknown variance, steps and spacing that do not fit T, or a last_t that does not fit.
    """
    if variance not in STEP_VARIANCES:
        raise one_of("sampler.variance", variance, STEP_VARIANCES)
    if last_t and not 0 <= last_t < process.schedule.steps:
        raise DuetError(f"sampler.last_t: {last_t} was given; it must be a level, 0..{process.schedule.steps - 1}")
    levels_visited = make_timesteps(process.schedule, steps, spacing)
    if last_t and len(levels_visited) < process.schedule.steps:
        raise DuetError(
            f"sampler.last_t: {last_t} was given with {len(levels_visited)} steps; use steps=null, for every level"
        )
    rows = len(levels_visited) - last_t
    levels = plan_levels(process, levels_visited[:rows], end=last_t - 1 if last_t else None)
    alpha, sigma = levels["alpha"], levels["sigma"]
    from_x, from_x0, small, large = posterior(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])
    noise, learned = _noise(variance, small, large)
    noise[-1] = 0.0
    return SamplerPlan(
        name=f"ddpm-{len(levels['t'])}",
        **levels,
        state=from_x[:, None, None],
        denoised=from_x0[:, None, None],
        noise=noise[:, None],
        learned=learned,
        clip=clip,
        preserves="marginals" if variance == "fixed_small" and last_t == 0 else "mean",
    )


def _noise(variance: str, small: Array, large: Array) -> tuple[Array, Array | None]:
    """The scale of each row's noise, and the (a, b) of what a learned variance multiplies it by."""
    if variance == "fixed_small":
        return np.sqrt(small), None
    if variance == "fixed_large":
        return np.sqrt(large), None
    # The last row leads to clean data, where the small variance is 0; it draws no noise, so any number will do there.
    constant, slope = log_variance(variance, np.log(np.append(small[:-1], large[-1])), np.log(large))
    # Half of a logarithm is that of the root.
    return np.ones_like(small), np.stack([constant, slope], axis=1) / 2
