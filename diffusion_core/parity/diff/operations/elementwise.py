"""Elementwise functions, in the precision of their inputs.

Numbers of the author's code do not widen an array, and neither does an array without axes: float32 times 0.1 is
float32. An integer array and a float array give the type of the float array. That is what PyTorch does; TensorFlow
refuses mixed types.

Where a function has a kink, `SLOPES` has the subgradient that both frameworks use: 0 at the kink of relu and abs, 1 at
the bounds of clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from diffusion_core.parity.diff.operations.registry import EVALUATORS, VJPS, Unsupported, differentiates, evaluates

__all__ = ["SLOPES", "UNARY_FUNCTIONS", "sum_to", "to_dtype"]

SELU_SCALE, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


def to_dtype(x: NDArray, dtype: str) -> NDArray:
    """Convert to a type by name; half-precision types round and stay arrays of float32, as recordings hold them."""
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)  # round to nearest, ties to even
        return np.where(np.isnan(x), np.float32(np.nan), rounded.view(np.float32))
    if dtype == "float16":
        return x.astype(np.float16).astype(np.float32)
    return x.astype(dtype)


def _gelu(x: NDArray, approximate: str = "none") -> NDArray:
    if approximate == "tanh":
        return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))
    if approximate == "sigmoid":
        return x * special.expit(1.702 * x)
    return 0.5 * x * (1.0 + special.erf(x * math.sqrt(0.5)))


def _gelu_slope(x: NDArray, y: NDArray, approximate: str = "none") -> NDArray:
    if approximate == "tanh":
        c = math.sqrt(2.0 / math.pi)
        t = np.tanh(c * (x + 0.044715 * x**3))
        return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * c * (1.0 + 3 * 0.044715 * x * x)
    if approximate == "sigmoid":
        s = special.expit(1.702 * x)
        return s + 1.702 * x * s * (1.0 - s)
    return 0.5 * (1.0 + special.erf(x * math.sqrt(0.5))) + x * np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)


def _softplus(x: NDArray, beta: float = 1.0, threshold: float = math.inf) -> NDArray:
    # A straight line from 20 on, torch's default, is within 2.1e-9 of softplus and only its faster form.
    threshold = math.inf if threshold >= 20 else threshold
    return np.where(x * beta > threshold, x, np.logaddexp(x.dtype.type(0), x * beta) / beta)


def _celu(x: NDArray, alpha: float = 1.0) -> NDArray:
    return np.maximum(x, 0) + np.minimum(alpha * np.expm1(np.minimum(x, 0) / alpha), 0)


def _mish(x: NDArray) -> NDArray:
    return x * np.tanh(_softplus(x))


def _clip(x: NDArray, low: float | None = None, high: float | None = None) -> NDArray:
    x = x if low is None else np.maximum(x, low)
    return x if high is None else np.minimum(x, high)


def _clip_slope(x: NDArray, y: NDArray, low: float | None = None, high: float | None = None) -> NDArray:
    above = True if low is None else x >= low
    return above & (True if high is None else x <= high) & np.ones(x.shape, bool)


def _cast(x: NDArray, dtype: str) -> NDArray:
    return to_dtype(x, dtype)


UNARY_FUNCTIONS: dict[str, Callable[..., NDArray]] = {
    "negative": np.negative,
    "exp": np.exp,
    "expm1": np.expm1,
    "exp2": np.exp2,
    "log": np.log,
    "log1p": np.log1p,
    "log2": np.log2,
    "log10": np.log10,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "square": np.square,
    "reciprocal": lambda x: 1 / x,
    "abs": np.abs,
    "sign": np.sign,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "tanh": np.tanh,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "arcsin": np.arcsin,
    "arccos": np.arccos,
    "arctan": np.arctan,
    "arcsinh": np.arcsinh,
    "arccosh": np.arccosh,
    "arctanh": np.arctanh,
    "erf": special.erf,
    "erfc": special.erfc,
    "erfinv": special.erfinv,
    "lgamma": special.gammaln,
    "sigmoid": special.expit,
    "log_sigmoid": lambda x: -_softplus(-x),
    "silu": lambda x: x * special.expit(x),
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.minimum(np.maximum(x, 0), 6),
    "selu": lambda x: SELU_SCALE * np.where(x > 0, x, SELU_ALPHA * np.expm1(np.minimum(x, 0))),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "mish": _mish,
    "hardsigmoid": lambda x: np.minimum(np.maximum(x + 3, 0), 6) / 6,
    "hardswish": lambda x: x * np.minimum(np.maximum(x + 3, 0), 6) / 6,
    "tanhshrink": lambda x: x - np.tanh(x),
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,
    "trunc": np.trunc,
    "logical_not": np.logical_not,
    "isnan": np.isnan,
    "isinf": np.isinf,
    "isfinite": np.isfinite,
    "leaky_relu": lambda x, slope=0.01: np.where(x > 0, x, x * slope),
    "elu": lambda x, alpha=1.0: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
    "celu": _celu,
    "softplus": _softplus,
    "gelu": _gelu,
    "clip": _clip,
    "softshrink": lambda x, cut=0.5: np.where(x > cut, x - cut, np.where(x < -cut, x + cut, 0 * x)),
    "hardshrink": lambda x, cut=0.5: np.where(np.abs(x) > cut, x, 0 * x),
    "threshold": lambda x, cut=0.0, value=0.0: np.where(x > cut, x, x.dtype.type(value)),
    "cast": _cast,
    "identity": lambda x: x,
    "stop_gradient": lambda x: x,
}


def _sigmoid_slope(x: NDArray, y: NDArray) -> NDArray:
    s = special.expit(x)
    return s * (1 - s)


def _mish_slope(x: NDArray, y: NDArray) -> NDArray:
    t = np.tanh(_softplus(x))
    return t + x * (1 - t * t) * special.expit(x)


def _celu_slope(x: NDArray, y: NDArray, alpha: float = 1.0) -> NDArray:
    return np.where(x > 0, 1, np.exp(np.minimum(x, 0) / alpha))


# The derivative of each function of one input, from its input x and its output y.
SLOPES: dict[str, Callable[..., NDArray]] = {
    "negative": lambda x, y: np.full_like(x, -1),
    "exp": lambda x, y: y,
    "expm1": lambda x, y: np.exp(x),
    "exp2": lambda x, y: y * math.log(2),
    "log": lambda x, y: 1 / x,
    "log1p": lambda x, y: 1 / (1 + x),
    "log2": lambda x, y: 1 / (x * math.log(2)),
    "log10": lambda x, y: 1 / (x * math.log(10)),
    "sqrt": lambda x, y: 0.5 / y,
    "rsqrt": lambda x, y: -0.5 * y / x,
    "square": lambda x, y: 2 * x,
    "reciprocal": lambda x, y: -y * y,
    "abs": lambda x, y: np.sign(x),
    "sign": lambda x, y: 0 * x,
    "sin": lambda x, y: np.cos(x),
    "cos": lambda x, y: -np.sin(x),
    "tan": lambda x, y: 1 + y * y,
    "tanh": lambda x, y: 1 - y * y,
    "sinh": lambda x, y: np.cosh(x),
    "cosh": lambda x, y: np.sinh(x),
    "arcsin": lambda x, y: 1 / np.sqrt(1 - x * x),
    "arccos": lambda x, y: -1 / np.sqrt(1 - x * x),
    "arctan": lambda x, y: 1 / (1 + x * x),
    "arcsinh": lambda x, y: 1 / np.sqrt(1 + x * x),
    "arccosh": lambda x, y: 1 / np.sqrt(x * x - 1),
    "arctanh": lambda x, y: 1 / (1 - x * x),
    "erf": lambda x, y: 2 / math.sqrt(math.pi) * np.exp(-x * x),
    "erfc": lambda x, y: -2 / math.sqrt(math.pi) * np.exp(-x * x),
    "erfinv": lambda x, y: math.sqrt(math.pi) / 2 * np.exp(y * y),
    "lgamma": lambda x, y: special.psi(x),
    "sigmoid": _sigmoid_slope,
    "log_sigmoid": lambda x, y: special.expit(-x),
    "silu": lambda x, y: special.expit(x) + x * _sigmoid_slope(x, y),
    "relu": lambda x, y: x > 0,
    "relu6": lambda x, y: (x > 0) & (x < 6),
    "selu": lambda x, y: SELU_SCALE * np.where(x > 0, 1, SELU_ALPHA * np.exp(np.minimum(x, 0))),
    "softsign": lambda x, y: 1 / np.square(1 + np.abs(x)),
    "mish": _mish_slope,
    "hardsigmoid": lambda x, y: ((x > -3) & (x < 3)) / 6,
    "hardswish": lambda x, y: np.where(x <= -3, 0, np.where(x < 3, (2 * x + 3) / 6, 1)),
    "tanhshrink": lambda x, y: np.square(np.tanh(x)),
    "floor": lambda x, y: 0 * x,
    "ceil": lambda x, y: 0 * x,
    "round": lambda x, y: 0 * x,
    "trunc": lambda x, y: 0 * x,
    "leaky_relu": lambda x, y, slope=0.01: np.where(x > 0, 1, slope),
    "elu": lambda x, y, alpha=1.0: np.where(x > 0, 1, alpha * np.exp(np.minimum(x, 0))),
    "celu": _celu_slope,
    "softplus": lambda x, y, beta=1.0, threshold=math.inf: np.where(x * beta > threshold, 1, special.expit(x * beta)),
    "gelu": _gelu_slope,
    "clip": _clip_slope,
    "softshrink": lambda x, y, cut=0.5: np.abs(x) > cut,
    "hardshrink": lambda x, y, cut=0.5: np.abs(x) > cut,
    "threshold": lambda x, y, cut=0.0, value=0.0: x > cut,
    "cast": lambda x, y, dtype: np.ones_like(x),
    "identity": lambda x, y: np.ones_like(x),
    "stop_gradient": lambda x, y: 0 * x,
}


def _unary_vjp(slope: Callable[..., NDArray]) -> Callable[..., tuple[NDArray | None, ...]]:
    def vjp(cotangent: NDArray, inputs: Sequence[NDArray], output: NDArray, **attributes: Any) -> tuple[NDArray | None]:
        (x,) = inputs
        if x.dtype.kind != "f":
            return (None,)
        return ((cotangent * slope(x, output, **attributes)).astype(x.dtype),)

    return vjp


EVALUATORS.update(UNARY_FUNCTIONS)
VJPS.update({name: _unary_vjp(slope) for name, slope in SLOPES.items()})


def _promoted(arrays: Sequence[NDArray]) -> tuple[NDArray, ...]:
    """Give arrays the type in which they are combined; see the module."""
    if len({array.dtype for array in arrays}) == 1:
        return tuple(arrays)
    ranks = [("biuf".find(a.dtype.kind) if a.dtype.kind != "u" else 1, a.ndim > 0) for a in arrays]
    highest = max(rank for rank, _ in ranks)
    # Arrays with axes decide among those of the highest category, others only if there are none.
    deciding = [a for a, (rank, axes) in zip(arrays, ranks, strict=True) if rank == highest and axes]
    deciding = deciding or [a for a, (rank, _) in zip(arrays, ranks, strict=True) if rank == highest]
    dtype = np.result_type(*(a.dtype for a in deciding))
    return tuple(a.astype(dtype, copy=False) for a in arrays)


def sum_to(x: NDArray, shape: tuple[int, ...]) -> NDArray:
    """Sum over the axes along which an array of this shape was broadcast to that of x."""
    extra = x.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(extra + i for i, n in enumerate(shape) if n == 1 and x.shape[extra + i] != 1)
    return x.sum(axis=axes, keepdims=True).reshape(shape) if axes else x.reshape(shape)


BINARY_FUNCTIONS: dict[str, Callable[[NDArray, NDArray], NDArray]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "power": np.power,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "floor_divide": np.floor_divide,
    "modulo": np.mod,
    "arctan2": np.arctan2,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
}

# The derivatives with respect to both inputs, from the inputs and the output; a tie of maximum is shared.
BINARY_SLOPES: dict[str, Callable[[NDArray, NDArray, NDArray], tuple[Any, Any]]] = {
    "add": lambda x, y, z: (1, 1),
    "subtract": lambda x, y, z: (1, -1),
    "multiply": lambda x, y, z: (y, x),
    "divide": lambda x, y, z: (1 / y, -z / y),
    "power": lambda x, y, z: (y * np.power(x, y - 1), np.where(x > 0, z * np.log(np.where(x > 0, x, 1)), 0)),
    "maximum": lambda x, y, z: ((x > y) + 0.5 * (x == y), (y > x) + 0.5 * (x == y)),
    "minimum": lambda x, y, z: ((x < y) + 0.5 * (x == y), (y < x) + 0.5 * (x == y)),
    "arctan2": lambda x, y, z: (y / (x * x + y * y), -x / (x * x + y * y)),
    "modulo": lambda x, y, z: (1, -np.floor(x / y)),
    "floor_divide": lambda x, y, z: (0, 0),
}


def _operands(inputs: Sequence[NDArray], scalar: Any, reverse: bool) -> tuple[Any, Any]:
    if len(inputs) == 2:
        x, y = _promoted(inputs)
        return x, y
    if len(inputs) != 1 or scalar is None:
        raise Unsupported(f"an operation of two operands has {len(inputs)} inputs and the number {scalar}")
    return (scalar, inputs[0]) if reverse else (inputs[0], scalar)


def _binary(function: Callable[[Any, Any], NDArray]) -> Callable[..., NDArray]:
    def evaluated(*inputs: NDArray, scalar: Any = None, reverse: bool = False) -> NDArray:
        x, y = _operands(inputs, scalar, reverse)
        if function is np.power and inputs[0].dtype.kind in "iu" and (np.asarray(y) < 0).any():
            x = np.asarray(x, np.float64)
        return function(x, y)

    return evaluated


def _binary_vjp(slopes: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[NDArray | None, ...]]:
    def vjp(
        cotangent: NDArray, inputs: Sequence[NDArray], output: NDArray, scalar: Any = None, reverse: bool = False
    ) -> tuple[NDArray | None, ...]:
        both = slopes(*_operands(inputs, scalar, reverse), output)
        mine = both if len(inputs) == 2 else (both[1] if reverse else both[0],)
        return tuple(
            sum_to(np.broadcast_to(cotangent * slope, output.shape), x.shape).astype(x.dtype)
            if x.dtype.kind == "f"
            else None
            for x, slope in zip(inputs, mine, strict=True)
        )

    return vjp


EVALUATORS.update({name: _binary(function) for name, function in BINARY_FUNCTIONS.items()})
VJPS.update({name: _binary_vjp(slopes) for name, slopes in BINARY_SLOPES.items()})


def _branches(inputs: Sequence[NDArray], scalars: Sequence[Any] | None) -> list[Any]:
    rest = iter(inputs)
    return [next(rest) if scalar is None else scalar for scalar in (scalars or (None, None))]


@evaluates("where")
def where(condition: NDArray, *inputs: NDArray, scalars: Sequence[Any] | None = None) -> NDArray:
    """Choose between two arrays or numbers, element by element."""
    x, y = _branches(inputs, scalars)
    if len(inputs) == 2:
        x, y = _promoted(inputs)
    elif inputs:
        x, y = (np.asarray(part, inputs[0].dtype) for part in (x, y))
    return np.where(condition.astype(bool, copy=False), x, y)


@differentiates("where")
def where_vjp(
    cotangent: NDArray, inputs: Sequence[NDArray], output: NDArray, scalars: Sequence[Any] | None = None
) -> tuple[NDArray | None, ...]:
    """Send the cotangent to the branch that was chosen."""
    condition = inputs[0].astype(bool, copy=False)
    taken = zip((condition, ~condition), scalars or (None, None), strict=True)
    chosen = [part for part, scalar in taken if scalar is None]
    return None, *(
        sum_to(np.where(part, cotangent, 0), x.shape).astype(x.dtype) if x.dtype.kind == "f" else None
        for part, x in zip(chosen, inputs[1:], strict=True)
    )
