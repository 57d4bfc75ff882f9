r"""Which levels are trained how often: laws of t, and how it is drawn.

A law is a column of T numbers, its distribution function ``P(t <= i)`` over the levels of the schedule. Per image, by
its position n in the run, a number u in [0, 1) is drawn and

    t = the first level i with u < P(t <= i)                   u = word / 2^32, the word from "train/t"

With s strata, u is spread evenly over every s images that follow each other (low discrepancy): the run is cut into
blocks of s positions, block b = n // s, and a permutation of the block, drawn in "train/strata", gives each of its
images one of s equal parts of [0, 1),

    u = (stratum + word / 2^32) / s

so that a batch of s images has one in each part and the mean over its levels varies less. The blocks lie on the
positions of the run, not on what happens to be computed at once: t stays a function of (seed, position), the same
after a restart and however a batch is split. For one stratum per sample, s is the batch of the run (or a divisor of
it), as batches start at its multiples. Places in a block are drawn, not counted, so that a part of a batch has no
preferred noise.

    name                  law
    uniform               all levels alike
    low_discrepancy       the same, in strata
    log_normal            log(sigma/alpha) ~ N(mean, std^2), to the level that is nearest in log(sigma/alpha)
    logit_normal          log(u/(1 - u)) ~ N(mean, std^2), to the level floor(u T)
    loss_second_moment    P(t) ~ sqrt(mean l^2) of the last losses l at t, once every level has as many as are kept

The last three also take strata. In log_normal, what is drawn beyond either end of the table goes to the end, and a
last level without signal, whose logarithm is infinite, is nearest to nothing. The time u of logit_normal is that of
the schedule, where level t covers [t/T, (t + 1)/T) as it does in uniform; on the schedule `flow` it is that of
rectified flow. In continuous time, from t_min to t_max, nothing goes to a nearest level: the quantile of u is t itself,

    uniform, low_discrepancy    t_min + u (t_max - t_min)
    log_normal                  log(sigma/alpha) = mean + std Phi^-1(u), and what is beyond an end goes to the end
    logit_normal                t_min + s (t_max - t_min) with log(s/(1 - s)) = mean + std Phi^-1(u)

Where the lowest levels are left out, every law is the one given that t is among the others. t = 0
means one noise step.

The last law depends on what was trained before, so it is a state of the run, a `LossHistory`, which a checkpoint
keeps. Until it is full, and for a share of all draws after that, levels are drawn uniformly. As only the variance
of the sum over all levels is meant to change, an image's loss has the importance P_uniform(t) / P(t). The draws of
two runs are the same where their losses are: where these differ by rounding, so do the borders P(t <= i), and a word
that falls between the two gives a neighbouring level.

References:
    Variational Diffusion Models (Kingma et al., 2021), appendix I.1, low discrepancy, https://arxiv.org/abs/2107.00630
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), table 1, log-normal,
    https://arxiv.org/abs/2206.00364
    Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Esser et al., 2024), eq. 19, logit-normal,
    https://arxiv.org/abs/2403.03206
    Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021), eq. 18, second moments of the loss,
    https://arxiv.org/abs/2102.09672
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.common.registry import build
from diffusion_core.diffusion.schedule import AnySchedule

__all__ = [
    "TIMESTEP_SAMPLERS",
    "DiscreteTimestepSampler",
    "LossHistory",
    "ContinuousTimestepSampler",
    "log_normal",
    "logit_normal",
    "loss_second_moment",
    "low_discrepancy",
    "make_timestep_sampler",
    "uniform",
]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LossHistory:
    """The last losses at each level, oldest first.

    Args:
        losses: with shape (T, n); only the first `counts` of a level are there.
        counts: how many losses each level has, 0 .. n, with shape (T,).
    """

    losses: Array
    counts: NDArray[np.int64]

    def appended(self, t: ArrayLike, losses: ArrayLike) -> LossHistory:
        """The history after these losses, with shape (B,), at these levels, in this order.

        Raises:
            DuetError: if a loss is not finite.
        """
        if not np.all(np.isfinite(losses)):
            raise DuetError("training: a loss is not finite; a lower learning rate or a gradient clip may help")
        kept, counts, n = self.losses.copy(), self.counts.copy(), self.losses.shape[1]
        for level, loss in zip(np.asarray(t), np.asarray(losses, np.float64), strict=True):
            if counts[level] == n:
                kept[level, :-1] = kept[level, 1:]
            else:
                counts[level] += 1
            kept[level, counts[level] - 1] = loss
        return LossHistory(kept, counts)


@dataclass(frozen=True, eq=False)
class DiscreteTimestepSampler:
    """A law of t.

    Args:
        cumulative: P(t <= i) for each level i, with shape (T,); the last is 1.
        strata: into how many equal parts of [0, 1) as many successive images are spread; 1 draws each on its own.
        history: how many losses of each level make the law another one, see `given`; 0 for a fixed law.
        uniform_share: the share of draws that such a law leaves as they are here.

    Raises:
        DuetError: if there is less than one stratum, or the share is none.
    """

    cumulative: Array
    strata: int = 1
    history: int = 0
    uniform_share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.uniform_share <= 1:
            raise DuetError(
                f"process.timestep_sampling.uniform_share: {self.uniform_share} was given; it is a share, more than 0, at most 1"
            )
        _check_strata(self.strata)
        self.cumulative.setflags(write=False)

    @property
    def probability(self) -> Array:
        """P(t = i) for each level i, with shape (T,)."""
        return np.diff(self.cumulative, prepend=0.0)

    def empty_history(self) -> LossHistory | None:
        """The history before the first step; None for a fixed law."""
        levels = len(self.cumulative)
        return LossHistory(np.zeros((levels, self.history)), np.zeros(levels, np.int64)) if self.history else None

    def adapted(self, history: LossHistory | None) -> DiscreteTimestepSampler:
        """The law after these losses: in proportion to their root mean square, but for the uniform share."""
        own = self.probability
        if history is None or np.any(history.counts[own > 0] < self.history):
            return self
        size = np.where(own > 0, np.sqrt(np.mean(np.square(history.losses), axis=1)), 0.0)
        if not (total := size.sum()) > 0:
            return self
        cumulative = np.cumsum((1.0 - self.uniform_share) * size / total + self.uniform_share * own)
        return replace(self, cumulative=cumulative / cumulative[-1])

    def uniform(self, seed: int, positions: ArrayLike) -> Array:
        """The numbers u in [0, 1) of these positions in the run, with shape (B,)."""
        return _numbers(seed, positions, self.strata)

    def at(self, u: ArrayLike) -> NDArray[np.int64]:
        """The levels of numbers u in [0, 1): the first i with u < P(t <= i)."""
        return np.searchsorted(self.cumulative, u, side="right").astype(np.int64)

    def draw(self, seed: int, positions: ArrayLike) -> NDArray[np.int64]:
        """The levels of these positions in the run, with shape (B,)."""
        return self.at(self.uniform(seed, positions))


@dataclass(frozen=True, eq=False)
class ContinuousTimestepSampler:
    """A law of continuous time.

    Args:
        at: the times of numbers u in [0, 1), the quantiles of the law.
        strata: see `DiscreteTimestepSampler`.

    Raises:
        DuetError: if there is less than one stratum.
    """

    at: Callable[[Array], Array]
    strata: int = 1

    def __post_init__(self) -> None:
        _check_strata(self.strata)

    def empty_history(self) -> None:
        """No history: see `DiscreteTimestepSampler`."""

    def draw(self, seed: int, positions: ArrayLike) -> Array:
        """The times of these positions in the run, with shape (B,)."""
        return self.at(_numbers(seed, positions, self.strata))


def _check_strata(strata: int) -> None:
    if strata < 1:
        raise DuetError(
            f"process.timestep_sampling.strata: {strata} was given; it must be at least 1, and is best the batch"
        )


def _numbers(seed: int, positions: ArrayLike, strata: int) -> Array:
    """The numbers u in [0, 1) of these positions in the run, with shape (B,)."""
    u = Stream(seed, "train/t").bits(positions, 1)[:, 0] * 2.0**-32
    return u if strata == 1 else (_strata(seed, positions, strata) + u) / strata


def _strata(seed: int, positions: ArrayLike, n: int) -> NDArray[np.int64]:
    """Each position's stratum, 0..n-1, by the order of the 64-bit keys of its block."""
    blocks, places = np.divmod(np.asarray(positions, np.int64), n)
    own, block = np.unique(blocks, return_inverse=True)
    whole = (own[:, None] * n + np.arange(n)).ravel()
    high, low = Stream(seed, "train/strata").bits(whole, 2).astype(np.uint64).T
    return np.argsort((high << np.uint64(32) | low).reshape(-1, n), axis=1, kind="stable")[block, places]


def _above(cumulative: Array, first_t: int, name: str) -> Array:
    """The law given that t >= first_t."""
    below = cumulative[first_t - 1] if first_t else 0.0
    # Of less than this a word of 32 bits would show hardly a level.
    if not 1.0 - below > 2.0**-20:
        raise DuetError(
            f"process.timestep_sampling: {name} as given draws no level from {first_t} on; raise mean, or lower process.first_t"
        )
    return np.maximum(cumulative - below, 0.0) / (cumulative[-1] - below)


def _between(span: tuple[float, float], share: Array) -> Array:
    """The times at these shares of the span."""
    return np.minimum(span[0] + share * (span[1] - span[0]), span[1])


def uniform(schedule: AnySchedule, first_t: int) -> DiscreteTimestepSampler | ContinuousTimestepSampler:
    """All levels from `first_t` on alike (Ho et al., 2020, algorithm 1)."""
    if not schedule.is_table:
        return ContinuousTimestepSampler(lambda u: _between(schedule.span, u))
    n = schedule.steps - first_t
    # As quotients of whole numbers: the levels are then exactly those of `Stream.integers`.
    return DiscreteTimestepSampler(np.append(np.zeros(first_t), np.arange(1, n + 1) / n))


def low_discrepancy(
    schedule: AnySchedule, first_t: int, strata: int
) -> DiscreteTimestepSampler | ContinuousTimestepSampler:
    """`uniform` in strata (Kingma et al., 2021); one per sample of the batch where `strata` is the batch."""
    return replace(uniform(schedule, first_t), strata=strata)


def log_normal(
    schedule: AnySchedule, first_t: int, mean: float = -1.2, std: float = 1.2, strata: int = 1
) -> DiscreteTimestepSampler | ContinuousTimestepSampler:
    """log(sigma/alpha) ~ N(mean, std^2), of a table the nearest (Karras et al., 2022, with their P_mean and P_std)."""
    normal = _normal(mean, std)
    if not schedule.is_table:
        return ContinuousTimestepSampler(
            lambda u: schedule.t_at_log_ratio(np.clip(_quantile(normal, u), *schedule.ends)), strata
        )
    log_noise = -0.5 * schedule.log_snr
    edges = np.append(0.5 * (log_noise[:-1] + log_noise[1:]), np.inf)
    return DiscreteTimestepSampler(_above(_below(normal, edges), first_t, "log_normal"), strata)


def logit_normal(
    schedule: AnySchedule, first_t: int, mean: float = 0.0, std: float = 1.0, strata: int = 1
) -> DiscreteTimestepSampler | ContinuousTimestepSampler:
    """log(u/(1-u)) ~ N(mean, std^2) for the time u in (0, 1) of the schedule (Esser et al., 2024, eq. 19)."""
    normal = _normal(mean, std)
    if not schedule.is_table:
        return ContinuousTimestepSampler(
            lambda u: _between(schedule.span, 1.0 / (1.0 + np.exp(-_quantile(normal, u)))), strata
        )
    n = np.arange(1, schedule.steps)
    edges = np.append(np.log(n / (schedule.steps - n)), np.inf)
    return DiscreteTimestepSampler(_above(_below(normal, edges), first_t, "logit_normal"), strata)


def loss_second_moment(
    schedule: AnySchedule, first_t: int, history: int = 10, uniform_share: float = 0.001, strata: int = 1
) -> DiscreteTimestepSampler:
    """Levels whose last losses are large are drawn more often (Nichol & Dhariwal, 2021)."""
    if not schedule.is_table:
        raise DuetError(
            f"process.timestep_sampling: loss_second_moment keeps losses by level, and {schedule.name} has no levels"
        )
    if history < 1:
        raise DuetError(f"process.timestep_sampling.history: {history} was given; it must be at least 1")
    return DiscreteTimestepSampler(uniform(schedule, first_t).cumulative, strata, history, uniform_share)


def _normal(mean: float, std: float) -> NormalDist:
    """The normal distribution."""
    if not math.isfinite(mean):
        raise DuetError(f"process.timestep_sampling.mean: {mean} was given; it must be a number")
    if not 0 < std < math.inf:
        raise DuetError(f"process.timestep_sampling.std: {std} was given; it must be a positive number")
    return NormalDist(mean, std)


def _below(normal: NormalDist, edges: Array) -> Array:
    """The distribution function."""
    return np.vectorize(normal.cdf, otypes=[np.float64])(edges)


def _quantile(normal: NormalDist, u: Array) -> Array:
    """Its inverse; u = 0, whose quantile is -inf, is taken for a number below every other word's."""
    return np.vectorize(normal.inv_cdf, otypes=[np.float64])(np.maximum(u, 2.0**-44))


TIMESTEP_SAMPLERS: Mapping[str, Callable[..., DiscreteTimestepSampler | ContinuousTimestepSampler]] = {
    "uniform": uniform,
    "low_discrepancy": low_discrepancy,
    "log_normal": log_normal,
    "logit_normal": logit_normal,
    "loss_second_moment": loss_second_moment,
}


def make_timestep_sampler(
    schedule: AnySchedule, first_t: int = 0, name: str = "uniform", **options: object
) -> DiscreteTimestepSampler | ContinuousTimestepSampler:
    """The law of that name over the levels `first_t` .. T-1, or over the span of continuous time.

    Raises:
        DuetError: for a name or an option that does not exist, or a value that does not fit.
    """
    if first_t and not schedule.is_table:
        raise DuetError(
            f"objective.first_t: {first_t} was given; the time of {schedule.name} is continuous, so raise the least t "
            "or sigma of the schedule instead"
        )
    if first_t and not 0 <= first_t < schedule.steps:
        raise DuetError(f"objective.first_t: {first_t} was given; it must be a level, 0..{schedule.steps - 1}")
    return build("process.timestep_sampling", TIMESTEP_SAMPLERS, name, options, schedule, first_t)
