r"""DDPM and DDIM on data whose exact denoiser is known.

For x_0 ~ N(m, s^2) the estimate of x_0 is D(x) = m + alpha s^2 (x - alpha m) / (alpha^2 s^2 + sigma^2), and the
deterministic flow keeps (x - alpha m) / sqrt(alpha^2 s^2 + sigma^2) constant from one level to another.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from diffusion_core.backend import reference
from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.diffusion.process import PREDICTIONS, Process
from diffusion_core.diffusion.schedule import SCHEDULES, Schedule, cosine, flow, linear, make_schedule
from diffusion_core.networks import Node, Program
from diffusion_core.networks.blocks import Conv
from diffusion_core.sampling import SamplerPlan
from diffusion_core.sampling.ddim import ddim
from diffusion_core.sampling.ddpm import ddpm
from diffusion_core.sampling.next_level import next_level
from diffusion_core.sampling.spacing import SPACINGS

M, S = 0.3, 0.5
# The rows of a plan do not depend on the prediction, so each prediction is tested on one schedule.
ON_TABLES = [p for p in PREDICTIONS if p not in ("velocity", "velocity_to_data")]
PAIRS = [(name, "v") for name in SCHEDULES] + [("linear", p) for p in ON_TABLES if p != "v"]


def marginal_std(alpha: float, sigma: float) -> float:
    return math.hypot(alpha * S, sigma)


def denoised(x, alpha: float, sigma: float):
    return M + alpha * S**2 / marginal_std(alpha, sigma) ** 2 * (x - alpha * M)


def run(plan: SamplerPlan, x: np.ndarray, noise=lambda row: 0.0) -> np.ndarray:
    """Run a plan with the network output for which its columns give the exact estimate."""
    for i in range(plan.rows):
        exact = denoised(x, plan.alpha[i], plan.sigma[i])
        output = (exact - plan.c_skip[i] * x) / plan.c_out[i]
        estimate = plan.c_skip[i] * x + plan.c_out[i] * output
        x = plan.state[i, 0, 0] * x + plan.denoised[i, 0, 0] * estimate + plan.noise[i, 0] * noise(i)
    return x


def moments(plan: SamplerPlan) -> tuple[float, float]:
    """Return mean and variance after the plan, computed exactly from those at its first level."""
    mean, variance = plan.alpha[0] * M, marginal_std(plan.alpha[0], plan.sigma[0]) ** 2
    for i in range(plan.rows):
        alpha, sigma = plan.alpha[i], plan.sigma[i]
        slope = alpha * S**2 / marginal_std(alpha, sigma) ** 2
        from_x, from_x0 = plan.state[i, 0, 0], plan.denoised[i, 0, 0]
        mean = from_x * mean + from_x0 * denoised(mean, alpha, sigma)
        variance = (from_x + from_x0 * slope) ** 2 * variance + plan.noise[i, 0] ** 2
    return mean, variance


@pytest.mark.parametrize("prediction", ["v", "x0"])
@pytest.mark.parametrize("schedule", [cosine(4096), flow(4096)], ids=lambda s: s.name)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddim_converges_to_the_exact_flow_at_first_order(schedule, spacing, prediction):
    counts, errors = [64, 128, 256, 512], []
    start = np.array([-2.0, 0.1, 1.5])
    for steps in counts:
        plan = ddim(Process(schedule, prediction), steps, spacing=spacing, clip=None)
        exact = M + S / marginal_std(plan.alpha[0], plan.sigma[0]) * (start - plan.alpha[0] * M)
        errors.append(np.max(np.abs(run(plan, start) - exact)))
    order = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert order == pytest.approx(1, abs=0.05)
    assert errors[-1] < 0.01


def test_ddim_of_one_normal_rotates_by_the_angle_of_each_row():
    # Data N(0, 1) has D = alpha x, so each step multiplies by cos(angle_t - angle_s).
    schedule = linear()
    plan = ddim(Process(schedule, "eps"), 50, clip=None)
    angle = np.arctan2(plan.sigma, plan.alpha)
    np.testing.assert_allclose(
        plan.state[:, 0, 0] + plan.denoised[:, 0, 0] * plan.alpha[:-1], np.cos(np.diff(angle)), atol=1e-14
    )


def test_the_reference_backend_rotates_by_the_same_angles():
    # With prediction v the exact network for data N(0, 1) is zero.
    program = Program((Node("zero", Conv(1, 1, 1, 1, (0, 0, 0, 0), False, 0.0), ("x",)),))
    plan = ddim(Process(cosine(100), "v"), 10, spacing="trailing", clip=None)
    start = Stream(0, "start").normal([0, 1], (2, 2, 1))
    weights = {"zero.weight": np.zeros((1, 1, 1, 1))}
    got = reference.sample(program, weights, plan, start, np.zeros(2, np.int32), lambda row: 1 / 0)
    shrink = np.prod(np.cos(np.diff(np.arctan2(plan.sigma, plan.alpha))))
    np.testing.assert_allclose(got, shrink * start, atol=1e-13)


@pytest.mark.parametrize("sampler, options", [
    (ddpm, {}), (ddpm, {"variance": "fixed_large"}), (ddim, {"eta": 1.0}), (ddim, {"eta": 0.5}), (ddim, {}),
])  # fmt: skip
def test_mean_and_variance_of_the_data_are_reproduced(sampler, options):
    errors = []
    for steps in (250, 1000, 4000):
        mean, variance = moments(sampler(Process(cosine(4000), "v"), steps, clip=None, **options))
        assert mean == pytest.approx(M, abs=1e-12)
        errors.append(abs(variance - S**2))
    assert errors[-1] < 2.5e-3 * S**2
    # First order: four times as many steps have a quarter of the error.
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 4, rtol=0.1)


@pytest.mark.parametrize("sampler, options", [(ddpm, {}), (ddim, {"eta": 1.0})])
def test_samples_have_the_moments_of_the_data(sampler, options):
    plan = sampler(Process(linear(), "eps"), 1000, clip=None, **options)
    n = 4000
    index = np.arange(n)
    x = run(plan, Stream(0, "s").normal(index, ()), lambda row: Stream(0, "z").normal(index, (), row))
    variance = moments(plan)[1]
    assert abs(variance - S**2) < 0.02 * S**2
    assert abs(x.mean() - M) < 4 * S / math.sqrt(n)
    assert abs(x.var() - variance) < 4 * S**2 * math.sqrt(2 / n)


@pytest.mark.parametrize("name, prediction", PAIRS)
def test_ancestral_ddim_is_ddpm_row_by_row(name, prediction):
    process = Process(make_schedule(name), prediction)
    for steps, spacing in ((1000, "leading"), (37, "trailing"), (1, "linspace")):
        a, b = ddim(process, steps, 1.0, spacing), ddpm(process, steps, "fixed_small", spacing)
        for table, values in a.tables().items():
            np.testing.assert_allclose(getattr(b, table), values, rtol=1e-9, atol=1e-12, err_msg=table)


RESPACED = [
    ({"steps": [3, 2, 1]}, [7, 6, 4, 3, 2, 0]),
    ({"steps": "3,2,1"}, [7, 6, 4, 3, 2, 0]),
    ({"steps": "ddim4"}, [9, 6, 3, 0]),
    ({"steps": None, "spacing": [9, 5, 2]}, [9, 5, 2]),
    ({"steps": 3, "spacing": [9, 5, 2]}, [9, 5, 2]),
    ({"steps": None}, list(range(10))[::-1]),
]


@pytest.mark.parametrize("options, levels", RESPACED, ids=str)
@pytest.mark.parametrize("name", ["linear", "jsd", "flow"])
def test_each_row_ends_at_the_level_of_the_next_row(name, options, levels):
    schedule = make_schedule(name, T=10)
    process = Process(schedule, "v")
    alpha, sigma = np.append(schedule.alpha[levels], 1.0), np.append(schedule.sigma[levels], 0.0)
    for plan in (ddim(process, **options), ddim(process, eta=1.0, **options), ddpm(process, **options)):
        assert plan.t.tolist() == levels and plan.rows == len(levels)
        assert plan.name.endswith(f"-{len(levels)}")
        np.testing.assert_array_equal([plan.alpha, plan.sigma], [alpha, sigma])
        state, estimate, fresh = plan.state[:, 0, 0], plan.denoised[:, 0, 0], plan.noise[:, 0]
        np.testing.assert_allclose(state * alpha[:-1] + estimate, alpha[1:], atol=1e-14)
        np.testing.assert_allclose((state * sigma[:-1]) ** 2 + fresh**2, sigma[1:] ** 2, atol=1e-14)


def test_the_large_variance_with_sections_is_beta_of_the_shorter_process():
    # guided-diffusion makes a new process of the timesteps in use: beta = 1 - alphas_cumprod_t / alphas_cumprod_s.
    schedule = linear()
    plan = ddpm(Process(schedule, "eps"), "10,10,20", "fixed_large")
    signal = schedule.alpha[plan.t] ** 2
    np.testing.assert_allclose(plan.noise[:-1, 0] ** 2, 1 - signal[:-1] / signal[1:], rtol=1e-9)
    assert plan.rows == 40 and plan.noise[-1, 0] == 0


@pytest.mark.parametrize("options", [{"steps": [4, 5]}, {"steps": "ddim5"}, {"spacing": [9, 3, 1]}, {"steps": 9}])
def test_last_t_needs_every_timestep(options):
    process = Process(linear(10), "eps")
    with pytest.raises(DuetError, match=r"sampler.last_t: 1 was given with \d+ steps; use steps=null, every timestep"):
        ddpm(process, last_t=1, **options)
    every = ddpm(process, last_t=1)
    for steps in (10, [5, 5], "ddim10"):
        np.testing.assert_array_equal(ddpm(process, steps, last_t=1).t, every.t)


@pytest.mark.parametrize(
    "options", [{"zero_terminal_snr": True}, {"log_snr_shift": -3.0}, {"shift_from": 8, "shift_to": 32}]
)
@pytest.mark.parametrize("name", SCHEDULES)
def test_transformed_schedules_can_be_sampled(name, options):
    schedule = make_schedule(name, T=50, **options)
    for prediction in ("v", "x0"):
        process = Process(schedule, prediction)
        for plan in (ddim(process, 7, spacing="trailing"), ddpm(process), ddpm(process, [2, 3, 4], "fixed_large")):
            assert plan.alpha[-1] == 1 and plan.sigma[-1] == 0
    if schedule.alpha[-1] == 0:
        with pytest.raises(DuetError, match="alpha is 0"):
            Process(schedule, "eps")


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0, None])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_row_preserves_the_marginals(name, eta):
    process = Process(make_schedule(name), "v")
    for spacing in SPACINGS:
        for steps in (1, 2, 50, 1000):
            plan = ddpm(process, steps, spacing=spacing) if eta is None else ddim(process, steps, eta, spacing)
            state, estimate, fresh = plan.state[:, 0, 0], plan.denoised[:, 0, 0], plan.noise[:, 0]
            np.testing.assert_allclose(state * plan.alpha[:-1] + estimate, plan.alpha[1:], atol=1e-13)
            np.testing.assert_allclose((state * plan.sigma[:-1]) ** 2 + fresh**2, plan.sigma[1:] ** 2, atol=1e-13)


def test_eta_scales_the_fresh_noise():
    process = Process(linear(), "eps")
    one = ddim(process, 20, 1.0)
    for eta in (0.0, 0.25, 0.5):
        np.testing.assert_allclose(ddim(process, 20, eta).noise, eta * one.noise, rtol=1e-15)
    assert not ddim(process, 20).is_noisy.any()
    np.testing.assert_array_equal(one.is_noisy, [True] * 19 + [False])


def test_large_variance_is_beta():
    schedule = linear()
    plan = ddpm(Process(schedule, "eps"), variance="fixed_large")
    betas = np.linspace(1e-4, 0.02, 1000)[::-1]
    np.testing.assert_allclose(plan.noise[:-1, 0] ** 2, betas[:-1], rtol=1e-9)
    assert plan.noise[-1, 0] == 0
    small = ddpm(Process(schedule, "eps"))
    np.testing.assert_array_equal(plan.state, small.state)
    np.testing.assert_array_equal(plan.denoised, small.denoised)
    assert np.all(small.noise[:-1] < plan.noise[:-1])


def test_ddpm_mean_is_the_published_one():
    # Ho et al., algorithm 2: x_{t-1} = (x_t - beta_t / sqrt(1 - alphas_cumprod_t) eps) / sqrt(1 - beta_t).
    plan, betas = ddpm(Process(linear(), "eps"), clip=None), np.linspace(1e-4, 0.02, 1000)[::-1]
    alphas_cumprod = np.cumprod(1 - betas[::-1])[::-1]
    x, eps = 0.7, -1.3
    estimate = plan.c_skip * x + plan.c_out * eps
    mean = plan.state[:, 0, 0] * x + plan.denoised[:, 0, 0] * estimate
    np.testing.assert_allclose(mean, (x - betas / np.sqrt(1 - alphas_cumprod) * eps) / np.sqrt(1 - betas), atol=1e-8)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name, prediction", PAIRS)
def test_plans_are_finite_for_any_number_of_steps(name, prediction, spacing):
    process = Process(make_schedule(name, T=50), prediction)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for steps in range(1, 51):
            # A plan raises an error for numbers that are not finite; none may occur here, nor a warning.
            for plan in (ddim(process, steps, 0.0, spacing), ddim(process, steps, 1.0, spacing),
                         ddpm(process, steps, "fixed_large", spacing)):  # fmt: skip
                assert plan.rows == steps and plan.alpha[-1] == 1 and plan.sigma[-1] == 0


def test_the_last_row_returns_the_estimate():
    process = Process(Schedule("given", np.array([0.9, 0.5]), np.array([0.1, 0.9])), "x0")
    for plan in (ddim(process, 2), ddim(process, 2, 1.0), ddpm(process), ddpm(process, variance="fixed_large")):
        assert (plan.state[-1, 0, 0], plan.noise[-1, 0]) == (0, 0)
        assert plan.denoised[-1, 0, 0] == pytest.approx(1, abs=1e-15)


# Stopping above clean data


def test_last_t_1_leaves_out_the_last_timestep_as_in_tutorials():
    # for t = T-1 .. 1: x = (x - (1 - a_t)/sqrt(1 - ac_t) eps)/sqrt(a_t) + sqrt(beta_t) z, and z = 0 at t = 1.
    T = 40
    betas = np.linspace(1e-4, 0.02, T)
    a, ac = 1 - betas, np.cumprod(1 - betas)
    plan = ddpm(Process(linear(T), "eps"), variance="fixed_large", clip=None, last_t=1)
    np.testing.assert_array_equal(plan.t, np.arange(T - 1, 0, -1))
    assert (plan.alpha[-1], plan.sigma[-1]) == (linear(T).alpha[0], linear(T).sigma[0])
    np.testing.assert_array_equal(plan.is_noisy, [True] * (T - 2) + [False])
    rng = np.random.default_rng(0)
    x = y = rng.normal(size=5)
    for i, t in enumerate(range(T - 1, 0, -1)):
        eps, z = rng.normal(size=(2, 5))
        z = z if t > 1 else np.zeros(5)
        x = (x - (1 - a[t]) / np.sqrt(1 - ac[t]) * eps) / np.sqrt(a[t]) + np.sqrt(betas[t]) * z
        estimate = plan.c_skip[i] * y + plan.c_out[i] * eps
        y = plan.state[i, 0, 0] * y + plan.denoised[i, 0, 0] * estimate + plan.noise[i, 0] * z
        np.testing.assert_allclose(y, x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_last_t_removes_the_last_rows(variance):
    process = Process(linear(20), "v")
    whole = ddpm(process, variance=variance)
    for last_t in (1, 2, 19):
        plan = ddpm(process, variance=variance, last_t=last_t)
        assert plan.rows == 20 - last_t
        for table, values in plan.tables().items():
            expected = getattr(whole, table)[: len(values)].copy()
            if table == "noise":
                expected[-1] = 0
            np.testing.assert_array_equal(values, expected, err_msg=table)


# The network that predicts the next level


@pytest.mark.parametrize("T", [2, 16, 1000])
@pytest.mark.parametrize("name", SCHEDULES)
def test_each_row_of_next_level_is_the_network_output(name, T):
    plan = next_level(Process(make_schedule(name, T=T), "next_level"))
    np.testing.assert_array_equal(plan.t, np.arange(T)[::-1])
    assert not plan.is_noisy.any() and plan.clip is None
    x, output = np.random.default_rng(0).normal(size=(2, T))
    estimate = plan.c_skip * x + plan.c_out * output
    got = plan.state[:, 0, 0] * x + plan.denoised[:, 0, 0] * estimate
    np.testing.assert_allclose(got, output, rtol=0, atol=1e-14)


@pytest.mark.parametrize("T", [2, 16, 1000])
@pytest.mark.parametrize("name", SCHEDULES)
def test_next_level_equals_deterministic_ddim_over_every_timestep(name, T):
    process = Process(make_schedule(name, T=T), "next_level")
    a, b = next_level(process), ddim(process, T, 0.0, clip=None)
    for table, values in a.tables().items():
        np.testing.assert_allclose(getattr(b, table), values, rtol=1e-12, atol=1e-13, err_msg=table)
    assert (a.start_scale, a.preserves) == (b.start_scale, b.preserves)


@pytest.mark.parametrize("name", SCHEDULES)
def test_next_level_with_an_exact_network_returns_the_image(name):
    schedule = make_schedule(name, T=16)
    plan = next_level(Process(schedule, "next_level"))
    x0, eps = np.random.default_rng(1).normal(size=(2, 7))
    levels = [x0, *(schedule.alpha[t] * x0 + schedule.sigma[t] * eps for t in range(16))]
    x = levels[16]
    for i, t in enumerate(plan.t):
        output = levels[t]  # x_{t-1}: entry 0 is clean, entry 1 is level 0
        estimate = plan.c_skip[i] * x + plan.c_out[i] * output
        np.testing.assert_allclose(estimate, x0, rtol=0, atol=1e-12)
        x = plan.state[i, 0, 0] * x + plan.denoised[i, 0, 0] * estimate
    np.testing.assert_allclose(x, x0, rtol=0, atol=1e-13)


def test_a_clipped_row_of_next_level_stays_between_its_two_levels():
    # A clipped D and the state agree on the eps that D implies, so the row is DDIM's with that D.
    plan = next_level(Process(flow(16), "next_level"), clip=1.0)
    assert plan.clip == 1.0
    np.testing.assert_allclose(plan.state[:, 0, 0] * plan.sigma[:-1], plan.sigma[1:], atol=1e-15)
    with pytest.raises(DuetError, match="clip must be positive or null"):
        next_level(Process(flow(16), "next_level"), clip=0.0)


@pytest.mark.parametrize("prediction", [p for p in ON_TABLES if p != "next_level"])
def test_next_level_needs_its_own_prediction(prediction):
    with pytest.raises(DuetError, match=f"prediction {prediction}; use ddim or ddpm, or a network with prediction"):
        next_level(Process(linear(16), prediction))
