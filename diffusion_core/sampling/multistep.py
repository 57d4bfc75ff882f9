r"""Adams-Bashforth: the slopes of earlier steps are continued as a polynomial, with one evaluation per step.

In a variable tau of `steps`, with u = x/n and the slopes f = (x - n D)/sigma at the level of a row and those before,

    u_s = u_t + sum_j w_j f_{t-j},      w_j = integral from tau_t to tau_s of the Lagrange polynomial of f_{t-j}

over as many slopes as the order says, and as there are. With steps of any lengths the weights are those integrals
themselves; with equal ones they are the classical 3/2, -1/2 and so on.

    lms                in r = sigma/alpha, as k-diffusion and diffusers have it (there the integrals are numerical)
    adams_bashforth    in sigma/(alpha + sigma), the velocity of flow matching, or in either

Rows keep f as registers; D = x_0 has the same f at every level, which any such weights lead on exactly.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
    https://arxiv.org/abs/2206.00364
    k-diffusion (crowsonkb/k-diffusion, k_diffusion/sampling.py, sample_lms)
    Solving Ordinary Differential Equations I (Hairer, Norsett & Wanner, 1993), section III.5, variable step sizes
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.diffusion.process import Process
from diffusion_core.sampling.grid import make_timesteps
from diffusion_core.sampling.plan import SamplerPlan, plan_levels
from diffusion_core.sampling.spacing import Spacing, Steps
from diffusion_core.sampling.steps import VARIABLES, needs_signal

__all__ = ["adams_bashforth", "lms"]


def lms(
    process: Process,
    steps: Steps = 50,
    order: int = 4,
    spacing: Spacing = "karras",
    clip: float | None = None,
) -> SamplerPlan:
    """The linear multistep method of k-diffusion.

    Args:
        process: what the network was trained for; the first level must have some signal (alpha > 0).
        steps: how many, or another answer of `spacing`.
        order: 1 to 4; the first rows have as many as there are slopes.
        spacing: see `grid` and `spacing`.
        clip: see `SamplerPlan`.

    Raises:
        DuetError: for an order that does not exist, or a first level without signal.
    """
    return _continued(process, "lms", steps, order, "ratio", spacing, clip)


def adams_bashforth(
    process: Process,
    steps: Steps = 50,
    order: int = 2,
    variable: str = "flow",
    spacing: Spacing = "linspace",
    clip: float | None = None,
) -> SamplerPlan:
    """Adams-Bashforth in either variable.

    Args:
        process: what the network was trained for; for the variable ratio the first level must have some signal.
        steps: how many, or another answer of `spacing`.
        order: 1 to 4; the first rows have as many as there are slopes.
        variable: ``"flow"`` or ``"ratio"``, see `steps`.
        spacing: see `grid` and `spacing`.
        clip: see `SamplerPlan`.

    Raises:
        DuetError: for an order or a variable that does not exist, or a first level without signal.
    """
    return _continued(process, "adams_bashforth", steps, order, variable, spacing, clip)


def _continued(
    process: Process, name: str, steps: Steps, order: int, variable: str, spacing: Spacing, clip: float | None
) -> SamplerPlan:
    if order not in (1, 2, 3, 4):
        raise DuetError(f"sampler.order: {order} was given; it is 1, 2, 3 or 4")
    if variable not in VARIABLES:
        raise one_of("sampler.variable", variable, VARIABLES)
    levels = plan_levels(process, make_timesteps(process.schedule, steps, spacing))
    alpha, sigma = levels["alpha"], levels["sigma"]
    if variable == "ratio":
        needs_signal(name, alpha)
    n = VARIABLES[variable](alpha, sigma)
    tau, rows = sigma / n, len(levels["t"])
    state, denoised = np.zeros((rows, order, order)), np.zeros((rows, order, 1))
    # Older slopes move one register further at every row.
    state[:, 2:, 1:-1] = np.eye(max(order - 2, 0))
    for i in range(rows):
        now = min(order, i + 1)
        weights = n[i + 1] * _weights(tau[i::-1][:now], tau[i + 1])
        # The slope is (x - n D)/sigma; what is left of Euler's step after the other weights is written out.
        others = weights[1:].sum()
        state[i, 0, 0] = sigma[i + 1] / sigma[i] - others / sigma[i]
        denoised[i, 0, 0] = alpha[i + 1] - alpha[i] * sigma[i + 1] / sigma[i] + others * n[i] / sigma[i]
        state[i, 0, 1:now] = weights[1:]
        if order > 1:
            state[i, 1, 0], denoised[i, 1, 0] = 1 / sigma[i], -n[i] / sigma[i]
    return SamplerPlan(
        name=f"{name}-{order}-{rows}",
        **levels,
        state=state,
        denoised=denoised,
        noise=np.zeros((rows, order)),
        clip=clip,
    )


def _weights(nodes: NDArray, end: float) -> NDArray[np.float64]:
    """Integrals of the Lagrange polynomials over the nodes, newest first, from the newest to the end."""
    # Gauss-Legendre with two points has no error up to the third degree, that of four nodes; both count half.
    at = nodes[0] + (end - nodes[0]) * (1 + np.array([-1, 1]) / np.sqrt(3)) / 2
    other = ~np.eye(len(nodes), dtype=bool)
    factors = (at - nodes[:, None]) / np.where(other, nodes[:, None] - nodes, 1.0)[..., None]
    return (end - nodes[0]) * np.prod(factors, axis=1, where=other[..., None]).mean(axis=1)
