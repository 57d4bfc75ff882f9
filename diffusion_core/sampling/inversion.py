r"""DDIM inversion: the deterministic row of DDIM run upwards, from a picture to the noise that leads back to it.

    x_s = alpha_s/alpha_t x_t + (sigma_s - alpha_s sigma_t/alpha_t) eps,       s a noisier level than t

What is missing is eps, which DDIM estimates at the level s that it starts from. There are two ways to be without it:

    ask = "next"       eps of the network at the level s, for x_t as if it lay there. Rows start from clean data, as a
                       picture is, and go through the levels of `ddim` with the same steps, upwards (diffusers).
    ask = "current"    eps of the network at the level t of x_t. Clean data has no eps, so rows start from the least
                       noisy level, as if the picture lay there (guided-diffusion).

Both are Euler's method for the probability flow, of first order. For "next" an estimate means no more than the eps that
it stands for, ``D = (x_t - sigma_s eps)/alpha_s``, so these rows do not keep the levels of an exact D = x_0. Estimates
are not clipped: that would move eps too, and the way back would lead elsewhere.

References:
    Denoising Diffusion Implicit Models (Song et al., 2020), section 4.3, https://arxiv.org/abs/2010.02502
    Diffusion Models Beat GANs on Image Synthesis (Dhariwal & Nichol, 2021), https://arxiv.org/abs/2105.05233, with its
    code (openai/guided-diffusion, guided_diffusion/gaussian_diffusion.py, ddim_reverse_sample)
    diffusers (huggingface/diffusers, scheduling_ddim_inverse.py)
"""

from __future__ import annotations

import numpy as np

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.diffusion.process import Process
from diffusion_core.sampling.grid import make_timesteps
from diffusion_core.sampling.plan import SamplerPlan, plan_levels
from diffusion_core.sampling.spacing import Spacing, Steps

__all__ = ["ASKS", "ddim_inversion"]

ASKS = ("next", "current")


def ddim_inversion(process: Process, steps: Steps = 50, ask: str = "next", spacing: Spacing = None) -> SamplerPlan:
    """The plan that leads pictures up to the noisiest visited level.

    Args:
        process: what the network was trained for.
        steps: how many levels, or another answer of `spacing`; ask "current" has one row less.
        ask: ``"next"`` or ``"current"``, the level that the network is told.
        spacing: where the visited levels lie, see `grid` and `spacing`.

    Raises:
        DuetError: for another `ask`, or too few levels.
    """
    if ask not in ASKS:
        raise one_of("sampler.ask", ask, ASKS)
    rising = make_timesteps(process.schedule, steps, spacing)[::-1].copy()
    if ask == "current":
        if len(rising) < 2:
            raise DuetError("sampler.steps: 1 level was given to ask at the current one; use at least 2, or ask=next")
        levels = plan_levels(process, rising[:-1], end=rising[-1])
        alpha, sigma = levels["alpha"], levels["sigma"]
        state = sigma[1:] / sigma[:-1]
        denoised = alpha[1:] - alpha[:-1] * state
    else:
        levels = plan_levels(process, rising)
        # The levels between rows: clean data first, where `plan_levels` has it last.
        levels["alpha"], levels["sigma"] = (np.roll(levels[name], 1) for name in ("alpha", "sigma"))
        alpha, sigma = levels["alpha"], levels["sigma"]
        # x_s with eps = (x_t - alpha_s D)/sigma_s put in.
        of_eps = (sigma[1:] - alpha[1:] * sigma[:-1] / alpha[:-1]) / sigma[1:]
        state = alpha[1:] / alpha[:-1] + of_eps
        denoised = -alpha[1:] * of_eps
    levels["start_scale"] = 1.0
    return SamplerPlan(
        name=f"ddim_inversion-{len(rising)}",
        **levels,
        state=state[:, None, None],
        denoised=denoised[:, None, None],
        noise=np.zeros((len(levels["t"]), 1)),
        preserves="marginals" if ask == "current" else "nothing",
    )
