r"""Consistency models: training from data, and distillation of a teacher.

The consistency function is f(x, t) = c_skip x + c_out F(c_in x, c_noise), with f(x, t_min) = x: prediction edm with a
`boundary`. It is trained to be the same at two levels t_n > t_(n+1) of one trajectory,

    loss = weight(t_n) distance( f(x_n, t_n), f~(x_(n+1), t_(n+1)) )

where f~ is a moving average of the network. The second point is, in training, the same image with the same noise, and
in distillation a step of the probability-flow ODE with the teacher's estimate: Heun's, or Euler's. Levels lie evenly in
(sigma/alpha)^(1/rho) from the schedule's largest (n = 0) to its smallest; of N levels a pair is drawn with equal
probability. N may grow during a run, and the decay of the average with it:

    scales = ceil( sqrt( k/K ((end_scales + 1)^2 - start_scales^2) + start_scales^2 ) - 1 ),   N = scales + 1
    decay  = exp( start_scales log(decay) / scales )                                           adaptive

References:
    Consistency Models (Song et al., 2023), algorithms 2 and 3, appendix C, https://arxiv.org/abs/2303.01469, with its
    code (openai/consistency_models, cm/karras_diffusion.py, cm/script_util.py); its LPIPS distance is left out
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.target import DISTANCES, Distance, Sum, Target
from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.training.targets.levels import (
    at_ratio,
    estimate,
    karras_ratio,
    names,
    noised,
    ode_step,
    pair,
    taught,
)
from diffusion_core.training.targets.method import (
    Method,
    Progress,
    Setting,
    Streams,
    Table,
    at_least,
    image_distance,
    method,
    positive,
)

__all__ = [
    "WEIGHTINGS", "ConsistencyDistillation", "ConsistencyTraining", "check_boundary", "consistency_target",
    "ema_and_scales",
]  # fmt: skip

Array = NDArray[np.float64]

# The weight as a function of the signal-to-noise ratio (alpha/sigma)^2 and sigma_data.
WEIGHTINGS: Mapping[str, Callable[[Array, float], Array]] = {
    "uniform": lambda snr, sigma_data: np.ones_like(snr),
    "snr": lambda snr, sigma_data: snr,
    "snr+1": lambda snr, sigma_data: snr + 1.0,
    "karras": lambda snr, sigma_data: snr + 1.0 / sigma_data**2,
    "truncated-snr": lambda snr, sigma_data: np.maximum(snr, 1.0),
}


def ema_and_scales(
    progress: Progress, decay: float, decay_mode: str, start_scales: int, end_scales: int, scale_mode: str
) -> tuple[float, int]:
    """Return (the decay of the average, the number of levels) at a step.

    Example:
        >>> [ema_and_scales(Progress(k, 100), 0.95, "adaptive", 2, 150, "progressive") for k in (0, 50)]
        [(0.9025, 2), (0.9990326701581371, 107)]
    """
    if scale_mode == "fixed":
        return decay, start_scales
    square = progress.step / progress.steps * ((end_scales + 1) ** 2 - start_scales**2) + start_scales**2
    scales = max(int(np.ceil(np.sqrt(square) - 1)), 1)
    if decay_mode == "adaptive":
        decay = float(np.exp(np.log(decay) * start_scales / scales)) if decay else 0.0
    return decay, scales + 1


def check_boundary(name: str, setting: Setting, boundary: bool = True) -> None:
    """Refuse a process whose estimate is not x itself at the least noise."""
    process = setting.process
    if process.prediction != "edm":
        raise DuetError(
            f"objective: {name} was given with process.prediction={process.prediction}; it needs an estimate that is "
            f"x itself at the least noise, so use process={'consistency' if boundary else 'easy_consistency'}"
        )
    if boundary and not process.boundary:
        raise DuetError(
            f"objective: {name} was given with process.boundary=0; it must be the least sigma/alpha of the schedule, "
            f"so use process=consistency"
        )


def consistency_target(
    setting: Setting,
    second: tuple[Any, ...],
    distance: Distance,
    network: str = "trained",
    levels: tuple[str, ...] = ("t", "s"),
    extra: tuple[str, ...] = (),
) -> Target:
    """Return the target that compares the consistency function at the levels t and s.

    Args:
        setting: what the method is used on.
        second: the steps that make x_s.
        distance: of both.
        network: that of the level s.
        levels: whose columns the target has; a teacher's are among them.
        extra: names of further columns.
    """
    return Target(
        steps=(
            noised("x_t", "t"),
            *estimate("online", "trained", "x_t", "t", gradient=True),
            *second,
            *estimate("target", network, "x_s", "s"),
        ),
        prediction="online",
        target="target",
        columns=names(*levels) + extra,
        times=tuple(f"c_noise.{name}" for name in levels),
        distance=distance,
        teacher=setting.taught if "teacher_t" in levels else None,
    )


@dataclass(frozen=True, kw_only=True)
class _Consistency(Method):
    """What both kinds have in common."""

    paper: ClassVar[str] = "Song et al. 2023"
    url: ClassVar[str] = "https://arxiv.org/abs/2303.01469"
    code: ClassVar[str] = "openai/consistency_models"
    sampler: ClassVar[str] = "consistency"

    start_scales: int
    end_scales: int
    scale_mode: str
    decay: float = 0.95
    decay_mode: str
    rho: float = 7.0
    weighting: str = "uniform"
    distance: str = "mse"
    c: float | None = None

    def __post_init__(self) -> None:
        at_least("start_scales", self.start_scales, 2)
        at_least("end_scales", self.end_scales, self.start_scales)
        check_choice("objective.scale_mode", self.scale_mode, ("fixed", "progressive"))
        check_choice("objective.decay_mode", self.decay_mode, ("fixed", "adaptive"))
        check_choice("objective.weighting", self.weighting, tuple(WEIGHTINGS))
        check_choice("objective.distance", self.distance, DISTANCES)
        if not 0 <= self.decay < 1:
            raise DuetError(f"objective.decay: {self.decay} was given; it must be at least 0 and below 1")
        if self.decay_mode == "adaptive" and self.scale_mode == "fixed":
            raise DuetError(
                "objective.decay_mode: adaptive was given with objective.scale_mode=fixed; the decay follows a growing "
                "number of levels, so use fixed, or scale_mode=progressive"
            )
        positive("rho", self.rho)

    @property
    def uses_average(self) -> bool:
        """Whether the average is another network than the trained one."""
        return self.decay > 0

    def check(self, setting: Setting) -> None:
        """Refuse a process without the boundary condition."""
        check_boundary(self.name, setting)

    def average_decay(self, progress: Progress) -> float:
        """Return the decay of the target's average."""
        return self._scales(progress)[0]

    def _scales(self, progress: Progress) -> tuple[float, int]:
        options = self.decay, self.decay_mode, self.start_scales, self.end_scales, self.scale_mode
        return ema_and_scales(progress, *options)

    def draw(self, streams: Streams, positions: NDArray, progress: Progress) -> dict[str, NDArray]:
        """Return the number n of the first level of each pair, and the number N of levels."""
        scales = self._scales(progress)[1]
        return {
            "index": streams("t").integers(positions, scales - 1),
            "scales": np.full(len(positions), scales, np.int64),
        }

    def times(self, setting: Setting, draws: Mapping[str, NDArray]) -> tuple[Array, Array]:
        """Return the times of both levels of each pair."""
        low, high = np.exp(setting.process.schedule.log_ratio_range)
        last = draws["scales"] - 1
        fractions = draws["index"] / last, (draws["index"] + 1) / last
        first, second = (at_ratio(setting.process, karras_ratio(f, low, high, self.rho)) for f in fractions)
        return first, second

    def _second(self, setting: Setting) -> tuple[Any, ...]:
        """Return the steps that make x_s."""
        raise NotImplementedError

    def _target(self, setting: Setting, levels: tuple[str, ...], extra: tuple[str, ...] = ()) -> Target:
        distance = image_distance(self.distance, self.c, setting.shape)
        network = "average" if self.uses_average else "trained"
        return consistency_target(setting, self._second(setting), distance, network, levels, extra)

    def _table(self, setting: Setting, draws: Mapping[str, NDArray]) -> tuple[Table, Array, Array]:
        process = setting.process
        t, s = self.times(setting, draws)
        columns, times = pair(process, t, s)
        alpha, sigma = columns["alpha.t"], columns["sigma.t"]
        weight = WEIGHTINGS[self.weighting]((alpha / sigma) ** 2, process.sigma_data)
        return Table(columns, times, weight, alpha, sigma), t, s


@method
@dataclass(frozen=True, kw_only=True)
class ConsistencyTraining(_Consistency):
    """Consistency training, without a teacher.

    Args:
        start_scales: levels at the start; with scale_mode fixed, N.
        end_scales: levels at the end.
        scale_mode: ``"progressive"`` or ``"fixed"``.
        decay: of the moving average that targets are computed with, at the start; 0 is the trained network itself.
        decay_mode: ``"adaptive"`` to the number of levels, or ``"fixed"``.
        rho: of the levels.
        weighting: one of `WEIGHTINGS`.
        distance: one of `backend.target.DISTANCES`.
        c: of a pseudo-Huber distance or a norm; None is 0.00054 sqrt(number of values of an image).
    """

    name: ClassVar[str] = "consistency_training"
    title: ClassVar[str] = "Consistency training"

    start_scales: int = 2
    end_scales: int = 200
    scale_mode: str = "progressive"
    decay_mode: str = "adaptive"

    def _second(self, setting: Setting) -> tuple[Any, ...]:
        return (noised("x_s", "s"),)

    def target(self, setting: Setting) -> Target:
        """Return both evaluations of the consistency function."""
        return self._target(setting, ("t", "s"))

    def table(self, setting: Setting, draws: Mapping[str, NDArray], dropped: NDArray[np.bool_]) -> Table:
        """Return the columns of both levels."""
        return self._table(setting, draws)[0]


@method
@dataclass(frozen=True, kw_only=True)
class ConsistencyDistillation(_Consistency):
    """Consistency distillation of a teacher.

    Args:
        start_scales: N, the number of levels; with scale_mode progressive, at the start.
        end_scales: levels at the end.
        scale_mode: ``"fixed"`` or ``"progressive"``.
        decay: of the moving average that targets are computed with; 0 is the trained network itself.
        decay_mode: ``"fixed"``, or ``"adaptive"`` to the number of levels.
        rho: of the levels.
        weighting: one of `WEIGHTINGS`.
        distance: one of `backend.target.DISTANCES`.
        c: of a pseudo-Huber distance or a norm; None is 0.00054 sqrt(number of values of an image).
        solver: of the teacher's step, ``"heun"`` or ``"euler"``.
    """

    name: ClassVar[str] = "consistency_distillation"
    needs_teacher: ClassVar[bool] = True
    title: ClassVar[str] = "Consistency distillation"

    start_scales: int = 40
    end_scales: int = 40
    scale_mode: str = "fixed"
    decay_mode: str = "fixed"
    solver: str = "heun"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("objective.solver", self.solver, ("heun", "euler"))

    def _second(self, setting: Setting) -> tuple[Any, ...]:
        euler = Sum("euler", (("step.x", "x_t"), ("step.D", "taught_t")))
        first = (*estimate("taught_t", "teacher", "x_t", "teacher_t"),)
        if self.solver == "euler":
            return (*first, Sum("x_s", euler.terms))
        terms = (("heun.x", "x_t"), ("heun.D", "taught_t"), ("heun.euler", "euler"), ("heun.D_s", "taught_s"))
        return (*first, euler, *estimate("taught_s", "teacher", "euler", "teacher_s"), Sum("x_s", terms))

    def target(self, setting: Setting) -> Target:
        """Return the teacher's step and both evaluations of the consistency function."""
        steps = ("step.x", "step.D")
        if self.solver == "euler":
            return self._target(setting, ("t", "s", "teacher_t"), steps)
        heun = ("heun.x", "heun.D", "heun.euler", "heun.D_s")
        return self._target(setting, ("t", "s", "teacher_t", "teacher_s"), steps + heun)

    def table(self, setting: Setting, draws: Mapping[str, NDArray], dropped: NDArray[np.bool_]) -> Table:
        """Return the columns of both levels, of the teacher's, and of its step."""
        table, t, s = self._table(setting, draws)
        columns, times, teacher = dict(table.columns), dict(table.times), setting.teacher
        for name, at in (("t", t),) if self.solver == "euler" else (("t", t), ("s", s)):
            more, more_times = taught(teacher, setting.process, at, columns, name, f"teacher_{name}")
            columns, times = columns | more, times | more_times
        columns["step.x"], columns["step.D"] = ode_step(columns, "t", "s")
        if self.solver == "heun":
            columns |= heun_step(columns, "t", "s")
        return Table(columns, times, table.weight, table.alpha, table.sigma)


def heun_step(at: Mapping[str, Array], start: str, end: str) -> dict[str, Array]:
    """Return the weights of x, D, Euler's x and the estimate there in Heun's step, in y = x/alpha with r = sigma/alpha.

    y_s = y + (r_s - r_t)/2 ((y - D)/r_t + (y_e - D_e)/r_s)
    """
    alpha_t, alpha_s = at[f"alpha.{start}"], at[f"alpha.{end}"]
    r_t, r_s = at[f"sigma.{start}"] / alpha_t, at[f"sigma.{end}"] / alpha_s
    half = 0.5 * (r_s - r_t)
    return {
        "heun.x": alpha_s / alpha_t * (1.0 + half / r_t),
        "heun.D": -alpha_s * half / r_t,
        "heun.euler": half / r_s,
        "heun.D_s": -alpha_s * half / r_s,
    }
