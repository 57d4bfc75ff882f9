"""A network of two times that was written by hand in both frameworks trains MeanFlow and shortcut models equally.

`own_two_times` has it in NumPy, PyTorch, Keras and as a `tf.Module`. Samples are held to NumPy's function. The losses
of a run in float64 stand here, so each environment is held to the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import own_two_times as two
import pytest

import duet
from diffusion_core.common.errors import DuetError
from diffusion_core.data import Dataset
from diffusion_core.runs.run_directory import read_metrics

pytestmark = pytest.mark.backend

FLOW = duet.process("flow_continuous", "flow", t_min=1e-5)
TO_DATA = duet.process("flow_continuous", "velocity_to_data", t_min=1e-5, time_scale=-1.0, time_offset=1.0)
IMAGES = np.random.default_rng(0).integers(0, 256, (12, two.SIDE, two.SIDE, two.CHANNELS), np.uint8)
DATA = Dataset(IMAGES, np.arange(12) % two.CLASSES, ("a", "b", "c"), "noise")
QUICK: dict[str, Any] = {
    "images": 32, "batch": 8, "log_images": 8, "samples": 1, "sampler": {"name": "mean_flow", "steps": 1},
    "quiet": True, "compile": False, "lr": 0.02,
}  # fmt: skip
OBJECTIVES = {
    "mean_flow": (FLOW, {"name": "mean_flow", "power": 0.0, "omega": 1.5, "same_time": 0.25}),
    "shortcut": (TO_DATA, {"name": "shortcut", "steps": 8, "every": 2}),
}
LOSSES: dict[str, list[float]] = {
    "mean_flow": [33.5432093267732, 31.0343267404067, 34.7923869073849, 30.6995834474995],
    "shortcut": [1.55043599838747, 1.56860805890293, 1.43706989717916, 1.28943638249947],
}


@pytest.fixture(scope="module")
def make(backend_name: str, open_backend: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that makes the module of the framework."""
    open_backend("float64")  # it sets the threads before the framework starts
    return lambda *options: two.BUILD[backend_name](two.two_time_weights(), *options)


def shape(backend_name: str) -> tuple[int, ...]:
    side = (two.SIDE, two.SIDE)
    return (3, two.CHANNELS, *side) if backend_name == "torch" else (3, *side, two.CHANNELS)


@pytest.mark.parametrize("sampler", ["mean_flow", "shortcut", "heun"])
def test_samples_are_those_of_the_function_of_numpy(sampler: str, make: Any, backend_name: str) -> None:
    plan = getattr(duet.samplers, sampler)(FLOW, steps=4, **({"guidance": 2.0} if sampler == "heun" else {}))
    options = {"labels": [0, 1, 2], "classes": two.CLASSES, "seed": 5}
    wanted = duet.sample(
        two.as_numpy(two.two_time_weights()), plan, shape=(3, two.SIDE, two.SIDE, two.CHANNELS), **options
    )
    got = np.asarray(duet.sample(make(), plan, shape=shape(backend_name), **options))
    np.testing.assert_allclose(np.moveaxis(got, 1, -1) if backend_name == "torch" else got, wanted, rtol=1e-11, atol=0)


def losses_of(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_runs_of_both_frameworks_have_the_same_losses(name: str, make: Any, backend_name: str, tmp_path: Path) -> None:
    process, objective = OBJECTIVES[name]
    network = make()
    if name == "mean_flow" and backend_name == "tf":  # its tf.function alone has no derivative along a direction
        network = two.as_tf_module(two.two_time_weights())
    if name == "shortcut" and backend_name == "torch":  # its second time is no difference of times
        with pytest.raises(
            DuetError, match=r"the second time of shortcut is no difference.*; use network_call.inputs='x, t, dt="
        ):
            duet.train(network, process, DATA, objective=objective, **QUICK)
        network = two.by_length(network)
    options = {**QUICK, "sampler": {"name": name, "steps": 1}, "label_dropout": 0.3, "classes": two.CLASSES}
    run = duet.train(network, process, DATA, objective=objective, out=tmp_path / "run", **options)
    np.testing.assert_allclose(losses_of(tmp_path / "run"), LOSSES[name], rtol=1e-9)
    if name == "shortcut":  # the trained module is a copy, with other weights
        plan = duet.samplers.shortcut(process, steps=4)
        labels = {"labels": [0, 1, 2], "classes": two.CLASSES, "seed": 5}
        got, given = (duet.sample(each, plan, shape=shape(backend_name), **labels) for each in (run.network(), network))
        assert np.abs(np.asarray(got) - np.asarray(given)).max() > 1e-4


def test_a_resumed_run_with_dropout_equals_an_uninterrupted_one_bit_for_bit(make: Any, tmp_path: Path) -> None:
    process, objective = OBJECTIVES["mean_flow"]
    options = {**QUICK, "images": 16, "objective": objective, "checkpoint_images": 8}
    network = make("float64", 0.4)
    whole = duet.train(network, process, DATA, **options, out=tmp_path / "run")
    assert not np.allclose(losses_of(tmp_path / "run")[0], LOSSES["mean_flow"][0])  # it drops out
    half = tmp_path / "run" / "checkpoints" / "000000000008"
    resumed = duet.train(network, process, DATA, **options, out=tmp_path / "other", resume=half)
    for part, arrays in whole.state.parts.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(resumed.state.parts[part][name], array, err_msg=name)
