r"""SA-Solver: Adams multistep methods for the SDE whose noise is scaled by tau, with predictor and corrector.

tau(t) = 0 is the probability-flow ODE and 1 the SDE of ancestral sampling; every tau has the same marginals. In the
x0 form, with h = lambda_s - lambda_t and y = D,

    x_s = sigma_s/sigma_t e^(-tau^2 h) x_t + alpha_s I(1 + tau^2) + sigma_s sqrt(1 - e^(-2 tau^2 h)) z

and I is the integral of a polynomial, see `exponential`: in the predictor through values at t and earlier levels
(Adams-Bashforth), in the corrector through that at s as well (Adams-Moulton). The corrector repeats the step with the
noise of the predictor, so a row takes one evaluation and one noise. With two values the x0 form uses K/2 as the weight
of the slope, as the authors' code does, which does not change the order.

tau is constant in rows whose sigma/alpha lies within an interval, and 0 in the others: noise helps at middle levels and
harms at the ends. The last row leads to clean data and is of first order, D. t = 0 is one noise step.

References:
    SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models (Xue et al., 2023), propositions 4.1 and
    4.2 and algorithm 1, https://arxiv.org/abs/2309.05019
"""

from __future__ import annotations

import numpy as np

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process
from diffusion_core.sampling.declaration import Method, sampler
from diffusion_core.sampling.exponential import Integrator, effective_orders, multistep
from diffusion_core.sampling.families import SCHEDULERS
from diffusion_core.sampling.grid import make_grid
from diffusion_core.sampling.plan import SamplerPlan, plan_levels
from diffusion_core.sampling.spacing import Spacing, Steps

__all__ = ["sa_solver"]


@sampler(
    Method("SA-Solver, tau 0", order=2, options={"tau": 0.0}, needs_signal=True),
    Method("SA-Solver", order=2, stochastic=True, needs_signal=True),
    family=SCHEDULERS,
    paper="Xue et al. 2023",
    url="https://arxiv.org/abs/2309.05019",
    equation="propositions 4.1 and 4.2",
    notes="Without noise, order min(`predictor` + 1, `corrector`), or `predictor` if `corrector` is 0.",
)
def sa_solver(
    process: Process,
    steps: Steps = 20,
    predictor: int = 2,
    corrector: int = 2,
    tau: float = 1.0,
    noisy: list[float] | None = None,
    predict: str = "x0",
    lower_order_final: bool = True,
    spacing: Spacing = SCHEDULERS.spacing,
    clip: float | None = SCHEDULERS.clip,
) -> SamplerPlan:
    """Make an SA-Solver plan.

    Args:
        process: the process that the network was trained for; the first level must contain signal (alpha > 0).
        steps: number of steps, or another form of `spacing`.
        predictor: the number of values in the predictor's polynomial, 1 to 4.
        corrector: the number of values in the corrector's polynomial, the new one among them, 1 to 4; 0 for no
            corrector.
        tau: scale of the noise; 0 for none.
        noisy: smallest and largest sigma/alpha of the rows that add noise; None for all rows.
        predict: ``"x0"``, which preserves the marginals, or ``"eps"``, which does so only for small steps.
        lower_order_final: whether row N - k uses at most k values.
        spacing: where the timesteps lie, see `grid` and `spacing`.
        clip: bound of the estimates, see `SamplerPlan`.

    Raises:
        DuetError: for an invalid order, tau, interval or `predict`, or a first level without signal.

    Example:
        >>> from diffusion_core.diffusion.schedule import linear
        >>> sa_solver(Process(linear(), "v"), steps=10)
        SamplerPlan('sa_solver-2-2-10', rows=10, registers=2, stochastic=True)
    """
    if predictor not in (1, 2, 3, 4):
        raise DuetError(f"sampler.predictor: {predictor} was given; it must be 1 to 4")
    if corrector not in (0, 1, 2, 3, 4):
        raise DuetError(f"sampler.corrector: {corrector} was given; it must be 1 to 4, or 0 for none")
    if not 0 <= tau < np.inf:
        raise DuetError(f"sampler.tau: {tau} was given; it must be at least 0 (no noise), and 1 is ancestral sampling")
    integrator = Integrator(
        "sa_solver", plan_levels(process, *make_grid(process.schedule, steps, spacing)), predict
    )  # fmt: skip
    rows = integrator.rows
    taus = np.full(rows, float(tau))
    if noisy is not None:
        low, high = _interval(noisy)
        ratio = integrator.sigma[:-1] / integrator.alpha[:-1]
        taus[(ratio < low) | (ratio > high)] = 0.0
    corrected = np.zeros(rows, np.int64)
    if corrector:
        # As many values as exist: one more than in a predictor from the level before.
        done = np.arange(rows)
        corrected = np.minimum(corrector, done + 1)
        if lower_order_final:
            corrected = np.minimum(corrected, rows - done + 2)
        corrected[0] = 0
    kind = "bh1" if predict == "x0" else "exact"
    return SamplerPlan(
        name=f"sa_solver-{predictor}-{corrector}{'' if predict == 'x0' else f'-{predict}'}-{rows}",
        **integrator.levels,
        **multistep(
            integrator,
            effective_orders(rows, predictor, lower_order_final, integrator.ends_clean),
            corrected,
            taus,
            kind,
            kind,
        ),
        clip=clip,
        preserves=integrator.preserves(taus),
    )


def _interval(noisy: list[float]) -> tuple[float, float]:
    """Return the ends of an interval of sigma/alpha."""
    try:
        low, high = map(float, noisy)
    except (TypeError, ValueError):
        low, high = 1.0, 0.0
    if not 0 <= low < high:
        raise DuetError(f"sampler.noisy: {noisy!r} was given; it must be two rising sigma/alpha, as [0.05, 1]")
    return low, high
