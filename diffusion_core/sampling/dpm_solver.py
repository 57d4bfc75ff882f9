r"""DPM-Solver and DPM-Solver++: exponential integrators in the half log-SNR, as an ODE or an SDE.

DPM-Solver++ puts a polynomial through estimates D of x_0 (predict x0), DPM-Solver through eps (predict eps). With
h = lambda_s - lambda_t from a level t to the next one s, and earlier estimates

    D_0 = D(x_t),   D_1 = (D_0 - D_{-1})/r_0,      r_0 = h_{-1}/h,   r_1 = h_{-2}/h     (h_{-1}: the step before)

the multistep solver of the probability-flow ODE is, for predict x0,

    order 1        x_s = sigma_s/sigma_t x_t + alpha_s (1 - e^-h) D_0
    order 2        ... + alpha_s (1 - e^-h)/2 D_1                           "midpoint"
                   ... + alpha_s ((e^-h - 1)/h + 1) D_1                     "heun" and "exact"
    order 3        ... + alpha_s ((e^-h - 1)/h + 1) D'_1 + w alpha_s (1/2 - (e^-h - 1 + h)/h^2) D_2

where D'_1 and D_2 are the divided differences over three estimates. The integral of the parabola has w = 2, which is
"exact"; the paper's code, and all that follow it, have w = 1, which makes it of second order in the end. The SDE has
the same form with 2h for h in the weights of D, the factor e^-h on x_t, and fresh noise ``sigma_s sqrt(1 - e^-2h) z``.
For predict eps see `exponential`, where all of it is worked out.

The singlestep solver forgets earlier steps and looks at levels within one instead: a step of order p takes p rows, to
level s_1, s_2, .. each from where the step started, by as many values of y as there are by then. In the last row of
three, "midpoint" leaves the middle one out, ``D_1 = (D_2nd - D_0)/r_2``, as the paper does, which is of third order
only for r_2 = 2/3; "heun" has the parabola through all three, the paper's code's "taylor".

The step to clean data has h = infinity and is of first order, x_s = D_0. With few rows the multistep ones before it
are of lower order too: the high ones are unstable at the end of a short run. The first rows have as high an order as
there are estimates. t = 0 is one noise step.

References:
    DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps (Lu et al., 2022),
    algorithms 1 and 2, https://arxiv.org/abs/2206.00927
    DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models (Lu et al., 2022), algorithms 1
    and 2 and section 5, https://arxiv.org/abs/2211.01095
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import AnySchedule
from diffusion_core.sampling.exponential import Coefficients, Integrator, effective_orders, multistep, recurrence
from diffusion_core.sampling.grid import make_timesteps
from diffusion_core.sampling.plan import SamplerPlan, plan_levels
from diffusion_core.sampling.spacing import Spacing, Steps
from diffusion_core.sampling.steps import log_ratio

__all__ = ["BETWEEN", "SOLVER_TYPES", "dpm_solver", "dpm_solver_singlestep"]

SOLVER_TYPES = ("midpoint", "heun", "exact")
BETWEEN = ("log_snr", "visited")


def dpm_solver(
    process: Process,
    steps: Steps = 20,
    order: int = 2,
    sde: bool = False,
    solver_type: str = "midpoint",
    lower_order_final: bool | None = None,
    spacing: Spacing = "linspace",
    clip: float | None = 1.0,
    predict: str = "x0",
) -> SamplerPlan:
    """The multistep sampler, DPM-Solver++ (1, 2M, 3M and 2M-SDE, 3M-SDE) or DPM-Solver.

    Args:
        process: what the network was trained for; the first level must have some signal (alpha > 0).
        steps: rows, 1 to T, or another answer of `spacing`.
        order: 1, 2 or 3; the first rows have as many as there are estimates.
        sde: whether fresh noise is added, with the marginals of the SDE.
        solver_type: ``"midpoint"`` or ``"heun"`` as published, or ``"exact"``.
        lower_order_final: whether row N - k has order k at most; None is with fewer than 15 rows.
        spacing: see `grid` and `spacing`.
        clip: see `SamplerPlan`.
        predict: ``"x0"`` for DPM-Solver++, ``"eps"`` for DPM-Solver.

    Raises:
        DuetError: for an order, a solver type or a form that does not exist, or a schedule that starts without signal.
    """
    _check(order, solver_type, SOLVER_TYPES)
    integrator = Integrator(
        "dpm_solver", plan_levels(process, make_timesteps(process.schedule, steps, spacing)), predict
    )
    orders = effective_orders(integrator.rows, order, lower_order_final)
    return SamplerPlan(
        name=_name("dpm_solver", order, predict, sde, integrator.rows),
        **integrator.levels,
        **multistep(integrator, orders, tau=float(sde), kind=solver_type),
        clip=clip,
        preserves=integrator.preserves(sde),
    )


def dpm_solver_singlestep(
    process: Process,
    steps: Steps = 20,
    order: int = 2,
    sde: bool = False,
    solver_type: str = "midpoint",
    between: str = "log_snr",
    spacing: Spacing = "linspace",
    clip: float | None = 1.0,
    predict: str = "x0",
) -> SamplerPlan:
    """The singlestep sampler, DPM-Solver++ (2S, 3S) or DPM-Solver (DPM-Solver-2, -3).

    Args:
        process: what the network was trained for; the first level must have some signal (alpha > 0).
        steps: rows, the evaluations of the network: steps of `order` rows each, one or two shorter ones if the number
            does not go in, and the one row that leads to clean data.
        order: 1, 2 or 3.
        sde: whether fresh noise is added, with the marginals of the SDE.
        solver_type: ``"midpoint"`` or ``"heun"``.
        between: where the levels within a step lie: ``"log_snr"``, at equal distances of log-SNR as in the paper, at
            which the network is asked between the levels of its table; or ``"visited"``, the levels of the spacing.
        spacing: see `grid` and `spacing`; every `order`-th of its levels is one that a step starts from.
        clip: see `SamplerPlan`.
        predict: ``"x0"`` for DPM-Solver++, ``"eps"`` for DPM-Solver.

    Raises:
        DuetError: for an order or a name that does not exist, or a schedule that starts without signal.
    """
    _check(order, solver_type, SOLVER_TYPES[:2])
    if between not in BETWEEN:
        raise one_of("sampler.between", between, BETWEEN)
    t = make_timesteps(process.schedule, steps, spacing)
    starts = _starts(len(t), order)
    if between == "log_snr":
        t = _spread_evenly(process.schedule, t, starts)
    integrator = Integrator("dpm_solver_singlestep", plan_levels(process, t), predict)
    tau, rows, eps = float(sde), integrator.rows, predict == "eps"

    def step(i: int, X: NDArray, D: NDArray, z: Coefficients) -> list[Coefficients]:
        # The registers are x, the x that the step started from, and (predict eps) earlier y of the step.
        start, now = starts[i], integrator.seen(i, X[0], D[0])
        origin = X[0] if i == start else X[1]
        past = X[2:] if eps else D[1:]
        values = [now, *past][: i - start + 1][::-1]
        nodes = list(range(start, i + 1))
        third = len(nodes) == 3
        if third and solver_type == "midpoint":
            nodes, values = nodes[::2], values[::2]
        new = D[0]
        if i < rows - 1:
            new = integrator.first(start, i + 1, origin, values[0], z, tau)
            kind = "exact" if third else solver_type
            new = new + integrator.beyond(start, i + 1, nodes, values, values[0], tau, kind)
        return [new, origin, *([now, *past[:-1]] if eps and order > 1 else [])]

    return SamplerPlan(
        name=_name("dpm_solver_singlestep", order, predict, sde, rows),
        **integrator.levels,
        **recurrence(rows, 2 + (order - 1 if eps else 0), 1 if eps else order, step),
        clip=clip,
        preserves=integrator.preserves(sde),
    )


def _starts(rows: int, order: int) -> NDArray[np.int64]:
    """The row that each row's step starts at, with shape (N,); the last one is a step by itself."""
    lengths = [order] * ((rows - 1) // order)
    rest = (rows - 1) % order
    if order == 3 and rest == 1 and lengths:
        # Two of second order cost what one of third and one of first do, which would leave the whole of second order.
        lengths[-1:], rest = [2], 2
    lengths += [rest, 1] if rest else [1]
    return np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)


def _spread_evenly(schedule: AnySchedule, t: NDArray, starts: NDArray) -> NDArray[np.float64]:
    """The t of the rows, those within a step at equal distances of log-SNR between its ends."""
    ends = np.unique(starts)
    spaced = np.interp(np.arange(len(t)), ends, log_ratio(schedule, t[ends]))
    spread = t.astype(np.float64)
    within = starts != np.arange(len(t))
    spread[within] = schedule.t_at_log_ratio(spaced[within])
    return spread


def _check(order: int, solver_type: str, solver_types: tuple[str, ...]) -> None:
    if order not in (1, 2, 3):
        raise DuetError(f"sampler.order: {order} was given; it is 1, 2 or 3")
    if solver_type not in solver_types:
        raise one_of("sampler.solver_type", solver_type, solver_types)


def _name(name: str, order: int, predict: str, sde: bool, rows: int) -> str:
    return f"{name}-{order}{'' if predict == 'x0' else f'-{predict}'}{'-sde' if sde else ''}-{rows}"
