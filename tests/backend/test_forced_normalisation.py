"""Forced weight normalisation in both backends: gradients at the normalised weights, updates that start from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diffusion_core.backend import reference
from diffusion_core.backend.interface import TrainBatch, TrainerState
from diffusion_core.common.errors import DuetError, OutOfMemory
from diffusion_core.common.random import Stream
from diffusion_core.networks import Node, Program
from diffusion_core.networks.blocks import Dropout
from diffusion_core.networks.blocks.magnitude import MPConv, MPFourier, MPGate, MPLinear, MPSiLU
from diffusion_core.networks.weights import Weights
from diffusion_core.optim.adam import Adam, adam_update
from diffusion_core.optim.normalisation import normalise_weights
from diffusion_core.optim.optimiser import optimiser_update, role_of, start_slots
from diffusion_core.optim.registry import make_optimiser
from diffusion_core.parity import cases
from diffusion_core.parity.ladder import l2_of_all, relative

pytestmark = pytest.mark.backend

# The large eps of the first layer would show a rule that is applied twice; every kind of normalised weight is here.
PROGRAM = Program(
    (
        Node("first", MPConv(2, 6, 3, False, 0.2), ("x",)),
        Node("fourier", MPFourier(8, 0.01), ("c_noise",)),
        Node("time", MPLinear(8, 6, True, 1e-4), ("fourier",)),
        Node("gate", MPGate(), ("first", "time")),
        Node("act", MPSiLU(0.596), ("gate",)),
        Node("drop", Dropout(0.25, 0), ("act",)),
        Node("last", MPConv(6, 2, 1, True, 1e-4), ("drop",)),
    )
)
ADAM, LR, DECAY = Adam(beta2=0.99, clip=None), 1e-2, 0.7


def weights() -> Weights:
    """Weights whose rows are not of size 1, so that normalisation changes them."""
    return {name: value if value.ndim < 2 else 1.7 * value for name, value in cases.scattered_weights(PROGRAM).items()}


@pytest.fixture(scope="module")
def batch() -> TrainBatch:
    return cases.noise_batch(PROGRAM, (4, 4, 2))


@pytest.fixture
def trainer(open_backend) -> Any:
    return open_backend("float64").trainer(PROGRAM, TrainerState.fresh(weights()), ADAM, "mse")


def without_frequencies(values: Weights) -> Weights:
    return {p.name: values[p.name] for p in PROGRAM.trained}


def step_by_hand(trainer: Any, state: TrainerState, batch: TrainBatch) -> TrainerState:
    """Return the state after one step of the rule, with the gradient of the trainer."""
    _, gradients = trainer.gradients(batch)
    sized = normalise_weights(state.weights, PROGRAM.normalised)
    after = adam_update(ADAM, sized, *state.slots.values(), gradients, state.updates + 1, LR)
    average = {name: DECAY * old + (1 - DECAY) * after[0][name] for name, old in without_frequencies(state.ema).items()}
    return TrainerState(after[0], (average,), {"moment1": after[1], "moment2": after[2]}, state.updates + 1)


def test_a_training_pass_computes_at_the_normalised_weights_and_leaves_the_weights(trainer, batch):
    loss, _ = trainer.gradients(batch)
    sized = normalise_weights(weights(), PROGRAM.normalised)
    assert relative(loss, reference.loss(PROGRAM, weights(), batch, "mse")) < 1e-14
    forward = reference.forward(PROGRAM, sized, batch.images, batch.c_noise, batch.label)
    assert relative(forward, reference.forward(PROGRAM, weights(), batch.images, batch.c_noise, batch.label)) > 1e-4
    trainer.activations(batch)
    assert l2_of_all(trainer.state().weights, weights()) == 0


def test_the_gradient_is_that_of_the_loss_at_the_normalised_weights(trainer, batch):
    """Against a difference quotient of the reference, in which the size of the rows is frozen."""
    _, gradients = trainer.gradients(batch)
    frozen, h = weights(), 1e-3
    for name, gradient in gradients.items():
        direction = np.cos(np.arange(gradient.size)).reshape(gradient.shape)
        quotient = sum(
            weight * np.mean(batch.importance * reference.per_image_losses(
                PROGRAM, frozen | {name: frozen[name] + h * k * direction}, batch, "mse", frozen)[0])
            for k, weight in ((2, -1), (1, 8), (-1, -8), (-2, 1))
        ) / (12 * h)  # fmt: skip
        assert np.sum(gradient * direction) == pytest.approx(quotient, rel=1e-8, abs=1e-12), name


def test_every_step_starts_from_normalised_weights_once(trainer, batch):
    state = trainer.state()
    for micro_batches in (1, 2, 1):
        wanted = step_by_hand(trainer, state, batch)
        trainer.step(batch, LR, (DECAY,), micro_batches, may_repeat=micro_batches == 2)
        state = trainer.state()
        for got, expected in zip(state.parts.values(), wanted.parts.values(), strict=True):
            assert l2_of_all(without_frequencies(got), without_frequencies(expected)) < 1e-13


def test_a_step_that_is_repeated_after_memory_ran_out_normalises_once(trainer, batch, monkeypatch):
    wanted, sound = step_by_hand(trainer, trainer.state(), batch), trainer.accumulate

    def without_memory(*arguments: Any) -> Any:
        sound(*arguments)  # all of the pass, then no memory for what follows it
        raise MemoryError

    monkeypatch.setattr(trainer, "accumulate", without_memory)
    with pytest.raises(OutOfMemory):
        trainer.step(batch, LR, (DECAY,), may_repeat=True)
    monkeypatch.undo()
    trainer.step(batch, LR, (DECAY,), 2, may_repeat=True)
    for got, expected in zip(trainer.state().parts.values(), wanted.parts.values(), strict=True):
        assert l2_of_all(without_frequencies(got), without_frequencies(expected)) < 1e-13


def test_a_resumed_run_equals_an_uninterrupted_one(trainer, batch, open_backend):
    trainer.step(batch, LR, (DECAY,))
    other = open_backend("float64").trainer(PROGRAM, trainer.state(), ADAM, "mse")
    for each in (trainer, other):
        each.step(batch, LR, (DECAY,))
    for got, expected in zip(other.state().parts.values(), trainer.state().parts.values(), strict=True):
        assert l2_of_all(got, expected) == 0


def test_a_step_that_is_not_finite_leaves_the_weights(trainer, batch):
    bad = TrainBatch(**(vars(batch) | {"images": np.full_like(batch.images, np.nan)}))
    trainer.step(bad, LR, (DECAY,))
    trainer.step(batch, LR, (DECAY,))
    assert l2_of_all(trainer.state().weights, weights()) == 0
    trainer.clear_non_finite()
    trainer.step(batch, LR, (DECAY,))
    assert l2_of_all(trainer.state().weights, weights()) > 1e-3


@pytest.mark.parametrize("name", ["lion", "muon"])
def test_every_optimiser_starts_from_normalised_weights(name, open_backend):
    optimiser, roles = make_optimiser(name), {p.name: role_of(p) for p in PROGRAM.trained}
    trainer = open_backend("float64").trainer(PROGRAM, TrainerState.fresh(weights()), optimiser, "mse")
    wanted, slots = weights(), start_slots(optimiser, roles, weights(), {})
    for update in (1, 2):
        drawn = {n: Stream(0, n).normal([0], role.shape, row=update)[0] for n, role in roles.items()}
        trainer.update(drawn, LR, (DECAY,))
        sized = normalise_weights(wanted, PROGRAM.normalised)
        wanted, slots = optimiser_update(optimiser, roles, sized, slots, drawn, update, LR)
    assert l2_of_all(trainer.state().weights, wanted) < 1e-13


def test_an_optimiser_that_takes_gradients_elsewhere_is_refused(open_backend):
    with pytest.raises(DuetError, match=r"optimiser\.name: ScheduleFree was given, .* normalises its weights by force"):
        open_backend("float64").trainer(PROGRAM, TrainerState.fresh(weights()), make_optimiser("schedule_free"), "mse")


def test_evaluation_normalises_on_use_alone(open_backend, batch):
    network = open_backend("float64").network(PROGRAM, weights())
    got = network.forward(batch.images, batch.c_noise, batch.label)
    assert relative(got, reference.forward(PROGRAM, weights(), batch.images, batch.c_noise, batch.label)) < 1e-14
