"""Processes: conversions, targets and the posterior, each computed in a second way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.diffusion import process
from diffusion_core.diffusion.continuous import CONTINUOUS
from diffusion_core.diffusion.process import PREDICTIONS, Process, posterior, unsupported_reason
from diffusion_core.diffusion.schedule import SCHEDULES, Schedule, cosine, flow, linear, make_schedule

X0, EPS = (Stream(0, name).normal(np.arange(5), (3, 2, 1)) for name in ("x0", "eps"))
ALPHA, SIGMA = np.array([0.99, 0.8, 0.5, 0.1, 1.0]), np.array([0.1, 0.6, 0.5, 3.0, 20.0])
TIMESTEP_SAMPLERS = st.floats(0.01, 2.0)


def test_add_noise_scales_each_image_by_its_own_level():
    x = process.add_noise(X0, EPS, ALPHA, SIGMA)
    for i in range(5):
        np.testing.assert_array_equal(x[i], ALPHA[i] * X0[i] + SIGMA[i] * EPS[i])
    np.testing.assert_array_equal(process.add_noise(X0, EPS, 0.8, 0.6), 0.8 * X0 + 0.6 * EPS)


def test_conversions_are_inverses():
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


@given(TIMESTEP_SAMPLERS, TIMESTEP_SAMPLERS, st.floats(-3, 3), st.floats(-3, 3))
def test_the_score_is_the_gradient_of_the_log_density(alpha, sigma, x0, x):
    def log_density(x: float) -> float:
        return -0.5 * ((x - alpha * x0) / sigma) ** 2

    h = 1e-4 * sigma
    slope = (log_density(x + h) - log_density(x - h)) / (2 * h)
    score = process.score_from_x0(np.array([x]), np.array([x0]), alpha, sigma)[0]
    assert score == pytest.approx(slope, rel=1e-6, abs=1e-5 / sigma)


MADE = {name: make_schedule(name) for name in [*SCHEDULES, *CONTINUOUS]}
FRACTIONS = np.append(Stream(1, "share").uniform(np.arange(200), 1)[:, 0], [0.0, 1.0])


def assert_gives_x0_back(name: str, prediction: str, shares: np.ndarray, x0: np.ndarray, eps: np.ndarray) -> None:
    """Check that D = x_0 if F is the target, at these fractions of the span, integer and fractional t."""
    schedule, made = MADE[name], Process(MADE[name], prediction)
    low, high = schedule.span
    lower = prediction in ("next_level", "posterior_mean")
    for whole in (True, False) if schedule.is_table and not lower else (schedule.is_table,):
        t = np.minimum(low + shares * (high - low), high)
        t = np.floor(t) if whole else t
        columns, (alpha, sigma) = made.columns(t), schedule(t)
        x = alpha * x0 + sigma * eps
        parts = columns.c_skip * x, columns.c_out * columns.target_x0 * x0, columns.c_out * columns.target_eps * eps
        # Rounding errors scale with the summands, which exceed x_0 by far where 1/alpha, or 1/d, is large.
        assert np.max(np.abs(sum(parts) - x0) / (1 + np.max(np.abs(parts), axis=0))) < 1e-14


@pytest.mark.parametrize("name", MADE)
def test_the_exact_target_returns_x0(name):
    x0, eps = (Stream(1, of).normal(np.arange(len(FRACTIONS)), ()) for of in ("x0", "eps"))
    for prediction in PREDICTIONS:
        if not unsupported_reason(MADE[name], prediction):
            assert_gives_x0_back(name, prediction, FRACTIONS, x0, eps)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@given(data=st.data(), fraction=st.floats(0, 1), x0=st.floats(-2, 2), eps=st.floats(-4, 4))
def test_the_exact_target_returns_x0_at_any_time(prediction, data, fraction, x0, eps):
    name = data.draw(st.sampled_from([name for name in MADE if not unsupported_reason(MADE[name], prediction)]))
    assert_gives_x0_back(name, prediction, np.array([fraction]), np.array([x0]), np.array([eps]))


VELOCITIES = {"velocity", "velocity_to_data"}


@pytest.mark.parametrize("name", MADE)
def test_unpreconditioned_networks_receive_x_and_t(name):
    t = MADE[name].even_timesteps(7)
    for prediction in PREDICTIONS:
        if unsupported_reason(MADE[name], prediction):
            continue
        columns = Process(MADE[name], prediction).columns(t)
        for column in vars(columns).values():
            assert column.shape == (7,) and column.dtype == np.float64 and np.all(np.isfinite(column))
        scaled = Process(MADE[name], prediction, time_scale=999.0).columns(t)
        np.testing.assert_array_equal(scaled.c_noise, 999.0 * columns.c_noise)
        if prediction in ("eps", "x0", "v", "score", "flow", "next_level", "posterior_mean", *VELOCITIES):
            np.testing.assert_array_equal(columns.c_in, 1)
            np.testing.assert_array_equal(columns.c_noise, t)


@given(
    name=st.sampled_from([name for name, schedule in MADE.items() if np.isfinite(schedule.log_ratio_range[1])]),
    fraction=st.floats(0, 1),
    x0=st.floats(-2, 2),
    eps=st.floats(-4, 4),
)
def test_all_predictions_give_the_same_estimate(name, fraction, x0, eps):
    """x_0 <-> eps <-> v <-> score <-> flow, at integer and fractional t of every schedule that ends with signal."""
    low, high = MADE[name].span
    alpha, sigma = MADE[name](min(low + fraction * (high - low), high))
    clean, noise = np.array([x0]), np.array([eps])
    x = process.add_noise(clean, noise, alpha, sigma)
    # x_t determines x_0 poorly where alpha is small, and eps where sigma is small.
    lost = 1e-14 * (1 + np.hypot(alpha, sigma) * (1 / alpha + 1 / sigma)) ** 2
    assert process.eps_from_x0(x, clean, alpha, sigma) == pytest.approx(noise, abs=lost)
    assert process.x0_from_eps(x, noise, alpha, sigma) == pytest.approx(clean, abs=lost)
    v, flow_of = process.v_from_x0_eps(clean, noise, alpha, sigma), process.flow_from_x0_eps(clean, noise)
    assert process.x0_from_v(x, v, alpha, sigma) == pytest.approx(clean, abs=lost)
    assert process.x0_from_flow(x, flow_of, alpha, sigma) == pytest.approx(clean, abs=lost)
    score = process.score_from_x0(x, clean, alpha, sigma)
    assert process.x0_from_score(x, score, alpha, sigma) == pytest.approx(clean, abs=lost)
    assert -sigma * score == pytest.approx(noise, abs=lost)


def test_the_flow_is_the_derivative_of_the_straight_line():
    # x_t = (1 - t) x_0 + t eps, so that dx/dt = eps - x_0 for every t.
    line, h = MADE["flow_continuous"], 1e-6
    ahead, behind = (process.add_noise(X0, EPS, *line(0.4 + d)) for d in (h, -h))
    np.testing.assert_allclose(process.flow_from_x0_eps(X0, EPS), (ahead - behind) / (2 * h), rtol=1e-8, atol=1e-8)


# The table of Karras et al., where the network's input is x_t/alpha with noise of scale r = sigma/alpha.


def karras_form(made: Process, t: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return (r, c_skip, c_out, c_in, c_noise) for x_t/alpha."""
    alpha, sigma = made.schedule(t)
    c = made.columns(t)
    return sigma / alpha, c.c_skip * alpha, c.c_out, c.c_in * alpha, c.c_noise


@pytest.mark.parametrize("name", ["linear", "cosine", "vp_sde", "ve_sde", "edm", "cosine_continuous"])
@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_the_columns_of_edm_are_those_of_table_1(name, sigma_data):
    schedule = MADE[name]
    r, c_skip, c_out, c_in, c_noise = karras_form(Process(schedule, "edm", 1.0, sigma_data), schedule.even_timesteps(9))
    total = r**2 + sigma_data**2
    np.testing.assert_allclose(c_skip, sigma_data**2 / total, rtol=1e-12)
    np.testing.assert_allclose(c_out, r * sigma_data / np.sqrt(total), rtol=1e-12)
    np.testing.assert_allclose(c_in, 1 / np.sqrt(total), rtol=1e-12)
    np.testing.assert_allclose(c_noise, np.log(r) / 4, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", MADE)
def test_edm_has_inputs_and_targets_of_unit_variance(name):
    if unsupported_reason(MADE[name], "edm"):
        return
    t, m = MADE[name].even_timesteps(9), 0.7
    alpha, sigma = MADE[name](t)
    c = Process(MADE[name], "edm", sigma_data=m).columns(t)
    np.testing.assert_allclose((c.c_in * alpha * m) ** 2 + (c.c_in * sigma) ** 2, 1, rtol=1e-12)
    np.testing.assert_allclose((c.target_x0 * m) ** 2 + c.target_eps**2, 1, rtol=1e-12)
    # And c_out is minimal: its derivative by c_skip is 0.
    np.testing.assert_allclose(c.target_x0 * m**2 * alpha + c.target_eps * sigma, 0, atol=1e-12 * m)


def test_vp_and_ve_are_the_preconditionings_of_table_1():
    t = np.linspace(1e-3, 1, 7)
    r, c_skip, c_out, c_in, c_noise = karras_form(Process(MADE["vp_sde"], "vp", time_scale=999.0), t)
    # VPPrecond in EDM's code: beta_d 19.9, beta_min 0.1, M 1000, with sigma(t) and its inverse.
    sigma = np.sqrt(np.exp(19.9 * t**2 / 2 + 0.1 * t) - 1)
    np.testing.assert_allclose(r, sigma, rtol=1e-12)
    inverse = (np.sqrt(0.1**2 + 2 * 19.9 * np.log(1 + sigma**2)) - 0.1) / 19.9
    np.testing.assert_allclose(c_noise, 999 * inverse, rtol=1e-9)
    np.testing.assert_allclose([c_skip, c_out, c_in], [np.ones(7), -sigma, 1 / np.sqrt(sigma**2 + 1)], rtol=1e-12)
    r, c_skip, c_out, c_in, c_noise = karras_form(Process(MADE["ve_sde"], "ve"), np.linspace(0, 1, 7))
    np.testing.assert_allclose(r, 0.02 * 5000.0 ** np.linspace(0, 1, 7), rtol=1e-12)
    np.testing.assert_allclose([c_skip, c_out, c_in], [np.ones(7), r, np.ones(7)], rtol=1e-12)
    np.testing.assert_allclose(c_noise, np.log(0.5 * r), rtol=1e-12)


def test_iddpm_is_the_preconditioning_of_table_1():
    # iDDPMPrecond in EDM's code: u from the clean end, C_1 0.001 and C_2 0.008; index M - 1 - argmin |u - sigma|.
    M, u = 1000, np.zeros(1001)
    j = np.arange(1001)
    bar = np.sin(0.5 * np.pi * j / M / (0.008 + 1)) ** 2
    for i in range(M, 0, -1):
        u[i - 1] = np.sqrt((u[i] ** 2 + 1) / max(bar[i - 1] / bar[i], 0.001) - 1)
    made = Process(cosine(M), "iddpm")
    t = np.array([0.0, 0.3, 0.6, 41.0, 500.4, 500.9, 998.0, 998.49, 998.51, 999.0])
    r, c_skip, c_out, c_in, c_noise = karras_form(made, t)
    np.testing.assert_allclose(u[:-1][::-1], np.exp(made.schedule.log_ratio), rtol=1e-9)
    np.testing.assert_array_equal(c_noise, M - 1 - np.argmin(np.abs(r[:, None] - u[:-1]), axis=1))
    np.testing.assert_array_equal(c_noise[[0, 3, 6, 9]], [0, 41, 998, 999])
    np.testing.assert_allclose([c_skip, c_out, c_in], [np.ones(10), -r, 1 / np.sqrt(r**2 + 1)], rtol=1e-12)


@given(TIMESTEP_SAMPLERS, TIMESTEP_SAMPLERS, TIMESTEP_SAMPLERS, TIMESTEP_SAMPLERS, st.floats(-2, 2), st.floats(-2, 2))
def test_next_level_recovers_x0_from_two_levels(alpha_s, sigma_s, signal, noise, x0, eps):
    # A level with less signal and more noise than the other, or without signal.
    alpha_t, sigma_t = max(0.0, alpha_s - signal), sigma_s + noise
    schedule = Schedule("two", np.array([alpha_s, alpha_t]), np.array([sigma_s, sigma_t]))
    columns = Process(schedule, "next_level").columns([0, 1])
    x_s, x_t = alpha_s * x0 + sigma_s * eps, alpha_t * x0 + sigma_t * eps
    assert columns.target_x0[1] * x0 + columns.target_eps[1] * eps == x_s
    # From t = 1 two equations are solved for x_0; from t = 0 the network's output is x_0 itself.
    exact, _ = np.linalg.solve([[alpha_t, sigma_t], [alpha_s, sigma_s]], [x_t, x_s])
    error = 1e-13 * max(1.0, abs(columns.c_out[1]))
    assert columns.c_skip[1] * x_t + columns.c_out[1] * x_s == pytest.approx(x0, abs=error)
    assert columns.c_skip[1] * x_t + columns.c_out[1] * x_s == pytest.approx(exact, abs=error)
    assert (columns.c_skip[0], columns.c_out[0], columns.target_x0[0], columns.target_eps[0]) == (0, 1, 1, 0)


def posterior_means(schedule: Schedule, t: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the mean of q(x_{t-1} | x_t, x_0) from the betas, as in Ho et al., eq. 7."""
    bar = schedule.alphas_cumprod
    before = np.append(1.0, bar[:-1])
    betas = 1 - bar / before
    from_x0 = betas * np.sqrt(before) / (1 - bar)
    from_x = (1 - before) * np.sqrt(1 - betas) / (1 - bar)
    return from_x0[t].reshape(-1, 1, 1, 1) * X0 + from_x[t].reshape(-1, 1, 1, 1) * x


def test_targets_are_the_named_quantities():
    t = np.array([0, 300, 999, 10, 700])
    alpha, sigma = linear()(t)
    cleaner = process.add_noise(X0, EPS, *linear()(np.maximum(t - 1, 0)))
    cleaner[0] = X0[0]  # t = 0 leads to clean data
    x = process.add_noise(X0, EPS, alpha, sigma)
    per_image = (5, 1, 1, 1)
    r, q = sigma / alpha, np.hypot(0.5, sigma / alpha)
    skipped = (0.25 / q**2 / alpha).reshape(per_image) * x
    expected = {
        "eps": EPS,
        "x0": X0,
        "v": process.v_from_x0_eps(X0, EPS, alpha, sigma),
        "score": process.score_from_x0(x, X0, alpha, sigma),
        "flow": process.flow_from_x0_eps(X0, EPS),
        "next_level": cleaner,
        "posterior_mean": posterior_means(linear(), t, x),
        "edm": (X0 - skipped) / (0.5 * r / q).reshape(per_image),  # Karras et al., eq. 8
        "trigflow": (skipped - X0) / (0.5 * r / q).reshape(per_image),
        "vp": EPS,
        "ve": -EPS,
        "iddpm": EPS,
        "denoiser": X0,
    }
    assert expected.keys() == PREDICTIONS.keys() - VELOCITIES
    for prediction, wanted in expected.items():
        columns = Process(linear(), prediction).columns(t)
        target = process.add_noise(X0, EPS, columns.target_x0, columns.target_eps)
        np.testing.assert_allclose(target, wanted, rtol=1e-12, atol=1e-10 if prediction == "score" else 1e-13)


CONTINUOUS_CASES = {
    **{name: {"name": name} for name in CONTINUOUS},
    "polynomial of sigma": {"name": "polynomial", "n": 3, "of": "sigma"},
    "polynomial of degree 1/2": {"name": "polynomial", "n": 0.5, "t_max": 0.99},
    "vp_sde, shifted": {"name": "vp_sde", "log_snr_shift": -1.3},
    "flow_continuous, shifted": {"name": "flow_continuous", "log_snr_shift": 2.0},
    "edm, shifted": {"name": "edm", "log_snr_shift": 0.7},
}


@pytest.mark.parametrize("case", CONTINUOUS_CASES)
def test_velocity_is_the_derivative_of_x_by_time(case):
    schedule = make_schedule(**CONTINUOUS_CASES[case])
    low, high = schedule.span
    t = low + np.array([0.02, 0.3, 0.5, 0.8, 0.98]) * (high - low)
    h = 1e-5 * np.minimum(t, high - t)
    (a1, s1), (a2, s2) = schedule(t - h), schedule(t + h)
    np.testing.assert_allclose(schedule.rates(t), [(a2 - a1) / (2 * h), (s2 - s1) / (2 * h)], rtol=1e-6, atol=1e-6)
    made = (
        Process(schedule, "velocity")
        if case != "polynomial"
        else Process(make_schedule("polynomial", t_max=0.99), "velocity")
    )
    columns, (alpha, sigma) = made.columns(t), schedule(t)
    np.testing.assert_array_equal([columns.target_x0, columns.target_eps], schedule.rates(t))
    for x0, eps in ((0.7, -1.1), (-1.0, 2.0)):
        f = columns.target_x0 * x0 + columns.target_eps * eps
        np.testing.assert_allclose(columns.c_skip * (alpha * x0 + sigma * eps) + columns.c_out * f, x0, rtol=1e-12)


def test_velocity_on_the_straight_line_is_flow():
    t = np.linspace(0.001, 1.0, 9)
    for schedule in (make_schedule("flow_continuous"), make_schedule("polynomial", n=1.0)):
        velocity, flow_columns = (Process(schedule, name).columns(t) for name in ("velocity", "flow"))
        for name, column in vars(flow_columns).items():
            np.testing.assert_allclose(getattr(velocity, name), column, rtol=1e-14, err_msg=name)


def test_velocity_to_data_is_the_velocity_of_a_time_from_noise_to_data():
    """As SiT on its three paths: x_s = alpha x_1 + sigma x_0 with the data x_1, by the time s = 1 - t."""
    s, h = np.linspace(0.1, 0.9, 5), 1e-6
    paths = {
        "flow_continuous": lambda s: (s, 1 - s),
        "cosine_continuous": lambda s: (np.sin(np.pi * s / 2), np.cos(np.pi * s / 2)),
        "vp_sde": lambda s: (
            np.exp(-0.25 * (1 - s) ** 2 * 19.9 - 0.5 * (1 - s) * 0.1),
            np.sqrt(1 - np.exp(-0.5 * (1 - s) ** 2 * 19.9 - (1 - s) * 0.1)),
        ),
    }
    for name, path in paths.items():
        options = {"log_snr_min": -60.0, "log_snr_max": 60.0} if name == "cosine_continuous" else {}
        columns = Process(make_schedule(name, **options), "velocity_to_data", time_scale=-1.0, time_offset=1.0).columns(
            1 - s
        )
        np.testing.assert_allclose(columns.c_noise, s, rtol=1e-14)
        slopes = [(after - before) / (2 * h) for after, before in zip(path(s + h), path(s - h), strict=True)]
        np.testing.assert_allclose([columns.target_x0, columns.target_eps], slopes, rtol=1e-6, err_msg=name)


def test_velocity_needs_a_continuous_schedule_that_moves():
    with pytest.raises(DuetError, match="process velocity: it needs continuous time, but linear is a table; use"):
        Process(linear(), "velocity")
    for options in ({}, {"n": 0.5}):
        with pytest.raises(
            DuetError, match="x_t of polynomial has no finite velocity above 0 at an end; use a smaller"
        ):
            Process(make_schedule("polynomial", **options), "velocity")


@given(TIMESTEP_SAMPLERS, TIMESTEP_SAMPLERS, TIMESTEP_SAMPLERS, TIMESTEP_SAMPLERS, st.floats(-2, 2), st.floats(-2, 2))
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
def test_the_posterior_of_neighbours_has_the_betas_of_the_schedule(name):
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


def test_eps_without_signal_is_an_error():
    with pytest.raises(DuetError, match="cannot be recovered from eps where alpha is 0; use prediction v or x0"):
        Process(flow(), "eps")
    with pytest.raises(DuetError, match="alpha is 0"):
        Process(Schedule("given", np.array([0.5, 0.0]), np.array([0.5, 1.0])), "eps")
    for prediction in ("x0", "v", "flow", "next_level"):
        Process(flow(), prediction)
    with pytest.raises(DuetError, match=r"process edm: log\(sigma/alpha\) is infinite where alpha is 0"):
        Process(flow(), "edm")


def test_invalid_processes_are_errors():
    with pytest.raises(
        DuetError, match="it must be one of eps, x0, v, score, flow, next_level, edm, trigflow, vp, ve, iddpm"
    ):
        Process(linear(), "epsilonn")
    with pytest.raises(DuetError, match="t must be in"):
        Process(linear()).columns([1000])
    with pytest.raises(DuetError, match="it is defined at whole timesteps only"):
        Process(linear(), "next_level").columns([3.5])
    for prediction in ("next_level", "iddpm"):
        with pytest.raises(
            DuetError, match=f"process {prediction}: it needs the timesteps of a table, but the time of edm"
        ):
            Process(MADE["edm"], prediction)
    with pytest.raises(DuetError, match=r"process.sigma_data: 0.0 was given; it must be a positive number"):
        Process(linear(), "edm", sigma_data=0.0)
