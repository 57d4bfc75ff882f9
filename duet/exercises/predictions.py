"""Exercises about noisy images and what a network predicts.

The first two arguments are arrays with shape (B, ...); t is one timestep for each of the B, and alpha_bar the table.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from diffusion_core.diffusion import process
from diffusion_core.diffusion.continuous import straight_line
from diffusion_core.diffusion.schedule import from_betas
from duet.exercises.definition import Solution, add, distance, normal, per_image

Array = NDArray[np.float64]
# A formula of two arrays and of alpha and sigma, which broadcast over them.
Formula = Callable[[Array, Array, Array, Array], Array]

BETAS = np.linspace(0.02, 0.35, 10)
ALPHA_BAR = from_betas(BETAS).alphas_cumprod

DDPM = "Ho et al., 2020, https://arxiv.org/abs/2006.11239"


def _cases(first: str, second: str) -> dict:
    def case(t: list[int], *shape: int) -> dict:
        a, b = normal(f"{first}{shape}", len(t), *shape), normal(f"{second}{shape}", len(t), *shape)
        return {first: a, second: b, "t": np.array(t), "alpha_bar": ALPHA_BAR}

    return {
        "images with shape (4, 3, 2, 4) at t = 1, 3, 5, 8": case([1, 3, 5, 8], 3, 2, 4),
        "points with shape (2, 3) at the first and the last timestep, t = 0 and 9": case([0, 9], 3),
    }


def _table(
    formula: Formula,
    level: Callable[[NDArray, Array], Array] = lambda t, alpha_bar: alpha_bar[t],
    alpha: Callable[[Array], Array] = np.sqrt,
    sigma: Callable[[Array], Array] = lambda bar: np.sqrt(1 - bar),
    broadcast: Callable[[Array, Array], Array] = per_image,
) -> Solution:
    """Return the solution of a formula, with another level, other factors or another broadcast."""

    def solution(a: Array, b: Array, t: NDArray, alpha_bar: Array) -> Array:
        bar = level(np.asarray(t), np.asarray(alpha_bar))
        return formula(a, b, broadcast(alpha(bar), a), broadcast(sigma(bar), a))

    return solution


def _first_only(t: NDArray, alpha_bar: Array) -> Array:
    return np.full(t.shape, alpha_bar[t[0]])


def table_mistakes(formula: Formula) -> dict:
    """Return the mistakes of every formula that reads alpha and sigma from the table."""
    return {
        "off_by_one_earlier": (
            "The level of t - 1 is used in place of t (at t = 0, alpha_bar[-1] is the last entry of the table). Here "
            "alpha_bar[0] is the level of t = 0.",
            _table(formula, level=lambda t, bar: bar[t - 1]),
            _table(formula, level=lambda t, bar: np.append(1.0, bar)[t]),
            _table(formula, level=lambda t, bar: bar[np.maximum(t - 1, 0)]),
        ),
        "off_by_one_later": (
            "The level of t + 1 is used in place of t; alpha_bar[0] is the level of t = 0.",
            _table(formula, level=lambda t, bar: bar[t + 1]),
            _table(formula, level=lambda t, bar: bar[np.minimum(t + 1, len(bar) - 1)]),
        ),
        "roots_forgotten": (
            "alpha_bar and 1 - alpha_bar are used where their square roots belong: alpha = sqrt(alpha_bar) and sigma = "
            "sqrt(1 - alpha_bar).",
            _table(formula, alpha=lambda bar: bar, sigma=lambda bar: 1 - bar),
        ),
        "signal_root_forgotten": (
            "alpha_bar is used where its square root belongs: alpha = sqrt(alpha_bar).",
            _table(formula, alpha=lambda bar: bar),
        ),
        "noise_root_forgotten": (
            "1 - alpha_bar, a variance, is used where its square root belongs: sigma = sqrt(1 - alpha_bar).",
            _table(formula, sigma=lambda bar: 1 - bar),
        ),
        "root_before_difference": (
            "1 - sqrt(alpha_bar) is used; sigma = sqrt(1 - alpha_bar), so that alpha^2 + sigma^2 = 1.",
            _table(formula, sigma=lambda bar: 1 - np.sqrt(bar)),
        ),
        "one_t_for_all": (
            "The timestep of the first image is used for all; every image has its own t.",
            _table(formula, level=_first_only),
        ),
        "broadcast_over_last_axis": (
            "The factor of each image, with shape (B,), is spread along the last axis; reshape it to (B, 1, ..., 1), "
            "so that image i gets factor i.",
            _table(formula, broadcast=lambda column, like: column),
        ),
    }


def _at(t: int) -> tuple[float, float]:
    return float(np.sqrt(ALPHA_BAR[t])), float(np.sqrt(1 - ALPHA_BAR[t]))


def add_noise(x0, eps, t, alpha_bar):
    """Return the noisy images x_t, with the shape of x0.

        x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps

    x0 and eps have shape (B, ...) with any number of axes, t has shape (B,), and alpha_bar is the table, with shape
    (T,). alpha_bar[0] is the level of t = 0, which is one noise step.
    """
    alpha_bar, t = np.asarray(alpha_bar), np.asarray(t)
    return process.add_noise(x0, eps, np.sqrt(alpha_bar[t]), np.sqrt(1 - alpha_bar[t]))


_IMAGES, _NOISE, _T = normal("law images", 2, 3, 2), normal("law noise", 2, 3, 2), np.array([2, 7])
_A, _S = (per_image(np.array(column), _IMAGES) for column in zip(_at(2), _at(7), strict=True))
_X = _A * _IMAGES + _S * _NOISE
_V = _A * _NOISE - _S * _IMAGES

add(
    add_noise,
    title="The forward process: noise in one step",
    source=DDPM + ", eq. 4",
    cases=_cases("x0", "eps"),
    laws={
        "Without noise, eps = 0, the result is sqrt(alpha_bar_t) x_0.": lambda f: distance(
            f(_IMAGES, 0 * _NOISE, _T, ALPHA_BAR), _A * _IMAGES
        ),
        "The variance is preserved: the squares of the two factors add up to 1.": lambda f: distance(
            f(np.ones((2, 3)), np.zeros((2, 3)), _T, ALPHA_BAR) ** 2
            + f(np.zeros((2, 3)), np.ones((2, 3)), _T, ALPHA_BAR) ** 2,
            1.0,
        ),
        "Image i has the level of t[i].": lambda f: distance(
            f(_IMAGES, _NOISE, _T, ALPHA_BAR)[1:], f(_IMAGES[1:], _NOISE[1:], _T[1:], ALPHA_BAR)
        ),
    },
    mistakes={
        **table_mistakes(lambda x0, eps, a, s: a * x0 + s * eps),
        "factors_exchanged": (
            "The factors are exchanged: sqrt(alpha_bar) belongs to the image and sqrt(1 - alpha_bar) to the noise.",
            _table(lambda x0, eps, a, s: s * x0 + a * eps),
        ),
        "noise_subtracted": ("The noise is subtracted; it is added.", _table(lambda x0, eps, a, s: a * x0 - s * eps)),
        "signal_not_scaled": (
            "The image is not multiplied by sqrt(alpha_bar), so the variance grows; that is another process (VE).",
            _table(lambda x0, eps, a, s: x0 + s * eps),
        ),
    },
)


def x0_from_eps(x, eps, t, alpha_bar):
    """Return the estimate of the clean images from the predicted noise, with the shape of x.

        x_0 = (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t)

    x and eps have shape (B, ...), t has shape (B,), and alpha_bar is the table, with shape (T,).
    """
    alpha_bar, t = np.asarray(alpha_bar), np.asarray(t)
    return process.x0_from_eps(x, eps, np.sqrt(alpha_bar[t]), np.sqrt(1 - alpha_bar[t]))


add(
    x0_from_eps,
    title="From predicted noise to the clean image",
    source=DDPM + ", eq. 4, solved for x_0",
    cases=_cases("x", "eps"),
    laws={
        "From x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps and the true eps it returns x_0.": lambda f: distance(
            f(_X, _NOISE, _T, ALPHA_BAR), _IMAGES
        ),
        "If no noise is predicted, eps = 0, the result is x_t / sqrt(alpha_bar_t).": lambda f: distance(
            f(_X, 0 * _NOISE, _T, ALPHA_BAR), _X / _A
        ),
    },
    mistakes={
        **table_mistakes(lambda x, eps, a, s: (x - s * eps) / a),
        "not_divided": (
            "The noise is removed, but the result is not divided by sqrt(alpha_bar).",
            _table(lambda x, eps, a, s: x - s * eps),
        ),
        "clipped": (
            "The result is clipped to [-1, 1]; the exercise asks for the plain estimate.",
            _table(lambda x, eps, a, s: np.clip((x - s * eps) / a, -1, 1)),
        ),
        "multiplied": (
            "The result is multiplied by sqrt(alpha_bar); it must be divided by it.",
            _table(lambda x, eps, a, s: (x - s * eps) * a),
        ),
        "noise_added": ("The noise is added; it must be subtracted.", _table(lambda x, eps, a, s: (x + s * eps) / a)),
        "parenthesis_forgotten": (
            "Only the noise, not the whole difference, is divided by sqrt(alpha_bar): a parenthesis is missing.",
            _table(lambda x, eps, a, s: x - s * eps / a),
        ),
        "noise_divided_too_early": (
            "Only x_t is divided by sqrt(alpha_bar); the noise must be too.",
            _table(lambda x, eps, a, s: x / a - s * eps),
        ),
        "factors_exchanged": (
            "sqrt(alpha_bar) and sqrt(1 - alpha_bar) are exchanged.",
            _table(lambda x, eps, a, s: (x - a * eps) / s),
        ),
    },
)


def v_target(x0, eps, t, alpha_bar):
    """Return the velocity v, the training target of v-prediction, with the shape of x0.

        v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0

    x0 and eps have shape (B, ...), t has shape (B,), and alpha_bar is the table, with shape (T,).
    """
    alpha_bar, t = np.asarray(alpha_bar), np.asarray(t)
    return process.v_from_x0_eps(x0, eps, np.sqrt(alpha_bar[t]), np.sqrt(1 - alpha_bar[t]))


V = "Salimans & Ho, 2022, appendix D, https://arxiv.org/abs/2202.00512"

add(
    v_target,
    title="The training target of v-prediction",
    source=V,
    cases=_cases("x0", "eps"),
    laws={
        "sqrt(alpha_bar) x_t - sqrt(1 - alpha_bar) v is x_0.": lambda f: distance(
            _A * _X - _S * f(_IMAGES, _NOISE, _T, ALPHA_BAR), _IMAGES
        ),
        "sqrt(1 - alpha_bar) x_t + sqrt(alpha_bar) v is eps.": lambda f: distance(
            _S * _X + _A * f(_IMAGES, _NOISE, _T, ALPHA_BAR), _NOISE
        ),
    },
    mistakes={
        **table_mistakes(lambda x0, eps, a, s: a * eps - s * x0),
        "sign": (
            "The sign is reversed: v = alpha eps - sigma x_0, which is eps where there is no noise.",
            _table(lambda x0, eps, a, s: s * x0 - a * eps),
        ),
        "added": ("The two terms are added; x_0 is subtracted.", _table(lambda x0, eps, a, s: a * eps + s * x0)),
        "factors_exchanged": (
            "The factors are exchanged: sqrt(alpha_bar) belongs to the noise and sqrt(1 - alpha_bar) to the image.",
            _table(lambda x0, eps, a, s: s * eps - a * x0),
        ),
        "noise_and_image_exchanged": (
            "x_0 and eps are exchanged: v = alpha eps - sigma x_0.",
            _table(lambda x0, eps, a, s: a * x0 - s * eps),
        ),
        "x_t_returned": (
            "The result is the noisy image x_t, not the velocity.",
            _table(lambda x0, eps, a, s: a * x0 + s * eps),
        ),
        "flow_for_v": (
            "The result is eps - x_0, the velocity of flow matching; v has factors.",
            _table(lambda x0, eps, a, s: eps - x0),
        ),
    },
)


def eps_from_v(x, v, t, alpha_bar):
    """Return the noise from a predicted velocity v, with the shape of x.

        eps = sqrt(1 - alpha_bar_t) x_t + sqrt(alpha_bar_t) v

    x and v have shape (B, ...), t has shape (B,), and alpha_bar is the table, with shape (T,).
    """
    alpha_bar, t = np.asarray(alpha_bar), np.asarray(t)
    alpha, sigma = np.sqrt(alpha_bar[t]), np.sqrt(1 - alpha_bar[t])
    return process.eps_from_x0(x, process.x0_from_v(x, v, alpha, sigma), alpha, sigma)


add(
    eps_from_v,
    title="From a predicted velocity to the noise",
    source=V,
    cases=_cases("x", "v"),
    laws={
        "From x_t and v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 it returns eps.": lambda f: distance(
            f(_X, _V, _T, ALPHA_BAR), _NOISE
        ),
    },
    mistakes={
        **table_mistakes(lambda x, v, a, s: s * x + a * v),
        "x0_returned": (
            "The result is x_0 = alpha x_t - sigma v; the exercise asks for eps.",
            _table(lambda x, v, a, s: a * x - s * v),
        ),
        "factors_exchanged": (
            "The factors are exchanged: sqrt(1 - alpha_bar) belongs to x_t and sqrt(alpha_bar) to v.",
            _table(lambda x, v, a, s: a * x + s * v),
        ),
        "subtracted": ("v is subtracted; it is added.", _table(lambda x, v, a, s: s * x - a * v)),
    },
)


def flow_target(x0, eps, t):
    """Return the noisy images and the training target of flow matching: two arrays with the shape of x0.

        x_t    = (1 - t) x_0 + t eps
        target = dx_t/dt = eps - x_0

    x0 and eps have shape (B, ...), and t has shape (B,), real numbers in [0, 1]; t = 0 is clean data.
    """
    alpha, sigma = straight_line(t)
    return process.add_noise(x0, eps, alpha, sigma), process.flow_from_x0_eps(x0, eps)


def _flow(x: Callable[[Array, Array, Array], Array], target: Callable[[Array, Array, Array], Array]) -> Solution:
    return lambda x0, eps, t: (x(x0, eps, per_image(t, x0)), target(x0, eps, per_image(t, x0)))


def _line(x0: Array, eps: Array, t: Array) -> Array:
    return (1 - t) * x0 + t * eps


def _velocity(x0: Array, eps: Array, t: Array) -> Array:
    return eps - x0


_TIMES = np.array([0.1, 0.4, 0.6, 0.9])

add(
    flow_target,
    title="The noisy image and the target of flow matching",
    source="Lipman et al., 2022, https://arxiv.org/abs/2210.02747; time from data to noise",
    cases={
        "images with shape (4, 3, 2, 4)": {
            "x0": normal("flow images", 4, 3, 2, 4),
            "eps": normal("flow noise", 4, 3, 2, 4),
            "t": _TIMES,
        },
        "points with shape (2, 3), at t = 0 and t = 1": {
            "x0": normal("flow points", 2, 3),
            "eps": normal("flow point noise", 2, 3),
            "t": np.array([0.0, 1.0]),
        },
    },
    laws={
        "At t = 0 the noisy image is x_0, and at t = 1 it is eps.": lambda f: distance(
            f(_IMAGES, _NOISE, np.array([0.0, 1.0]))[0], np.stack([_IMAGES[0], _NOISE[1]])
        ),
        "The target is the derivative of x_t by t.": lambda f: distance(
            (f(_IMAGES, _NOISE, np.array([0.7, 0.7]))[0] - f(_IMAGES, _NOISE, np.array([0.2, 0.2]))[0]) / 0.5,
            f(_IMAGES, _NOISE, np.array([0.2, 0.2]))[1],
        ),
    },
    mistakes={
        "time_reversed": (
            "Time runs from noise to data, as in some papers; here t = 0 is clean data and t = 1 is noise.",
            _flow(lambda x0, eps, t: t * x0 + (1 - t) * eps, lambda x0, eps, t: x0 - eps),
            _flow(lambda x0, eps, t: t * x0 + (1 - t) * eps, _velocity),
        ),
        "target_sign": (
            "The sign of the target is reversed: x_t moves from x_0 to eps as t grows, so dx_t/dt = eps - x_0.",
            _flow(_line, lambda x0, eps, t: x0 - eps),
        ),
        "target_from_x_t": (
            "The target is eps - x_t; it is eps - x_0, the same at every t.",
            _flow(_line, lambda x0, eps, t: eps - _line(x0, eps, t)),
        ),
        "target_eps": (
            "The target is eps, that of DDPM; flow matching predicts eps - x_0.",
            _flow(_line, lambda x0, eps, t: eps),
        ),
        "target_times_t": (
            "The target is multiplied by t: it is the way x_t - x_0, not the velocity.",
            _flow(_line, lambda x0, eps, t: t * (eps - x0)),
        ),
        "square_roots": (
            "The factors are square roots, as in DDPM; on the straight line they are 1 - t and t.",
            _flow(lambda x0, eps, t: np.sqrt(1 - t) * x0 + np.sqrt(t) * eps, _velocity),
        ),
        "broadcast_over_last_axis": (
            "t, with shape (B,), is spread along the last axis; reshape it to (B, 1, ..., 1), so that image i has "
            "t[i].",
            lambda x0, eps, t: (_line(x0, eps, t), _velocity(x0, eps, t)),
        ),
    },
)
