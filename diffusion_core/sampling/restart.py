r"""Restart sampling: on its way down, the sampler goes back up by fresh noise and down again, several times.

A restart has a low and a high level, r = sigma/alpha. When a run arrives at the low one,

    y <- y + sqrt(r_high^2 - r_low^2) z        as much noise as the forward process adds between them
    the probability flow from r_high to r_low  in a few steps, at equal distances of r^(1/rho)

as often as it says; then it goes on. The forward jump and the flow both keep the marginals, and the noise contracts the
errors that were made so far. Steps are Heun's, or Euler's, see `steps`.

The low level is the nearest visited one below the high one, as in the paper's code; where there is none, it is visited
too. The paper's code counts the levels of a restart, here steps are counted: its 3 levels are 2 steps.

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

from diffusion_core.common.errors import DuetError
from diffusion_core.common.registry import build
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import AnySchedule
from diffusion_core.sampling.grid import karras, make_timesteps
from diffusion_core.sampling.plan import SamplerPlan
from diffusion_core.sampling.spacing import Spacing, Steps
from diffusion_core.sampling.steps import log_ratio, one_step_plan

__all__ = ["CIFAR10", "Restart", "restart"]

# As in the paper for CIFAR-10 with the variance-preserving network of EDM.
CIFAR10 = ({"low": 0.06, "high": 0.3, "steps": 2, "times": 2},)


@dataclass(frozen=True)
class Restart:
    """Going back up, several times.

    Args:
        low: the sigma/alpha to go back from.
        high: the one to go back to.
        steps: down again each time; None is as many as the run has between them.
        times: how often.

    Raises:
        DuetError: if a number does not fit.
    """

    low: float
    high: float
    steps: int | None = None
    times: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < math.inf:
            raise DuetError(
                f"sampler.restarts: low {self.low} was given with high {self.high}; they are two rising sigma/alpha"
            )
        if self.times < 1 or (self.steps is not None and self.steps < 1):
            raise DuetError(
                f"sampler.restarts: {self.times} times of {self.steps} steps was given; both must be at least 1"
            )


def restart(
    process: Process,
    steps: Steps = 18,
    restarts: list[Any] | tuple[Any, ...] = CIFAR10,
    order: int = 2,
    rho: float = 7.0,
    s_noise: float = 1.0,
    spacing: Spacing = "karras",
    clip: float | None = None,
) -> SamplerPlan:
    """Restart sampling; two evaluations per step for order 2, and one for the last.

    Args:
        process: what the network was trained for; for order 2 the first level must have some signal (alpha > 0).
        steps: how many without restarts, or another answer of `spacing`.
        restarts: the options of `Restart` for each.
        order: 2, Heun's steps, or 1, Euler's.
        rho: see `grid.karras`, for the levels of a restart.
        s_noise: what the fresh noise is multiplied with.
        spacing: of the run without restarts, see `grid` and `spacing`.
        clip: see `SamplerPlan`.

    Raises:
        DuetError: if an option or a number does not fit, or the schedule has no such level.
    """
    if order not in (1, 2):
        raise DuetError(f"sampler.order: {order} was given; it is 1 (Euler) or 2 (Heun)")
    if not isinstance(restarts, (list, tuple)) or not all(isinstance(one, Mapping) for one in restarts):
        raise DuetError(f"sampler.restarts: {restarts!r} was given; it must be a list, as [{{low: 0.06, high: 0.3}}]")
    schedule = process.schedule
    planned = [build("sampler.restarts", {"restart": Restart}, "restart", dict(one)) for one in restarts]
    run = make_timesteps(schedule, steps, spacing).astype(np.float64)
    run, lows = _with_lows(schedule, run, planned)
    # Every move as the t at which it starts and the t to which it leads, NaN for clean data.
    moves = []
    for k, move in enumerate(pairwise(np.append(run, np.nan))):
        moves.append(move)
        for one, low in zip(planned, lows, strict=True):
            if low == k + 1:
                moves += one.times * list(pairwise(_down_again(schedule, run, low, one, rho)))
    starts, ends = np.array(moves).T
    left = np.ones(len(moves))
    again = starts[1:] != ends[:-1]
    left[1:][again] = np.exp(log_ratio(schedule, ends[:-1][again]) - log_ratio(schedule, starts[1:][again]))
    second = ends if order == 2 else None
    return one_step_plan(process, f"restart-{order}", starts, left, second, s_noise=s_noise, clip=clip)


def _with_lows(schedule: AnySchedule, run: np.ndarray, restarts: list[Restart]) -> tuple[np.ndarray, list[int]]:
    """The levels of the run, each restart's low one among them, and the index of that."""
    wanted = []
    for one in restarts:
        distance = np.abs(log_ratio(schedule, run) - math.log(one.low))
        distance[(log_ratio(schedule, run) >= math.log(one.high)) | (np.arange(len(run)) == 0)] = np.inf
        found = (
            run[np.argmin(distance)]
            if np.isfinite(distance.min())
            else float(schedule.t_at_log_ratio(math.log(one.low)))
        )
        wanted.append(found)
    run = np.unique(np.append(run, wanted))[::-1]
    return run, [int(np.flatnonzero(run == t)[0]) for t in wanted]


def _down_again(schedule: AnySchedule, run: np.ndarray, low: int, one: Restart, rho: float) -> np.ndarray:
    """The t of every level from the high one to the low one of the run."""
    ratios = log_ratio(schedule, run)
    between = np.count_nonzero((ratios > ratios[low]) & (ratios <= math.log(one.high)))
    levels = karras((one.steps or max(between, 1)) + 1, math.exp(ratios[low]), one.high, rho)
    return np.append(schedule.t_at_log_ratio(np.log(levels[:-1])), run[low])
