r"""Progressive distillation: one step of the student does what two of the teacher do.

With N steps of the student, u = 1/N, 2/N ... 1 of the way from the least noise (0) to the most (1) in t, the teacher
takes two DDIM steps from z at u, to u - 1/(2N) and to u - 1/N, which reach z_s. The target is the x_0 with which the
student's one step would reach it,

    x_target = (z_s - sigma_s/sigma_u z) / (alpha_s - alpha_u sigma_s/sigma_u)      at u = 1/N the teacher's last x_0
    loss     = weight mean_pixels (D - x_target)^2
    weight   = 1 (constant), snr (snr: of eps), max(1, snr) (snr_trunc), 1 + snr (v_mse: of v),
               snr + 1/sigma_data^2 (karras: of the output of prediction edm)

for a student of any prediction: x, eps and v have the same target, and differ in how a network of theirs makes D of its
output. A run halves the number of steps once; its network is the next run's teacher. With grid ratio, u is even in
(sigma/alpha)^(1/rho), as in the code of consistency models, and the last step leads to the least noise.

References:
    Progressive Distillation for Fast Sampling of Diffusion Models (Salimans & Ho, 2022), algorithm 2,
    https://arxiv.org/abs/2202.00512, with its code (google-research/diffusion_distillation, dpm.py)
    Consistency Models (Song et al., 2023), its code (openai/consistency_models, progdist_losses)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.target import DISTANCES, Sum, Target
from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.training.targets.levels import (
    at_ratio,
    estimate,
    karras_ratio,
    level,
    names,
    noised,
    ode_step,
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

__all__ = ["WEIGHTINGS", "ProgressiveDistillation"]

Array = NDArray[np.float64]
# The weight of the error of x_0 as a function of the signal-to-noise ratio and sigma_data.
WEIGHTINGS: Mapping[str, Callable[[Array, float], Array]] = {
    "constant": lambda snr, sigma_data: np.ones_like(snr),
    "snr": lambda snr, sigma_data: snr,
    "snr_trunc": lambda snr, sigma_data: np.maximum(snr, 1.0),
    "v_mse": lambda snr, sigma_data: 1.0 + snr,
    "karras": lambda snr, sigma_data: snr + 1.0 / sigma_data**2,
}


@method
@dataclass(frozen=True, kw_only=True)
class ProgressiveDistillation(Method):
    """Progressive distillation.

    Args:
        steps: N, of the student; half of those that its teacher was made for.
        weighting: one of `WEIGHTINGS`.
        grid: ``"time"``, or ``"ratio"`` for steps even in (sigma/alpha)^(1/rho).
        rho: of the grid ratio.
        distance: one of `backend.target.DISTANCES`.
        c: of a pseudo-Huber distance or a norm.
    """

    name: ClassVar[str] = "progressive_distillation"
    needs_teacher: ClassVar[bool] = True
    title: ClassVar[str] = "Progressive distillation"
    paper: ClassVar[str] = "Salimans & Ho 2022"
    url: ClassVar[str] = "https://arxiv.org/abs/2202.00512"
    code: ClassVar[str] = "google-research/diffusion_distillation"
    sampler: ClassVar[str] = "ddim"

    steps: int = 8
    weighting: str = "snr_trunc"
    grid: str = "time"
    rho: float = 7.0
    distance: str = "mse"
    c: float | None = None

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)
        check_choice("objective.weighting", self.weighting, tuple(WEIGHTINGS))
        check_choice("objective.grid", self.grid, ("time", "ratio"))
        check_choice("objective.distance", self.distance, DISTANCES)
        positive("rho", self.rho)

    def check(self, setting: Setting) -> None:
        """Refuse a process without continuous time, between whose levels the teacher's first step ends."""
        schedule = setting.process.schedule
        if schedule.is_table:
            raise DuetError(
                f"objective: {self.name} was given on the schedule {schedule.name}, a table; it needs continuous time, "
                "so use process=v_cosine_continuous"
            )

    def target(self, setting: Setting) -> Target:
        """Return the teacher's two steps, and the estimate of the student."""
        return Target(
            steps=(
                noised("z", "t"),
                *estimate("x_first", "teacher", "z", "teacher_t"),
                Sum("z_middle", (("first.x", "z"), ("first.D", "x_first"))),
                *estimate("x_second", "teacher", "z_middle", "teacher_m"),
                Sum("x_target", (("of_z", "z"), ("of_middle", "z_middle"), ("of_x", "x_second"))),
                *estimate("x_student", "trained", "z", "t", gradient=True),
            ),
            prediction="x_student",
            target="x_target",
            columns=(*names("t", "teacher_t", "teacher_m"), "first.x", "first.D", "of_z", "of_middle", "of_x"),
            times=("c_noise.t", "c_noise.teacher_t", "c_noise.teacher_m"),
            distance=image_distance(self.distance, self.c, setting.shape),
            teacher=setting.taught,
        )

    def draw(self, streams: Streams, positions: NDArray, progress: Progress) -> dict[str, NDArray]:
        """Return i = 0 .. N-1, the step of the student that ends at i/N."""
        return {"index": streams("t").integers(positions, self.steps)}

    def times(self, setting: Setting, index: NDArray) -> tuple[Array, Array, Array]:
        """Return the times at which the student's step starts, is in the middle, and ends."""
        schedule, n = setting.process.schedule, self.steps
        fractions = (index + 1) / n, (index + 0.5) / n, index / n
        if self.grid == "time":
            low, high = schedule.span
            start, middle, end = (low + f * (high - low) for f in fractions)
        else:
            low, high = np.exp(schedule.log_ratio_range)
            start, middle, end = (at_ratio(setting.process, karras_ratio(f, high, low, self.rho)) for f in fractions)
        return start, middle, end

    def table(self, setting: Setting, draws: Mapping[str, NDArray], dropped: NDArray[np.bool_]) -> Table:
        """Return the columns of the teacher's two steps and the student's one."""
        process, teacher, index = setting.process, setting.teacher, np.asarray(draws["index"])
        t, m, s = self.times(setting, index)
        columns, times = level(process, t, "t")
        middle, end = level(process, m, "m")[0], level(process, s, "s")[0]
        for name, at, known in (("t", t, columns), ("m", m, middle)):
            more, more_times = taught(teacher, process, at, known, name, f"teacher_{name}")
            columns, times = columns | more, times | more_times
        known = columns | middle | end
        columns["first.x"], columns["first.D"] = ode_step(known, "t", "m")
        second_x, second_D = ode_step(known, "m", "s")
        whole_x, whole_D = ode_step(known, "t", "s")
        # At the end of the way the student's step leads to clean data, and its target is the teacher's last estimate.
        last = (index == 0) & (self.grid == "time")
        columns["of_z"] = np.where(last, 0.0, -whole_x / whole_D)
        columns["of_middle"] = np.where(last, 0.0, second_x / whole_D)
        columns["of_x"] = np.where(last, 1.0, second_D / whole_D)
        alpha, sigma = columns["alpha.t"], columns["sigma.t"]
        weight = WEIGHTINGS[self.weighting]((alpha / sigma) ** 2, process.sigma_data)
        return Table(columns, times, weight, alpha, sigma)
