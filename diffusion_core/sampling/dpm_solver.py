r"""DPM-Solver++: multistep exponential integrators of the estimate D in the half log-SNR, as an ODE or an SDE.

With lambda = log(alpha/sigma), h = lambda_s - lambda_t from a level t to the next one s, and earlier estimates

    D_0 = D(x_t),   D_1 = (D_0 - D_{-1})/r_0,      r_0 = h_{-1}/h,   r_1 = h_{-2}/h     (h_{-1}: the step before)

the probability-flow ODE ``d(x/sigma)/d lambda = e^lambda D`` is integrated with a polynomial for D,

    order 1        x_s = sigma_s/sigma_t x_t + alpha_s (1 - e^-h) D_0
    order 2        ... + alpha_s (1 - e^-h)/2 D_1                           "midpoint"
                   ... + alpha_s ((e^-h - 1)/h + 1) D_1                     "heun" and "exact"
    order 3        ... + alpha_s ((e^-h - 1)/h + 1) D'_1 + w alpha_s (1/2 - (e^-h - 1 + h)/h^2) D_2

where D'_1 and D_2 are the divided differences over three estimates. The integral of the parabola has w = 2, which is
"exact"; the paper's code, and all that follow it, have w = 1. The SDE has the same form with 2h for h in the weights
of D, the factor e^-h on x_t, and fresh noise ``sigma_s sqrt(1 - e^-2h) z``.

The step to clean data has h = infinity and is of first order, x_s = D_0. With few rows the ones before it are of
lower order too: the high ones are unstable at the end of a short run. The first rows have as high an order as there
are estimates. t = 0 is one noise step.

References:
    DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models (Lu et al., 2022), algorithm 2 and
    section 5, https://arxiv.org/abs/2211.01095
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffusion_core.errors import DuetError, one_of
from diffusion_core.process import Process
from diffusion_core.sampling.grid import visited
from diffusion_core.sampling.plan import SamplerPlan, plan_levels
from diffusion_core.sampling.spacing import Spacing, Steps

__all__ = ["SOLVER_TYPES", "dpm_solver"]

SOLVER_TYPES = ("midpoint", "heun", "exact")


def dpm_solver(
    process: Process,
    steps: Steps = 20,
    order: int = 2,
    sde: bool = False,
    solver_type: str = "midpoint",
    lower_order_final: bool | None = None,
    spacing: Spacing = "linspace",
    clip: float | None = 1.0,
) -> SamplerPlan:
    """The multistep DPM-Solver++ sampler.

    Args:
        process: what the network was trained for; its last level must have some signal (alpha > 0).
        steps: rows, 1 to T, or another answer of `spacing`.
        order: 1, 2 or 3; the first rows have as many as there are estimates.
        sde: whether fresh noise is added, with the marginals of the SDE.
        solver_type: ``"midpoint"`` or ``"heun"`` as published, or ``"exact"``.
        lower_order_final: whether row N - k has order k at most; None is with fewer than 15 rows.
        spacing: see `grid` and `spacing`.
        clip: see `SamplerPlan`.

    Raises:
        DuetError: for an order or a solver type that does not exist, or a schedule that ends without signal.
    """
    if order not in (1, 2, 3):
        raise DuetError(f"sampler.order: {order} was given; it is 1, 2 or 3")
    if solver_type not in SOLVER_TYPES:
        raise one_of("sampler.solver_type", solver_type, SOLVER_TYPES)
    levels = plan_levels(process, visited(process.schedule, steps, spacing))
    alpha, sigma = levels["alpha"], levels["sigma"]
    if alpha[0] == 0:
        raise DuetError("sampler dpm_solver: its first level has no signal (alpha 0), so log-SNR is infinite; use ddim")
    rows = len(levels["t"])
    lower = rows < 15 if lower_order_final is None else lower_order_final
    # The half log-SNR of every level but the last, which is clean: its step is written out.
    half_log_snr = np.log(alpha[:-1] / sigma[:-1])
    h = np.append(np.diff(half_log_snr), np.inf)
    state, denoised, noise = np.empty(rows), np.zeros((rows, min(order, rows))), np.zeros(rows)
    for i in range(rows):
        last = i == rows - 1
        now = 1 if last else min(order, i + 1, rows - i if lower else order)
        weights = _weights(h, i, now, 2.0 if sde else 1.0, solver_type)
        denoised[i, :now] = alpha[i + 1] * weights
        # To clean data: x_s = D, whatever x_t is.
        decay = 0.0 if last else np.exp(-h[i] * sde)
        state[i] = sigma[i + 1] / sigma[i] * decay
        noise[i] = 0.0 if last or not sde else sigma[i + 1] * np.sqrt(-np.expm1(-2.0 * h[i]))
    return SamplerPlan(
        name=f"dpm_solver-{order}{'-sde' if sde else ''}-{rows}",
        **levels,
        state=state[:, None, None],
        denoised=denoised[:, None, :],
        noise=noise[:, None],
        clip=clip,
    )


def _weights(h: NDArray, i: int, order: int, scale: float, solver_type: str) -> NDArray[np.float64]:
    """What row i multiplies D_0, D_{-1}, ... with, over alpha_s; `scale` is 2 for the SDE."""
    k = scale * h[i]
    whole = -np.expm1(-k)  # 1 - e^-k
    if order == 1:
        return np.array([whole])
    slope = 1.0 - whole / k
    r0 = h[i - 1] / h[i]
    if order == 2:
        first = (whole / 2 if solver_type == "midpoint" else slope) / r0
        return np.array([whole + first, -first])
    r1 = h[i - 2] / h[i]
    # The divided differences as rows of weights on (D_0, D_{-1}, D_{-2}).
    near, far = np.array([1.0, -1.0, 0.0]) / r0, np.array([0.0, 1.0, -1.0]) / r1
    second = (near - far) / (r0 + r1)
    first = near + r0 * second
    curve = (2 if solver_type == "exact" else 1) * (0.5 - (k - whole) / k**2)
    return whole * np.array([1.0, 0.0, 0.0]) + slope * first + curve * second
