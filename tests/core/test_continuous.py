"""Continuous schedules: the interface of a table, the published formulas, and timesteps of samplers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.continuous import CONTINUOUS
from diffusion_core.diffusion.continuous_schedule import ContinuousSchedule
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import Schedule, linear, make_schedule
from diffusion_core.sampling.ddim import ddim
from diffusion_core.sampling.ddpm import ddpm
from diffusion_core.sampling.dpm_solver import dpm_solver
from diffusion_core.sampling.grid import GRIDS, make_timesteps

MADE = {name: make_schedule(name) for name in CONTINUOUS}
EACH = pytest.mark.parametrize("name", MADE)


def log_ratio(schedule, t):
    alpha, sigma = schedule(t)
    with np.errstate(divide="ignore"):
        return np.log(sigma) - np.log(alpha)


@EACH
@given(st.floats(0, 1), st.floats(0, 1), st.floats(-8, 8))
def test_noise_rises_with_t_and_can_be_inverted(name, a, b, shift):
    schedule = make_schedule(name, log_snr_shift=shift)
    low, high = schedule.span
    t = np.clip(low + np.sort([a, b]) * (high - low), low, high)
    r = log_ratio(schedule, t)
    assert r[1] >= r[0] and (t[1] - t[0] < 1e-9 * high or r[1] > r[0])
    # The rounding error of t is that of log(sigma/alpha) times dt/dr, here at most the span.
    np.testing.assert_allclose(schedule.t_at_log_ratio(r), t, rtol=1e-9, atol=1e-12 * high)
    assert schedule.variance_preserving == (name in ("vp_sde", "cosine_continuous", "linear_vp"))
    alpha, sigma = schedule(t)
    np.testing.assert_allclose(schedule.norm(alpha, sigma), 1, atol=1e-14)


@EACH
def test_continuous_schedules_have_the_members_of_tables(name):
    public = {word for word in (*dir(linear()), *vars(linear())) if not word.startswith("_")}
    assert public <= set(dir(MADE[name])) | {"alpha_sigma", "inverse"}
    ends = MADE[name].log_ratio_range
    assert log_ratio(MADE[name], np.array(MADE[name].span)) == pytest.approx(ends)
    assert (linear().log_ratio_range, linear().span) == ((linear().log_ratio[0], linear().log_ratio[-1]), (0.0, 999.0))
    for name_of_table in ("steps", "alpha", "sigma", "log_ratio", "log_snr", "snr", "alphas_cumprod"):
        with pytest.raises(DuetError, match=f"schedule {name}: its time is continuous, .* timesteps of a table"):
            getattr(MADE[name], name_of_table)


def test_published_values():
    # Karras et al., table 1, for the VP SDE: sigma(t)^2 = exp(beta_d t^2/2 + beta_min t) - 1; at t = 1 exp(10.05) - 1.
    alpha, sigma = MADE["vp_sde"]([1.0, 1e-3])
    assert (sigma / alpha) == pytest.approx([math.sqrt(math.expm1(10.05)), math.sqrt(math.expm1(1.0995e-4))], rel=1e-12)
    assert alpha[0] ** 2 == pytest.approx(math.exp(-10.05), rel=1e-12)
    assert np.exp(MADE["ve_sde"].log_ratio_range) == pytest.approx([0.02, 100.0])
    assert MADE["ve_sde"](0.5)[1] == pytest.approx(math.sqrt(2.0))  # the geometric mean
    assert [float(v) for v in MADE["edm"](3.0)] == [1.0, 3.0] and MADE["edm"].span == (0.002, 80.0)
    assert -2 * np.array(MADE["cosine_continuous"].log_ratio_range) == pytest.approx([15, -15])
    assert MADE["cosine_continuous"](0.5) == pytest.approx([math.sqrt(0.5)] * 2)
    assert [float(v) for v in MADE["flow_continuous"](0.25)] == [0.75, 0.25]
    assert MADE["flow_continuous"](1.0)[0] == 0 and MADE["flow_continuous"].log_ratio_range[1] == np.inf


def test_the_linear_schedule_converges_to_vp_sde():
    """With beta_i = beta(t)/T, the difference falls as 1/T."""
    errors = []
    for T in (500, 1000, 2000):
        table = make_schedule("linear", T=T, beta_start=0.1 / T, beta_end=20 / T)
        errors.append(np.abs(table.alpha - MADE["vp_sde"](np.arange(1, T + 1) / T)[0]).max())
    assert -np.polyfit(np.log([500, 1000, 2000]), np.log(errors), 1)[0] == pytest.approx(1, abs=0.05)
    assert errors[1] < 1e-3


@EACH
@pytest.mark.parametrize("by", [-3.0, 1.2])
def test_a_shift_changes_the_log_snr_only(name, by):
    schedule, shifted = MADE[name], make_schedule(name, log_snr_shift=by)
    t = schedule.even_timesteps(50)
    np.testing.assert_allclose(-2 * log_ratio(shifted, t), -2 * log_ratio(schedule, t) + by, rtol=0, atol=1e-12)
    assert shifted.span == schedule.span
    assert make_schedule(name, shift_from=32, shift_to=32) is not schedule
    if name == "flow_continuous":
        r = math.exp(-by / 2)  # Esser et al., section 5.3.2, with their sqrt(m/n)
        np.testing.assert_allclose(shifted(t)[1], r * t / (1 + (r - 1) * t), rtol=1e-13)


# Timesteps of samplers


@EACH
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_spacings_in_continuous_time(name, steps):
    low, high = MADE[name].span
    linspace, trailing, leading = (make_timesteps(MADE[name], steps, s) for s in ("linspace", "trailing", "leading"))
    for t in (linspace, trailing, leading):
        assert t.shape == (steps,) and np.all(np.diff(t) < 0)
        np.testing.assert_allclose(np.diff(t, 2), 0, atol=1e-12 * high)
    step = (high - low) / steps
    assert (linspace[0], trailing[0], leading[-1]) == (high, high, low)
    assert trailing[-1] == pytest.approx(low + step) and leading[0] == pytest.approx(high - step, abs=1e-12)
    assert linspace[-1] == (low if steps > 1 else high)
    np.testing.assert_array_equal(make_timesteps(MADE[name], steps), linspace)
    np.testing.assert_array_equal(make_timesteps(MADE[name], None, list(trailing)), trailing)


@EACH
@pytest.mark.parametrize("grid", GRIDS)
def test_grids_lie_within_the_schedule_and_start_at_most_at_100(name, grid):
    low, high = np.exp(MADE[name].log_ratio_range)
    r = np.exp(log_ratio(MADE[name], make_timesteps(MADE[name], 9, grid)))
    assert np.all(np.diff(r) < 0)
    np.testing.assert_allclose(r[[0, -1]], [min(high, 100.0), low], rtol=1e-9)
    if np.isfinite(high):
        whole = {"name": grid, "sigma_max": float(high)}
        assert make_timesteps(MADE[name], 9, whole)[0] == pytest.approx(MADE[name].span[1], rel=1e-9)


def test_the_grid_of_edm_is_the_published_one():
    # Karras et al., eq. 5, as in EDM's generate.py: N = 18 steps from 80 to 0.002 and then 0.
    i = np.arange(18)
    sigma = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    plan = ddim(Process(MADE["edm"], "edm"), 18, spacing="karras", clip=None)
    np.testing.assert_allclose(plan.sigma, [*sigma, 0], rtol=1e-9)
    np.testing.assert_allclose(plan.c_noise, np.log(sigma) / 4, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(plan.alpha, 1)
    assert plan.start_scale == pytest.approx(80)
    # With alpha = 1 a row is Euler's: x + (sigma' - sigma)(x - D)/sigma.
    np.testing.assert_allclose(
        plan.state[:, 0, 0], 1 + (plan.sigma[1:] - plan.sigma[:-1]) / plan.sigma[:-1], atol=1e-12
    )


@EACH
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50])
def test_plans_of_solvers_go_down_to_clean_data(name, steps):
    process = Process(MADE[name], "v")
    for spacing in ("linspace", "trailing", "leading"):
        plans = [ddim(process, steps, 0.5, spacing), ddpm(process, steps, spacing=spacing)]
        if MADE[name].log_ratio_range[1] < np.inf or spacing == "leading":
            plans.append(dpm_solver(process, steps, spacing=spacing))
        for plan in plans:
            assert len(plan.t) == steps and (plan.alpha[-1], plan.sigma[-1]) == (1, 0)
            with np.errstate(divide="ignore"):
                assert (np.diff(plan.sigma / plan.alpha) < 0).all() and (np.diff(plan.t) < 0).all()
            assert all(np.isfinite(table).all() for table in (plan.state, plan.denoised, plan.noise))


@pytest.mark.parametrize("steps, spacing, message", [
    (None, None, "sampler.steps: None was given; in continuous time it must be a whole number"),
    ([3, 2], None, "in continuous time it must be a whole number"),
    ("ddim5", None, "in continuous time it must be a whole number"),
    (0, "linspace", "sampler.steps: 0 was given"),
    (5, "even", "sampler.spacing: 'even' was given; it must be one of leading"),
    (None, [1.5, 0.5], "sampler.spacing: .* a list of decreasing times in 1e-05..1"),
    (None, [0.5, 0.7], "a list of decreasing times"),
    (None, [], "a list of decreasing times"),
    (3, [0.5, 0.2], "with a list of 2 times; use steps=null"),
])  # fmt: skip
def test_invalid_steps_and_spacings_are_errors(steps, spacing, message):
    with pytest.raises(DuetError, match=message):
        make_timesteps(MADE["vp_sde"], steps, spacing)


@pytest.mark.parametrize("name, options, message", [
    ("vp_sde", {"T": 1000}, "option of schedule 'vp_sde': 'T'"),
    ("vp_sd", {}, "Did you mean 'vp_sde'"),
    ("vp_sde", {"t_min": 0.0}, "t_min must be positive"),
    ("vp_sde", {"t_min": 2.0}, "t from 2.0 to 1.0 was given; it must rise"),
    ("vp_sde", {"beta_min": -1.0}, "no beta may be negative"),
    ("vp_sde", {"beta_min": 5.0, "beta_max": 1.0, "t_max": 2.0}, "no beta may be negative"),
    ("ve_sde", {"sigma_min": 0.0}, "sigma_min 0 and sigma_max 100 were given"),
    ("edm", {"sigma_max": 0.001}, "the second the larger"),
    ("edm", {"sigma_max": float("nan")}, "both must be positive"),
    ("cosine_continuous", {"log_snr_max": -20.0}, "they must be in -100 .. 100"),
    ("flow_continuous", {"t_max": 1.1}, "they must be above 0 and at most 1"),
    ("edm", {"zero_terminal_snr": True}, "its time is continuous"),
    ("edm", {"log_snr_shift": 101.0}, "must be in -100 .. 100"),
])  # fmt: skip
def test_invalid_options_are_errors(name, options, message):
    with pytest.raises(DuetError, match=message):
        make_schedule(name, **options)


def test_a_function_without_rising_noise_is_an_error():
    with pytest.raises(DuetError, match="must be finite, with alpha >= 0 and sigma > 0"):
        ContinuousSchedule("given", lambda t: (1 - t, t), np.exp, (0.0, 1.0))
    with pytest.raises(DuetError, match="sigma/alpha must rise with t"):
        ContinuousSchedule("given", lambda t: (t, 1 - t), np.exp, (0.2, 0.8))
    with pytest.raises(DuetError, match=r"t must be in 0.002\.\.80"):
        MADE["edm"]([1.0, 81.0])
    with pytest.raises(DuetError, match=r"was given; the schedule has 0.002 \.\. 80"):
        MADE["edm"].t_at_log_ratio(5.0)
    with pytest.raises(DuetError, match="was given; the schedule has"):
        MADE["edm"].t_at_log_ratio(np.nan)


def test_a_table_interpolates_its_function_at_second_order():
    """The log-linear interpolation of a table converges to the continuous schedule from which it was made."""
    errors = []
    for T in (50, 100, 200):
        t = np.linspace(0.01, 1, T)
        table = Schedule("given", *MADE["vp_sde"](t))
        middle = np.arange(T - 1) + 0.5
        law = MADE["vp_sde"](0.5 * (t[1:] + t[:-1]))
        errors.append(np.abs(np.subtract(table(middle), law))[:, T // 10 :].max())
    assert -np.polyfit(np.log([50, 100, 200]), np.log(errors), 1)[0] == pytest.approx(2, abs=0.15)


# The schedulers of flow_matching (Lipman et al., 2024, section 4.8) in its time s = 1 - t, from noise to data:
# (alpha, sigma, d alpha/ds, d sigma/ds).
PATHS = {
    "flow_continuous": ({}, lambda s: (s, 1 - s, np.ones_like(s), -np.ones_like(s))),
    "polynomial": ({"n": 3}, lambda s: (s**3, 1 - s**3, 3 * s**2, -3 * s**2)),
    "linear_vp": ({}, lambda s: (s, np.sqrt(1 - s**2), np.ones_like(s), -s / np.sqrt(1 - s**2))),
    "cosine_continuous": (
        {"log_snr_min": -100, "log_snr_max": 100},
        lambda s: (
            np.sin(np.pi / 2 * s),
            np.cos(np.pi / 2 * s),
            np.pi / 2 * np.cos(np.pi / 2 * s),
            -np.pi / 2 * np.sin(np.pi / 2 * s),
        ),
    ),
}


@pytest.mark.parametrize("name", PATHS)
def test_paths_and_their_rates_are_those_of_flow_matching(name):
    options, path = PATHS[name]
    schedule, t = make_schedule(name, **options), np.linspace(0.01, 0.99, 11)
    alpha, sigma, alpha_rate, sigma_rate = path(1 - t)
    np.testing.assert_allclose(schedule(t), (alpha, sigma), rtol=0, atol=1e-13)
    np.testing.assert_allclose(schedule.rates(t), (-alpha_rate, -sigma_rate), rtol=1e-12, atol=1e-13)


def test_a_polynomial_of_sigma_mirrors_one_of_alpha():
    t = np.linspace(0.01, 0.99, 11)
    of_alpha, of_sigma = (make_schedule("polynomial", n=2.5, of=of) for of in ("alpha", "sigma"))
    np.testing.assert_allclose(of_sigma(t)[::-1], of_alpha(1 - t), atol=1e-15)


def test_invalid_polynomials_are_errors():
    with pytest.raises(DuetError, match=r"schedule.of: 'beta' was given; it must be one of alpha, sigma"):
        make_schedule("polynomial", of="beta")
    with pytest.raises(DuetError, match="schedule polynomial: n 0 was given; it must be a positive number"):
        make_schedule("polynomial", n=0)
    for name in ("polynomial", "linear_vp", "flow_continuous"):
        with pytest.raises(DuetError, match=f"schedule {name}: t_min 0 and t_max 1 were given"):
            make_schedule(name, t_min=0)
