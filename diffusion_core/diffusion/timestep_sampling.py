r"""Timestep sampling: the distributions of t in training, and how t is drawn.

On a table, a distribution is a column of T numbers, ``P(t <= i)`` for each timestep i. Each image of a training run,
by its position n in the run, gets a number u in [0, 1), and

    t = the first timestep i with u < P(t <= i)                u = word / 2^32, the word from "train/t"

With s strata, u is spread evenly over every s consecutive images (low discrepancy): the run is cut into blocks of s
positions, block b = n // s, and a permutation of the block, drawn from "train/strata", assigns to each of its images
one of s equal parts of [0, 1),

    u = (stratum + word / 2^32) / s

so that a batch of s images has one in each part, and the mean over its timesteps varies less. Blocks are positions of
the run, not of a computation: t remains a function of (seed, position), the same after a restart and for any split of
the batch. For one stratum per sample, s is the batch size of the run (or a divisor of it), as batches start at its
multiples. The strata within a block are permuted at random, so that a part of a batch has no preferred noise level.

    name                  distribution
    uniform               all timesteps equally
    low_discrepancy       the same, in strata
    log_normal            log(sigma/alpha) ~ N(mean, std^2), rounded to the nearest timestep in log(sigma/alpha)
    logit_normal          log(u/(1 - u)) ~ N(mean, std^2), to the timestep floor(u T)
    loss_second_moment    P(t) ~ sqrt(mean l^2) of the last losses l at t, once the history of every timestep is full
    evenly_spaced         `count` timesteps at equal distances, the noisiest among them: distillation to count steps
    constant              one timestep, at a part of the way from the least noisy (0) to the noisiest (1)

log_normal, logit_normal, loss_second_moment and evenly_spaced take strata too. In log_normal, values beyond either end
of the table go to that end; a last level without signal, whose logarithm is infinite, is never the nearest. The time u
of logit_normal is that of the schedule, where timestep t covers [t/T, (t + 1)/T) as it does in uniform; on the schedule
`flow` it is that of rectified flow. In continuous time, from t_min to t_max, t is the quantile of u itself, without
rounding:

    uniform, low_discrepancy    t_min + u (t_max - t_min)
    log_normal                  log(sigma/alpha) = mean + std Phi^-1(u), limited to the range of the schedule
    evenly_spaced               t_max - j (t_max - t_min)/count, j = 0 .. count - 1, each as often
    constant                    t_min + at (t_max - t_min)
    logit_normal                t_min + s (t_max - t_min) with log(s/(1 - s)) = mean + std Phi^-1(u)

If the lowest timesteps are left out, every distribution is conditioned on the others. t = 0 means one noise step.

The last distribution depends on the losses so far, so it has a state, a `LossHistory`, which checkpoints keep. Until
the history is full, and for a fraction of all draws after that, timesteps are uniform. An image's loss has the
importance P_uniform(t) / P(t), so that only the variance of the sum over timesteps changes. Two runs draw the same
timesteps if their losses are the same: if these differ by rounding, so do the boundaries P(t <= i), and a word between
the two gives a neighbouring timestep.

References:
    Variational Diffusion Models (Kingma et al., 2021), appendix I.1, low discrepancy, https://arxiv.org/abs/2107.00630
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), table 1, log-normal,
    https://arxiv.org/abs/2206.00364
    Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Esser et al., 2024), eq. 19, logit-normal,
    https://arxiv.org/abs/2403.03206
    Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021), eq. 18, second moments of the loss,
    https://arxiv.org/abs/2102.09672
    Flow Straight and Fast (Liu et al., 2022), with its code (gnobitab/RectifiedFlow, losses.py, reflow_t_schedule),
    evenly_spaced and constant, https://arxiv.org/abs/2209.03003
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
    "constant",
    "evenly_spaced",
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
    """The last losses at each timestep, oldest first.

    Args:
        losses: with shape (T, n); for each timestep only the first `counts` of them are filled.
        counts: the number of losses of each timestep, 0 .. n, with shape (T,).
    """

    losses: Array
    counts: NDArray[np.int64]

    def __repr__(self) -> str:
        return f"LossHistory(T={len(self.counts)}, n={self.losses.shape[1]}, losses={self.counts.sum()})"

    def appended(self, t: ArrayLike, losses: ArrayLike) -> LossHistory:
        """Return the history after these losses at these timesteps, both with shape (B,), in this order.

        Raises:
            DuetError: if a loss is not finite.
        """
        if not np.all(np.isfinite(losses)):
            raise DuetError("training: a loss is not finite; a lower learning rate or a gradient clip may help")
        history, counts, n = self.losses.copy(), self.counts.copy(), self.losses.shape[1]
        for timestep, loss in zip(np.asarray(t), np.asarray(losses, np.float64), strict=True):
            if counts[timestep] == n:
                history[timestep, :-1] = history[timestep, 1:]
            else:
                counts[timestep] += 1
            history[timestep, counts[timestep] - 1] = loss
        return LossHistory(history, counts)


@dataclass(frozen=True, eq=False)
class DiscreteTimestepSampler:
    """A distribution over the timesteps of a table.

    Args:
        cumulative: P(t <= i) for each timestep i, with shape (T,); the last is 1.
        strata: the number of equal parts of [0, 1) over which as many consecutive images are spread; 1 for
            independent draws.
        history: the number of losses of each timestep that the distribution adapts to, see `adapted`; 0 for a fixed
            distribution.
        uniform_share: the fraction of draws that remain as they are here when the distribution adapts.

    Raises:
        DuetError: for fewer than one stratum, or a uniform_share outside (0, 1].

    Example:
        >>> from diffusion_core.diffusion.schedule import linear
        >>> sampler = make_timestep_sampler(linear(), name="uniform")
        >>> t = sampler.draw(seed=0, positions=np.arange(4))
        >>> t.shape, bool(np.all((0 <= t) & (t < 1000)))
        ((4,), True)
    """

    cumulative: Array
    strata: int = 1
    history: int = 0
    uniform_share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.uniform_share <= 1:
            raise DuetError(
                f"process.timestep_sampling.uniform_share: {self.uniform_share} was given; it must be a fraction, more "
                "than 0 and at most 1"
            )
        _check_strata(self.strata)
        self.cumulative.setflags(write=False)

    def __repr__(self) -> str:
        return f"DiscreteTimestepSampler(T={len(self.cumulative)}, strata={self.strata}, history={self.history})"

    @property
    def probability(self) -> Array:
        """P(t = i) for each timestep i, with shape (T,)."""
        return np.diff(self.cumulative, prepend=0.0)

    def empty_history(self) -> LossHistory | None:
        """Return the history before the first step; None for a fixed distribution."""
        T = len(self.cumulative)
        return LossHistory(np.zeros((T, self.history)), np.zeros(T, np.int64)) if self.history else None

    def adapted(self, history: LossHistory | None) -> DiscreteTimestepSampler:
        """Return the distribution proportional to the root mean square of the losses, except for `uniform_share`.

        Without a history, or before that of every timestep is full, this is the distribution itself.
        """
        own = self.probability
        if history is None or np.any(history.counts[own > 0] < self.history):
            return self
        size = np.where(own > 0, np.sqrt(np.mean(np.square(history.losses), axis=1)), 0.0)
        if not (total := size.sum()) > 0:
            return self
        cumulative = np.cumsum((1.0 - self.uniform_share) * size / total + self.uniform_share * own)
        return replace(self, cumulative=cumulative / cumulative[-1])

    def uniform(self, seed: int, positions: ArrayLike) -> Array:
        """Return the numbers u in [0, 1) of these positions in the run, with shape (B,)."""
        return _uniform_numbers(seed, positions, self.strata)

    def quantile(self, u: ArrayLike) -> NDArray[np.int64]:
        """Return the timesteps of numbers u in [0, 1): the first i with u < P(t <= i)."""
        return np.searchsorted(self.cumulative, u, side="right").astype(np.int64)

    def draw(self, seed: int, positions: ArrayLike) -> NDArray[np.int64]:
        """Return the timesteps of these positions in the run, with shape (B,)."""
        return self.quantile(self.uniform(seed, positions))


@dataclass(frozen=True, eq=False)
class ContinuousTimestepSampler:
    """A distribution over continuous time.

    Args:
        quantile: the quantile function, which returns the times of numbers u in [0, 1).
        strata: see `DiscreteTimestepSampler`.

    Raises:
        DuetError: for fewer than one stratum.
    """

    quantile: Callable[[Array], Array]
    strata: int = 1

    def __post_init__(self) -> None:
        _check_strata(self.strata)

    def __repr__(self) -> str:
        return f"ContinuousTimestepSampler(strata={self.strata})"

    def empty_history(self) -> None:
        """Return None: the distribution is fixed."""

    def draw(self, seed: int, positions: ArrayLike) -> Array:
        """Return the times of these positions in the run, with shape (B,)."""
        return self.quantile(_uniform_numbers(seed, positions, self.strata))


def _check_strata(strata: int) -> None:
    if strata < 1:
        raise DuetError(
            f"process.timestep_sampling.strata: {strata} was given; it must be at least 1, preferably the batch size"
        )


def _uniform_numbers(seed: int, positions: ArrayLike, strata: int) -> Array:
    """Return the numbers u in [0, 1) of these positions in the run, with shape (B,)."""
    u = Stream(seed, "train/t").bits(positions, 1)[:, 0] * 2.0**-32
    return u if strata == 1 else (_strata(seed, positions, strata) + u) / strata


def _strata(seed: int, positions: ArrayLike, n: int) -> NDArray[np.int64]:
    """Return each position's stratum, 0..n-1: the rank of its 64-bit key within its block."""
    blocks, places = np.divmod(np.asarray(positions, np.int64), n)
    own, block = np.unique(blocks, return_inverse=True)
    members = (own[:, None] * n + np.arange(n)).ravel()
    high, low = Stream(seed, "train/strata").bits(members, 2).astype(np.uint64).T
    return np.argsort((high << np.uint64(32) | low).reshape(-1, n), axis=1, kind="stable")[block, places]


def _condition(cumulative: Array, first_t: int, name: str) -> Array:
    """Return the distribution conditioned on t >= first_t."""
    below = cumulative[first_t - 1] if first_t else 0.0
    # With less probability than this, words of 32 bits would give hardly any timestep.
    if not 1.0 - below > 2.0**-20:
        raise DuetError(
            f"process.timestep_sampling: {name} with these options has almost no probability from t = {first_t} on; "
            "increase mean, or decrease process.first_t"
        )
    return np.maximum(cumulative - below, 0.0) / (cumulative[-1] - below)


def _interpolate(span: tuple[float, float], fraction: Array) -> Array:
    """Return the times at these fractions of the span."""
    return np.minimum(span[0] + fraction * (span[1] - span[0]), span[1])


def uniform(schedule: AnySchedule, first_t: int) -> DiscreteTimestepSampler | ContinuousTimestepSampler:
    """Return the uniform distribution over the timesteps from `first_t` on (Ho et al., 2020, algorithm 1)."""
    if not schedule.is_table:
        return ContinuousTimestepSampler(lambda u: _interpolate(schedule.span, u))
    n = schedule.steps - first_t
    # As quotients of integers: the timesteps are then exactly those of `Stream.integers`.
    return DiscreteTimestepSampler(np.append(np.zeros(first_t), np.arange(1, n + 1) / n))


def low_discrepancy(
    schedule: AnySchedule, first_t: int, strata: int
) -> DiscreteTimestepSampler | ContinuousTimestepSampler:
    """Return `uniform` in strata (Kingma et al., 2021); one per sample of the batch if `strata` is the batch size."""
    return replace(uniform(schedule, first_t), strata=strata)


def log_normal(
    schedule: AnySchedule, first_t: int, mean: float = -1.2, std: float = 1.2, strata: int = 1
) -> DiscreteTimestepSampler | ContinuousTimestepSampler:
    """Return log(sigma/alpha) ~ N(mean, std^2), rounded on a table (Karras et al., 2022, with their P_mean, P_std)."""
    normal = _normal(mean, std)
    if not schedule.is_table:
        return ContinuousTimestepSampler(
            lambda u: schedule.t_at_log_ratio(np.clip(_quantile(normal, u), *schedule.log_ratio_range)), strata
        )
    log_noise = -0.5 * schedule.log_snr
    edges = np.append(0.5 * (log_noise[:-1] + log_noise[1:]), np.inf)
    return DiscreteTimestepSampler(_condition(_cdf(normal, edges), first_t, "log_normal"), strata)


def logit_normal(
    schedule: AnySchedule, first_t: int, mean: float = 0.0, std: float = 1.0, strata: int = 1
) -> DiscreteTimestepSampler | ContinuousTimestepSampler:
    """Return log(u/(1-u)) ~ N(mean, std^2) for the time u in (0, 1) of the schedule (Esser et al., 2024, eq. 19)."""
    normal = _normal(mean, std)
    if not schedule.is_table:
        return ContinuousTimestepSampler(
            lambda u: _interpolate(schedule.span, 1.0 / (1.0 + np.exp(-_quantile(normal, u)))), strata
        )
    n = np.arange(1, schedule.steps)
    edges = np.append(np.log(n / (schedule.steps - n)), np.inf)
    return DiscreteTimestepSampler(_condition(_cdf(normal, edges), first_t, "logit_normal"), strata)


def evenly_spaced(
    schedule: AnySchedule, first_t: int, count: int, strata: int = 1
) -> DiscreteTimestepSampler | ContinuousTimestepSampler:
    """Return `count` times at equal distances, each as often, the noisiest first (Liu et al., 2022, distillation).

    They are those at which `count` steps start; 1 is the noisiest alone, for a student of one step.
    """
    if count < 1 or (schedule.is_table and count > schedule.steps - first_t):
        raise DuetError(
            f"process.timestep_sampling.count: {count} was given; it must be at least 1, and no more than a table has "
            "timesteps"
        )
    if not schedule.is_table:
        low, high = schedule.span
        return ContinuousTimestepSampler(
            lambda u: high - (count - 1 - np.floor(np.asarray(u) * count)) * ((high - low) / count), strata
        )
    return _at_timesteps(schedule, schedule.steps - 1 - np.arange(count) * (schedule.steps - first_t) // count, strata)


def constant(
    schedule: AnySchedule, first_t: int, at: float = 1.0
) -> DiscreteTimestepSampler | ContinuousTimestepSampler:
    """Return one time, at this part of the way from the least noisy to the noisiest (Liu et al., 2022)."""
    if not 0 <= at <= 1:
        raise DuetError(
            f"process.timestep_sampling.at: {at} was given; it must be 0, the least noisy time, to 1, the noisiest"
        )
    if not schedule.is_table:
        return ContinuousTimestepSampler(lambda u: _interpolate(schedule.span, np.full(np.shape(u), at)))
    return _at_timesteps(schedule, np.array([first_t + round(at * (schedule.steps - 1 - first_t))]))


def _at_timesteps(schedule: AnySchedule, timesteps: NDArray[np.int64], strata: int = 1) -> DiscreteTimestepSampler:
    """Return the distribution in which each of these timesteps is as often."""
    share = np.bincount(timesteps, minlength=schedule.steps)
    return DiscreteTimestepSampler(np.cumsum(share) / share.sum(), strata)


def loss_second_moment(
    schedule: AnySchedule, first_t: int, history: int = 10, uniform_share: float = 0.001, strata: int = 1
) -> DiscreteTimestepSampler:
    """Return the distribution that prefers timesteps with large recent losses (Nichol & Dhariwal, 2021)."""
    if not schedule.is_table:
        raise DuetError(
            f"process.timestep_sampling: loss_second_moment was given; it needs the timesteps of a table, but the time "
            f"of {schedule.name} is continuous"
        )
    if history < 1:
        raise DuetError(f"process.timestep_sampling.history: {history} was given; it must be at least 1")
    return DiscreteTimestepSampler(uniform(schedule, first_t).cumulative, strata, history, uniform_share)


def _normal(mean: float, std: float) -> NormalDist:
    """Return the normal distribution."""
    if not math.isfinite(mean):
        raise DuetError(f"process.timestep_sampling.mean: {mean} was given; it must be a number")
    if not 0 < std < math.inf:
        raise DuetError(f"process.timestep_sampling.std: {std} was given; it must be a positive number")
    return NormalDist(mean, std)


def _cdf(normal: NormalDist, edges: Array) -> Array:
    """Return the cumulative distribution function."""
    return np.vectorize(normal.cdf, otypes=[np.float64])(edges)


def _quantile(normal: NormalDist, u: Array) -> Array:
    """Return the quantiles; u = 0, whose quantile is -inf, is replaced by a number below that of any other word."""
    return np.vectorize(normal.inv_cdf, otypes=[np.float64])(np.maximum(u, 2.0**-44))


TIMESTEP_SAMPLERS: Mapping[str, Callable[..., DiscreteTimestepSampler | ContinuousTimestepSampler]] = {
    "uniform": uniform,
    "low_discrepancy": low_discrepancy,
    "log_normal": log_normal,
    "logit_normal": logit_normal,
    "loss_second_moment": loss_second_moment,
    "evenly_spaced": evenly_spaced,
    "constant": constant,
}


def make_timestep_sampler(
    schedule: AnySchedule, first_t: int = 0, name: str = "uniform", **options: object
) -> DiscreteTimestepSampler | ContinuousTimestepSampler:
    """Make a distribution over the timesteps `first_t` .. T-1, or over the span of continuous time.

    Args:
        schedule: a table or a continuous schedule.
        first_t: the lowest timestep; 0 for a continuous schedule.
        name: one of `TIMESTEP_SAMPLERS`.
        options: of the distribution.

    Raises:
        DuetError: for an unknown name or option, or a value that is out of range.
    """
    if first_t and not schedule.is_table:
        raise DuetError(
            f"process.first_t: {first_t} was given; the time of {schedule.name} is continuous, so increase the "
            "smallest t or sigma of the schedule instead"
        )
    if first_t and not 0 <= first_t < schedule.steps:
        raise DuetError(f"process.first_t: {first_t} was given; it must be a timestep, 0..{schedule.steps - 1}")
    return build("process.timestep_sampling", TIMESTEP_SAMPLERS, name, options, schedule, first_t)
