r"""DPM-Solver++ of second order within a step, with fresh noise: two samplers of k-diffusion.

In y = x/alpha and r = sigma/alpha, a step of first order with an estimate D leads from any ratio to any other,

    y_b = r_b/r_a y_a + (1 - r_b/r_a) D

and ancestral sampling from r_a to r_b stops at r_down and adds r_up of noise, with r_down^2 + r_up^2 = r_b^2 and
r_up = eta r_b sqrt(1 - r_b^2/r_a^2). A step from t to s looks at a level m between them by one such step, and then
makes its own with the estimate seen there:

    dpmpp_2s_ancestral    without noise to r_m = sqrt(r_t r_down), then with D_m to r_down, and r_up of noise
    dpmpp_sde             with noise to r_m = sqrt(r_t r_s), then with D_m and noise to r_s

In the second the noise of the step is that of one path: the noise at m is a part of it, sqrt((r_t - r_m)/(r_t - r_s)) z
as in k-diffusion's Brownian tree over r, and is kept in a register. The step to clean data is D. t = 0 is one noise
step.

References:
    DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models (Lu et al., 2022), algorithm 1,
    https://arxiv.org/abs/2211.01095
    k-diffusion (crowsonkb/k-diffusion, k_diffusion/sampling.py, sample_dpmpp_2s_ancestral and sample_dpmpp_sde)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process
from diffusion_core.sampling.exponential import Coefficients, recurrence
from diffusion_core.sampling.grid import make_timesteps
from diffusion_core.sampling.plan import SamplerPlan, plan_levels
from diffusion_core.sampling.spacing import Spacing, Steps
from diffusion_core.sampling.steps import ancestral_fractions, log_ratio, needs_signal

__all__ = ["dpmpp_2s_ancestral", "dpmpp_sde"]


def dpmpp_2s_ancestral(
    process: Process,
    steps: Steps = 25,
    eta: float = 1.0,
    spacing: Spacing = "karras",
    clip: float | None = None,
) -> SamplerPlan:
    """DPM-Solver++(2S) with ancestral noise, two rows a step and one for the last.

    Args:
        process: what the network was trained for; the first level must have some signal (alpha > 0).
        steps: how many, or another answer of `spacing`.
        eta: share of the ancestral noise, 0 to 1.
        spacing: see `grid` and `spacing`.
        clip: see `SamplerPlan`.

    Raises:
        DuetError: for an eta that does not fit, or a first level without signal.
    """
    return _halfway("dpmpp_2s_ancestral", process, steps, eta, False, spacing, clip)


def dpmpp_sde(
    process: Process,
    steps: Steps = 25,
    eta: float = 1.0,
    spacing: Spacing = "karras",
    clip: float | None = None,
) -> SamplerPlan:
    """DPM-Solver++ (SDE), two rows a step and one for the last.

    Args:
        process: what the network was trained for; the first level must have some signal (alpha > 0).
        steps: how many, or another answer of `spacing`.
        eta: share of the ancestral noise, 0 to 1.
        spacing: see `grid` and `spacing`.
        clip: see `SamplerPlan`.

    Raises:
        DuetError: for an eta that does not fit, or a first level without signal.
    """
    return _halfway("dpmpp_sde", process, steps, eta, True, spacing, clip)


def _halfway(
    name: str, process: Process, steps: Steps, eta: float, noisy: bool, spacing: Spacing, clip: float | None
) -> SamplerPlan:
    if not 0 <= eta <= 1:
        raise DuetError(f"sampler.eta: {eta} was given; it must be between 0 (deterministic) and 1 (ancestral)")
    starts = make_timesteps(process.schedule, steps, spacing)
    needs_signal(name, process.schedule(starts)[0])
    outer = log_ratio(process.schedule, starts)
    # What of each level is there before its fresh noise, and the levels between.
    left = ancestral_fractions(process.schedule, starts, eta)[1:]
    middle = outer[:-1] + (np.diff(outer) + (0.0 if noisy else np.log(left))) / 2
    t = np.empty(2 * len(starts) - 1)
    t[::2], t[1::2] = starts, process.schedule.t_at_log_ratio(middle)
    levels = plan_levels(process, t)
    alpha, sigma = levels["alpha"], levels["sigma"]
    halfway = ancestral_fractions(process.schedule, t, eta)[1::2] if noisy else np.ones(len(left))
    ratio = sigma / alpha
    rows = len(t)

    def moved(i: int, j: int, share: float, x: Coefficients, D: Coefficients, z: Coefficients) -> Coefficients:
        """From level i to level j, of whose sigma this share is there before the noise."""
        decay = share * sigma[j] / sigma[i]
        up = sigma[j] * np.sqrt((1 - share) * (1 + share))
        return decay * x + (alpha[j] - decay * alpha[i]) * D + up * z

    def step(i: int, X: NDArray, D: NDArray, z: Coefficients) -> list[Coefficients]:
        # The registers are x, the x that the step started from, and the noise that it has drawn.
        empty = np.zeros_like(z)
        if i == rows - 1:
            return [D[0], empty, empty][: 2 + noisy]
        if i % 2 == 0:
            return [moved(i, i + 1, halfway[i // 2], X[0], D[0], z), X[0], z][: 2 + noisy]
        if noisy:
            known = (ratio[i - 1] - ratio[i]) / (ratio[i - 1] - ratio[i + 1])
            z = np.sqrt(known) * X[2] + np.sqrt(1 - known) * z
        return [moved(i - 1, i + 1, left[i // 2], X[1], D[0], z), empty, empty][: 2 + noisy]

    return SamplerPlan(name=f"{name}-{len(starts)}", **levels, **recurrence(rows, 2 + noisy, 1, step), clip=clip)
