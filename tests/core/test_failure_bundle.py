"""Failure bundles are read back exactly and searched in the order of computation."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_checkpoint import MODEL, assert_same, moment

from diffusion_core.backend import reference
from diffusion_core.backend.interface import TrainBatch
from diffusion_core.backend.reference.target import target_losses
from diffusion_core.common.errors import DuetError
from diffusion_core.data import Dataset, Loader
from diffusion_core.files.atomic import pack_safetensors
from diffusion_core.networks.weights import initial_weights
from diffusion_core.optim.adam import Adam
from diffusion_core.runs.checkpoint import hash_entries, load_checkpoint
from diffusion_core.runs.failure_bundle import (
    MAX_SKIPPED_BUNDLES,
    failure_locations,
    load_bundle,
    save_bundle,
    select_images,
    should_keep,
)
from diffusion_core.training.events import NonFiniteStep
from diffusion_core.training.loop import make_batch
from diffusion_core.training.objective import Objective
from diffusion_core.training.targets import TrainedNetwork

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 1), np.uint8)
LOADER = Loader(Dataset(IMAGES, np.zeros(8, int), ("a",), "toy"), seed=3)
OBJECTIVE = Objective(MODEL.process, seed=3)
STEP = NonFiniteStep(1280, 4, 10, 1e-3, (0.9, 0.99), math.inf, math.nan, micro_batches=2)
NOTES = {"precision": "float32"}
ADAM = Adam(clip=None, weight_decay=0.1)


def batch() -> TrainBatch:
    return make_batch(LOADER, OBJECTIVE, 1280, 4)


def saved(parent, given: TrainBatch, state=None):
    state = state or moment().state
    notes = moment().notes | NOTES
    return save_bundle(parent, STEP, MODEL, 3, replace(state, updates=12), given, ADAM, "mse", notes)


def test_a_bundle_is_read_back_exactly(tmp_path):
    path = saved(tmp_path, batch())
    assert path == tmp_path / "000000001280"
    found = load_bundle(path)
    assert_same(
        found.moment, replace(moment(), notes=moment().notes | NOTES)
    )  # with the number of updates before the step
    assert (found.optimiser, found.distance, found.lr, found.decays) == (ADAM, "mse", 1e-3, (0.9, 0.99))
    assert found.loss == math.inf and math.isnan(found.grad_norm) and found.micro_batches == 2
    assert found.batch.arrays.keys() == batch().arrays.keys()
    for name, array in batch().arrays.items():
        assert found.batch.arrays[name].tobytes() == array.tobytes()


def test_a_bundle_keeps_the_training_method_and_its_teacher(tmp_path):
    teacher = replace(MODEL, schedule={"name": "edm"}, prediction="edm")
    student = replace(teacher, boundary=0.002, time_scale=1000.0)
    weights = initial_weights(teacher.program, 7)
    taught = TrainedNetwork(teacher.process, teacher.program, weights, teacher.spec.image_shape)
    method = {"name": "consistency_distillation", "solver": "euler"}
    objective = Objective.for_model(student, 3, taught, objective=method)
    given, notes = make_batch(LOADER, objective, 1280, 4), moment().notes | NOTES
    options = objective.training_method.options | method
    path = save_bundle(
        tmp_path, STEP, student, 3, moment().state, given, ADAM, "mse", notes, options, (teacher, weights)
    )
    found = load_bundle(path)
    assert found.distance == objective.loss and found.batch.arrays.keys() == given.arrays.keys()
    for name, array in given.arrays.items():
        assert found.batch.arrays[name].tobytes() == array.tobytes(), name
    wanted, got = (
        target_losses(student.program, found.moment.state.weights, given, target)[0]
        for target in (objective.loss, found.distance)
    )
    np.testing.assert_array_equal(got, wanted)
    (path / "teacher.safetensors").write_bytes(pack_safetensors({n: w + 1 for n, w in weights.items()}))
    with pytest.raises(DuetError, match=r"teacher.safetensors: it is corrupt"):
        load_bundle(path)


def test_weights_that_are_not_finite_are_read_only_as_part_of_a_bundle(tmp_path):
    state = moment().state
    state.weights["conv_in.bias"][0] = np.nan
    path = saved(tmp_path, batch(), state)
    assert math.isnan(load_bundle(path).moment.state.weights["conv_in.bias"][0])
    with pytest.raises(DuetError, match=r"weights.safetensors: 1 of the 4 values of conv_in.bias are not finite"):
        load_checkpoint(path)


def test_the_first_skipped_steps_and_the_one_that_stops_the_run_are_stored(tmp_path):
    def is_stored(images_seen: int, stops: bool = False) -> bool:
        return should_keep(tmp_path, replace(STEP, images_seen=images_seen, stops_training=stops))

    for number in range(MAX_SKIPPED_BUNDLES):
        assert is_stored(number)
        (tmp_path / f"{number:012d}").mkdir()
    assert not is_stored(MAX_SKIPPED_BUNDLES) and is_stored(MAX_SKIPPED_BUNDLES, stops=True)
    assert is_stored(0)  # again, by a run that was interrupted and resumed


@pytest.mark.parametrize("name", ["batch.safetensors", "step.json", "weights.safetensors"])
def test_a_corrupted_bundle_is_refused(tmp_path, name):
    path = saved(tmp_path, batch()) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x80
    path.write_bytes(content)
    with pytest.raises(DuetError, match=name):
        load_bundle(path.parent)
    path.unlink()
    with pytest.raises(DuetError, match=name):
        load_bundle(path.parent)


def rewrite(path: Path, notes: dict | None = None, arrays: dict | None = None, **changes) -> Path:
    """Change a bundle as an attacker would, with correct hashes."""
    if arrays is not None:
        content = pack_safetensors(
            {name: value for name, value in (batch().arrays | arrays).items() if value is not None}
        )
        (path / "batch.safetensors").write_bytes(content)
        changes |= {"batch_sha256": hashlib.sha256(content).hexdigest(), "batch_bytes": len(content)}
    for file, new in (("state.json", {} if notes is None else {"notes": notes}), ("step.json", changes)):
        facts = json.loads((path / file).read_text()) | new
        (path / file).write_text(json.dumps(facts | {"sha256": hash_entries(facts)}))
    return path


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format": 3}, "step.json: it has format 3"),
        ({"distance": "mre"}, r"step.json: distance: 'mre' was given; it must be one of .* Did you mean 'mse'"),
        (
            {"distance": "cross_entropy"},
            "step.json: process.distance: cross_entropy was given for a network",
        ),
        ({"decays": [0.9]}, "step.json: it has 1 decays for 2 averages"),
        ({"adam": {"beta": 1}}, "step.json: option of optimiser 'adam': 'beta' was given"),
        ({"batch_bytes": 10}, r"batch.safetensors: it has \d+ bytes; at most 10 are expected"),
        ({"batch_bytes": None}, "step.json: it is corrupt"),
        ({"pieces": 3}, "step.json: it has 3 micro-batches; the number must divide the 4 images"),
        ({"pieces": "2"}, "step.json: it has '2' micro-batches"),
        ({"notes": {"backend": "torch"}}, "state.json: it is corrupt .*'precision'"),
        ({"notes": NOTES}, "state.json: it is corrupt .*'backend'"),
        ({"notes": {"backend": "torch", "precision": "half"}}, "state.json: precision: 'half' was given"),
        ({"arrays": {"alpha": np.ones(3, np.float32)}}, r"batch.safetensors: alpha has .*\(3,\); .* shape \(4,\)"),
        ({"arrays": {"images": np.ones((4, 8, 8, 1))}}, r"images has .*\(4, 8, 8, 1\); .* shape \(4, 4, 4, 1\)"),
        ({"arrays": {"label": np.zeros(4)}}, r"label has type float64 .* has int32 with"),
        ({"arrays": {"label": np.full(4, 7, np.int32)}}, "label: not all values of the 4 images are in 0..0"),
        ({"arrays": {"features": None}}, "batch.safetensors: it has the arrays"),
        ({"arrays": {"self_conditioning": np.ones((4, 5))}}, "batch.safetensors: it has the arrays"),
    ],
)
def test_a_bundle_whose_step_cannot_be_repeated_is_refused_in_one_line(tmp_path, changes, message):
    path = rewrite(saved(tmp_path, batch()))
    assert load_bundle(path).distance == "mse"
    with pytest.raises(DuetError, match=message) as caught:
        load_bundle(rewrite(path, **changes))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_bundle_without_a_number_of_micro_batches_has_one(tmp_path):
    path = saved(tmp_path, batch())
    facts = json.loads((path / "step.json").read_text())
    del facts["pieces"]
    (path / "step.json").write_text(json.dumps(facts | {"sha256": hash_entries(facts)}))
    assert load_bundle(path).micro_batches == 1


def test_every_changed_digit_of_a_step_is_detected(tmp_path):
    path = saved(tmp_path, batch()) / "step.json"
    text = path.read_text()
    for at in [i for i, letter in enumerate(text) if letter.isdigit()]:
        path.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])
        with pytest.raises(DuetError, match=r"step\.json: it (is corrupt|has format)"):
            load_bundle(path.parent)


def test_integer_weights_are_refused_in_a_bundle(tmp_path):
    state = moment().state
    state.weights["conv_in.bias"] = state.weights["conv_in.bias"].astype(np.int32)
    with pytest.raises(DuetError, match=r"conv_in.bias has the type int32"):
        load_bundle(saved(tmp_path, batch(), state))


def not_finite(what: str):
    """Return a batch and a state with one number that is not finite."""
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
def test_the_first_array_that_is_not_finite_is_found(tmp_path, what):
    given, state = not_finite(what)
    state = replace(state, weights={name: value.astype(np.float64) for name, value in state.weights.items()})
    if what == "block conv_in":
        state.weights["conv_in.weight"][:] = 1.5e308
    bundle = load_bundle(saved(tmp_path, given, state))
    with np.errstate(all="ignore"):
        values = reference.activations(MODEL.program, bundle.moment.state.weights, bundle.batch, "mse")
    assert list(values) == [node.name for node in MODEL.program.nodes] + ["losses"]
    gradients = {p.name: np.zeros(p.shape) for p in MODEL.program.trained}
    if what.startswith("gradient"):
        for name in gradients:  # and those that are computed after it
            gradients[name][...] = np.nan
    found = failure_locations(bundle, values, math.inf if what == "loss mean" else 1.0, gradients)
    first = next((f"{place.kind} {place.name}" for place in found if place.lost), "none")
    assert first == what


def test_selected_images_of_a_batch_form_a_batch():
    given, chosen = batch(), np.array([3, 1])
    for name, array in select_images(given, chosen).arrays.items():
        whole = given.arrays[name]
        assert np.array_equal(array, whole if name == "dropout_key" else whole[chosen])
