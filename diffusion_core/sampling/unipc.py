r"""UniPC: a multistep predictor and a corrector that reuses the next row's evaluation.

Row i receives the predicted x_i. With the estimate there, the step from level i-1 to level i is repeated, by the
polynomial that goes through level i too (UniC), and from the corrected x_i the next one is predicted (UniP):

    x_i+1 = decay + integral of the polynomial through y_i, .., y_{i-p+1}                       p values
    x_i   = decay + integral of the polynomial through y_{i-1}, y_i, y_{i-2}, .., y_{i-p}       p + 1 values

with y = D or eps, and the decay of x as in `exponential`. So order p costs one evaluation per row, and converges with
order p + 1 if the first steps, of lower order, are small; otherwise with order 3 at most.
The function B(h) of the paper appears where two values leave a choice: B = K, "bh1", or B = e^K - 1, "bh2", in the
predictor of order 2 and the corrector of order 1; in all others it cancels, and the weights are those of the exact
integral.

The last row leads to clean data and is of first order, D. t = 0 is one noise step.

References:
    UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models (Zhao et al., 2023),
    algorithms 1 and 2, https://arxiv.org/abs/2302.04867
"""

from __future__ import annotations

import numpy as np

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.diffusion.process import Process
from diffusion_core.sampling.declaration import Method, sampler
from diffusion_core.sampling.exponential import Integrator, effective_orders, multistep
from diffusion_core.sampling.families import SCHEDULERS
from diffusion_core.sampling.grid import make_grid
from diffusion_core.sampling.plan import SamplerPlan, plan_levels
from diffusion_core.sampling.spacing import Spacing, Steps

__all__ = ["SOLVER_TYPES", "unipc"]

SOLVER_TYPES = ("bh1", "bh2")


@sampler(
    Method("UniPC-1", order=2, options={"order": 1}, needs_signal=True),
    Method("UniPC-2", order=3, options={"order": 2}, needs_signal=True),
    # Its first rows, of lower order, limit it to third order; with values from before the start it would have fourth.
    Method("UniPC-3", order=3, options={"order": 3}, needs_signal=True),
    Method("UniPC-2, eps", order=3, options={"order": 2, "predict": "eps"}, needs_signal=True),
    family=SCHEDULERS,
    paper="Zhao et al. 2023",
    url="https://arxiv.org/abs/2302.04867",
    equation="algorithms 1 and 2",
    notes="`order` p, 1 to 4, has order min(p + 1, 3); order p + 1 if the first steps are small.",
)
def unipc(
    process: Process,
    steps: Steps = 10,
    order: int = 2,
    solver_type: str = "bh2",
    predict: str = "x0",
    correct_from: int | None = 1,
    lower_order_final: bool = True,
    spacing: Spacing = SCHEDULERS.spacing,
    clip: float | None = SCHEDULERS.clip,
) -> SamplerPlan:
    """Make a UniPC plan.

    Args:
        process: the process that the network was trained for; the first level must contain signal (alpha > 0).
        steps: number of steps, or another form of `spacing`.
        order: p of the predictor, 1 to 4, whose corrector has order p + 1; the first rows use as many estimates as
            exist.
        solver_type: ``"bh1"`` or ``"bh2"``.
        predict: ``"x0"`` or ``"eps"``.
        correct_from: the first row with a corrector, at least 1; None for no corrector, which is UniP. Under strong
            guidance a later row is more stable.
        lower_order_final: whether row N - k has at most order k.
        spacing: where the timesteps lie, see `grid` and `spacing`.
        clip: bound of the estimates, see `SamplerPlan`.

    Raises:
        DuetError: for an unknown order, solver type or `predict`, a correct_from below 1, or a first level without
            signal.

    Example:
        >>> from diffusion_core.diffusion.schedule import linear
        >>> unipc(Process(linear(), "v"), steps=10)
        SamplerPlan('unipc-2-10', rows=10, registers=2, stochastic=False)
    """
    if order not in (1, 2, 3, 4):
        raise DuetError(f"sampler.order: {order} was given; it must be 1 to 4")
    check_choice("sampler.solver_type", solver_type, SOLVER_TYPES)
    if correct_from is not None and correct_from < 1:
        raise DuetError(f"sampler.correct_from: {correct_from} was given; it must be a row from 1 on, or null for none")
    integrator = Integrator("unipc", plan_levels(process, *make_grid(process.schedule, steps, spacing)), predict)
    rows = integrator.rows
    orders = effective_orders(rows, order, lower_order_final, integrator.ends_clean)
    corrected = np.zeros(rows, np.int64)
    if correct_from is not None:
        corrected[correct_from:] = orders[correct_from - 1 : -1] + 1
    return SamplerPlan(
        name=f"unipc-{order}{'' if predict == 'x0' else f'-{predict}'}-{rows}",
        **integrator.levels,
        **multistep(integrator, orders, corrected, kind=solver_type, kind_corrected=solver_type),
        clip=clip,
    )
