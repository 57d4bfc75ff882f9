"""Runs with another optimiser than Adam: what is stored, resumed, refused and sampled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffusion_core.backend.interface import TrainerState
from diffusion_core.common.errors import DuetError
from diffusion_core.data import Dataset
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import PlainSpec
from diffusion_core.networks.weights import initial_weights
from diffusion_core.optim import OPTIMISERS, Optimiser, make_optimiser, profile_options, role_of, start_slots
from diffusion_core.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from diffusion_core.training.training_config import TrainingConfig
from experiments.training import resume
from experiments.training.changes import describe_changes, objective_notes
from experiments.training.record import record_at
from experiments.training.setup import TrainingSetup

PETS = Dataset(
    np.arange(6 * 64, dtype=np.uint8).reshape(6, 8, 8, 1), np.array([0, 0, 1, 1, 2, 2]), ("a", "b", "c"), "p"
)
MODEL = DiffusionModel(PlainSpec(8, 1, 1, channels=(4,), bottleneck=8), "cosine", "v")


def setup(optimiser: Optimiser) -> TrainingSetup:
    return TrainingSetup.create(MODEL, PETS, TrainingConfig(images=16, batch=2), optimiser=optimiser)


def saved(directory: Path, name: str, **options: object) -> Path:
    """Store a checkpoint after two updates of an optimiser, with numbers in every slot."""
    experiment = setup(optimiser=make_optimiser(name, **options))
    fresh, _ = resume.starting_point(experiment, directory)
    program = experiment.model.program
    weights = initial_weights(program, 0, np.float32)
    slots = start_slots(experiment.optimiser, {p.name: role_of(p) for p in program.parameters}, weights, {})
    slots = {slot: {n: v + np.float32(0.5) for n, v in table.items()} for slot, table in slots.items()}
    notes = {
        "averages": [profile_options(profile) for profile in experiment.ema.profiles],
        "trained_for": objective_notes(experiment),
    }
    state = TrainerState(weights, (weights,), slots, 2)
    kept = Checkpoint(4, experiment.model, 0, state, notes, training=record_at(experiment, fresh, 4))
    save_checkpoint(directory / "checkpoints", kept)
    return directory


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_checkpoint_keeps_the_slots_of_every_optimiser(tmp_path, name):
    run = saved(tmp_path, name)
    start, _ = resume.starting_point(setup(optimiser=make_optimiser(name)), run, "latest")
    wanted = start_slots(make_optimiser(name), {p.name: role_of(p) for p in start.model.program.parameters},
                         start.state.weights, {})  # fmt: skip
    assert list(start.state.slots) == list(wanted)
    for slot, table in wanted.items():
        for parameter, value in table.items():
            np.testing.assert_array_equal(start.state.slots[slot][parameter], value + np.float32(0.5))
    assert start.training.optimiser["name"] == name


@pytest.mark.parametrize("name, other", [("lion", "sgd"), ("adam", "radam"), ("sgd", "adam"), ("soap", "muon")])
def test_the_state_of_another_optimiser_is_refused_in_one_line(tmp_path, name, other):
    """Also where the two keep slots of the same names, or none."""
    run = saved(tmp_path, name, **({"momentum": 0.0} if name == "sgd" else {}))
    given = setup(optimiser=make_optimiser(other))
    with pytest.raises(
        DuetError, match=f"optimiser.name: {other} was given.*trained by {name}.*optimiser={name}"
    ) as caught:
        resume.starting_point(given, run, "latest")
    assert "\n" not in str(caught.value)
    start, _ = resume.starting_point(given, run, "latest", change_objective=True)
    assert start.state.slots == {} and start.state.updates == 2
    assert any(f"optimiser.name was {name} and is now {other}" in line for line in describe_changes(start, given))


def test_an_option_that_needs_other_slots_is_refused_before_the_run(tmp_path):
    run = saved(tmp_path, "adam")
    resume.starting_point(setup(optimiser=make_optimiser("adam", decay="l2", epsilon="keras")), run, "latest")
    with pytest.raises(
        DuetError, match="the state has the parts moment1, moment2, but Adam keeps moment1, moment2, lar"
    ):
        resume.starting_point(setup(optimiser=make_optimiser("adam", amsgrad="torch")), run, "latest")


def test_weights_that_no_optimiser_has_updated_go_with_any(tmp_path):
    """Imported weights of earlier versions have moments of zeros."""
    run = saved(tmp_path, "adam")
    found = load_checkpoint(run)
    save_checkpoint(run / "checkpoints", replace(found, images_seen=0, state=replace(found.state, updates=0)))
    checkpoint = run / "checkpoints" / "000000000000"
    start, _ = resume.starting_point(setup(optimiser=make_optimiser("lion")), tmp_path / "new", str(checkpoint))
    assert start.state.slots == {}
