r"""The variational bound of a process with T levels, in bits per dimension, term by term.

The model draws x_{T-1} from N(0, scale^2) and each less noisy x_s from a normal distribution around the posterior mean
with x_0 = D(x_t); stored images follow from t = 0 by a discretised normal distribution. Then

    -log P(x_0)  <=  L_T + sum_{t=1}^{T-1} L_t + L_0
    L_T = KL( q(x_{T-1} | x_0)  |  N(0, scale^2) )           how much of the image remains in the noise
    L_t = KL( q(x_{t-1} | x_t, x_0)  |  p(x_{t-1} | x_t) )   one step of the sampler, at x_t = alpha x_0 + sigma eps
    L_0 = -log P(x_0 | x at t = 0)                           see `pixels`

Here t = 0 is one noise step, so L_t is the paper's L_{t+1}. Each L_t is estimated by a single draw, with one eps of
"likelihood/noise" per (image, t). Only the variance of p is a choice:

    fixed_small     that of the posterior; then L_t = (SNR_{t-1} - SNR_t) |x_0 - D|^2 / 2 on any schedule
    fixed_large     beta_t, b of `process.posterior`
    learned_range   between the two, by the second half of F, see `variational`
    learned         log variance = that output itself

At t = 0 the posterior has no variance, and the small variance there is that of t = 1, as in the code of all three
papers; so is fixed_large, but not the large end of learned_range.

With a fixed variance L_t depends on the network by the mean of |x_0 - D|^2 alone, and L_0 is the same for both. So one
evaluation gives both bounds (`with_fixed_variance`). Which is tighter depends on the data and the schedule: fixed_small
is the optimum for a certain x_0, fixed_large for x_0 from N(0, 1). With 1,000 timesteps of the cosine schedule they can
be 0.6 bits apart.

A respacing evaluates the bound of another process, one with some of the T levels only, by the same network. It has
fewer terms, and its steps are longer, so it is the looser bound.

If T evaluations per image are too many, n timesteps are drawn from a distribution p(t) over t = 1 .. T-1 and weighted,

    sum_t L_t  =  E sum_k L_{t_k} / (n p(t_k)),      t_k where the cumulative p passes (k + u)/n,   k = 0 .. n-1

with one uniform u of "likelihood/levels" per image. On average each timestep is drawn n p(t) times, so this is unbiased
for any p. ``uniform`` has strides of equal length, and with n = T - 1 it is every timestep. ``importance`` is to nine
tenths proportional to the L_t of fixed_small for white Gaussian data with a standard deviation of a quarter of the
value range, and to one tenth uniform, so that no weight is large.

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
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.backend.interface import Forward
from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.common.random import Stream
from diffusion_core.data.pixels import VALUE_RANGE, check_value_range, from_uint8
from diffusion_core.diffusion.process import Process, add_noise, eps_from_x0, posterior
from diffusion_core.diffusion.respacing import Respacing, kept_timesteps
from diffusion_core.diffusion.schedule import AnySchedule, Schedule
from diffusion_core.diffusion.variational import LEARNED, STEP_VARIANCES, log_variance, step_log_variances
from diffusion_core.likelihood.pixels import discretised_gaussian

__all__ = [
    "DISTRIBUTIONS",
    "FIXED",
    "Bound",
    "check_variance",
    "level_distribution",
    "prior_scale",
    "variational_bound",
    "with_fixed_variance",
]

Array = NDArray[np.float64]

DISTRIBUTIONS = ("uniform", "importance")
FIXED = ("fixed_small", "fixed_large")
_UNIFORM_FRACTION = 0.1


@dataclass(frozen=True, eq=False)
class Bound:
    """The bound of N images, all terms in bits per dimension.

    Args:
        prior: L_T, with shape (N,).
        levels: the timesteps at which L_t was evaluated, with shape (N, K); the last is t = 0, the others are drawn.
        weight: of each of them in the sum, with shape (N, K).
        terms: L_t at these timesteps, with shape (N, K).
        x0_mse: mean of (x_0 - D)^2 over the pixels at these timesteps, with shape (N, K).
        eps_mse: the same for the noise and the noise that D implies.
    """

    prior: Array
    levels: NDArray[np.int64]
    weight: Array
    terms: Array
    x0_mse: Array
    eps_mse: Array

    def __repr__(self) -> str:
        return f"Bound(images={len(self.prior)}, timesteps={self.levels.shape[1]})"

    @property
    def decoder(self) -> Array:
        """L_0 of each image, with shape (N,)."""
        return self.terms[:, -1]

    @property
    def steps(self) -> Array:
        """An unbiased estimate of the sum over t = 1 .. T-1 of L_t of each image, with shape (N,)."""
        return np.sum(self.weight[:, :-1] * self.terms[:, :-1], axis=1)

    @property
    def total(self) -> Array:
        """The bound of each image, with shape (N,)."""
        return self.prior + self.steps + self.decoder

    def at_levels(self, values: Array, steps: int) -> Array:
        """Return the mean over images of `terms`, `x0_mse` or `eps_mse` at each timestep, NaN where none was evaluated.

        Args:
            values: one of these arrays.
            steps: T.
        """
        count = np.bincount(self.levels.ravel(), minlength=steps)
        with np.errstate(invalid="ignore"):
            return np.bincount(self.levels.ravel(), values.ravel(), steps) / count


def check_variance(variance: str, channels: int, outputs: int | None = None) -> None:
    """Raise an error for an unknown variance, or a learned one if the network has no output for it.

    Args:
        variance: one of `variational.STEP_VARIANCES`.
        channels: of the images.
        outputs: channels of the network's output; None if unknown.
    """
    check_choice("likelihood.variance", variance, STEP_VARIANCES)
    if variance in LEARNED and outputs is not None and outputs < 2 * channels:
        raise DuetError(
            f"likelihood.variance: {variance} was given, but the network has {outputs} output channels for images with "
            f"{channels}, so none for a variance; use fixed_small or fixed_large"
        )


def prior_scale(schedule: AnySchedule) -> float:
    """Return the standard deviation of the starting noise: 1, or the largest sigma if variance is not preserved."""
    return 1.0 if schedule.variance_preserving else float(schedule(schedule.span[1])[1])


def level_distribution(schedule: Schedule, distribution: str, std: float) -> Array:
    """Return p(t) of the timesteps 1 .. T-1, with shape (T-1,) and sum 1.

    Args:
        schedule: of the process.
        distribution: ``"uniform"`` or ``"importance"``.
        std: the standard deviation of the data that ``"importance"`` assumes.
    """
    uniform = np.full(schedule.steps - 1, 1.0 / (schedule.steps - 1))
    if distribution == "uniform":
        return uniform
    snr = np.exp(schedule.log_snr)
    guess = (snr[:-1] - snr[1:]) * std**2 / (1.0 + std**2 * snr[1:])
    return _UNIFORM_FRACTION * uniform + (1.0 - _UNIFORM_FRACTION) * guess / guess.sum()


def _draw(probability: Array, count: int, seed: int, index: NDArray) -> tuple[NDArray[np.int64], Array]:
    """Draw timesteps of each image and their weights, both with shape (N, count + 1); the last is 0, with weight 1."""
    offset = Stream(seed, "likelihood/levels").uniform(index, 1)
    places = (np.arange(count) + offset) / count
    drawn = np.searchsorted(np.cumsum(probability)[:-1], places, side="right")
    levels = np.pad(drawn + 1, ((0, 0), (0, 1)))
    return levels, np.pad(1.0 / (count * probability[drawn]), ((0, 0), (0, 1)), constant_values=1.0)


def _per_image(column: Array) -> Array:
    """Return a column with shape (B,) in a shape that broadcasts over images, (B, 1, 1, 1)."""
    return column[:, None, None, None]


@dataclass(frozen=True, eq=False)
class _ReverseSteps:
    """The reverse steps p(x_{t-1} | x_t) of a process, as columns over the levels in use, with shape (T,).

    Args:
        process: the process that the network was trained for.
        kept: the timestep of each level in that process.
        variance: one of `variational.STEP_VARIANCES`.
        clip: the smallest and the largest estimate; None for no bound.
        from_x0: the posterior's coefficient of x_0.
        log_small: log of the posterior's variance.
        constant: a of the log variance of p, a + b output.
        slope: b of the same.
    """

    process: Process
    kept: NDArray[np.int64]
    variance: str
    clip: tuple[float, float] | None
    from_x0: Array
    log_small: Array
    constant: Array
    slope: Array

    @staticmethod
    def from_process(
        process: Process, kept: NDArray[np.int64], variance: str, clip: tuple[float, float] | None
    ) -> _ReverseSteps:
        """Return the steps between these levels of a process with this variance."""
        alpha, sigma = process.schedule.alpha[kept], process.schedule.sigma[kept]
        _, from_x0, _, _ = posterior(alpha, sigma, np.append(1.0, alpha[:-1]), np.append(0.0, sigma[:-1]))
        small, large = step_log_variances(alpha, sigma)
        constant, slope = log_variance(variance, small, large)
        return _ReverseSteps(process, kept, variance, clip, from_x0, small, constant, slope)

    def predict(self, forward: Forward, x: Array, t: NDArray[np.int64], label: NDArray) -> tuple[Array, Array]:
        """Return the estimate D of images x at the levels t, and the log variance of each pixel."""
        columns, channels = self.process.columns(self.kept[t]), x.shape[3]
        output = np.asarray(forward(_per_image(columns.c_in) * x, columns.c_noise, label), np.float64)
        check_variance(self.variance, channels, output.shape[3])
        estimate = _per_image(columns.c_skip) * x + _per_image(columns.c_out) * output[..., :channels]
        if self.clip is not None:
            estimate = np.clip(estimate, *self.clip)
        log_var = np.broadcast_to(_per_image(self.constant[t]), x.shape)
        if self.variance in LEARNED:
            log_var = log_var + _per_image(self.slope[t]) * output[..., channels : 2 * channels]
        return estimate, log_var

    def divergence(self, error: Array, log_var: Array, t: NDArray[np.int64]) -> Array:
        """Return KL(q | p) of each pixel in nats, for t > 0, from the error x_0 - D."""
        # Two normal distributions whose means are from_x0 (x_0 - D) apart.
        ratio = _per_image(self.log_small[t]) - log_var
        divergence = 0.5 * (np.expm1(ratio) - ratio)
        return divergence + 0.5 * (_per_image(self.from_x0[t]) * error) ** 2 * np.exp(-log_var)


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
    respacing: Respacing = None,
    distribution: str = "importance",
    clip: bool = True,
    value_range: Sequence[float] = VALUE_RANGE,
    batch: int = 128,
    progress: Callable[[int], None] | None = None,
) -> Bound:
    """Return the bound for stored images; all but the network's output is computed in float64.

    Args:
        forward: returns the network's raw output, see `backend.Network.forward`.
        process: the process that the network was trained for.
        u8: stored images, uint8 with shape (N, H, W, C).
        label: the label of each, with shape (N,).
        index: the counter of each in the random streams, with shape (N,).
        seed: of the streams.
        variance: of the steps, one of `variational.STEP_VARIANCES`.
        levels: the number of timesteps t > 0 to evaluate per image; None for all of them.
        respacing: the timesteps of the process whose bound it is, see `respacing.kept_timesteps`; None for all of them.
            The levels of the result then count those that are kept.
        distribution: from which they are drawn, one of `DISTRIBUTIONS`.
        clip: whether to bound the estimate D to the value range, as sampling does by default.
        value_range: the values of the pixels 0 and 255.
        batch: the number of (image, timestep) pairs to evaluate at once; affects only the network's rounding.
        progress: called after each batch with the number of evaluations done.

    Raises:
        DuetError: for a variance that does not fit the network's channels, or a number of levels above T - 1.
    """
    check_variance(variance, u8.shape[3])
    schedule, (low, high) = process.schedule, check_value_range(value_range)
    if not schedule.is_table:
        raise DuetError(
            f"likelihood: vlb was given; it needs the timesteps of a table, but the time of {schedule.name} is "
            "continuous; use likelihood=ode"
        )
    kept = np.arange(schedule.steps)
    if respacing is not None:
        kept = kept_timesteps(schedule.steps, respacing, "likelihood.respacing")
        schedule = schedule.respaced(kept)
    T = schedule.steps
    if T < 2:
        raise DuetError(f"likelihood: the schedule {schedule.name} has one timestep; the bound needs at least 2")
    check_choice("likelihood.distribution", distribution, DISTRIBUTIONS)
    if levels is not None and not 1 <= levels < T:
        raise DuetError(
            f"likelihood.levels: {levels} was given; it must be 1 to {T - 1} for {T} timesteps, or null for all"
        )
    index, name = np.asarray(index), "uniform" if levels is None else distribution
    probability = level_distribution(schedule, name, (high - low) / 4)
    t, weight = _draw(probability, T - 1 if levels is None else levels, seed, index)
    steps = _ReverseSteps.from_process(process, kept, variance, (low, high) if clip else None)
    noise = Stream(seed, "likelihood/noise")
    terms, x0_mse, eps_mse = (np.zeros(t.shape) for _ in range(3))
    # Timestep by timestep over all images, so that a batch has few different timesteps.
    for start in range(0, t.size, batch):
        k, i = np.divmod(np.arange(start, min(start + batch, t.size)), len(t))
        at, x0 = t[i, k], from_uint8(u8[i], np.float64, value_range)
        eps = noise.normal(index[i], u8.shape[1:], kept[at])
        x = add_noise(x0, eps, *schedule(at))
        estimate, log_var = steps.predict(forward, x, at, label[i])
        divergence = steps.divergence(x0 - estimate, log_var, at)
        first = at == 0
        if first.any():
            std = np.exp(0.5 * log_var[first])
            divergence[first] = -discretised_gaussian(u8[i[first]], estimate[first], std, value_range)
        terms[i, k] = divergence.mean(axis=(1, 2, 3)) / math.log(2.0)
        x0_mse[i, k] = ((x0 - estimate) ** 2).mean(axis=(1, 2, 3))
        eps_mse[i, k] = ((eps - eps_from_x0(x, estimate, *schedule(at))) ** 2).mean(axis=(1, 2, 3))
        if progress is not None:
            progress(start + len(at))
    power = np.array([np.mean(from_uint8(image, np.float64, value_range) ** 2) for image in u8])
    return Bound(_prior(power, schedule), t, weight, terms, x0_mse, eps_mse)


def with_fixed_variance(bound: Bound, process: Process, variance: str, respacing: Respacing = None) -> Bound:
    """Return the bound with another fixed variance, from the errors of one that was evaluated with a fixed variance.

    Args:
        bound: of `variational_bound` with a variance in `FIXED`.
        process: the process that it was evaluated for.
        variance: one of `FIXED`.
        respacing: that of the bound.

    Raises:
        DuetError: for a variance that is not fixed.
    """
    check_choice("likelihood.variance", variance, FIXED)
    kept = np.arange(process.schedule.steps)
    if respacing is not None:
        kept = kept_timesteps(process.schedule.steps, respacing, "likelihood.respacing")
    steps, t = _ReverseSteps.from_process(process, kept, variance, None), bound.levels[:, :-1]
    # The divergence is linear in the squared error, so its mean is that of the root mean square error.
    error, log_var = np.sqrt(bound.x0_mse[:, :-1]).ravel(), _per_image(steps.constant[t.ravel()])
    divergence = steps.divergence(_per_image(error), log_var, t.ravel())
    terms = np.concatenate([divergence.reshape(t.shape) / math.log(2.0), bound.terms[:, -1:]], axis=1)
    return replace(bound, terms=terms)


def _prior(power: Array, schedule: Schedule) -> Array:
    """Return L_T of images with this mean square, in bits per dimension."""
    alpha, sigma = schedule.alpha[-1] / prior_scale(schedule), schedule.sigma[-1] / prior_scale(schedule)
    square, variance = alpha**2 * power, sigma**2
    return 0.5 * (square + variance - 1.0 - math.log(variance)) / math.log(2.0)
