"""Processes: conversions, targets and the posterior, each computed a second way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from diffusion_core import process
from diffusion_core.errors import DuetError
from diffusion_core.process import PREDICTIONS, Process, posterior
from diffusion_core.random import Stream
from diffusion_core.schedule import SCHEDULES, Schedule, flow, linear, make_schedule

X0, EPS = (Stream(0, name).normal(np.arange(5), (3, 2, 1)) for name in ("x0", "eps"))
ALPHA, SIGMA = np.array([0.99, 0.8, 0.5, 0.1, 1.0]), np.array([0.1, 0.6, 0.5, 3.0, 20.0])
LEVELS = st.floats(0.01, 2.0)


def test_add_noise_scales_each_image_by_its_own_level():
    x = process.add_noise(X0, EPS, ALPHA, SIGMA)
    for i in range(5):
        np.testing.assert_array_equal(x[i], ALPHA[i] * X0[i] + SIGMA[i] * EPS[i])
    np.testing.assert_array_equal(process.add_noise(X0, EPS, 0.8, 0.6), 0.8 * X0 + 0.6 * EPS)


def test_every_conversion_and_back():
    x = process.add_noise(X0, EPS, ALPHA, SIGMA)
    close = dict(rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(process.x0_from_eps(x, EPS, ALPHA, SIGMA), X0, **close)
    np.testing.assert_allclose(process.eps_from_x0(x, X0, ALPHA, SIGMA), EPS, **close)
    v = process.v_from_x0_eps(X0, EPS, ALPHA, SIGMA)
    np.testing.assert_allclose(process.x0_from_v(x, v, ALPHA, SIGMA), X0, **close)
    score = process.score_from_x0(x, X0, ALPHA, SIGMA)
    np.testing.assert_allclose(score, -EPS / SIGMA[:, None, None, None], **close)
    np.testing.assert_allclose(process.x0_from_score(x, score, ALPHA, SIGMA), X0, **close)


def test_v_is_the_velocity_along_the_circle():
    # With alpha = cos(a) and sigma = sin(a), v = dx/da (Salimans & Ho, appendix D).
    a, h = 0.7, 1e-5
    ahead, behind = (process.add_noise(X0, EPS, np.cos(a + d), np.sin(a + d)) for d in (h, -h))
    np.testing.assert_allclose(
        process.v_from_x0_eps(X0, EPS, np.cos(a), np.sin(a)), (ahead - behind) / (2 * h), rtol=1e-8, atol=1e-8
    )


@given(LEVELS, LEVELS, st.floats(-3, 3), st.floats(-3, 3))
def test_the_score_is_the_slope_of_the_log_density(alpha, sigma, x0, x):
    def log_density(x: float) -> float:
        return -0.5 * ((x - alpha * x0) / sigma) ** 2

    h = 1e-4 * sigma
    slope = (log_density(x + h) - log_density(x - h)) / (2 * h)
    score = process.score_from_x0(np.array([x]), np.array([x0]), alpha, sigma)[0]
    assert score == pytest.approx(slope, rel=1e-6, abs=1e-5 / sigma)


PAIRS = [
    (name, prediction)
    for name in SCHEDULES
    for prediction in PREDICTIONS
    if prediction != "eps" or make_schedule(name).alpha[-1] > 0
]


@pytest.mark.parametrize("name, prediction", PAIRS)
def test_the_exact_target_gives_x0_back(name, prediction):
    schedule = make_schedule(name)
    columns = Process(schedule, prediction).columns(np.arange(1000))
    x0, eps = Stream(1, "x0").normal([0], (1000,))[0], Stream(1, "eps").normal([0], (1000,))[0]
    x = schedule.alpha * x0 + schedule.sigma * eps
    target = columns.target_x0 * x0 + columns.target_eps * eps
    estimate = columns.c_skip * x + columns.c_out * target
    # c_out magnifies the rounding of x and of the target: 1/alpha for eps, 1/d for close levels.
    size = np.maximum(1, np.abs(columns.c_out))
    assert np.max(np.abs(estimate - x0) / size) < 1e-14
    np.testing.assert_array_equal(columns.c_in, 1)
    np.testing.assert_array_equal(columns.c_noise, np.arange(1000))


@given(LEVELS, LEVELS, LEVELS, LEVELS, st.floats(-2, 2), st.floats(-2, 2))
def test_a_picture_is_found_from_two_of_its_levels(alpha_s, sigma_s, signal, noise, x0, eps):
    # A level with less signal and more noise than another one, also without any signal.
    alpha_t, sigma_t = max(0.0, alpha_s - signal), sigma_s + noise
    schedule = Schedule("two", np.array([alpha_s, alpha_t]), np.array([sigma_s, sigma_t]))
    columns = Process(schedule, "next_level").columns([0, 1])
    x_s, x_t = alpha_s * x0 + sigma_s * eps, alpha_t * x0 + sigma_t * eps
    assert columns.target_x0[1] * x0 + columns.target_eps[1] * eps == x_s
    # From t = 1 two equations are solved for x_0; from t = 0 the network's answer is x_0 itself.
    exact, _ = np.linalg.solve([[alpha_t, sigma_t], [alpha_s, sigma_s]], [x_t, x_s])
    error = 1e-13 * max(1.0, abs(columns.c_out[1]))
    assert columns.c_skip[1] * x_t + columns.c_out[1] * x_s == pytest.approx(x0, abs=error)
    assert columns.c_skip[1] * x_t + columns.c_out[1] * x_s == pytest.approx(exact, abs=error)
    assert (columns.c_skip[0], columns.c_out[0], columns.target_x0[0], columns.target_eps[0]) == (0, 1, 1, 0)


def test_targets_are_the_quantities_they_are_named_for():
    t = np.array([0, 300, 999, 10, 700])
    alpha, sigma = linear()(t)
    cleaner = process.add_noise(X0, EPS, *linear()(np.maximum(t - 1, 0)))
    cleaner[0] = X0[0]  # t = 0 leads to clean data
    expected = {"eps": EPS, "x0": X0, "v": process.v_from_x0_eps(X0, EPS, alpha, sigma), "next_level": cleaner}
    for prediction in PREDICTIONS:
        columns = Process(linear(), prediction).columns(t)
        target = process.add_noise(X0, EPS, columns.target_x0, columns.target_eps)
        np.testing.assert_allclose(target, expected[prediction], rtol=0, atol=1e-15)


@given(LEVELS, LEVELS, LEVELS, LEVELS, st.floats(-2, 2), st.floats(-2, 2))
def test_posterior_is_the_product_of_two_gaussians(alpha_s, sigma_s, ratio, extra, x0, x_t):
    # q(x_s | x_t, x_0) is proportional to N(x_t; a x_s, b) N(x_s; alpha_s x_0, sigma_s^2): precisions add.
    assume(ratio <= 1)
    alpha_t, b = ratio * alpha_s, extra**2
    sigma_t = np.sqrt(ratio**2 * sigma_s**2 + b)
    precision = ratio**2 / b + 1 / sigma_s**2
    mean = (ratio * x_t / b + alpha_s * x0 / sigma_s**2) / precision
    from_x, from_x0, variance, step = posterior(alpha_t, sigma_t, alpha_s, sigma_s)
    assert from_x * x_t + from_x0 * x0 == pytest.approx(mean, rel=1e-8, abs=1e-8)
    assert variance == pytest.approx(1 / precision, rel=1e-8)
    assert step == pytest.approx(b, rel=1e-8)


@pytest.mark.parametrize("name", SCHEDULES)
def test_posterior_of_neighbours_has_the_betas_of_the_schedule(name):
    s = make_schedule(name)
    from_x, from_x0, variance, step = posterior(s.alpha[1:], s.sigma[1:], s.alpha[:-1], s.sigma[:-1])
    if name != "flow":
        np.testing.assert_allclose(step, 1 - (s.alpha[1:] / s.alpha[:-1]) ** 2, rtol=1e-8, atol=1e-14)
    assert np.all(step > 0) and np.all(variance > 0) and np.all(variance < step)
    # Averaged over q(x_t | x_0), the posterior gives q(x_s | x_0).
    np.testing.assert_allclose(from_x * s.alpha[1:] + from_x0, s.alpha[:-1], atol=1e-14)
    np.testing.assert_allclose((from_x * s.sigma[1:]) ** 2 + variance, s.sigma[:-1] ** 2, atol=1e-14)


def test_posterior_at_clean_data_is_x0():
    from_x, from_x0, variance, step = posterior(0.8, 0.6, 1.0, 0.0)
    assert (from_x, variance) == (0, 0)
    assert from_x0 == pytest.approx(1, abs=1e-15) and step == pytest.approx(0.36)


def test_eps_is_refused_where_alpha_is_zero():
    with pytest.raises(DuetError, match="cannot be recovered from eps where alpha is 0; use prediction v or x0"):
        Process(flow(), "eps")
    with pytest.raises(DuetError, match="alpha is 0"):
        Process(Schedule("given", np.array([0.5, 0.0]), np.array([0.5, 1.0])), "eps")
    for prediction in ("x0", "v", "next_level"):
        Process(flow(), prediction)


def test_other_bad_input_is_refused():
    with pytest.raises(DuetError, match="it must be one of eps, x0, v, next_level"):
        Process(linear(), "epsilon")
    with pytest.raises(DuetError, match="t must be in"):
        Process(linear()).columns([1000])
    with pytest.raises(DuetError, match="t must be whole"):
        Process(linear(), "next_level").columns([3.5])
