"""One-step methods: equalities between them, their noise, and EDM's algorithm 2."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from exact import NORMAL, POINTS, TWO_NORMALS, exactly, execute

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.continuous import cosine_continuous, edm, ve_sde, vp_sde
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import cosine, flow, linear
from diffusion_core.sampling.adams_bashforth import adams_bashforth, lms
from diffusion_core.sampling.ddim import ddim
from diffusion_core.sampling.dpm2 import dpm2, dpm2_ancestral
from diffusion_core.sampling.dpm_solver import dpm_solver
from diffusion_core.sampling.euler import euler, euler_ancestral, flow_euler
from diffusion_core.sampling.heun import flow_heun, heun

LINEAR, COSINE, FLOW = (Process(schedule(), "v") for schedule in (linear, cosine, flow))
GRID = {"name": "karras", "sigma_min": 0.02, "sigma_max": 80.0}


def assert_equal(one, other):
    for name, table in one.tables().items():
        np.testing.assert_allclose(table, getattr(other, name), rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("process", [LINEAR, COSINE, FLOW])
@pytest.mark.parametrize("spacing", ["linspace", GRID])
def test_first_order_methods_equal_ddim(process, spacing):
    plain = ddim(process, 12, spacing=spacing, clip=None)
    assert_equal(euler(process, 12, spacing, clip=None), plain)
    assert_equal(flow_euler(process, 12, spacing=spacing), plain)
    assert_equal(adams_bashforth(process, 12, 1, spacing=spacing), plain)
    if spacing == GRID:
        assert_equal(lms(process, 12, 1, spacing), plain)
        assert_equal(dpm_solver(process, 12, 1, spacing=spacing, clip=None), plain)
    for eta in (0.0, 0.5, 1.0):
        assert_equal(euler_ancestral(process, 12, eta, spacing=spacing), ddim(process, 12, eta, spacing=spacing))


@pytest.mark.parametrize("process", [LINEAR, COSINE, FLOW])
def test_a_large_eta_replaces_all_noise(process):
    """With a large eta each row goes to its estimate of clean data and adds new noise."""
    plan = euler_ancestral(process, 6, 100.0, spacing="linspace", clip=None)
    np.testing.assert_array_equal(plan.state, 0)
    np.testing.assert_allclose(plan.noise[:, 0], plan.sigma[1:], rtol=1e-12)
    np.testing.assert_allclose(plan.denoised[:, 0, 0], plan.alpha[1:], rtol=1e-12)


@pytest.mark.parametrize("process", [LINEAR, COSINE, FLOW])
def test_heun_uses_the_mean_of_two_slopes(process):
    """Algorithm 1 of Karras et al. as printed, on y = x/alpha."""
    plan, data = heun(process, 8, GRID), TWO_NORMALS
    assert plan.rows == 15
    r = (plan.sigma / plan.alpha)[np.append(np.arange(0, 15, 2), 15)]
    y = POINTS * r[0]
    x = plan.alpha[0] * y
    for i in range(8):
        slope = (y - data.denoised(y, 1.0, r[i])) / r[i]
        ahead = y + (r[i + 1] - r[i]) * slope
        if r[i + 1] > 0:
            slope = (slope + (ahead - data.denoised(ahead, 1.0, r[i + 1])) / r[i + 1]) / 2
        y = y + (r[i + 1] - r[i]) * slope
    np.testing.assert_allclose(execute(plan, x, exactly(plan, data)), y, rtol=0, atol=1e-11)


def test_churn_raises_levels_before_their_evaluation():
    """Algorithm 2 of Karras et al. as printed; the starting noise includes the noise that raises the first level."""
    numbers = {"s_churn": 3.0, "s_min": 0.1, "s_max": 40.0, "s_noise": 1.01}
    plan, data, N = heun(LINEAR, 8, GRID, None, **numbers), NORMAL, 8
    rng = np.random.default_rng(0)
    fresh = rng.standard_normal((N, len(POINTS)))
    t = np.append(heun(LINEAR, 8, GRID).sigma[::2] / heun(LINEAR, 8, GRID).alpha[::2], 0.0)[: N + 1]
    t[N] = 0.0
    y = POINTS * t[0]
    start = None
    for i in range(N):
        gamma = min(3.0 / N, np.sqrt(2) - 1) if 0.1 <= t[i] <= 40 else 0.0
        hat = t[i] * (1 + gamma)
        y = y + np.sqrt(hat**2 - t[i] ** 2) * 1.01 * fresh[i]
        start = y * plan.alpha[0] if start is None else start
        slope = (y - data.denoised(y, 1.0, hat)) / hat
        ahead = y + (t[i + 1] - hat) * slope
        if i < N - 1:
            ahead = y + (t[i + 1] - hat) * (slope + (ahead - data.denoised(ahead, 1.0, t[i + 1])) / t[i + 1]) / 2
        y = ahead
    got = execute(plan, start, exactly(plan, data), noise=lambda row: fresh[(row + 1) // 2] if row % 2 else 0.0)
    np.testing.assert_allclose(got, y, rtol=0, atol=1e-11)


@pytest.mark.parametrize("method", [euler, heun, dpm2])
def test_churn_at_the_first_level_is_part_of_the_starting_noise(method):
    calm = method(FLOW, 6, GRID, None)
    for s_noise in (1.0, 1.1):
        plan = method(FLOW, 6, GRID, None, s_churn=1.2, s_noise=s_noise)
        assert plan.sigma[0] / plan.alpha[0] == pytest.approx(1.2 * 80)
        # In units of signal: the starting noise, plus 0.44 of its variance as fresh noise.
        before = calm.start_scale / calm.alpha[0]
        expected = before * np.sqrt(1 + s_noise**2 * (1.2**2 - 1))
        assert plan.start_scale / plan.alpha[0] == pytest.approx(expected, rel=1e-12)


def test_churn_does_not_exceed_the_schedule():
    plan = euler(LINEAR, 5, "linspace", s_churn=1e6)
    assert plan.t[0] == 999
    assert np.all(np.diff(plan.t) < 0)
    assert plan.is_noisy[:-1].all()


@pytest.mark.parametrize("process", [LINEAR, COSINE, FLOW])
def test_dpm2_uses_the_slope_halfway(process):
    plan, data = dpm2(process, 8, GRID), TWO_NORMALS
    r = plan.sigma / plan.alpha
    np.testing.assert_allclose(r[1:-2:2] ** 2, r[:-3:2] * r[2:-1:2], rtol=1e-12)
    y = POINTS * r[0]
    got = execute(plan, plan.alpha[0] * y, exactly(plan, data))
    for i in range(0, 14, 2):
        middle = y + (r[i + 1] - r[i]) * (y - data.denoised(y, 1.0, r[i])) / r[i]
        y = y + (r[i + 2] - r[i]) * (middle - data.denoised(middle, 1.0, r[i + 1])) / r[i + 1]
    np.testing.assert_allclose(got, data.denoised(y, 1.0, r[-2]), rtol=0, atol=1e-11)


def test_flow_heun_uses_the_mean_of_two_velocities():
    """Also from pure noise, where sigma/alpha is infinite."""
    plan, data = flow_heun(FLOW, 8), TWO_NORMALS
    assert plan.alpha[0] == 0
    times = plan.sigma[np.append(np.arange(0, 15, 2), 15)]
    x = POINTS
    for now, then in pairwise(times):
        velocity = (x - data.denoised(x, 1 - now, now)) / now
        ahead = x + (then - now) * velocity
        if then > 0:
            velocity = (velocity + (ahead - data.denoised(ahead, 1 - then, then)) / then) / 2
        x = x + (then - now) * velocity
    np.testing.assert_allclose(execute(plan, POINTS, exactly(plan, data)), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_shift_is_that_of_flow_matching(shift):
    plain, plan = flow_euler(FLOW, 7, spacing="trailing"), flow_euler(FLOW, 7, shift, "trailing")
    np.testing.assert_allclose(plan.sigma, shift * plain.sigma / (1 + (shift - 1) * plain.sigma), rtol=1e-12)
    np.testing.assert_allclose(plan.alpha, 1 - plan.sigma, rtol=0, atol=1e-12)


def test_shift_stays_within_the_schedule():
    for shift, end in ((0.1, 0), (10.0, 999)):
        t = flow_heun(LINEAR, 20, shift).t
        assert end in t
        assert t.min() >= 0 and t.max() <= 999 and np.all(np.diff(t) <= 0)


@pytest.mark.parametrize("order, expected", [
    (1, [1]), (2, [3 / 2, -1 / 2]), (3, [23 / 12, -16 / 12, 5 / 12]), (4, [55 / 24, -59 / 24, 37 / 24, -9 / 24]),
])  # fmt: skip
def test_adams_bashforth_has_the_classical_weights_for_equal_steps(order, expected):
    """Every 100th timestep of the flow has equal steps of sigma."""
    plan = adams_bashforth(FLOW, 10, order, spacing="leading")
    np.testing.assert_allclose(-np.diff(plan.sigma[:-1]), 0.1, rtol=1e-12)
    weights = plan.state[5, 0, 1:] / -0.1
    np.testing.assert_allclose(weights, expected[1:], rtol=0, atol=1e-12)
    np.testing.assert_allclose(plan.state[5, 0, 0], 1 - 0.1 * expected[0] / plan.sigma[5], rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_lms_follows_polynomial_slopes_exactly(order):
    """In r = sigma/alpha with steps of any lengths: dy/dr = p(r), so D = y - r p(r)."""
    plan = lms(LINEAR, 9, order, GRID)
    slope = np.polynomial.Polynomial([0.3, -0.2, 0.05, -0.01][:order])
    r = plan.sigma / plan.alpha

    def path(row):
        return plan.alpha[row] * np.array([slope.integ()(r[row])])

    def given(row, x):
        return x / plan.alpha[row] - r[row] * slope(r[row])

    # The first rows have fewer slopes than the polynomial needs; later rows are exact, relative to their result.
    base, rows = order - 1, plan.rows
    arrived = execute(plan, path(0), given, base) / plan.alpha[base] - path(base) / plan.alpha[base]
    got = execute(plan, path(0), given, rows)
    np.testing.assert_allclose(got, path(rows) + arrived, rtol=1e-11)


@pytest.mark.parametrize("process", [
    Process(edm(), "edm"), Process(vp_sde(), "vp"), Process(ve_sde(), "ve"), Process(cosine_continuous(), "v"),
], ids=lambda process: process.prediction)  # fmt: skip
@pytest.mark.parametrize("make", [euler, euler_ancestral, flow_euler, heun, flow_heun, dpm2, dpm2_ancestral, lms])
def test_plans_on_continuous_schedules_are_finite_from_the_noisiest_level(make, process):
    for steps in (1, 2, 3, 18):
        whole = {"name": "karras", "sigma_max": float(np.exp(process.schedule.log_ratio_range[1]))}
        for spacing in (whole, "linspace"):
            plan = make(process, steps, spacing=spacing)
            assert plan.t[0] == pytest.approx(process.schedule.span[1], rel=1e-12)


@pytest.mark.parametrize("make, message", [
    (lambda: heun(FLOW, 5, "linspace"), "heun: its first level has no signal .* use flow_heun or ddim"),
    (lambda: dpm2(FLOW, 5, "linspace"), "dpm2: its first level has no signal"),
    (lambda: dpm2_ancestral(FLOW, 5, spacing="linspace"), "dpm2_ancestral: its first level has no signal"),
    (lambda: lms(FLOW, 5, spacing="linspace"), "lms: its first level has no signal"),
    (lambda: adams_bashforth(FLOW, 5, variable="ratio"), "adams_bashforth: its first level has no signal"),
    (lambda: adams_bashforth(FLOW, 5, variable="angle"), "sampler.variable: 'angle'"),
    (lambda: lms(LINEAR, 5, 5), "sampler.order: 5 was given; it must be 1, 2, 3 or 4"),
    (lambda: euler_ancestral(LINEAR, 5, -1.0), "sampler.eta: -1.0 was given"),
    (lambda: euler_ancestral(LINEAR, 5, s_noise=-1.0), "sampler.s_noise: -1.0 was given"),
    (lambda: heun(LINEAR, 5, s_churn=-1.0), "sampler.s_churn: -1.0 was given"),
    (lambda: heun(LINEAR, 5, s_churn=float("nan")), "sampler.s_churn: nan was given"),
    (lambda: heun(LINEAR, 5, s_min=2.0, s_max=1.0), "sampler.s_min: 2.0 was given with s_max 1.0"),
    (lambda: flow_euler(FLOW, 5, 0.0), "sampler.shift: 0.0 was given"),
])  # fmt: skip
def test_invalid_options_are_errors(make, message):
    with pytest.raises(DuetError, match=message):
        make()
