"""Every backend runs the steps of a target as the NumPy reference does; its gradients leave out what has none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from diffusion_core.backend import reference
from diffusion_core.backend.interface import TrainerState
from diffusion_core.backend.reference.target import target_losses
from diffusion_core.common.random import Stream
from diffusion_core.optim.adam import Adam
from diffusion_core.parity import target_cases as cases
from diffusion_core.parity.ladder import relative

pytestmark = pytest.mark.backend

ROUNDING = {"float64": 1e-12, "float32": 5e-6}


@pytest.fixture(params=["float64", "float32"], scope="module")
def backend(request, open_backend) -> Any:
    return open_backend(request.param)


def rounded(backend: Any, weights: dict) -> dict:
    return {name: value.astype(backend.config.host_dtype) for name, value in weights.items()}


def trainer(backend: Any, target: Any, **changes: Any) -> Any:
    weights, average = rounded(backend, cases.WEIGHTS), rounded(backend, cases.AVERAGE)
    state = replace(TrainerState.fresh(weights, 2), averages=(weights, average), **changes)
    return backend.trainer(cases.PROGRAM, state, Adam(), target)


def losses_of(weights: dict, backend: Any, target: Any, batch: Any, frozen: dict | None = None) -> np.ndarray:
    return target_losses(cases.PROGRAM, weights, batch, target, rounded(backend, cases.AVERAGE), frozen)[0]


@pytest.fixture(scope="module")
def made(backend) -> Any:
    return trainer(backend, cases.TARGET)


@pytest.mark.parametrize("name", cases.DISTANCES)
def test_the_loss_of_each_image_is_that_of_the_reference(backend, made, name):
    batch, target = cases.batch(backend.config.host_dtype), cases.with_distance(cases.DISTANCES[name])
    tensors = backend.losses.batch_tensors(batch, backend.context)
    loss, losses, _ = backend.losses.target_tensors(made.networks, tensors, target)
    wanted = losses_of(rounded(backend, cases.WEIGHTS), backend, target, batch)
    bound = max(ROUNDING[backend.config.precision], 1e-9)  # the reference differentiates by differences
    assert relative(backend.own.to_array(losses), wanted) <= bound
    assert relative(backend.own.to_array(loss), np.mean(batch.importance * wanted)) <= bound


@pytest.mark.parametrize("name", ["norm", "adaptive squares"])
def test_gradients_flow_through_passes_with_a_gradient_alone(open_backend, name):
    backend = open_backend("float64")
    batch, target = cases.batch(), cases.with_distance(cases.DISTANCES[name])
    _, gradients = trainer(backend, target).gradients(batch)
    direction = {n: Stream(1, n).normal(np.arange(1), w.shape)[0] for n, w in cases.WEIGHTS.items()}
    expected = sum(
        c * sign * np.mean(batch.importance * losses_of(
            {n: w + sign * k * 1e-3 * direction[n] for n, w in cases.WEIGHTS.items()}, backend, target, batch,
            cases.WEIGHTS,
        ))
        for k, c in ((1, 8 / 12), (2, -1 / 12))
        for sign in (1, -1)
    ) / 1e-3  # fmt: skip
    got = sum(np.sum(gradients[n] * direction[n]) for n in direction)
    assert relative(got, expected) <= 1e-8


def test_micro_batches_sum_to_the_whole(open_backend):
    backend, batch = open_backend("float64"), cases.batch()
    made = trainer(backend, cases.TARGET)
    (loss, whole), (sum_of_losses, parts) = made.gradients(batch), made.gradients(batch, 2)
    assert relative(sum_of_losses, loss) <= 1e-12
    assert max(relative(parts[name], whole[name]) for name in whole) <= 1e-11


def test_the_average_of_a_target_is_the_last_of_the_trainer(open_backend):
    """A step moves it by its own decay, and the next target is computed with what it has become."""
    backend, batch, target = open_backend("float64"), cases.batch(), cases.TARGET
    made = trainer(backend, target)
    made.step(batch, 0.01, (0.5, 0.25))
    state = made.state()
    moved = {n: a + 0.75 * (state.weights[n] - a) for n, a in cases.AVERAGE.items()}
    assert max(np.abs(state.averages[1][n] - moved[n]).max() for n in moved) <= 1e-14
    wanted = target_losses(cases.PROGRAM, state.weights, batch, target, state.averages[1])[0]
    assert relative(made.step(batch, 0.0, (1.0, 1.0)).losses(), wanted) <= 1e-9


def test_a_trained_network_computes_what_the_reference_computes_in_evaluation(open_backend):
    """Targets leave the trained network as it is: no gradient and no mode stays behind."""
    backend, batch = open_backend("float64"), cases.batch()
    made = trainer(backend, cases.TARGET)
    made.gradients(batch)
    inputs = batch.images, batch.c_noise, batch.label, batch.features
    got = made.network.forward(*inputs, second_time=batch.times[:, 0])
    wanted = reference.forward(cases.PROGRAM, cases.WEIGHTS, *inputs, second_time=batch.times[:, 0])
    assert relative(got, wanted) <= 1e-12
    assert set(made.activations(batch)) >= {"last", "losses"}


def test_a_pass_of_one_image_in_each_group_gives_the_losses_and_gradients_of_all(open_backend):
    """The composed images may be anywhere in their groups; a batch of another size is evaluated whole."""
    backend = open_backend("float64")
    case = next(case for case in cases.CASES if case.name == "shortcut")
    assert {step.rows.every for step in case.target.passes if step.rows} == {2}
    made, whole = (trainer(backend, target) for target in (case.target, case.target.whole()))
    for batch in (case.batch(size=4), case.batch(size=5).rows(slice(1, 5)), case.batch(size=3)):
        (loss, gradients), (wanted, expected) = made.gradients(batch), whole.gradients(batch)
        assert relative(loss, wanted) <= 1e-14
        assert max(relative(gradients[name], expected[name]) for name in expected) <= 1e-13
        losses, _ = target_losses(cases.PROGRAM, cases.WEIGHTS, batch, case.target, cases.AVERAGE)
        assert relative(loss, np.mean(batch.importance * losses)) <= 1e-12


@pytest.mark.slow  # a compilation takes up to a minute
@pytest.mark.parametrize("name", ["MeanFlow", "sCT", "shortcut", "consistency distillation"])
def test_a_compiled_step_is_the_eager_one(open_backend, name):
    """Derivatives along a direction, averages, a teacher, passes of some images, an uncertainty: all kinds of steps."""
    case = next(case for case in cases.CASES if case.name == name)
    made = [trainer(open_backend("float64", compile=compiled), case.target) for compiled in (False, True)]
    batch = case.batch()
    (loss, eager), (got, compiled) = (one.gradients(batch) for one in made)
    assert relative(got, loss) <= 1e-13
    assert max(relative(compiled[name], eager[name]) for name in eager) <= 1e-12


@pytest.mark.parametrize("name", ["MeanFlow", "sCT", "consistency distillation"])
def test_a_step_in_bfloat16_is_that_of_float64_up_to_its_rounding(open_backend, name):
    case = next(case for case in cases.CASES if case.name == name)
    (loss, exact), (got, rounded_) = (
        trainer(backend := open_backend(precision), case.target).gradients(case.batch(backend.config.host_dtype))
        for precision in ("float64", "bf16")
    )
    size = max(np.abs(gradient).max() for gradient in exact.values())
    assert relative(got, loss) <= 0.05
    assert 1e-6 < max(np.abs(rounded_[name] - exact[name]).max() for name in exact) / size <= 0.05
