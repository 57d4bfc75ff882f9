r"""Improved consistency training, and its tuning from a diffusion model.

Both compare the consistency function with itself at a lower level, without a gradient and without an average.

iCT: N levels on the grid of Karras et al., ascending; their number doubles every K' steps. A pair of levels i, i + 1 is
drawn with the probability of a log-normal distribution between them, and weighted by the inverse of their distance:

    K' = floor(K / (log2 floor(s_1/s_0) + 1)),     N = min(s_0 2^floor(k/K'), s_1) + 1
    p_i ~ erf((log r_(i+1) - mean)/(sqrt(2) std)) - erf((log r_i - mean)/(sqrt(2) std)),     weight = 1/(r_(i+1) - r_i)

ECT: t is log-normal, and r, to which it is compared, comes closer to t in each stage; at r = 0 the target is the clean
image. S is the sum of the squared residuals:

    log t ~ N(mean, std^2),     r = max(0, t (1 - q^-(stage + 1) n(t))),     n(t) = 1 + k sigmoid(-b t), or 1 (const)
    loss = (sqrt(S + c^2) - c)/(t - r)

Levels are sigma/alpha throughout. ECT starts from the weights of a diffusion model (`objective.teacher`).

References:
    Improved Techniques for Training Consistency Models (Song & Dhariwal, 2023), https://arxiv.org/abs/2310.14189; no
    code of the authors is public. Kinyugo/consistency_models takes the pseudo-Huber distance of each pixel, distance
    pseudo_huber; the paper that of the whole image, distance norm
    Consistency Models Made Easy (Geng et al., 2024), https://arxiv.org/abs/2406.14548, with its code (locuslab/ect,
    training/loss.py)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.target import DISTANCES, Target
from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.training.targets.consistency import check_boundary, consistency_target
from diffusion_core.training.targets.levels import at_ratio, karras_ratio, noised, pair
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
    "EasyConsistencyTuning",
    "ImprovedConsistencyTraining",
    "discretisation_steps",
    "lognormal_probabilities",
    "r_of_t",
]

Array = NDArray[np.float64]
_erf = np.vectorize(math.erf, otypes=[np.float64])


def discretisation_steps(progress: Progress, start: int, end: int) -> int:
    """Return N, the number of levels of iCT at a step.

    Example:
        >>> [discretisation_steps(Progress(k, 800), 10, 1280) for k in (0, 100, 799)]
        [11, 21, 1281]
    """
    length = max(1, math.floor(progress.steps / (math.log2(math.floor(end / start)) + 1)))
    doublings = min(progress.step // length, 64)
    return min(start * 2**doublings, end) + 1


def lognormal_probabilities(ratios: Array, mean: float, std: float) -> Array:
    """Return the probability of each pair of neighbouring levels, which ascend."""
    at = _erf((np.log(ratios) - mean) / (std * math.sqrt(2.0)))
    density = np.diff(at)
    return density / density.sum()


def r_of_t(t: Array, stage: NDArray | int, q: float, k: float, b: float, mapping: str) -> Array:
    """Return the r that ECT compares t with.

    Example:
        >>> r_of_t(np.array([0.5, 5.0, 50.0]), stage=0, q=2.0, k=8.0, b=1.0, mapping="sigmoid").round(4).tolist()
        [0.0, 2.3661, 25.0]
    """
    near = 1.0 + k / (1.0 + np.exp(b * t)) if mapping == "sigmoid" else 1.0
    return np.maximum(t * (1.0 - near / q ** (np.asarray(stage) + 1.0)), 0.0)


@method
@dataclass(frozen=True, kw_only=True)
class ImprovedConsistencyTraining(Method):
    """iCT.

    Args:
        start_scales: s_0, the number of pairs of levels at the start.
        end_scales: s_1, at the end.
        rho: of the levels.
        mean: of log(sigma/alpha).
        std: of log(sigma/alpha).
        distance: ``"pseudo_huber"`` of each pixel, ``"norm"`` of the whole image as in the paper, or another one of
            `backend.target.DISTANCES`.
        c: of the distance; None is 0.00054 sqrt(number of values of an image).
    """

    name: ClassVar[str] = "improved_consistency_training"
    takes_teacher: ClassVar[bool] = True
    title: ClassVar[str] = "Improved consistency training (iCT)"
    paper: ClassVar[str] = "Song & Dhariwal 2023"
    url: ClassVar[str] = "https://arxiv.org/abs/2310.14189"
    code: ClassVar[str] = "Kinyugo/consistency_models"
    sampler: ClassVar[str] = "consistency"

    start_scales: int = 10
    end_scales: int = 1280
    rho: float = 7.0
    mean: float = -1.1
    std: float = 2.0
    distance: str = "pseudo_huber"
    c: float | None = None

    def __post_init__(self) -> None:
        at_least("start_scales", self.start_scales, 1)
        at_least("end_scales", self.end_scales, self.start_scales)
        check_choice("objective.distance", self.distance, DISTANCES)
        positive("rho", self.rho)
        positive("std", self.std)

    def check(self, setting: Setting) -> None:
        """Refuse a process without the boundary condition."""
        check_boundary(self.name, setting)

    def target(self, setting: Setting) -> Target:
        """Return both evaluations of the consistency function."""
        distance = image_distance(self.distance, self.c, setting.shape)
        return consistency_target(setting, (noised("x_s", "s"),), distance)

    def draw(self, streams: Streams, positions: NDArray, progress: Progress) -> dict[str, NDArray]:
        """Return u, the uniform number that chooses a pair of levels, and the number N of levels."""
        scales = discretisation_steps(progress, self.start_scales, self.end_scales)
        return {
            "u": streams("t").uniform(positions, 1)[:, 0],
            "scales": np.full(len(positions), scales, np.int64),
        }

    def ratios(self, setting: Setting, scales: int) -> Array:
        """Return the levels sigma/alpha, ascending, with shape (N,)."""
        low, high = np.exp(setting.process.schedule.log_ratio_range)
        return karras_ratio(np.arange(scales) / max(scales - 1, 1), high, low, self.rho)

    def table(self, setting: Setting, draws: Mapping[str, NDArray], dropped: NDArray[np.bool_]) -> Table:
        """Return the columns of both levels; an ``index`` in the draws is taken in place of u."""
        process, (scales, *other) = setting.process, np.unique(draws["scales"])
        if other:
            raise DuetError("scales: the images of a batch must have the same number of levels")
        ratios = self.ratios(setting, int(scales))
        if "index" in draws:
            index = draws["index"]
        else:
            reached = np.cumsum(lognormal_probabilities(ratios, self.mean, self.std))
            index = np.minimum(np.searchsorted(reached, draws["u"], side="right"), len(ratios) - 2)
        t, s = (at_ratio(process, ratios[i]) for i in (index + 1, index))
        columns, times = pair(process, t, s)
        weight = 1.0 / (ratios[index + 1] - ratios[index])
        return Table(columns, times, weight, columns["alpha.t"], columns["sigma.t"])


@method
@dataclass(frozen=True, kw_only=True)
class EasyConsistencyTuning(Method):
    """ECT.

    Args:
        mean: of log t.
        std: of log t.
        q: the distance of t and r is divided by it in each stage.
        k: how much larger it is at small t.
        b: how fast that ends.
        mapping: ``"sigmoid"``, or ``"const"`` without k and b.
        stages: number of stages of a run, of equal length.
        c: of the norm; 0 is the plain norm.
    """

    name: ClassVar[str] = "easy_consistency_tuning"
    takes_teacher: ClassVar[bool] = True
    title: ClassVar[str] = "Easy consistency tuning (ECT)"
    paper: ClassVar[str] = "Geng et al. 2024"
    url: ClassVar[str] = "https://arxiv.org/abs/2406.14548"
    code: ClassVar[str] = "locuslab/ect"
    sampler: ClassVar[str] = "consistency"

    mean: float = -1.1
    std: float = 2.0
    q: float = 2.0
    k: float = 8.0
    b: float = 1.0
    mapping: str = "sigmoid"
    stages: int = 8
    c: float = 0.0

    def __post_init__(self) -> None:
        check_choice("objective.mapping", self.mapping, ("sigmoid", "const"))
        at_least("stages", self.stages, 1)
        at_least("k", self.k, 0)
        at_least("c", self.c, 0)
        if not self.q > 1:
            raise DuetError(f"objective.q: {self.q} was given; it must be above 1")
        positive("std", self.std)

    def check(self, setting: Setting) -> None:
        """Refuse a process that is not edm."""
        check_boundary(self.name, setting, boundary=False)
        if setting.process.boundary:
            raise DuetError(
                f"objective: {self.name} was given with process.boundary={setting.process.boundary:g}; its estimate is "
                "x itself without noise, so use 0"
            )
        if setting.process.schedule.is_table or np.any(setting.process.schedule(np.ones(1))[0] != 1):
            raise DuetError(
                f"objective: {self.name} was given on the schedule {setting.process.schedule.name}; it is defined on "
                "the schedule edm"
            )

    def target(self, setting: Setting) -> Target:
        """Return both evaluations of the consistency function."""
        distance = image_distance("norm", self.c, setting.shape)
        return consistency_target(setting, (noised("x_s", "s"),), distance)

    def draw(self, streams: Streams, positions: NDArray, progress: Progress) -> dict[str, NDArray]:
        """Return t and the stage."""
        normal = streams("t").normal(positions, (1,))[:, 0]
        stage = min(progress.step * self.stages // progress.steps, self.stages - 1)
        return {"t": np.exp(self.std * normal + self.mean), "stage": np.full(len(positions), stage, np.int64)}

    def table(self, setting: Setting, draws: Mapping[str, NDArray], dropped: NDArray[np.bool_]) -> Table:
        """Return the columns of t and r; an ``r`` in the draws is taken as it is."""
        process, t = setting.process, np.asarray(draws["t"], np.float64)
        r = draws.get("r")
        r = r_of_t(t, draws["stage"], self.q, self.k, self.b, self.mapping) if r is None else np.asarray(r, np.float64)
        # Without noise the estimate is the image itself, whatever the network says at some other level.
        clean = r == 0
        columns, times = pair(process, t, np.where(clean, t, r))
        for name, value in (("alpha", 1.0), ("sigma", 0.0), ("c_skip", 1.0), ("c_out", 0.0)):
            columns[f"{name}.s"] = np.where(clean, value, columns[f"{name}.s"])
        weight = 1.0 / (t - r)
        return Table(columns, times, weight, columns["alpha.t"], columns["sigma.t"])
