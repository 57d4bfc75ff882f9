"""Training targets on data where the flow, its average velocity and the consistency function are known.

Data N(M, S^2) keep their shape along the flow: x_t has the mean alpha M and the variance q^2 = (alpha S)^2 + sigma^2,
and the probability-flow ODE maps x_t to alpha_s M + q_s/q_t (x_t - alpha_t M). On a mixture of two normal distributions
the estimate is known, and the flow is integrated to about 1e-12 (`exact.Mixture`). A perfect network is a fixed point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from exact import TWO_NORMALS

from diffusion_core.backend.reference.target import scored, target_values
from diffusion_core.backend.target import Pass
from diffusion_core.common.random import Stream
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import make_schedule
from diffusion_core.networks import UNetSpec, lower
from diffusion_core.training.objective import Objective
from diffusion_core.training.targets import Setting, TrainedNetwork

M, S, B, SHAPE = 0.3, 0.7, 8, (2, 2, 1)
INDEX = np.arange(B)
NOISE = Stream(1, "noise").normal(INDEX, SHAPE)
IMAGES = M + S * Stream(1, "images").normal(INDEX, SHAPE)
_SPEC = {
    "image_size": 2, "in_channels": 1, "out_channels": 1, "channels": 4, "channel_multipliers": (1,),
    "blocks_per_resolution": 1, "norm_groups": 2, "num_classes": 1,
}  # fmt: skip
ONE, TWO = lower(UNetSpec(**_SPEC)), lower(UNetSpec(**_SPEC, second_time=True))


def pixels(column: Any) -> np.ndarray:
    return np.asarray(column, np.float64)[:, None, None, None]


class Normal:
    """Pixels of N(M, S^2); levels are (alpha, sigma), each with shape (B,)."""

    rounding = 1e-9

    def moved(self, x: np.ndarray, start: tuple[Any, Any], end: tuple[Any, Any]) -> np.ndarray:
        """Return where the flow takes x from one level to another."""
        (a, s), (b, t) = (tuple(map(pixels, level)) for level in (start, end))
        return b * M + np.sqrt(((b * S) ** 2 + t**2) / ((a * S) ** 2 + s**2)) * (x - a * M)

    def denoised(self, x: np.ndarray, alpha: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        """Return E[x_0 | x_t]."""
        a, s = pixels(alpha), pixels(sigma)
        return M + a * S**2 / ((a * S) ** 2 + s**2) * (x - a * M)


class Mixed:
    """Pixels of two normal distributions."""

    rounding = 1e-6  # of the derivatives, which are differences of flows

    def moved(self, x: np.ndarray, start: tuple[Any, Any], end: tuple[Any, Any]) -> np.ndarray:
        levels = np.broadcast_arrays(*start, *end)
        return np.stack([TWO_NORMALS.follow(one, level[:2], level[2:]) for one, *level in zip(x, *levels, strict=True)])

    def denoised(self, x: np.ndarray, alpha: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        return np.stack([TWO_NORMALS.denoised(*at) for at in zip(x, alpha, sigma, strict=True)])


on_both = pytest.mark.parametrize("data", [Normal(), Mixed()], ids=["normal", "mixture"])


def values(
    process: Process, program: Any, options: dict, draws: dict, network: Callable, teacher: Process | None = None
):
    """Return (the values of a target, the loss of each image) with networks that are functions."""
    taught = teacher and TrainedNetwork(teacher, ONE, {}, SHAPE)
    objective = Objective(
        process, 0, null_label=1, classes=1, objective=options, setting=Setting(process, program, SHAPE, taught)
    )
    batch = objective.target_batch(IMAGES, NOISE, np.zeros(B, int), INDEX, draws, dtype=np.float64)

    def evaluate(step: Pass, x: np.ndarray, c_noise: np.ndarray, second: np.ndarray) -> np.ndarray:
        return network(step, x, c_noise, second)

    known = target_values(objective.loss, batch, evaluate)
    target = objective.loss
    return known, batch.weight * scored(target.distance, known[target.prediction] - known[target.target])


@on_both
def test_the_exact_average_velocity_is_a_fixed_point_of_mean_flow(data):
    """With omega 0 and kappa 1 the velocity is the network's own at h = 0, the exact one of the flow."""
    process = Process(make_schedule("flow_continuous"), "flow")
    t, h = np.linspace(0.3, 1.0, B), np.linspace(0.0, 0.3, B)

    def average(step: Pass, z: np.ndarray, t: np.ndarray, h: np.ndarray) -> np.ndarray:
        same = h == 0
        length = np.where(same, 1.0, h)
        mean = (z - data.moved(z, (1 - t, t), (1 - t + h, t - h))) / pixels(length)
        # The velocity itself: alpha' E[x_0] + sigma' E[eps].
        x0 = data.denoised(z, 1 - t, t)
        return np.where(pixels(same), (z - pixels(1 - t) * x0) / pixels(t) - x0, mean)

    options = {"name": "mean_flow", "omega": 0.0, "kappa": 1.0}
    known, losses = values(process, TWO, options, {"t": t, "r": t - h}, average)
    np.testing.assert_allclose(known["u_target"], known["u"], rtol=0, atol=data.rounding)
    assert losses.max() <= data.rounding


@on_both
def test_exact_steps_are_a_fixed_point_of_shortcut_models(data):
    process = Process(make_schedule("flow_continuous"), "velocity_to_data", -1.0, time_offset=1.0)
    d = np.array([0.0, 1, 2, 3, 0, 1, 2, 3])
    t = np.array([0.0, 0.5, 0.25, 0.875, 0.0, 0.0, 0.75, 0.125])

    def step_of(step: Pass, x: np.ndarray, t: np.ndarray, d: np.ndarray) -> np.ndarray:
        length = 2.0**-d
        levels = ((a, 1 - (1 - 1e-5) * a) for a in (t, t + length))
        return (data.moved(x, *levels) - x) / pixels(length)

    known, _ = values(process, TWO, {"name": "shortcut", "steps": 16}, {"d": d, "t": t}, step_of)
    np.testing.assert_allclose(known["v"], known["s"], rtol=0, atol=0.1 * data.rounding)


@pytest.mark.parametrize("data, solver, order", [(Normal(), "euler", 2), (Normal(), "heun", 3), (Mixed(), "heun", 3)])
def test_the_consistency_function_is_a_fixed_point_up_to_the_error_of_the_solver(data, solver, order):
    """The residual is the local error of the teacher's step: of order 2 or 3 in its length."""
    process = Process(make_schedule("edm"), "edm", boundary=0.002)
    teacher = Process(make_schedule("edm"), "edm")

    def exact(step: Pass, x: np.ndarray, c_noise: np.ndarray, second: np.ndarray) -> np.ndarray:
        own = teacher if step.network == "teacher" else process
        sigma = np.exp(4 * c_noise)
        columns = own.columns_at(sigma, np.ones(B), sigma)
        x = x / pixels(columns.c_in)
        ones = np.ones(B)
        end = (ones, 0.002 * ones)
        D = data.denoised(x, ones, sigma) if step.network == "teacher" else data.moved(x, (ones, sigma), end)
        return (D - pixels(columns.c_skip) * x) / pixels(columns.c_out)

    residuals = []
    for scales in (65, 129):
        index = np.arange(B) * (scales - 1) // 16 + (scales - 1) // 8
        draws = {"index": index, "scales": np.full(B, scales)}
        options = {"name": "consistency_distillation", "solver": solver}
        known, _ = values(process, ONE, options, draws, exact, teacher)
        residuals.append(np.abs(known["online"] - known["target"]).max())
    assert np.log2(residuals[0] / residuals[1]) == pytest.approx(order, abs=0.35)


@pytest.mark.parametrize(
    "data, name",
    [
        (Normal(), "consistency_training"),
        (Normal(), "improved_consistency_training"),
        (Mixed(), "consistency_training"),
    ],
)
def test_the_loss_of_the_consistency_function_vanishes_with_the_distance_of_its_levels(data, name):
    """Trained from data, both points lie on a line through an image and not on the flow: the residual is of order 1."""
    process, ones = Process(make_schedule("edm"), "edm", boundary=0.002), np.ones(B)

    def exact(step: Pass, x: np.ndarray, c_noise: np.ndarray, second: np.ndarray) -> np.ndarray:
        sigma = np.exp(4 * c_noise)
        columns = process.columns_at(sigma, ones, sigma)
        x = x / pixels(columns.c_in)
        f = data.moved(x, (ones, sigma), (ones, 0.002 * ones))
        return (f - pixels(columns.c_skip) * x) / pixels(columns.c_out)

    losses, weights = [], []
    for scales in (129, 257):
        index = np.arange(B) * (scales - 1) // 16 + (scales - 1) // 8
        known, loss = values(
            process, ONE, {"name": name, "distance": "mse"}, {"index": index, "scales": np.full(B, scales)}, exact
        )
        losses.append(np.mean((known["online"] - known["target"]) ** 2))
        weights.append(loss.mean() / losses[-1])
    assert np.log2(losses[0] / losses[1]) == pytest.approx(2.0, abs=0.3)  # of the square
    assert weights[1] / weights[0] == pytest.approx(2.0 if name.startswith("improved") else 1.0, rel=0.6)


@on_both
def test_two_exact_steps_of_a_teacher_converge_to_the_flow(data):
    """The one step with the target of progressive distillation ends where the flow does, up to an error of order 2."""
    schedule = make_schedule("cosine_continuous", log_snr_min=-20.0, log_snr_max=20.0)
    process, errors = Process(schedule, "v"), []

    def exact(step: Pass, z: np.ndarray, t: np.ndarray, second: np.ndarray) -> np.ndarray:
        columns, D = process.columns(t), data.denoised(z, *schedule(t))
        return (D - pixels(columns.c_skip) * z) / pixels(columns.c_out)

    for steps in (32, 64):
        index = steps // 4 + np.arange(B) * steps // 16
        known, _ = values(
            process, ONE, {"name": "progressive_distillation", "steps": steps}, {"index": index}, exact, process
        )
        start, end = (schedule((index + one) / steps) for one in (1, 0))
        (a, s), (b, r) = (tuple(map(pixels, level)) for level in (start, end))
        stepped = r / s * known["z"] + (b - a * r / s) * known["x_target"]
        errors.append(np.abs(stepped - data.moved(known["z"], start, end)).max())
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2.0, abs=0.3)


@on_both
def test_the_consistency_function_has_no_tangent_along_the_flow_of_an_exact_teacher(data):
    """Where the flow ends, near clean data, is constant along it: sCD has the loss 0, its tangent is 0 as it is."""
    process, teacher, m = Process(make_schedule("edm"), "trigflow"), Process(make_schedule("edm"), "edm"), 0.5

    def exact(step: Pass, x: np.ndarray, c_noise: np.ndarray, second: np.ndarray) -> np.ndarray:
        if step.network == "teacher":
            sigma = np.exp(4 * c_noise)
            columns = teacher.columns_at(sigma, np.ones(B), sigma)
            x = x / pixels(columns.c_in)
            return (data.denoised(x, np.ones(B), sigma) - pixels(columns.c_skip) * x) / pixels(columns.c_out)
        cos, sin, y = np.cos(c_noise), np.sin(c_noise), m * x
        end = data.moved(y, (cos, m * sin), (np.ones(B), np.full(B, 0.02)))
        return (pixels(cos) * y - end) / pixels(m * sin)

    options = {"name": "continuous_consistency_distillation", "tangent": "plain"}
    draws = {"tau": np.linspace(-2.5, 3.0, B), "r": np.ones(B)}
    known, losses = values(process, ONE, options, draws, exact, teacher)
    np.testing.assert_allclose(known["g"], 0, rtol=0, atol=10 * data.rounding)
    assert losses.max() <= data.rounding**1.5


@on_both
def test_the_targets_of_an_exact_teacher_do_not_depend_on_its_prediction(data):
    schedule = make_schedule("cosine_continuous", log_snr_min=-20.0, log_snr_max=20.0)
    draws, targets = {"index": np.arange(B) % 4}, []
    for prediction in ("v", "x0", "eps"):
        process = Process(schedule, prediction)

        def exact(
            step: Pass, z: np.ndarray, t: np.ndarray, second: np.ndarray, process: Process = process
        ) -> np.ndarray:
            columns, D = process.columns(t), data.denoised(z, *schedule(t))
            return (D - pixels(columns.c_skip) * z) / pixels(columns.c_out)

        options = {"name": "progressive_distillation", "steps": 4}
        targets.append(values(process, ONE, options, draws, exact, process)[0]["x_target"])
    np.testing.assert_allclose(targets[1], targets[0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(targets[2], targets[0], rtol=0, atol=1e-9)
