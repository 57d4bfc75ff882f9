r"""sCM: consistency models in continuous time, trained from data or distilled from a teacher.

In the coordinates of TrigFlow (prediction trigflow), with m = sigma_data and a in [0, pi/2],

    y = cos(a) x_0 + sin(a) m eps,      f(y, a) = cos(a) y - sin(a) m F(y/m, a)

is the consistency function, and y' = dy/da is cos(a) m eps - sin(a) x_0 in training, and (cos(a) y - D)/sin(a) with the
estimate D of the teacher in distillation. The derivative of f along y' is the tangent, here times cos(a):

    g    = cos(a) df/da = -cos(a)^2 (m F - y') - r cos(a) sin(a) (y + m dF/da)        r = min(1, k/warmup) at step k
    g    = g / (|g| + c)                                                              normalised
    loss = mean_pixels (F - F_ - g)^2            F_ is F without gradient

With a network that estimates the uncertainty u of its loss (`process.uncertainty`) the loss is exp(-u) loss + u, whose
weight exp(-u) is e^w of the paper. The angle of an image is a = arctan(e^tau/m), tau ~ N(mean, std^2).

The derivative of F is taken along cos(a) sin(a) (y'/m, 1), which stays finite in half precision.

References:
    Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models (Lu & Song, 2024), algorithm 1, eqs. 6 to 8,
    https://arxiv.org/abs/2410.11081; no code of the authors is public
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.target import Direction, Pass, Sum, Target, Unit
from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.training.targets.levels import estimate, names, taught
from diffusion_core.training.targets.method import (
    Method,
    Progress,
    Setting,
    Streams,
    Table,
    at_least,
    method,
    positive,
)

__all__ = ["TANGENTS", "ContinuousConsistencyDistillation", "ContinuousConsistencyTraining"]

Array = NDArray[np.float64]
TANGENTS = ("normalised", "clipped", "plain")


@dataclass(frozen=True, kw_only=True)
class _ContinuousConsistency(Method):
    """What both kinds have in common."""

    uses_uncertainty: ClassVar[bool] = True
    paper: ClassVar[str] = "Lu & Song 2024"
    url: ClassVar[str] = "https://arxiv.org/abs/2410.11081"
    code: ClassVar[str] = "none of the authors"
    sampler: ClassVar[str] = "consistency"

    mean: float = -1.0
    std: float = 1.4
    warmup: int = 10_000
    tangent: str = "normalised"
    c: float = 0.1
    norm: str = "sum"

    def __post_init__(self) -> None:
        positive("std", self.std)
        at_least("warmup", self.warmup, 0)
        at_least("c", self.c, 0)
        check_choice("objective.tangent", self.tangent, TANGENTS)
        check_choice("objective.norm", self.norm, ("sum", "mean"))

    def check(self, setting: Setting) -> None:
        """Refuse another prediction than trigflow."""
        if setting.process.prediction != "trigflow":
            raise DuetError(
                f"objective: {self.name} was given with process.prediction={setting.process.prediction}; it is defined "
                "for trigflow, so use process=trigflow"
            )

    def _velocity(self, setting: Setting) -> tuple[Sum | Pass, ...]:
        """Return the steps that make dy/da."""
        raise NotImplementedError

    def _target(self, setting: Setting, extra: tuple[str, ...], levels: tuple[str, ...] = ()) -> Target:
        m = setting.process.sigma_data
        tangent = {
            "normalised": Unit("tangent", "g", self.c, self.norm == "mean"),
            "clipped": Sum("tangent", ((1.0, "g"),), bounds=(-1.0, 1.0)),
            "plain": Sum("tangent", ((1.0, "g"),)),
        }
        return Target(
            steps=(
                Sum("y", (("cos", "images"), ("sin", "noise"))),
                *self._velocity(setting),
                Sum("input", ((1.0 / m, "y"),)),
                Sum("direction", (("along", "velocity"),)),
                Pass(
                    "F", "trained", "input", "c_noise", gradient=True, direction=Direction("direction", "dc_noise"),
                    uncertainty=setting.program.uncertainty,
                ),
                Sum("g", (("of_F", "F"), ("of_velocity", "velocity"), ("of_y", "y"), ("of_rate", "F.rate"))),
                tangent[self.tangent],
                Sum("moved", ((1.0, "F"), (1.0, "tangent"))),
            ),
            prediction="F",
            target="moved",
            columns=("cos", "sin", *extra, "along", "of_F", "of_velocity", "of_y", "of_rate"),
            times=("c_noise", "dc_noise", *(f"c_noise.{name}" for name in levels)),
            teacher=setting.taught if levels else None,
        )  # fmt: skip

    def draw(self, streams: Streams, positions: NDArray, progress: Progress) -> dict[str, NDArray]:
        """Return tau, the logarithm of sigma/alpha, and r, the weight of the tangent's second part."""
        normal = streams("t").normal(positions, (1,))[:, 0]
        r = 1.0 if not self.warmup else min(1.0, progress.step / self.warmup)
        return {"tau": self.std * normal + self.mean, "r": np.full(len(positions), r)}

    def _table(self, setting: Setting, draws: Mapping[str, NDArray]) -> Table:
        process, tau, r = setting.process, np.asarray(draws["tau"], np.float64), np.asarray(draws["r"], np.float64)
        m, scale = process.sigma_data, process.time_scale
        angle = np.arctan2(np.exp(tau), m)
        cos, sin = np.cos(angle), np.sin(angle)
        columns = {
            "cos": cos,
            "sin": m * sin,
            "along": cos * sin / m,
            "of_F": -(cos**2) * m,
            "of_velocity": cos**2,
            "of_y": -r * cos * sin,
            "of_rate": -r * m,
        }
        times = {"c_noise": scale * angle + process.time_offset, "dc_noise": scale * cos * sin}
        return Table(columns, times, np.ones(len(tau)), columns["cos"], columns["sin"])


@method
@dataclass(frozen=True, kw_only=True)
class ContinuousConsistencyTraining(_ContinuousConsistency):
    """sCT, without a teacher's targets.

    Args:
        mean: of tau, the logarithm of sigma/alpha.
        std: of tau.
        warmup: steps in which the second part of the tangent grows to its full weight; 0 for none.
        tangent: ``"normalised"``, ``"clipped"`` to [-1, 1], or ``"plain"``.
        c: added to the norm of the tangent.
        norm: of the tangent over an image, the root of the ``"sum"`` or of the ``"mean"`` of the squares.
    """

    name: ClassVar[str] = "continuous_consistency_training"
    takes_teacher: ClassVar[bool] = True
    title: ClassVar[str] = "Continuous-time consistency training (sCT)"

    def _velocity(self, setting: Setting) -> tuple[Sum | Pass, ...]:
        return (Sum("velocity", (("of_noise", "noise"), ("of_image", "images"))),)

    def target(self, setting: Setting) -> Target:
        """Return the tangent along the path of an image and its noise."""
        return self._target(setting, ("of_noise", "of_image"))

    def table(self, setting: Setting, draws: Mapping[str, NDArray], dropped: NDArray[np.bool_]) -> Table:
        """Return the columns of the angles."""
        table, m = self._table(setting, draws), setting.process.sigma_data
        columns = {"of_noise": m * table.alpha, "of_image": -table.sigma / m}
        return Table({**table.columns, **columns}, table.times, table.weight, table.alpha, table.sigma)


@method
@dataclass(frozen=True, kw_only=True)
class ContinuousConsistencyDistillation(_ContinuousConsistency):
    """sCD, along the flow of a teacher.

    Args:
        mean: of tau, the logarithm of sigma/alpha.
        std: of tau.
        warmup: steps in which the second part of the tangent grows to its full weight; 0 for none.
        tangent: ``"normalised"``, ``"clipped"`` to [-1, 1], or ``"plain"``.
        c: added to the norm of the tangent.
        norm: of the tangent over an image, the root of the ``"sum"`` or of the ``"mean"`` of the squares.
    """

    name: ClassVar[str] = "continuous_consistency_distillation"
    needs_teacher: ClassVar[bool] = True
    title: ClassVar[str] = "Continuous-time consistency distillation (sCD)"

    def _velocity(self, setting: Setting) -> tuple[Sum | Pass, ...]:
        velocity = Sum("velocity", (("slope", "y"), ("of_taught", "taught")))
        return (*estimate("taught", "teacher", "y", "teacher"), velocity)

    def target(self, setting: Setting) -> Target:
        """Return the tangent along the flow of the teacher."""
        columns = tuple(name for name in names("teacher") if not name.startswith(("alpha", "sigma")))
        return self._target(setting, (*columns, "slope", "of_taught"), ("teacher",))

    def table(self, setting: Setting, draws: Mapping[str, NDArray], dropped: NDArray[np.bool_]) -> Table:
        """Return the columns of the angles, and of the teacher at the same sigma/alpha.

        Angles outside the range of the teacher's schedule are moved to its ends.
        """
        teacher = setting.teacher
        low, high = teacher.process.schedule.log_ratio_range
        tau = np.clip(np.asarray(draws["tau"], np.float64), low, high)
        table, m = self._table(setting, {**draws, "tau": tau}), setting.process.sigma_data
        level = {"alpha.y": table.alpha, "sigma.y": table.sigma}
        t = teacher.process.schedule.t_at_log_ratio(tau)
        columns, times = taught(teacher, teacher.process, t, level, "y", "teacher")
        sin = table.sigma / m
        columns |= {"slope": table.alpha / sin, "of_taught": -1.0 / sin}
        return Table({**table.columns, **columns}, {**table.times, **times}, table.weight, table.alpha, table.sigma)
