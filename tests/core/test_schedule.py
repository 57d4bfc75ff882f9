"""Noise schedules are monotone and exact; invalid ones are errors."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process, posterior
from diffusion_core.diffusion.schedule import (
    SCHEDULES,
    Schedule,
    constant,
    cosine,
    exponential,
    flow,
    from_alphas_cumprod,
    from_betas,
    jsd,
    laplace,
    linear,
    make_schedule,
    plain_as_written,
    scaled_linear,
    sigmoid_betas,
    straight_line,
    transformed,
    warmup10,
    warmup50,
    with_log_snr_shift,
    with_zero_terminal_snr,
)

VARIANCE_PRESERVING = [name for name in SCHEDULES if name != "flow"]


@pytest.mark.parametrize("T", [2, 10, 1000])
@pytest.mark.parametrize("name", SCHEDULES)
def test_signal_to_noise_falls_at_every_step(name, T):
    schedule = make_schedule(name, T=T)
    assert schedule.steps == T == len(schedule.alpha) == len(schedule.sigma)
    assert np.all(np.diff(schedule.log_snr) < 0)
    assert np.all(np.diff(schedule.alpha) < 0) and np.all(np.diff(schedule.sigma) >= 0)


@pytest.mark.parametrize("name", SCHEDULES)
@given(T=st.integers(2, 3000), shift=st.floats(-8, 8), zero_terminal_snr=st.booleans())
def test_signal_to_noise_falls_for_every_T_and_transformation(name, T, shift, zero_terminal_snr):
    schedule = make_schedule(name, T=T, log_snr_shift=shift, zero_terminal_snr=zero_terminal_snr)
    assert schedule.steps == T and np.all(np.diff(schedule.log_snr) < 0)
    assert schedule.variance_preserving == (name != "flow")
    if zero_terminal_snr:
        assert schedule.alpha[-1] == 0 and schedule.sigma[-1] == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
def test_variance_is_preserved(name):
    schedule = make_schedule(name)
    assert schedule.variance_preserving
    np.testing.assert_allclose(schedule.alpha**2 + schedule.sigma**2, 1, rtol=0, atol=1e-15)


def test_flow_is_a_straight_line_and_ends_in_pure_noise():
    schedule = flow(1000)
    np.testing.assert_array_equal(schedule.sigma, np.arange(1, 1001) / 1000)
    np.testing.assert_allclose(schedule.alpha + schedule.sigma, 1, rtol=0, atol=2e-16)
    assert schedule.alpha[-1] == 0 and schedule.log_snr[-1] == -np.inf
    assert not schedule.variance_preserving
    assert straight_line(0.25) == (0.75, 0.25)


def test_published_values():
    # Values from the formulas of the DDPM and improved DDPM code, in float64.
    assert linear().alpha[-1] ** 2 == pytest.approx(4.0358e-5, rel=1e-4)
    assert cosine().alpha[-1] ** 2 == pytest.approx(2.4288e-9, rel=1e-4)
    schedule = linear()
    variance = posterior(schedule.alpha[1], schedule.sigma[1], schedule.alpha[0], schedule.sigma[0])[2]
    assert math.log(variance) == pytest.approx(-9.8167, abs=1e-4)


def exact_levels(betas: list[Decimal]) -> tuple[np.ndarray, np.ndarray]:
    """Return (alpha, sigma) by the plain product, with 60 digits."""
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


def test_tiny_betas_are_accurate():
    # 1 - (1 - 1e-12)^2 by the plain product keeps only four digits.
    np.testing.assert_allclose(from_betas([1e-12, 1e-12]).sigma ** 2, [1e-12, 2e-12 - 1e-24], rtol=1e-15)


def test_cosine_follows_its_formula_where_no_beta_is_cut():
    t = np.arange(1, 991) / 1000
    law = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(cosine().alpha[:990] ** 2, law, rtol=1e-9)


def test_sigmoid_is_symmetric():
    # logistic(-v) = 1 - logistic(v), so with start = -end alphas_cumprod(u) + alphas_cumprod(1 - u) = 1.
    power = make_schedule("sigmoid").alpha[:-1] ** 2
    np.testing.assert_allclose(power + power[::-1], 1, atol=1e-12)


def test_plain_as_written_uses_the_line_and_hides_the_image():
    schedule = plain_as_written()
    np.testing.assert_allclose(schedule.alpha**2, np.linspace(1e-4, 0.02, 1000)[::-1], rtol=1e-14)
    # At every level there is at least 49 times as much noise as signal, in power; in `linear` from t = 620 on.
    assert np.all(schedule.log_snr <= math.log(1 / 49) + 1e-12)
    assert np.argmax(linear().log_snr < math.log(1 / 49)) == 620


def betas_of(schedule: Schedule) -> np.ndarray:
    """Return the betas of a variance-preserving schedule."""
    signal = schedule.alpha**2
    return 1 - signal / np.append(1.0, signal[:-1])


@pytest.mark.parametrize("T, rising10, rising50", [(1000, 100, 500), (30, 3, 15), (29, 2, 14), (10, 1, 5), (2, 0, 1)])
def test_warmups_rise_and_then_stay(T, rising10, rising50):
    for schedule, rising in ((warmup10(T, 0.01, 0.3), rising10), (warmup50(T, 0.01, 0.3), rising50)):
        betas = betas_of(schedule)
        # The line is begin + i (end - begin)/(n - 1); for one level it is begin.
        line = [0.01 + i * 0.29 / max(rising - 1, 1) for i in range(rising)]
        np.testing.assert_allclose(betas[:rising], line, rtol=1e-9)
        np.testing.assert_allclose(betas[rising:], 0.3, rtol=1e-9)


@pytest.mark.parametrize("T", [2, 7, 1000])
def test_constant_erases_the_same_fraction_at_every_level(T):
    np.testing.assert_allclose(constant(T, 0.01).alpha ** 2, 0.99 ** np.arange(1, T + 1), rtol=1e-12)
    np.testing.assert_allclose(exponential(T, 5.0).alpha ** 2, np.exp(-5 * np.arange(1, T + 1) / T), rtol=1e-13)
    # One is the other with its beta.
    np.testing.assert_allclose(exponential(T, 5.0).alpha, constant(T, 1 - math.exp(-5 / T)).alpha, rtol=1e-12)
    assert constant(T).alpha[0] ** 2 == pytest.approx(0.98, rel=1e-15)
    assert exponential(T).alpha[-1] ** 2 == pytest.approx(math.exp(-12), rel=1e-13)


@pytest.mark.parametrize("T", [2, 7, 1000])
def test_jsd_is_the_product_of_its_betas(T):
    schedule = jsd(T)
    product = np.cumprod([1 - 1 / (T - t) for t in range(T)])  # betas 1/T, 1/(T-1), .. 1
    np.testing.assert_allclose(schedule.alpha**2, product, rtol=1e-12)
    np.testing.assert_allclose(schedule.alpha**2, 1 - np.arange(1, T + 1) / T, rtol=1e-12, atol=1e-16)
    assert (schedule.alpha[-1], schedule.sigma[-1]) == (0, 1)


def test_sigmoid_betas_rise_symmetrically():
    betas = betas_of(sigmoid_betas(1001, 0.001, 0.021))
    np.testing.assert_allclose(betas + betas[::-1], 0.022, rtol=1e-9)
    assert betas[500] == pytest.approx(0.011, rel=1e-9)
    assert betas[0] == pytest.approx(0.001 + 0.02 / (1 + math.exp(6)), rel=1e-9)


def test_log_snr_of_laplace_has_a_laplace_distribution():
    """Its quantiles at u = 1 - (t + 1)/T are those of a Laplace distribution: mu + b log 2p below the middle."""
    T, mu, b = 1000, 0.7, 0.8
    schedule = laplace(T, mu, b, power=1.0)
    p = 1 - np.arange(1, T + 1) / T
    kept = (p > 0.05) & (p < 0.95)
    quantile = np.where(p < 0.5, mu + b * np.log(2 * p, where=p > 0, out=np.zeros(T)), mu - b * np.log(2 - 2 * p))
    # alphas_cumprod is divided by its value at u = 0, where the 1e-6 in the logarithm leaves a little noise.
    at_zero = 1 / (1 + math.exp(-(mu - b * math.log(1e-6))))
    signal = schedule.alpha**2 * at_zero
    np.testing.assert_allclose(np.log(signal / (1 - signal))[kept], quantile[kept], atol=1e-4)
    # diffusers uses the root of this as alphas_cumprod.
    np.testing.assert_allclose(laplace(T, mu, b).alpha ** 4, schedule.alpha**2, rtol=1e-9)


# Transformations


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_shift_changes_the_log_snr_only(name):
    schedule = make_schedule(name)
    for by in (-30.0, -1.5, 0.25, 2.0):
        shifted = with_log_snr_shift(schedule, by)
        np.testing.assert_allclose(shifted.log_snr[:-1], schedule.log_snr[:-1] + by, rtol=0, atol=1e-12)
        assert shifted.log_snr[-1] == pytest.approx(schedule.log_snr[-1] + by, abs=1e-12)
        back = with_log_snr_shift(shifted, -by)
        np.testing.assert_allclose([back.alpha, back.sigma], [schedule.alpha, schedule.sigma], rtol=1e-13)
        total = with_log_snr_shift(with_log_snr_shift(schedule, 0.3), by)
        once = with_log_snr_shift(schedule, 0.3 + by)
        np.testing.assert_allclose([total.alpha, total.sigma], [once.alpha, once.sigma], rtol=1e-13)
        if name == "flow":
            np.testing.assert_allclose(shifted.alpha + shifted.sigma, 1, rtol=0, atol=1e-15)
        else:
            np.testing.assert_allclose(shifted.alpha**2 + shifted.sigma**2, 1, rtol=0, atol=1e-15)


def test_a_shift_on_the_straight_line_is_a_shift_of_its_time():
    # Esser et al., section 5.3.2: t' = r t/(1 + (r - 1) t), with r the ratio of the sides.
    t, r = np.arange(1, 1001) / 1000, 256 / 64
    shifted = make_schedule("flow", shift_from=64, shift_to=256)
    np.testing.assert_allclose(shifted.sigma, r * t / (1 + (r - 1) * t), rtol=1e-14)


def test_a_shift_keeps_the_power_of_other_schedules():
    schedule = Schedule("given", np.array([1.0, 2.0]), np.array([0.5, 4.0]))
    shifted = with_log_snr_shift(schedule, math.log(4))
    np.testing.assert_allclose(shifted.alpha / shifted.sigma, [4, 1], rtol=1e-14)
    np.testing.assert_allclose(shifted.alpha**2 + shifted.sigma**2, [1.25, 20], rtol=1e-14)
    # Where alpha is 1 at every level, it remains 1: only sigma changes.
    exploding = with_log_snr_shift(Schedule("given", np.ones(2), np.array([0.5, 2.0])), math.log(4))
    np.testing.assert_allclose([exploding.alpha, exploding.sigma], [[1, 1], [0.25, 1]], rtol=1e-14)


def test_downsampled_images_have_the_noise_of_the_unshifted_schedule():
    # The mean of r^2 pixels has noise sigma/r, so alpha/sigma at the smaller size is the unshifted one.
    base, shifted = cosine(), make_schedule("cosine", shift_from=32, shift_to=128)
    np.testing.assert_allclose(shifted.alpha / (shifted.sigma / 4), base.alpha / base.sigma, rtol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_without_transformation_every_bit_is_the_same(name):
    plain = SCHEDULES[name](T=50)
    for options in (
        {},
        {"log_snr_shift": 0.0},
        {"log_snr_shift": 0},
        {"shift_from": 32, "shift_to": 32, "zero_terminal_snr": False},
        {"shift_from": None, "shift_to": None},
    ):
        same = make_schedule(name, T=50, **options)
        assert (same.alpha.tobytes(), same.sigma.tobytes()) == (plain.alpha.tobytes(), plain.sigma.tobytes())
    assert transformed(plain) is plain


@pytest.mark.parametrize("name", SCHEDULES)
def test_zero_terminal_snr_stretches_alpha_and_keeps_its_start(name):
    plain, schedule = make_schedule(name), make_schedule(name, zero_terminal_snr=True)
    # sigma' is computed without 1 - alpha'^2, which is inaccurate at t = 0.
    assert schedule.alpha[0] == plain.alpha[0] and schedule.sigma[0] == pytest.approx(plain.sigma[0], rel=1e-15)
    assert schedule.alpha[-1] == 0 and schedule.sigma[-1] == pytest.approx(1, abs=1e-15)
    # A linear function of the old alpha, determined by two of its values.
    line = np.polynomial.Polynomial.fit(plain.alpha[[0, -1]], [plain.alpha[0], 0.0], 1)
    np.testing.assert_allclose(schedule.alpha, line(plain.alpha), rtol=0, atol=1e-14)
    if name != "flow":
        np.testing.assert_allclose(schedule.alpha**2 + schedule.sigma**2, 1, rtol=0, atol=1e-15)
    again = with_zero_terminal_snr(schedule)
    assert again is schedule


def test_the_variance_of_a_stretched_schedule_is_accurate():
    getcontext().prec = 60
    plain = linear()
    first, last = Decimal(plain.alpha[0]), Decimal(plain.alpha[-1])
    exact = []
    for alpha, sigma in zip(map(Decimal, plain.alpha), map(Decimal, plain.sigma), strict=True):
        # The table's own alpha^2 + sigma^2 takes the place of 1, as its alpha is rounded.
        stretched = first * (alpha - last) / (first - last)
        exact.append(float((alpha**2 + sigma**2 - stretched**2).sqrt()))
    np.testing.assert_allclose(with_zero_terminal_snr(plain).sigma, exact, rtol=1e-14)


def test_the_shift_comes_before_the_stretch():
    shifted = with_log_snr_shift(cosine(20), -2.0)
    both = make_schedule("cosine", T=20, log_snr_shift=-2.0, zero_terminal_snr=True)
    expected = with_zero_terminal_snr(shifted)
    np.testing.assert_array_equal([both.alpha, both.sigma], [expected.alpha, expected.sigma])
    assert both.alpha[0] == shifted.alpha[0]
    other = with_log_snr_shift(with_zero_terminal_snr(cosine(20)), -2.0)
    assert np.abs(other.alpha - both.alpha).max() > 1e-5
    sizes = make_schedule("cosine", T=20, log_snr_shift=0.5, shift_from=32, shift_to=64)
    np.testing.assert_allclose(sizes.log_snr, cosine(20).log_snr + 0.5 - 2 * math.log(2), atol=1e-12)


def test_zero_terminal_snr_needs_preserved_variance():
    with pytest.raises(DuetError, match=r"schedule given: zero_terminal_snr .* alpha\^2 \+ sigma\^2 = 1"):
        with_zero_terminal_snr(Schedule("given", np.array([1.0, 1.0]), np.array([0.5, 2.0])))
    with pytest.raises(DuetError, match="it needs at least 2 levels"):
        with_zero_terminal_snr(from_betas([0.5]))


def test_betas_are_cut_at_max_beta():
    schedule = from_alphas_cumprod(lambda u: 1 - u, 4, "law", max_beta=0.5)
    np.testing.assert_allclose(schedule.alpha**2, [3 / 4, 1 / 2, 1 / 4, 1 / 8], rtol=1e-15)


def test_integer_timesteps_are_looked_up():
    schedule = linear()
    alpha, sigma = schedule([[0, 999], [5, 5]])
    assert alpha.shape == sigma.shape == (2, 2)
    assert alpha[0, 1] == schedule.alpha[999] and sigma[1, 0] == schedule.sigma[5]
    assert schedule(np.array([], np.int64))[0].shape == (0,)


def test_tables_are_read_only():
    schedule = linear()
    for table in (schedule.alpha, schedule.sigma):
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 1.0


@pytest.mark.parametrize("t", [-1, 1000, [0, 1000], -0.5, 999.5, [0.0, np.nan]])
def test_a_timestep_outside_the_table_is_an_error(t):
    with pytest.raises(DuetError, match=r"t must be in 0\.\.999"):
        linear()(t)


@pytest.mark.parametrize("name", SCHEDULES)
def test_fractional_timesteps_interpolate_and_invert(name):
    schedule = make_schedule(name, T=50)
    t = np.linspace(0, 49, 49 * 8 + 1)
    alpha, sigma = schedule(t)
    np.testing.assert_array_equal([alpha[::8], sigma[::8]], [schedule.alpha, schedule.sigma])
    assert np.all(np.diff(alpha / sigma) < 0)
    with np.errstate(divide="ignore"):
        log_ratio = np.log(sigma / alpha)
    finite = np.isfinite(log_ratio)
    np.testing.assert_allclose(schedule.t_at_log_ratio(log_ratio[finite]), t[finite], atol=1e-9)
    # Where there is signal the logarithm is linear between two levels, and the norm is preserved.
    inner = log_ratio[:384].reshape(48, 8)
    np.testing.assert_allclose(np.diff(inner, 2), 0, atol=1e-9)
    if schedule.variance_preserving:
        np.testing.assert_allclose(np.hypot(alpha, sigma), 1, atol=1e-13)
    if name == "flow":
        np.testing.assert_allclose(alpha + sigma, 1, atol=1e-13)


def test_noise_beyond_the_table_is_an_error():
    schedule = linear()
    for outside in (schedule.log_ratio[0] - 0.01, schedule.log_ratio[-1] + 0.01, np.nan):
        with pytest.raises(DuetError, match="was given; the schedule has"):
            schedule.t_at_log_ratio(outside)


@pytest.mark.parametrize("alpha, sigma, message", [
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
def test_invalid_tables_are_errors(alpha, sigma, message):
    with pytest.raises(DuetError, match=message):
        Schedule("given", np.array(alpha, np.float64), np.array(sigma, np.float64))


@pytest.mark.parametrize("betas", [[0.1, 0.0], [0.1, 1.0], [-0.1], [2.0], [0.1, np.nan], [], [[0.1, 0.2]], 0.1])
def test_invalid_betas_are_errors(betas):
    with pytest.raises(DuetError, match="schedule betas"):
        from_betas(betas)


@pytest.mark.parametrize("name, options, message", [
    ("linaer", {}, "Did you mean 'linear'"),
    ("linear", {"T": 1}, "it must be at least 2"),
    ("linear", {"T": 0}, "it must be at least 2"),
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
    ("const", {}, "Did you mean 'constant'"),
    ("constant", {"beta": 1.0}, "schedule constant: .* every beta must be in"),
    ("constant", {"beta_end": 0.1}, "option of schedule 'constant'"),
    ("warmup10", {"beta_end": 1.0}, "schedule warmup10: .* every beta must be in"),
    ("jsd", {"T": 1}, "it must be at least 2"),
    ("jsd", {"beta_end": 0.1}, "option of schedule 'jsd'"),
    ("exponential", {"rate": -1.0}, "schedule exponential: .* every beta must be in"),
    ("laplace", {"b": 0.0}, "schedule laplace: b 0 and power 0.5 were given; both must be positive"),
    ("laplace", {"power": -1.0}, "both must be positive"),
    ("linear", {"zero_terminal_sn": True}, "Did you mean 'zero_terminal_snr'"),
    ("linear", {"zero_terminal_snr": 1}, "schedule.zero_terminal_snr: 1 was given; it must be true or false"),
    ("linear", {"log_snr_shift": "up"}, "schedule.log_snr_shift: 'up' was given; it must be a number"),
    ("linear", {"log_snr_shift": 101}, r"schedule linear: a log-SNR shift of 101 was given; it must be in -100 .. 100"),
    ("linear", {"log_snr_shift": float("nan")}, "a log-SNR shift of nan"),
    ("linear", {"log_snr_shift": float("inf")}, "a log-SNR shift of inf"),
    ("linear", {"shift_from": 64}, "64 was given with shift_to None; a shift by image size needs both"),
    ("linear", {"shift_to": 64}, "None was given with shift_to 64"),
    ("linear", {"shift_from": 64, "shift_to": 0}, "64 was given with shift_to 0; both must be at least 1 pixel"),
    ("linear", {"shift_from": 64.0, "shift_to": 32}, "schedule.shift_from: 64.0 .* whole number or null"),
])  # fmt: skip
@pytest.mark.filterwarnings("error::numpy.exceptions.ComplexWarning")
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_invalid_options_are_errors(name, options, message):
    with pytest.raises(DuetError, match=message):
        make_schedule(name, **options)


def test_make_schedule_passes_its_options_on():
    np.testing.assert_array_equal(
        make_schedule("scaled_linear", T=7, beta_end=0.5).alpha, scaled_linear(7, beta_end=0.5).alpha
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_alphas_cumprod_and_snr_are_those_of_the_field(name):
    """alphas_cumprod = prod (1 - beta), and SNR = alphas_cumprod / (1 - alphas_cumprod) where variance is preserved."""
    schedule = make_schedule(name, T=20)
    np.testing.assert_allclose(schedule.snr, np.exp(schedule.log_snr), rtol=1e-12)
    if not schedule.variance_preserving:
        with pytest.raises(DuetError, match=f"schedule {name}: alphas_cumprod is for schedules with"):
            _ = schedule.alphas_cumprod
        return
    np.testing.assert_allclose(schedule.snr, schedule.alphas_cumprod / (1 - schedule.alphas_cumprod), rtol=1e-9)
    process = Process(schedule, "v")
    np.testing.assert_array_equal(process.alphas_cumprod, schedule.alphas_cumprod)
    np.testing.assert_array_equal(process.snr, schedule.snr)


def test_alphas_cumprod_is_the_product_of_one_minus_beta():
    betas = np.linspace(1e-4, 0.02, 1000)
    np.testing.assert_allclose(make_schedule("linear").alphas_cumprod, np.cumprod(1 - betas), rtol=1e-12)


def test_schedules_and_processes_print_as_one_short_line():
    for value in (make_schedule("linear"), make_schedule("vp_sde"), Process(make_schedule("edm"), "edm")):
        assert len(repr(value)) < 100 and "\n" not in repr(value)


@pytest.mark.parametrize("T", [50, 1000, 4000])
def test_rescaled_betas_end_at_about_the_same_noise(T):
    """linear of guided-diffusion: scale = 1000/T times 1e-4 .. 0.02."""
    schedule = linear(T, rescaled=True)
    betas = np.linspace(1000 / T * 1e-4, 1000 / T * 0.02, T)
    np.testing.assert_allclose(schedule.alphas_cumprod, np.cumprod(1 - betas), rtol=1e-10)
    assert -12 < schedule.log_snr[-1] < -9
    if T == 1000:
        np.testing.assert_array_equal(schedule.alpha, linear(T).alpha)
