"""The validation loss of methods whose targets need the network: their own loss, with everything random held fixed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from diffusion_core.backend import reference
from diffusion_core.backend.reference.target import derivative, target_losses
from diffusion_core.common.random import Stream
from diffusion_core.data import load_dataset
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import PlainSpec, Program, UNetSpec
from diffusion_core.training.objective import Objective
from diffusion_core.training.targets import Progress, TrainedNetwork
from diffusion_core.training.validation import Validation, metric_name

SPEC = UNetSpec(
    image_size=8, in_channels=1, out_channels=1, channels=4, channel_multipliers=(1,), blocks_per_resolution=1,
    norm_groups=2, num_classes=10,
)  # fmt: skip
PLAIN = PlainSpec(image_size=8, in_channels=1, out_channels=1, channels=(4,), bottleneck=4)
LINE, CONSISTENCY = {"name": "flow_continuous"}, {"time_scale": 1000.0, "boundary": 0.002}
HELD_OUT = load_dataset("digits", part="held_out")


@dataclass
class Computed:
    """A network of a backend, computed by the reference."""

    program: Program
    weights: dict

    def forward(self, *inputs: Any, second_time: Any = None) -> np.ndarray:
        return reference.forward(self.program, self.weights, *inputs, second_time=second_time)

    def jvp(self, x, c_noise, label, tangents, features=None, second_time=None):
        second = np.full(len(x), self.program.default_second_time) if second_time is None else second_time

        def output(x: np.ndarray, c_noise: np.ndarray, second: np.ndarray) -> np.ndarray:
            return self.forward(x, c_noise, label, features, second_time=second)

        return output(x, c_noise, second), derivative(output, (x, c_noise, second), tangents)


def scattered(program: Program, seed: int) -> dict:
    return {p.name: 0.3 * Stream(seed, p.name).normal(np.arange(1), p.shape)[0] for p in program.parameters}


def made(spec: Any, schedule: dict, prediction: str, teacher: DiffusionModel | None = None, **options: Any):
    """Return (a model, its networks, a function of the options of a method that makes its validation)."""
    model = DiffusionModel(spec, schedule, prediction, **options)
    networks = {
        name: Computed(model.program, scattered(model.program, i)) for i, name in enumerate(("trained", "average"))
    }
    taught = None
    if teacher is not None:
        networks["teacher"] = Computed(teacher.program, scattered(teacher.program, 2))
        taught = TrainedNetwork(teacher.process, teacher.program, networks["teacher"].weights, teacher.spec.image_shape)

    def validation(count: int = 16, batch: int = 16, images: int = 1000, **method: Any) -> Validation:
        objective = Objective.for_model(model, 3, taught, images, objective=method)
        return Validation(model, objective, HELD_OUT, "held_out", count, batch, np.float64)

    return model, networks, validation


CASES = {
    "consistency_distillation": (
        made(SPEC, {"name": "edm"}, "edm", DiffusionModel(SPEC, {"name": "edm"}, "edm"), **CONSISTENCY), {},
    ),
    "mean_flow": (made(replace(SPEC, second_time=True), LINE, "flow"), {"same_time": 0.3}),
    "shortcut": (
        made(replace(SPEC, second_time=True), LINE, "velocity_to_data", time_scale=-1.0, time_offset=1.0),
        {"steps": 8, "every": 2},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_loss_of_the_target_in_every_pass(name):
    (model, networks, validation), options = CASES[name]
    own = validation(name=name, **options)
    batch = own._batch(0)
    average = networks["average"].weights
    wanted, _ = target_losses(model.program, networks["trained"].weights, batch, own.objective.loss, average)
    np.testing.assert_allclose(own.values(networks)["loss"], wanted, rtol=1e-9)
    np.testing.assert_allclose(validation(batch=5, name=name, **options).values(networks)["loss"], wanted, rtol=1e-9)


def test_it_is_the_expected_training_loss_at_the_end_of_a_run():
    model, networks, validation = made(PLAIN, {"name": "edm"}, "edm", **CONSISTENCY)
    own = validation(count=720, batch=720, name="consistency_training", end_scales=20, distance="pseudo_huber")
    objective, losses = own.objective, []
    pixels, end = HELD_OUT.images / 127.5 - 1.0, Progress(99, 100)
    for first in (0, 360, 720):
        batch = objective.batch(pixels, HELD_OUT.labels, np.arange(first, first + 360), np.float64, progress=end)
        weights = networks["trained"].weights, batch, objective.loss, networks["average"].weights
        losses.append(target_losses(model.program, *weights)[0])
    losses = np.concatenate(losses)
    assert abs(own.measure(networks)["validation_loss"] - losses.mean()) < 5 * losses.std() / np.sqrt(len(losses))


def test_levels_that_grow_in_a_run_are_those_of_its_end():
    _, _, validation = made(PLAIN, {"name": "edm"}, "edm", **CONSISTENCY)
    for images in (16, 1000, 10**6):
        own = validation(images=images, name="improved_consistency_training")
        assert set(own.method_draws["scales"]) == {1281}
    assert set(validation(name="consistency_training").method_draws["scales"]) == {201}
    _, _, validation = made(PLAIN, {"name": "edm"}, "edm")
    assert set(validation(name="easy_consistency_tuning").method_draws["stage"]) == {7}


def test_draws_are_put_in_bins_by_their_noise():
    _, networks, validation = made(PLAIN, {"name": "edm"}, "edm", **CONSISTENCY)
    own = validation(count=40, name="consistency_training")
    assert np.bincount(own.draw_levels).tolist() == [10] * 4
    ends = [level["sigma_over_alpha"] for level in own.facts()["levels"]]
    assert all(one[1] <= other[0] for one, other in pairwise(ends)) and "t" not in own.facts()["levels"][0]
    numbers = own.measure(networks)
    levels = [numbers[metric_name(level=k)] for k in (1, 2, 3, 4)]
    assert np.mean(levels) == pytest.approx(numbers["validation_loss"], rel=1e-12)


def test_validations_cost_a_tenth_of_the_training_whatever_a_step_costs():
    own = CASES["mean_flow"][0][2](count=600, name="mean_flow")  # guided: two passes and the derivative
    assert own.objective.loss.forwards == 3
    assert own.interval(10**5, 100, 1) == pytest.approx(600 * 2 * 4 / ((3 + 3) * 0.1), abs=100)
    assert own.interval(10**7, 100, 1) == 10**5
