"""What is left of a step that is not finite: read back whole, and looked through in the order of computation."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from test_checkpoint import PROBLEM, assert_same, moment

from diffusion_core import reference
from diffusion_core.backend import TrainBatch
from diffusion_core.bundle import KEPT, is_kept, load_bundle, places, save_bundle, some
from diffusion_core.checkpoint import load_checkpoint
from diffusion_core.data import Dataset, Loader
from diffusion_core.errors import DuetError
from diffusion_core.objectives import Objective
from diffusion_core.optimiser import Adam
from diffusion_core.training import Trouble, make_batch

PICTURES = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 1), np.uint8)
LOADER = Loader(Dataset(PICTURES, np.zeros(8, int), ("a",), "toy"), seed=3)
OBJECTIVE = Objective(PROBLEM.process, seed=3)
TROUBLE = Trouble(1280, 4, 10, 1e-3, (0.9, 0.99), math.inf, math.nan)
ADAM = Adam(clip=None, weight_decay=0.1)


def batch() -> TrainBatch:
    return make_batch(LOADER, OBJECTIVE, 1280, 4)


def saved(parent, given: TrainBatch, state=None):
    state = state or moment().state
    notes = moment().notes
    return save_bundle(parent, TROUBLE, PROBLEM, 3, replace(state, updates=12), given, ADAM, "mse", notes)


def test_a_bundle_is_read_back_as_it_was(tmp_path):
    path = saved(tmp_path, batch())
    assert path == tmp_path / "000000001280"
    found = load_bundle(path)
    assert_same(found.moment, moment())  # of which the updates are those before the step
    assert (found.adam, found.distance, found.lr, found.decays) == (ADAM, "mse", 1e-3, (0.9, 0.99))
    assert found.loss == math.inf and math.isnan(found.grad_norm)
    assert found.batch.arrays.keys() == batch().arrays.keys()
    for name, array in batch().arrays.items():
        assert found.batch.arrays[name].tobytes() == array.tobytes()


def test_weights_that_are_not_finite_are_read_from_a_bundle_alone(tmp_path):
    state = moment().state
    state.weights["conv_in.bias"][0] = np.nan
    path = saved(tmp_path, batch(), state)
    assert math.isnan(load_bundle(path).moment.state.weights["conv_in.bias"][0])
    with pytest.raises(DuetError, match=r"weights.safetensors: 1 of the 4 numbers of conv_in.bias are not finite"):
        load_checkpoint(path)


def test_the_first_skipped_steps_are_kept_and_the_one_that_ends_the_run(tmp_path):
    def at(images_seen: int, ends: bool = False) -> bool:
        return is_kept(tmp_path, replace(TROUBLE, images_seen=images_seen, ends=ends))

    for number in range(KEPT):
        assert at(number)
        (tmp_path / f"{number:012d}").mkdir()
    assert not at(KEPT) and at(KEPT, ends=True)
    assert at(0)  # of a run that was cut and comes there again


@pytest.mark.parametrize("name", ["batch.safetensors", "step.json", "weights.safetensors"])
def test_a_harmed_bundle_is_refused(tmp_path, name):
    path = saved(tmp_path, batch()) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x80
    path.write_bytes(content)
    with pytest.raises(DuetError, match=name):
        load_bundle(path.parent)
    path.unlink()
    with pytest.raises(DuetError, match=name):
        load_bundle(path.parent)


def test_a_bundle_of_a_later_version_is_refused(tmp_path):
    path = saved(tmp_path, batch()) / "step.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(DuetError, match="format 2"):
        load_bundle(path.parent)


def harmed(what: str):
    """A bundle with one number that is not finite in what it computes from."""
    given, state = batch(), moment().state
    if what == "batch noise":
        given = replace(given, noise=given.noise.copy())
        given.noise[2, 0, 0, 0] = np.inf
    elif what == "weights weights: conv_in.bias":
        state.weights["conv_in.bias"][1] = np.nan
    return given, state


@pytest.mark.parametrize(
    "what",
    ["none", "batch noise", "weights weights: conv_in.bias", "block conv_in", "loss mean", "gradient out.conv.bias"],
)
def test_the_first_place_that_is_not_finite_is_found(tmp_path, what):
    given, state = harmed(what)
    state = replace(state, weights={name: value.astype(np.float64) for name, value in state.weights.items()})
    if what == "block conv_in":
        state.weights["conv_in.weight"][:] = 1.5e308
    bundle = load_bundle(saved(tmp_path, given, state))
    with np.errstate(all="ignore"):
        values = reference.look(PROBLEM.program, bundle.moment.state.weights, bundle.batch, "mse")
    assert list(values) == [node.name for node in PROBLEM.program.nodes] + ["losses"]
    gradients = {p.name: np.zeros(p.shape) for p in PROBLEM.program.trained}
    if what.startswith("gradient"):
        for name in gradients:  # all that are computed after it, too
            gradients[name][...] = np.nan
    found = places(bundle, values, math.inf if what == "loss mean" else 1.0, gradients)
    first = next((f"{place.kind} {place.name}" for place in found if place.lost), "none")
    assert first == what


def test_some_images_of_a_batch_are_a_batch_of_them():
    given, chosen = batch(), np.array([3, 1])
    for name, array in some(given, chosen).arrays.items():
        whole = given.arrays[name]
        assert np.array_equal(array, whole if name == "dropout_key" else whole[chosen])
