r"""DEIS: the probability-flow ODE with eps as a polynomial of log(sigma/alpha), integrated exactly.

With rho = sigma/alpha, from a level t to a level s,

    x_s/alpha_s = x_t/alpha_t + sum over j of  eps_j  integral over r from rho_t to rho_s of  l_j(log r) dr

where l_j is Lagrange's polynomial of the levels that eps_j were seen at: "tAB" of the paper, Adams and Bashforth's
method with exact weights, with log(rho) for time, as diffusers has it ("logrho"). As log(rho) = -lambda it is the eps
form of `exponential` with its weight "exact", and so DPM-Solver of any order without the liberties that it takes.

The last row leads to clean data and is of first order, D. t = 0 is one noise step.

References:
    Fast Sampling of Diffusion Models with Exponential Integrator (Zhang & Chen, 2022), proposition 3 and algorithm 1,
    https://arxiv.org/abs/2204.13902
"""

from __future__ import annotations

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process
from diffusion_core.sampling.exponential import Integrator, effective_orders, multistep
from diffusion_core.sampling.grid import make_timesteps
from diffusion_core.sampling.plan import SamplerPlan, plan_levels
from diffusion_core.sampling.spacing import Spacing, Steps

__all__ = ["deis"]


def deis(
    process: Process,
    steps: Steps = 20,
    order: int = 3,
    lower_order_final: bool | None = None,
    spacing: Spacing = "linspace",
    clip: float | None = 1.0,
) -> SamplerPlan:
    """The DEIS sampler, tAB-DEIS of degree `order` - 1.

    Args:
        process: what the network was trained for; the first level must have some signal (alpha > 0).
        steps: rows, 1 to T, or another answer of `spacing`.
        order: 1 to 4; the first rows have as many as there are estimates.
        lower_order_final: whether row N - k has order k at most; None is with fewer than 15 rows.
        spacing: see `grid` and `spacing`.
        clip: see `SamplerPlan`.

    Raises:
        DuetError: for another order, or a schedule that starts without signal.
    """
    if order not in (1, 2, 3, 4):
        raise DuetError(f"sampler.order: {order} was given; it is 1 to 4")
    integrator = Integrator("deis", plan_levels(process, make_timesteps(process.schedule, steps, spacing)), "eps")
    return SamplerPlan(
        name=f"deis-{order}-{integrator.rows}",
        **integrator.levels,
        **multistep(integrator, effective_orders(integrator.rows, order, lower_order_final)),
        clip=clip,
    )
