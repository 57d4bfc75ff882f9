r"""DDIM: a family of samplers with the marginals of DDPM and any amount of fresh noise.

    eps = (x_t - alpha_t D) / sigma_t
    x_s = alpha_s D + sqrt(sigma_s^2 - s_eta^2) eps + s_eta z,      s_eta^2 = eta^2 b sigma_s^2 / sigma_t^2

eta = 0 is deterministic; eta = 1 is ancestral sampling with the small variance. For b see `process.posterior`.

If D is clipped, eps can be that of the clipped estimate, as in guided-diffusion and with `use_clipped_model_output` in
diffusers, or that of the network itself, the default of diffusers.

References:
    Denoising Diffusion Implicit Models (Song et al., 2020), eqs. 12 and 16, https://arxiv.org/abs/2010.02502
"""

from __future__ import annotations

import numpy as np

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process, posterior
from diffusion_core.sampling.declaration import Method, sampler
from diffusion_core.sampling.families import TIMESTEPS
from diffusion_core.sampling.grid import make_grid
from diffusion_core.sampling.plan import SamplerPlan, plan_levels
from diffusion_core.sampling.recurrence import Coefficients, recurrence, split_unclipped
from diffusion_core.sampling.spacing import Spacing, Steps

__all__ = ["ddim"]


@sampler(
    Method("DDIM", order=1),
    Method("DDIM, eta 0.5", order=1, options={"eta": 0.5}, stochastic=True),
    family=TIMESTEPS,
    paper="Song et al. 2020",
    url="https://arxiv.org/abs/2010.02502",
    equation="eqs. 12 and 16",
    notes="Stochastic with `eta` > 0.",
)
def ddim(
    process: Process,
    steps: Steps = 50,
    eta: float = 0.0,
    spacing: Spacing = TIMESTEPS.spacing,
    clip: float | None = TIMESTEPS.clip,
    use_clipped_model_output: bool = True,
) -> SamplerPlan:
    """Make a DDIM plan.

    Args:
        process: the process that the network was trained for.
        steps: number of steps, or another form of `spacing`; None uses every timestep.
        eta: standard deviation of the fresh noise relative to that of the posterior, 0 to 1.
        spacing: where the timesteps lie, see `grid` and `spacing`.
        clip: bound of the estimates, see `SamplerPlan`.
        use_clipped_model_output: whether eps follows from the clipped estimate; false keeps the eps of the network.

    Raises:
        DuetError: if eta is outside 0..1, or steps and spacing do not fit the schedule.

    Example:
        >>> from diffusion_core.diffusion.schedule import linear
        >>> ddim(Process(linear(), "v"), steps=10)
        SamplerPlan('ddim-10', rows=10, registers=1, stochastic=False)
    """
    if not 0.0 <= eta <= 1.0:
        raise DuetError(f"sampler.eta: {eta} was given; it must be between 0 (deterministic) and 1 (ancestral)")
    levels = plan_levels(process, *make_grid(process.schedule, steps, spacing))
    alpha, sigma = levels["alpha"], levels["sigma"]
    _, _, variance, _ = posterior(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])
    fresh = eta * np.sqrt(variance)
    # sqrt(sigma_s^2 - s_eta^2), factored so that fewer digits cancel.
    kept = np.sqrt((sigma[1:] - fresh) * (sigma[1:] + fresh))

    def step(i: int, X: Coefficients, D: Coefficients, z: Coefficients) -> list[Coefficients]:
        # The last estimate is the unclipped one where there are two.
        return [alpha[i + 1] * D[0] + kept[i] / sigma[i] * (X[0] - alpha[i] * D[-1]) + fresh[i] * z]

    rows, unclipped = len(levels["t"]), clip is not None and not use_clipped_model_output
    tables = recurrence(rows, 1, 1 + unclipped, step)
    if unclipped:
        tables |= split_unclipped(tables["denoised"])
    return SamplerPlan(name=f"ddim-{rows}", **levels, **tables, clip=clip)
