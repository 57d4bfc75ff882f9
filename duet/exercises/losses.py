"""Exercises about training: the simple loss, the min-SNR weight, and a term of the variational bound."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from diffusion_core.diffusion.loss_weighting import make_weights
from diffusion_core.diffusion.process import Process, add_noise
from diffusion_core.diffusion.schedule import Schedule
from duet.exercises.definition import Network, Solution, add, distance, normal, per_image
from duet.exercises.predictions import ALPHA_BAR

Array = NDArray[np.float64]

_PREDICT = Network(lambda x, t: 0.7 * x - 0.05 * t * x + 0.1)
_IMAGES, _NOISE, _T = normal("loss images", 4, 3, 2, 4), normal("loss noise", 4, 3, 2, 4), np.array([1, 3, 5, 8])


def training_loss(predict, x0, eps, t, alpha_bar):
    """Return the simple training loss of DDPM for one batch, a single number.

        x_t  = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps
        loss = mean of (predict(x_t, t) - eps)^2 over the batch and all other axes

    predict is the network: a function of x_t and t that returns its estimate of eps. x0 and eps have shape (B, ...), t
    has shape (B,), and alpha_bar is the table, with shape (T,).
    """
    alpha_bar, t = np.asarray(alpha_bar), np.asarray(t)
    x = add_noise(x0, eps, np.sqrt(alpha_bar[t]), np.sqrt(1 - alpha_bar[t]))
    return np.mean(np.square(predict(x, t) - eps))


def _loss(
    reduce: Callable[[Array], Array] = np.mean,
    distance: Callable[[Array], Array] = np.square,
    target: Callable[..., Array] = lambda x0, eps, x, a, s: eps,
    level: Callable[[NDArray], NDArray] = lambda t: t,
    passed_t: Callable[[NDArray], NDArray] = lambda t: t,
    noisy: Callable[..., Array] = lambda x0, eps, a, s: a * x0 + s * eps,
    factors: Callable[[Array], tuple[Array, Array]] = lambda bar: (np.sqrt(bar), np.sqrt(1 - bar)),
) -> Solution:
    """Return a loss with one thing changed."""

    def solution(predict, x0, eps, t, alpha_bar):
        a, s = (per_image(factor, x0) for factor in factors(np.asarray(alpha_bar)[level(t)]))
        x = noisy(x0, eps, a, s)
        return reduce(distance(predict(x, passed_t(t)) - target(x0, eps, x, a, s)))

    return solution


def _per_image(reduce: Callable[..., Array]) -> Callable[[Array], Array]:
    return lambda error: reduce(error, axis=tuple(range(1, error.ndim)))


def _broadcast_last(predict, x0, eps, t, alpha_bar):
    bar = np.asarray(alpha_bar)[t]
    return np.mean(np.square(predict(np.sqrt(bar) * x0 + np.sqrt(1 - bar) * eps, t) - eps))


_BATCH = {"predict": _PREDICT, "x0": _IMAGES, "eps": _NOISE, "t": _T, "alpha_bar": ALPHA_BAR}
_POINTS = {"x0": normal("loss points", 2, 3), "eps": normal("loss point noise", 2, 3), "t": np.array([0, 9])}

add(
    training_loss,
    title="The training loss of DDPM",
    source="Ho et al., 2020, eq. 14, https://arxiv.org/abs/2006.11239",
    cases={
        "images with shape (4, 3, 2, 4) at t = 1, 3, 5, 8": _BATCH,
        "points with shape (2, 3) at the first and the last timestep, t = 0 and 9": {
            "predict": _PREDICT,
            **_POINTS,
            "alpha_bar": ALPHA_BAR,
        },
    },
    laws={
        "A network that returns the true noise has the loss 0.": lambda f: abs(
            float(f(Network(lambda x, t: x / np.sqrt(1 - ALPHA_BAR[5])), 0 * _IMAGES, _NOISE, 0 * _T + 5, ALPHA_BAR))
        ),
        "A network that returns 0 has the loss mean(eps^2).": lambda f: distance(
            f(Network(lambda x, t: 0 * x), _IMAGES, _NOISE, _T, ALPHA_BAR), np.mean(_NOISE**2)
        ),
        "A batch that is repeated has the same loss.": lambda f: distance(
            f(_PREDICT, *(np.concatenate([a, a]) for a in (_IMAGES, _NOISE, _T)), ALPHA_BAR),
            f(_PREDICT, _IMAGES, _NOISE, _T, ALPHA_BAR),
        ),
    },
    mistakes={
        "sum_for_mean": ("The squared errors are added up; their mean is needed.", _loss(np.sum)),
        "sum_per_image": (
            "The squared errors are added up over each image and averaged over the batch; the mean is over all axes.",
            _loss(lambda error: np.mean(_per_image(np.sum)(error))),
        ),
        "sum_over_batch": (
            "The losses of the images are added up; their mean over the batch is needed.",
            _loss(lambda error: np.sum(_per_image(np.mean)(error))),
        ),
        "loss_per_image": (
            "The result has one loss for each image; their mean is needed, a single number.",
            _loss(_per_image(np.mean)),
        ),
        "not_averaged": (
            "The result has the squared error of every number; their mean is needed, a single number.",
            _loss(lambda e: e),
        ),
        "root_of_mean": (
            "The root of the mean is taken; the loss is the mean itself.",
            _loss(lambda e: np.sqrt(np.mean(e))),
        ),
        "absolute_error": ("The absolute error is averaged; it must be the squared error.", _loss(distance=np.abs)),
        "half": ("The loss has a factor 1/2, which DDPM's has not.", _loss(lambda error: np.mean(error) / 2)),
        "target_x0": (
            "The network's output is compared with x_0; it must be compared with eps, which it predicts.",
            _loss(target=lambda x0, eps, x, a, s: x0),
        ),
        "target_x_t": (
            "The network's output is compared with x_t; it must be compared with eps.",
            _loss(target=lambda x0, eps, x, a, s: x),
        ),
        "target_v": (
            "The network's output is compared with v; it must be compared with eps.",
            _loss(target=lambda x0, eps, x, a, s: a * eps - s * x0),
        ),
        "clean_input": (
            "The network gets the clean image x_0; it must get the noisy image x_t.",
            _loss(noisy=lambda x0, eps, a, s: x0),
        ),
        "roots_forgotten": (
            "x_t has alpha_bar and 1 - alpha_bar; it must have their square roots.",
            _loss(factors=lambda bar: (bar, 1 - bar)),
        ),
        "noise_root_forgotten": (
            "x_t has the variance 1 - alpha_bar; it must have its square root.",
            _loss(factors=lambda bar: (np.sqrt(bar), 1 - bar)),
        ),
        "factors_exchanged": (
            "The factors of x_0 and eps are exchanged in x_t.",
            _loss(factors=lambda bar: (np.sqrt(1 - bar), np.sqrt(bar))),
        ),
        "one_t_for_all": (
            "The timestep of the first image is used for all; every image has its own t.",
            _loss(level=lambda t: np.full_like(t, t[0]), passed_t=lambda t: np.full_like(t, t[0])),
            _loss(level=lambda t: np.full_like(t, t[0])),
        ),
        "off_by_one_in_the_network": (
            "The network gets t + 1 or t - 1; it must get the t whose noise the image has.",
            _loss(passed_t=lambda t: t + 1),
            _loss(passed_t=lambda t: t - 1),
        ),
        "scaled_t_in_the_network": (
            "The network gets t divided by the number of timesteps; it must get t itself.",
            _loss(passed_t=lambda t: t / 10),
            _loss(passed_t=lambda t: t / 9),
        ),
        "off_by_one_earlier": (
            "The level of t - 1 is used in place of t; alpha_bar[0] is the level of t = 0.",
            _loss(level=lambda t: t - 1),
            _loss(level=lambda t: np.maximum(t - 1, 0)),
        ),
        "off_by_one_later": (
            "The level of t + 1 is used in place of t; alpha_bar[0] is the level of t = 0.",
            _loss(level=lambda t: t + 1),
            _loss(level=lambda t: np.minimum(t + 1, 9)),
        ),
        "broadcast_over_last_axis": (
            "The factor of each image, with shape (B,), is spread along the last axis; reshape it to (B, 1, ..., 1).",
            _broadcast_last,
        ),
    },
)


def min_snr_weight(t, alpha_bar, gamma):
    """Return the min-SNR weights of the squared error of predicted noise, one for each t, with shape (B,).

        SNR_t  = alpha_bar_t / (1 - alpha_bar_t)
        weight = min(SNR_t, gamma) / SNR_t

    t has shape (B,), alpha_bar is the table, with shape (T,), and gamma is a number.
    """
    alpha_bar = np.asarray(alpha_bar)
    process = Process(Schedule("exercise", np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)), "eps")
    return make_weights(process, "min_snr", gamma=gamma)(np.asarray(t))


def _weight(
    of: Callable[[Array, float], Array],
    snr: Callable[[Array], Array] = lambda bar: bar / (1 - bar),
    level: Callable[[NDArray, Array], Array] = lambda t, bar: bar[t],
) -> Solution:
    return lambda t, alpha_bar, gamma: of(snr(level(t, alpha_bar)), gamma)


def _min_snr(snr: Array, gamma: float) -> Array:
    return np.minimum(snr, gamma) / snr


add(
    min_snr_weight,
    title="The min-SNR weight of the loss, for predicted noise",
    source="Hang et al., 2023, section 3.4, https://arxiv.org/abs/2303.09556",
    cases={
        "gamma = 5, t = 1, 2, 5, 8": {"t": np.array([1, 2, 5, 8]), "alpha_bar": ALPHA_BAR, "gamma": 5.0},
        "gamma = 0.5, t = 0, 3, 7, 9": {"t": np.array([0, 3, 7, 9]), "alpha_bar": ALPHA_BAR, "gamma": 0.5},
    },
    laws={
        "Where the SNR is at most gamma the weight is 1.": lambda f: distance(f(np.array([8]), ALPHA_BAR, 5.0), 1.0),
        "No weight exceeds 1.": lambda f: float(np.maximum(f(np.arange(10), ALPHA_BAR, 2.0) - 1, 0).max()),
        "Weight times SNR is at most gamma.": lambda f: float(
            np.maximum(f(np.arange(10), ALPHA_BAR, 2.0) * ALPHA_BAR / (1 - ALPHA_BAR) - 2, 0).max()
        ),
    },
    mistakes={
        "weight_of_x0": (
            "The result is min(SNR, gamma), the weight for predicted x_0; for predicted noise it is divided by the "
            "SNR.",
            _weight(lambda snr, gamma: np.minimum(snr, gamma)),
        ),
        "weight_of_v": (
            "The weight is divided by SNR + 1, as for predicted v; for predicted noise it is divided by the SNR.",
            _weight(lambda snr, gamma: np.minimum(snr, gamma) / (snr + 1)),
        ),
        "maximum_for_minimum": (
            "The maximum is taken; it must be the minimum.",
            _weight(lambda snr, g: np.maximum(snr, g) / snr),
        ),
        "not_limited": (
            "The SNR is not compared with gamma: gamma / SNR may exceed 1.",
            _weight(lambda snr, gamma: gamma / snr),
        ),
        "limited_at_one": (
            "The weight is min(SNR, gamma) / gamma; it is divided by the SNR.",
            _weight(lambda snr, gamma: np.minimum(snr, gamma) / gamma),
        ),
        "root_of_snr": (
            "The SNR is the ratio of the factors, sqrt(alpha_bar / (1 - alpha_bar)); it is the ratio of their squares.",
            _weight(_min_snr, snr=lambda bar: np.sqrt(bar / (1 - bar))),
        ),
        "snr_squared": (
            "The SNR is squared: alpha_bar is the square of alpha already.",
            _weight(_min_snr, snr=lambda bar: (bar / (1 - bar)) ** 2),
        ),
        "snr_inverted": (
            "The SNR is upside down: the signal, alpha_bar, is its numerator.",
            _weight(_min_snr, snr=lambda bar: (1 - bar) / bar),
        ),
        "inverted": (
            "The fraction is upside down: it is min(SNR, gamma) / SNR.",
            _weight(lambda snr, g: snr / np.minimum(snr, g)),
        ),
        "off_by_one_earlier": (
            "The level of t - 1 is used in place of t; alpha_bar[0] is the level of t = 0.",
            _weight(_min_snr, level=lambda t, bar: bar[t - 1]),
            _weight(_min_snr, level=lambda t, bar: bar[np.maximum(t - 1, 0)]),
        ),
        "off_by_one_later": (
            "The level of t + 1 is used in place of t; alpha_bar[0] is the level of t = 0.",
            _weight(_min_snr, level=lambda t, bar: bar[t + 1]),
            _weight(_min_snr, level=lambda t, bar: bar[np.minimum(t + 1, 9)]),
        ),
    },
)


def kl_bits(mean, log_variance, mean_hat, log_variance_hat):
    """Return the KL divergence of two diagonal normal distributions for each image, in bits, with shape (B,).

        KL(q | p) = (log v_p - log v_q - 1 + v_q / v_p + (m_q - m_p)^2 / v_p) / 2      in nats, for each number
        result    = mean over all axes but the first, divided by log(2)

    q has mean and log_variance, the posterior; p has mean_hat and log_variance_hat, the model. All four are arrays with
    shape (B, ...), and the variances are v = exp(log variance). This is L_{t-1}, a term of the variational bound.
    """
    # In units of the standard deviation of q, the model is N(e, exp(u)); see `diffusion.variational`.
    u, e = log_variance_hat - log_variance, (mean_hat - mean) * np.exp(-0.5 * log_variance)
    nats = 0.5 * (u + np.exp(-u) - 1.0 + np.exp(-u) * e**2)
    return nats.reshape(len(nats), -1).mean(axis=1) / np.log(2.0)


_LOG_2 = np.log(2.0)


def _kl(terms: Callable[..., Array] | None = None, reduce=lambda a: a.mean(axis=1), unit=_LOG_2) -> Solution:
    def solution(m, lv, m2, lv2):
        value = terms(m, lv, m2, lv2) if terms else (lv2 - lv - 1 + np.exp(lv - lv2) + (m - m2) ** 2 * np.exp(-lv2)) / 2
        return reduce(value.reshape(len(value), -1)) / unit

    return solution


_KL = {
    "mean": normal("kl mean", 2, 3, 2), "log_variance": 0.5 * normal("kl log variance", 2, 3, 2) - 1,
    "mean_hat": normal("kl mean hat", 2, 3, 2), "log_variance_hat": 0.5 * normal("kl log variance hat", 2, 3, 2) - 0.5,
}  # fmt: skip

add(
    kl_bits,
    title="A term of the variational bound: the KL divergence in bits",
    source="Ho et al., 2020, eq. 5, https://arxiv.org/abs/2006.11239; Nichol & Dhariwal, 2021, bits per dimension",
    cases={
        "shape (2, 3, 2)": _KL,
        "shape (3, 4), equal variances": {
            "mean": normal("kl a", 3, 4),
            "log_variance": np.full((3, 4), -2.0),
            "mean_hat": normal("kl b", 3, 4),
            "log_variance_hat": np.full((3, 4), -2.0),
        },
    },
    laws={
        "The divergence of a distribution from itself is 0.": lambda f: float(
            np.abs(f(_KL["mean"], _KL["log_variance"], _KL["mean"], _KL["log_variance"])).max()
        ),
        "It is not negative.": lambda f: float(np.maximum(-f(*_KL.values()), 0).max()),
        "One bit: means that differ by sqrt(2 log 2) at variance 1.": lambda f: distance(
            f(np.zeros((1, 3)), np.zeros((1, 3)), np.full((1, 3), np.sqrt(2 * np.log(2))), np.zeros((1, 3))), 1.0
        ),
    },
    mistakes={
        "nats": ("The result is in nats; bits are nats divided by log(2).", _kl(unit=1.0)),
        "multiplied_by_log_2": (
            "The nats are multiplied by log(2); they must be divided by it.",
            _kl(unit=1 / np.log(2)),
        ),
        "sum_for_mean": (
            "The numbers of an image are added up; their mean is needed.",
            _kl(reduce=lambda a: a.sum(axis=1)),
        ),
        "mean_over_batch": (
            "The mean is over the batch too; one number for each image is needed.",
            _kl(reduce=lambda a: a.mean()),
        ),
        "distributions_exchanged": (
            "The two distributions are exchanged: the KL divergence is not symmetric. q, the posterior, comes first.",
            lambda m, lv, m2, lv2: _kl()(m2, lv2, m, lv),
        ),
        "minus_one_forgotten": (
            "The term -1 is missing, so the divergence of a distribution from itself would not be 0.",
            _kl(lambda m, lv, m2, lv2: (lv2 - lv + np.exp(lv - lv2) + (m - m2) ** 2 * np.exp(-lv2)) / 2),
        ),
        "half_forgotten": (
            "The factor 1/2 is missing.",
            _kl(lambda m, lv, m2, lv2: lv2 - lv - 1 + np.exp(lv - lv2) + (m - m2) ** 2 * np.exp(-lv2)),
        ),
        "logs_exchanged": (
            "The difference of the log variances has the wrong sign: it is log v_p - log v_q.",
            _kl(lambda m, lv, m2, lv2: (lv - lv2 - 1 + np.exp(lv - lv2) + (m - m2) ** 2 * np.exp(-lv2)) / 2),
        ),
        "fraction_inverted": (
            "The fraction of the variances is upside down: it is v_q / v_p.",
            _kl(lambda m, lv, m2, lv2: (lv2 - lv - 1 + np.exp(lv2 - lv) + (m - m2) ** 2 * np.exp(-lv2)) / 2),
        ),
        "divided_by_v_q": (
            "The squared difference of the means is divided by v_q; it must be v_p, the model's.",
            _kl(lambda m, lv, m2, lv2: (lv2 - lv - 1 + np.exp(lv - lv2) + (m - m2) ** 2 * np.exp(-lv)) / 2),
        ),
        "not_squared": (
            "The difference of the means is not squared.",
            _kl(lambda m, lv, m2, lv2: (lv2 - lv - 1 + np.exp(lv - lv2) + np.abs(m - m2) * np.exp(-lv2)) / 2),
            _kl(lambda m, lv, m2, lv2: (lv2 - lv - 1 + np.exp(lv - lv2) + (m - m2) * np.exp(-lv2)) / 2),
        ),
        "log_deviation": (
            "The log variances are read as logarithms of standard deviations; v = exp(log variance).",
            lambda m, lv, m2, lv2: _kl()(m, 2 * lv, m2, 2 * lv2),
        ),
        "logs_forgotten": (
            "The difference of the log variances is missing.",
            _kl(lambda m, lv, m2, lv2: (np.exp(lv - lv2) - 1 + (m - m2) ** 2 * np.exp(-lv2)) / 2),
        ),
    },
)
