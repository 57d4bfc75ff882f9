"""An ONNX file is recorded operator by operator: each recorded operation computes what onnxruntime did."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from diffusion_core.parity.diff.recording import Pass, read_recording
from diffusion_core.parity.diff.vocabulary import COMPOSITE
from experiments.model_diff import onnx_side, sides
from experiments.model_diff.record_side import write_inputs

onnx = pytest.importorskip("onnx", reason="only the torch environment has onnx")
operations = pytest.importorskip("diffusion_core.parity.diff.operations")
from onnx import TensorProto, helper  # noqa: E402
from onnx.numpy_helper import from_array  # noqa: E402

RNG = np.random.default_rng(0)


def model(nodes, inputs, weights=None, opset=18) -> onnx_side.OnnxModel:
    """A model of nodes, each a tuple (operator, inputs, outputs, attributes); the last output is that of the model."""
    made = [helper.make_node(kind, given, out, **attributes) for kind, given, out, attributes in nodes]
    kinds = {"f": TensorProto.FLOAT, "i": TensorProto.INT64, "b": TensorProto.BOOL}
    declared = [
        helper.make_tensor_value_info(name, kinds[np.asarray(a).dtype.kind], np.shape(a)) for name, a in inputs.items()
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in nodes[-1][2]]
    held = [from_array(np.asarray(a), name) for name, a in (weights or {}).items()]
    graph = helper.make_graph(made, "g", declared, ends, held)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return onnx_side.OnnxModel(proto)


def evaluated(record: Pass) -> dict[int, np.ndarray]:
    """Run a recording again in NumPy."""
    values = {n: record.values[n] for n in (*record.inputs, *record.parameters.values())}
    numbers = [*record.values, *(n for o in record.operations for n in (*o.inputs, *o.outputs))]
    following = max(numbers)

    def fresh() -> int:
        nonlocal following
        following += 1
        return following

    for operation in record.operations:
        if operation.kind == "constant":
            values[operation.outputs[0]] = record.values[operation.outputs[0]]
            continue
        steps = [operation]
        if operation.kind in COMPOSITE:
            steps = operations.lower(operation, fresh, lambda number: values[number].shape)
        for step in steps:
            outputs = operations.evaluate(step, [values[n] for n in step.inputs])
            values.update(zip(step.outputs, outputs, strict=True))
    return values


def check(found: onnx_side.OnnxModel, inputs, names=("float64", "float32")) -> Pass:
    for name in names:
        record = onnx_side.record_pass(onnx_side.prepare(found, name), list(inputs.values()), name)
        values = evaluated(record)
        limit = 1e-7 if name == "float64" else 3e-5  # attributes of ONNX are float32
        for number, array in record.values.items():
            if number in values:
                assert values[number].shape == array.shape
                assert np.allclose(values[number], array, rtol=limit, atol=limit), record.operations
        assert all(o.kind != "opaque" for o in record.operations)
    return record


X = RNG.standard_normal((2, 4, 6, 6)).astype(np.float32)
W = RNG.standard_normal((4, 4, 3, 3)).astype(np.float32)
V = RNG.standard_normal(4).astype(np.float32)
ROW = RNG.standard_normal((3, 8)).astype(np.float32)
NONE, TWICE, WAY = np.float32([]), np.float32([1, 1, 2, 2]), "coordinate_transformation_mode"

ONE = {
    "conv": ("Conv", [X, W, V], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "conv same": ("Conv", [X, W], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "conv same lower": ("Conv", [X, W[:, :, :2, :2]], {"auto_pad": "SAME_LOWER"}),
    "conv grouped and dilated": ("Conv", [X, W[:, :2]], {"group": 2, "dilations": [2, 2]}),
    "conv transposed": ("ConvTranspose", [X, W, V], {"strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]}),
    "conv transposed same": ("ConvTranspose", [X, W], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "max pool": ("MaxPool", [X], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "average pool": ("AveragePool", [X], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "padded average": ("AveragePool", [X], {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1}),
    "global": ("GlobalAveragePool", [X], {}),
    "gemm": ("Gemm", [ROW, ROW, RNG.standard_normal(3).astype(np.float32)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    "matmul": ("MatMul", [ROW, ROW.T.copy()], {}),
    "einsum": ("Einsum", [ROW, ROW], {"equation": "ij,kj->ik"}),
    "batch norm": ("BatchNormalization", [X, V, V, V, np.abs(V)], {"epsilon": 1e-3}),
    "instance norm": ("InstanceNormalization", [X, V, V], {}),
    "layer norm": ("LayerNormalization", [ROW, ROW[0], ROW[1]], {"epsilon": 1e-3}),
    "softmax": ("Softmax", [ROW], {"axis": 0}),
    "leaky relu": ("LeakyRelu", [ROW], {"alpha": 0.2}),
    "hard sigmoid": ("HardSigmoid", [ROW], {}),
    "prelu": ("PRelu", [ROW, ROW[:1] ** 2], {}),
    "clip": ("Clip", [ROW, np.float32(-0.5), np.float32(0.5)], {}),
    "mean": ("ReduceMean", [X, np.array([2, -1])], {"keepdims": 0}),
    "l2": ("ReduceL2", [ROW, np.array([1])], {}),
    "cumsum": ("CumSum", [ROW, np.array(1)], {"exclusive": 1, "reverse": 1}),
    "slice": ("Slice", [X, np.array([3, -1]), np.array([-9, 1]), np.array([1, 3]), np.array([-1, -2])], {}),
    "pad": ("Pad", [X, np.array([0, 0, 1, 2, 0, 0, 1, 0])], {"mode": "reflect"}),
    "cut and padded": ("Pad", [X, np.array([0, 0, -1, 2, 0, 0, 1, 0])], {}),
    "transpose": ("Transpose", [X], {"perm": [0, 2, 3, 1]}),
    "reshape": ("Reshape", [X, np.array([0, -1])], {}),
    "tile": ("Tile", [ROW, np.array([2, 1])], {}),
    "expand": ("Expand", [ROW[:, None], np.array([3, 5, 8])], {}),
    "depth to space": ("DepthToSpace", [X], {"blocksize": 2, "mode": "CRD"}),
    "gather": ("Gather", [ROW, np.array([2, 0])], {}),
    "nearest": ("Resize", [X, NONE, TWICE], {"nearest_mode": "floor", WAY: "asymmetric"}),
    "linear": ("Resize", [X, NONE, TWICE], {"mode": "linear"}),
    "corners": ("Resize", [X, NONE, NONE, np.array([2, 4, 9, 9])], {"mode": "linear", WAY: "align_corners"}),
    "cubic": ("Resize", [X, NONE, TWICE], {"mode": "cubic"}),
    "scalar first": ("Sub", [np.float32(1), ROW], {}),
    "power": ("Pow", [ROW, np.float32(2)], {}),
    "maximum of three": ("Max", [ROW, -ROW, ROW / 2], {}),
    "mean of two": ("Mean", [ROW, 3 * ROW], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE)
def test_an_operator_computes_what_onnxruntime_does(name):
    kind, given, attributes = ONE[name]
    data = {"x": given[0]}
    weights = {f"w{i}": a for i, a in enumerate(given[1:])}
    if np.ndim(given[0]) == 0:
        data, weights = {"x": given[1]}, {"w0": given[0]}
        nodes = [(kind, ["w0", "x"], ["y"], attributes)]
    else:
        nodes = [(kind, ["x", *weights], ["y"], attributes)]
    # Float32 of one number is one of the code; arrays of floats are weights.
    weights = {("onnx::" + n if np.size(a) == 1 else n): a for n, a in weights.items()}
    nodes = [(kind, [next((m for m in weights if m.endswith(n)), n) for n in nodes[0][1]], ["y"], attributes)]
    # The reference evaluator does not cut.
    check(model(nodes, data, weights), data, ("float32",) if name == "cut and padded" else ("float64", "float32"))


def test_shapes_and_numbers_of_the_code_become_attributes():
    # x.flatten(1) * 0.5, as an exporter writes it.
    nodes = [
        ("Shape", ["x"], ["s"], {}),
        ("Gather", ["s", "zero"], ["n"], {}),
        ("Unsqueeze", ["n", "axis"], ["n1"], {}),
        ("Concat", ["n1", "rest"], ["target"], {"axis": 0}),
        ("Reshape", ["x", "target"], ["flat"], {}),
        ("Mul", ["flat", "onnx::Mul_3"], ["half"], {}),
        ("Add", ["half", "bias"], ["y"], {}),
    ]
    weights = {
        "zero": np.array(0),
        "axis": np.array([0]),
        "rest": np.array([-1]),
        "onnx::Mul_3": np.float32(0.5),
        "bias": RNG.standard_normal(144).astype(np.float32),
    }
    record = check(model(nodes, {"x": X}, weights), {"x": X})
    assert [o.kind for o in record.operations] == ["reshape", "multiply", "add"]
    assert record.operations[1].attributes["scalar"] == 0.5
    assert list(record.parameters) == ["bias"]


def test_a_file_is_a_side_in_a_process_of_its_own(tmp_path):
    onnx.save(model([("Tanh", ["x"], ["y"], {})], {"x": ROW}).proto, tmp_path / "net.onnx")
    side = sides.open_side(sides.Side(str(tmp_path / "net.onnx"), sys.executable), "A", 0, tmp_path)
    write_inputs((ROW,), tmp_path / "given.npz")
    try:
        side.load()
        assert side.record(tmp_path / "made", [tmp_path / "given.npz"], ["float32"], [], None) == 0
    finally:
        side.close()
    record = read_recording(tmp_path / "made").passes["float32"]
    np.testing.assert_allclose(record.values[record.outputs["y"]], np.tanh(ROW), rtol=1e-6)


def test_what_a_file_does_not_have_is_refused_in_one_line(tmp_path):
    file = tmp_path / "model.onnx"
    file.write_text("nothing")
    with pytest.raises(ValueError, match="no ONNX file"):
        onnx_side.load(file)
    small = model([("Relu", ["x"], ["y"], {})], {"x": ROW})
    with pytest.raises(ValueError, match="training mode"):
        onnx_side.record_pass(small, [ROW], "train64")
    with pytest.raises(ValueError, match="optimiser"):
        onnx_side.record_steps(small, [], None, None, None)
    with pytest.raises(ValueError, match="reads 1: x"):
        onnx_side.record_pass(small, [ROW, ROW], "float32")
    with pytest.raises(ValueError, match="initialiser b"):
        onnx_side.write_state(small, {"b": ROW})


def test_weights_are_read_and_written_in_the_precision_of_the_model():
    small = model([("Add", ["x", "bias"], ["y"], {})], {"x": ROW}, {"bias": ROW[0]})
    wide = onnx_side.prepare(small, "float64")
    assert onnx_side.read_state(wide)["bias"].dtype == np.float64
    onnx_side.write_state(wide, {"bias": np.arange(8.0)})
    record = onnx_side.record_pass(wide, [ROW.astype(float)], "float64")
    assert np.array_equal(record.values[record.outputs["y"]], ROW.astype(float) + np.arange(8.0))
    assert np.array_equal(onnx_side.read_state(small)["bias"], ROW[0])


def test_an_unknown_operator_is_recorded_by_its_values():
    nodes = [("NonZero", ["x"], ["where"], {}), ("Cast", ["where"], ["y"], {"to": TensorProto.FLOAT})]
    record = onnx_side.record_pass(model(nodes, {"x": ROW}), [ROW], "float32")
    assert [o.kind for o in record.operations] == ["opaque", "cast"]
