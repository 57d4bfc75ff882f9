"""The samplers of few steps against transcriptions of their authors' code, with networks that are functions."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import make_schedule
from diffusion_core.sampling import SamplerPlan, make_plan

START, Z = Stream(0, "start").normal(np.arange(3), (2, 2)), Stream(0, "z").normal(np.arange(9), (3, 2, 2))
CONSISTENCY = Process(make_schedule("edm"), "edm", 1000.0, boundary=0.002)
LINE = make_schedule("flow_continuous")


def network(x: np.ndarray, c_noise: float, second: float = 0.0) -> np.ndarray:
    return np.tanh(1.3 * x + np.sin(0.01 * c_noise + second)) - 0.2 * x


def executed(plan: SamplerPlan, start: np.ndarray) -> np.ndarray:
    """Run a plan with one register on a network that reads two times."""
    x = start
    for i in range(plan.rows):
        second = 0.0 if plan.second_time is None else plan.second_time[i]
        D = plan.c_skip[i] * x + plan.c_out[i] * network(plan.c_in[i] * x, plan.c_noise[i], second)
        D = D if plan.clip is None else np.clip(D, -plan.clip, plan.clip)
        x = plan.state[i, 0, 0] * x + plan.denoised[i, 0, 0] * D + plan.noise[i, 0] * Z[i]
    return x


def distiller(x: np.ndarray, t: float, s_min: float = 0.002, sd: float = 0.5) -> np.ndarray:
    c_skip = sd**2 / ((t - s_min) ** 2 + sd**2)
    c_out, c_in = (t - s_min) * sd / (t**2 + sd**2) ** 0.5, 1 / (t**2 + sd**2) ** 0.5
    return c_skip * x + c_out * network(c_in * x, 250 * np.log(t + 1e-44))


def test_multistep_consistency_sampling_is_that_of_its_authors():
    """stochastic_iterative_sampler, whose ts are places on a grid of 40 levels."""
    ts, steps, t_min, t_max, rho = [0, 13, 22, 39], 40, 0.002, 80.0, 7.0
    roots = t_max ** (1 / rho), t_min ** (1 / rho)
    levels = [(roots[0] + place / (steps - 1) * (roots[1] - roots[0])) ** rho for place in ts]
    levels[-1] = t_min  # up to rounding, of which the square root would be noise of 1e-10
    x = START * t_max
    for i in range(len(ts) - 1):
        x0 = np.clip(distiller(x, levels[i]), -1, 1)
        x = x0 + Z[i] * np.sqrt(np.clip(levels[i + 1], t_min, t_max) ** 2 - t_min**2)
    plan = make_plan(CONSISTENCY, "consistency", sigmas=levels[:-1], clip=1.0)
    assert plan.start_scale == pytest.approx(80.0, rel=1e-14)
    # There the last noise is the root of the rounding error of t_min^2 - t_min^2.
    np.testing.assert_allclose(executed(plan, START * t_max), x, rtol=0, atol=1e-9)


def test_steps_lie_between_the_most_and_the_least_noise():
    plan = make_plan(CONSISTENCY, "consistency", steps=3)
    roots = 80.0 ** (1 / 7), 0.002 ** (1 / 7)
    np.testing.assert_allclose(plan.t, [(roots[0] + i / 3 * (roots[1] - roots[0])) ** 7 for i in range(3)], rtol=1e-12)
    one = make_plan(CONSISTENCY, "consistency")
    np.testing.assert_allclose(executed(one, START * 80), distiller(START * 80, 80.0), rtol=0, atol=1e-12)


def test_a_boundary_of_the_sampler_is_that_of_the_estimates_of_edm():
    with pytest.raises(DuetError, match=r"sampler.boundary: 0.003 was given with process.prediction=velocity; only"):
        make_plan(Process(LINE, "velocity"), "consistency", boundary=0.003)
    with pytest.raises(DuetError, match=r"sampler.boundary: 0.9 was given; it must be .* least sigma/alpha .*, 0.8"):
        make_plan(Process(make_schedule("edm"), "edm"), "consistency", sigmas=[80.0, 0.8], boundary=0.9)


@pytest.mark.parametrize("boundary", [None, 0.003])
def test_the_generator_of_ect_adds_the_whole_noise(boundary):
    """With the scalings of its network in training mode, and in evaluation mode."""
    process, mid = Process(make_schedule("edm"), "edm"), [0.821, 0.2]

    def net(x: np.ndarray, t: float) -> np.ndarray:
        root, above = np.sqrt(t**2 + 0.25), t - (boundary or 0.0)
        return 0.25 / (above**2 + 0.25) * x + above * 0.5 / root * network(x / root, np.log(t) / 4)

    x = START * 80.0
    for i, (t_cur, t_next) in enumerate(zip([80.0, *mid], [*mid, 0.0], strict=True)):
        x = net(x, t_cur)
        x = x + t_next * Z[i] if t_next > 0 else x
    got = executed(make_plan(process, "consistency", sigmas=[80.0, *mid], boundary=boundary), START * 80.0)
    np.testing.assert_allclose(got, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
@pytest.mark.parametrize("times", [None, [1.0, 0.7, 0.4]])
def test_steps_of_the_average_velocity(times, scale):
    process = Process(LINE, "flow", scale)
    plan = make_plan(process, "mean_flow", **({"steps": 4} if times is None else {"times": times}))
    t_steps = [*(times or [1.0, 0.75, 0.5, 0.25]), 0.0]
    z = START
    for t, r in pairwise(t_steps):
        z = z - (t - r) * network(z, scale * t, scale * (t - r))
    np.testing.assert_allclose(executed(plan, START), z, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_steps_of_a_shortcut_model(steps):
    process = Process(LINE, "velocity_to_data", -1.0, time_offset=1.0)
    x = START
    for i in range(steps):
        x = x + network(x, i / steps, np.log2(steps)) / steps
    np.testing.assert_allclose(executed(make_plan(process, "shortcut", steps=steps), START), x, rtol=0, atol=1e-12)
    with pytest.raises(DuetError, match="takes a power of two"):
        make_plan(process, "shortcut", steps=6)


@pytest.mark.parametrize("prediction", ["v", "eps", "x0"])
def test_ddim_with_equal_steps_samples_a_distilled_network(prediction):
    """ddim_step of progressive distillation: u = (i + 1)/N to i/N, and the last step returns x_0."""
    schedule, steps = make_schedule("cosine_continuous", log_snr_min=-20.0, log_snr_max=20.0), 4
    process = Process(schedule, prediction)
    z = START
    for i in reversed(range(steps)):
        (a, s), (b, t) = schedule((i + 1) / steps), schedule(i / steps)
        output = network(z, (i + 1) / steps)
        x = {"v": a * z - s * output, "eps": (z - s * output) / a, "x0": output}[prediction]
        z = x if i == 0 else b * x + t * (z - a * x) / s
    plan = make_plan(process, "ddim", steps=steps, spacing="trailing", clip=None)
    np.testing.assert_allclose(executed(plan, START), z, rtol=1e-9, atol=1e-9)


def test_another_process_is_refused():
    for name in ("mean_flow", "shortcut"):
        with pytest.raises(DuetError, match="its steps are those of the straight line, flow_continuous"):
            make_plan(CONSISTENCY, name)
