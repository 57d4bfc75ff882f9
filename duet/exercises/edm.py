"""Exercises about EDM (Karras et al., 2022): the columns of its preconditioning, and the noise levels of its "
"samplers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import Schedule
from diffusion_core.sampling.grid import karras
from duet.exercises.definition import Solution, add, distance

Array = NDArray[np.float64]


def edm_columns(sigma, sigma_data):
    """Return the columns of EDM, c_skip, c_out, c_in and c_noise, each with the shape of sigma.

        c_skip  = sigma_data^2 / (sigma^2 + sigma_data^2)
        c_out   = sigma sigma_data / sqrt(sigma^2 + sigma_data^2)
        c_in    = 1 / sqrt(sigma^2 + sigma_data^2)
        c_noise = log(sigma) / 4

    so that D(x) = c_skip x + c_out F(c_in x, c_noise) estimates x_0. sigma has shape (B,); sigma_data is a number.
    """
    sigma = np.asarray(sigma, np.float64)
    order = np.argsort(sigma)
    process = Process(Schedule("exercise", np.ones(len(sigma)), sigma[order]), "edm", sigma_data=sigma_data)
    columns = process.columns(np.argsort(order))
    return columns.c_skip, columns.c_out, columns.c_in, columns.c_noise


def _columns(**changed: Callable[[Array, float], Array]) -> Solution:
    right = {
        "skip": lambda s, m: m**2 / (s**2 + m**2),
        "out": lambda s, m: s * m / np.sqrt(s**2 + m**2),
        "inside": lambda s, m: 1 / np.sqrt(s**2 + m**2),
        "noise": lambda s, m: np.log(s) / 4,
    }
    return lambda sigma, sigma_data: tuple(formula(sigma, sigma_data) for formula in (right | changed).values())


_SIGMAS = np.array([0.02, 0.3, 1.7, 12.0])

add(
    edm_columns,
    title="The columns of EDM: preconditioning",
    source="Karras et al., 2022, table 1, https://arxiv.org/abs/2206.00364",
    cases={
        "sigma_data = 0.5": {"sigma": _SIGMAS, "sigma_data": 0.5},
        "sigma_data = 1.3": {"sigma": _SIGMAS[1:], "sigma_data": 1.3},
    },
    laws={
        "The input of the network has variance 1: c_in^2 (sigma^2 + sigma_data^2) = 1.": lambda f: distance(
            f(_SIGMAS, 0.5)[2] ** 2 * (_SIGMAS**2 + 0.25), 1.0
        ),
        "The target has variance 1: c_out^2 = (1 - c_skip)^2 sigma_data^2 + c_skip^2 sigma^2.": lambda f: distance(
            f(_SIGMAS, 0.5)[1] ** 2, (1 - f(_SIGMAS, 0.5)[0]) ** 2 * 0.25 + f(_SIGMAS, 0.5)[0] ** 2 * _SIGMAS**2
        ),
        "Where sigma = sigma_data, c_skip is 1/2.": lambda f: distance(f(np.array([0.7]), 0.7)[0], 0.5),
    },
    mistakes={
        "sigmas_exchanged": (
            "sigma and sigma_data are exchanged in c_skip: it must be 1 where there is no noise.",
            _columns(skip=lambda s, m: s**2 / (s**2 + m**2)),
        ),
        "c_skip_not_squared": (
            "c_skip has sigma_data in its numerator; it must be sigma_data^2.",
            _columns(skip=lambda s, m: m / (s**2 + m**2)),
        ),
        "sigmas_not_squared": (
            "The denominators have sigma + sigma_data; they must have sigma^2 + sigma_data^2.",
            _columns(
                skip=lambda s, m: m**2 / (s + m),
                out=lambda s, m: s * m / np.sqrt(s + m),
                inside=lambda s, m: 1 / np.sqrt(s + m),
            ),
        ),
        "c_out_root_forgotten": (
            "c_out is divided by sigma^2 + sigma_data^2; it must be the square root of that.",
            _columns(out=lambda s, m: s * m / (s**2 + m**2)),
        ),
        "c_in_root_forgotten": (
            "c_in is 1 / (sigma^2 + sigma_data^2); it must be 1 over the square root of that.",
            _columns(inside=lambda s, m: 1 / (s**2 + m**2)),
        ),
        "roots_forgotten": (
            "c_out and c_in are divided by sigma^2 + sigma_data^2; both need its square root.",
            _columns(out=lambda s, m: s * m / (s**2 + m**2), inside=lambda s, m: 1 / (s**2 + m**2)),
        ),
        "c_out_inverted": (
            "The square root of c_out stands in the numerator; it is divided by it.",
            _columns(out=lambda s, m: s * m * np.sqrt(s**2 + m**2)),
        ),
        "c_out_sign": (
            "c_out has the wrong sign; it is positive, F points from noise to data.",
            _columns(out=lambda s, m: -s * m / np.sqrt(s**2 + m**2)),
        ),
        "c_noise_quarter_forgotten": (
            "c_noise is log(sigma); it must be a quarter of that.",
            _columns(noise=lambda s, m: np.log(s)),
        ),
        "c_noise_of_the_other_models": (
            "c_noise is log(sigma/2), that of VE models; EDM's is log(sigma)/4.",
            _columns(noise=lambda s, m: np.log(s / 2)),
        ),
        "c_noise_sigma": ("c_noise is sigma itself; it must be log(sigma)/4.", _columns(noise=lambda s, m: s)),
        "log_10": (
            "c_noise has the logarithm of base 10; it must be the natural one.",
            _columns(noise=lambda s, m: np.log10(s) / 4),
        ),
    },
)


def karras_sigmas(n, sigma_min, sigma_max, rho):
    """Return the noise levels of n steps and their end, falling, with shape (n + 1,).

        sigma_i = (sigma_max^(1/rho) + i/(n-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho,      i = 0 .. n-1
        sigma_n = 0

    n is a whole number, at least 2; rho and sigma_max > sigma_min > 0 are numbers.
    """
    return np.append(karras(n, sigma_min, sigma_max, rho), 0.0)


def _grid(n: int, low: float, high: float, rho: float, last: float | None = 0.0, divisor: int = -1) -> Array:
    levels = (high ** (1 / rho) + np.arange(n) / (n + divisor) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    return levels if last is None else np.append(levels, last)


add(
    karras_sigmas,
    title="The noise levels of EDM's samplers",
    source="Karras et al., 2022, eq. 5, https://arxiv.org/abs/2206.00364",
    cases={
        "8 steps from 80 to 0.002, rho = 7": {"n": 8, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0},
        "5 steps from 10 to 0.1, rho = 3": {"n": 5, "sigma_min": 0.1, "sigma_max": 10.0, "rho": 3.0},
    },
    laws={
        "The first level is sigma_max, and the last but one sigma_min.": lambda f: distance(
            np.asarray(f(4, 0.5, 2.0, 2.0))[[0, -2]], [2.0, 0.5]
        ),
        "With rho = 1 the levels above 0 lie on a line.": lambda f: distance(
            np.asarray(f(4, 1.0, 4.0, 1.0))[:4], [4.0, 3.0, 2.0, 1.0]
        ),
        "The last level is clean data, 0.": lambda f: abs(float(np.asarray(f(4, 0.5, 2.0, 2.0))[4])),
    },
    mistakes={
        "zero_forgotten": (
            "The final level 0 is missing, so the last step would not reach clean data.",
            lambda n, low, high, rho: _grid(n, low, high, rho, last=None),
        ),
        "end_above_zero": (
            "sigma_min is repeated at the end; the last level is clean data, 0.",
            lambda n, low, high, rho: _grid(n, low, high, rho, last=low),
        ),
        "rising": (
            "The levels rise; sampling starts at sigma_max.",
            lambda n, low, high, rho: _grid(n, high, low, rho),
            lambda n, low, high, rho: _grid(n, low, high, rho)[::-1],
        ),
        "divisor_n": (
            "i is divided by n, so sigma_min is never reached; the n levels have n - 1 distances.",
            lambda n, low, high, rho: _grid(n, low, high, rho, divisor=0),
        ),
        "rho_inverted": (
            "rho and 1/rho are exchanged: the roots sigma^(1/rho) lie on a line, and the result is their power rho.",
            lambda n, low, high, rho: _grid(n, low, high, 1 / rho),
        ),
        "power_forgotten": (
            "The roots are not raised to the power rho again.",
            lambda n, low, high, rho: np.append(np.append(_grid(n, low, high, rho)[:-1], []) ** (1 / rho), 0.0),
        ),
        "straight_line": (
            "The sigmas themselves lie on a line; their roots sigma^(1/rho) must.",
            lambda n, low, high, rho: np.append(np.linspace(high, low, n), 0.0),
        ),
        "logarithms_on_a_line": (
            "The logarithms of the sigmas lie on a line, the exponential grid; here the roots sigma^(1/rho) do.",
            lambda n, low, high, rho: np.append(np.geomspace(high, low, n), 0.0),
        ),
    },
)
