"""Each cause, planted in a small model: found where it was planted, verified, with the numbers that were planted."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion_core.parity.diff import explain as explaining
from diffusion_core.parity.diff.causes import CAUSES
from diffusion_core.parity.diff.causes.change import cause
from diffusion_core.parity.diff.comparison import compare_pass
from tests.diff.made_comparison import is_sentence
from tests.diff.written import Tape, both, weights

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

X = weights("x", 6, 8)
IMAGE = weights("image", 2, 4, 4, 8)
LARGE = 3 * weights("large", 40, 16)


def activation_of(tape: Tape, x: int, name: str) -> int:
    """Write an activation the long way where frameworks do."""
    if name == "gelu by hand":
        inner = tape("add", tape("erf", tape("multiply", x, scalar=2**-0.5)), scalar=1.0)
        return tape("multiply", tape("multiply", x, scalar=0.5), inner)
    if name == "gelu in float32 constants":
        half = float(np.float32(2**-0.5))
        inner = tape("add", tape("erf", tape("multiply", x, scalar=half)), scalar=1.0)
        return tape("multiply", tape("multiply", x, scalar=0.5), inner)
    if name == "gelu tanh by hand":
        cube = tape("multiply", tape("power", x, scalar=3.0), scalar=0.044715)
        inner = tape("tanh", tape("multiply", tape("add", x, cube), scalar=np.sqrt(2 / np.pi)))
        return tape("multiply", tape("multiply", x, scalar=0.5), tape("add", inner, scalar=1.0))
    if name == "swish by hand":
        return tape("multiply", x, tape("sigmoid", x))
    if name == "old hard sigmoid":
        return tape("clip", tape("add", tape("multiply", x, scalar=0.2), scalar=0.5), low=0.0, high=1.0)
    if name == "maximum leaky":
        return tape("maximum", x, tape("multiply", x, scalar=0.01))
    if name == "":
        return x
    kind, _, number = name.partition(" ")
    attributes: dict[str, Any] = {}
    if kind == "leaky_relu":
        attributes = {"slope": float(number)}
    elif kind in ("elu", "celu"):
        attributes = {"alpha": float(number)}
    elif kind == "softplus":
        attributes = {"beta": float(number), "threshold": np.inf}
    elif kind == "gelu":
        attributes = {"approximate": number}
    return tape(kind, x, **attributes)


def mlp(tape: Tape) -> int:
    x = tape.input(LARGE)
    h = activation_of(tape, tape.linear(x, "first", 12), tape.get("act", "relu"))
    if tape.get("twice"):
        h = activation_of(tape, h, tape.get("act"))
    return tape.linear(h, "second", 4)


def residual(tape: Tape) -> int:
    x = tape.linear(tape.input(X), "in", 8)
    y = tape.linear(x, "branch", 8)
    place = tape.get("place", "after")
    if place == "before":
        y = tape("relu", y)
    y = tape("add", x, y)
    if place == "after":
        y = tape("relu", y)
    return tape.linear(y, "out", 4)


def norm(tape: Tape) -> int:
    """A LayerNorm written by hand."""
    x = tape("multiply", tape.linear(tape.input(X), "in", 12), scalar=0.1)
    axes = (tape.get("axis", 1),)
    mean = tape("mean", x, axes=axes, keepdims=True)
    centred = tape("subtract", x, mean) if tape.get("centred", True) else x
    var = tape("mean", tape("square", centred), axes=axes, keepdims=True)
    if tape.get("ddof"):
        var = tape("multiply", var, scalar=12 / 11)
    e, place = tape.get("epsilon", 1e-3), tape.get("place", "under")
    if place == "under":
        root = tape("sqrt", tape("add", var, scalar=e))
    elif place == "outside":
        root = tape("add", tape("sqrt", var), scalar=e)
    elif place == "maximum":
        root = tape("sqrt", tape("maximum", var, scalar=e))
    else:
        root = tape("sqrt", var)
    y = tape("divide", centred, root)
    gamma = tape.parameter("gamma", 1 + 0.3 * weights("gamma", 12))
    if tape.get("gamma", "plain") == "plus one":
        gamma = tape("add", gamma, scalar=1.0)
    if tape.get("gamma") != "none":
        y = tape("multiply", y, gamma)
    y = tape("add", y, tape.parameter("beta", weights("beta", 12)))
    return tape.linear(y, "out", 4)


def unit(tape: Tape) -> int:
    """Vectors of length one."""
    x = tape.linear(tape.input(X), "in", 8)
    length = tape("norm", x, axes=(1,), keepdims=True, order=2)
    e = tape.get("epsilon", 1e-12)
    length = tape("maximum" if tape.get("maximum", True) else "add", length, scalar=e)
    return tape.linear(tape("divide", x, length), "out", 4)


def group(tape: Tape) -> int:
    """A GroupNorm of one operation, or written by hand with channels last."""
    x = tape.linear(tape.input(IMAGE), "in", 8)
    gamma = tape.parameter("gamma", 1 + 0.3 * weights("gamma", 8))
    beta = tape.parameter("beta", weights("beta", 8))
    g = tape.get("groups", 4)
    if tape.get("fused"):
        has = ["x", "gamma", "beta"]
        y = tape("group_norm", x, gamma, beta, groups=g, epsilon=tape.get("epsilon", 1e-5), axis=3, has=has)
    else:
        split = (8 // g, g) if tape.get("interleaved") else (g, 8 // g)
        axes = (1, 2, 3) if tape.get("interleaved") else (1, 2, 4)
        grouped = tape("reshape", x, shape=(2, 4, 4, *split))
        mean = tape("mean", grouped, axes=axes, keepdims=True)
        var = tape("variance", grouped, axes=axes, keepdims=True, ddof=tape.get("ddof", 0))
        root = tape("sqrt", tape("add", var, scalar=tape.get("epsilon", 1e-5)))
        y = tape("reshape", tape("divide", tape("subtract", grouped, mean), root), shape=(2, 4, 4, 8))
        y = tape("add", tape("multiply", y, gamma), beta)
    return tape.linear(y, "out", 4)


def numbers(tape: Tape) -> int:
    x = tape.linear(tape.input(X), "in", 8)
    h = tape("tanh", tape("multiply", x, scalar=tape.get("inner", 0.7)))
    if tape.get("offset"):
        h = tape("add", h, scalar=tape.get("offset"))
    branch = tape("softsign", tape.linear(h, "branch", 8))
    if tape.get("branch", 1.0) != 1.0:
        branch = tape("multiply", branch, scalar=tape.get("branch"))
    y = tape("add", x, branch)
    temperature = tape.parameter("temperature", np.array(0.37))
    if tape.get("exp", True):
        temperature = tape("exp", temperature)
    y = tape("multiply", y, temperature)
    b = tape.parameter("bias", weights("bias", 8))
    for _ in range(tape.get("biases", 1)):
        y = tape("add", y, b)
    return tape.linear(tape("sin", y), "out", 4)


def attention(tape: Tape) -> int:
    """Self-attention written by hand, with a mask."""
    x = tape.input(weights("tokens", 2, 6, 8))
    q, k, v = (tape.linear(x, name, 8) for name in "qkv")
    parts = []
    for y in (q, k, v):
        y = tape("reshape", y, shape=(2, 6, 2, 4))
        parts.append(tape("transpose", y, axes=(0, 2, 1, 3)))
    q, k, v = parts
    if tape.get("swapped"):
        q, k = k, q
    scores = tape("matmul", q, k, transpose_b=True)
    if tape.get("scale", 0.5) is not None:
        scores = tape("multiply", scores, scalar=tape.get("scale", 0.5))
    seen = np.tril(np.ones((6, 6), bool), tape.get("diagonal", 0))
    kind = tape.get("mask", "causal")
    if kind == "causal":
        scores = tape("where", tape.constant(seen), scores, scalars=[None, tape.get("fill", -np.inf)])
    elif kind == "wrong way":
        scores = tape("where", tape.constant(~np.tril(np.ones((6, 6), bool), -1)), scores, scalars=[None, -np.inf])
    scores = tape("softmax", scores, axis=tape.get("axis", 3))
    y = tape("transpose", tape("matmul", scores, v), axes=(0, 2, 1, 3))
    return tape.linear(tape("reshape", y, shape=(2, 6, 8)), "out", 4)


def pooled(tape: Tape) -> int:
    """Statistics of an image, and a product that is broadcast."""
    x = tape.linear(tape.input(IMAGE), "in", 4)
    y = tape(tape.get("kind", "mean"), x, axes=tape.get("axes", (1, 2)), keepdims=False)
    z = tape("reshape", y, shape=tape.get("shape", (2, 1, 1, 4)))
    z = tape("subtract", x, z)
    if tape.get("pool", True):
        window = {"window": (2, 2), "strides": (2, 2), "padding": [(0, 0)] * 2, "dilation": (1, 1)}
        kind = tape.get("pool", "max_pool")
        z = tape(kind, z, layout="channels_last", ceil_mode=False, **window)
    return tape.linear(z, "out", 3)


def pooled_average(tape: Tape) -> int:
    return pooled(tape)


def timestep(tape: Tape) -> int:
    """A sinusoidal embedding of time, then of a label and a position."""
    t = tape.input(np.array([987, 12, 500, 3]))
    dtype = tape.get("dtype", "float64")
    divisor = tape.get("divisor", 7)
    steps = tape("cast", tape.constant(np.arange(8)), dtype=dtype)
    number = -np.log(10000) / divisor
    number = float(np.float32(number)) if dtype == "float32" else number
    frequency = tape("exp", tape("multiply", steps, scalar=number))
    if tape.get("table"):
        frequency = tape.constant(np.exp(np.arange(8) * -np.log(10000) / divisor).astype(dtype))
    angle = tape("multiply", tape("reshape", tape("cast", t, dtype=dtype), shape=(4, 1)), frequency)
    if tape.get("unit"):
        angle = tape("multiply", angle, scalar=tape.get("unit"))
    parts = [tape("sin", angle), tape("cos", angle)]
    y = tape("concat", *(parts[::-1] if tape.get("cosine first") else parts), axis=1)
    y = tape("cast", y, dtype="float64")
    labels = tape.input(np.array([2, 0, 3, 1]))
    if tape.get("label"):
        labels = tape("add", labels, scalar=tape.get("label"))
    table = tape.parameter("labels", weights("labels", 6, 16))
    y = tape("add", y, tape("gather", table, labels, axis=0))
    places = tape.constant(np.arange(4) + tape.get("position", 0))
    y = tape("add", y, tape("gather", tape.parameter("positions", weights("positions", 9, 16)), places, axis=0))
    return tape.linear(tape("tanh", y), "out", 4)


def classes(tape: Tape) -> int:
    """A head whose classes may be in another order: the columns of its weights are."""
    x = tape("tanh", tape.linear(tape.input(X), "in", 8))
    order = tape.get("order", list(range(12)))
    y = tape("matmul", x, tape.parameter("head.weight", weights("head", 8, 12)[:, order]))
    return tape("add", y, tape.parameter("head.bias", weights("head.b", 12)[order]))


def gru(tape: Tape) -> int:
    """Two steps of a GRU."""
    x, h = tape.input(weights("steps", 5, 2, 6)), tape.linear(tape.input(X[:5]), "start", 4)
    x0, x1 = tape("unstack", x, axis=1)
    kernel, bias = tape.parameter("kernel", weights("kernel", 6, 12)), tape.parameter("bias", weights("bias", 12))
    u, w = tape.parameter("u", weights("u", 4, 8)), tape.parameter("w", weights("w", 4, 4))
    for step in (x0, x1):
        xr, xz, xn = tape("split", tape("add", tape("matmul", step, kernel), bias), axis=1, sizes=(4, 4, 4))
        hr, hz = tape("split", tape("matmul", h, u), axis=1, sizes=(4, 4))
        r = tape("sigmoid", tape("add", xr, hr))
        z = tape("sigmoid", tape("add", xz, hz))
        if tape.get("exchanged"):
            r, z = z, r
        if tape.get("reset", "after") == "after":
            n = tape("multiply", r, tape("matmul", h, w))
        else:
            n = tape("matmul", tape("multiply", r, h), w)
        n = tape("tanh", tape("add", xn, n))
        h = tape("add", tape("multiply", z, h), tape("multiply", tape("subtract", z, scalar=1.0, reverse=True), n))
    return tape.linear(h, "out", 4)


def blocks(tape: Tape) -> int:
    """A block whose parts may be missing, in another order or made of other values."""
    x = tape.linear(tape.input(X), "in", 8)
    h = tape("tanh", tape.linear(x, "one", 8))
    g = tape("sigmoid", tape.linear(x, "two", 8))
    y = tape(tape.get("join", "multiply"), h, g)
    if tape.get("residual", True):
        y = tape("add", y, h if tape.get("other") else x)
    if tape.get("noise"):
        keep = tape("less", tape.draw(np.abs(np.sin(np.arange(48.0).reshape(6, 8))) < 0.8), scalar=0.5)
        y = tape("multiply", tape("divide", y, scalar=0.8), tape("cast", keep, dtype="float64"))
    if tape.get("clip"):
        y = tape("clip", y, low=-0.5, high=0.5)
    y = tape("subtract", *((h, y) if tape.get("order") else (y, h)))
    square = tape.parameter("square", weights("square", 8, 8))
    y = tape("matmul", y, square, transpose_b=tape.get("turned", False))
    return tape.linear(tape("softsign", y), "out", 4)


# (model, options of A, options of B, kind, what A's or B's sentence must contain, ...)
FAULTS: list[tuple[Callable[[Tape], Any], dict[str, Any], dict[str, Any], str, str, str]] = [
    (mlp, {"act": "gelu none"}, {"act": "gelu tanh by hand"}, "gelu_form", "erf", "tanh"),
    (mlp, {"act": "gelu by hand"}, {"act": "gelu tanh"}, "gelu_form", "erf", "tanh"),
    (mlp, {"act": "gelu in float32 constants"}, {"act": "gelu tanh by hand"}, "gelu_form", "erf", "tanh"),
    (mlp, {"act": "relu"}, {"act": "relu6"}, "activation_bound", "ReLU", "ReLU6"),
    (mlp, {"act": "silu"}, {"act": "relu"}, "activation", "SiLU", "ReLU"),
    (mlp, {"act": "swish by hand"}, {"act": "gelu none"}, "activation", "SiLU", "GELU"),
    (mlp, {"act": "maximum leaky"}, {"act": "leaky_relu 0.2"}, "activation_slope", "0.01", "0.2"),
    (mlp, {"act": "leaky_relu 0.07"}, {"act": "leaky_relu 0.2"}, "activation_slope", "0.07", "0.2"),
    (mlp, {"act": "hardsigmoid"}, {"act": "old hard sigmoid"}, "hard_sigmoid_form", "relu6", "0.2"),
    (mlp, {"act": "elu 1"}, {"act": "elu 0.5"}, "activation_alpha", "1", "0.5"),
    (mlp, {"act": "softplus 1"}, {"act": "softplus 2"}, "softplus_form", "softplus", "2"),
    (mlp, {"act": "silu"}, {"act": ""}, "missing_activation", "SiLU", "not"),
    (mlp, {"act": ""}, {"act": "swish by hand"}, "missing_activation", "not", "SiLU"),
    (mlp, {"act": "tanh"}, {"act": "tanh", "twice": True}, "missing_activation", "not", "tanh"),
    (residual, {}, {"place": "before"}, "activation_position", "after", "before"),
    (norm, {"epsilon": 1e-5}, {}, "norm_epsilon", "1e-05", "0.001"),
    (norm, {"epsilon": 1e-5}, {"epsilon": 1e-12}, "norm_epsilon", "1e-05", "1e-12"),
    (norm, {}, {"place": "outside"}, "norm_epsilon", "0.001", "0.001"),
    (norm, {"place": "maximum", "epsilon": 0.02}, {"epsilon": 0.02}, "norm_epsilon", "least", "added"),
    (norm, {"place": "none"}, {}, "norm_epsilon", "not added", "0.001"),
    (norm, {}, {"ddof": 1}, "variance_bias", "by n (biased)", "by n - 1"),
    (norm, {}, {"gamma": "plus one"}, "norm_scale", "gamma", "one plus gamma"),
    (norm, {}, {"gamma": "none"}, "norm_scale", "gamma", "not"),
    (norm, {}, {"centred": False}, "norm_mean", "", "not subtracted"),
    (norm, {}, {"axis": 0}, "norm_axes", "channels", "batch"),
    (unit, {}, {"epsilon": 1e-6, "maximum": False}, "norm_epsilon", "not added", "1e-06"),
    (group, {}, {"fused": True, "epsilon": 1e-3}, "norm_epsilon", "1e-05", "0.001"),
    (group, {"fused": True}, {"groups": 2}, "group_count", "4", "2"),
    (group, {"fused": True, "groups": 2}, {}, "group_count", "2", "4"),
    (group, {"fused": True}, {"interleaved": True}, "group_layout", "neighbouring", "interleaved"),
    (group, {"fused": True}, {"ddof": 1}, "variance_bias", "by n (biased)", "by n - 1"),
    (numbers, {}, {"inner": 0.3}, "constant", "0.7", "0.3"),
    (numbers, {}, {"offset": 0.25}, "offset", "no number", "0.25"),
    (numbers, {}, {"branch": 0.5}, "factor", "no factor", "0.5"),
    (numbers, {}, {"exp": False}, "missing_exp", "exp", "as it is"),
    (numbers, {}, {"biases": 2}, "doubled_bias", "once", "twice"),
    (numbers, {}, {"biases": 0}, "missing_bias", "bias is added", "not"),
    (attention, {}, {"scale": 8**-0.5}, "attention_scale", "4 (2)", "8"),
    (attention, {}, {"scale": None}, "attention_scale", "4 (2)", "not scaled"),
    (attention, {}, {"axis": 2}, "softmax_axis", "3", "2"),
    (attention, {}, {"mask": ""}, "causal_mask|mask_missing", "mask", "n"),
    (attention, {"fill": -1e4}, {"fill": -1.0}, "mask_value", "-1e+04", "-1"),
    (attention, {}, {"diagonal": 1}, "causal_mask", "", ""),
    (attention, {}, {"mask": "wrong way"}, "mask_axis", "", ""),
    (attention, {}, {"swapped": True}, "operand_order|other_input|transposed", "", ""),
    (pooled, {}, {"kind": "max"}, "reduction_kind", "mean", "max"),
    (pooled, {}, {"kind": "sum"}, "reduction_kind|factor", "", ""),
    (pooled, {"axes": (1, 3)}, {"axes": (2, 3)}, "reduction_axis", "1, 3", "2, 3"),
    (pooled, {"axes": (1, 2)}, {"shape": (2, 4, 1, 1)}, "broadcast_axis", "", ""),
    (pooled, {}, {"pool": "avg_pool"}, "pool_kind", "maximum", "average"),
    (timestep, {}, {"divisor": 8}, "time_embedding_frequency", "", ""),
    (timestep, {}, {"cosine first": True}, "time_embedding_order", "sines", "cosines"),
    (timestep, {}, {"dtype": "float32"}, "time_embedding_precision", "float64", "float32"),
    (timestep, {}, {"dtype": "float32", "table": True}, "time_embedding_precision", "float64", "float32"),
    (timestep, {}, {"unit": 1000.0}, "time_scale|factor|time_embedding_frequency", "", "1000"),
    (timestep, {}, {"label": 1}, "label_offset|offset|constant", "", ""),
    (timestep, {}, {"position": 2}, "position_offset", "at 0", "at 2"),
    (classes, {}, {"order": [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]}, "label_order", "", "text"),
    (gru, {}, {"reset": "before"}, "reset_after", "after", "before"),
    (gru, {}, {"exchanged": True}, "gate_order|other_input", "", ""),
    (blocks, {}, {"residual": False}, "missing_residual", "is added", "not"),
    (blocks, {}, {"other": True}, "other_input", "", ""),
    (blocks, {}, {"join": "add"}, "other_operation", "multiply", "add"),
    (blocks, {}, {"noise": True}, "dropout_on", "off", "noise is on"),
    (blocks, {}, {"clip": True}, "clipping", "no bound", "0.5"),
    (blocks, {}, {"order": True}, "operand_order|factor|missing_function", "", ""),
    (blocks, {}, {"turned": True}, "transposed|operand_order|kernel_order", "", ""),
]


@pytest.mark.parametrize(
    ("model", "a", "b", "kind", "a_does", "b_does"),
    FAULTS,
    ids=[f"{f[0].__name__}-{f[3]}-{i}" for i, f in enumerate(FAULTS)],
)
def test_a_planted_fault_is_found_and_verified(
    model: Callable[[Tape], Any], a: dict[str, Any], b: dict[str, Any], kind: str, a_does: str, b_does: str
) -> None:
    findings = compare_pass(*both(model, a, b), None, "forward").findings
    assert findings
    first = findings[0]
    said = f"{first.kind}, {first.status}: {first.a_does} | {first.b_does}"
    assert first.status == "verified", said
    assert first.kind in kind.split("|"), said
    assert a_does in first.a_does, said
    assert b_does in first.b_does, said
    assert is_sentence(first.a_does) and is_sentence(first.b_does), said


@pytest.mark.parametrize("fault", [FAULTS[0], FAULTS[3], FAULTS[5]])
def test_a_cause_that_is_known_from_another_pass_is_found_again(fault: tuple) -> None:
    model, a, b, kind, *_ = fault
    (finding,) = compare_pass(*both(model, a, b), None, "training", (kind, "constant")).findings
    assert (finding.kind, finding.status) == (kind, "verified")


@pytest.mark.parametrize("model", dict.fromkeys(fault[0] for fault in FAULTS))
def test_equal_models_have_no_cause(model: Callable[[Tape], Any]) -> None:
    assert compare_pass(*both(model, {}, {}), None, "forward").findings == ()


def texts(node: ast.expr) -> list[str]:
    """Return the texts that an expression may be; what is filled in is a word."""
    if isinstance(node, ast.IfExp):
        return [*texts(node.body), *texts(node.orelse)]
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "name" for part in node.values]
        return ["".join(map(str, parts))]
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def test_every_change_says_in_a_sentence_what_each_side_does() -> None:
    said = []
    for path in Path(explaining.__file__).with_name("causes").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Change":
                named = [each.value for each in node.keywords if each.arg in ("here", "there")]
                said += [f"{path.stem}: {words}" for each in [*node.args[3:5], *named] for words in texts(each)]
    assert len(said) > 100
    assert [words for words in said if not is_sentence(words.partition(": ")[2])] == []


def test_every_cause_says_what_to_do() -> None:
    assert all(title and advice for title, advice, _ in CAUSES.values())


def test_a_kind_of_cause_has_one_function() -> None:
    with pytest.raises(ValueError, match="norm_epsilon is registered twice"):
        cause("norm_epsilon", "the epsilon", "write the same")(lambda suspect: iter(()))
