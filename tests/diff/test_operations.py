"""The vocabulary in NumPy: every kind is known, gradients are adjoint to differences, fused kinds are their parts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from diffusion_core.parity.diff import operations as rules
from diffusion_core.parity.diff.recording import Operation
from diffusion_core.parity.diff.vocabulary import COMPOSITE, KINDS

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(2, 6, 5, 4))
Y = RANDOM.normal(size=(2, 6, 5, 4))
SPACE = {"strides": [2, 1], "padding": [[1, 0], [1, 1]], "dilation": [1, 2], "layout": "channels_first"}
WINDOW = {"window": [3, 2], "strides": [2, 2], "padding": [[1, 1], [0, 0]], "dilation": [1, 1]}
WINDOW["layout"] = "channels_first"

# A call of each kind through which gradients pass, in float64.
CASES = {
    "matmul": ([X, Y], {"transpose_b": True}),
    "einsum": ([X, Y], {"equation": "bchw,bcgw->bchg"}),
    "conv": ([X, RANDOM.normal(size=(4, 3, 3, 2))], {**SPACE, "groups": 2, "kernel": "OIHW"}),
    "conv_transpose": (
        [X, RANDOM.normal(size=(6, 3, 3, 3))],
        {
            "strides": [2, 2],
            "padding": [[1, 1], [1, 1]],
            "dilation": [1, 1],
            "groups": 1,
            "layout": "channels_first",
            "kernel": "IOHW",
            "output_size": [10, 8],
        },
    ),
    "max_pool": ([X], {**WINDOW, "padding": [[1, 1], [0, 0]], "ceil_mode": False}),
    "avg_pool": ([X], {**WINDOW, "ceil_mode": True, "count_include_pad": False}),
    "resize": (
        [X],
        {"size": [7, 9], "mode": "bilinear", "align_corners": False, "half_pixel": True, "layout": "channels_first"},
    ),
    "softmax": ([X], {"axis": 1}),
    "log_softmax": ([X], {"axis": 3}),
    "logsumexp": ([X], {"axes": [1], "keepdims": False}),
    "variance": ([X], {"axes": [1, 2], "keepdims": True, "ddof": 1}),
    "std": ([X], {"axes": [3], "keepdims": False, "ddof": 0}),
    "norm": ([X], {"axes": [1], "keepdims": True, "order": 2}),
    "mean": ([X], {"axes": [0, 2], "keepdims": False}),
    "add": ([X, Y[:1, :, :1]], {}),
    "multiply": ([X, Y[:, :1]], {}),
    "divide": ([X, 2 + Y**2], {}),
    "subtract": ([X], {"scalar": 1.0, "reverse": True}),
    "power": ([np.abs(X) + 0.5], {"scalar": 3, "reverse": False}),
    "concat": ([X, Y], {"axis": 1}),
    "slice": ([X], {"start": [0, 1, 0, 3], "stop": [2, 6, 5, None], "step": [1, 2, 1, -1]}),
    "pad": ([X], {"padding": [[0, 0], [0, 0], [1, 2], [2, 1]], "mode": "reflect", "value": 0}),
    "transpose": ([X], {"axes": [0, 2, 3, 1]}),
    "gelu": ([X], {"approximate": "none"}),
    "silu": ([X], {}),
    "softplus": ([X], {"beta": 2.0, "threshold": 20.0}),
    "elu": ([X], {"alpha": 0.7}),
    "mish": ([X], {}),
    "cumsum": ([X], {"axis": 2}),
}


def run(kind: str, inputs: list[np.ndarray], attributes: dict) -> np.ndarray:
    return rules.evaluate(Operation(kind, tuple(range(len(inputs))), (9,), attributes), inputs)[0]


@pytest.mark.parametrize("kind", CASES)
def test_a_gradient_gives_the_difference_that_a_small_step_makes(kind: str) -> None:
    inputs, attributes = CASES[kind]
    operation = Operation(kind, tuple(range(len(inputs))), (9,), attributes)
    output = run(kind, inputs, attributes)
    cotangent = np.cos(np.arange(output.size)).reshape(output.shape)
    gradients = rules.vjp(operation, inputs, [output], [cotangent])
    steps = [np.sin(1 + np.arange(array.size)).reshape(array.shape) for array in inputs]
    h = 1e-6
    forward = run(kind, [a + h * s for a, s in zip(inputs, steps, strict=True)], attributes)
    backward = run(kind, [a - h * s for a, s in zip(inputs, steps, strict=True)], attributes)
    expected = float(np.sum(cotangent * (forward - backward)) / (2 * h))
    found = sum(float(np.sum(g * s)) for g, s in zip(gradients, steps, strict=True))
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_every_kind_can_be_evaluated_or_says_that_it_cannot() -> None:
    cannot = {"random", "constant", "opaque"}
    assert set(KINDS) - set(COMPOSITE) - cannot == set(rules.EVALUATORS)
    for kind in cannot:
        with pytest.raises(rules.Unsupported, match=kind):
            rules.evaluate(Operation(kind, (), (0,)), [])


def test_a_strided_convolution_is_the_sum_over_its_window() -> None:
    x, kernel = X[:1, :2], RANDOM.normal(size=(3, 2, 3, 2))
    found = run("conv", [x, kernel], {**SPACE, "groups": 1, "kernel": "OIHW"})
    padded = np.pad(x, ((0, 0), (0, 0), (1, 0), (1, 1)))
    expected = np.zeros(found.shape)
    for o, i, j in np.ndindex(3, *found.shape[2:]):
        window = padded[0, :, 2 * i : 2 * i + 3, j : j + 3 : 2]
        expected[0, o, i, j] = np.sum(window * kernel[o])
    np.testing.assert_allclose(found, expected, atol=1e-13)


def test_layouts_and_kernels_of_both_frameworks_give_the_same_convolution() -> None:
    kernel = RANDOM.normal(size=(4, 6, 3, 2))
    first = run("conv", [X, kernel], {**SPACE, "groups": 1, "kernel": "OIHW"})
    last = run(
        "conv",
        [X.transpose(0, 2, 3, 1), kernel.transpose(2, 3, 1, 0)],
        {**SPACE, "groups": 1, "kernel": "HWIO", "layout": "channels_last"},
    )
    np.testing.assert_allclose(last.transpose(0, 3, 1, 2), first, atol=1e-13)


GAMMA, BETA = RANDOM.normal(size=6), RANDOM.normal(size=6)


@pytest.mark.parametrize(
    ("kind", "attributes", "axes", "shape"),
    [
        ("group_norm", {"groups": 3, "epsilon": 1e-3, "axis": 1}, (2, 3, 4), (2, 3, 2, 5, 4)),
        ("batch_norm", {"epsilon": 1e-3, "axis": 1, "training": True}, (0, 2, 3), X.shape),
    ],
)
def test_a_norm_is_its_formula(kind: str, attributes: dict, axes: tuple[int, ...], shape: tuple[int, ...]) -> None:
    found = run(kind, [X, GAMMA, BETA], {**attributes, "has": ["x", "gamma", "beta"]})
    x = X.reshape(shape)
    y = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-3)
    expected = y.reshape(X.shape) * GAMMA[:, None, None] + BETA[:, None, None]
    np.testing.assert_allclose(found, expected, atol=1e-13)


def test_parts_of_a_norm_have_roles_and_new_numbers() -> None:
    operation = Operation("group_norm", (0, 1, 2), (3,), {"groups": 2, "epsilon": 1e-5, "axis": 1}, layer="a.b")
    numbers = iter(range(10, 100))
    parts = rules.lower(operation, lambda: next(numbers), lambda number: X.shape if number == 0 else (6,))
    assert {part.role for part in parts} >= {"mean", "variance", "epsilon", "root", "scale", "shift"}
    assert {part.fused for part in parts} == {"group_norm"} and {part.layer for part in parts} == {"a.b"}
    assert parts[-1].outputs == (3,)


def test_a_masked_row_of_attention_is_zero_and_a_causal_one_sees_the_past() -> None:
    q, k, v = (RANDOM.normal(size=(1, 2, 3, 4)) for _ in range(3))
    mask = np.array([[True, False, True], [False, False, False], [True, True, True]])
    seen = run(
        "attention", [q, k, v, mask], {"scale": 0.5, "causal": False, "has": ["q", "k", "v", "mask"], "boolean": 1}
    )
    assert np.all(seen[:, :, 1] == 0) and np.isfinite(seen).all()
    causal = run("attention", [q, k, v], {"scale": 0.5, "causal": True})
    np.testing.assert_allclose(causal[:, :, 0], v[:, :, 0], atol=1e-14)


def test_an_epsilon_written_by_hand_is_recognised() -> None:
    operations = [
        Operation("variance", (0,), (1,), {"axes": [1], "keepdims": True, "ddof": 0}),
        Operation("add", (1,), (2,), {"scalar": 1e-5, "reverse": False}),
        Operation("sqrt", (2,), (3,)),
        Operation("add", (3,), (4,), {"scalar": 1e-5, "reverse": False}),
        Operation("tanh", (4,), (5,)),
    ]
    assert [operation.role for operation in rules.roles(operations)] == ["", "epsilon", "", "", ""]


def test_numbers_are_computed_in_the_type_of_the_inputs() -> None:
    wide = run("sin", [np.array([987.65])], {})
    narrow = run("sin", [np.array([987.65], np.float32)], {})
    assert narrow.dtype == np.float32 and 0 < abs(float(narrow[0]) - float(wide[0])) < 1e-4
    assert math.isclose(float(narrow[0]), math.sin(np.float32(987.65)), abs_tol=1e-7)
