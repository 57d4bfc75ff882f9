r"""DEIS: the probability-flow ODE with eps as a polynomial of log(sigma/alpha), integrated exactly.

With rho = sigma/alpha, from a level t to a level s,

    x_s/alpha_s = x_t/alpha_t + sum over j of  eps_j  integral over r from rho_t to rho_s of  l_j(log r) dr

where l_j is the Lagrange polynomial of the level at which eps_j was evaluated. This is "tAB" of the paper, the method
of Adams and Bashforth with exact weights, with log(rho) as time, as in diffusers ("logrho"). As log(rho) = -lambda, it
is the eps form of `exponential` with "exact" weights: DPM-Solver of any order, without its approximate weights.

The last row leads to clean data and is of first order, D. t = 0 is one noise step.

References:
    Fast Sampling of Diffusion Models with Exponential Integrator (Zhang & Chen, 2022), proposition 3 and algorithm 1,
    https://arxiv.org/abs/2204.13902
"""

from __future__ import annotations

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process
from diffusion_core.sampling.declaration import Method, sampler
from diffusion_core.sampling.exponential import Integrator, effective_orders, multistep
from diffusion_core.sampling.families import SCHEDULERS
from diffusion_core.sampling.grid import make_grid
from diffusion_core.sampling.plan import SamplerPlan, plan_levels
from diffusion_core.sampling.spacing import Spacing, Steps

__all__ = ["deis"]


@sampler(
    Method("DEIS-2", order=2, options={"order": 2}, needs_signal=True),
    Method("DEIS-3", order=3, options={"order": 3}, needs_signal=True),
    family=SCHEDULERS,
    paper="Zhang & Chen 2022",
    url="https://arxiv.org/abs/2204.13902",
    equation="proposition 3",
    notes="tAB-DEIS. `order` is 1 to 4.",
)
def deis(
    process: Process,
    steps: Steps = 20,
    order: int = 3,
    lower_order_final: bool | None = None,
    spacing: Spacing = SCHEDULERS.spacing,
    clip: float | None = SCHEDULERS.clip,
) -> SamplerPlan:
    """Make a DEIS plan, tAB-DEIS of degree `order` - 1.

    Args:
        process: the process that the network was trained for; the first level must contain signal (alpha > 0).
        steps: number of steps, or another form of `spacing`.
        order: 1 to 4; the first rows use as many estimates as exist.
        lower_order_final: whether row N - k has at most order k; None: only with fewer than 15 rows.
        spacing: where the timesteps lie, see `grid` and `spacing`.
        clip: bound of the estimates, see `SamplerPlan`.

    Raises:
        DuetError: for another order, or a first level without signal.

    Example:
        >>> from diffusion_core.diffusion.schedule import linear
        >>> deis(Process(linear(), "v"), steps=10)
        SamplerPlan('deis-3-10', rows=10, registers=3, stochastic=False)
    """
    if order not in (1, 2, 3, 4):
        raise DuetError(f"sampler.order: {order} was given; it must be 1 to 4")
    integrator = Integrator("deis", plan_levels(process, *make_grid(process.schedule, steps, spacing)), "eps")
    orders = effective_orders(integrator.rows, order, lower_order_final, integrator.ends_clean)
    return SamplerPlan(
        name=f"deis-{order}-{integrator.rows}",
        **integrator.levels,
        **multistep(integrator, orders),
        clip=clip,
    )
