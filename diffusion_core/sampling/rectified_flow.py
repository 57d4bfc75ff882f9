r"""Sampling of rectified flow as in its code: Euler's steps of the velocity, or its SDE of the same marginals.

With tau = 1 - t from noise to data, v the velocity and N steps of length h = 1/N,

    tau_i = eps + (1 - eps) i/N,        x <- x + h v(x, tau_i)

The network is given tau_i, although the steps lead from i/N to (i+1)/N: it is trained on times from eps to 1 only, and
N = 1 is one step from pure noise, by which distillation and reflow are judged. With `noise` s > 0 each step has fresh
noise of sigma = s (1 - tau) and a drift that keeps the marginals,

    x <- x + h (v + sigma^2/(2 k^2 (1 - tau)^2) (tau (1 - tau) v/2 - (2 - tau) x/2)) + sigma sqrt(h) z

k is the `noise_scale` of the schedule. Rows take the velocity for D, so that guidance applies and clip does not.

References:
    Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow (Liu et al., 2022), with its code
    (gnobitab/RectifiedFlow, ImageGeneration/sampling.py), https://arxiv.org/abs/2209.03003
"""

from __future__ import annotations

import math

import numpy as np

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.continuous_schedule import sum_scale
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import MAX_LEVELS
from diffusion_core.sampling.declaration import sampler
from diffusion_core.sampling.families import OWN_TIMES
from diffusion_core.sampling.plan import SamplerPlan
from diffusion_core.sampling.recurrence import Coefficients, recurrence
from diffusion_core.sampling.transport import velocity_sign

__all__ = ["rectified_flow"]


@sampler(
    family=OWN_TIMES,
    paper="Liu et al. 2022",
    url="https://arxiv.org/abs/2209.03003",
    equation="algorithm 1, and their code",
    requires="a velocity on `flow_continuous`",
    notes="Euler with network times from `eps`, as in the code of rectified flow; stochastic with `noise` > 0.",
)
def rectified_flow(process: Process, steps: int = 100, eps: float = 1e-3, noise: float = 0.0) -> SamplerPlan:
    """Make the plan of rectified flow's Euler sampler; 1 step samples a distilled network.

    Args:
        process: the process that the network was trained for, which predicts the velocity on the straight line.
        steps: N, the number of steps.
        eps: the first time that the network is given, from noise to data.
        noise: s of the SDE, the `sigma_variance` of their configurations; 0 for the ODE.

    Raises:
        DuetError: for another process, or a number that is out of range.

    Example:
        >>> from diffusion_core.diffusion.continuous import flow_continuous
        >>> rectified_flow(Process(flow_continuous(1e-12, 0.999), "velocity_to_data"), steps=1)
        SamplerPlan('rectified_flow-1', rows=1, registers=1, stochastic=False)
    """
    schedule = process.schedule
    sign, scale = velocity_sign(process), None if schedule.is_table else sum_scale(schedule.norm)
    if sign is None or scale is None or schedule.name != "flow_continuous":
        raise DuetError(
            f"sampler rectified_flow: prediction {process.prediction} on {schedule.name} was given; it needs velocity "
            "or velocity_to_data on flow_continuous; use flow_euler, or ddim"
        )
    if not 1 <= steps <= MAX_LEVELS:
        raise DuetError(f"sampler.steps: {steps} was given; it must be at least 1 and at most {MAX_LEVELS}")
    if not 0 <= eps < 1:
        raise DuetError(f"sampler.eps: {eps} was given; it must be a part of the time, at least 0 and below 1")
    if not 0 <= noise < math.inf:
        raise DuetError(f"sampler.noise: {noise} was given; it must be a number, at least 0 (deterministic)")
    h, tau = 1.0 / steps, eps + (1.0 - eps) * np.arange(steps) / steps
    t = np.clip(1.0 - tau, *schedule.span)
    columns, (alpha, sigma) = process.columns(t), schedule(t)

    def step(i: int, X: Coefficients, D: Coefficients, z: Coefficients) -> list[Coefficients]:
        more = noise**2 / (2.0 * scale**2)  # sigma^2 / (2 k^2 (1 - tau)^2)
        drift = D[0] + more * (0.5 * tau[i] * (1.0 - tau[i]) * D[0] - 0.5 * (2.0 - tau[i]) * X[0])
        return [X[0] + h * drift + noise * (1.0 - tau[i]) * math.sqrt(h) * z]

    return SamplerPlan(
        name=f"rectified_flow-{steps}", t=t, alpha=np.append(alpha, 1.0), sigma=np.append(sigma, 0.0),
        c_skip=np.zeros(steps), c_out=np.full(steps, sign), c_in=columns.c_in, c_noise=columns.c_noise,
        guidance_scale=np.ones(steps), **recurrence(steps, 1, 1, step), start_scale=scale, preserves="nothing",
    )  # fmt: skip
