r"""Singlestep DPM-Solvers: steps of several rows that use nothing of earlier steps, and DPM-Solver-fast.

A step of order p leads from the noise level t to the next one s in p rows. Each row evaluates the network at a level
s_1, s_2, .. within the step, and goes from t to the next of them, the last row to s, with the values of y that the step
has computed so far; y is D (predict x0, DPM-Solver++) or eps (predict eps, DPM-Solver), and `exponential` derives both
forms. With half log-SNR lambda, h = lambda_s - lambda_t and the levels at r_1 = 1/3 and r_2 = 2/3 of h for order 3, at
r_1 = 1/2 for order 2, the rows of order 3 are

    1   to s_1    first order
    2   to s_2    + r_2/r_1 w(r_2 h) (y_1 - y_0)        w the weight of the slope, see `exponential`
    3   to s      + 1/r_2 w(h) (y_2 - y_0)              without the value at s_1; of third order only for r_2 = 2/3

Two weights of row 2 have been published, `middle`: "exact", the integral, in algorithm 2 of the DPM-Solver paper, its
code and k-diffusion; and "same", that of `solver_type`, in diffusers, where each row is a step of second order, so that
"midpoint" has (1 - e^-K)/2 there too. Both have third order. In row 3 "midpoint" has the weight of the integral as
above, and "heun" uses the parabola through all three values, which the paper's code calls "taylor".

The levels within a step lie at these fractions of its log-SNR, and the steps start at every p-th of the levels that
`spacing` has for all rows (`spaced: rows`); or `spacing` has one level per step, so that steps of equal length in, say,
log-SNR remain equal when the last of them have lower orders (`spaced: steps`). Lower orders at the end, if they are
wanted (`lower_order_final`) or if the number of rows is no multiple of p:

    to clean data     p, .., p, then what remains, then 1; for p = 3, 2, 2, 1 in place of 3, 1, 1
    to a noisy end    3, .., 3, 2, 1    3, .., 3, 1    or 3, .., 3, 2;    2, .., 2, 1, 1    or 2, .., 2, 1

The schedule to a noisy end with p = 3 is that of DPM-Solver-fast (section 3.4 of the paper), on equal steps.
k-diffusion adds the noise of ancestral sampling: a step leads to r_down, see `dpm_ancestral`, but not below the end,
and noise leads from there to s. A clean end takes one more row, D. t = 0 is one noise step.

References:
    DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps (Lu et al., 2022),
    algorithms 1 and 2 and section 3.4, https://arxiv.org/abs/2206.00927
    DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models (Lu et al., 2022), algorithm 1,
    https://arxiv.org/abs/2211.01095
    k-diffusion (crowsonkb/k-diffusion, k_diffusion/sampling.py, sample_dpm_fast)
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import MAX_LEVELS, AnySchedule
from diffusion_core.sampling.declaration import Method, sampler
from diffusion_core.sampling.dpm_solver import SOLVER_TYPES, check_order, solver_name
from diffusion_core.sampling.exponential import Integrator, noise_scales
from diffusion_core.sampling.families import FAST, SCHEDULERS
from diffusion_core.sampling.grid import Grid, make_grid
from diffusion_core.sampling.plan import SamplerPlan, plan_levels
from diffusion_core.sampling.recurrence import Coefficients, recurrence
from diffusion_core.sampling.spacing import Spacing, Steps
from diffusion_core.sampling.steps import ancestral_fractions, log_ratio

__all__ = ["BETWEEN", "MIDDLES", "SPACED", "dpm_fast", "dpm_solver_singlestep"]

BETWEEN = ("log_snr", "visited")
MIDDLES = ("same", "exact")
SPACED = ("rows", "steps")


@sampler(
    Method("DPM-Solver++ 2S", order=2, options={"order": 2}, needs_signal=True),
    Method("DPM-Solver++ 3S", order=3, options={"order": 3}, needs_signal=True),
    Method("DPM-Solver-2", order=2, options={"order": 2, "predict": "eps"}, needs_signal=True),
    Method("DPM-Solver-3", order=3, options={"order": 3, "predict": "eps"}, needs_signal=True),
    family=SCHEDULERS,
    paper="Lu et al. 2022b",
    url="https://arxiv.org/abs/2211.01095",
    equation="algorithm 1; [Lu et al. 2022a](https://arxiv.org/abs/2206.00927) for `predict: eps`",
    evaluations="N (`steps` counts evaluations)",
    notes="Singlestep. Stochastic with `sde: true`, of first order. Evaluates between timesteps, except with "
    "`between: visited`. `middle: exact` has the weight of the second of three rows in the paper and k-diffusion, "
    "`same` that in diffusers.",
)
def dpm_solver_singlestep(
    process: Process,
    steps: Steps = 20,
    order: int = 2,
    sde: bool = False,
    solver_type: str = "midpoint",
    between: str = "log_snr",
    spacing: Spacing = SCHEDULERS.spacing,
    clip: float | None = SCHEDULERS.clip,
    predict: str = "x0",
    middle: str = "same",
    lower_order_final: bool = True,
    spaced: str = "rows",
    eta: float | None = None,
    s_noise: float = 1.0,
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
        middle: the weights of the second of three rows, ``"same"`` as solver_type, or ``"exact"`` as in the paper.
        lower_order_final: whether the last steps before a noisy end have lower orders even where the rows are a
            multiple of `order`, and whether they may be no multiple of it.
        spaced: whether spacing has a level for each of the ``"rows"`` or for each of the ``"steps"``.
        eta: with sde, fresh noise relative to that of the SDE, at least 0 (the ODE); None for 1.
        s_noise: factor of the fresh noise.

    Raises:
        DuetError: for an unknown order or name, rows that are no multiple of the order without lower_order_final, an
            eta without sde, numbers that are out of range, or a first level without signal.

    Example:
        >>> from diffusion_core.diffusion.schedule import linear
        >>> dpm_solver_singlestep(Process(linear(), "v"), steps=10, order=3)
        SamplerPlan('dpm_solver_singlestep-3-10', rows=10, registers=2, stochastic=False)
    """
    check_order(order, solver_type, SOLVER_TYPES[:2])
    check_choice("sampler.between", between, BETWEEN)
    check_choice("sampler.middle", middle, MIDDLES)
    check_choice("sampler.spaced", spaced, SPACED)
    if spaced == "steps" and between == "visited":
        raise DuetError("sampler.between: visited was given with spaced=steps, which has no timesteps within a step")
    tau, s_noise = noise_scales(sde, eta, s_noise)
    grid, lengths = _steps(process.schedule, steps, spacing, order, spaced, lower_order_final)
    return _make(
        process, "dpm_solver_singlestep", grid, lengths, clip, predict, solver_type, middle, tau, s_noise,
        evenly=between == "log_snr", order=order,
    )  # fmt: skip


@sampler(
    Method("DPM-Solver-fast", order=2, needs_signal=True),
    Method("DPM-Solver-fast, ancestral", order=1, options={"eta": 1.0}, stochastic=True, needs_signal=True),
    family=FAST,
    paper="Lu et al. 2022a",
    url="https://arxiv.org/abs/2206.00927",
    equation="section 3.4; k-diffusion, sample_dpm_fast",
    evaluations="N (`steps` counts evaluations)",
    notes="DPM-Solver-3 with a last step or two of lower order. Stochastic with `eta` > 0.",
)
def dpm_fast(
    process: Process,
    steps: Steps = 20,
    eta: float = 0.0,
    s_noise: float = 1.0,
    spacing: Spacing = FAST.spacing,
    clip: float | None = FAST.clip,
    predict: str = "eps",
) -> SamplerPlan:
    """Make a plan of DPM-Solver-fast: steps of third order, equal in log-SNR, and one or two of lower order at the end.

    Args:
        process: the process that the network was trained for; the first level must contain signal (alpha > 0).
        steps: the number of network evaluations; one of them leads to clean data, unless the end is noisy.
        eta: fresh noise relative to that of ancestral sampling, 0 to 1.
        s_noise: factor of the fresh noise.
        spacing: where the steps start, see `grid` and `spacing`.
        clip: bound of the estimates, see `SamplerPlan`.
        predict: ``"eps"`` for DPM-Solver, ``"x0"`` for the same steps of DPM-Solver++.

    Raises:
        DuetError: for numbers that are out of range, an unknown `predict`, or a first level without signal.

    Example:
        >>> from diffusion_core.diffusion.schedule import make_schedule
        >>> dpm_fast(Process(make_schedule("edm"), "edm"), steps=10)
        SamplerPlan('dpm_fast-3-eps-10', rows=10, registers=4, stochastic=False)
    """
    if not 0 <= eta <= 1:
        raise DuetError(f"sampler.eta: {eta} was given; it must be between 0 (deterministic) and 1 (ancestral)")
    if not 0 <= s_noise < np.inf:
        raise DuetError(f"sampler.s_noise: {s_noise} was given; it must be a number, at least 0")
    grid, lengths = _steps(process.schedule, steps, spacing, 3, "steps", True, fast=True)
    starts = np.cumsum([0, *lengths[:-1]])
    points = Grid(grid.t[starts], grid.end).points
    kept = ancestral_fractions(process.schedule, points, eta)[1:]
    # No step leads below the last noisy level.
    ratios = log_ratio(process.schedule, points)
    kept = np.maximum(kept, np.exp(ratios[-1] - ratios[1:]))
    kept = np.append(kept, np.ones(len(lengths) - len(kept)))
    return _make(
        process, "dpm_fast", grid, lengths, clip, predict, "midpoint", "exact", 0.0, s_noise,
        evenly=True, order=3, kept=kept,
    )  # fmt: skip


def _make(
    process: Process,
    name: str,
    grid: Grid,
    lengths: list[int],
    clip: float | None,
    predict: str,
    solver_type: str,
    middle: str,
    tau: float,
    s_noise: float,
    evenly: bool,
    order: int,
    kept: NDArray | None = None,
) -> SamplerPlan:
    """Make the plan of steps with these numbers of rows.

    Args:
        grid: the t of every row; those within a step are moved if `evenly`.
        lengths: of the steps, in rows.
        kept: the fraction of the sigma/alpha at its end that each step leads to; fresh noise makes up the rest.
    """
    K, rows, eps = len(lengths), len(grid.t), predict == "eps"
    starts = np.cumsum([0, *lengths])
    step_of = np.repeat(np.arange(K), lengths)
    kept = np.ones(K) if kept is None else kept
    outer = process.schedule(Grid(grid.t[starts[:-1]], grid.end).points)
    if outer[0][0] > 0 and evenly:
        grid = Grid(_space_evenly(process.schedule, grid, starts, kept), grid.end)
    levels = plan_levels(process, *grid)
    # Each step leads to a level of its own, behind those of the rows: that of the next step without its fresh noise.
    targets = {name: levels[name][starts[1:]] for name in ("alpha", "sigma")}
    fresh = s_noise * targets["sigma"] * np.sqrt((1 - kept) * (1 + kept))
    targets["sigma"] = targets["sigma"] * kept
    integrator = Integrator(
        name, {key: np.append(levels[key][:rows], targets[key]) for key in targets}, predict
    )  # fmt: skip

    def step(i: int, X: Coefficients, D: Coefficients, z: Coefficients) -> list[Coefficients]:
        # The registers are x, the x at the start of the step, and (predict eps) earlier y of the step.
        k = step_of[i]
        start, current = starts[k], integrator.prediction(i, X[0], D[0])
        last = i + 1 == starts[k + 1]
        goal = rows + k if last else i + 1
        origin = X[0] if i == start else X[1]
        earlier = X[2:] if eps else D[1:]
        values = [current, *earlier][: i - start + 1][::-1]
        nodes = list(range(start, i + 1))
        third = len(nodes) == 3
        if third and solver_type == "midpoint":
            nodes, values = nodes[::2], values[::2]
        new = D[0]
        if not integrator.is_clean(goal):
            exact = third or (middle == "exact" and len(nodes) == 2 and lengths[k] == 3)
            kind = "exact" if exact else solver_type
            new = integrator.first_order(start, goal, origin, values[0], s_noise * z, tau)
            new = new + integrator.higher_order(start, goal, nodes, values, values[0], tau, kind)
        if last:
            new = new + fresh[k] * z
        return [new, origin, *([current, *earlier[:-1]] if eps and order > 1 else [])]

    noisy = s_noise != 1 and bool(np.any(kept < 1))
    return SamplerPlan(
        name=solver_name(name, order, predict, tau > 0, rows),
        **levels,
        **recurrence(rows, 2 + (order - 1 if eps else 0), 1 if eps else order, step),
        clip=clip,
        preserves="mean" if noisy else integrator.preserves(tau, s_noise),
    )


def _steps(
    schedule: AnySchedule, steps: Steps, spacing: Spacing, order: int, spaced: str, lower: bool, fast: bool = False
) -> tuple[Grid, list[int]]:
    """Return the t of every row, and the number of rows of each step."""
    if spaced == "rows":
        grid = make_grid(schedule, steps, spacing)
        return grid, _lengths(len(grid.t), order, grid.end is None, lower)
    named = spacing is None or isinstance(spacing, str)
    if isinstance(spacing, Mapping):
        named = not {"sigmas", "timesteps"} & spacing.keys()
    if not named:
        raise DuetError(
            f"sampler.spacing: {spacing!r} was given; the orders of the steps follow from the number of evaluations, "
            "so use sampler.steps with a spacing or a grid by name, or dpm_solver_singlestep with spaced=rows"
        )
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or not 1 <= steps <= MAX_LEVELS:
        why = "" if fast else " with spaced=steps"
        raise DuetError(
            f"sampler.steps: {steps!r} was given{why}; it must be a number of network evaluations, at most {MAX_LEVELS}"
        )
    clean = not (isinstance(spacing, Mapping) and spacing.get("end"))
    lengths = _lengths(int(steps), order, clean, lower, fast)
    outer = make_grid(schedule, len(lengths), spacing)
    return Grid(np.repeat(outer.t.astype(np.float64), lengths), outer.end), lengths


def _lengths(rows: int, order: int, clean: bool, lower: bool, fast: bool = False) -> list[int]:
    """Return the number of rows of each step; the one to clean data is a step by itself."""
    full, rest = divmod(rows - clean, order)
    lengths = [order] * full
    if not lower:
        if rest:
            some = [n * order + clean for n in (full, full + 1) if n]
            raise DuetError(
                f"sampler.steps: {rows} was given with lower_order_final false; steps of order {order} alone"
                f"{' and the one to clean data' if clean else ''} take {' or '.join(map(str, some))}"
            )
    elif rest:
        if clean and not fast and order == 3 and rest == 1 and lengths:
            # Two steps of second order cost as much as one of third and one of first order, which would reduce the
            # order of the whole run to two.
            lengths[-1:], rest = [2], 2
        lengths.append(rest)
    elif (fast or not clean) and order > 1 and lengths:
        lengths[-1:] = [order - 1, 1]
    return [*lengths, 1] if clean else lengths


def _space_evenly(schedule: AnySchedule, grid: Grid, starts: NDArray, kept: NDArray) -> NDArray[np.float64]:
    """Return the t of the rows, with those within a step at equal distances of log-SNR up to where it leads."""
    spaced = grid.t.astype(np.float64)
    rows = np.append(log_ratio(schedule, grid.t[starts[:-1]]), np.nan)
    if grid.end is not None:
        rows[-1] = log_ratio(schedule, np.array(grid.end))
    for k, (first, last) in enumerate(pairwise(starts)):
        if last - first > 1:
            goal = rows[k + 1] + np.log(kept[k])
            even = np.interp(np.arange(first + 1, last), [first, last], [rows[k], goal])
            spaced[first + 1 : last] = schedule.t_at_log_ratio(even)
    return spaced
