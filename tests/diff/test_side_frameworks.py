"""Sides of both frameworks, recorded as `duet diff` records them: in a process of their own, or as objects."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from diffusion_core.common.errors import DuetError
from diffusion_core.parity.diff.recording import Recording, read_arrays, read_recording
from experiments.model_diff import sides
from experiments.model_diff.inputs import forms
from experiments.model_diff.record_side import write_inputs

pytestmark = pytest.mark.backend

# Random weights, a convolution that gets images in the layout of its framework, weights that the first call makes.
TEXTS = {
    "torch": """
from torch import nn
def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(2))
def narrow():
    import torch
    return lambda x: x.to(torch.float32) @ torch.ones(3, 2)
def training(model):
    import torch
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    def step(x):
        sgd.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        sgd.step()
        return loss
    return step
""",
    "tf": """
import keras
from keras import layers
def build():
    return keras.Sequential([layers.Conv2D(4, 3), layers.Dropout(0.5), layers.Flatten(), layers.Dense(2)])
def declared():
    x, n = keras.Input((8, 8, 3), name="x"), keras.Input((), dtype="int32", name="n")
    return keras.Model([x, n], layers.Conv2D(2, 3)(x) * 2)
def narrow():
    import tensorflow as tf
    return lambda x: tf.matmul(tf.cast(x, tf.float32), tf.ones((3, 2)))
def training(model):
    import tensorflow as tf
    sgd = keras.optimizers.SGD(0.1)
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x)))
        sgd.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss
    return step
""",
}


LAYOUTS = {"torch": "channels_first", "tf": "channels_last"}


@contextmanager
def opening(backend: str, folder: Path) -> Iterator[Callable[..., sides.SideProcess]]:
    """Give a function that starts a side in a process of this environment."""
    started = []

    def start(name: str, seed: int = 0) -> sides.SideProcess:
        side = sides.Side(f"net.py:{name}", sys.executable, backend)
        started.append(sides.open_side(side, "A", seed, folder))
        started[-1].load()
        return started[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "net.py").write_text(TEXTS[backend])
        yield start
    for side in started:
        side.close()


@pytest.fixture
def opened(backend_name, tmp_path):
    with opening(backend_name, tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def first(backend_name, tmp_path_factory) -> Recording:
    """A recording of the network with seed 0, in every pass and with two steps."""
    folder = tmp_path_factory.mktemp("first")
    with opening(backend_name, folder) as start:
        several = [arrays for arrays, _ in forms((images(),), "channels_first", LAYOUTS[backend_name])]
        return recorded(start("build"), folder, ["float32", "float64", "train64"], *several, steps=2)


def recorded(side: sides.SideProcess | sides.SideHere, folder: Path, passes: list[str], *inputs, steps=0) -> Recording:
    side.offer(1, folder / "offered")
    paths = []
    for i, given in enumerate(inputs):
        paths.append(folder / f"given-{i}.npz")
        write_inputs(given, paths[-1])
    side.record(folder / "made", paths, passes, [paths] * steps, None)
    return read_recording(folder / "made")


def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)


def weights(recording: Recording) -> list[np.ndarray]:
    found = recording.passes["float32"]
    return [found.values[number] for number in found.parameters.values()]


def test_the_model_in_float64_has_the_weights_of_the_one_in_float32(first):
    found = first
    assert list(found.passes) == ["float32", "float64", "train64"] and not found.notes
    narrow, wide = found.passes["float32"], found.passes["float64"]
    assert len(narrow.parameters) == 4
    for (_, number), (_, other) in zip(narrow.parameters.items(), wide.parameters.items(), strict=True):
        assert wide.values[other].dtype == np.float64 and np.array_equal(narrow.values[number], wide.values[other])
    (a,), (b,) = ([each.values[n] for n in each.outputs.values()] for each in (narrow, wide))
    assert 0 < np.abs(a - b).max() < 1e-5 * np.abs(b).max()
    # Steps begin with the same weights, and move them.
    first = found.steps[0]
    assert len(found.steps) == 2
    assert all(not np.array_equal(array, found.steps[1].parameters[name]) for name, array in first.parameters.items())
    assert first.loss == pytest.approx(np.mean(np.square(b)), rel=1e-12) or "Dropout" in str(wide.layers)
    assert found.optimiser["class"] == "SGD" or "SGD" in str(found.optimiser)


def test_random_weights_follow_the_seed(first, opened, tmp_path, backend_name):
    """That the same seed gives the same weights is told by the brief recording below."""
    shape = (1, 3, 8, 8) if backend_name == "torch" else (1, 8, 8, 3)
    other = recorded(opened("build", 1), tmp_path, ["float32"], (np.ones(shape),))
    assert not np.array_equal(weights(first)[0], weights(other)[0])


def test_a_function_that_computes_in_float32_is_recorded_in_that(opened, tmp_path):
    found = recorded(opened("narrow"), tmp_path, ["float32", "float64"], (np.ones((2, 3)),))
    assert "float32" in found.passes and found.passes["float32"].operations


def test_declared_inputs_are_told(opened, tmp_path, backend_name):
    if backend_name == "tf":
        offer = opened("declared").offer(1, tmp_path / "offered")
        assert [each["shape"] for each in offer["declared"]] == [[None, 8, 8, 3], [None]]
        assert [each["dtype"] for each in offer["declared"]] == ["float32", "int32"]
    else:
        assert opened("build").offer(1, tmp_path / "offered")["declared"] is None


def test_what_does_not_fit_the_model_is_told_with_the_line_of_the_author(opened, tmp_path):
    with pytest.raises(DuetError, match=r"^A: net.py:build: "):
        recorded(opened("build"), tmp_path, ["float32"], (np.ones(2),))


def test_an_object_has_its_weights_and_precision_back(backend_name, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    (tmp_path / "object_net.py").write_text(TEXTS[backend_name])
    model = importlib.import_module("object_net").build()
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    x = x.transpose(0, 3, 1, 2) if backend_name == "torch" else x
    recorder = sides.find_recorder(backend_name)
    recorder.record_pass(model, (x,), "float32")  # makes the weights
    before = recorder.read_state(model)
    side = sides.open_side(sides.Side("net", model=model), "A", 0, tmp_path)
    side.load()
    found = recorded(side, tmp_path, ["float32", "float64", "train64"], (x,))
    assert set(found.passes) == {"float32", "float64", "train64"} and side.recorder.recorder is recorder
    after = recorder.read_state(model)
    assert all(np.array_equal(before[name], after[name]) and after[name].dtype == before[name].dtype for name in before)


def test_a_brief_recording_has_each_parameter_once_and_only_the_outputs_in_float32(
    first, opened, tmp_path, backend_name
):
    path = tmp_path / "given.npz"
    write_inputs(forms((images(),), "channels_first", LAYOUTS[backend_name])[0][0], path)
    side = opened("build")
    side.offer(1, tmp_path / "offered")
    side.record(tmp_path / "made", [path], ["float32", "float64", "train64"], [], None, "parameters", True)
    found = read_recording(tmp_path / "made").passes
    assert list(found["float32"].values) == list(found["float32"].outputs.values()) and not found["float32"].operations
    wide, trained = found["float64"], found["train64"]
    assert set(wide.gradients) == set(wide.parameters.values()) and not trained.gradients
    for name, number in trained.parameters.items():
        assert np.array_equal(trained.values[number], wide.values[wide.parameters[name]])
    again = [wide.values[number] for number in wide.parameters.values()]
    assert all(np.array_equal(a, b) for a, b in zip(weights(first), again, strict=True)), "the seed is the same"
    stored = read_arrays(tmp_path / "made/train64.safetensors")
    assert not {str(number) for number in trained.parameters.values()} & set(stored)
