"""Schedules: monotone, exact, and refused when they are not."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_core.errors import DuetError
from diffusion_core.process import posterior
from diffusion_core.schedule import (
    SCHEDULES,
    Schedule,
    cosine,
    flow,
    flow_law,
    from_alphas_cumprod,
    from_betas,
    linear,
    make_schedule,
    plain_as_written,
    scaled_linear,
)

VARIANCE_PRESERVING = [name for name in SCHEDULES if name != "flow"]


@pytest.mark.parametrize("T", [2, 10, 1000])
@pytest.mark.parametrize("name", SCHEDULES)
def test_signal_to_noise_falls_at_every_step(name, T):
    schedule = make_schedule(name, T=T)
    assert schedule.steps == T == len(schedule.alpha) == len(schedule.sigma)
    assert np.all(np.diff(schedule.log_snr) < 0)
    assert np.all(np.diff(schedule.alpha) < 0) and np.all(np.diff(schedule.sigma) >= 0)


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
def test_variance_is_preserved(name):
    schedule = make_schedule(name)
    assert schedule.variance_preserving
    np.testing.assert_allclose(schedule.alpha**2 + schedule.sigma**2, 1, rtol=0, atol=1e-15)


def test_flow_is_a_straight_line_and_ends_in_noise_alone():
    schedule = flow(1000)
    np.testing.assert_array_equal(schedule.sigma, np.arange(1, 1001) / 1000)
    np.testing.assert_allclose(schedule.alpha + schedule.sigma, 1, rtol=0, atol=2e-16)
    assert schedule.alpha[-1] == 0 and schedule.log_snr[-1] == -np.inf
    assert not schedule.variance_preserving
    assert flow_law(0.25) == (0.75, 0.25)


def test_known_numbers():
    # Of the DDPM and the improved DDPM code, computed by their formulas in float64.
    assert linear().alpha[-1] ** 2 == pytest.approx(4.0358e-5, rel=1e-4)
    assert cosine().alpha[-1] ** 2 == pytest.approx(2.4288e-9, rel=1e-4)
    schedule = linear()
    variance = posterior(schedule.alpha[1], schedule.sigma[1], schedule.alpha[0], schedule.sigma[0])[2]
    assert math.log(variance) == pytest.approx(-9.8167, abs=1e-4)


def exact_levels(betas: list[Decimal]) -> tuple[np.ndarray, np.ndarray]:
    """(alpha, sigma) by the plain product, with 60 digits."""
    getcontext().prec = 60
    product, alpha, sigma = Decimal(1), [], []
    for beta in betas:
        product *= 1 - beta
        alpha.append(float(product.sqrt()))
        sigma.append(float((1 - product).sqrt()))
    return np.array(alpha), np.array(sigma)


def test_linear_equals_the_product_in_many_digits():
    getcontext().prec = 60
    low, high = Decimal("0.0001"), Decimal("0.02")
    alpha, sigma = exact_levels([low + (high - low) * i / 999 for i in range(1000)])
    np.testing.assert_allclose(linear().alpha, alpha, rtol=1e-14)
    np.testing.assert_allclose(linear().sigma, sigma, rtol=1e-14)


def test_scaled_linear_and_quadratic_equal_the_product_in_many_digits():
    getcontext().prec = 60
    for name, low, high in (("scaled_linear", "0.00085", "0.012"), ("quadratic", "0.0001", "0.02")):
        low, high = Decimal(low).sqrt(), Decimal(high).sqrt()
        alpha, sigma = exact_levels([(low + (high - low) * i / 999) ** 2 for i in range(1000)])
        np.testing.assert_allclose(make_schedule(name).alpha, alpha, rtol=1e-14)
        np.testing.assert_allclose(make_schedule(name).sigma, sigma, rtol=1e-14)


@given(st.lists(st.floats(1e-6, 0.999), min_size=1, max_size=40))
def test_betas_survive_the_round_trip(betas):
    schedule = from_betas(betas)
    alphas_cumprod = np.append(1.0, schedule.alpha**2)
    np.testing.assert_allclose(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], betas, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(schedule.sigma[0] ** 2, betas[0], rtol=1e-14)


def test_a_tiny_beta_keeps_its_digits():
    # 1 - (1 - 1e-12)^2 by the plain product has four digits left.
    np.testing.assert_allclose(from_betas([1e-12, 1e-12]).sigma ** 2, [1e-12, 2e-12 - 1e-24], rtol=1e-15)


def test_cosine_follows_its_law_where_no_beta_is_cut():
    t = np.arange(1, 991) / 1000
    law = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(cosine().alpha[:990] ** 2, law, rtol=1e-9)


def test_sigmoid_is_symmetric():
    # logistic(-v) = 1 - logistic(v), so with start = -end alphas_cumprod(u) + alphas_cumprod(1 - u) = 1.
    power = make_schedule("sigmoid").alpha[:-1] ** 2
    np.testing.assert_allclose(power + power[::-1], 1, atol=1e-12)


def test_plain_as_written_takes_the_line_itself_and_hides_the_picture():
    schedule = plain_as_written()
    np.testing.assert_allclose(schedule.alpha**2, np.linspace(1e-4, 0.02, 1000)[::-1], rtol=1e-14)
    # At every level there is at least 49 times as much noise as signal, in power; in `linear` from t = 620 on.
    assert np.all(schedule.log_snr <= math.log(1 / 49) + 1e-12)
    assert np.argmax(linear().log_snr < math.log(1 / 49)) == 620


def test_betas_are_cut_at_their_largest():
    schedule = from_alphas_cumprod(lambda u: 1 - u, 4, "law", max_beta=0.5)
    np.testing.assert_allclose(schedule.alpha**2, [3 / 4, 1 / 2, 1 / 4, 1 / 8], rtol=1e-15)


def test_levels_are_looked_up():
    schedule = linear()
    alpha, sigma = schedule([[0, 999], [5, 5]])
    assert alpha.shape == sigma.shape == (2, 2)
    assert alpha[0, 1] == schedule.alpha[999] and sigma[1, 0] == schedule.sigma[5]
    assert schedule(np.array([], np.int64))[0].shape == (0,)


def test_a_table_cannot_be_written():
    schedule = linear()
    for table in (schedule.alpha, schedule.sigma):
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 1.0


@pytest.mark.parametrize("t", [-1, 1000, [0, 1000], 1.0, [0.0, 1.0], True])
def test_a_level_outside_the_table_is_refused(t):
    with pytest.raises(DuetError, match=r"t must be whole and in 0\.\.999"):
        linear()(t)


@pytest.mark.parametrize("alpha, sigma, words", [
    ([0.9, 0.9], [0.1, 0.1], "alpha/sigma must fall"),
    ([0.8, 0.9], [0.2, 0.1], "alpha/sigma must fall"),
    ([0.9, np.nan], [0.1, 0.2], "must be finite"),
    ([0.9, 0.8], [0.1, np.nan], "must be finite"),
    ([0.9, 0.8], [0.1, np.inf], "must be finite"),
    ([np.inf, 0.8], [0.1, 0.2], "must be finite"),
    ([0.9, -0.1], [0.1, 0.2], ">= 0"),
    ([0.9, 0.8], [0.0, 0.2], "sigma > 0"),
    ([0.9], [0.1, 0.2], r"\(1,\) and sigma \(2,\)"),
    ([], [], r"\(T,\)"),
    ([[0.9, 0.8]], [[0.1, 0.2]], r"\(T,\)"),
])  # fmt: skip
def test_a_table_that_is_no_schedule_is_refused(alpha, sigma, words):
    with pytest.raises(DuetError, match=words):
        Schedule("given", np.array(alpha, np.float64), np.array(sigma, np.float64))


@pytest.mark.parametrize("betas", [[0.1, 0.0], [0.1, 1.0], [-0.1], [2.0], [0.1, np.nan], [], [[0.1, 0.2]], 0.1])
def test_betas_that_are_no_schedule_are_refused(betas):
    with pytest.raises(DuetError, match="schedule betas"):
        from_betas(betas)


@pytest.mark.parametrize("name, options, words", [
    ("linaer", {}, "Did you mean 'linear'"),
    ("linear", {"T": 1}, "at least 2 levels"),
    ("linear", {"T": 0}, "at least 2 levels"),
    ("linear", {"T": 100.0}, "schedule.T: 100.0 was given; it must be a whole number"),
    ("linear", {"T": "100"}, "whole number"),
    ("linear", {"beta_start": "low"}, "schedule.beta_start: 'low' was given; it must be a number"),
    ("linear", {"beta_strat": 0.1}, "Did you mean 'beta_start'"),
    ("linear", {"beta_end": 1.5}, "every beta must be in"),
    ("linear", {"beta_start": float("nan")}, "must be finite"),
    ("scaled_linear", {"beta_start": float("nan")}, "must be finite"),
    ("cosine", {"max_beta": 1.0}, "every beta must be in"),
    ("sigmoid", {"tau": 0.0}, "schedule sigmoid"),
    ("quadratic", {"beta_start": -0.1}, "every beta must be in"),
    ("flow", {"beta_end": 0.1}, "option of schedule 'flow'"),
    ("plain_as_written", {"beta_end": 0.1}, "option of schedule 'plain_as_written'"),
    ("plain_as_writen", {}, "Did you mean 'plain_as_written'"),
])  # fmt: skip
@pytest.mark.filterwarnings("error::numpy.exceptions.ComplexWarning")
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_a_configuration_that_does_not_fit_is_refused(name, options, words):
    with pytest.raises(DuetError, match=words):
        make_schedule(name, **options)


def test_make_schedule_passes_its_options_on():
    np.testing.assert_array_equal(
        make_schedule("scaled_linear", T=7, beta_end=0.5).alpha, scaled_linear(7, beta_end=0.5).alpha
    )
