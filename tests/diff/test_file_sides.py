"""A side that is a file is recognised by what it is; what cannot be opened is refused with what to do instead."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from diffusion_core.common.errors import DuetError
from experiments.model_diff.file_sides import find_file_side

RUN = Path(__file__).parents[1] / "data/run_v1"


def test_code_is_no_file():
    assert find_file_side("model.py:build") is None
    assert find_file_side("package.module:build") is None


@pytest.mark.parametrize(
    ("name", "backend", "recorder"),
    [("net.onnx", "", "experiments.model_diff.onnx_side"), ("net.keras", "tf", "backends.tf.recorder")],
)
def test_files_are_known_by_their_ending(tmp_path, name, backend, recorder):
    (tmp_path / name).write_bytes(b"")
    side = find_file_side(str(tmp_path / name))
    assert (side.backend, side.recorder, side.fixed) == (backend, recorder, True)


def test_a_saved_model_is_known_by_what_it_holds(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"")
    assert find_file_side(str(tmp_path)).opener == "backends.tf.files:load_network"


def test_a_run_is_computed_by_its_own_backend_or_another():
    side = find_file_side(str(RUN))
    assert side.backend in ("torch", "tf") and not side.fixed
    for name in ("torch", "tf"):
        asked = find_file_side(str(RUN), name)
        assert asked.opener == f"backends.{name}.run_model:build"
    with pytest.raises(DuetError, match="jax"):
        find_file_side(str(RUN), "jax")


def test_every_function_that_opens_a_file_exists():
    # Modules of a framework are imported in its own environment only.
    for text, backend in ((str(RUN), "torch"), (str(RUN), "tf")):
        side = find_file_side(text, backend)
        for reference in (side.opener, side.inputs):
            module, function = reference.split(":")
            path = Path(__file__).parents[2].joinpath(*module.split(".")).with_suffix(".py")
            assert f"def {function}(" in path.read_text(encoding="utf-8")
    module = import_module("experiments.model_diff.onnx_side")
    assert callable(module.build) and callable(module.inputs)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing.onnx", "no such file"),
        ("model.py", "model.py:build"),
        ("weights.pt", "load_state_dict"),
        ("a.txt", "ONNX"),
    ],
)
def test_what_cannot_be_opened_is_refused(tmp_path, name, said):
    if "missing" not in name:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DuetError, match=said):
        find_file_side(str(tmp_path / name))


@pytest.mark.skipif(find_spec("onnx") is None, reason="only the torch environment has onnx")
def test_inputs_for_an_onnx_file_have_its_shapes(tmp_path):
    from onnx import TensorProto, helper, save

    declared = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3]),
        helper.make_tensor_value_info("i", TensorProto.INT64, [4]),
    ]
    node = helper.make_node("Relu", ["x"], ["y"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    save(helper.make_model(helper.make_graph([node], "g", declared, [out])), tmp_path / "net.onnx")
    x, i = import_module("experiments.model_diff.onnx_side").inputs(0, tmp_path / "net.onnx")
    assert (x.shape, x.dtype.kind, i.shape, i.dtype.kind) == ((2, 3), "f", (4,), "i")
