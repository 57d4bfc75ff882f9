r"""DDIM: the family of samplers with the marginals of DDPM and any amount of fresh noise.

    eps = (x_t - alpha_t D) / sigma_t
    x_s = alpha_s D + sqrt(sigma_s^2 - s_eta^2) eps + s_eta z,      s_eta^2 = eta^2 b sigma_s^2 / sigma_t^2

eta = 0 is deterministic, eta = 1 is ancestral sampling with the small variance.

References:
    Denoising Diffusion Implicit Models (Song et al., 2020), eqs. 12 and 16, https://arxiv.org/abs/2010.02502
"""

from __future__ import annotations

import numpy as np

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process, posterior
from diffusion_core.sampling.grid import make_timesteps
from diffusion_core.sampling.plan import SamplerPlan, plan_levels
from diffusion_core.sampling.spacing import Spacing, Steps

__all__ = ["ddim"]


def ddim(
    process: Process,
    steps: Steps = 50,
    eta: float = 0.0,
    spacing: Spacing = None,
    clip: float | None = 1.0,
) -> SamplerPlan:
    """The DDIM sampler.

    Args:
        process: what the network was trained for.
        steps: rows, 1 to T, or another answer of `spacing`; None visits every level.
        eta: share of the posterior's noise, 0 to 1.
        spacing: where the visited levels lie, see `grid` and `spacing`.
        clip: see `SamplerPlan`.

    Raises:
        DuetError: if eta is outside 0..1, or steps and spacing do not fit T.
    """
    if not 0.0 <= eta <= 1.0:
        raise DuetError(f"sampler.eta: {eta} was given; it must be between 0 (deterministic) and 1 (ancestral)")
    levels = plan_levels(process, make_timesteps(process.schedule, steps, spacing))
    alpha, sigma = levels["alpha"], levels["sigma"]
    _, _, variance, _ = posterior(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])
    fresh = eta * np.sqrt(variance)
    from_x = np.sqrt((sigma[1:] - fresh) * (sigma[1:] + fresh)) / sigma[:-1]
    return SamplerPlan(
        name=f"ddim-{len(levels['t'])}",
        **levels,
        state=from_x[:, None, None],
        denoised=(alpha[1:] - alpha[:-1] * from_x)[:, None, None],
        noise=fresh[:, None],
        clip=clip,
    )
