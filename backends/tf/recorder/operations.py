"""TensorFlow's operations in the vocabulary of `duet diff`.

`TRANSLATIONS` has a function for each native name. It gets a `Native`, reads attributes from tensors that do not depend
on the model's inputs or weights, and writes one operation or several. Here are elementwise functions and reductions;
`layouts` and `windows` add the others.
"""

from __future__ import annotations

from typing import Any

from backends.tf.recorder import windows as _windows  # noqa: F401 - it adds its translations
from backends.tf.recorder.layouts import space_to_batch_steps
from backends.tf.recorder.native import TRANSLATIONS, Native, Translation, Value, translates

__all__ = ["ALIASES", "MAKERS", "RANDOM", "SHAPES", "TRANSLATIONS", "Native", "Value", "space_to_batch_steps"]

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
