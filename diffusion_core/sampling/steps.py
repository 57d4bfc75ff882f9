r"""One-step methods: Euler's, and those with a second evaluation within the step, with or without fresh noise.

With n a norm of the noise level, u = x/n and tau = sigma/n, the probability-flow ODE is

    du/dtau = (x - n D)/sigma

    variable   n               tau                    du/dtau
    ratio      alpha           r = sigma/alpha        eps                  the sigma of EDM and k-diffusion
    flow       alpha + sigma   sigma/(alpha+sigma)    eps - D              the velocity of flow matching
               alpha + sigma/k on a schedule with noise_scale k

Both hold for any schedule; for steps in another time see `clock`. In both variables an x with a known x_0 moves on a
straight line, so an exact estimate leads from any level to any other. A step from level t to a level d is, with f the
slope at t and f_m that at a level m,

    one evaluation      u_d = u_t + (tau_d - tau_t) f                                 in x the same for every n:
                        x_d = sigma_d/sigma_t x_t + (alpha_d - alpha_t sigma_d/sigma_t) D
    two evaluations     u_m = u_t + (tau_m - tau_t) f
                        u_d = u_t + (tau_d - tau_t) ((1 - b) f + b f_m)

With two evaluations the first row leaves all but the last term of u_d in register 1, and the second row adds that term.
At the end of a step fresh noise raises the level d to the level at which the next step starts. Ancestral sampling thus
stays on its levels, churn raises them before the network sees them, and restarts go back up. For the first step the
starting noise itself is that of the raised level, as a sum of independent normal noise is normal noise.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), algorithms 1 and 2,
    https://arxiv.org/abs/2206.00364
    Flow Matching for Generative Modeling (Lipman et al., 2022), https://arxiv.org/abs/2210.02747
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.continuous_schedule import ScaledSum
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import AnySchedule
from diffusion_core.sampling.clock import Clock, ClockSteps
from diffusion_core.sampling.grid import Grid
from diffusion_core.sampling.plan import SamplerPlan, plan_levels
from diffusion_core.sampling.recurrence import Coefficients, recurrence

__all__ = [
    "VARIABLES",
    "add_churn",
    "ancestral_fractions",
    "log_ratio",
    "needs_signal",
    "one_step_plan",
    "shift_timesteps",
]

Array = NDArray[np.float64]

VARIABLES: Mapping[str, Callable[[Array, Array], Array]] = {
    "ratio": lambda alpha, sigma: alpha,
    "flow": lambda alpha, sigma: alpha + sigma,
}


def one_step_plan(
    process: Process,
    name: str,
    grid: Grid,
    kept: NDArray | None = None,
    second: NDArray | None = None,
    weight: float = 0.5,
    variable: str = "ratio",
    s_noise: float = 1.0,
    clip: float | None = None,
    clock: Clock | None = None,
) -> SamplerPlan:
    """Make the plan of K steps, each with one or two network evaluations.

    Args:
        process: the process that the network was trained for.
        name: of the method.
        grid: the t at which each of K steps starts, and at which the last one ends.
        kept: for each start, the fraction of its sigma/alpha that the step before leads to; fresh noise makes up the
            rest. With shape (K,), or (K+1,) for that of a noisy end too; None is 1, no fresh noise.
        second: the t of each step's second evaluation, NaN for a step that has none, with shape (K,); None for no
            second evaluations.
        weight: b, the weight of the slope at the second evaluation.
        variable: one of `VARIABLES`.
        s_noise: factor of the fresh noise.
        clip: bound of the estimates, see `SamplerPlan`.
        clock: the time in which steps are straight, in place of the variable.

    Raises:
        DuetError: for a negative or infinite s_noise, or if the first level has no signal and the method needs it.
    """
    if not 0 <= s_noise < math.inf:
        raise DuetError(f"sampler.s_noise: {s_noise} was given; it must be a number, at least 0")
    starts, K = grid.t, len(grid.t)
    second = np.full(K, np.nan) if second is None else second
    kept = np.ones(K) if kept is None else kept
    kept = np.append(kept, np.ones(K + 1 - len(kept)))
    two = np.isfinite(second)
    # The row of each step's first evaluation; the second evaluations are the rows between.
    first_row = np.arange(K) + np.append(0, np.cumsum(two[:-1]))
    step_of = np.repeat(np.arange(K), 1 + two)
    t = np.empty(K + two.sum())
    t[first_row], t[first_row[two] + 1] = starts, second[two]
    levels = plan_levels(process, t, grid.end)
    alpha, sigma = levels["alpha"], levels["sigma"]
    if (np.any(two) and variable == "ratio") or clock:
        needs_signal(name, alpha)
    norm = VARIABLES[variable]
    if variable == "flow" and isinstance(own := getattr(process.schedule, "norm", None), ScaledSum):
        norm = ScaledSum(own.scale * own.signal)  # in which the schedule's own path is straight
    path = ClockSteps(clock, alpha[:-1], sigma[:-1]) if clock else _Straight(norm, alpha, sigma)
    registers = 1 + bool(np.any(two))
    # Each step leads to the level at which the next one starts, before its fresh noise; the last to the end.
    ends = first_row + 1 + two
    down = sigma[ends] * kept[1:]

    def step(i: int, X: Coefficients, D: Coefficients, z: Coefficients) -> list[Coefficients]:
        k = step_of[i]
        start, end, sigma_d = first_row[k], ends[k], down[k]
        if i == start and two[k]:
            # u_t + (1 - b) (tau_d - tau_t) f, in units of x at level d.
            partial = path.move(i, alpha[end], sigma_d, X[0], D[0], 1 - weight)
            return [path.move(i, alpha[i + 1], sigma[i + 1], X[0], D[0]), partial]
        if two[k]:
            # The last term of u_d, b (tau_d - tau_t) f_m.
            x = X[1] + weight * path.add(i, start, alpha[end], sigma_d, X[0], D[0])
        else:
            x = path.move(i, alpha[end], sigma_d, X[0], D[0])
        fresh = s_noise * math.sqrt((sigma[end] - sigma_d) * (sigma[end] + sigma_d))
        return [x + fresh * z, np.zeros_like(z)][:registers]

    levels["start_scale"] *= math.hypot(kept[0], s_noise * math.sqrt(1 - kept[0] ** 2))
    return SamplerPlan(
        name=f"{name}-{K}",
        **levels,
        **recurrence(len(t), registers, 1, step),
        clip=clip,
        preserves="nothing" if clock else "marginals" if s_noise == 1 else "mean",
    )


class _Straight:
    """Steps from the levels of a plan, straight in a variable of `VARIABLES`."""

    def __init__(self, norm: Callable[[Array, Array], Array], alpha: Array, sigma: Array) -> None:
        self.norm, self.alpha, self.sigma, self.n = norm, alpha, sigma, norm(alpha, sigma)

    def move(
        self, i: int, alpha: float, sigma: float, x: Coefficients, D: Coefficients, part: float = 1.0
    ) -> Coefficients:
        """Return x at the level (alpha, sigma), after this part of the step from level i by the slope there."""
        decay = sigma / self.sigma[i]
        whole = decay * x + (alpha - decay * self.alpha[i]) * D
        # A whole step is the same in x for every n.
        return whole if part == 1 else (1 - part) * self.norm(alpha, sigma) / self.n[i] * x + part * whole

    def add(self, i: int, start: int, alpha: float, sigma: float, x: Coefficients, D: Coefficients) -> Coefficients:
        """Return what the slope at level i adds on the whole way from the level `start` to (alpha, sigma)."""
        n, slope = self.norm(alpha, sigma), (x - self.n[i] * D) / self.sigma[i]
        return n * (sigma / n - self.sigma[start] / self.n[start]) * slope


def log_ratio(schedule: AnySchedule, t: NDArray) -> Array:
    """Return log(sigma/alpha) at the timesteps t; inf where there is no signal."""
    alpha, sigma = schedule(t)
    with np.errstate(divide="ignore"):
        return np.log(sigma) - np.log(alpha)


def ancestral_fractions(schedule: AnySchedule, t: NDArray, eta: float) -> Array:
    """Return the fraction of each level's sigma/alpha that ancestral sampling leads to before it adds fresh noise.

    Args:
        schedule: of the process.
        t: of every noisy level, `Grid.points`.
        eta: fresh noise relative to that of ancestral sampling.

    Returns:
        `kept` of `one_step_plan`, with the shape of t.

    Raises:
        DuetError: for a negative eta.
    """
    if not 0 <= eta < math.inf:
        raise DuetError(f"sampler.eta: {eta} was given; it must be a number, at least 0 (deterministic)")
    shrink = np.exp(np.diff(log_ratio(schedule, t)))
    # 1 - eta^2 (1 - shrink^2), written so that nothing cancels at eta = 1.
    return np.append(1.0, np.sqrt(np.maximum((1 - eta) * (1 + eta) + (eta * shrink) ** 2, 0.0)))


def add_churn(
    schedule: AnySchedule, t: NDArray, s_churn: float, s_min: float, s_max: float | None
) -> tuple[NDArray, Array]:
    """Raise noise levels as in algorithm 2 of Karras et al.

    sigma/alpha grows by the factor 1 + min(s_churn/N, sqrt(2) - 1) where it lies in [s_min, s_max], but not beyond the
    largest one of the schedule.

    Returns:
        `starts` and `kept` of `one_step_plan`, both with shape (N,).

    Raises:
        DuetError: if a number is out of range.
    """
    if not 0 <= s_churn < math.inf:
        raise DuetError(f"sampler.s_churn: {s_churn} was given; it must be a number, at least 0 (no noise)")
    s_max = math.inf if s_max is None else s_max
    if not 0 <= s_min < s_max:
        raise DuetError(f"sampler.s_min: {s_min} was given with s_max {s_max}; they must be two rising sigma/alpha")
    now = log_ratio(schedule, t)
    inside = (np.exp(now) >= s_min) & (np.exp(now) <= s_max) & (s_churn > 0)
    most = now + math.log1p(min(s_churn / len(t), math.sqrt(2) - 1))
    raised = np.minimum(most, schedule.log_ratio_range[1])
    inside &= raised > now
    starts = t.astype(np.float64)
    starts[inside] = schedule.t_at_log_ratio(raised[inside])
    kept = np.ones(len(t))
    kept[inside] = np.exp(now[inside] - raised[inside])
    return starts, kept


def shift_timesteps(schedule: AnySchedule, grid: Grid, shift: float) -> Grid:
    """Return the steps whose sigma/alpha is `shift` times as large, limited to the range of the schedule; not the end.

    On the straight line of flow matching this is sigma <- shift sigma / (1 + (shift - 1) sigma) (Esser et al., 2024,
    section 5.3.2).

    Raises:
        DuetError: for a shift that is not positive, or one that leads below the end.
    """
    if not 0 < shift < math.inf:
        raise DuetError(f"sampler.shift: {shift} was given; it must be a positive number, 1 for no shift")
    if shift == 1:
        return grid
    t = schedule.t_at_log_ratio(
        np.clip(log_ratio(schedule, grid.t) + math.log(shift), *log_ratio(schedule, np.array(schedule.span)))
    )
    if grid.end is not None and t[-1] <= grid.end:
        raise DuetError(f"sampler.shift: {shift} was given; it moves the last step below sampler.end; use a lower end")
    return Grid(t, grid.end)


def needs_signal(name: str, alpha: Array) -> None:
    """Raise an error if the first noise level has no signal."""
    if alpha[0] == 0:
        raise DuetError(
            f"sampler {name}: its first level has no signal (alpha 0), so sigma/alpha is infinite; use flow_heun or "
            "ddim, or a grid, as spacing=karras"
        )
