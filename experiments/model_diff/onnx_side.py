"""Record what an ONNX file computes, one operator at a time, for `duet diff`.

A twin of the recorders of the backends: the same functions in the same order. In float32 onnxruntime computes every
intermediate result, without its own fusions; in float64, which it has not for convolutions, the reference evaluator of
the package onnx does, with all float32 numbers of the file cast up.

Initialisers of floats are parameters. Other initialisers, constants and whatever follows from those alone are *fixed*:
they become attributes of the operators that read them, and a "constant" only where an operator reads them as an array.
An ONNX file has no training mode, no gradients and no optimiser.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff.recording import Operation, Pass, Step
from experiments.model_diff import onnx_operations, onnx_windows  # noqa: F401 - they register their translations
from experiments.model_diff.onnx_node import TRANSLATIONS, Node, Value

__all__ = [
    "FRAMEWORK",
    "LAYOUT",
    "build",
    "building",
    "inputs",
    "layers",
    "load",
    "prepare",
    "read_state",
    "record_pass",
    "record_steps",
    "version",
    "write_state",
]

FRAMEWORK = "onnx"
LAYOUT = "channels_first"

# Names that exporters give to numbers of the code, as opposed to parameters of the author.
_GENERATED = re.compile(r"^(onnx::|_?val_|const|/|_inlfunc|_to_copy|scalar_tensor)|Constant", re.IGNORECASE)


class OnnxModel:
    """A model of an ONNX file in one precision."""

    def __init__(self, proto: Any, precision: str = "float32") -> None:
        self.proto, self.precision = proto, precision

    def __call__(self, *arrays: NDArray) -> dict[str, NDArray]:
        """Return the outputs by name."""
        found = _results(self, dict(zip(_input_names(self.proto), arrays, strict=True)))
        return {output.name: found[output.name] for output in self.proto.graph.output}


def load(path: str | Path) -> OnnxModel:
    """Read an ONNX file, with its functions written out."""
    import onnx
    from onnx.inliner import inline_local_functions

    try:
        proto = onnx.load(path)
    except Exception as error:
        raise ValueError(f"{path}: this is no ONNX file ({type(error).__name__}: {error})") from error
    return OnnxModel(inline_local_functions(proto) if proto.functions else proto)


def build(path: str | Path, **_: Any) -> OnnxModel:
    """Return the model of a file."""
    return load(path)


def inputs(seed: int, path: str | Path, **_: Any) -> tuple[NDArray, ...]:
    """Return inputs of the declared shapes, with 2 for sizes that are free: normal floats, and zeros and ones."""
    from onnx.helper import tensor_dtype_to_np_dtype

    rng = np.random.default_rng(seed)
    proto = load(path).proto
    drawn = []
    for each in proto.graph.input:
        if each.name in _input_names(proto):
            kind = each.type.tensor_type
            shape = [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else 2 for d in kind.shape.dim]
            dtype = np.dtype(tensor_dtype_to_np_dtype(kind.elem_type))
            drawn.append((rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)).astype(dtype))
    return tuple(drawn)


def version() -> str:
    """Return the versions of the packages."""
    import onnx
    import onnxruntime

    return f"onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}"


@contextmanager
def building(precision: str, seed: int) -> Iterator[None]:
    """Do nothing: a file is read, not built."""
    yield


def prepare(model: OnnxModel, precision: str) -> OnnxModel:
    """Return the model in a precision; float64 casts every float32 number of the file up."""
    if not isinstance(model, OnnxModel):
        raise ValueError(f"an ONNX model was expected, but {type(model).__name__} was given")
    return OnnxModel(_in_float64(model.proto), precision) if precision == "float64" else model


def read_state(model: OnnxModel) -> dict[str, NDArray]:
    """Return the parameters of a model by name."""
    from onnx.numpy_helper import to_array

    return {each.name: to_array(each) for each in model.proto.graph.initializer if _is_parameter(each)}


def write_state(model: OnnxModel, arrays: Mapping[str, NDArray]) -> None:
    """Write parameters into a model by name."""
    from onnx.numpy_helper import from_array, to_array

    known = {each.name: each for each in model.proto.graph.initializer}
    for name, array in arrays.items():
        if name not in known:
            raise ValueError(f"the model has no initialiser {name}; it has {', '.join(known) or 'none'}")
        dtype = to_array(known[name]).dtype
        known[name].CopyFrom(from_array(np.ascontiguousarray(array, dtype=dtype), name))


def record_pass(
    model: OnnxModel, inputs: Sequence[NDArray] | Mapping[str, NDArray], name: str, gradients: str = "all"
) -> Pass:
    """Record one evaluation pass through a model; it has no gradients."""
    if name.startswith("train"):
        _refuse("training mode")
    names = _input_names(model.proto)
    feeds = dict(inputs) if isinstance(inputs, Mapping) else dict(zip(names, inputs, strict=False))
    if set(feeds) != set(names) or len(feeds) != len(inputs):
        raise ValueError(f"{len(inputs)} inputs were given; the ONNX file reads {len(names)}: {', '.join(names)}")
    feeds = {each: _as_declared(model, each, np.asarray(feeds[each])) for each in names}
    return _Recorder(model, feeds, _results(model, feeds)).finished(name)


def record_steps(*_: Any) -> tuple[tuple[Step, ...], dict[str, Any]]:
    """Refuse: a file of a network has no optimiser."""
    _refuse("optimiser")


def layers(model: OnnxModel) -> dict[str, dict[str, Any]]:
    """Return nothing: a file has no layers, only operators."""
    return {}


def _refuse(what: str) -> NoReturn:
    raise ValueError(f"an ONNX file has no {what}; compare it with --mode forward")


def _input_names(proto: Any) -> list[str]:
    weights = {each.name for each in proto.graph.initializer}
    return [each.name for each in proto.graph.input if each.name not in weights]


def _is_parameter(initializer: Any) -> bool:
    """Return whether an initialiser is a weight: floats, unless an exporter has put one number of the code there."""
    from onnx import TensorProto

    floats = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    single = int(np.prod(initializer.dims)) == 1 and bool(_GENERATED.search(initializer.name))
    return initializer.data_type in floats and not single


def _as_declared(model: OnnxModel, name: str, array: NDArray) -> NDArray:
    """Return an input in the type that the file declares."""
    from onnx.helper import tensor_dtype_to_np_dtype

    declared = next(each for each in model.proto.graph.input if each.name == name)
    return array.astype(tensor_dtype_to_np_dtype(declared.type.tensor_type.elem_type), copy=False)


def _in_float64(proto: Any) -> Any:
    """Return a copy of a model whose float32 numbers are float64."""
    from onnx import AttributeProto, ModelProto, TensorProto
    from onnx.numpy_helper import from_array, to_array

    def cast(tensor: Any) -> None:
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
            tensor.CopyFrom(from_array(to_array(tensor).astype(np.float64), tensor.name))

    def visit(graph: Any) -> None:
        for tensor in graph.initializer:
            cast(tensor)
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
                value.type.tensor_type.elem_type = TensorProto.DOUBLE
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    cast(attribute.t)
                elif attribute.type == AttributeProto.GRAPH:
                    visit(attribute.g)
                elif attribute.name in ("to", "dtype") and attribute.i in (TensorProto.FLOAT, TensorProto.FLOAT16):
                    attribute.i = TensorProto.DOUBLE
                elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                    many = attribute.name == "value_floats"
                    array = np.array(attribute.floats if many else attribute.f, np.float64)
                    attribute.CopyFrom(AttributeProto(name="value", type=AttributeProto.TENSOR, t=from_array(array)))

    copy = ModelProto()
    copy.CopyFrom(proto)
    visit(copy.graph)
    return copy


def _results(model: OnnxModel, feeds: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """Return every named result of a pass."""
    found = _in_reference(model, feeds) if model.precision == "float64" else _in_onnxruntime(model, feeds)
    return {name: np.asarray(array) for name, array in found.items() if array is not None and name}


def _in_reference(model: OnnxModel, feeds: Mapping[str, NDArray]) -> Mapping[str, Any]:
    from onnx.reference import ReferenceEvaluator

    try:
        with np.errstate(all="ignore"):
            return ReferenceEvaluator(model.proto).run(None, dict(feeds), intermediate=True)
    except Exception as error:
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"float64 is not possible: the reference evaluator of onnx stopped with {message}") from error


def _in_onnxruntime(model: OnnxModel, feeds: Mapping[str, NDArray]) -> Mapping[str, Any]:
    import onnxruntime
    from onnx import ModelProto, ValueInfoProto
    from onnx.numpy_helper import to_array

    copy = ModelProto()
    copy.CopyFrom(model.proto)
    wanted = [name for node in copy.graph.node for name in node.output if name]
    declared = {each.name for each in copy.graph.output}
    copy.graph.output.extend(ValueInfoProto(name=name) for name in wanted if name not in declared)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    weights = {each.name: to_array(each) for each in copy.graph.initializer}
    return {**weights, **feeds, **dict(zip(names, session.run(names, dict(feeds)), strict=True))}


class _Recorder:
    """The operations and values of one pass; what `onnx_node.Sink` asks for."""

    def __init__(self, model: OnnxModel, feeds: Mapping[str, NDArray], results: Mapping[str, NDArray]) -> None:
        self.results = results
        self.operations: list[Operation] = []
        self.values: dict[int, NDArray] = {}
        self.numbers: dict[str, int] = {}
        self.count = 0
        self.outputs = [each.name for each in model.proto.graph.output]
        self.constants: set[str] = set()
        self.inputs = tuple(self.new(name, feeds[name]) for name in feeds)
        self.parameters = {name: self.new(name, array) for name, array in read_state(model).items()}
        self.constants |= {each.name for each in model.proto.graph.initializer} - set(self.parameters)
        opsets = {each.domain: each.version for each in model.proto.opset_import}
        for proto in model.proto.graph.node:
            self.translate(Node(self, proto, opsets.get(proto.domain, opsets.get("", 1))), proto.domain)

    def new(self, name: str | None, array: NDArray | None) -> int:
        """Give a value a number; an intermediate result of a node has no name and no array."""
        self.count += 1
        if name is not None and array is not None:
            self.numbers[name] = self.count
            self.values[self.count] = array
        return self.count

    def translate(self, node: Node, domain: str) -> None:
        """Write the operations of a node, unless what it makes is fixed."""
        read = [name for name in node.inputs if name]
        shape_only = node.type in ("Shape", "Size")
        if shape_only or (all(name in self.constants for name in read) and not node.type.startswith("Random")):
            self.constants.update(node.outputs)
        elif domain in ("", "ai.onnx") and node.type in TRANSLATIONS:
            TRANSLATIONS[node.type](node)
        else:
            self.write(node, "opaque", read, [name for name in node.outputs if name], {})

    def fixed(self, name: str) -> NDArray | None:
        return self.results[name] if name in self.constants else None

    def shape(self, name: str) -> tuple[int, ...]:
        return self.results[name].shape

    def number(self, name: Value) -> int:
        """Return the number of a value; a fixed one becomes a constant."""
        if isinstance(name, int):
            return name
        if name not in self.numbers:
            self.operations.append(Operation("constant", (), (self.new(name, self.results[name]),), {}, "Constant"))
        return self.numbers[name]

    def write(self, node: Node, kind: str, inputs: Sequence[Value], outputs: Sequence[str], attributes: dict) -> int:
        read = tuple(self.number(name) for name in inputs)
        made = [self.new(name, self.results.get(name)) for name in outputs if name] or [self.new(None, None)]
        place = _place(node)
        self.operations.append(Operation(kind, read, tuple(made), attributes, node.type, *place))
        return made[0]

    def finished(self, name: str) -> Pass:
        """Return the pass."""
        outputs = {each: self.number(each) for each in self.outputs}
        return Pass(name, tuple(self.operations), self.values, self.inputs, outputs, self.parameters)


def _place(node: Node) -> tuple[str, str, str]:
    """Return the layer, the source line and its text of a node, as far as the exporter has written them."""
    layer = "/".join(node.name.strip("/").split("/")[:-1])
    scopes = node.metadata.get("pkg.torch.onnx.name_scopes")
    if scopes:
        names = ast.literal_eval(scopes)
        layer = names[-2] if len(names) > 1 else ""
    lines = re.findall(
        r'File "([^"]+)", line (\d+), in .*\n\s*(.*)', node.metadata.get("pkg.torch.onnx.stack_trace", "")
    )
    if lines:
        file, line, code = lines[-1]
        return layer, f"{Path(file).name}:{line}", code.strip()
    return layer, node.name, ""
