r"""Restart sampling: on its way down, the sampler returns to a noisier level by fresh noise, several times.

A restart has a low and a high level, r = sigma/alpha. When the sampler arrives at the low one,

    y <- y + sqrt(r_high^2 - r_low^2) z        as much noise as the forward process adds between them
    the probability flow from r_high to r_low  in a few steps, at equal distances of r^(1/rho)

`times` times; then it continues. The forward jump and the flow both preserve the marginals, and the noise contracts the
errors made so far. Steps are Heun's or Euler's, see `steps`.

The low level is the nearest level of the sampler below the high one, as in the paper's code; if there is none, it is
added. The paper's code counts the levels of a restart and Duet counts its steps: 3 levels there are 2 steps here.

References:
    Restart Sampling for Improving Generative Processes (Xu et al., 2023), algorithm 1,
    https://arxiv.org/abs/2306.14878
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.registry import build
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import AnySchedule
from diffusion_core.sampling.declaration import Method, sampler
from diffusion_core.sampling.families import RATIO
from diffusion_core.sampling.grid import Grid, karras, make_grid
from diffusion_core.sampling.plan import SamplerPlan
from diffusion_core.sampling.spacing import Spacing, Steps
from diffusion_core.sampling.steps import log_ratio, one_step_plan

__all__ = ["CIFAR10", "Restart", "restart"]

# The paper's numbers for CIFAR-10 with the variance-preserving network of EDM.
CIFAR10 = ({"low": 0.06, "high": 0.3, "steps": 2, "times": 2},)


@dataclass(frozen=True)
class Restart:
    """One interval in which the sampler returns to a noisier level.

    Args:
        low: the sigma/alpha to return from.
        high: the sigma/alpha to return to.
        steps: the number of steps down again; None for as many as the sampler has between the two levels.
        times: how often to return.

    Raises:
        DuetError: if a number is out of range.
    """

    low: float
    high: float
    steps: int | None = None
    times: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < math.inf:
            raise DuetError(
                f"sampler.restarts: low {self.low} was given with high {self.high}; they must be two rising sigma/alpha"
            )
        if self.times < 1 or (self.steps is not None and self.steps < 1):
            raise DuetError(
                f"sampler.restarts: {self.times} times of {self.steps} steps was given; both must be at least 1"
            )


@sampler(
    Method(
        "Restart",
        order=2,
        options={"restarts": [{"low": 0.4, "high": 2.0, "times": 2}]},
        stochastic=True,
        evaluations=2,
        needs_signal=True,
    ),
    family=RATIO,
    paper="Xu et al. 2023",
    url="https://arxiv.org/abs/2306.14878",
    equation="algorithm 1",
    evaluations="2N - 1, or N with `order: 1`, and those of the restarts",
    requires="signal, but not for `order: 1`",
    notes="`order: 2` takes Heun's steps, `order: 1` Euler's.",
)
def restart(
    process: Process,
    steps: Steps = 18,
    restarts: list[Any] | tuple[Any, ...] = CIFAR10,
    order: int = 2,
    rho: float = 7.0,
    s_noise: float = 1.0,
    spacing: Spacing = RATIO.spacing,
    clip: float | None = RATIO.clip,
) -> SamplerPlan:
    """Make a plan of restart sampling; with order 2 two evaluations per step, and one for the last.

    Args:
        process: the process that the network was trained for; for order 2 the first level must contain signal.
        steps: number of steps without restarts, or another form of `spacing`.
        restarts: the options of `Restart` for each.
        order: 2 for Heun's steps, 1 for Euler's.
        rho: spacing of the levels within a restart, see `grid.karras`.
        s_noise: factor of the fresh noise.
        spacing: where the timesteps lie without restarts, see `grid` and `spacing`.
        clip: bound of the estimates, see `SamplerPlan`.

    Raises:
        DuetError: if an option or a number is invalid, or the schedule has no such level.

    Example:
        >>> from diffusion_core.diffusion.schedule import make_schedule
        >>> restart(Process(make_schedule("edm"), "edm"), steps=18)
        SamplerPlan('restart-2-22', rows=43, registers=2, stochastic=True)
    """
    if order not in (1, 2):
        raise DuetError(f"sampler.order: {order} was given; it must be 1 (Euler) or 2 (Heun)")
    if not isinstance(restarts, (list, tuple)) or not all(isinstance(options, Mapping) for options in restarts):
        raise DuetError(f"sampler.restarts: {restarts!r} was given; it must be a list, as [{{low: 0.06, high: 0.3}}]")
    schedule = process.schedule
    intervals = [build("sampler.restarts", {"restart": Restart}, "restart", dict(options)) for options in restarts]
    grid = make_grid(schedule, steps, spacing)
    t, lows = _add_low_levels(schedule, grid.t.astype(np.float64), intervals)
    if grid.end is not None and t[-1] <= grid.end:
        least, reached = min(one.low for one in intervals), math.exp(log_ratio(schedule, np.array(grid.end)))
        raise DuetError(
            f"sampler.restarts: low {least:g} was given, not above sampler.end, sigma/alpha {reached:g}; raise low, or "
            "lower the end"
        )
    # Every move as the t at which it starts and the t to which it leads, NaN for clean data.
    moves = []
    for k, move in enumerate(pairwise(np.append(t, np.nan if grid.end is None else grid.end))):
        moves.append(move)
        for interval, low in zip(intervals, lows, strict=True):
            if low == k + 1:
                moves += interval.times * list(pairwise(_down_again(schedule, t, low, interval, rho)))
    starts, ends = np.array(moves).T
    kept = np.ones(len(moves))
    raised = starts[1:] != ends[:-1]
    kept[1:][raised] = np.exp(log_ratio(schedule, ends[:-1][raised]) - log_ratio(schedule, starts[1:][raised]))
    second = ends if order == 2 else None
    return one_step_plan(process, f"restart-{order}", Grid(starts, grid.end), kept, second, s_noise=s_noise, clip=clip)


def _add_low_levels(schedule: AnySchedule, t: NDArray, intervals: list[Restart]) -> tuple[NDArray, list[int]]:
    """Return the timesteps, with the low level of each restart among them, and the index of each low level."""
    lows = []
    for interval in intervals:
        distance = np.abs(log_ratio(schedule, t) - math.log(interval.low))
        distance[(log_ratio(schedule, t) >= math.log(interval.high)) | (np.arange(len(t)) == 0)] = np.inf
        exists = np.isfinite(distance.min())
        lows.append(t[np.argmin(distance)] if exists else float(schedule.t_at_log_ratio(math.log(interval.low))))
    t = np.unique(np.append(t, lows))[::-1]
    return t, [int(np.flatnonzero(t == low)[0]) for low in lows]


def _down_again(schedule: AnySchedule, t: NDArray, low: int, interval: Restart, rho: float) -> NDArray:
    """Return the t of every level from the high one down to t[low]."""
    ratios = log_ratio(schedule, t)
    between = np.count_nonzero((ratios > ratios[low]) & (ratios <= math.log(interval.high)))
    levels = karras((interval.steps or max(between, 1)) + 1, math.exp(ratios[low]), interval.high, rho)
    return np.append(schedule.t_at_log_ratio(np.log(levels[:-1])), t[low])
