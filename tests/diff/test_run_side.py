"""A run is opened as the network that it trained, in either framework, with inputs that both draw alike."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from diffusion_core.backend import reference
from diffusion_core.common.errors import DuetError
from diffusion_core.parity.diff.runs import open_run

RUN = Path(__file__).parents[1] / "data/run_v1"


def test_inputs_are_the_same_in_both_layouts_and_follow_the_seed():
    run = open_run(RUN)
    assert run.inputs == ("x", "c_noise", "label")
    first, last = run.draw(1, "channels_first"), run.draw(1, "channels_last")
    assert np.array_equal(first[0].transpose(0, 2, 3, 1), last[0])
    assert all(np.array_equal(a, b) for a, b in zip(first[1:], last[1:], strict=True))
    assert not np.array_equal(run.draw(2, "channels_last")[0], last[0])


def test_weights_that_a_run_does_not_have_are_refused():
    with pytest.raises(DuetError, match="emma"):
        open_run(RUN, "emma")
    with pytest.raises(DuetError, match="nothing-here"):
        open_run("nothing-here")


@pytest.mark.backend
def test_the_side_computes_the_network_of_the_run(backend_name):
    module = import_module(f"backends.{backend_name}.run_model")
    recorder = pytest.importorskip(f"backends.{backend_name}.recorder")
    run = open_run(RUN, "weights")
    with recorder.building("float64", 0):
        model = module.build(path=RUN, dtype="float64", weights="weights")
    record = recorder.record_pass(recorder.prepare(model, "float64"), module.inputs(3, path=RUN), "float64")
    (number,) = record.outputs.values()
    x, c_noise, label = run.draw(3, "channels_last")
    weights = {name: array.astype(float) for name, array in run.weights.items()}
    expected = reference.forward(run.program, weights, x.astype(float), c_noise, label)
    got = record.values[number]
    got = got if recorder.LAYOUT == "channels_last" else got.transpose(0, 2, 3, 1)
    assert np.abs(got - expected).max() < 1e-12 * np.abs(expected).max()
    assert len(record.parameters) + len(record.buffers) == len(run.program.parameters)
