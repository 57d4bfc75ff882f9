r"""DPM-Solver and DPM-Solver++: exponential integrators in the half log-SNR, as an ODE or an SDE.

DPM-Solver++ puts a polynomial through estimates D of x_0 (predict x0), DPM-Solver through eps (predict eps); y is the
quantity that the polynomial goes through. A step leads from the noise level t to the next one s. With the half log-SNR
lambda, h = lambda_s - lambda_t is its length, and h_{-1} and h_{-2} are the lengths of the two steps before it.
D_0 = D(x_t) is the estimate at t, and D_{-1} and D_{-2} are the estimates of the two steps before. With

    r_0 = h_{-1}/h,   r_1 = h_{-2}/h
    D_1 = (D_0 - D_{-1})/r_0                              first divided difference
    D_2 = (D_1 - (D_{-1} - D_{-2})/r_1)/(r_0 + r_1)       second divided difference
    D'_1 = D_1 + r_0 D_2                                  derivative at t of the parabola through the three estimates

the multistep solver of the probability-flow ODE (tau = 0) is, for predict x0,

    order 1        x_s = sigma_s/sigma_t x_t + alpha_s (1 - e^-h) D_0
    order 2        ... + alpha_s (1 - e^-h)/2 D_1                           "midpoint"
                   ... + alpha_s ((e^-h - 1)/h + 1) D_1                     "heun" and "exact"
    order 3        ... + alpha_s ((e^-h - 1)/h + 1) D'_1 + w alpha_s (1/2 - (e^-h - 1 + h)/h^2) D_2

"exact" has w = 2, which is the integral of the parabola. "midpoint" and "heun" have w = 1, as in the paper's code and
all code derived from it, which makes the method one of second order. The SDE (tau = 1) has the same form with 2h for h
in the weights of D, the factor e^-h on x_t, and fresh noise ``sigma_s sqrt(1 - e^-2h) z``. For predict eps see
`exponential`, which derives both forms.

Between the two, `eta` of the noise of the SDE has tau^2 = eta, so the factor on x_t is e^{-eta h}, the weights have
(1 + eta) h, and the noise is sigma_s sqrt(1 - e^{-2 eta h}) z, times `s_noise`, as in sample_dpmpp_2m_sde and
sample_dpmpp_3m_sde of k-diffusion (the latter has the weights of "heun").

The step to clean data has h = infinity and is of first order, x_s = D_0. With fewer than 15 rows, the multistep rows
before it have lower orders too, because high orders are unstable at the end of a short run. The first rows have as high
an order as there are estimates. t = 0 is the level after one noise step. The singlestep solvers are in
`dpm_singlestep`.

References:
    DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps (Lu et al., 2022),
    https://arxiv.org/abs/2206.00927
    DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models (Lu et al., 2022), algorithm 2 and
    section 5, https://arxiv.org/abs/2211.01095
    k-diffusion (crowsonkb/k-diffusion, k_diffusion/sampling.py, sample_dpmpp_2m_sde, sample_dpmpp_3m_sde)
"""

from __future__ import annotations

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.diffusion.process import Process
from diffusion_core.sampling.declaration import Method, sampler
from diffusion_core.sampling.exponential import Integrator, effective_orders, multistep, noise_scales
from diffusion_core.sampling.families import SCHEDULERS
from diffusion_core.sampling.grid import make_grid
from diffusion_core.sampling.plan import SamplerPlan, plan_levels
from diffusion_core.sampling.spacing import Spacing, Steps

__all__ = ["SOLVER_TYPES", "check_order", "dpm_solver", "solver_name"]

SOLVER_TYPES = ("midpoint", "heun", "exact")


@sampler(
    Method("DPM-Solver++ 2M", order=2, needs_signal=True),
    Method("DPM-Solver++ 3M, exact", order=3, options={"order": 3, "solver_type": "exact"}, needs_signal=True),
    Method("DPM-Solver++ 2M SDE", order=2, options={"sde": True}, stochastic=True, needs_signal=True),
    Method("DPM-Solver++ 3M", order=2, options={"order": 3}, needs_signal=True),
    Method("DPM-Solver++ 3M SDE", order=2, options={"order": 3, "sde": True}, stochastic=True, needs_signal=True),
    Method("DPM-Solver 2M", order=2, options={"predict": "eps"}, needs_signal=True),
    family=SCHEDULERS,
    paper="Lu et al. 2022b",
    url="https://arxiv.org/abs/2211.01095",
    equation="algorithm 2, section 5 for `sde`; [Lu et al. 2022a](https://arxiv.org/abs/2206.00927) for `predict: eps`",
    notes="Multistep. `order` is 1, 2 or 3; `order: 3` has order 3 only with `solver_type: exact`, otherwise 2.",
)
def dpm_solver(
    process: Process,
    steps: Steps = 20,
    order: int = 2,
    sde: bool = False,
    solver_type: str = "midpoint",
    lower_order_final: bool | None = None,
    spacing: Spacing = SCHEDULERS.spacing,
    clip: float | None = SCHEDULERS.clip,
    predict: str = "x0",
    eta: float | None = None,
    s_noise: float = 1.0,
) -> SamplerPlan:
    """Make a plan of the multistep sampler, DPM-Solver++ (1, 2M, 3M and 2M-SDE, 3M-SDE) or DPM-Solver.

    Args:
        process: the process that the network was trained for; the first level must contain signal (alpha > 0).
        steps: number of steps, or another form of `spacing`.
        order: 1, 2 or 3; the first rows use as many estimates as exist.
        sde: whether to add fresh noise, with the marginals of the SDE.
        solver_type: ``"midpoint"`` or ``"heun"`` as published, or ``"exact"``.
        lower_order_final: whether row N - k has at most order k; None: only with fewer than 15 rows.
        spacing: where the timesteps lie, see `grid` and `spacing`.
        clip: bound of the estimates, see `SamplerPlan`.
        predict: ``"x0"`` for DPM-Solver++, ``"eps"`` for DPM-Solver.
        eta: with sde, fresh noise relative to that of the SDE, at least 0 (the ODE); None for 1.
        s_noise: factor of the fresh noise.

    Raises:
        DuetError: for an unknown order, solver type or `predict`, an eta without sde, numbers that are out of range, or
            a first level without signal.

    Example:
        >>> from diffusion_core.diffusion.schedule import linear
        >>> dpm_solver(Process(linear(), "v"), steps=10, sde=True)
        SamplerPlan('dpm_solver-2-sde-10', rows=10, registers=1, stochastic=True)
    """
    check_order(order, solver_type, SOLVER_TYPES)
    tau, s_noise = noise_scales(sde, eta, s_noise)
    integrator = Integrator("dpm_solver", plan_levels(process, *make_grid(process.schedule, steps, spacing)), predict)
    orders = effective_orders(integrator.rows, order, lower_order_final, integrator.ends_clean)
    return SamplerPlan(
        name=solver_name("dpm_solver", order, predict, sde, integrator.rows),
        **integrator.levels,
        **multistep(integrator, orders, tau=tau, kind=solver_type, s_noise=s_noise),
        clip=clip,
        preserves=integrator.preserves(tau, s_noise),
    )


def check_order(order: int, solver_type: str, solver_types: tuple[str, ...]) -> None:
    """Raise an error for an order or a solver type that a DPM-Solver does not have."""
    if order not in (1, 2, 3):
        raise DuetError(f"sampler.order: {order} was given; it must be 1, 2 or 3")
    check_choice("sampler.solver_type", solver_type, solver_types)


def solver_name(name: str, order: int, predict: str, sde: bool, rows: int) -> str:
    """Return the name of a DPM-Solver's plan."""
    return f"{name}-{order}{'' if predict == 'x0' else f'-{predict}'}{'-sde' if sde else ''}-{rows}"
