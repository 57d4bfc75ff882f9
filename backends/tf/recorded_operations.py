"""TensorFlow's operations in the vocabulary of `duet diff`.

`TRANSLATIONS` has a function for each native name. It gets a `Native`, reads attributes from tensors that do not depend
on the model's inputs or weights, and writes one operation or several. "SAME" and "VALID" become numbers:

    total = max((ceil(n / stride) - 1) stride + (window - 1) dilation + 1 - n, 0),  before = total // 2
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

__all__ = ["ALIASES", "MAKERS", "RANDOM", "SHAPES", "TRANSLATIONS", "Native", "space_to_batch_steps"]

Value = Any
"""A tensor, or the number of a value that has no tensor."""

# Operations whose results do not depend on numbers, only on shapes.
SHAPES = frozenset({"Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike", "BroadcastGradientArgs"})
# Operations that make a new array of numbers in the code.
MAKERS = frozenset({"Fill", "Range", "LinSpace", "Const", "Eye", "MatrixDiag", "BroadcastTo", "Empty", "Pack"})
# Operations that hand on the value that they read.
ALIASES = frozenset(
    {"Identity", "IdentityN", "Snapshot", "EnsureShape", "CheckNumerics", "PlaceholderWithDefault", "PreventGradient"}
)
RANDOM = (
    "Random",
    "TruncatedNormal",
    "StatelessRandom",
    "StatelessTruncated",
    "StatelessMultinomial",
    "Multinomial",
    "StatefulUniform",
    "StatefulStandardNormal",
)


class Sink(Protocol):
    """What a translation writes to; see `recorder`."""

    def read(self, tensor: tf.Tensor) -> int:
        """Return the number of the value of a tensor."""

    def is_fixed(self, tensor: Value) -> bool:
        """Return whether a tensor does not depend on the model's inputs or weights."""

    def write(self, native: Native, kind: str, inputs: list[int], outputs: list[Value], attributes: dict) -> list[int]:
        """Write an operation; None among the outputs is a new value without an array."""

    def alias(self, tensor: tf.Tensor, number: int) -> None:
        """Let a tensor be a value that exists."""


class Native:
    """One operation of TensorFlow as it ran."""

    def __init__(
        self, sink: Sink, name: str, inputs: Sequence[tf.Tensor], attributes: dict, outputs: Sequence[tf.Tensor]
    ) -> None:
        self.sink, self.name, self.inputs, self.outputs = sink, name, list(inputs), list(outputs)
        self.attributes = {key: v.decode() if isinstance(v, bytes) else v for key, v in attributes.items()}

    def __getitem__(self, name: str) -> Any:
        return self.attributes[name]

    def numbers(self, index: int) -> list[int]:
        """Return an input of integers as a list."""
        return [int(n) for n in np.atleast_1d(self.inputs[index].numpy())]

    def axes(self, index: int, rank: int) -> list[int]:
        """Return an input of axes, counted from 0."""
        return [n % rank for n in self.numbers(index)] if rank else []

    def scalar(self, value: Value) -> Any:
        """Return the number in the code that an input is; None if it is an array or depends on the model."""
        if isinstance(value, int) or value.shape.rank != 0 or not self.sink.is_fixed(value):
            return None
        number = value.numpy()
        return number.item() if hasattr(number, "item") else None

    def number(self, value: Value) -> int:
        """Return the number of a value."""
        return value if isinstance(value, int) else self.sink.read(value)

    def emit(
        self, kind: str, inputs: Sequence[Value], outputs: Sequence[Value] | None = None, **attributes: Any
    ) -> int:
        """Write an operation and return the number of its first output; without outputs it has a value of its own."""
        numbers = [self.number(value) for value in inputs]
        return self.sink.write(self, kind, numbers, [None] if outputs is None else list(outputs), attributes)[0]

    def binary(self, kind: str, x: Value, y: Value, outputs: Sequence[Value] | None = None) -> int:
        """Write an operation of two inputs, of which one may be a number in the code."""
        if (number := self.scalar(y)) is not None:
            return self.emit(kind, [x], outputs, scalar=number, reverse=False)
        if (number := self.scalar(x)) is not None:
            return self.emit(kind, [y], outputs, scalar=number, reverse=True)
        return self.emit(kind, [x, y], outputs, scalar=None, reverse=False)

    def alias(self) -> None:
        """Let the outputs be the inputs."""
        for tensor, result in zip(self.inputs, self.outputs, strict=False):
            self.sink.alias(result, self.number(tensor))

    def opaque(self) -> None:
        """Write what the vocabulary does not know."""
        kinds = (tf.resource, tf.variant, tf.string)
        inputs = [each for each in self.inputs if each.dtype not in kinds and not self.sink.is_fixed(each)]
        outputs = [each for each in self.outputs if each.dtype not in kinds]
        if outputs:
            self.emit("opaque", inputs, outputs)


Translation = Callable[[Native], None]
TRANSLATIONS: dict[str, Translation] = {}


def translates(*names: str) -> Callable[[Translation], Translation]:
    """Register the translation of native operations."""

    def register(function: Translation) -> Translation:
        TRANSLATIONS.update(dict.fromkeys(names, function))
        return function

    return register


def _unary(kind: str, **attributes: Any) -> Translation:
    return lambda native: native.emit(kind, native.inputs[:1], native.outputs, **attributes) and None


def _binary(kind: str) -> Translation:
    return lambda native: native.binary(kind, *native.inputs, native.outputs) and None


TRANSLATIONS |= {
    name: _unary(kind)
    for name, kind in {
        "Neg": "negative", "Exp": "exp", "Expm1": "expm1", "Log": "log", "Log1p": "log1p", "Sqrt": "sqrt",
        "Rsqrt": "rsqrt", "Square": "square", "Reciprocal": "reciprocal", "Inv": "reciprocal", "Abs": "abs",
        "Sign": "sign", "Sin": "sin", "Cos": "cos", "Tan": "tan", "Tanh": "tanh", "Sinh": "sinh", "Cosh": "cosh",
        "Asin": "arcsin", "Acos": "arccos", "Atan": "arctan", "Asinh": "arcsinh", "Acosh": "arccosh",
        "Atanh": "arctanh", "Erf": "erf", "Erfc": "erfc", "Erfinv": "erfinv", "Lgamma": "lgamma",
        "Sigmoid": "sigmoid", "Relu": "relu", "Relu6": "relu6", "Selu": "selu", "Softsign": "softsign",
        "Floor": "floor", "Ceil": "ceil", "Rint": "round", "Round": "round", "LogicalNot": "logical_not",
        "IsNan": "isnan", "IsInf": "isinf", "IsFinite": "isfinite", "StopGradient": "stop_gradient",
    }.items()
}  # fmt: skip
TRANSLATIONS |= {
    "Elu": _unary("elu", alpha=1.0),
    "Softplus": _unary("softplus", beta=1.0, threshold=float("inf")),
}
TRANSLATIONS |= {
    name: _binary(kind)
    for name, kind in {
        "Add": "add", "AddV2": "add", "Sub": "subtract", "Mul": "multiply", "RealDiv": "divide", "Div": "divide",
        "Pow": "power", "Maximum": "maximum", "Minimum": "minimum", "FloorDiv": "floor_divide",
        "FloorMod": "modulo", "Atan2": "arctan2", "Equal": "equal", "NotEqual": "not_equal", "Less": "less",
        "LessEqual": "less_equal", "Greater": "greater", "GreaterEqual": "greater_equal",
        "LogicalAnd": "logical_and", "LogicalOr": "logical_or",
    }.items()
}  # fmt: skip


@translates("LeakyRelu")
def _leaky_relu(native: Native) -> None:
    native.emit("leaky_relu", native.inputs, native.outputs, slope=float(native["alpha"]))


@translates("Cast")
def _cast(native: Native) -> None:
    (x,), (y,) = native.inputs, native.outputs
    if x.dtype == y.dtype:
        native.alias()
    else:
        native.emit("cast", [x], [y], dtype=y.dtype.name)


@translates("SquaredDifference")
def _squared_difference(native: Native) -> None:
    native.emit("square", [native.binary("subtract", *native.inputs)], native.outputs)


@translates("DivNoNan")
def _divide_or_zero(native: Native) -> None:
    x, y = native.inputs
    zero = native.emit("equal", [y], scalar=0.0, reverse=False)
    native.emit("where", [zero, native.binary("divide", x, y)], native.outputs, scalars=[0.0, None])


@translates("MulNoNan")
def _multiply_or_zero(native: Native) -> None:
    x, y = native.inputs
    zero = native.emit("equal", [y], scalar=0.0, reverse=False)
    native.emit("where", [zero, native.binary("multiply", x, y)], native.outputs, scalars=[0.0, None])


@translates("AddN")
def _add_all(native: Native) -> None:
    total: Value = native.inputs[0]
    if len(native.inputs) == 1:
        return native.alias()
    for each in native.inputs[1:-1]:
        total = native.binary("add", total, each)
    native.binary("add", total, native.inputs[-1], native.outputs)


@translates("ClipByValue")
def _clip(native: Native) -> None:
    low, high = (native.scalar(each) for each in native.inputs[1:])
    if low is None or high is None:
        most = native.binary("minimum", native.inputs[0], native.inputs[2])
        native.binary("maximum", most, native.inputs[1], native.outputs)
    else:
        native.emit("clip", native.inputs[:1], native.outputs, low=low, high=high)


@translates("SelectV2", "Select")
def _select(native: Native) -> None:
    condition, *branches = native.inputs
    scalars = [native.scalar(each) for each in branches]
    inputs = [each for each, scalar in zip(branches, scalars, strict=True) if scalar is None]
    native.emit("where", [condition, *inputs], native.outputs, scalars=scalars)


def _reduction(kind: str, **attributes: Any) -> Translation:
    def translated(native: Native) -> None:
        axes = native.axes(1, native.inputs[0].shape.rank)
        keep = bool(native.attributes.get("keep_dims", False))
        native.emit(kind, native.inputs[:1], native.outputs, axes=axes, keepdims=keep, **attributes)

    return translated


TRANSLATIONS |= {name: _reduction(name.lower()) for name in ("Mean", "Sum", "Max", "Min", "Prod", "Any", "All")} | {
    "ArgMax": _reduction("argmax"),
    "ArgMin": _reduction("argmin"),
    "EuclideanNorm": _reduction("norm", order=2),
}


@translates("L2Loss")
def _half_square_sum(native: Native) -> None:
    x = native.inputs[0]
    total = native.emit("sum", [native.emit("square", [x])], axes=list(range(x.shape.rank)), keepdims=False)
    native.emit("multiply", [total], native.outputs, scalar=0.5, reverse=False)


@translates("Softmax", "LogSoftmax")
def _softmax(native: Native) -> None:
    kind = "softmax" if native.name == "Softmax" else "log_softmax"
    native.emit(kind, native.inputs, native.outputs, axis=native.inputs[0].shape.rank - 1)


@translates("Cumsum", "Cumprod")
def _running(native: Native) -> None:
    (axis,) = native.axes(1, native.inputs[0].shape.rank)
    exclusive, reverse = bool(native["exclusive"]), bool(native["reverse"])
    kind = native.name.lower()
    native.emit(kind, native.inputs[:1], native.outputs, axis=axis, exclusive=exclusive, reverse=reverse)


@translates("TopKV2")
def _top(native: Native) -> None:
    x, rank = native.inputs[0], native.inputs[0].shape.rank
    size, count = x.shape[-1], native.outputs[0].shape[-1]
    if count == size:
        native.emit("sort", [x], native.outputs, axis=rank - 1, descending=True)
        return
    both = native.sink.write(native, "sort", [native.number(x)], [None, None], {"axis": rank - 1, "descending": True})
    for number, result in zip(both, native.outputs, strict=True):
        stop = [*x.shape[:-1], count]
        native.emit("slice", [number], [result], start=[0] * rank, stop=stop, step=[1] * rank)


# Operations that only move numbers.


@translates("Reshape", "ExpandDims", "Squeeze")
def _reshape(native: Native) -> None:
    (result,) = native.outputs
    if result.shape == native.inputs[0].shape:
        native.inputs = native.inputs[:1]
        native.alias()
    else:
        native.emit("reshape", native.inputs[:1], [result], shape=list(result.shape))


@translates("Transpose")
def _transpose(native: Native) -> None:
    axes = native.numbers(1)
    if axes == sorted(axes):
        native.inputs = native.inputs[:1]
        native.alias()
    else:
        native.emit("transpose", native.inputs[:1], native.outputs, axes=axes)


@translates("BroadcastTo")
def _expand(native: Native) -> None:
    native.emit("expand", native.inputs[:1], native.outputs, shape=list(native.outputs[0].shape))


@translates("ConcatV2")
def _concat(native: Native) -> None:
    (axis,) = native.axes(-1, native.outputs[0].shape.rank)
    parts = [each for each in native.inputs[:-1] if each.shape.num_elements() or each.shape.rank > 1]
    native.emit("concat", parts, native.outputs, axis=axis)


@translates("Pack")
def _stack(native: Native) -> None:
    native.emit("stack", native.inputs, native.outputs, axis=native["axis"] % native.outputs[0].shape.rank)


@translates("Unpack")
def _unstack(native: Native) -> None:
    native.emit("unstack", native.inputs, native.outputs, axis=native["axis"] % native.inputs[0].shape.rank)


@translates("Split", "SplitV")
def _split(native: Native) -> None:
    x, place = (native.inputs[1], 0) if native.name == "Split" else (native.inputs[0], 2)
    (axis,) = native.axes(place, x.shape.rank)
    native.emit("split", [x], native.outputs, axis=axis, sizes=[each.shape[axis] for each in native.outputs])


def _emit_slice(native: Native, x: Value, shape: Sequence[int], slices: Sequence[slice], result: tf.Tensor) -> None:
    """Write a slice of an array of this shape, and a change of shape where axes come or go."""
    bounds = [each.indices(n) for each, n in zip(slices, shape, strict=True)]
    lengths = [len(range(*each)) for each in bounds]
    whole = lengths == list(shape) and all(step > 0 for _, _, step in bounds)
    final = lengths == list(result.shape)
    if not whole:
        x = native.emit(
            "slice",
            [x],
            [result] if final else None,
            start=[start for start, _, _ in bounds],
            stop=[None if step < 0 and stop < 0 else stop for _, stop, step in bounds],
            step=[step for _, _, step in bounds],
        )
    if not final:
        native.emit("reshape", [x], [result], shape=list(result.shape))
    elif whole:
        native.sink.alias(result, native.number(x))


@translates("Slice")
def _slice(native: Native) -> None:
    x, (result,) = native.inputs[0], native.outputs
    start = native.numbers(1)
    slices = [slice(i, i + n) for i, n in zip(start, result.shape, strict=True)]
    _emit_slice(native, x, list(x.shape), slices, result)


@translates("StridedSlice")
def _strided_slice(native: Native) -> None:
    x, (result,) = native.inputs[0], native.outputs
    begin, end, step = (native.numbers(i) for i in (1, 2, 3))
    masks = {key: native[f"{key}_mask"] for key in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")}
    has = lambda key, i: bool(masks[key] >> i & 1)  # noqa: E731
    real = [i for i in range(len(begin)) if not has("ellipsis", i) and not has("new_axis", i)]
    slices: list[slice] = []
    for i in range(len(begin)):
        if has("ellipsis", i):
            slices += [slice(None)] * (x.shape.rank - len(real))
        elif has("new_axis", i):
            continue
        elif has("shrink_axis", i):
            place = begin[i] % x.shape[len(slices)]
            slices.append(slice(place, place + 1))
        else:
            first = None if has("begin", i) else begin[i]
            slices.append(slice(first, None if has("end", i) else end[i], step[i]))
    slices += [slice(None)] * (x.shape.rank - len(slices))
    _emit_slice(native, x, list(x.shape), slices, result)


@translates("Pad", "PadV2", "MirrorPad")
def _pad(native: Native) -> None:
    padding = np.asarray(native.inputs[1].numpy()).tolist()
    mode = {"REFLECT": "reflect", "SYMMETRIC": "symmetric"}.get(native.attributes.get("mode", ""), "constant")
    value = native.scalar(native.inputs[2]) if native.name == "PadV2" else 0.0
    if mode == "symmetric":
        if any(max(pair) > 1 for pair in padding):
            return native.opaque()
        mode = "replicate"  # one row of the edge
    native.emit("pad", native.inputs[:1], native.outputs, padding=padding, mode=mode, value=value)


@translates("ReverseV2")
def _flip(native: Native) -> None:
    native.emit("flip", native.inputs[:1], native.outputs, axes=native.axes(1, native.inputs[0].shape.rank))


@translates("Roll")
def _roll(native: Native) -> None:
    axes = native.axes(2, native.inputs[0].shape.rank)
    native.emit("roll", native.inputs[:1], native.outputs, shifts=native.numbers(1), axes=axes)


@translates("Tile")
def _tile(native: Native) -> None:
    native.emit("tile", native.inputs[:1], native.outputs, repeats=native.numbers(1))


@translates("GatherV2")
def _gather(native: Native) -> None:
    x, indices = native.inputs[:2]
    (axis,) = native.axes(2, x.shape.rank)
    batch = native.attributes.get("batch_dims", 0) % max(indices.shape.rank, 1)
    if not batch:
        native.emit("gather", [x, indices], native.outputs, axis=axis)
    elif batch == axis == x.shape.rank - 1 == indices.shape.rank - 1:
        native.emit("take_along", [x, indices], native.outputs, axis=axis)
    else:
        native.opaque()


@translates("GatherNd")
def _gather_points(native: Native) -> None:
    x, indices = native.inputs
    if indices.shape[-1] != 1:
        return native.opaque()
    flat = native.emit("reshape", [indices], shape=list(indices.shape[:-1]))
    native.emit("gather", [x, flat], native.outputs, axis=0)


@translates("OneHot")
def _one_hot(native: Native) -> None:
    (result,) = native.outputs
    axis = native["axis"] % result.shape.rank
    on, off = (native.scalar(each) for each in native.inputs[2:])
    if on is None or off is None:
        return native.opaque()
    x = native.emit("one_hot", native.inputs[:1], size=result.shape[axis], axis=axis)
    if (on, off) != (1, 0):
        places = native.emit("not_equal", [x], scalar=0, reverse=False)
        x = native.emit("where", [places], scalars=[on, off])
    native.emit("cast", [x], [result], dtype=result.dtype.name)


@translates("DepthToSpace", "SpaceToDepth")
def _blocks(native: Native) -> None:
    kind = "depth_to_space" if native.name == "DepthToSpace" else "space_to_depth"
    layout = "channels_first" if native["data_format"] == "NCHW" else "channels_last"
    native.emit(kind, native.inputs, native.outputs, block=native["block_size"], order="DCR", layout=layout)


@translates("ExtractImagePatches")
def _patches(native: Native) -> None:
    window, strides, dilation = (list(native[key])[1:3] for key in ("ksizes", "strides", "rates"))
    padding = _padding(native["padding"], list(native.inputs[0].shape)[1:3], window, strides, dilation)
    native.emit(
        "extract_patches",
        native.inputs,
        native.outputs,
        window=window,
        strides=strides,
        padding=padding,
        dilation=dilation,
    )


@translates("SpaceToBatchND")
def _space_to_batch(native: Native) -> None:
    # Until `BatchToSpaceND` comes: then the recorder writes a dilated convolution as one operation, if it is one.
    padding = np.asarray(native.inputs[2].numpy()).tolist()
    native.emit("opaque", native.inputs[:1], native.outputs, block=native.numbers(1), padding=padding)


def space_to_batch_steps(shape: Sequence[int], block: Sequence[int], padding: Sequence) -> list[tuple[str, dict]]:
    """Return `SpaceToBatchND` of an array of this shape as (kind, attributes) of simple operations in a row."""
    rank, space = len(shape), len(block)
    pads = [[0, 0], *(list(pair) for pair in padding), *([0, 0] for _ in range(rank - 1 - space))]
    sizes = [n + before + after for n, (before, after) in zip(shape, pads, strict=True)]
    split = [sizes[0]]
    for n, factor in zip(sizes[1:], block, strict=False):
        split += [n // factor, factor]
    axes = [2 + 2 * i for i in range(space)] + [0] + [1 + 2 * i for i in range(space)]
    rest = list(range(1 + 2 * space, rank + space))
    within = [n // factor for n, factor in zip(sizes[1:], block, strict=False)]
    final = [sizes[0] * int(np.prod(block)), *within, *sizes[1 + space :]]
    return [
        ("pad", {"padding": pads, "mode": "constant", "value": 0.0}),
        ("reshape", {"shape": split + sizes[1 + space :]}),
        ("transpose", {"axes": axes + rest}),
        ("reshape", {"shape": final}),
    ]


@translates("BatchToSpaceND")
def _batch_to_space(native: Native) -> None:
    x, (result,) = native.inputs[0], native.outputs
    block, crops = native.numbers(1), np.asarray(native.inputs[2].numpy()).tolist()
    space, shape = len(block), list(x.shape)
    batch = shape[0] // int(np.prod(block))
    axes = [space]
    for i in range(space):
        axes += [space + 1 + i, i]
    split = native.emit("reshape", [x], shape=[*block, batch, *shape[1:]])
    turned = native.emit("transpose", [split], axes=axes + list(range(1 + 2 * space, len(shape) + space)))
    sizes = [batch, *(n * factor for n, factor in zip(shape[1:], block, strict=False)), *shape[1 + space :]]
    if sizes == list(result.shape):
        native.emit("reshape", [turned], [result], shape=sizes)
        return
    whole = native.emit("reshape", [turned], shape=sizes)
    pads = [[0, 0], *crops, *([0, 0] for _ in range(len(shape) - 1 - space))]
    start, stop = [before for before, _ in pads], [n - after for n, (_, after) in zip(sizes, pads, strict=True)]
    native.emit("slice", [whole], [result], start=start, stop=stop, step=[1] * len(sizes))


# Products.


@translates("MatMul")
def _matmul(native: Native) -> None:
    a, b = bool(native["transpose_a"]), bool(native["transpose_b"])
    native.emit("matmul", native.inputs, native.outputs, transpose_a=a, transpose_b=b)


@translates("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3")
def _batch_matmul(native: Native) -> None:
    a, b = bool(native["adj_x"]), bool(native["adj_y"])
    native.emit("matmul", native.inputs, native.outputs, transpose_a=a, transpose_b=b)


@translates("Einsum")
def _einsum(native: Native) -> None:
    native.emit("einsum", native.inputs, native.outputs, equation=native["equation"].replace(" ", ""))


@translates("BiasAdd")
def _bias_add(native: Native) -> None:
    rank = native.inputs[0].shape.rank
    axis = 1 if native["data_format"].startswith("NC") else rank - 1
    native.emit("bias_add", native.inputs, native.outputs, axis=axis)


def _space(native: Native, name: str = "data_format") -> tuple[str, list[int]]:
    """Return the layout of an operation, and its axes of space."""
    code = native[name]
    rank = len(code)
    if code.startswith("NC"):
        return "channels_first", list(range(2, rank))
    return "channels_last", list(range(1, rank - 1))


def _padding(
    name: str, sizes: Sequence[int], window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> list[list[int]]:
    """Return what VALID or SAME pads before and after, per axis of space; see the module."""
    if name == "VALID":
        return [[0, 0] for _ in sizes]
    result = []
    for n, k, s, d in zip(sizes, window, strides, dilation, strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        result.append([total // 2, total - total // 2])
    return result


def _conv_padding(
    native: Native,
    axes: list[int],
    sizes: Sequence[int],
    window: Sequence[int],
    strides: list[int],
    dilation: list[int],
) -> list[list[int]]:
    if native["padding"] == "EXPLICIT":
        pairs = native["explicit_paddings"]
        return [[int(pairs[2 * axis]), int(pairs[2 * axis + 1])] for axis in axes]
    return _padding(native["padding"], sizes, window, strides, dilation)


@translates("Conv2D", "Conv3D", "DepthwiseConv2dNative")
def _conv(native: Native) -> None:
    x, kernel = native.inputs
    layout, axes = _space(native)
    window = list(kernel.shape)[:-2]
    strides, dilation = ([int(native[key][axis]) for axis in axes] for key in ("strides", "dilations"))
    padding = _conv_padding(native, axes, [x.shape[axis] for axis in axes], window, strides, dilation)
    channels = x.shape[1 if layout == "channels_first" else x.shape.rank - 1]
    depthwise = native.name == "DepthwiseConv2dNative"
    native.emit(
        "conv",
        [x, kernel],
        native.outputs,
        strides=strides,
        padding=padding,
        dilation=dilation,
        groups=channels if depthwise else channels // kernel.shape[-2],
        layout=layout,
        kernel="HWIM" if depthwise else "HWIO",
    )


@translates("Conv2DBackpropInput", "Conv3DBackpropInputV2")
def _conv_transpose(native: Native) -> None:
    _, kernel, x = native.inputs
    (result,) = native.outputs
    layout, axes = _space(native)
    window = list(kernel.shape)[:-2]
    strides, dilation = ([int(native[key][axis]) for axis in axes] for key in ("strides", "dilations"))
    sizes = [result.shape[axis] for axis in axes]
    padding = _conv_padding(native, axes, sizes, window, strides, dilation)
    full = [
        (x.shape[axis] - 1) * s + (k - 1) * d + 1 for axis, k, s, d in zip(axes, window, strides, dilation, strict=True)
    ]
    native.emit(
        "conv_transpose",
        [x, kernel],
        native.outputs,
        strides=strides,
        padding=[[p[0], whole - p[0] - n] for p, whole, n in zip(padding, full, sizes, strict=True)],
        dilation=dilation,
        groups=1,
        layout=layout,
        kernel="HWOI",
        output_size=sizes,
    )


@translates("MaxPool", "MaxPool3D", "AvgPool", "AvgPool3D")
def _pool(native: Native) -> None:
    x = native.inputs[0]
    layout, axes = _space(native)
    window, strides = ([int(native[key][axis]) for axis in axes] for key in ("ksize", "strides"))
    ones = [1] * len(axes)
    sizes = [x.shape[axis] for axis in axes]
    padding = _conv_padding(native, axes, sizes, window, strides, ones)
    kind = "max_pool" if native.name.startswith("Max") else "avg_pool"
    extra = {} if kind == "max_pool" else {"count_include_pad": False}
    native.emit(
        kind,
        [x],
        native.outputs,
        window=window,
        strides=strides,
        padding=padding,
        dilation=ones,
        layout=layout,
        ceil_mode=False,
        **extra,
    )


@translates("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
def _fused_batch_norm(native: Native) -> None:
    x, gamma, beta, mean, variance = native.inputs
    result = native.outputs[:1]
    axis = 1 if native["data_format"].startswith("NC") else x.shape.rank - 1
    epsilon = float(np.float64(native["epsilon"]))
    has = ["x", "gamma", "beta"]
    if not native["is_training"]:
        inputs, has = [x, gamma, beta, mean, variance], [*has, "mean", "var"]
        native.emit("batch_norm", inputs, result, epsilon=epsilon, axis=axis, training=False, momentum=None, has=has)
        return
    native.emit(
        "batch_norm", [x, gamma, beta], result, epsilon=epsilon, axis=axis, training=True, momentum=None, has=has
    )
    others = [i for i in range(x.shape.rank) if i != axis]
    native.emit("mean", [x], native.outputs[1:2], axes=others, keepdims=False)
    native.emit("variance", [x], native.outputs[2:3], axes=others, keepdims=False, ddof=1)


@translates("ResizeBilinear", "ResizeNearestNeighbor", "ResizeBicubic")
def _resize(native: Native) -> None:
    (result,) = native.outputs
    mode = {"ResizeBilinear": "bilinear", "ResizeBicubic": "bicubic"}.get(native.name, "nearest")
    native.emit(
        "resize",
        native.inputs[:1],
        [result],
        size=list(result.shape)[1:3],
        mode=mode,
        align_corners=bool(native["align_corners"]),
        half_pixel=bool(native["half_pixel_centers"]),
        antialias=False,
        scale=None,
        layout="channels_last",
    )
