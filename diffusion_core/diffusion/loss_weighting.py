r"""Loss weightings: the weight of each noise level's error, as a function of t.

A weighting is a function of the noise level alone, w(t) >= 0, and multiplies the squared error of the estimate of x_0,
whatever the network predicts:

    loss = E  w(t) |x0_hat - x_0|^2

A training batch has the error of the target instead. With ``x0_hat = c_skip x_t + c_out F`` (`process`) the two differ
by the factor c_out^2,

    |x0_hat - x_0|^2 = c_out^2 |F - target|^2,      weight(t) = w(t) c_out^2

so that one definition means the same for every prediction. With SNR = alpha^2 / sigma^2, which is also 1 / sigma_edm^2
for noise per unit of signal, and lambda = log SNR:

    name           w(t)                          weight(t) for eps               for v, if alpha^2 + sigma^2 = 1
    simple         1 / c_out^2                   1                               1
    snr            SNR                           1                               SNR / (SNR + 1)
    min_snr        min(SNR, gamma)               min(SNR, gamma) / SNR           min(SNR, gamma) / (SNR + 1)
    p2             SNR / (k + SNR)^gamma         1 / (k + SNR)^gamma
    edm            SNR + 1 / sigma_data^2        1 + 1 / (SNR sigma_data^2)      1, if sigma_data = 1
    velocity       (w / sigma)^2                 (w / alpha)^2                   w^2
    likelihood     w alpha / sigma^3             w / (alpha sigma)               w alpha / sigma
    sigmoid        SNR sigmoid(bias - lambda)    sigmoid(bias - lambda)
    uniform        1                             1 / SNR                         1 / (SNR + 1)
    snr+1          SNR + 1                       1 + 1 / SNR                     1
    truncated-snr  max(SNR, 1)                   max(1, 1 / SNR)                 max(SNR, 1) / (SNR + 1)

In velocity and likelihood, w = alpha sigma' - sigma alpha' is the Wronskian of a continuous schedule (`continuous`).
velocity is the simple weighting of prediction velocity, 1 / t^2 for x_0 on the straight line, and with prediction x0
and a `t_floor` the v-loss of JiT, 1 / max(t, t_floor)^2. likelihood is -SNR'(t)/2, with which the loss is the
variational bound of continuous time up to constants; it is the weight `likelihood` of SiT.

Each is written so that it is finite where SNR is 0: w is 0 there, except for edm, where it is 1 / sigma_data^2, for
velocity, for simple, and for the last three, the weights of OpenAI's consistency models and of progressive
distillation (there constant, v_mse and snr_trunc), where it is 1. The equality holds for the squared distance; another
distance of the target is multiplied by the same weights. All weights are float64; t = 0 means one noise step, and a
continuous schedule has weights at every t of its span.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), eq. 14, https://arxiv.org/abs/2006.11239
    Progressive Distillation for Fast Sampling (Salimans & Ho, 2022), section 4, https://arxiv.org/abs/2202.00512
    Efficient Diffusion Training via Min-SNR Weighting Strategy (Hang et al., 2023), https://arxiv.org/abs/2303.09556
    Perception Prioritized Training of Diffusion Models (Choi et al., 2022), https://arxiv.org/abs/2204.00227
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), table 1,
    https://arxiv.org/abs/2206.00364
    Understanding Diffusion Objectives as the ELBO with Simple Data Augmentation (Kingma & Gao, 2023),
    https://arxiv.org/abs/2303.00848
    Variational Diffusion Models (Kingma et al., 2021), eq. 17, likelihood, https://arxiv.org/abs/2107.00630
    SiT (Ma et al., 2024), with its code (willisma/SiT, transport/transport.py), https://arxiv.org/abs/2401.08740
    Simpler Diffusion (SiD2) (Hoogeboom et al., 2024), https://arxiv.org/abs/2410.19324
    Back to Basics: Let Denoising Generative Models Denoise (Li & He, 2025), velocity of prediction x0,
    https://arxiv.org/abs/2511.13720
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.registry import build
from diffusion_core.diffusion.process import Process, unsupported_reason

__all__ = [
    "WEIGHTINGS",
    "Weighting",
    "edm",
    "likelihood",
    "make_weights",
    "min_snr",
    "p2",
    "sigmoid",
    "simple",
    "snr",
    "snr_plus_one",
    "truncated_snr",
    "uniform",
    "velocity",
]

Array = NDArray[np.float64]
# The weights of the squared error of the target at the timesteps t, with the shape of t.
Weighting = Callable[[ArrayLike], Array]

_CHECKED = 1024


def _snr(process: Process, t: ArrayLike) -> Array:
    alpha, sigma = process.schedule(t)
    return np.square(alpha / sigma)


def _on_target(process: Process, t: ArrayLike, w: Array) -> Array:
    """Return the weights of the target's squared error for weights w of the squared error of x_0."""
    return w * np.square(process.columns(t).c_out)


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise DuetError(f"process.weighting.{name}: {value} was given; it must be a positive number")
    return value


def simple(process: Process, t: ArrayLike) -> Array:
    """Return 1 for the network's own target (Ho et al., eq. 14); the weight of x_0 then depends on the prediction."""
    return np.ones(np.shape(t))


def snr(process: Process, t: ArrayLike) -> Array:
    """Return the weights for w = SNR: the simple weighting of eps, for any prediction (Salimans & Ho, section 4)."""
    return _on_target(process, t, _snr(process, t))


def min_snr(process: Process, t: ArrayLike, gamma: float = 5.0) -> Array:
    """Return the weights for w = min(SNR, gamma) (Hang et al., section 3.4)."""
    return _on_target(process, t, np.minimum(_snr(process, t), _positive("gamma", gamma)))


def p2(process: Process, t: ArrayLike, k: float = 1.0, gamma: float = 1.0) -> Array:
    """Return the weights for w = SNR / (k + SNR)^gamma (Choi et al., section 3.3, for eps); gamma = 0 is `snr`."""
    if not 0 <= gamma < math.inf:
        raise DuetError(f"process.weighting.gamma: {gamma} was given; it must be at least 0")
    ratio = _snr(process, t)
    return _on_target(process, t, ratio / (_positive("k", k) + ratio) ** gamma)


def edm(process: Process, t: ArrayLike, sigma_data: float | None = None) -> Array:
    """Return the weights for w = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, sigma^2 = 1 / SNR (Karras et al.).

    This is 1/c_out^2 of prediction edm, whose target then has weight 1 (table 1). The default `sigma_data` is that of
    the process.
    """
    scale = process.sigma_data if sigma_data is None else sigma_data
    return _on_target(process, t, _snr(process, t) + 1.0 / _positive("sigma_data", scale) ** 2)


def uniform(process: Process, t: ArrayLike) -> Array:
    """Return the weights for w = 1, the error of x_0 itself."""
    return _on_target(process, t, np.ones(np.shape(t)))


def snr_plus_one(process: Process, t: ArrayLike) -> Array:
    """Return the weights for w = SNR + 1: the simple weighting of v, for any prediction (Salimans & Ho, section 4)."""
    return _on_target(process, t, _snr(process, t) + 1.0)


def truncated_snr(process: Process, t: ArrayLike) -> Array:
    """Return the weights for w = max(SNR, 1) (Salimans & Ho, section 4)."""
    return _on_target(process, t, np.maximum(_snr(process, t), 1.0))


def velocity(process: Process, t: ArrayLike) -> Array:
    """Return the weights for the squared error of the velocity dx_t/dt, for any prediction (Li & He).

    Raises:
        DuetError: for a schedule without a velocity: a table.
    """
    if why := unsupported_reason(process.schedule, "velocity"):
        raise DuetError(f"process.weighting: velocity was given; {why.replace('prediction flow', 'weighting simple')}")
    _, sigma = process.schedule(t)
    return _on_target(process, t, np.square(process.schedule.wronskian(t) / sigma))


def likelihood(process: Process, t: ArrayLike) -> Array:
    """Return the weights for -SNR'(t)/2, the bound on the likelihood (Kingma et al., eq. 17; Ma et al.).

    Raises:
        DuetError: for a schedule whose derivatives are unknown, such as a table.
    """
    schedule = process.schedule
    if schedule.is_table or schedule.wronskian_at is None:
        raise DuetError(
            f"process.weighting: likelihood was given; it needs the derivatives of a continuous schedule, which "
            f"{schedule.name} has not; use process.bound=vlb, or a schedule such as vp_sde"
        )
    alpha, sigma = schedule(t)
    return _on_target(process, t, schedule.wronskian(t) * alpha / sigma**3)


def sigmoid(process: Process, t: ArrayLike, bias: float = 0.0, per_log_snr: bool = False) -> Array:
    """Return the weights for w = SNR sigmoid(bias - log SNR) = SNR / (1 + exp(-bias) SNR) (Kingma & Gao; SiD2).

    Args:
        process: schedule and prediction.
        t: the timesteps.
        bias: the log-SNR at which the error of eps has weight 1/2.
        per_log_snr: whether to integrate over log SNR, as the papers do, instead of averaging over timesteps: for
            uniformly drawn t the weights are multiplied by -d log SNR/dt, with the whole time as the unit and central
            differences.
    """
    if not abs(bias) < 100:
        raise DuetError(f"process.weighting.bias: {bias} was given; it must be a log-SNR between -100 and 100")
    schedule, scale = process.schedule, math.exp(-bias)
    if not per_log_snr:
        ratio = _snr(process, t)
        return _on_target(process, t, ratio / (1.0 + scale * ratio))
    # w d(log SNR) = d log(1 + scale SNR) / scale, with finite differences also where log SNR is -inf.
    below, above = np.clip(
        [np.subtract(t, schedule.difference_step), np.add(t, schedule.difference_step)], *schedule.span
    )
    rise = np.log1p(scale * _snr(process, above)) / scale - np.log1p(scale * _snr(process, below)) / scale
    return _on_target(process, t, -schedule.length * (rise / (above - below)))


WEIGHTINGS: Mapping[str, Callable[..., Array]] = {
    "simple": simple,
    "snr": snr,
    "min_snr": min_snr,
    "p2": p2,
    "edm": edm,
    "sigmoid": sigmoid,
    "velocity": velocity,
    "likelihood": likelihood,
    "uniform": uniform,
    "snr+1": snr_plus_one,
    "truncated-snr": truncated_snr,
}


def make_weights(process: Process, name: str = "simple", **options: object) -> Weighting:
    """Return the weights of the squared error of a process's target, as a function of t.

    Args:
        process: schedule and prediction.
        name: one of `WEIGHTINGS`.
        options: of the weighting.

    Raises:
        DuetError: for an unknown name or option, or a value that is out of range.

    Example:
        >>> from diffusion_core.diffusion.schedule import linear
        >>> weights = make_weights(Process(linear(), "eps"), "min_snr", gamma=5.0)
        >>> weights([0, 500, 999]).round(4).tolist()
        [0.0005, 1.0, 1.0]
    """
    t = process.schedule.even_timesteps(_CHECKED)
    infinite = ~np.isfinite(build("process.weighting", WEIGHTINGS, name, options, process, t))
    if np.any(infinite):
        raise DuetError(f"process.weighting: {name} is not finite at t = {t[infinite][0]:g}")
    return lambda t: WEIGHTINGS[name](process, t, **options)
