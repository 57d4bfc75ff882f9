r"""MeanFlow: the average velocity of the flow between two times.

On the straight line z_t = (1 - t) x_0 + t eps, with the velocity v = eps - x_0, the network u(z, t, r) is the mean of
the velocity from t to r, which it reads as (z, t, h = t - r). Its target follows from differentiating along the flow,

    u_target = v_g - min(max(t - r, 0), 1) du/dt,        du/dt along (dz, dt, dh) = (v_g, 1, 1)
    loss     = S / (S + eps)^power,                      S the sum of the squared residuals; no gradient below the line

Guidance is a part of the target, so that one evaluation samples with it: with the network's own velocities at h = 0,
of the class, v_c, and without it, v_u, within an interval of t,

    v_g = omega v + (1 - omega - kappa) v_u + kappa v_c           and v where the class is dropped

The two times of an image are drawn from a logit-normal distribution, and put in order (times sort), or the smaller is
bounded by t (times cap); in a fraction of the images, r = t, which is the flow-matching loss. Here that is drawn for
each image; the JAX code takes the first images of a batch.

References:
    Mean Flows for One-step Generative Modeling (Geng et al., 2025), algorithm 1, https://arxiv.org/abs/2505.13447, with
    its code (Gsunshine/meanflow, meanflow.py; Gsunshine/py-meanflow)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.target import Direction, Distance, Pass, Sum, Target
from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.diffusion.second_time import SecondTime
from diffusion_core.training.targets.method import Method, Progress, Setting, Streams, Table, at_least, method

__all__ = ["MeanFlow", "check_straight_line"]

Array = NDArray[np.float64]


def check_straight_line(name: str, setting: Setting, predictions: tuple[str, ...], config: str) -> None:
    """Refuse a process that is not the velocity on the straight line."""
    process = setting.process
    if process.prediction not in predictions or process.schedule.is_table or process.schedule.norm is not np.add:
        raise DuetError(
            f"objective: {name} was given with prediction {process.prediction} on the schedule "
            f"{process.schedule.name}; it needs the velocity on the straight line, process={config}"
        )


@method
@dataclass(frozen=True, kw_only=True)
class MeanFlow(Method):
    """MeanFlow with its guidance.

    Args:
        same_time: fraction of the images with r = t.
        distribution: of times, ``"logit_normal"`` or ``"uniform"``.
        mean: of the logit of t.
        std: of the logit of t.
        mean_r: of the logit of r; None is that of t.
        std_r: of the logit of r; None is that of t.
        times: ``"sort"`` takes the larger of two times as t, ``"cap"`` bounds r by t.
        omega: weight of the velocity of the image in the guided one.
        kappa: weight of the network's own velocity with the class in it.
        interval: the smallest and the largest t with guidance.
        guidance: whether targets are guided; None is yes for a network that knows "no class".
        power: of the adaptive weight; 0 for none.
        eps: added to S in it.
    """

    name: ClassVar[str] = "mean_flow"
    two_times: ClassVar[bool] = True
    title: ClassVar[str] = "MeanFlow"
    paper: ClassVar[str] = "Geng et al. 2025"
    url: ClassVar[str] = "https://arxiv.org/abs/2505.13447"
    code: ClassVar[str] = "Gsunshine/meanflow, Gsunshine/py-meanflow"
    sampler: ClassVar[str] = "mean_flow"

    same_time: float = 0.75
    distribution: str = "logit_normal"
    mean: float = -0.4
    std: float = 1.0
    mean_r: float | None = None
    std_r: float | None = None
    times: str = "sort"
    omega: float = 1.0
    kappa: float = 0.5
    interval: tuple[float, float] = (0.0, 1.0)
    guidance: bool | None = None
    power: float = 1.0
    eps: float = 0.01

    def __post_init__(self) -> None:
        check_choice("objective.distribution", self.distribution, ("logit_normal", "uniform"))
        check_choice("objective.times", self.times, ("sort", "cap"))
        object.__setattr__(self, "interval", tuple(self.interval))
        if not 0 <= self.same_time <= 1:
            raise DuetError(f"objective.same_time: {self.same_time} was given; it must be a fraction, 0 to 1")
        if len(self.interval) != 2 or not self.interval[0] <= self.interval[1]:
            raise DuetError(f"objective.interval: {self.interval} was given; it must be two rising times, as in [0, 1]")
        for name in ("std", "std_r", "power", "eps"):
            if getattr(self, name) is not None:
                at_least(name, getattr(self, name), 0)

    @property
    def second_time(self) -> SecondTime:
        """The length h of a step, in the unit of the process."""
        return SecondTime("length")

    def check(self, setting: Setting) -> None:
        """Refuse a process that is not the straight line, or guidance without "no class"."""
        check_straight_line(self.name, setting, ("flow", "velocity"), "mean_flow")
        if self.guidance and setting.program.null_label is None:
            raise DuetError(
                'objective.guidance: true was given, but the network has no label for "no class"; use false, or set '
                "model.num_classes"
            )

    def guides(self, setting: Setting) -> bool:
        """Whether the velocity is guided."""
        wanted = setting.program.null_label is not None if self.guidance is None else self.guidance
        return wanted and (self.omega != 1 or self.kappa != 0)

    def target(self, setting: Setting) -> Target:
        """Return the guided velocity, the average velocity and its derivative."""
        velocity = ((1.0, "noise"), (-1.0, "images"))
        steps: tuple[Sum | Pass, ...] = (Sum("z", (("alpha", "images"), ("sigma", "noise"))), Sum("v", velocity))
        terms, columns = ((1.0, "v"),), ("alpha", "sigma", "length")
        if self.guides(setting):
            steps += (Pass("v_null", "trained", "z", "t", "zero", null_label=True, evaluation=True),)
            terms, columns = (("omega", "v"), ("null", "v_null")), (*columns, "omega", "null")
            if self.kappa:
                steps += (Pass("v_class", "trained", "z", "t", "zero", evaluation=True),)
                terms, columns = (*terms, ("kappa", "v_class")), (*columns, "kappa")
        steps += (
            Sum("v_guided", terms),
            Pass("u", "trained", "z", "t", "h", gradient=True, direction=Direction("v_guided", "dt", "dt")),
            Sum("u_target", ((1.0, "v_guided"), ("length", "u.rate"))),
        )
        distance = Distance("squares", power=self.power, eps=self.eps)
        return Target(steps, "u", "u_target", columns, ("t", "h", "zero", "dt"), distance)

    def draw(self, streams: Streams, positions: NDArray, progress: Progress) -> dict[str, NDArray]:
        """Return t and r."""
        t = self._times(streams("t"), positions, self.mean, self.std)
        mean, std = (a if b is None else b for a, b in ((self.mean, self.mean_r), (self.std, self.std_r)))
        r = self._times(streams("r"), positions, mean, std)
        same = streams("same_time").uniform(positions, 1)[:, 0] < self.same_time
        if self.times == "sort":
            t, r = np.maximum(t, r), np.minimum(t, r)
        return {"t": t, "r": np.where(same, t, np.minimum(t, r))}

    def _times(self, stream: object, positions: NDArray, mean: float, std: float) -> Array:
        if self.distribution == "uniform":
            return stream.uniform(positions, 1)[:, 0]
        return 1.0 / (1.0 + np.exp(-(std * stream.normal(positions, (1,))[:, 0] + mean)))

    def table(self, setting: Setting, draws: Mapping[str, NDArray], dropped: NDArray[np.bool_]) -> Table:
        """Return the columns of two times."""
        t, r = (np.asarray(draws[name], np.float64) for name in ("t", "r"))
        scale, offset, h = setting.process.time_scale, setting.process.time_offset, t - r
        columns = {"alpha": 1.0 - t, "sigma": t, "length": -np.clip(h, 0.0, 1.0)}
        if self.guides(setting):
            guided = (t >= self.interval[0]) & (t <= self.interval[1]) & ~dropped
            omega, kappa = np.where(guided, self.omega, 1.0), np.where(guided, self.kappa, 0.0)
            columns |= {"omega": omega, "null": 1.0 - omega - kappa, "kappa": kappa}
        times = {"t": scale * t + offset, "h": scale * h, "zero": np.zeros(len(t)), "dt": np.full(len(t), scale)}
        return Table(columns, times, np.ones(len(t)), columns["alpha"], columns["sigma"])
