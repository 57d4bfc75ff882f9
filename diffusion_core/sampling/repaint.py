r"""RePaint: ancestral sampling that goes back up to noise and comes down again, for inpainting.

Where a part of a picture is known, it is laid over the sampled one after each row (`edit.inpaint`), and what is sampled
around it has not seen it yet. Going back up j levels by fresh noise,

    x_u = (alpha_u/alpha_s) x_s + sqrt(sigma_u^2 - (alpha_u/alpha_s)^2 sigma_s^2) z

and down again lets the two parts agree; this is done r - 1 times from every j-th level. Going up is linear, as a row
is, so that both together are one row, whose z has the summed variance. With ratio = alpha_u/alpha_s,

    X <- ratio (state X + denoised D) + sqrt((ratio noise)^2 + sigma_u^2 - (ratio sigma_s)^2) z

The known part is then laid over x_u, not over x_s; noise is independent from pixel to pixel, so both are one law.

Going up and down at one level is a walk, which forgets all but its own steps: an error of their variance stays, however
short they are. Of two jointly normal pixels with exact estimates, one of them known, the other's mean and variance
approach those of the condition with the large variance of `ddpm`, as r grows and j is 1; with the small one the
variance ends little above half. So the large one is the default here.

References:
    RePaint: Inpainting using Denoising Diffusion Probabilistic Models (Lugmayr et al., 2022), algorithm 1 and the
    appendix on the schedule of jumps, https://arxiv.org/abs/2201.09865
"""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process
from diffusion_core.sampling.ddpm import ddpm
from diffusion_core.sampling.plan import SamplerPlan
from diffusion_core.sampling.spacing import Spacing, Steps

__all__ = ["repaint", "resampled"]

Array = NDArray[np.float64]


def repaint(
    process: Process,
    steps: Steps = None,
    jump: int = 10,
    resamples: int = 10,
    variance: str = "fixed_large",
    spacing: Spacing = None,
    clip: float | None = 1.0,
) -> SamplerPlan:
    """DDPM with resampling; see `resampled` for jump and resamples, and `ddpm` for the rest.

    Raises:
        DuetError: for numbers that do not fit, or a learned variance.
    """
    return resampled(ddpm(process, steps, variance, spacing, clip), jump, resamples)


def resampled(plan: SamplerPlan, jump: int, resamples: int) -> SamplerPlan:
    """A plan that goes through each `jump` rows `resamples` times.

    The stretches are counted from the last noisy level up; nothing goes back from clean data. N rows become
    N + (resamples - 1) jump floor((N - 1)/jump).

    Args:
        plan: of rows that each stand by themselves, as those of ddpm and ddim do.
        jump: how many levels it goes back up, 1 to N - 1.
        resamples: how often each stretch is gone through; 1 leaves the plan as it is.

    Raises:
        DuetError: for numbers that do not fit, or a plan whose rows need what earlier ones have left.
    """
    if plan.registers > 1 or plan.history > 1 or plan.learned is not None:
        why = "its variance is learned" if plan.learned is not None else "its rows need what earlier ones have left"
        raise DuetError(f"resampling: {plan.name} was given, but {why}; use ddpm or ddim with a fixed variance")
    if not 1 <= jump < plan.rows:
        raise DuetError(f"sampler.jump: {jump} was given; {plan.rows} steps can go back by 1 to {plan.rows - 1}")
    if resamples < 1:
        raise DuetError(f"sampler.resamples: {resamples} was given; it must be at least 1")
    rows = _order(plan.rows, jump, resamples)
    tables = {f.name: getattr(plan, f.name) for f in fields(plan)}
    tables = {name: value[rows] for name, value in tables.items() if isinstance(value, np.ndarray)}
    # The level that each row leads to by itself, and the one from which the next row starts.
    down, up = rows + 1, np.append(rows[1:], plan.rows)
    ratio = plan.alpha[up] / plan.alpha[down]
    # Of a variance 0 rounding may have left a negative one.
    fresh = np.sqrt(np.maximum(plan.sigma[up] ** 2 - (ratio * plan.sigma[down]) ** 2, 0.0))
    tables |= {
        "alpha": np.append(plan.alpha[rows], plan.alpha[-1]),
        "sigma": np.append(plan.sigma[rows], plan.sigma[-1]),
        "state": ratio[:, None, None] * tables["state"],
        "denoised": ratio[:, None, None] * tables["denoised"],
        "noise": np.hypot(ratio[:, None] * tables["noise"], fresh[:, None]),
    }
    return replace(plan, name=f"{plan.name}, {resamples} times each {jump}", **tables)


def _order(rows: int, jump: int, resamples: int) -> NDArray[np.int64]:
    """The row of the plan at each row of the resampled one."""
    left = {level: resamples - 1 for level in range(rows - 1, jump - 1, -jump)}
    order, row = [], 0
    while row < rows:
        order.append(row)
        row += 1
        if left.get(row, 0):
            left[row] -= 1
            row -= jump
    return np.array(order)
