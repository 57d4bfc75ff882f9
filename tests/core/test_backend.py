"""The seam: configuration, states, and how a backend is found."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import numpy as np
import pytest

from diffusion_core.backend import interface as module
from diffusion_core.backend.interface import BackendConfig, Description, TrainerState, load_backend
from diffusion_core.common.errors import DuetError


@pytest.mark.parametrize("precision, dtype", [("float64", np.float64), ("float32", np.float32), ("bf16", np.float32)])
def test_host_arrays_have_the_precision_or_float32(precision, dtype):
    assert BackendConfig(precision=precision).host_dtype is dtype


@pytest.mark.parametrize("options, words", [
    ({"device": "gpu"}, "backend.device: 'gpu' was given; it must be one of auto, cpu, cuda"),
    ({"precision": "float23"}, "Did you mean 'float32'"),
    ({"threads": 0}, "backend.threads: 0 was given; it must be at least 1, or null"),
])  # fmt: skip
def test_invalid_settings_of_a_backend_are_refused(options, words):
    with pytest.raises(DuetError, match=words):
        BackendConfig(**options)


@pytest.mark.parametrize("averages", [1, 3])
def test_a_fresh_state_starts_the_averages_at_the_weights_and_has_no_slots(averages):
    weights = {"a": np.ones((2, 3), np.float32), "b": np.zeros(1, np.float64)}
    state = TrainerState.fresh(weights, averages)
    assert state.updates == 0 and state.slots == {} and len(state.averages) == averages
    for name, value in weights.items():
        np.testing.assert_array_equal(state.weights[name], value)
        for average in state.averages:
            np.testing.assert_array_equal(average[name], value)


def test_the_parts_of_a_state_are_complete():
    arrays = [{"a": np.full(2, k)} for k in range(6)]
    state = TrainerState(arrays[0], tuple(arrays[1:4]), {"moment1": arrays[4], "moment2": arrays[5]}, 7)
    assert list(state.parts) == ["weights", "ema", "ema1", "ema2", "moment1", "moment2"]
    assert [part["a"][0] for part in state.parts.values()] == list(range(6))
    again = TrainerState.from_parts(dict(reversed(state.parts.items())), 7)
    assert vars(again) == vars(state) and state.ema is state.averages[0]


def test_a_description_is_one_line():
    line = Description("torch", "cpu (2 threads)", "float32", 2, "eager", {"torch": "2.11", "cuda": "13"}).line()
    assert line == "torch: cpu (2 threads), float32, eager (torch 2.11, cuda 13)"


def offer(monkeypatch, **values: str) -> None:
    entries = [EntryPoint(name, value, "duet.backends") for name, value in values.items()]
    monkeypatch.setattr(module, "entry_points", lambda group: entries if group == "duet.backends" else [])


def test_a_third_party_backend_is_loaded_by_its_entry_point(monkeypatch):
    offer(monkeypatch, mine="types:SimpleNamespace", torch="not.there:Backend")
    monkeypatch.setattr("types.SimpleNamespace", lambda settings: ("made with", settings))
    assert load_backend("mine", BackendConfig(threads=3)) == ("made with", BackendConfig(threads=3))


def test_an_unknown_backend_is_refused_with_the_nearest_name(monkeypatch):
    offer(monkeypatch, tf="a:B", torch="a:B")
    with pytest.raises(DuetError, match=r"backend: 'troch' was given; it must be one of tf, torch\. Did you mean"):
        load_backend("troch", BackendConfig())
    offer(monkeypatch)
    with pytest.raises(DuetError, match=r"no backend is installed in this Python; run: python3 -m duet setup"):
        load_backend("torch", BackendConfig())


def test_a_missing_framework_is_reported_with_the_command_to_use(monkeypatch):
    offer(monkeypatch, torch="a_framework_that_nobody_has:Backend")
    advice = r"-m duet COMMAND backend=torch .* -m duet run torch -- script\.py"
    with pytest.raises(DuetError, match=r"backend torch: it cannot be imported in this Python .*" + advice):
        load_backend("torch", BackendConfig())
