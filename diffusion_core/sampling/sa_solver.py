r"""SA-Solver: Adams' multistep methods for the SDE whose noise is scaled by tau, with predictor and corrector.

tau(t) = 0 is the probability-flow ODE and 1 the SDE of ancestral sampling; every tau has the same marginals. In the
x0 form, with h = lambda_s - lambda_t and y = D,

    x_s = sigma_s/sigma_t e^(-tau^2 h) x_t + alpha_s I(1 + tau^2) + sigma_s sqrt(1 - e^(-2 tau^2 h)) z

and I is the integral of a polynomial, see `exponential`: in the predictor through values at t and earlier levels
(Adams-Bashforth), in the corrector through that at s as well (Adams-Moulton). The corrector repeats the step with the
noise of the predictor, so that a row costs one evaluation and draws one noise. Of two values the x0 form takes half of
K for the slope's weight, as the authors' code does, which changes nothing in the order.

tau is a number, in rows whose sigma/alpha lies within an interval, and 0 in the others: noise helps in the middle and
harms at the ends. The last row leads to clean data and is of first order, D. t = 0 is one noise step.

References:
    SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models (Xue et al., 2023), propositions 4.1 and
    4.2 and algorithm 1, https://arxiv.org/abs/2309.05019
"""

from __future__ import annotations

import numpy as np

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process
from diffusion_core.sampling.exponential import Integrator, effective_orders, multistep
from diffusion_core.sampling.grid import make_timesteps
from diffusion_core.sampling.plan import SamplerPlan, plan_levels
from diffusion_core.sampling.spacing import Spacing, Steps

__all__ = ["sa_solver"]


def sa_solver(
    process: Process,
    steps: Steps = 20,
    predictor: int = 2,
    corrector: int = 2,
    tau: float = 1.0,
    noisy: list[float] | None = None,
    predict: str = "x0",
    lower_order_final: bool = True,
    spacing: Spacing = "linspace",
    clip: float | None = 1.0,
) -> SamplerPlan:
    """The SA-Solver.

    Args:
        process: what the network was trained for; the first level must have some signal (alpha > 0).
        steps: rows, 1 to T, or another answer of `spacing`.
        predictor: values in the predictor's polynomial, 1 to 4.
        corrector: values in that of the corrector, the new one among them, 1 to 4; 0 for no corrector.
        tau: scale of the noise, 0 for none.
        noisy: least and largest sigma/alpha of the rows that draw it; None is all of them.
        predict: ``"x0"``, which keeps the marginals, or ``"eps"``, which does so only as steps become small.
        lower_order_final: whether row N - k has k values at most.
        spacing: see `grid` and `spacing`.
        clip: see `SamplerPlan`.

    Raises:
        DuetError: for an order, a tau, an interval or a form that does not fit, or a schedule that starts without
            signal.
    """
    if predictor not in (1, 2, 3, 4):
        raise DuetError(f"sampler.predictor: {predictor} was given; it is 1 to 4")
    if corrector not in (0, 1, 2, 3, 4):
        raise DuetError(f"sampler.corrector: {corrector} was given; it is 1 to 4, or 0 for none")
    if not 0 <= tau < np.inf:
        raise DuetError(f"sampler.tau: {tau} was given; it must be at least 0 (no noise), and 1 is ancestral sampling")
    integrator = Integrator(
        "sa_solver", plan_levels(process, make_timesteps(process.schedule, steps, spacing)), predict
    )
    rows = integrator.rows
    taus = np.full(rows, float(tau))
    if noisy is not None:
        low, high = _interval(noisy)
        ratio = integrator.sigma[:-1] / integrator.alpha[:-1]
        taus[(ratio < low) | (ratio > high)] = 0.0
    corrected = np.zeros(rows, np.int64)
    if corrector:
        # As many as there are: one more than in a predictor from the level before.
        done = np.arange(rows)
        corrected = np.minimum(corrector, done + 1)
        if lower_order_final:
            corrected = np.minimum(corrected, rows - done + 2)
        corrected[0] = 0
    return SamplerPlan(
        name=f"sa_solver-{predictor}-{corrector}{'' if predict == 'x0' else f'-{predict}'}-{rows}",
        **integrator.levels,
        **multistep(
            integrator,
            effective_orders(rows, predictor, lower_order_final),
            corrected,
            taus,
            *["bh1" if predict == "x0" else "exact"] * 2,
        ),
        clip=clip,
        preserves=integrator.preserves(taus),
    )


def _interval(noisy: list[float]) -> tuple[float, float]:
    try:
        low, high = map(float, noisy)
    except (TypeError, ValueError):
        low, high = 1.0, 0.0
    if not 0 <= low < high:
        raise DuetError(f"sampler.noisy: {noisy!r} was given; it must be two rising sigma/alpha, as [0.05, 1]")
    return low, high
