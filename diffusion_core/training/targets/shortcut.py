r"""Shortcut models: a velocity for steps of every length 1, 1/2, 1/4 ... 1/M.

Time runs from noise to data, x_t = (1 - (1 - floor) t) eps + t x_0, and the network s(x, t, d) reads d, log2 of the
number of steps that such steps would make of the whole way. At d = log2 M it is trained on the velocity; elsewhere on
two steps of half the length, which it takes itself, or its moving average takes, in evaluation mode:

    v         = x_0 - (1 - floor) eps                                               d = log2 M
    v_target  = bounded( (s(x_t, t, d+1) + s(x', t + 2^-(d+1), d+1))/2 )            d < log2 M
    x'        = bounded( x_t + 2^-(d+1) s(x_t, t, d+1) )                            bounded to [-4, 4]

t is a multiple of the step 2^-d (1/M for the velocity). One image in `every` is trained on two steps; their d is
uniform, or half of them have d = 1 or 0 (bias). The smallest steps that are composed, d = log2 M - 1, may be guided,
u + w (c - u). Classes are dropped for the velocity only. The two steps are evaluated for these images alone, where the
size of a batch, or of its micro-batches, is a multiple of `every`.

References:
    One Step Diffusion via Shortcut Models (Frans et al., 2024), algorithm 1, https://arxiv.org/abs/2410.12557, with its
    code (kvfrans/shortcut-models, targets_shortcut.py)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.target import Distance, Pass, Rows, Sum, Target
from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.second_time import SecondTime
from diffusion_core.training.targets.method import Method, Progress, Setting, Streams, Table, at_least, method

__all__ = ["BOUND", "FLOOR", "Shortcut"]

Array = NDArray[np.float64]
FLOOR, BOUND = 1e-5, 4.0


@method
@dataclass(frozen=True, kw_only=True)
class Shortcut(Method):
    """Shortcut models.

    Args:
        steps: M, the largest number of steps, a power of two.
        every: one image in this many is trained on two steps; its place in the run decides which.
        bias: whether half of them have the two longest steps.
        decay: of the moving average that takes the two steps; 0 is the trained network itself.
        guidance_scale: w, of the smallest steps that are composed; 1 for none.
    """

    name: ClassVar[str] = "shortcut"
    two_times: ClassVar[bool] = True
    second_is_length: ClassVar[bool] = False
    title: ClassVar[str] = "Shortcut models"
    paper: ClassVar[str] = "Frans et al. 2024"
    url: ClassVar[str] = "https://arxiv.org/abs/2410.12557"
    code: ClassVar[str] = "kvfrans/shortcut-models"
    sampler: ClassVar[str] = "shortcut"

    steps: int = 128
    every: int = 8
    bias: bool = False
    decay: float = 0.999
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or self.steps < 2 or self.steps & (self.steps - 1):
            raise DuetError(f"objective.steps: {self.steps} was given; it must be a power of two, as 128")
        at_least("every", self.every, 1)
        if not 0 <= self.decay < 1:
            raise DuetError(f"objective.decay: {self.decay} was given; it must be at least 0 and below 1")

    @property
    def levels(self) -> int:
        """log2 M."""
        return int(self.steps).bit_length() - 1

    @property
    def uses_average(self) -> bool:
        """Whether the average takes the two steps."""
        return self.decay > 0

    @property
    def second_time(self) -> SecondTime:
        """d, which is log2 M for the velocity."""
        return SecondTime("log2_steps", float(self.levels))

    def average_decay(self, progress: Progress) -> float:
        """Return the decay of the average."""
        return self.decay

    def check(self, setting: Setting) -> None:
        """Refuse another process than the velocity from noise to data, and guidance in vain."""
        process = setting.process
        if process.prediction != "velocity_to_data" or (process.time_scale, process.time_offset) != (-1.0, 1.0):
            raise DuetError(
                f"objective: {self.name} was given with prediction {process.prediction}; its time and its velocity run "
                "from noise to data, so use process=shortcut"
            )
        if self.guidance_scale != 1 and setting.program.null_label is None:
            raise DuetError(
                f"objective.guidance_scale: {self.guidance_scale} was given, but the network has no label for "
                '"no class"; use 1, or set model.num_classes'
            )

    def target(self, setting: Setting) -> Target:
        """Return two steps, and the velocity."""
        network = "average" if self.uses_average else "trained"
        rows = Rows("composed", self.every) if self.every > 1 else None

        def evaluated(name: str, x: str, t: str) -> tuple[Sum | Pass, ...]:
            step = Pass(name, network, x, t, "half_d", evaluation=True, rows=rows)
            if self.guidance_scale == 1:
                return (step,)
            return (
                replace(step, name=f"{name}.class"),
                replace(step, name=f"{name}.null", null_label=True),
                Sum(name, (("guidance", f"{name}.class"), ("null", f"{name}.null"))),
            )

        steps = (
            Sum("x_t", (("alpha", "images"), ("sigma", "noise"))),
            *evaluated("first", "x_t", "t"),
            Sum("x_half", ((1.0, "x_t"), ("half", "first")), (-BOUND, BOUND)),
            *evaluated("second", "x_half", "t_half"),
            Sum("two_steps", ((0.5, "first"), (0.5, "second")), (-BOUND, BOUND)),
            Sum("v", (("composed", "two_steps"), ("of_image", "images"), ("of_noise", "noise"))),
            Pass("s", "trained", "x_t", "t", "d", gradient=True),
        )
        columns = ("alpha", "sigma", "half", "composed", "of_image", "of_noise")
        columns += () if self.guidance_scale == 1 else ("guidance", "null")
        return Target(steps, "s", "v", columns, ("t", "t_half", "d", "half_d"), Distance("mse"))

    def draw(self, streams: Streams, positions: NDArray, progress: Progress) -> dict[str, NDArray]:
        """Return d and t, from noise to data."""
        positions, levels = np.asarray(positions), self.levels
        composed = positions % self.every == 0
        u, place = streams("d").uniform(positions, 2).T
        d = np.floor(u * levels)
        if self.bias:  # a quarter each of d = 1 and d = 0, and the rest uniform over the others
            others = 2 + np.floor(place * max(levels - 2, 1))
            d = np.where(u < 0.25, 0.0, np.where(u < 0.5, 1.0, np.minimum(others, levels - 1)))
        d = np.where(composed, d, levels)
        sections = 2.0**d
        return {"d": d, "t": np.floor(streams("t").uniform(positions, 1)[:, 0] * sections) / sections}

    def table(self, setting: Setting, draws: Mapping[str, NDArray], dropped: NDArray[np.bool_]) -> Table:
        """Return the columns of d and t."""
        d, t = (np.asarray(draws[name], np.float64) for name in ("d", "t"))
        composed = d < self.levels
        half = 0.5 * 2.0**-d
        flow = np.where(composed, 0.0, 1.0)
        columns = {"alpha": t, "sigma": 1.0 - (1.0 - FLOOR) * t, "half": half, "composed": 1.0 - flow}
        columns |= {"of_image": flow, "of_noise": -(1.0 - FLOOR) * flow}
        guidance = np.where(d == self.levels - 1, self.guidance_scale, 1.0)
        columns |= {"guidance": guidance, "null": 1.0 - guidance}
        times = {"t": t, "t_half": np.minimum(t + half, 1.0), "d": d, "half_d": np.minimum(d + 1, self.levels)}
        return Table(columns, times, np.ones(len(t)), columns["alpha"], columns["sigma"], keeps_label=composed)
