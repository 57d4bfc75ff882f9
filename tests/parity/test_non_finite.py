"""A non-finite step in one backend: it changes nothing, and its activations can be inspected."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diffusion_core.backend import reference
from diffusion_core.backend.interface import TrainBatch, TrainerState
from diffusion_core.optim.adam import Adam
from diffusion_core.parity import cases
from diffusion_core.parity.ladder import TOLERANCES, relative

pytestmark = pytest.mark.backend

CASE = next(case for case in cases.BLOCKS if case.name == "BatchNorm")
PROGRAM = CASE.program
WEIGHTS, BATCH = cases.scattered_weights(PROGRAM), cases.noise_batch(PROGRAM, CASE.shape)
ADAM, DECAYS = Adam(weight_decay=0.01), (0.9,)


def with_one(number: float) -> TrainBatch:
    """Return the batch with one non-finite value in one image."""
    images = BATCH.images.copy()
    images[1, 2, 3, 0] = number
    return replace(BATCH, images=images)


def bits(state: TrainerState) -> dict[str, bytes]:
    return {f"{part}/{name}": a.tobytes() for part, arrays in state.parts.items() for name, a in arrays.items()}


def test_steps_from_a_non_finite_one_on_change_no_bit(open_backend):
    backend = open_backend("float64")
    trainer = backend.trainer(PROGRAM, TrainerState.fresh(WEIGHTS), ADAM, "mse")
    trainer.step(BATCH, 1e-3, DECAYS)
    before = trainer.state()
    assert bits(before) != bits(TrainerState.fresh(WEIGHTS))
    with np.errstate(all="ignore"):
        for number in (np.nan, np.inf):
            assert not np.isfinite(float(trainer.step(with_one(number), 1e-3, DECAYS).grad_norm))
    assert np.isfinite(float(trainer.step(BATCH, 1e-3, DECAYS).grad_norm))
    after = trainer.state()
    assert bits(after) == bits(before) and after.updates == 4
    # Resuming there, in this or the other backend, gives the same.
    trainer.clear_non_finite()
    resumed = backend.trainer(PROGRAM, after, ADAM, "mse")
    for one in (trainer, resumed):
        one.step(BATCH, 1e-3, DECAYS)
    assert bits(trainer.state()) == bits(resumed.state()) != bits(before)


def test_activations_of_a_step_match_the_reference(open_backend):
    trainer = open_backend("float64").trainer(PROGRAM, TrainerState.fresh(WEIGHTS), ADAM, "mse")
    before = trainer.state()
    found, wanted = trainer.activations(BATCH), reference.activations(PROGRAM, WEIGHTS, BATCH, "mse")
    assert list(found) == list(wanted) == [*(node.name for node in PROGRAM.nodes), "losses"]
    for name, value in wanted.items():
        assert relative(found[name], value) <= TOLERANCES["network"].float64, name
    assert bits(trainer.state()) == bits(before)
    lost = {
        name: np.count_nonzero(~np.isfinite(value)) for name, value in trainer.activations(with_one(np.nan)).items()
    }
    assert lost["losses"] and next(iter(lost.values()))
