r"""The variational bound of a process with T levels, in bits per dimension, term by term.

The model draws x_{T-1} from N(0, scale^2) and each less noisy x_s from a normal distribution around the posterior mean
with x_0 = D(x_t); stored pictures come from t = 0 by a discretised normal distribution. Then

    -log P(x_0)  <=  L_T + sum_{t=1}^{T-1} L_t + L_0
    L_T = KL( q(x_{T-1} | x_0)  |  N(0, scale^2) )           how much of the picture is left in the noise
    L_t = KL( q(x_{t-1} | x_t, x_0)  |  p(x_{t-1} | x_t) )   one step of the sampler, at x_t = alpha x_0 + sigma eps
    L_0 = -log P(x_0 | x at t = 0)                           see `pixels`

Here t = 0 is one noise step, so the paper's L_t is L_{t+1} of its own count. Each L_t is a draw of its expectation,
with one eps of "likelihood/noise" per (image, t). Only the variance of p is a choice:

    fixed_small     that of the posterior; then L_t = (SNR_{t-1} - SNR_t) |x_0 - D|^2 / 2 on any schedule
    fixed_large     beta_t, b of `process.posterior`
    learned_range   between the two, by the second half of F, see `variational`
    learned         log variance = that output itself

At t = 0 the posterior has no variance, and small is that of t = 1 there, as in the code of all three papers; so is
fixed_large, but not the large end of learned_range.

Where T evaluations per image are too many, n levels are drawn from a law p(t) of t = 1 .. T-1 and weighted,

    sum_t L_t  =  E sum_k L_{t_k} / (n p(t_k)),      t_k where the cumulative law passes (k + u)/n,   k = 0 .. n-1

with one uniform u of "likelihood/levels" per image: each level is met n p(t) times in the mean, so this is unbiased for
any law. ``uniform`` takes strides of equal length, and n = T - 1 of them is every level. ``importance`` has
nine tenths of its weight in the L_t of fixed_small that white Gaussian data with a standard deviation of a quarter of
the value range would have, and one tenth evenly, so that no weight is large.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), eq. 5 and table 1, https://arxiv.org/abs/2006.11239
    Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021), section 3.1,
    https://arxiv.org/abs/2102.09672
    Variational Diffusion Models (Kingma et al., 2021), L_t by the signal-to-noise ratio,
    https://arxiv.org/abs/2107.00630
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.backend.interface import Forward
from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.common.random import Stream
from diffusion_core.data.pixels import VALUE_RANGE, check_value_range, from_uint8
from diffusion_core.diffusion.process import Process, add_noise, eps_from_x0, posterior
from diffusion_core.diffusion.schedule import AnySchedule, Schedule
from diffusion_core.diffusion.variational import STEP_VARIANCES, log_variance, step_log_variances
from diffusion_core.likelihood.pixels import discretised_gaussian

__all__ = ["DISTRIBUTIONS", "Bound", "check_variance", "level_distribution", "prior_scale", "variational_bound"]

Array = NDArray[np.float64]

DISTRIBUTIONS = ("uniform", "importance")
_EVEN_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Bound:
    """The bound of N images, all terms in bits per dimension.

    Args:
        prior: L_T, with shape (N,).
        levels: the levels that were evaluated, with shape (N, K); the last is t = 0, the others are drawn.
        weight: how often each of them counts, with shape (N, K).
        terms: L_t at those levels, with shape (N, K).
        x0_mse: mean of (x_0 - D)^2 over the pixels, at those levels.
        eps_mse: the same of the noise and the noise that D implies.
    """

    prior: Array
    levels: NDArray[np.int64]
    weight: Array
    terms: Array
    x0_mse: Array
    eps_mse: Array

    @property
    def decoder(self) -> Array:
        """L_0 of each image, with shape (N,)."""
        return self.terms[:, -1]

    @property
    def steps(self) -> Array:
        """The sum over t = 1 .. T-1 of L_t of each image, with shape (N,); an unbiased draw of it."""
        return np.sum(self.weight[:, :-1] * self.terms[:, :-1], axis=1)

    @property
    def total(self) -> Array:
        """The bound of each image, with shape (N,)."""
        return self.prior + self.steps + self.decoder

    def at_levels(self, values: Array, steps: int) -> Array:
        """The mean over images of `terms`, `x0_mse` or `eps_mse` at each of T levels; NaN where none was evaluated."""
        count = np.bincount(self.levels.ravel(), minlength=steps)
        with np.errstate(invalid="ignore"):
            return np.bincount(self.levels.ravel(), values.ravel(), steps) / count


def check_variance(variance: str, channels: int, outputs: int | None = None) -> None:
    """Refuse a variance that does not exist, or that a network with so many `outputs` channels has none for."""
    if variance not in STEP_VARIANCES:
        raise one_of("likelihood.variance", variance, STEP_VARIANCES)
    if variance.startswith("learned") and outputs is not None and outputs < 2 * channels:
        raise DuetError(
            f"likelihood.variance: {variance} was given, but the network has {outputs} channels for {channels} of the "
            "images, so none for a variance; use fixed_small or fixed_large"
        )


def prior_scale(schedule: AnySchedule) -> float:
    """The standard deviation that the model starts from at the noisiest level: 1, or sigma where variance is not."""
    return 1.0 if schedule.variance_preserving else float(schedule(schedule.span[1])[1])


def level_distribution(schedule: Schedule, distribution: str, std: float) -> Array:
    """p(t) of the levels 1 .. T-1, with shape (T-1,), adding up to 1.

    Args:
        schedule: the levels.
        distribution: ``"uniform"`` or ``"importance"``.
        std: the standard deviation of the data that the latter is made for.
    """
    even = np.full(schedule.steps - 1, 1.0 / (schedule.steps - 1))
    if distribution == "uniform":
        return even
    snr = np.exp(schedule.log_snr)
    guess = (snr[:-1] - snr[1:]) * std**2 / (1.0 + std**2 * snr[1:])
    return _EVEN_SHARE * even + (1.0 - _EVEN_SHARE) * guess / guess.sum()


def _drawn(probability: Array, count: int, seed: int, index: NDArray) -> tuple[NDArray[np.int64], Array]:
    """Levels of each image and their weights, both with shape (N, count + 1); the last level is 0, with weight 1."""
    offset = Stream(seed, "likelihood/levels").uniform(index, 1)
    places = (np.arange(count) + offset) / count
    drawn = np.searchsorted(np.cumsum(probability)[:-1], places, side="right")
    levels = np.pad(drawn + 1, ((0, 0), (0, 1)))
    return levels, np.pad(1.0 / (count * probability[drawn]), ((0, 0), (0, 1)), constant_values=1.0)


def _log_variance_columns(schedule: Schedule, variance: str) -> tuple[Array, Array]:
    """(a, b) of the log variance of p, a + b output, per level."""
    small, large = step_log_variances(schedule.alpha, schedule.sigma)
    if variance.startswith("learned"):
        return log_variance(variance, small, large)
    return small if variance == "fixed_small" else np.append(small[0], large[1:]), np.zeros_like(small)


def variational_bound(
    forward: Forward,
    process: Process,
    u8: NDArray[np.uint8],
    label: NDArray[np.int32],
    index: ArrayLike,
    seed: int,
    *,
    variance: str = "fixed_small",
    levels: int | None = None,
    distribution: str = "importance",
    clip: bool = True,
    value_range: Sequence[float] = VALUE_RANGE,
    batch: int = 128,
    progress: Callable[[int], None] | None = None,
) -> Bound:
    """The bound of stored pictures; everything but the network's output is computed here in float64.

    Args:
        forward: the network's raw output, see `backend.Network.forward`.
        process: what it was trained for.
        u8: stored pictures, with shape (N, H, W, C).
        label: the network's label of each, with shape (N,).
        index: the counter of each in the streams, with shape (N,).
        seed: of the streams.
        variance: of the steps, one of `variational.STEP_VARIANCES`.
        levels: how many of the T-1 levels t > 0 are evaluated per image; None is all of them.
        distribution: how these are drawn, one of `DISTRIBUTIONS`.
        clip: bound the estimate D to the value range, as all sampling does by default.
        value_range: the values of the pixels 0 and 255.
        batch: how many (image, level) pairs are evaluated at once; changes no number but by the network's rounding.
        progress: called with the number of evaluations done after each batch.

    Raises:
        DuetError: for a variance that the network's channels do not fit, or a number of levels that the schedule has
            not.
    """
    check_variance(variance, u8.shape[3])
    schedule, (low, high) = process.schedule, check_value_range(value_range)
    if not schedule.is_table:
        raise DuetError(f"likelihood: the bound counts levels, and {schedule.name} has none; use likelihood=ode")
    T, channels = schedule.steps, u8.shape[3]
    if T < 2:
        raise DuetError(f"likelihood: the schedule {schedule.name} has one level; the bound needs at least 2")
    if distribution not in DISTRIBUTIONS:
        raise one_of("likelihood.distribution", distribution, DISTRIBUTIONS)
    if levels is not None and not 1 <= levels < T:
        raise DuetError(f"likelihood.levels: {levels} was given; of {T} levels 1 to {T - 1} can be drawn, or null")
    index, chosen = (
        np.asarray(index),
        level_distribution(schedule, "uniform" if levels is None else distribution, (high - low) / 4),
    )
    t, weight = _drawn(chosen, T - 1 if levels is None else levels, seed, index)
    alpha, sigma = schedule.alpha, schedule.sigma
    _, from_x0, _, _ = posterior(alpha, sigma, np.append(1.0, alpha[:-1]), np.append(0.0, sigma[:-1]))
    log_small, (constant, slope) = step_log_variances(alpha, sigma)[0], _log_variance_columns(schedule, variance)
    noise = Stream(seed, "likelihood/noise")
    terms, x0_mse, eps_mse = (np.zeros(t.shape) for _ in range(3))
    # All images at one level after another: neighbours then share what depends on the level.
    for start in range(0, t.size, batch):
        k, i = np.divmod(np.arange(start, min(start + batch, t.size)), len(t))
        at, x0 = t[i, k], from_uint8(u8[i], np.float64, value_range)
        eps = noise.normal(index[i], u8.shape[1:], at)
        columns = process.columns(at)
        x = add_noise(x0, eps, *schedule(at))
        c_skip, c_out, c_in = (c[:, None, None, None] for c in (columns.c_skip, columns.c_out, columns.c_in))
        output = np.asarray(forward(c_in * x, columns.c_noise, label[i]), np.float64)
        check_variance(variance, channels, output.shape[3])
        estimate = c_skip * x + c_out * output[..., :channels]
        if clip:
            estimate = np.clip(estimate, low, high)
        spread = np.broadcast_to(constant[at][:, None, None, None], x.shape)
        if variance.startswith("learned"):
            spread = spread + slope[at][:, None, None, None] * output[..., channels : 2 * channels]
        error = x0 - estimate
        # KL of two normal distributions whose means are from_x0 (x_0 - D) apart.
        ratio = log_small[at][:, None, None, None] - spread
        divergence = 0.5 * (np.expm1(ratio) - ratio)
        divergence = divergence + 0.5 * (from_x0[at][:, None, None, None] * error) ** 2 * np.exp(-spread)
        first = at == 0
        if first.any():
            std = np.exp(0.5 * spread[first])
            divergence[first] = -discretised_gaussian(u8[i[first]], estimate[first], std, value_range)
        terms[i, k] = divergence.mean(axis=(1, 2, 3)) / math.log(2.0)
        x0_mse[i, k] = (error**2).mean(axis=(1, 2, 3))
        eps_mse[i, k] = ((eps - eps_from_x0(x, estimate, *schedule(at))) ** 2).mean(axis=(1, 2, 3))
        if progress is not None:
            progress(start + len(at))
    power = np.array([np.mean(from_uint8(image, np.float64, value_range) ** 2) for image in u8])
    return Bound(_prior(power, schedule), t, weight, terms, x0_mse, eps_mse)


def _prior(power: Array, schedule: Schedule) -> Array:
    """L_T of images with this mean square, in bits per dimension."""
    alpha, sigma = schedule.alpha[-1] / prior_scale(schedule), schedule.sigma[-1] / prior_scale(schedule)
    moved, variance = alpha**2 * power, sigma**2
    return 0.5 * (moved + variance - 1.0 - math.log(variance)) / math.log(2.0)
