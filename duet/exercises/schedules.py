"""Exercises about noise levels: tables of alpha_bar, and the levels of a sampler."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffusion_core.diffusion import schedule
from duet.exercises.definition import add, distance

Array = NDArray[np.float64]


def linear_schedule(T, beta_start, beta_end):
    """Return alpha_bar of the linear schedule, with shape (T,).

    The T betas lie on a line from beta_start to beta_end, both included, and

        alpha_bar_t = (1 - beta_0) (1 - beta_1) ... (1 - beta_t),      t = 0 .. T-1

    so t = 0 is one noise step, not clean data.
    """
    return schedule.linear(T, beta_start, beta_end).alphas_cumprod


def _betas(T, start, end):
    return np.linspace(start, end, T)


def _beta_of(alpha_bar: Array) -> Array:
    return 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])


add(
    linear_schedule,
    title="The linear noise schedule of DDPM",
    source="Ho et al., 2020, section 4, https://arxiv.org/abs/2006.11239",
    cases={
        "10 levels, betas 0.02 to 0.35": {"T": 10, "beta_start": 0.02, "beta_end": 0.35},
        "50 levels, betas 0.001 to 0.1": {"T": 50, "beta_start": 0.001, "beta_end": 0.1},
    },
    laws={
        "The first level has one noise step: alpha_bar_0 = 1 - beta_start.": lambda f: distance(
            np.asarray(f(8, 0.1, 0.3))[0], 0.9
        ),
        "1 - alpha_bar_t / alpha_bar_{t-1} is beta_t, which ends at beta_end.": lambda f: distance(
            _beta_of(f(8, 0.1, 0.3))[-1], 0.3
        ),
    },
    mistakes={
        "not_cumulative": (
            "The result is alpha_t = 1 - beta_t of each step; alpha_bar_t is the product of all alphas up to t "
            "(cumprod).",
            lambda T, a, b: 1 - _betas(T, a, b),
        ),
        "betas_returned": ("The result is beta_t; alpha_bar_t is the product of 1 - beta.", _betas),
        "product_of_betas": (
            "The result is the product of the betas; it must be that of 1 - beta.",
            lambda T, a, b: np.cumprod(_betas(T, a, b)),
        ),
        "sum_for_product": (
            "The betas are added up (cumsum); alpha_bar_t is the product of 1 - beta (cumprod).",
            lambda T, a, b: 1 - np.cumsum(_betas(T, a, b)),
        ),
        "last_beta_left_out": (
            "The line of betas stops before beta_end; both ends belong to it.",
            lambda T, a, b: np.cumprod(1 - np.linspace(a, b, T, endpoint=False)),
            lambda T, a, b: np.cumprod(1 - (a + (b - a) * np.arange(1, T + 1) / T)),
        ),
        "off_by_one": (
            "The table starts with alpha_bar = 1, clean data; here t = 0 is one noise step, so entry 0 is 1 - "
            "beta_start.",
            lambda T, a, b: np.append(1.0, np.cumprod(1 - _betas(T, a, b))[:-1]),
        ),
        "one_entry_too_many": (
            "The table has T + 1 entries, with alpha_bar = 1 of clean data before the first; here entry 0 is the level "
            "after one noise step.",
            lambda T, a, b: np.append(1.0, np.cumprod(1 - _betas(T, a, b))),
        ),
        "root_returned": (
            "The result is sqrt(alpha_bar), the factor of the image; the exercise asks for alpha_bar.",
            lambda T, a, b: np.sqrt(np.cumprod(1 - _betas(T, a, b))),
        ),
        "noise_returned": (
            "The result is 1 - alpha_bar, the variance of the noise; the exercise asks for alpha_bar.",
            lambda T, a, b: 1 - np.cumprod(1 - _betas(T, a, b)),
        ),
        "roots_on_a_line": (
            "The square roots of the betas lie on a line, as in latent diffusion; here the betas themselves do.",
            lambda T, a, b: np.cumprod(1 - np.linspace(a**0.5, b**0.5, T) ** 2),
        ),
    },
)


def cosine_schedule(T, s):
    """Return alpha_bar of the cosine schedule, with shape (T,).

    With f(u) = cos^2((u + s) / (1 + s) pi/2), level t ends at u = (t + 1)/T:

        beta_t      = min(1 - f((t + 1)/T) / f(t/T), 0.999)
        alpha_bar_t = (1 - beta_0) ... (1 - beta_t),      t = 0 .. T-1

    so t = 0 is one noise step, and alpha_bar_t = f((t + 1)/T) / f(0) up to the last level, whose beta is limited.
    """
    return schedule.cosine(T, s).alphas_cumprod


def _cosine(
    T: int,
    s: float,
    power: int = 2,
    scale: float | None = None,
    limit: float = 0.999,
    offset: int = 0,
) -> Array:
    """Return the schedule with one thing changed."""
    u = np.arange(T + 1) / T
    f = np.cos((u + s) / (1 + s if scale is None else scale) * np.pi / 2) ** power
    if offset:
        return np.append(1.0, np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], limit))[:-1])
    return np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], limit))


def _levels_at(u: Array | float, s: float) -> Array:
    return np.cos((u + s) / (1 + s) * np.pi / 2) ** 2


def _cosine_levels(T: int, s: float) -> Array:
    return _levels_at(np.arange(T + 1) / T, s)


def _limited(levels: Array) -> Array:
    """Return the table of T - 1 limited betas between T levels, after the first level itself."""
    return np.append(1.0, np.cumprod(1 - np.minimum(1 - levels[1:] / levels[:-1], 0.999)))


def _unscaled(T: int, s: float) -> Array:
    return _cosine_levels(T, s)[0] * _cosine(T, s)


add(
    cosine_schedule,
    title="The cosine noise schedule of Improved DDPM",
    source="Nichol & Dhariwal, 2021, eq. 17, https://arxiv.org/abs/2102.09672",
    cases={
        "10 levels, s = 0.05": {"T": 10, "s": 0.05},
        "25 levels, s = 0.008": {"T": 25, "s": 0.008},
        "6 levels, s = 0.2": {"T": 6, "s": 0.2},
    },
    laws={
        "alpha_bar falls from each level to the next.": lambda f: float(
            np.maximum(np.diff(np.append(1.0, f(12, 0.1))), 0).max()
        ),
        "No beta exceeds 0.999: the last alpha_bar is above 0.": lambda f: distance(_beta_of(f(12, 0.1))[-1], 0.999),
    },
    mistakes={
        "off_by_one": (
            "Level t is taken at u = t/T, so the table starts with alpha_bar = 1; level t ends at u = (t + 1)/T.",
            lambda T, s: _cosine(T, s, offset=1),
            lambda T, s: (_cosine_levels(T, s) / _cosine_levels(T, s)[0])[:-1],
        ),
        "divided_by_T_minus_1": (
            "t is divided by T - 1, so that the levels reach from u = 0 to 1; level t ends at u = (t + 1)/T.",
            lambda T, s: _levels_at(np.arange(T) / (T - 1), s) / _levels_at(0.0, s),
            lambda T, s: _limited(_levels_at(np.arange(T) / (T - 1), s)),
        ),
        "limit_of_another_code": (
            "The betas are limited to 0.9999; here the limit is 0.999.",
            lambda T, s: _cosine(T, s, limit=0.9999),
        ),
        "one_entry_too_many": (
            "The table has T + 1 entries, with alpha_bar = 1 of clean data before the first; here entry 0 is the level "
            "after one noise step.",
            lambda T, s: _cosine_levels(T, s) / _cosine_levels(T, s)[0],
            lambda T, s: np.append(1.0, _cosine(T, s)),
        ),
        "square_forgotten": (
            "The cosine is not squared: f is cos^2, and alpha_bar the square of the factor of the image.",
            lambda T, s: _cosine(T, s, power=1),
            lambda T, s: np.sqrt(_cosine_levels(T, s) / _cosine_levels(T, s)[0])[1:],
        ),
        "s_forgotten": (
            "The offset s is left out; it keeps the first betas from being too small.",
            lambda T, s: _cosine(T, 0.0),
        ),
        "not_divided_by_1_plus_s": (
            "(u + s) is not divided by (1 + s), so the angle passes pi/2 before the last level.",
            lambda T, s: _cosine(T, s, scale=1.0),
            lambda T, s: (f := np.cos((np.arange(T + 1) / T + s) * np.pi / 2) ** 2)[1:] / f[0],
        ),
        "limit_forgotten": (
            "The last beta is not limited to 0.999, so alpha_bar ends at 0 and cannot be divided by.",
            lambda T, s: _cosine_levels(T, s)[1:] / _cosine_levels(T, s)[0],
        ),
        "not_divided_by_f_0": (
            "f is not divided by f(0), so alpha_bar before the first level would not be 1.",
            _unscaled,
            lambda T, s: _cosine_levels(T, s)[1:],
        ),
        "root_returned": (
            "The result is sqrt(alpha_bar), the factor of the image; the exercise asks for alpha_bar.",
            lambda T, s: np.sqrt(_cosine(T, s)),
        ),
        "betas_returned": (
            "The result is beta_t; the exercise asks for alpha_bar, the product of 1 - beta.",
            lambda T, s: np.minimum(1 - _cosine_levels(T, s)[1:] / _cosine_levels(T, s)[:-1], 0.999),
        ),
        "sine": (
            "The sine stands where the cosine belongs; alpha_bar falls with t.",
            lambda T, s: 1 - _cosine_levels(T, s)[1:],
            lambda T, s: (1 - _cosine_levels(T, s)[1:]) / _cosine_levels(T, s)[0],
        ),
    },
)
