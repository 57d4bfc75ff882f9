r"""DPM-Solver++ of second order within a step, with fresh noise: two samplers of k-diffusion.

In y = x/alpha and r = sigma/alpha, a step of first order with an estimate D leads from any ratio to any other,

    y_b = r_b/r_a y_a + (1 - r_b/r_a) D

and ancestral sampling from r_a to r_b stops at r_down and adds r_up of noise, with r_down^2 + r_up^2 = r_b^2 and
r_up = eta r_b sqrt(1 - r_b^2/r_a^2). A step from t to s evaluates at a level m between them, reached by one such step,
and then goes from t to s with the estimate D_m:

    dpmpp_2s_ancestral    without noise to r_m = sqrt(r_t r_down), then with D_m to r_down, and r_up of noise
    dpmpp_sde             with noise to r_m = r_t (r_s/r_t)^r, then with (1 - 1/(2r)) D_t + D_m/(2r) and noise to r_s

with the part r = 1/2 by default, where D_m alone remains. All noise is multiplied by `s_noise`. In the second, the
noise of the step belongs to one Brownian path: the noise at m is a part of it, sqrt((r_t - r_m)/(r_t - r_s)) z as in
k-diffusion's Brownian tree over sigma/alpha, and is kept in a register. The step to clean data is D. t = 0 is one noise
step.

References:
    DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models (Lu et al., 2022), algorithm 1,
    https://arxiv.org/abs/2211.01095
    k-diffusion (crowsonkb/k-diffusion, k_diffusion/sampling.py, sample_dpmpp_2s_ancestral and sample_dpmpp_sde)
"""

from __future__ import annotations

import numpy as np

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process
from diffusion_core.sampling.declaration import Method, sampler
from diffusion_core.sampling.families import RATIO
from diffusion_core.sampling.grid import make_grid
from diffusion_core.sampling.plan import SamplerPlan, plan_levels
from diffusion_core.sampling.recurrence import Coefficients, recurrence
from diffusion_core.sampling.spacing import Spacing, Steps
from diffusion_core.sampling.steps import ancestral_fractions, log_ratio, needs_signal

__all__ = ["dpmpp_2s_ancestral", "dpmpp_sde"]


@sampler(
    Method("DPM-Solver++ 2S ancestral", order=2, stochastic=True, evaluations=2, needs_signal=True),
    family=RATIO,
    paper="Lu et al. 2022b",
    url="https://arxiv.org/abs/2211.01095",
    equation="algorithm 1; k-diffusion, sample_dpmpp_2s_ancestral",
    notes="Deterministic with `eta: 0`. Evaluates between timesteps.",
)
def dpmpp_2s_ancestral(
    process: Process,
    steps: Steps = 25,
    eta: float = 1.0,
    spacing: Spacing = RATIO.spacing,
    clip: float | None = RATIO.clip,
    s_noise: float = 1.0,
) -> SamplerPlan:
    """Make a plan of DPM-Solver++(2S) with ancestral noise; two rows per step, one for the last.

    Args:
        process: the process that the network was trained for; the first level must contain signal (alpha > 0).
        steps: number of steps, or another form of `spacing`.
        eta: fresh noise relative to that of ancestral sampling, 0 to 1.
        spacing: where the timesteps lie, see `grid` and `spacing`.
        clip: bound of the estimates, see `SamplerPlan`.
        s_noise: factor of the fresh noise.

    Raises:
        DuetError: for an eta outside 0..1, a negative s_noise, or a first level without signal.

    Example:
        >>> from diffusion_core.diffusion.schedule import linear
        >>> dpmpp_2s_ancestral(Process(linear(), "v"), steps=10)
        SamplerPlan('dpmpp_2s_ancestral-10', rows=19, registers=2, stochastic=True)
    """
    return _make("dpmpp_2s_ancestral", process, steps, eta, False, spacing, clip, s_noise)


@sampler(
    Method("DPM-Solver++ SDE", order=2, stochastic=True, evaluations=2, needs_signal=True),
    family=RATIO,
    paper="Lu et al. 2022b",
    url="https://arxiv.org/abs/2211.01095",
    equation="algorithm 1; k-diffusion, sample_dpmpp_sde",
    notes="Deterministic with `eta: 0`. Evaluates between timesteps.",
)
def dpmpp_sde(
    process: Process,
    steps: Steps = 25,
    eta: float = 1.0,
    spacing: Spacing = RATIO.spacing,
    clip: float | None = RATIO.clip,
    s_noise: float = 1.0,
    r: float = 0.5,
) -> SamplerPlan:
    """Make a plan of DPM-Solver++ (SDE); two rows per step, one for the last.

    Args:
        process: the process that the network was trained for; the first level must contain signal (alpha > 0).
        steps: number of steps, or another form of `spacing`.
        eta: fresh noise relative to that of ancestral sampling, 0 to 1.
        spacing: where the timesteps lie, see `grid` and `spacing`.
        clip: bound of the estimates, see `SamplerPlan`.
        s_noise: factor of the fresh noise.
        r: where the level within a step lies, as a part of its log-SNR, above 0 and at most 1.

    Raises:
        DuetError: for an eta outside 0..1, a negative s_noise, an r out of range, or a first level without signal.

    Example:
        >>> from diffusion_core.diffusion.schedule import linear
        >>> dpmpp_sde(Process(linear(), "v"), steps=10)
        SamplerPlan('dpmpp_sde-10', rows=19, registers=3, stochastic=True)
    """
    if not 0 < r <= 1:
        raise DuetError(f"sampler.r: {r} was given; it must be a part of the step, above 0 and at most 1")
    return _make("dpmpp_sde", process, steps, eta, True, spacing, clip, s_noise, r)


def _make(
    name: str,
    process: Process,
    steps: Steps,
    eta: float,
    sde: bool,
    spacing: Spacing,
    clip: float | None,
    s_noise: float,
    r: float = 0.5,
) -> SamplerPlan:
    """Make either plan; `sde` adds noise at the level within the step too, which lies at the part r of it."""
    if not 0 <= eta <= 1:
        raise DuetError(f"sampler.eta: {eta} was given; it must be between 0 (deterministic) and 1 (ancestral)")
    if not 0 <= s_noise < np.inf:
        raise DuetError(f"sampler.s_noise: {s_noise} was given; it must be a number, at least 0")
    grid = make_grid(process.schedule, steps, spacing)
    needs_signal(name, process.schedule(grid.t)[0])
    outer = log_ratio(process.schedule, grid.points)
    # The fraction of each level's sigma/alpha before its fresh noise, and the levels within the steps.
    kept = ancestral_fractions(process.schedule, grid.points, eta)[1:]
    middle = outer[:-1] + (np.diff(outer) + (0.0 if sde else np.log(kept))) * r
    t = np.empty(len(grid.t) + len(middle))
    # With r = 1 the level within a step is exactly its end, so that no noise is left for the second draw.
    t[::2], t[1::2] = grid.t, grid.points[1:] if r == 1 else process.schedule.t_at_log_ratio(middle)
    levels = plan_levels(process, t, grid.end)
    alpha, sigma = levels["alpha"], levels["sigma"]
    kept_middle = ancestral_fractions(process.schedule, t, eta)[1::2] if sde else np.ones(len(kept))
    ratio = sigma / alpha
    rows = len(t)

    def ancestral(
        i: int, j: int, fraction: float, x: Coefficients, D: Coefficients, z: Coefficients
    ) -> Coefficients:  # fmt: skip
        """Lead from level i to this fraction of the sigma of level j, and add noise up to level j."""
        decay = fraction * sigma[j] / sigma[i]
        up = s_noise * sigma[j] * np.sqrt((1 - fraction) * (1 + fraction))
        return decay * x + (alpha[j] - decay * alpha[i]) * D + up * z

    def step(i: int, X: Coefficients, D: Coefficients, z: Coefficients) -> list[Coefficients]:
        # The registers are x, the x at the start of the step, and (sde) the noise drawn within the step.
        empty = np.zeros_like(z)
        if sigma[i + 1] == 0:
            return [D[0], empty, empty][: 2 + sde]
        if i % 2 == 0:
            return [ancestral(i, i + 1, kept_middle[i // 2], X[0], D[0], z), X[0], z][: 2 + sde]
        if sde:
            known = (ratio[i - 1] - ratio[i]) / (ratio[i - 1] - ratio[i + 1])
            z = np.sqrt(known) * X[2] + np.sqrt(1 - known) * z
        # Halfway the weight of the first estimate of the step is 0, and no history is needed.
        estimate = D[0] if r == 0.5 else (1 - 0.5 / r) * D[1] + 0.5 / r * D[0]
        return [ancestral(i - 1, i + 1, kept[i // 2], X[1], estimate, z), empty, empty][: 2 + sde]

    return SamplerPlan(
        name=f"{name}-{len(grid.t)}",
        **levels,
        **recurrence(rows, 2 + sde, 1 if r == 0.5 else 2, step),
        clip=clip,
        preserves="mean" if eta and s_noise != 1 else "marginals",
    )
