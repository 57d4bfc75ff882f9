r"""DDIM inversion: deterministic DDIM run upwards, from an image to the noise from which DDIM reproduces it.

    x_s = alpha_s/alpha_t x_t + (sigma_s - alpha_s sigma_t/alpha_t) eps,       s a noisier level than t

The eps in this equation is unknown: DDIM estimates it at the level s that it starts from. There are two approximations:

    ask = "next"       eps of the network at the level s, with x_t as its input. Rows start from clean data, as an image
                       is, and go through the levels of `ddim` with the same steps, upwards (diffusers).
    ask = "current"    eps of the network at the level t of x_t. Clean data has no eps, so rows start from the least
                       noisy level, with the image in place of x at that level (guided-diffusion).

Both are Euler's method for the probability-flow ODE, of first order. For "next" an estimate is only a way to write eps,
``D = (x_t - sigma_s eps)/alpha_s``, so these rows do not preserve the marginals for an exact D = x_0.

By default estimates are not clipped: DDIM would not return to the image. With a clip, x_0 = (x_t - sigma_t eps)/alpha_t
is bounded, where t is the level of x_t, and

    x_s = alpha_s x_0 + sigma_s eps

with the eps of the network (use_clipped_model_output false, as DDIMInverseScheduler of diffusers for "next"), or with
the eps of the bounded estimate, (x_t - alpha_t x_0)/sigma_t (true, as guided-diffusion for "current"). Clean data has
no eps, so for "next" the first row keeps that of the network. From the output of "next" eps follows by the columns of
the level s at which the network was evaluated; DDIMInverseScheduler takes those of t, so for a network of v or x_0 it
computes another eps.

References:
    Denoising Diffusion Implicit Models (Song et al., 2020), section 4.3, https://arxiv.org/abs/2010.02502
    Diffusion Models Beat GANs on Image Synthesis (Dhariwal & Nichol, 2021), https://arxiv.org/abs/2105.05233, with its
    code (openai/guided-diffusion, guided_diffusion/gaussian_diffusion.py, ddim_reverse_sample)
    diffusers (huggingface/diffusers, scheduling_ddim_inverse.py)
"""

from __future__ import annotations

import numpy as np

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.diffusion.process import Process
from diffusion_core.sampling.declaration import sampler
from diffusion_core.sampling.families import INVERSION
from diffusion_core.sampling.grid import make_timesteps
from diffusion_core.sampling.plan import SamplerPlan, plan_levels
from diffusion_core.sampling.recurrence import Coefficients, recurrence, split_unclipped
from diffusion_core.sampling.spacing import Spacing, Steps

__all__ = ["ASKS", "ddim_inversion"]

ASKS = ("next", "current")


@sampler(
    family=INVERSION,
    paper="Song et al. 2020",
    url="https://arxiv.org/abs/2010.02502",
    equation="section 4.3",
    evaluations="N; N - 1 with `ask: current`",
    notes="From images to noise, order 1. `experiments.edit mode=interpolate` encodes images with it; an error for "
    "sampling from noise.",
)
def ddim_inversion(
    process: Process,
    steps: Steps = 50,
    ask: str = "next",
    spacing: Spacing = INVERSION.spacing,
    clip: float | None = INVERSION.clip,
    use_clipped_model_output: bool = True,
) -> SamplerPlan:
    """Make the plan that leads images up to the noisiest timestep.

    Args:
        process: the process that the network was trained for.
        steps: number of timesteps, or another form of `spacing`; ask "current" has one row fewer.
        ask: the timestep that the network is evaluated at: that of the ``"next"`` or of the ``"current"`` level.
        spacing: where the timesteps lie, see `grid` and `spacing`.
        clip: bound of the estimates, see `SamplerPlan`; None for no bound.
        use_clipped_model_output: whether eps follows from the clipped estimate; false keeps the eps of the network.

    Raises:
        DuetError: for another `ask`, or too few timesteps.

    Example:
        >>> from diffusion_core.diffusion.schedule import linear
        >>> ddim_inversion(Process(linear(), "v"), steps=10).t[:3].tolist()
        [0, 100, 200]
    """
    check_choice("sampler.ask", ask, ASKS)
    rising = make_timesteps(process.schedule, steps, spacing)[::-1].copy()
    current = ask == "current"
    if current and len(rising) < 2:
        raise DuetError("sampler.steps: 1 step was given with ask=current; use at least 2, or ask=next")
    levels = plan_levels(process, rising[:-1], end=rising[-1]) if current else plan_levels(process, rising)
    if not current:
        # The rows start from clean data, which `plan_levels` puts last.
        levels["alpha"], levels["sigma"] = (np.roll(levels[name], 1) for name in ("alpha", "sigma"))
    levels["start_scale"] = 1.0
    alpha, sigma = levels["alpha"], levels["sigma"]

    def from_current(i: int, X: Coefficients, D: Coefficients, z: Coefficients) -> list[Coefficients]:
        return [alpha[i + 1] * D[0] + sigma[i + 1] / sigma[i] * (X[0] - alpha[i] * D[-1])]

    def network_eps(i: int, X: Coefficients, U: Coefficients) -> Coefficients:
        return (X[0] - alpha[i + 1] * U) / sigma[i + 1]

    def from_next(i: int, X: Coefficients, D: Coefficients, z: Coefficients) -> list[Coefficients]:
        eps = network_eps(i, X, D[0])
        return [alpha[i + 1] / alpha[i] * X[0] + (sigma[i + 1] - alpha[i + 1] * sigma[i] / alpha[i]) * eps]

    def from_next_clipped(i: int, X: Coefficients, D: Coefficients, z: Coefficients) -> list[Coefficients]:
        again = use_clipped_model_output and sigma[i] > 0
        eps = (X[0] - alpha[i] * D[0]) / sigma[i] if again else network_eps(i, X, D[1])
        return [alpha[i + 1] * D[0] + sigma[i + 1] * eps]

    # The estimates are clipped and unclipped where a row needs both.
    both = clip is not None and not (current and use_clipped_model_output)
    step = from_current if current else from_next if clip is None else from_next_clipped
    tables = recurrence(len(levels["t"]), 1, 1 + both, step)
    if both:
        tables |= split_unclipped(tables["denoised"])
    if both and not current:
        # x_0 at the level of x_t, from U, the estimate that stands for eps at the level s.
        weight = sigma[:-1] * alpha[1:] / (alpha[:-1] * sigma[1:])
        tables["clipped"] = np.stack([(1.0 - sigma[:-1] / sigma[1:]) / alpha[:-1], weight], axis=1)
    return SamplerPlan(
        name=f"ddim_inversion-{len(rising)}",
        **levels,
        **tables,
        clip=clip,
        preserves="marginals" if current else "nothing",
    )
