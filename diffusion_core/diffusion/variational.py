r"""The variances of reverse steps and the variational bound, as columns of numbers.

A network with twice the channels gives F and, for the variance of each pixel, F2. A reverse step is then a normal
distribution with the mean of the posterior at the estimate D (`process.posterior`) and the variance

    log variance = a + b F2

    variance         a                           b
    fixed_small      log v_t                     0
    fixed_large      log b_t, at t = 0 log v_0   0                             a network without the second half
    learned          0                           1
    learned_range    (log b_t + log v_t) / 2     (log b_t - log v_t) / 2       v_t at F2 = -1, b_t at F2 = 1

with the posterior's own variance v_t and beta_t = b_t, between which the optimal variance lies. At t = 0 the posterior
has no variance, and v_0 is set to that of t = 1.

The bound on -log p(x_0) has a term per level: the divergence of the posterior q from the step p, and at t = 0, where
the step must hit the byte of each pixel, minus the logarithm of its probability. Measured in standard deviations of
the posterior, q is N(0, 1) and p is N(e, exp(u)),

    u        = offset + scale F2                          offset = a - log v_t,    scale = b
    e        = error (F - target)                         error  = c_x0 c_out / sqrt(v_t)

since D - x_0 = c_out (F - target) for every prediction, and the means differ by c_x0 (D - x_0), c_x0 being the
posterior's coefficient of x_0. So both terms, per pixel and in nats, are plain arithmetic of four columns:

    KL       = (u + exp(-u) - 1 + exp(-u) e^2) / 2
    decoder  = -log( Phi((h - e) exp(-u/2)) - Phi((-h - e) exp(-u/2)) )

where h is half a byte's width over sqrt(v_t), and the bins of black and white extend to infinity. A probability below
1e-12 counts as 1e-12 and has no gradient, as in the published code. Phi is the normal distribution function (cdf:
exact), or the approximation of the published code, which DiT was trained with (cdf: tanh),

    Phi(x) = (1 + tanh( sqrt(2/pi) (x + 0.044715 x^3) )) / 2

whose white and black begin at 0.999 of the range; that matters only for values which are not bytes.

    objective    loss of an image                                  gradient of the bound reaches the mean
    hybrid       weight distance(F, target) + w T bound            no     w = 0.001: L_simple + 0.001 L_vlb
    vlb          T bound                                           yes    L_vlb
    kl           bound                                             yes    L_vlb / T

With a fixed variance only the mean is trained, so the bound must be vlb or kl; in the code of Improved DDPM and ADM
these are LossType.RESCALED_KL and LossType.KL. The bound is the mean over pixels and channels, in bits; T times its
mean over uniformly drawn levels is the sum over the levels. t = 0 means one noise step.

References:
    Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021), eqs. 15 and 16,
    https://arxiv.org/abs/2102.09672
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), eq. 12, the bound with a fixed variance, and eq. 13, the
    decoder, https://arxiv.org/abs/2006.11239
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError, check_choice, one_of
from diffusion_core.diffusion.process import Process, posterior

__all__ = [
    "BOUNDS",
    "CDFS",
    "LEARNED",
    "STEP_VARIANCES",
    "VARIANCES",
    "bound_columns",
    "log_variance",
    "step_log_variances",
]

Array = NDArray[np.float64]

# The variances of a reverse step, and those that a network can be trained for; "fixed" trains without the bound.
LEARNED = ("learned", "learned_range")
STEP_VARIANCES = ("fixed_small", "fixed_large", *LEARNED)
VARIANCES = ("fixed", *STEP_VARIANCES)
BOUNDS = ("hybrid", "vlb", "kl")
CDFS = ("exact", "tanh")


def step_log_variances(alpha: ArrayLike, sigma: ArrayLike) -> tuple[Array, Array]:
    """Return (log v_t, log b_t), the smallest and the largest sensible log variance of the step down from each level.

    Args:
        alpha: of the levels in use, the least noisy first, with shape (n,), n >= 2; the step of entry i leads to entry
            i - 1, and that of entry 0 to clean data.
        sigma: of the same levels.

    Raises:
        DuetError: for fewer than two levels.
    """
    alpha, sigma = np.asarray(alpha, np.float64), np.asarray(sigma, np.float64)
    if len(alpha) < 2:
        raise DuetError(f"process.variance: its bound needs at least 2 timesteps; {len(alpha)} was given")
    _, _, small, large = posterior(alpha, sigma, np.append(1.0, alpha[:-1]), np.append(0.0, sigma[:-1]))
    small[0] = small[1]
    return np.log(small), np.log(large)


def log_variance(variance: str, small: ArrayLike, large: ArrayLike) -> tuple[Array, Array]:
    """Return (a, b) of log variance = a + b F2.

    Args:
        variance: one of `STEP_VARIANCES`.
        small: log v_t of every level, see `step_log_variances`.
        large: log b_t.

    Raises:
        DuetError: for another variance.
    """
    small, large = np.asarray(small, np.float64), np.asarray(large, np.float64)
    if variance == "fixed_small":
        return small, np.zeros_like(small)
    if variance == "fixed_large":
        return np.append(small[0], large[1:]), np.zeros_like(small)
    if variance == "learned":
        return np.zeros_like(small), np.ones_like(small)
    if variance == "learned_range":
        return (large + small) / 2, (large - small) / 2
    raise one_of("process.variance", variance, STEP_VARIANCES)


def bound_columns(
    process: Process,
    variance: str,
    bound: str = "hybrid",
    weight: float = 0.001,
    value_range: tuple[float, float] = (-1.0, 1.0),
    cdf: str = "exact",
) -> Array:
    """Return the columns of the bound at every timestep, with shape (T, 8), in the order of `backend.VARIATIONAL`.

    With ``cdf="tanh"`` there is a ninth column, of ones, which says so.

    Args:
        process: schedule and prediction.
        variance: one of `STEP_VARIANCES`.
        bound: one of `BOUNDS`.
        weight: w, used by hybrid only.
        value_range: the values of black and white in the data.
        cdf: one of `CDFS`.

    Raises:
        DuetError: for an unknown variance, bound or cdf, hybrid with a fixed variance, or a weight that is not
            positive.
    """
    check_choice("process.bound", bound, BOUNDS)
    check_choice("process.bound_cdf", cdf, CDFS)
    if bound == "hybrid" and variance not in LEARNED:
        raise DuetError(
            f"process.bound: hybrid was given with process.variance={variance}, but its bound trains only a learned "
            "variance; use process.bound=vlb or kl, or process.variance=fixed"
        )
    if not 0 < weight < math.inf:
        raise DuetError(f"process.bound_weight: {weight} was given; it must be a positive number")
    schedule = process.schedule
    if not schedule.is_table:
        raise DuetError(
            f"process.variance: {variance} was given, but {schedule.name} is continuous and has no timesteps; use fixed"
        )
    alpha, sigma = schedule.alpha, schedule.sigma
    small, large = step_log_variances(alpha, sigma)
    a, b = log_variance(variance, small, large)
    _, from_x0, _, _ = posterior(alpha, sigma, np.append(1.0, alpha[:-1]), np.append(0.0, sigma[:-1]))
    per_std = np.exp(-0.5 * small)
    black, white = value_range
    half = (white - black) / 510
    open_bin = half if cdf == "exact" else 0.0005 * (white - black)
    hybrid = bound == "hybrid"
    columns = (
        a - small,
        b,
        from_x0 * process.columns(np.arange(schedule.steps)).c_out * per_std,
        np.where(np.arange(schedule.steps) == 0, half * per_std, 0.0),
        black + open_bin,
        white - open_bin,
        0.0 if hybrid else 1.0,
        {"hybrid": weight * schedule.steps, "vlb": schedule.steps, "kl": 1.0}[bound] / math.log(2),
    )
    return np.stack(np.broadcast_arrays(*columns, *([1.0] if cdf == "tanh" else [])), axis=1)
