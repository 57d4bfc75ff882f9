"""The functions that a network applies to each number, by name, with the words people use for them.

A *family* holds functions that are meant to be one: forms of GELU, slopes of a leaky ReLU. Where two implementations
use two of a family, the cause has the name of the family.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

__all__ = ["FUNCTIONS", "Function", "family_of"]

Array = NDArray


@dataclass(frozen=True)
class Function:
    """One function of one number.

    Attributes:
        words: its name for people.
        family: the kind of the cause where two of a family are mixed up, or "".
        compute: the function.
        activation: whether it is used between layers, rather than as a step of a formula.
    """

    words: str
    family: str
    compute: Callable[[Array], Array]
    activation: bool = True


def _hard(x: Array, slope: float, offset: float) -> Array:
    return np.clip(slope * x + offset, 0, 1)


def _softplus(x: Array, beta: float = 1.0, threshold: float = math.inf) -> Array:
    return np.where(beta * x > threshold, x, np.logaddexp(0, beta * x) / beta)


def _elu(x: Array, alpha: float) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _celu(x: Array, alpha: float) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / alpha))


def _gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _swish(beta: float) -> Callable[[Array], Array]:
    return lambda x: x * special.expit(beta * x)


def _leaky(slope: float) -> Callable[[Array], Array]:
    return lambda x: np.where(x > 0, x, slope * x)


def _table() -> dict[str, Function]:
    gelu, slope, hard, alpha, plus = (
        "gelu_form",
        "activation_slope",
        "hard_sigmoid_form",
        "activation_alpha",
        "softplus_form",
    )
    beta, bound = "swish_beta", "activation_bound"
    table = {
        "gelu": Function("GELU in its exact form (erf)", gelu, lambda x: 0.5 * x * (1 + special.erf(x / math.sqrt(2)))),
        "gelu_tanh": Function("GELU in its tanh approximation", gelu, _gelu_tanh),
        "gelu_sigmoid": Function("GELU as x sigmoid(1.702 x)", gelu, _swish(1.702)),
        "relu": Function("ReLU", bound, lambda x: np.maximum(x, 0)),
        "relu6": Function("ReLU6, cut at 6", bound, lambda x: np.clip(x, 0, 6)),
        "relu1": Function("ReLU cut at 1", bound, lambda x: np.clip(x, 0, 1)),
        "hardtanh": Function("tanh made of straight lines (hardtanh)", "", lambda x: np.clip(x, -1, 1)),
        "silu": Function("SiLU", beta, _swish(1.0)),
        "swish2": Function("Swish with beta 2", beta, _swish(2.0)),
        "swish_half": Function("Swish with beta 0.5", beta, _swish(0.5)),
        "sigmoid": Function("sigmoid", "", special.expit),
        "tanh": Function("tanh", "", np.tanh),
        "scaled_tanh": Function("1.7159 tanh(2 x / 3)", "", lambda x: 1.7159 * np.tanh(2 * x / 3)),
        "hardsigmoid": Function("hard sigmoid as relu6(x + 3) / 6", hard, lambda x: _hard(x, 1 / 6, 0.5)),
        "hardsigmoid_old": Function("hard sigmoid as clip(0.2 x + 0.5)", hard, lambda x: _hard(x, 0.2, 0.5)),
        "hardsigmoid_half": Function("hard sigmoid as clip((x + 1) / 2)", hard, lambda x: _hard(x, 0.5, 0.5)),
        "hardswish": Function("hard swish as x relu6(x + 3) / 6", hard, lambda x: x * _hard(x, 1 / 6, 0.5)),
        "hardswish_old": Function("hard swish as x clip(0.2 x + 0.5)", hard, lambda x: x * _hard(x, 0.2, 0.5)),
        "selu": Function("SELU", alpha, lambda x: 1.0507009873554805 * _elu(x, 1.6732632423543772)),
        "softplus": Function("softplus", plus, _softplus),
        "softplus_shifted": Function("softplus minus log 2", plus, lambda x: _softplus(x) - math.log(2)),
        "softsign": Function("softsign", "", lambda x: x / (1 + np.abs(x))),
        "mish": Function("Mish", "", lambda x: x * np.tanh(_softplus(x))),
        "log_sigmoid": Function("log sigmoid", "", lambda x: -_softplus(-x)),
        "tanhshrink": Function("x - tanh(x)", "", lambda x: x - np.tanh(x)),
        "softshrink": Function("soft shrink at 0.5", "", lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.5, 0)),
        "hardshrink": Function("hard shrink at 0.5", "", lambda x: np.where(np.abs(x) > 0.5, x, 0)),
        "relu_squared": Function("ReLU squared", "", lambda x: np.maximum(x, 0) ** 2),
    }
    for s in (0.01, 0.1, 0.2, 0.3, 0.25, 0.05, 0.02, 0.001, 1 / 3, 1 / 5.5, 0.5):
        table[f"leaky{s:g}"] = Function(f"leaky ReLU with slope {s:.4g}", slope, _leaky(s))
    for a in (1.0, 0.1, 0.3, 0.5, 2.0, 1.6732632423543772):
        table[f"elu{a:g}"] = Function(f"ELU with alpha {a:.4g}", alpha, lambda x, a=a: _elu(x, a))
        if a != 1:
            table[f"celu{a:g}"] = Function(f"CELU with alpha {a:.4g}", alpha, lambda x, a=a: _celu(x, a))
    for b in (0.5, 2.0, 5.0, 10.0, 100.0):
        table[f"softplus_beta{b:g}"] = Function(f"softplus with beta {b:g}", plus, lambda x, b=b: _softplus(x, b))
    steps: dict[str, tuple[str, Callable[[Array], Array]]] = {
        "exp": ("exp", np.exp), "expm1": ("exp(x) - 1", np.expm1), "log": ("log", np.log),
        "log1p": ("log(1 + x)", np.log1p), "sqrt": ("the root", np.sqrt), "square": ("the square", np.square),
        "rsqrt": ("one over the root", lambda x: 1 / np.sqrt(x)), "reciprocal": ("one over it", lambda x: 1 / x),
        "negative": ("the negative", np.negative), "abs": ("the absolute value", np.abs), "sin": ("sin", np.sin),
        "cos": ("cos", np.cos), "one_minus": ("one minus it", lambda x: 1 - x),
        "one_plus": ("one plus it", lambda x: 1 + x),
        "minus_one": ("it minus one", lambda x: x - 1), "sign": ("the sign", np.sign), "erf": ("erf", special.erf),
        "floor": ("rounding down", np.floor), "round": ("rounding", np.rint), "ceil": ("rounding up", np.ceil),
        "half_exp": ("exp of its half", lambda x: np.exp(x / 2)), "cube": ("the cube", lambda x: x**3),
        "exp2": ("2 to its power", np.exp2), "log2": ("log to base 2", np.log2), "log10": ("log to base 10", np.log10),
    }  # fmt: skip
    for name, (words, compute) in steps.items():
        table[name] = Function(words, "", compute, activation=False)
    return table


FUNCTIONS: dict[str, Function] = _table()


def family_of(here: str, there: str) -> str:
    """Return the kind of the cause where this function is used here and that one there."""
    one, other = FUNCTIONS[here], FUNCTIONS[there]
    if one.family and one.family == other.family:
        return one.family
    slopes = {"activation_slope"}
    if {one.family, other.family} & slopes and {here, there} & {"relu"}:
        return "activation_slope"
    if "swish_beta" in (one.family, other.family) and "gelu_form" in (one.family, other.family):
        return "gelu_form" if "gelu_sigmoid" in (here, there) else "activation"
    return "activation" if one.activation or other.activation else "function"
