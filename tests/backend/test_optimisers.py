"""Every optimiser in a backend: rung 5 of the ladder, faults that it notices, resuming, and its slots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest

from diffusion_core.backend.interface import TrainerState
from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.networks.weights import Weights
from diffusion_core.optim import OPTIMISERS as BY_NAME
from diffusion_core.optim import make_optimiser, optimiser_update, role_of
from diffusion_core.optim.soap import SOAP
from diffusion_core.parity import cases
from diffusion_core.parity.ladder import check
from diffusion_core.parity.optimisers import OPTIMISERS, SMALL, optimiser_errors

pytestmark = pytest.mark.backend
LR = 1e-2


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("title", OPTIMISERS)
def test_rung_5_of_every_optimiser(open_backend, title, precision):
    backend = open_backend(precision)
    for name, kind, error in optimiser_errors(backend, title):
        assert check(5, name, precision, "this", kind, error).passed, (name, error)


def test_soap_with_merged_axes(open_backend, monkeypatch):
    backend, soap = open_backend("float64"), SOAP(frequency=2, eps=1e-3, weight_decay=0.1, merge_axes=True, largest=20)
    monkeypatch.setitem(OPTIMISERS, "soap", soap)
    for name, kind, error in optimiser_errors(backend, "soap"):
        assert check(5, name, "float64", "this", kind, error).passed, (name, error)


def test_every_optimiser_is_on_the_ladder():
    assert set(OPTIMISERS) == set(BY_NAME)


# By optimiser: another value of each option, whose formula differs within the steps of the ladder.
CHANGES: dict[str, dict[str, Any]] = {
    "adam": {"epsilon": "torch", "amsgrad": "none", "decay": "decoupled", "beta1": 0.91, "weight_decay": 0.0},
    "sgd": {"momentum": 0.91, "nesterov": False, "decay": "decoupled", "buffer": "steps"},
    "lion": {"beta1": 0.99, "beta2": 0.9, "weight_decay": 0.0},
    "adafactor": {"convention": "keras", "beta1": None, "scale_parameter": False, "threshold": 0.5, "eps1": 1e-1},
    "radam": {"epsilon": "optax", "decay": "l2", "beta2": 0.91},
    "nadam": {"momentum_decay": 0.2, "beta1": 0.91, "decay": "l2"},
    "muon": {"momentum": 0.9, "nesterov": False, "steps": 4, "scale": "columns", "adam_lr_ratio": 1.0},
    "soap": {"frequency": 3, "beta2": 0.9, "shampoo_beta": 0.5, "normalise": True, "correct_bias": False},
    "schedule_free": {"beta1": 0.8, "r": 0.0, "power": 1.0, "decay_at": "z"},
}


class Recorded:
    """A trainer whose updates were made once: the faults are in the reference only."""

    def __init__(self, backend: Any, title: str) -> None:
        self.config, self.title, self.states, self.trainer_of = backend.config, title, [], backend.trainer
        self.at = 0

    def trainer(self, *given: Any) -> Recorded:
        if not self.states:
            self.real = self.trainer_of(*given)
        self.at = 0
        return self

    def update(self, *given: Any) -> None:
        self.at += 1
        if len(self.states) < self.at:
            self.real.update(*given)
            self.states.append(self.real.state())

    def state(self) -> TrainerState:
        return self.states[self.at - 1]


@pytest.fixture(scope="module")
def recorded(exact_backend) -> Callable[[str], Recorded]:
    return cache(partial(Recorded, exact_backend))


@pytest.fixture(scope="module")
def exact_backend(open_backend) -> Any:
    return open_backend("float64")


@pytest.mark.parametrize("title, option", [(title, option) for title, table in CHANGES.items() for option in table])
def test_rung_5_notices_another_option(recorded, title, option):
    changed = {option: CHANGES[title][option]}
    errors = optimiser_errors(
        recorded(title), title, formula=lambda optimiser, *rest: optimiser_update(replace(optimiser, **changed), *rest)
    )
    for name, kind, error in errors[:2]:
        assert not check(5, name, "float64", "this", kind, error).passed


def test_rung_5_passes_on_the_record_without_a_fault(recorded):
    for title in OPTIMISERS:
        name, kind, error = optimiser_errors(recorded(title), title)[0]
        assert check(5, name, "float64", "this", kind, error).passed


# Hand-over


def weights_of(backend: Any) -> Weights:
    return {name: (0.3 * v).astype(backend.config.host_dtype) for name, v in cases.scattered_weights(SMALL).items()}


def batch_of(backend: Any) -> Any:
    return cases.cast(cases.noise_batch(SMALL, (4, 4, 2)), backend.config.host_dtype)


def gradients_of(backend: Any, step: int) -> Weights:
    dtype = backend.config.host_dtype
    return {p.name: Stream(7, p.name).normal([0], p.shape, row=step, dtype=dtype)[0] for p in SMALL.trained}


@pytest.mark.parametrize("title", ["muon", "soap", "schedule_free"])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(open_backend, title):
    backend = open_backend("float32")
    optimiser = OPTIMISERS[title]
    whole = backend.trainer(SMALL, TrainerState.fresh(weights_of(backend)), optimiser, "mse")
    for step in range(3):
        whole.update(gradients_of(backend, step), LR, (0.9,))
    resumed = backend.trainer(SMALL, whole.state(), optimiser, "mse")
    for trainer in (whole, resumed):
        for step in (3, 4):
            trainer.update(gradients_of(backend, step), LR, (0.9,))
    one, other = whole.state(), resumed.state()
    assert list(one.parts) == list(other.parts) and one.updates == other.updates == 5
    for part, table in one.parts.items():
        for name, value in table.items():
            np.testing.assert_array_equal(value, other.parts[part][name], err_msg=f"{part} {name}")
            assert part in one.evaluated or value.shape == shape_of(optimiser, name, part)


def shape_of(optimiser: Any, name: str, slot: str) -> tuple[int, ...]:
    parameter = next(p for p in SMALL.parameters if p.name == name)
    return optimiser.slots(role_of(parameter))[slot].shape


def test_schedule_free_is_trained_between_its_steps_and_their_average(open_backend):
    """The weights of a state are the average; the gradient is that of a network at another point."""
    backend = open_backend("float64")
    batch, optimiser = batch_of(backend), make_optimiser("schedule_free", beta1=0.75)
    trainer = backend.trainer(SMALL, TrainerState.fresh(weights_of(backend)), optimiser, "mse")
    for _ in range(3):
        trainer.step(batch, LR, (0.0,))
    state = trainer.state()
    between = {name: 0.75 * x + 0.25 * state.slots["steps"][name] for name, x in state.weights.items()}
    loss, gradients = trainer.gradients(batch)
    for point, is_equal in ((between, True), (state.weights, False)):
        there = backend.trainer(SMALL, TrainerState.fresh(point), make_optimiser(), "mse")
        wanted, slopes = there.gradients(batch)
        assert (abs(loss - wanted) < 1e-13) == is_equal
        assert (max(np.max(np.abs(slopes[n] - g)) for n, g in gradients.items()) < 1e-13) == is_equal
    for name, value in state.weights.items():  # the average with decay 0 follows the weights, not the point
        np.testing.assert_allclose(state.ema[name], value, rtol=0, atol=1e-15)


def test_a_step_that_is_not_finite_changes_no_slot_of_any_kind(open_backend):
    backend = open_backend("float32")
    trainer = backend.trainer(SMALL, TrainerState.fresh(weights_of(backend)), OPTIMISERS["schedule_free"], "mse")
    batch = batch_of(backend)
    trainer.step(batch, LR, (0.9,))
    before = trainer.state()
    trainer.step(replace(batch, images=np.full_like(batch.images, np.nan)), LR, (0.9,))
    trainer.step(batch, LR, (0.9,))
    for part, table in trainer.state().parts.items():
        for name, value in table.items():
            np.testing.assert_array_equal(value, before.parts[part][name])
    trainer.clear_non_finite()
    trainer.step(batch, LR, (0.9,))
    assert any(np.any(value != before.weights[name]) for name, value in trainer.state().weights.items())


def test_the_state_of_another_optimiser_is_refused(open_backend):
    backend = open_backend("float32")
    state = backend.trainer(SMALL, TrainerState.fresh(weights_of(backend)), OPTIMISERS["lion"], "mse").state()
    with pytest.raises(DuetError, match="the state has the parts momentum, but Adam keeps moment1, moment2") as caught:
        backend.trainer(SMALL, state, make_optimiser(), "mse")
    assert "\n" not in str(caught.value)
