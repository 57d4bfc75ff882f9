"""Export of networks to ONNX: a program with its weights as a float32 graph for evaluation.

    x         float32  b h w c    images multiplied by c_in
    c_noise   float64  b          the encoded noise level
    label     int64    b          classes, including the null label
    features  float32  b f        numbers in addition to the class
    estimate  float32  b h w c    an estimate of x_0, for a self-conditioned network
    F         float32  b h w c    the raw output

The batch size is dynamic, the image size fixed. Only inputs that a block reads are declared: a network without classes
has no `label`. Images are transposed at the input and at the output; between, values are ``b c h w``. Weights are
initialisers with the names, bits and axes of the manifest. Sines and cosines of c_noise are computed in float64 and
cast at the end, as everywhere; the cosine is sin(angle + pi/2), because older versions of onnxruntime lack a float64
cosine. The rest is float32: onnxruntime has no float64 convolution.

Opset 18 (ONNX 1.13, 2022) is the first in which every operator used here has its present form. onnxruntime 1.15 and
present versions compute the same.

References:
    ONNX operators, https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.convert import onnx_magnitude as _onnx_magnitude  # noqa: F401  fills the table
from diffusion_core.convert import onnx_tokens as _onnx_tokens  # noqa: F401  fills the table
from diffusion_core.convert.onnx_graph import (
    EMITTERS,
    Graph,
    Value,
    channels_first,
    channels_last,
    int64,
    reshape,
    to_float32,
)
from diffusion_core.networks import blocks
from diffusion_core.networks.own import Own
from diffusion_core.networks.program import Program
from diffusion_core.networks.registry import Block, kind_of
from diffusion_core.networks.weights import Weights, check_weights

__all__ = ["EMITTERS", "OPSET", "onnx_model", "open_onnx", "open_session", "save_onnx"]

OPSET, IR_VERSION = 18, 8
# A protocol buffer holds at most 2 GiB; leave some of it to the graph.
LIMIT = 2**31 - 2**26


def _like(g: Graph, vector: Value | str, x: Value) -> str:
    """Give a vector (b, c) or parameter (c,) the axes of an image or of tokens."""
    rank = len(vector.shape) + 1 if isinstance(vector, Value) else 1
    if x.is_image:
        return g.add("Unsqueeze", vector, int64(rank, rank + 1))
    return g.add("Unsqueeze", vector, int64(1)) if rank == 2 and len(x.shape) == 2 else g._name(vector)


def _broadcast(g: Graph, y: Value, x: Value) -> Value | str:
    """Return the second input of a block with the axes of x."""
    return y if len(y.shape) == len(x.shape) else _like(g, y, x)


def _sinusoids(g: Graph, angle: str, sin_first: bool) -> str:
    sin, cos = g.add("Sin", angle), g.add("Sin", g.add("Add", angle, np.array(np.pi / 2)))
    return to_float32(g, g.add("Concat", *((sin, cos) if sin_first else (cos, sin)), axis=1))


def _column(g: Graph, c_noise: Value) -> str:
    return g.add("Unsqueeze", c_noise, int64(1))


@EMITTERS(blocks.Sinusoid)
def _sinusoid(g: Graph, b: blocks.Sinusoid, c_noise: Value) -> str:
    return _sinusoids(g, g.add("Mul", _column(g, c_noise), np.array(b.frequencies())), b.sin_first)


@EMITTERS(blocks.Fourier)
def _fourier(g: Graph, b: blocks.Fourier, c_noise: Value, frequencies: str) -> str:
    turns = g.add("Mul", _column(g, c_noise), g.add("Cast", frequencies, to=g.onnx.TensorProto.DOUBLE))
    return _sinusoids(g, g.add("Mul", turns, np.array(2.0 * np.pi)), b.sin_first)


@EMITTERS(blocks.Number)
def _number(g: Graph, b: blocks.Number, c_noise: Value) -> str:
    return to_float32(g, g.add("Mul", _column(g, c_noise), np.array(b.scale, np.float64)))


@EMITTERS(blocks.Embedding)
def _embedding(g: Graph, b: blocks.Embedding, label: Value, weight: str) -> str:
    table = g.add("Concat", weight, np.zeros((1, b.dim), np.float32), axis=0) if b.zero else weight
    return g.add("Gather", table, label)


@EMITTERS(blocks.Linear)
def _linear(g: Graph, b: blocks.Linear, x: Value, weight: str, bias: str | None = None) -> str:
    if len(x.shape) == 1:
        return g.add("Gemm", x, weight, *filter(None, [bias]), transB=1)
    product = g.add("MatMul", x, g.add("Transpose", weight, perm=[1, 0]))
    return g.add("Add", product, bias) if bias else product


@EMITTERS(blocks.Conv)
def _conv(g: Graph, b: blocks.Conv, x: Value, weight: str, bias: str | None = None) -> str:
    top, bottom, left, right = b.padding
    pads = [top, left, bottom, right]
    return g.add("Conv", x, weight, *filter(None, [bias]), pads=pads, strides=[b.stride] * 2)


@EMITTERS(blocks.ConvTranspose)
def _conv_transpose(g: Graph, b: blocks.ConvTranspose, x: Value, weight: str, bias: str | None = None) -> str:
    return g.add("ConvTranspose", x, weight, *filter(None, [bias]), pads=[b.crop] * 4, strides=[b.stride] * 2)


def _normalize(g: Graph, x: Value | str, axes: tuple[int, ...], eps: float) -> str:
    """Normalise in two passes, which no ONNX operator guarantees."""
    centred = g.add("Sub", x, g.add("ReduceMean", x, int64(*axes)))
    variance = g.add("ReduceMean", g.add("Mul", centred, centred), int64(*axes))
    return g.add("Div", centred, g.add("Sqrt", g.add("Add", variance, np.array(eps, np.float32))))


@EMITTERS(blocks.GroupNorm)
def _group_norm(g: Graph, b: blocks.GroupNorm, x: Value, weight: str, bias: str) -> str:
    normal = reshape(g, _normalize(g, reshape(g, x, b.groups, -1), (2,), b.eps), *x.shape)
    return g.add("Add", g.add("Mul", normal, _like(g, weight, x)), _like(g, bias, x))


@EMITTERS(blocks.LayerNorm)
def _layer_norm(g: Graph, b: blocks.LayerNorm, x: Value, weight: str | None = None, bias: str | None = None) -> str:
    normal = _normalize(g, x, (x.channels,) if len(b.shape) == 1 else (1, 2, 3), b.eps)
    if weight is None or bias is None:
        return normal
    if len(b.shape) == 1:
        weight, bias = _like(g, weight, x), _like(g, bias, x)
    return g.add("Add", g.add("Mul", normal, weight), bias)


@EMITTERS(blocks.RMSNorm)
def _rms_norm(g: Graph, b: blocks.RMSNorm, x: Value, weight: str) -> str:
    if b.mean_square:
        square = g.add("ReduceMean", g.add("Mul", x, x), int64(x.channels))
        size = g.add("Sqrt", g.add("Add", square, np.array(b.eps, np.float32)))
        return g.add("Mul", g.add("Div", x, size), _like(g, weight, x))
    length = g.add("ReduceL2", x, int64(x.channels))
    bounded = g.add("Max", length, np.array(b.eps, np.float32))
    normal = g.add("Mul", g.add("Div", x, bounded), np.array(b.channels**0.5, np.float32))
    return g.add("Mul", normal, _like(g, weight, x))


@EMITTERS(blocks.BatchNorm)
def _batch_norm(g: Graph, b: blocks.BatchNorm, x: Value, weight: str, bias: str, mean: str, variance: str) -> str:
    return g.add("BatchNormalization", x, weight, bias, mean, variance, epsilon=b.eps)


@EMITTERS(blocks.SiLU)
def _silu(g: Graph, b: blocks.SiLU, x: Value) -> str:
    return g.add("Mul", x, g.add("Sigmoid", x))


@EMITTERS(blocks.ReLU)
def _relu(g: Graph, b: blocks.ReLU, x: Value) -> str:
    return g.add("Relu", x)


@EMITTERS(blocks.GELU)
def _gelu(g: Graph, b: blocks.GELU, x: Value) -> str:
    if b.tanh:
        cubic = g.add("Mul", g.add("Mul", g.add("Mul", x, x), x), np.array(0.044715, np.float32))
        inner = g.add("Mul", g.add("Add", x, cubic), np.array((2.0 / math.pi) ** 0.5, np.float32))
        half = g.add("Mul", x, np.array(0.5, np.float32))
        return g.add("Mul", half, g.add("Add", g.add("Tanh", inner), np.array(1, np.float32)))
    twice = g.add("Add", g.add("Erf", g.add("Mul", x, np.array(0.5**0.5, np.float32))), np.array(1, np.float32))
    return g.add("Mul", g.add("Mul", x, np.array(0.5, np.float32)), twice)


@EMITTERS(blocks.Sigmoid)
def _sigmoid(g: Graph, b: blocks.Sigmoid, x: Value) -> str:
    return g.add("Sigmoid", x)


@EMITTERS(blocks.Mish)
def _mish(g: Graph, b: blocks.Mish, x: Value) -> str:
    return g.add("Mul", x, g.add("Tanh", g.add("Softplus", x)))


@EMITTERS(blocks.Attention)
def _attention(g: Graph, b: blocks.Attention, qkv: Value) -> str:
    axes = blocks.ATTENTION_ORDERS[b.order].split()
    sizes = {"three": 3, "n": b.heads, "d": b.channels // b.heads}
    parts = reshape(g, _positions_last(g, qkv), *(sizes[axis] for axis in axes), math.prod(qkv.shape) // qkv.count)
    q, k, v = (g.add("Gather", parts, np.array(i), axis=1 + axes.index("three")) for i in range(3))  # b n d tokens
    q = g.add("Mul", q, np.array(sizes["d"] ** -0.5, np.float32))
    weights = g.add("Softmax", g.add("MatMul", _transpose(g, q), k), axis=-1)
    return _join_heads(g, _transpose(g, g.add("MatMul", weights, _transpose(g, v))), b.channels, qkv)


def _positions_last(g: Graph, x: Value) -> Value | str:
    """Return tokens as (b, c, n), and an image as it is."""
    return x if x.is_image else g.add("Transpose", x, perm=[0, 2, 1])


def _join_heads(g: Graph, mixed: str, channels: int, like: Value) -> str:
    """Return values of heads (b n d tokens) as tokens, or as an image of the height and width of another value."""
    if like.is_image:
        return reshape(g, mixed, channels, *like.shape[1:])
    return g.add("Transpose", reshape(g, mixed, channels, like.shape[0]), perm=[0, 2, 1])


@EMITTERS(blocks.MemoryAttention)
def _memory_attention(g: Graph, b: blocks.MemoryAttention, qkv: Value, memory: str) -> str:
    q, k, v = _with_memory(g, b, qkv, memory)
    q = g.add("Mul", q, np.array(b.size**-0.5, np.float32))
    weights = g.add("Softmax", g.add("MatMul", _transpose(g, q), k), axis=-1)
    return _join_heads(g, _transpose(g, g.add("MatMul", weights, _transpose(g, v))), b.channels, qkv)


@EMITTERS(blocks.LinearAttention)
def _linear_attention(g: Graph, b: blocks.LinearAttention, qkv: Value, memory: str) -> str:
    q, k, v = _with_memory(g, b, qkv, memory)
    context = g.add("MatMul", v, _transpose(g, g.add("Softmax", k, axis=-1)))
    weights = g.add("Mul", g.add("Softmax", q, axis=-2), np.array(b.size**-0.5, np.float32))
    return _join_heads(g, g.add("MatMul", context, weights), b.channels, qkv)


def _with_memory(
    g: Graph, b: blocks.MemoryAttention | blocks.LinearAttention, qkv: Value, memory: str
) -> tuple[str, str, str]:
    """Return q, k and v (b n d tokens), where k and v begin with the memory."""
    parts = reshape(g, _positions_last(g, qkv), 3, b.heads, b.size, math.prod(qkv.shape) // qkv.count)
    q, k, v = (g.add("Gather", parts, np.array(i), axis=1) for i in range(3))
    shape = g.add("Concat", g.add("Shape", q, start=0, end=1), int64(b.heads, b.size, b.memory), axis=0)
    memory = g.add("Transpose", memory, perm=[0, 1, 3, 2])
    k, v = (
        g.add("Concat", g.add("Expand", g.add("Gather", memory, np.array(i), axis=0), shape), rest, axis=3)
        for i, rest in enumerate((k, v))
    )
    return q, k, v


def _transpose(g: Graph, x: str) -> str:
    return g.add("Transpose", x, perm=[0, 1, 3, 2])


@EMITTERS(blocks.Dropout)
def _dropout(g: Graph, b: blocks.Dropout, x: Value) -> str:
    return x.name


@EMITTERS(blocks.Add)
def _add(g: Graph, b: blocks.Add, x: Value, y: Value) -> str:
    total = g.add("Add", x, _broadcast(g, y, x))
    return total if b.scale == 1 else g.add("Mul", total, np.array(b.scale, np.float32))


@EMITTERS(blocks.Multiply)
def _multiply(g: Graph, b: blocks.Multiply, x: Value, y: Value) -> str:
    return g.add("Mul", x, _broadcast(g, y, x))


@EMITTERS(blocks.Modulate)
def _modulate(g: Graph, b: blocks.Modulate, x: Value, vector: Value) -> str:
    halves = reshape(g, vector, 2, b.channels)
    first, second = (
        _like(g, Value(g.add("Gather", halves, np.array(i), axis=1), (b.channels,)), x) for i in range(2)
    )  # fmt: skip
    scale, shift = (second, first) if b.shift_first else (first, second)
    return g.add("Add", g.add("Mul", x, g.add("Add", scale, np.array(1, np.float32))), shift)


@EMITTERS(blocks.Concat)
def _concat(g: Graph, b: blocks.Concat, x: Value, y: Value) -> str:
    part = _broadcast(g, y, x)
    if len(y.shape) < len(x.shape):
        part = g.add("Expand", part, int64(1, 1, *x.shape[1:]) if x.is_image else int64(1, x.shape[0], 1))
    return g.add("Concat", x, part, axis=x.channels)


@EMITTERS(blocks.Upsample)
def _upsample(g: Graph, b: blocks.Upsample, x: Value) -> str:
    scales = np.array([1, 1, b.factor, b.factor], np.float32)
    options = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return g.add("Resize", x, "", scales, **options)


@EMITTERS(blocks.AvgPool)
def _avg_pool(g: Graph, b: blocks.AvgPool, x: Value) -> str:
    return g.add("AveragePool", x, kernel_shape=[b.factor] * 2, strides=[b.factor] * 2)


@EMITTERS(blocks.MaxPool)
def _max_pool(g: Graph, b: blocks.MaxPool, x: Value) -> str:
    return g.add("MaxPool", x, kernel_shape=[b.factor] * 2, strides=[b.factor] * 2)


@EMITTERS(blocks.Mean)
def _mean(g: Graph, b: blocks.Mean, x: Value) -> str:
    if not x.is_image:
        return g.add("ReduceMean", x, int64(1), keepdims=0)
    return reshape(g, g.add("GlobalAveragePool", x), x.shape[0])


@EMITTERS(blocks.Resample)
def _resample(g: Graph, b: blocks.Resample, x: Value) -> str:
    rows, columns = (b.matrix(size).astype(np.float32) for size in x.shape[1:])
    return g.add("MatMul", rows, g.add("MatMul", x, columns.T))


@EMITTERS(blocks.Flatten)
def _flatten(g: Graph, b: blocks.Flatten, x: Value) -> str:
    return reshape(g, g.add("Transpose", x, perm=[0, 2, 3, 1]) if x.is_image else x, math.prod(x.shape))


@EMITTERS(blocks.Unflatten)
def _unflatten(g: Graph, b: blocks.Unflatten, x: Value) -> str:
    channels = x.shape[0] // (b.height * b.width)
    image = reshape(g, x, b.height, b.width, channels)
    return g.add("Transpose", image, perm=[0, 3, 1, 2])


@EMITTERS(Own)
def _own(g: Graph, b: Own, x: Value, c_noise: Value, label: Value, features: Value, *second_time: Value) -> str:
    raise DuetError(
        f"network {b.reference}: the blocks of an own network are unknown, so Duet cannot write them as ONNX; use the "
        f"exporter of its framework"
    )


def onnx_model(
    program: Program, weights: Weights, shape: tuple[int, int, int], notes: Mapping[str, str] | None = None
) -> Any:
    """Return a network as an `onnx.ModelProto`; the module describes its inputs and its output.

    The metadata holds `program_sha256`, `image_shape` (h,w,c), `classes` and, with classes, `null_label`.

    Args:
        program: the network.
        weights: by full name.
        shape: of an image, (h, w, c).
        notes: additional metadata.

    Raises:
        DuetError: if the weights do not fit the program, or the package onnx is missing.
    """
    onnx = _package("onnx")
    check_weights(program, weights)
    graph = Graph(onnx)

    def emitter(name: str, block: Block) -> Callable[..., Value]:
        def emit(*inputs: Value, training: None = None) -> Value:
            graph.block = name
            own = {p.name: f"{name}.{p.name}" for p in block.parameters()}
            for full_name in own.values():
                graph.add_initialiser(full_name, np.asarray(weights[full_name], np.float32))
            output = EMITTERS[kind_of(block)](graph, block, *inputs, **own)
            return Value(output, channels_first(block.output_shape(*(channels_last(value.shape) for value in inputs))))

        return emit

    height, width, channels = shape
    graph.block = "inputs"
    inputs = {
        "x": Value(graph.add("Transpose", "x", perm=[0, 3, 1, 2]), (channels, height, width)),
        "c_noise": Value("c_noise", ()),
        "label": Value("label", ()),
        "features": Value("features", (program.features,)),
        "second_time": Value("second_time", ()),
    }
    if program.self_conditioned:
        turned = graph.add("Transpose", "estimate", perm=[0, 3, 1, 2])
        inputs["estimate"] = Value(turned, (channels, height, width))
    output = program.run({node.name: emitter(node.name, node.block) for node in program.nodes}, inputs)
    graph.nodes.append(onnx.helper.make_node("Transpose", [output.name], ["F"], "F", perm=[0, 2, 3, 1]))

    kinds, make = onnx.TensorProto, onnx.helper.make_tensor_value_info
    declared = (
        make("x", kinds.FLOAT, ["batch", *shape]),
        make("c_noise", kinds.DOUBLE, ["batch"]),
        make("label", kinds.INT64, ["batch"]),
        make("features", kinds.FLOAT, ["batch", program.features]),
        make("estimate", kinds.FLOAT, ["batch", *shape]),
        make("second_time", kinds.DOUBLE, ["batch"]),
    )
    read = {name for node in program.nodes for name in node.inputs} | {"x"}
    result = make("F", kinds.FLOAT, ["batch", *output.shape[1:], output.shape[0]])
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes, "duet", [info for info in declared if info.name in read], [result], graph.initialisers
        ),
        producer_name="duet",
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    metadata = {
        "program_sha256": program.sha256,
        "image_shape": ",".join(map(str, shape)),
        "classes": str(program.classes),
        **({"default_second_time": str(program.default_second_time)} if program.two_times else {}),
        **({} if program.null_label is None else {"null_label": str(program.null_label)}),
        **(notes or {}),
    }
    onnx.helper.set_model_props(model, metadata)
    return model


def save_onnx(model: Any, path: Path, limit: int = LIMIT) -> list[Path]:
    """Write a model, check it with onnx, and return the written files, the model first.

    Args:
        model: the model; its large arrays are removed if they go into a file of their own.
        path: the file.
        limit: weights of more bytes go into a second file, ``<name>.data`` in the same folder; the two files must stay
            together under their names.
    """
    onnx = _package("onnx")
    data = path.with_name(f"{path.name}.data")
    split = sum(len(array.raw_data) for array in model.graph.initializer) > limit
    options = {"save_as_external_data": True, "location": data.name, "size_threshold": 1024} if split else {}
    onnx.save_model(model, str(path), **options)
    if split:
        data.chmod(path.stat().st_mode)  # onnx makes it readable for its owner alone
    onnx.checker.check_model(str(path), full_check=True)
    return [path, data] if split else [path]


def open_session(source: Path | bytes, threads: int = 0) -> Any:
    """Return an `onnxruntime.InferenceSession` of a file, or of its content, on the CPU.

    Args:
        source: a file, or its content.
        threads: CPU threads; 0 means onnxruntime's default.

    Raises:
        DuetError: if the package onnxruntime is missing.
    """
    runtime = _package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    model = source if isinstance(source, bytes) else str(source)
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def open_onnx(source: Path | bytes, threads: int = 0) -> Callable[..., NDArray[np.float32]]:
    """Load an exported file as a function with the signature of `Network.forward`; arguments as in `open_session`."""
    session = open_session(source, threads)
    declared = {info.name: info.shape for info in session.get_inputs()}
    properties = session.get_modelmeta().custom_metadata_map
    default_second_time = float(properties.get("default_second_time", 0.0))

    def forward(
        x: ArrayLike,
        c_noise: ArrayLike,
        label: ArrayLike,
        features: ArrayLike | None = None,
        estimate: ArrayLike | None = None,
        second_time: ArrayLike | None = None,
    ) -> NDArray[np.float32]:
        x = np.asarray(x, np.float32)
        if features is None and "features" in declared:
            features = np.zeros((len(x), declared["features"][1]))
        feeds = {
            "x": x,
            "c_noise": np.asarray(c_noise, np.float64),
            "label": np.asarray(label, np.int64),
            "features": np.asarray(features, np.float32),
            "estimate": np.zeros(x.shape, np.float32) if estimate is None else np.asarray(estimate, np.float32),
            "second_time": np.full(len(x), default_second_time if second_time is None else second_time, np.float64),
        }
        return session.run(["F"], {name: value for name, value in feeds.items() if name in declared})[0]

    return forward


def _package(name: str) -> ModuleType:
    try:
        return __import__(name)
    except ImportError as error:
        raise DuetError(
            f"onnx: the package {name} is not installed in this Python ({error}); run: pip install {name}"
        ) from error
