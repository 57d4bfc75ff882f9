"""DDIM inversion: its rows, and that DDIM returns to the image."""

from __future__ import annotations

import numpy as np
import pytest
from exact import NORMAL, POINTS, TWO_NORMALS, exactly, execute

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import cosine, flow, linear
from diffusion_core.sampling.ddim import ddim
from diffusion_core.sampling.inversion import ddim_inversion

PROCESSES = {"eps": Process(linear(), "eps"), "v": Process(cosine(), "v"), "flow": Process(flow(), "x0")}


@pytest.mark.parametrize("name", PROCESSES)
def test_rows_with_ask_next(name):
    """x_s = alpha_s/alpha_t x_t + (sigma_s - alpha_s sigma_t/alpha_t) eps with eps of the network at s."""
    process = PROCESSES[name]
    plan = ddim_inversion(process, 10)
    way_back = ddim(process, 10)
    np.testing.assert_array_equal(plan.t, way_back.t[::-1])
    np.testing.assert_array_equal(plan.alpha[1:], way_back.alpha[-2::-1])
    assert (plan.alpha[0], plan.sigma[0]) == (1.0, 0.0)
    x, output = np.array([0.3, -1.2]), np.array([0.7, 0.4])
    for i in range(10):
        a, s, a_next, s_next = plan.alpha[i], plan.sigma[i], plan.alpha[i + 1], plan.sigma[i + 1]
        estimate = plan.c_skip[i] * x + plan.c_out[i] * output
        eps = output if name == "eps" else (x - a_next * estimate) / s_next
        expected = a_next / a * x + (s_next - a_next * s / a) * eps
        got = plan.state[i, 0, 0] * x + plan.denoised[i, 0, 0] * estimate
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
def test_rows_with_ask_current_are_ddim_upwards(name):
    """A row up and the row of DDIM down are inverse for the same estimate."""
    process = PROCESSES[name]
    up, down = ddim_inversion(process, 10, "current"), ddim(process, 10)
    assert up.rows == 9
    x, estimate = np.array([0.3, -1.2]), np.array([0.7, 0.4])
    for i in range(9):
        raised = up.state[i, 0, 0] * x + up.denoised[i, 0, 0] * estimate
        j = 8 - i
        assert (down.alpha[j], down.alpha[j + 1]) == (up.alpha[i + 1], up.alpha[i])
        back = down.state[j, 0, 0] * raised + down.denoised[j, 0, 0] * estimate
        np.testing.assert_allclose(back, x, rtol=1e-12)


@pytest.mark.parametrize("ask", ["next", "current"])
@pytest.mark.parametrize("data", [NORMAL, TWO_NORMALS])
def test_inversion_follows_the_probability_flow_at_first_order(ask, data):
    process = Process(linear(), "v")

    def error(steps):
        grid = {"name": "karras", "sigma_min": 0.02, "sigma_max": 20.0}
        plan = ddim_inversion(process, steps, ask, grid)
        if ask == "next":
            # The first row starts from clean data, where the flow is not defined: begin after it.
            estimate, first = exactly_at_the_next(plan, data), 1
        else:
            estimate, first = exactly(plan, data), 0
        start = POINTS / 2
        arrived = execute(plan, start, estimate)
        origin = execute(plan, start, estimate, first)
        ends = (plan.alpha[first], plan.sigma[first]), (plan.alpha[-1], plan.sigma[-1])
        return np.abs(arrived - data.follow(origin, *ends)).max()

    wrong = [error(steps) for steps in (100, 200, 400)]
    assert -np.polyfit(np.log([100, 200, 400]), np.log(wrong), 1)[0] == pytest.approx(1, abs=0.15)


def exactly_at_the_next(plan, data):
    return lambda row, x: data.denoised(x, plan.alpha[row + 1], plan.sigma[row + 1])


@pytest.mark.parametrize("ask", ["next", "current"])
def test_ddim_after_inversion_returns_the_image(ask):
    """The distance to the image falls with the number of steps."""
    process, start = Process(linear(), "v"), np.linspace(-1, 1, 9)

    def distance(steps):
        up, down = ddim_inversion(process, steps, ask), ddim(process, steps, clip=None)
        estimate = exactly_at_the_next(up, NORMAL) if ask == "next" else exactly(up, NORMAL)
        noise = execute(up, start, estimate)
        return np.abs(execute(down, noise, exactly(down, NORMAL)) - start).max()

    near = [distance(steps) for steps in (50, 100, 200)]
    assert near[0] > 1.5 * near[1] > 2.0 * near[2]
    assert near[2] < 0.05


@pytest.mark.parametrize("options, message", [
    ({"ask": "now"}, "sampler.ask: 'now'"),
    ({"ask": "current", "steps": 1}, "use at least 2, or ask=next"),
    ({"steps": 0}, "sampler.steps: 0"),
])  # fmt: skip
def test_invalid_options_are_errors(options, message):
    with pytest.raises(DuetError, match=message):
        ddim_inversion(PROCESSES["v"], **options)


@pytest.mark.parametrize("ask", ["next", "current"])
def test_plans_rise_from_clean_data_for_any_number_of_steps(ask):
    for process in PROCESSES.values():
        for steps in range(1 if ask == "next" else 2, 51):
            plan = ddim_inversion(process, steps, ask)
            assert plan.rows == (steps if ask == "next" else steps - 1)
            with np.errstate(divide="ignore"):
                assert (np.diff(plan.sigma / plan.alpha) > 0).all()
            assert all(np.isfinite(table).all() for table in (plan.state, plan.denoised)) and not plan.noise.any()
