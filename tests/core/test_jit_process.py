"""The process of JiT: its times, its loss and its sampler, against the formulas of its code written out in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.loss_weighting import make_weights
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import make_schedule
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import PlainSpec
from diffusion_core.sampling import make_plan
from diffusion_core.training.objective import Objective

FLOOR = 0.05
CLASS, NULL = 0.7, -0.4


def jit_process(noise_scale: float = 1.0, **changes: float) -> Process:
    schedule = make_schedule("flow_continuous", t_min=1e-12, noise_scale=noise_scale)
    return Process(schedule, **{"prediction": "x0", "time_scale": -1.0, "time_offset": 1.0, "t_floor": FLOOR} | changes)


def network(z: NDArray, t: NDArray | float, label: NDArray | float) -> NDArray:
    """A curved x-prediction that reads all of its inputs; t runs from noise, 0, to data, 1."""
    return np.tanh(0.8 * z + label * (1.0 + np.asarray(t)) + 0.3 * np.sin(3.0 * np.asarray(t)))


def velocity(z: NDArray, t: float, scale: float, low: float, high: float) -> NDArray:
    divisor = max(1.0 - t, FLOOR)
    with_class, without = ((network(z, t, label) - z) / divisor for label in (CLASS, NULL))
    guided = t < high and (low == 0 or t > low)
    return without + (scale if guided else 1.0) * (with_class - without)


def generate(z: NDArray, steps: int, heun: bool, scale: float, low: float, high: float) -> NDArray:
    """The sampler of the original: even times, the last step Euler's."""
    times = [i / steps for i in range(steps + 1)]
    for i, (t, after) in enumerate(pairwise(times)):
        v = velocity(z, t, scale, low, high)
        if heun and i < steps - 1:
            v = 0.5 * (v + velocity(z + (after - t) * v, after, scale, low, high))
        z = z + (after - t) * v
    return z


@pytest.mark.parametrize("noise_scale", [1.0, 2.0])
@pytest.mark.parametrize("sampler, steps", [("flow_euler", 7), ("flow_heun", 20), ("flow_heun", 50)])
def test_the_sampler_takes_the_steps_of_the_original(noise_scale, sampler, steps):
    noise = np.random.default_rng(0).standard_normal((4, 5))
    options = {"guidance_scale": 2.9, "interval": [0.0, 8.99 * noise_scale]}  # t > 0.1 in the original's time
    plan = make_plan(jit_process(noise_scale), sampler, steps=steps, spacing="trailing", **options)
    assert plan.start_scale == noise_scale

    def guided(row: int, x: NDArray) -> NDArray:
        one, other = (network(x, plan.c_noise[row], label) for label in (CLASS, NULL))
        return other + plan.guidance_scale[row] * (one - other)

    got = run(plan, guided, plan.start_scale * noise)
    wanted = generate(noise_scale * noise, steps, sampler == "flow_heun", 2.9, 0.1, 1.0)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-10)


def run(plan, output: Callable[[int, NDArray], NDArray], start: NDArray) -> NDArray:
    """Run a plan of one estimate in NumPy."""
    registers = [start] + [np.zeros_like(start)] * (plan.registers - 1)
    for i in range(plan.rows):
        D = plan.c_skip[i] * registers[0] + plan.c_out[i] * output(i, registers[0])
        registers = [
            sum(plan.state[i, r, q] * registers[q] for q in range(plan.registers)) + plan.denoised[i, r, 0] * D
            for r in range(plan.registers)
        ]
    return registers[0]


@pytest.mark.parametrize("noise_scale", [1.0, 2.0])
def test_the_loss_is_the_v_loss_of_the_original(noise_scale):
    """The mean of (v - v_pred)^2, both divided by max(1 - t, 0.05); a few times lie below the floor."""
    process, n = jit_process(noise_scale), 64
    options = {"weighting": {"name": "velocity"}, "timestep_sampling": {"name": "logit_normal", "mean": -2, "std": 2.5}}
    x = np.random.default_rng(1).standard_normal((n, 2, 2, 1))
    batch = Objective(process, 5, **options).batch(x, np.zeros(n), np.arange(n), np.float64)
    t = batch.c_noise[:, None, None, None]
    assert 5 < np.count_nonzero(1 - batch.c_noise < FLOOR) < n - 5
    z = t * x + (1 - t) * noise_scale * batch.noise
    v, v_pred = ((value - z) / np.maximum(1 - t, FLOOR) for value in (x, network(z, t, CLASS)))
    residual = network(batch.c_in[:, None, None, None] * z, t, CLASS) - x
    np.testing.assert_array_equal(batch.target_x0, 1)
    np.testing.assert_array_equal(batch.target_eps, 0)
    np.testing.assert_allclose(batch.sigma, noise_scale * (1 - batch.c_noise), rtol=1e-9)
    got = batch.weight * np.mean(residual**2, axis=(1, 2, 3))
    np.testing.assert_allclose(got, np.mean((v - v_pred) ** 2, axis=(1, 2, 3)), rtol=1e-11)


def test_times_are_the_sigmoid_of_a_normal_number():
    """log(t/(1 - t)) ~ N(-0.8, 0.8^2) in the original's time is N(0.8, 0.8^2) in that of the noise."""
    sampling = {"name": "logit_normal", "mean": 0.8, "std": 0.8}
    t, _ = Objective(jit_process(), 3, timestep_sampling=sampling).draw_timesteps(np.arange(20_000))
    theirs = jit_process().columns(t).c_noise
    logits = np.log(theirs) - np.log(1 - theirs)
    assert logits.mean() == pytest.approx(-0.8, abs=0.02) and logits.std() == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("noise_scale", [0.5, 1.0, 3.0])
def test_noise_of_any_scale_is_a_schedule_like_others(noise_scale):
    schedule, h = make_schedule("flow_continuous", noise_scale=noise_scale), 1e-6
    t = np.linspace(0.01, 0.99, 9)
    alpha, sigma = schedule(t)
    np.testing.assert_allclose(schedule.norm(alpha, sigma), 1, atol=1e-15)
    np.testing.assert_allclose(schedule.t_at_log_ratio(np.log(sigma / alpha)), t, rtol=1e-12)
    rates = [(after - before) / (2 * h) for after, before in zip(schedule(t + h), schedule(t - h), strict=True)]
    np.testing.assert_allclose(schedule.rates(t), rates, rtol=1e-8)
    columns = Process(schedule, "velocity").columns(t)
    np.testing.assert_allclose([columns.target_x0, columns.target_eps], rates, rtol=1e-8)
    # A known x_0 moves on a straight line in t, so that Heun's method in t, too, is exact for it.
    shifted = make_schedule("flow_continuous", noise_scale=noise_scale, log_snr_shift=1.3)
    np.testing.assert_allclose(shifted.norm(*shifted(t)), 1, atol=1e-14)


def test_heun_is_the_same_in_the_own_time_of_the_schedule():
    """`flow_heun` and `heun` in the variable t are two ways to write the method of the original."""
    process = Process(make_schedule("flow_continuous", noise_scale=2.0, t_max=0.95), "flow")
    noise = np.random.default_rng(2).standard_normal((3, 4))
    plans = [
        make_plan(process, name, steps=6, clip=None, **options)
        for name, options in (("flow_heun", {}), ("heun", {"variable": "t", "spacing": "linspace"}))
    ]
    one, other = (run(plan, lambda i, x, plan=plan: network(x, plan.c_noise[i], 1.0), 2 * noise) for plan in plans)
    np.testing.assert_allclose(one, other, rtol=1e-8)


def test_the_floor_changes_nothing_above_it():
    t = np.array([1e-9, 0.01, FLOOR, 0.3, 1.0])
    columns, plain = jit_process().columns(t), jit_process(t_floor=0.0).columns(t)
    np.testing.assert_allclose(columns.c_out, [2e-8, 0.2, 1, 1, 1], rtol=1e-12)
    np.testing.assert_allclose(columns.c_skip + columns.c_out, 1, rtol=1e-15)
    assert (plain.c_out == 1).all() and (plain.c_skip == 0).all()
    np.testing.assert_allclose(columns.c_noise, 1 - t, rtol=1e-15)
    weights = make_weights(jit_process(), "velocity")(t)
    np.testing.assert_allclose(weights, 1 / np.maximum(t, FLOOR) ** 2, rtol=1e-12)


def test_a_checkpoint_keeps_offset_and_floor():
    spec = PlainSpec(8, 1, 1, channels=(4,), bottleneck=4)
    options = {"time_scale": -1.0, "time_offset": 1.0, "t_floor": FLOOR}
    model = DiffusionModel(spec, {"name": "flow_continuous", "noise_scale": 2.0}, "x0", **options)
    again = DiffusionModel.from_dict(model.to_dict())
    assert again == model and again.process.columns(0.25).c_noise == 0.75
    old = {name: value for name, value in model.to_dict().items() if name not in ("time_offset", "t_floor")}
    assert DiffusionModel.from_dict(old).process.time_offset == 0


@pytest.mark.parametrize("schedule, changes, message", [
    ({"name": "flow_continuous"}, {"t_floor": -0.1}, r"process.t_floor: -0.1 was given; it must be a time, at least 0"),
    ({"name": "flow_continuous"}, {"prediction": "v", "t_floor": 0.1}, "use 0, or prediction x0"),
    ({"name": "cosine"}, {"t_floor": 0.1}, "on the schedule cosine; a floor is defined on the straight line only"),
    ({"name": "linear_vp"}, {"t_floor": 0.1}, "on the straight line only"),
    ({"name": "flow_continuous", "log_snr_shift": 1.0}, {"t_floor": 0.1}, "without a shift"),
    ({"name": "flow_continuous"}, {"time_scale": 0.0}, "process.time_scale: 0.0 was given; it must be a number other"),
    ({"name": "flow_continuous"}, {"time_offset": float("inf")}, "process.time_offset: inf was given"),
])  # fmt: skip
def test_what_has_no_meaning_is_refused(schedule, changes, message):
    with pytest.raises(DuetError, match=message):
        Process(make_schedule(**schedule), **{"prediction": "x0"} | changes)


def test_other_mistakes_are_refused():
    with pytest.raises(DuetError, match=r"schedule.noise_scale: 0 was given; it must be a positive number"):
        make_schedule("flow_continuous", noise_scale=0)
    with pytest.raises(DuetError, match=r"process.weighting: velocity was given; it needs continuous time, but linear"):
        make_weights(Process(make_schedule("linear"), "eps"), "velocity")
