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

The singlestep solver uses no earlier steps. It evaluates the network at levels s_1, s_2, .. within a step: a step of
order p takes p rows, and each row goes from the start of the step to the next of these levels, the last one to s. A row
uses the values of y that the step has computed so far. In the third row, "midpoint" uses
``D_1 = (D(x_{s_2}) - D_0)/r_2`` with r_2 = (lambda_{s_2} - lambda_t)/h, without the value at s_1, as the paper does;
this is of third order only for r_2 = 2/3. There "heun" uses the parabola through all three values, which the paper's
code calls "taylor".

The step to clean data has h = infinity and is of first order, x_s = D_0. With fewer than 15 rows, the multistep rows
before it have lower orders too, because high orders are unstable at the end of a short run. The first rows have as high
an order as there are estimates. t = 0 is the level after one noise step.

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
from diffusion_core.sampling.declaration import Method, sampler
from diffusion_core.sampling.exponential import Integrator, effective_orders, multistep
from diffusion_core.sampling.grid import make_timesteps
from diffusion_core.sampling.plan import SamplerPlan, plan_levels
from diffusion_core.sampling.recurrence import Coefficients, recurrence
from diffusion_core.sampling.spacing import Spacing, Steps
from diffusion_core.sampling.steps import log_ratio

__all__ = ["BETWEEN", "SOLVER_TYPES", "dpm_solver", "dpm_solver_singlestep"]

SOLVER_TYPES = ("midpoint", "heun", "exact")
BETWEEN = ("log_snr", "visited")


@sampler(
    Method("DPM-Solver++ 2M", order=2, needs_signal=True),
    Method("DPM-Solver++ 3M, exact", order=3, options={"order": 3, "solver_type": "exact"}, needs_signal=True),
    Method("DPM-Solver++ 2M SDE", order=2, options={"sde": True}, stochastic=True, needs_signal=True),
    Method("DPM-Solver++ 3M", order=2, options={"order": 3}, needs_signal=True),
    Method("DPM-Solver++ 3M SDE", order=2, options={"order": 3, "sde": True}, stochastic=True, needs_signal=True),
    Method("DPM-Solver 2M", order=2, options={"predict": "eps"}, needs_signal=True),
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
    spacing: Spacing = "linspace",
    clip: float | None = 1.0,
    predict: str = "x0",
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

    Raises:
        DuetError: for an unknown order, solver type or `predict`, or a first level without signal.

    Example:
        >>> from diffusion_core.diffusion.schedule import linear
        >>> dpm_solver(Process(linear(), "v"), steps=10, sde=True)
        SamplerPlan('dpm_solver-2-sde-10', rows=10, registers=1, stochastic=True)
    """
    _check(order, solver_type, SOLVER_TYPES)
    t = make_timesteps(process.schedule, steps, spacing)
    integrator = Integrator("dpm_solver", plan_levels(process, t), predict)
    orders = effective_orders(integrator.rows, order, lower_order_final)
    return SamplerPlan(
        name=_name("dpm_solver", order, predict, sde, integrator.rows),
        **integrator.levels,
        **multistep(integrator, orders, tau=float(sde), kind=solver_type),
        clip=clip,
        preserves=integrator.preserves(sde),
    )


@sampler(
    Method("DPM-Solver++ 2S", order=2, options={"order": 2}, needs_signal=True),
    Method("DPM-Solver++ 3S", order=3, options={"order": 3}, needs_signal=True),
    Method("DPM-Solver-2", order=2, options={"order": 2, "predict": "eps"}, needs_signal=True),
    Method("DPM-Solver-3", order=3, options={"order": 3, "predict": "eps"}, needs_signal=True),
    paper="Lu et al. 2022b",
    url="https://arxiv.org/abs/2211.01095",
    equation="algorithm 1; [Lu et al. 2022a](https://arxiv.org/abs/2206.00927) for `predict: eps`",
    evaluations="N (`steps` counts evaluations)",
    notes="Singlestep. Stochastic with `sde: true`. Evaluates between timesteps, except with `between: visited`.",
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
    """Make a plan of the singlestep sampler, DPM-Solver++ (2S, 3S) or DPM-Solver (DPM-Solver-2, -3).

    Args:
        process: the process that the network was trained for; the first level must contain signal (alpha > 0).
        steps: the number of rows, that is of network evaluations, or another form of `spacing`. They are steps of
            `order` rows each, and one row to clean data. The last steps are shorter if `steps` is not a multiple of
            `order`.
        order: 1, 2 or 3.
        sde: whether to add fresh noise, with the marginals of the SDE.
        solver_type: ``"midpoint"`` or ``"heun"``.
        between: where the levels within a step lie: ``"log_snr"`` for equal distances of log-SNR as in the paper, at
            which the network is evaluated between the timesteps of its table; ``"visited"`` for the timesteps of
            `spacing`.
        spacing: where the timesteps lie, see `grid` and `spacing`; a step starts at every `order`-th of them.
        clip: bound of the estimates, see `SamplerPlan`.
        predict: ``"x0"`` for DPM-Solver++, ``"eps"`` for DPM-Solver.

    Raises:
        DuetError: for an unknown order or name, or a first level without signal.

    Example:
        >>> from diffusion_core.diffusion.schedule import linear
        >>> dpm_solver_singlestep(Process(linear(), "v"), steps=10, order=3)
        SamplerPlan('dpm_solver_singlestep-3-10', rows=10, registers=2, stochastic=False)
    """
    _check(order, solver_type, SOLVER_TYPES[:2])
    if between not in BETWEEN:
        raise one_of("sampler.between", between, BETWEEN)
    t = make_timesteps(process.schedule, steps, spacing)
    first_rows = _first_rows(len(t), order)
    if between == "log_snr":
        t = _space_evenly(process.schedule, t, first_rows)
    integrator = Integrator("dpm_solver_singlestep", plan_levels(process, t), predict)
    tau, rows, eps = float(sde), integrator.rows, predict == "eps"

    def step(i: int, X: Coefficients, D: Coefficients, z: Coefficients) -> list[Coefficients]:
        # The registers are x, the x at the start of the step, and (predict eps) earlier y of the step.
        start, current = first_rows[i], integrator.prediction(i, X[0], D[0])
        origin = X[0] if i == start else X[1]
        earlier = X[2:] if eps else D[1:]
        values = [current, *earlier][: i - start + 1][::-1]
        nodes = list(range(start, i + 1))
        third = len(nodes) == 3
        if third and solver_type == "midpoint":
            nodes, values = nodes[::2], values[::2]
        new = D[0]
        if i < rows - 1:
            kind = "exact" if third else solver_type
            new = integrator.first_order(start, i + 1, origin, values[0], z, tau)
            new = new + integrator.higher_order(start, i + 1, nodes, values, values[0], tau, kind)
        return [new, origin, *([current, *earlier[:-1]] if eps and order > 1 else [])]

    return SamplerPlan(
        name=_name("dpm_solver_singlestep", order, predict, sde, rows),
        **integrator.levels,
        **recurrence(rows, 2 + (order - 1 if eps else 0), 1 if eps else order, step),
        clip=clip,
        preserves=integrator.preserves(sde),
    )


def _first_rows(rows: int, order: int) -> NDArray[np.int64]:
    """Return the row at which each row's step starts, with shape (N,); the last row is a step by itself."""
    lengths = [order] * ((rows - 1) // order)
    rest = (rows - 1) % order
    if order == 3 and rest == 1 and lengths:
        # Two steps of second order cost as much as one of third and one of first order, which would reduce the order
        # of the whole run to two.
        lengths[-1:], rest = [2], 2
    lengths += [rest, 1] if rest else [1]
    return np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)


def _space_evenly(schedule: AnySchedule, t: NDArray, first_rows: NDArray) -> NDArray[np.float64]:
    """Return the t of the rows, with those within a step at equal distances of log-SNR between its ends."""
    ends = np.unique(first_rows)
    even = np.interp(np.arange(len(t)), ends, log_ratio(schedule, t[ends]))
    spaced = t.astype(np.float64)
    within = first_rows != np.arange(len(t))
    spaced[within] = schedule.t_at_log_ratio(even[within])
    return spaced


def _check(order: int, solver_type: str, solver_types: tuple[str, ...]) -> None:
    if order not in (1, 2, 3):
        raise DuetError(f"sampler.order: {order} was given; it must be 1, 2 or 3")
    if solver_type not in solver_types:
        raise one_of("sampler.solver_type", solver_type, solver_types)


def _name(name: str, order: int, predict: str, sde: bool, rows: int) -> str:
    return f"{name}-{order}{'' if predict == 'x0' else f'-{predict}'}{'-sde' if sde else ''}-{rows}"
