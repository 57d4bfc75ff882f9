"""PyTorch's operations in the vocabulary of `duet diff`.

`TRANSLATIONS` has a function for each native name. It gets a `Native` and writes one operation or several. Here are
elementwise functions and reductions; `layouts` has what moves numbers, `windows` what looks through
a window, and `fused` norms, attention and losses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from backends.torch.recorder import fused as _fused  # noqa: F401 - it adds translations, as do the next two
from backends.torch.recorder import layouts as _layouts  # noqa: F401
from backends.torch.recorder import windows as _windows  # noqa: F401
from backends.torch.recorder.native import TRANSLATIONS, Native, Translation, Unknown, translates

__all__ = ["EMPTY", "MAKERS", "RANDOM", "TRANSLATIONS", "Native", "Unknown"]

# Operations that make memory without numbers in it; the recorder fills it with zeros.
EMPTY = frozenset({"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted"})
# Operations that make a new array of numbers in the code.
MAKERS = EMPTY | {
    "arange", "zeros", "ones", "full", "linspace", "logspace", "eye", "scalar_tensor", "tril_indices", "triu_indices",
    "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "lift_fresh", "lift", "fill", "zero",
    "hann_window", "randperm", "range",
}  # fmt: skip
RANDOM = {
    "bernoulli": "bernoulli", "uniform": "uniform", "rand": "uniform", "rand_like": "uniform", "normal": "normal",
    "randn": "normal", "randn_like": "normal", "randint": "integers", "randint_like": "integers", "random": "integers",
    "exponential": "exponential", "cauchy": "cauchy", "geometric": "geometric", "log_normal": "log_normal",
}  # fmt: skip

_UNARY = {
    "neg": "negative", "exp": "exp", "expm1": "expm1", "log": "log", "log1p": "log1p", "sqrt": "sqrt",
    "rsqrt": "rsqrt", "square": "square", "reciprocal": "reciprocal", "abs": "abs", "sign": "sign", "sgn": "sign",
    "sin": "sin", "cos": "cos", "tan": "tan", "tanh": "tanh", "sinh": "sinh", "cosh": "cosh", "asin": "arcsin",
    "acos": "arccos", "atan": "arctan", "asinh": "arcsinh", "acosh": "arccosh", "atanh": "arctanh", "erf": "erf",
    "erfc": "erfc", "erfinv": "erfinv", "lgamma": "lgamma", "sigmoid": "sigmoid", "silu": "silu", "relu": "relu",
    "mish": "mish", "hardsigmoid": "hardsigmoid", "hardswish": "hardswish", "floor": "floor", "ceil": "ceil",
    "logical_not": "logical_not", "isnan": "isnan", "isinf": "isinf", "isfinite": "isfinite",
    "log_sigmoid_forward": "log_sigmoid", "special_expm1": "expm1", "special_erf": "erf", "special_log1p": "log1p",
    "clone": "identity", "alias": "identity", "contiguous": "identity", "detach": "stop_gradient",
    "view_as_real_copy": "identity", "lift_fresh_copy": "identity", "relu6": "relu6",
}  # fmt: skip
_NO_FLOATS = ("abs", "negative", "sign", "floor", "ceil", "square", "relu", "relu6", "identity", "stop_gradient")


def _unary(kind: str, **attributes: Any) -> Translation:
    def translation(native: Native) -> None:
        if native.dtype.is_complex:
            raise Unknown
        keeps = kind in _NO_FLOATS or native.dtype == torch.bool
        native.give(kind, [native.read(native.x) if keeps else native.floats(native.x)], **attributes)

    return translation


TRANSLATIONS |= {name: _unary(kind) for name, kind in _UNARY.items()}

_BINARY = {
    "add": "add", "sub": "subtract", "subtract": "subtract", "mul": "multiply", "multiply": "multiply",
    "div": "divide", "divide": "divide", "true_divide": "divide", "pow": "power", "maximum": "maximum",
    "minimum": "minimum", "fmax": "maximum", "fmin": "minimum", "floor_divide": "floor_divide",
    "remainder": "modulo", "atan2": "arctan2", "eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal",
    "gt": "greater", "ge": "greater_equal", "logical_and": "logical_and", "logical_or": "logical_or",
    "logical_xor": "not_equal", "bitwise_and": "logical_and", "bitwise_or": "logical_or",
    "bitwise_xor": "not_equal", "__and__": "logical_and", "__or__": "logical_or", "float_power": "power",
}  # fmt: skip
_COMPARISONS = (
    "equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "logical_and", "logical_or",
)  # fmt: skip


def _binary(kind: str) -> Translation:
    def translation(native: Native) -> None:
        a, b = list(native.arguments.values())[:2]
        if mode := native.get("rounding_mode"):
            if mode != "floor":
                raise Unknown
            _two(native, "floor_divide", a, b)
            return
        if native.name.startswith(("bitwise_", "__")) and native.dtype != torch.bool:
            raise Unknown
        alpha = native.get("alpha", 1)
        if alpha != 1:
            b = (
                alpha * b
                if not isinstance(b, Tensor)
                else native.emit("multiply", [native.read(b, native.dtype)], scalar=alpha, reverse=False)
            )
        _two(native, kind, a, b)

    return translation


def _two(native: Native, kind: str, a: Any, b: Any) -> None:
    """Write a function of two arguments, tensors or numbers, computed in the type that PyTorch promotes to."""
    if any(isinstance(each, complex) for each in (a, b)) or native.dtype.is_complex:
        raise Unknown
    common = native.dtype
    if kind in _COMPARISONS:
        tensors = [each for each in (a, b) if isinstance(each, Tensor)]
        values = [each for each in (a, b) if isinstance(each, (Tensor, int, float))]
        common = torch.result_type(*values) if len(tensors) and len(values) == 2 else native.x.dtype
        if kind in ("logical_and", "logical_or"):
            common = torch.bool
    if isinstance(b, Tensor | int) and not isinstance(a, Tensor) and not isinstance(b, Tensor):
        raise Unknown
    if not isinstance(a, Tensor):
        native.give(kind, [native.read(b, common)], scalar=a, reverse=True)
    elif isinstance(b, Tensor):
        native.give(kind, [native.read(a, common), native.read(b, common)])
    elif kind == "power" and b == 2:
        native.give("square", [native.read(a, common)])
    else:
        native.give(kind, [native.read(a, common)], scalar=b, reverse=False)


TRANSLATIONS |= {name: _binary(kind) for name, kind in _BINARY.items()}


@translates("add", "sub")
def _sum(native: Native) -> None:
    a, b, alpha = native["self"], native["other"], native.get("alpha", 1)
    kind = "add" if native.name == "add" else "subtract"
    if alpha == 1 or not isinstance(b, Tensor):
        _two(native, kind, a, b if alpha == 1 else alpha * b)
        return
    scaled = native.emit("multiply", [native.floats(b)], scalar=alpha, reverse=False)
    native.give(kind, [native.floats(a), scaled])


@translates("rsub")
def _rsub(native: Native) -> None:
    if native.get("alpha", 1) != 1:
        raise Unknown
    _two(native, "subtract", native["other"], native["self"])


@translates("leaky_relu")
def _leaky_relu(native: Native) -> None:
    native.give("leaky_relu", [native.x], slope=float(native["negative_slope"]))


@translates("rrelu_with_noise")
def _rrelu(native: Native) -> None:
    if native["training"]:
        raise Unknown
    native.give("leaky_relu", [native.x], slope=(float(native["lower"]) + float(native["upper"])) / 2)


@translates("elu")
def _elu(native: Native) -> None:
    alpha, scale, inner = (float(native[name]) for name in ("alpha", "scale", "input_scale"))
    if abs(scale - 1.0507009873554805) < 1e-12 and abs(alpha - 1.6732632423543772) < 1e-12:
        native.give("selu", [native.x])
    elif scale == 1 and inner == 1:
        native.give("elu", [native.x], alpha=alpha)
    elif scale == 1 and abs(inner * alpha - 1) < 1e-12:
        native.give("celu", [native.x], alpha=alpha)
    else:
        raise Unknown


@translates("celu")
def _celu(native: Native) -> None:
    native.give("celu", [native.x], alpha=float(native["alpha"]))


@translates("softplus")
def _softplus(native: Native) -> None:
    native.give("softplus", [native.x], beta=float(native["beta"]), threshold=float(native["threshold"]))


@translates("gelu")
def _gelu(native: Native) -> None:
    native.give("gelu", [native.x], approximate=native["approximate"])


@translates("clamp", "clip", "hardtanh", "clamp_min", "clamp_max")
def _clip(native: Native) -> None:
    low = native.get("min", native.get("min_val"))
    high = native.get("max", native.get("max_val"))
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        x: Any = native.floats(native.x)
        bounds = [("maximum", low), ("minimum", high)]
        given = [(kind, each) for kind, each in bounds if each is not None]
        for kind, each in given[:-1]:
            x = native.emit(kind, [x, native.floats(each)])
        kind, each = given[-1]
        native.give(kind, [x, native.floats(each)])
    elif native.name == "hardtanh" and (low, high) == (0, 6):
        native.give("relu6", [native.x])
    else:
        native.give("clip", [native.floats(native.x)], low=low, high=high)


@translates("_prelu_kernel")
def _prelu(native: Native) -> None:
    positive = native.emit("greater", [native.x], scalar=0, reverse=False)
    native.give("where", [positive, native.x, native.emit("multiply", [native["weight"], native.x])], scalars=None)


@translates("hardshrink")
def _hardshrink(native: Native) -> None:
    large = native.emit("greater", [native.emit("abs", [native.x])], scalar=float(native["lambd"]), reverse=False)
    native.give("where", [large, native.x], scalars=[None, 0.0])


@translates("softshrink")
def _softshrink(native: Native) -> None:
    bound = float(native["lambd"])
    native.give("subtract", [native.x, native.emit("clip", [native.x], low=-bound, high=bound)])


@translates("threshold")
def _threshold(native: Native) -> None:
    above = native.emit("greater", [native.x], scalar=native["threshold"], reverse=False)
    native.give("where", [above, native.x], scalars=[None, native["value"]])


@translates("glu")
def _glu(native: Native) -> None:
    axis = native.axis(native["dim"])
    size = native.x.shape[axis] // 2
    parts = []
    for start in (0, size):
        whole = {"start": [0] * native.x.ndim, "stop": list(native.x.shape), "step": [1] * native.x.ndim}
        whole["start"][axis], whole["stop"][axis] = start, start + size
        parts.append(native.emit("slice", [native.x], **whole))
    native.give("multiply", [parts[0], native.emit("sigmoid", [parts[1]])])


@translates("exp2")
def _exp2(native: Native) -> None:
    native.give("power", [native.floats(native.x)], scalar=2.0, reverse=True)


@translates("log2", "log10")
def _log(native: Native) -> None:
    base = float(torch.tensor(float(native.name[3:]), dtype=torch.float64).log())
    native.give("divide", [native.emit("log", [native.floats(native.x)])], scalar=base, reverse=False)


@translates("round")
def _round(native: Native) -> None:
    if native.get("decimals"):
        raise Unknown
    native.give("round", [native.x])


@translates("trunc", "fix")
def _trunc(native: Native) -> None:
    size = native.emit("floor", [native.emit("abs", [native.x])])
    native.give("multiply", [size, native.emit("sign", [native.x])])


@translates("bitwise_not")
def _bitwise_not(native: Native) -> None:
    if native.dtype != torch.bool:
        raise Unknown
    native.give("logical_not", [native.x])


@translates("lerp")
def _lerp(native: Native) -> None:
    weight, difference = native["weight"], native.emit("subtract", [native["end"], native["self"]])
    if isinstance(weight, Tensor):
        part = native.emit("multiply", [native.floats(weight), difference])
    else:
        part = native.emit("multiply", [difference], scalar=weight, reverse=False)
    native.give("add", [native["self"], part])


@translates("addcmul", "addcdiv")
def _addc(native: Native) -> None:
    kind = "multiply" if native.name == "addcmul" else "divide"
    part = native.emit(kind, [native.floats(native["tensor1"]), native.floats(native["tensor2"])])
    if native["value"] != 1:
        part = native.emit("multiply", [part], scalar=native["value"], reverse=False)
    native.give("add", [native.floats(native["self"]), part])


@translates("_to_copy", "to", "copy", "_autocast_to_reduced_precision", "_autocast_to_full_precision")
def _copy(native: Native) -> None:
    source = native["src"] if native.name == "copy" else native.x
    result = native.results[0]
    x, is_same = native.read(source), source.dtype == result.dtype
    if source.shape != result.shape:
        if is_same:
            native.give("expand", [x], shape=list(result.shape))
            return
        x = native.emit("expand", [x], shape=list(result.shape))
    if is_same:
        native.give("identity", [x])
    elif result.dtype.is_complex or source.dtype.is_complex:
        raise Unknown
    else:
        native.give("cast", [x], dtype=str(result.dtype).removeprefix("torch."))


@translates("fill_diagonal")
def _fill_diagonal(native: Native) -> None:
    place = native.function(torch.zeros_like(native.x, dtype=torch.bool), 1, native["wrap"])
    native.give("where", [native.constant(place.cpu().numpy()), native.x], scalars=[native["fill_value"], None])


@translates("hypot")
def _hypot(native: Native) -> None:
    parts = [native.emit("square", [native.floats(native[name])]) for name in ("self", "other")]
    native.give("sqrt", [native.emit("add", parts)])


@translates("xlogy")
def _xlogy(native: Native) -> None:
    x = native.floats(native["self"])
    product = native.emit("multiply", [x, native.emit("log", [native.floats(native["other"])])])
    native.give("where", [native.emit("equal", [x], scalar=0, reverse=False), product], scalars=[0.0, None])


@translates("fill")
def _fill(native: Native) -> None:
    native.give("expand", [native.floats(native["value"])], shape=list(native.results[0].shape))


@translates("where")
def _where(native: Native) -> None:
    if len(native.arguments) != 3:
        raise Unknown
    a, b = native["self"], native["other"]
    scalars = [None if isinstance(each, Tensor) else each for each in (a, b)]
    inputs = [native.floats(each) for each in (a, b) if isinstance(each, Tensor)]
    native.give("where", [native["condition"], *inputs], scalars=None if scalars == [None, None] else scalars)


@translates("masked_fill")
def _masked_fill(native: Native) -> None:
    value = native["value"]
    if isinstance(value, Tensor):
        native.give("where", [native["mask"], native.floats(value), native["self"]], scalars=None)
    else:
        native.give("where", [native["mask"], native["self"]], scalars=[value, None])


# Reductions.


@translates("sum", "mean", "amax", "amin", "prod", "logsumexp", "any", "all", "nansum")
def _reduction(native: Native) -> None:
    kind = {"amax": "max", "amin": "min"}.get(native.name, native.name)
    if kind == "nansum":
        raise Unknown
    keeps = kind in ("any", "all", "max", "min")
    x = native.read(native.x) if keeps else native.floats(native.x)
    native.give(kind, [x], axes=native.axes(native.get("dim")), keepdims=bool(native.get("keepdim", False)))


@translates("max", "min")
def _extreme(native: Native) -> None:
    if "other" in native.arguments:
        _two(native, "maximum" if native.name == "max" else "minimum", native["self"], native["other"])
        return
    axes, keep = native.axes(native.get("dim")), bool(native.get("keepdim", False))
    native.give(native.name, [native.x], axes=axes, keepdims=keep)
    if len(native.results) > 1:
        arg = f"arg{native.name}"
        native.sink.write(arg, [native.read(native.x)], native.outputs[1:2], {"axes": axes, "keepdims": keep})


@translates("argmax", "argmin")
def _arg(native: Native) -> None:
    axes = native.axes(native.get("dim"))
    native.give(native.name, [native.x], axes=axes, keepdims=bool(native.get("keepdim", False)))


@translates("var", "std", "var_mean", "std_mean")
def _variance(native: Native) -> None:
    kind = "variance" if native.name.startswith("var") else "std"
    correction = native.arguments.get("correction", int(native.get("unbiased", True)))
    rest = {"axes": native.axes(native.get("dim")), "keepdims": bool(native.get("keepdim", False))}
    native.give(kind, [native.x], **rest, ddof=1 if correction is None else correction)
    if len(native.results) > 1:
        native.sink.write("mean", [native.read(native.x)], native.outputs[1:2], rest)


@translates("linalg_vector_norm", "norm")
def _norm(native: Native) -> None:
    order = native.get("ord", native.get("p", 2))
    keep = bool(native.get("keepdim", False))
    axes = native.axes(native.get("dim"))
    native.give("norm", [native.floats(native.x)], axes=axes, keepdims=keep, order=float(order))


@translates("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax")
def _softmax(native: Native) -> None:
    kind = "log_softmax" if "log" in native.name else "softmax"
    extra = {"safe": True} if native.name == "_safe_softmax" else {}
    native.give(kind, [native.floats(native.x)], axis=native.axis(native["dim"]), **extra)


@translates("cumsum", "cumprod")
def _cumulative(native: Native) -> None:
    native.give(native.name, [native.floats(native.x)], axis=native.axis(native["dim"]), exclusive=False, reverse=False)


@translates("sort", "topk")
def _sort(native: Native) -> None:
    axis = native.axis(native.get("dim", -1))
    descending = native["largest"] if native.name == "topk" else native["descending"]
    if native.name == "sort":
        native.give("sort", [native.x], axis=axis, descending=bool(descending))
    else:
        whole = {"start": [0] * native.x.ndim, "stop": list(native.x.shape), "step": [1] * native.x.ndim}
        whole["stop"][axis] = native["k"]
        native.give("slice", [native.emit("sort", [native.x], axis=axis, descending=bool(descending))], **whole)


# Products of matrices.


@translates("mm", "bmm", "mv", "dot", "vdot", "matmul")
def _matmul(native: Native) -> None:
    a, b = list(native.arguments.values())[:2]
    native.give("matmul", [a, b], transpose_a=False, transpose_b=False)


@translates("addmm", "baddbmm", "addmv")
def _add_matmul(native: Native) -> None:
    added, a, b = list(native.arguments.values())[:3]
    beta, alpha = native["beta"], native["alpha"]
    if beta == 0 and alpha == 1:
        native.give("matmul", [a, b], transpose_a=False, transpose_b=False)
        return
    product = native.emit("matmul", [a, b], transpose_a=False, transpose_b=False)
    if alpha != 1:
        if beta == 0:
            native.give("multiply", [product], scalar=alpha, reverse=False)
            return
        product = native.emit("multiply", [product], scalar=alpha, reverse=False)
    if beta == 1 and added.ndim == 1 and native.name == "addmm" and len(added) == native.results[0].shape[1]:
        native.give("bias_add", [product, added], axis=1)
        return
    scaled = native.read(added) if beta == 1 else native.emit("multiply", [added], scalar=beta, reverse=False)
    native.give("add", [scaled, product])


@translates("_trilinear")
def _trilinear(native: Native) -> None:
    parts = []
    for i in (1, 2, 3):
        shape = list(native[f"i{i}"].shape)
        for axis in native[f"expand{i}"]:
            shape.insert(axis, 1)
        parts.append(native.emit("reshape", [native[f"i{i}"]], shape=shape))
    product = native.emit("multiply", [native.emit("multiply", parts[:2]), parts[2]])
    native.give("sum", [product], axes=sorted(native["sumdim"]), keepdims=False)


@translates("linear")
def _linear(native: Native) -> None:
    bias = native.get("bias")
    turned = native.emit("transpose", [native["weight"]], axes=[1, 0])
    if bias is None:
        native.give("matmul", [native.x, turned], transpose_a=False, transpose_b=False)
        return
    product = native.emit("matmul", [native.x, turned], transpose_a=False, transpose_b=False)
    native.give("bias_add", [product, bias], axis=native.results[0].ndim - 1)
