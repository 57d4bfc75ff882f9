"""ONNX files match the reference in onnxruntime: every block kind and every network."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion_core.backend import reference
from diffusion_core.backend.interface import TrainBatch
from diffusion_core.common.errors import DuetError
from diffusion_core.convert import onnx as convert
from diffusion_core.networks import Node, Program, lower
from diffusion_core.networks.blocks import Concat, Conv, Sinusoid
from diffusion_core.networks.weights import Weights
from diffusion_core.parity import cases
from diffusion_core.parity.ladder import TOLERANCES, relative


def checked(model: Any) -> None:
    """Check a model with the onnx package; imported here, since only the torch environment has it."""
    from onnx.checker import check_model

    check_model(model, full_check=True)


def rounded(program: Program, gain: float = 1.0) -> Weights:
    return {name: value.astype(np.float32) for name, value in cases.scattered_weights(program, gain).items()}


def inputs(batch: TrainBatch) -> tuple[np.ndarray, ...]:
    batch = cases.cast(batch, np.float32)
    return batch.images, batch.c_noise, batch.label, batch.features


def error(model: Any, program: Program, weights: Weights, shape: tuple[int, int, int], size: int = 4) -> float:
    given = inputs(cases.noise_batch(program, shape, size))
    got = convert.open_onnx(model.SerializeToString(), threads=1)(*given)
    assert got.dtype == np.float32
    return relative(got, reference.forward(program, weights, *given))


def small() -> tuple[Program, Weights, tuple[int, int, int]]:
    case = next(case for case in cases.BLOCKS if case.name == "Modulate")
    return case.program, rounded(case.program), case.shape


@pytest.mark.parametrize("case", cases.BLOCKS, ids=lambda case: case.name)
def test_a_block_matches_the_reference(case):
    weights = rounded(case.program, case.gain)
    model = convert.onnx_model(case.program, weights, case.shape)
    checked(model)
    assert error(model, case.program, weights, case.shape) <= TOLERANCES[f"block{case.kind}"].float32


@pytest.mark.parametrize("name", cases.NETWORKS)
def test_a_network_matches_the_reference_for_any_batch_size(name):
    spec = cases.NETWORKS[name]
    program = lower(spec)
    weights = rounded(program)
    model = convert.onnx_model(program, weights, spec.image_shape)
    checked(model)
    for size in (1, 5):
        assert error(model, program, weights, spec.image_shape, size) <= TOLERANCES["network"].float32


def test_one_wrong_number_is_detected():
    program, weights, shape = small()
    name = next(iter(weights))
    wrong = weights | {name: weights[name] * np.float32(1.001)}
    model = convert.onnx_model(program, wrong, shape)
    assert error(model, program, weights, shape) > 10 * TOLERANCES["block"].float32


@pytest.mark.parametrize("change", [{"sin_first": False}, {"divisor": 7.01}])
def test_one_wrong_option_is_detected(change):
    program, weights, shape = small()
    nodes = [
        replace(node, block=replace(node.block, **change)) if node.kind == "Sinusoid" else node
        for node in program.nodes
    ]
    model = convert.onnx_model(replace(program, nodes=tuple(nodes)), weights, shape)
    assert error(model, program, weights, shape) > 10 * TOLERANCES["block"].float32


def test_noise_levels_are_embedded_in_float64():
    """At a million, float32 values are a sixteenth apart, so a float32 sine would be wrong."""
    nodes = (
        Node("waves", Sinusoid(2, 10000.0, 1.0, True), ("c_noise",)),
        Node("join", Concat(), ("x", "waves")),
        Node("last", Conv(3, 2, 1, 1, (0, 0, 0, 0), False, 1.0), ("join",)),
    )
    weights = {"last.weight": np.eye(3, dtype=np.float32)[1:, :, None, None]}
    forward = convert.open_onnx(convert.onnx_model(Program(nodes), weights, (1, 1, 1)).SerializeToString(), threads=1)
    level = np.array([1e6 + 0.03, 3.0])
    got = forward(np.zeros((2, 1, 1, 1)), level, [0, 0])
    np.testing.assert_allclose(got[:, 0, 0], np.stack([np.sin(level), np.cos(level)], axis=-1), atol=1e-7, rtol=0)


def test_weights_are_initialisers_bit_for_bit():
    from onnx.numpy_helper import to_array

    program, weights, shape = small()
    model = convert.onnx_model(program, weights, shape)
    kept = {array.name: to_array(array) for array in model.graph.initializer}
    for name, value in weights.items():
        np.testing.assert_array_equal(kept[name], value, strict=True)


def test_only_inputs_that_a_block_reads_are_declared():
    read = {}
    for case in cases.BLOCKS:
        model = convert.onnx_model(case.program, rounded(case.program), case.shape)
        read[case.name] = [value.name for value in model.graph.input]
    assert read["ReLU"] == ["x"]
    assert read["Modulate"] == ["x", "c_noise"]
    assert read["Embedding"] == ["x", "label"]
    assert read["Features"] == ["x", "features"]


def test_a_second_time_is_an_input_of_a_network_that_reads_it():
    spec = replace(cases.NETWORKS[next(iter(cases.NETWORKS))], second_time=True)
    program = lower(spec)
    weights, given = rounded(program), inputs(cases.noise_batch(program, spec.image_shape, 3))
    run = convert.open_onnx(convert.onnx_model(program, weights, spec.image_shape).SerializeToString(), threads=1)
    for second in (np.array([0.1, 0.5, 0.9]), None):
        expected = reference.forward(program, weights, *given, second_time=second)
        assert relative(run(*given, second_time=second), expected) <= TOLERANCES["network"].float32


def test_missing_features_are_zeros():
    case = next(case for case in cases.BLOCKS if case.name == "Features")
    forward = convert.open_onnx(
        convert.onnx_model(case.program, rounded(case.program), case.shape).SerializeToString(), threads=1
    )
    x, c_noise, label, features = inputs(cases.noise_batch(case.program, case.shape))
    np.testing.assert_array_equal(forward(x, c_noise, label), forward(x, c_noise, label, 0 * features))
    assert np.any(forward(x, c_noise, label) != forward(x, c_noise, label, features))


def test_the_metadata_names_the_network():
    spec = cases.NETWORKS["time added, strided"]
    program = lower(spec)
    model = convert.onnx_model(program, rounded(program), spec.image_shape, {"weights": "ema"})
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "program_sha256": program.sha256,
        "image_shape": "8,8,1",
        "classes": "10",
        "null_label": "10",
        "weights": "ema",
    }


@pytest.mark.parametrize("limit", [convert.LIMIT, 100], ids=["one file", "weights apart"])
def test_a_file_is_read_back(tmp_path: Path, limit: int):
    spec = cases.NETWORKS["time added, strided"]
    program = lower(spec)
    weights = rounded(program)
    files = convert.save_onnx(convert.onnx_model(program, weights, spec.image_shape), tmp_path / "net.onnx", limit)
    assert files[0] == tmp_path / "net.onnx" and sorted(tmp_path.iterdir()) == sorted(files)
    assert len(files) == (2 if limit == 100 else 1)
    assert len({file.stat().st_mode for file in files}) == 1
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for file in files:
        file.rename(moved / file.name)
    given = inputs(cases.noise_batch(program, spec.image_shape, 2))
    got = convert.open_onnx(moved / "net.onnx", threads=1)(*given)
    assert relative(got, reference.forward(program, weights, *given)) <= TOLERANCES["network"].float32


def test_weights_that_do_not_fit_are_refused():
    program, weights, shape = small()
    with pytest.raises(DuetError, match=r"pre\.weight: the network needs shape"):
        convert.onnx_model(program, weights | {"pre.weight": np.zeros(3, np.float32)}, shape)


def test_a_missing_package_is_a_one_line_error(monkeypatch):
    for name in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    program, weights, shape = small()
    with pytest.raises(DuetError, match=r"pip install onnx$"):
        convert.onnx_model(program, weights, shape)
    with pytest.raises(DuetError, match=r"pip install onnxruntime$"):
        convert.open_onnx(b"")
