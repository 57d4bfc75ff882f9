"""Gradients: a cut, a frozen parameter and a factor are found where they are; equal models have no finding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diffusion_core.parity.diff import operations as rules
from diffusion_core.parity.diff.causes.gradients import _turned
from diffusion_core.parity.diff.comparison import compare
from diffusion_core.parity.diff.recording import Operation, Pass, Recording

RANDOM = np.random.default_rng(0)
X, W, V = RANDOM.normal(size=(6, 5)), RANDOM.normal(size=(5, 4)), RANDOM.normal(size=(4, 4))
REVERSE = {"scalar": 1.0, "reverse": True}


def record(cut: bool = False, frozen: bool = False, factor: float = 1.0, swapped: bool = False) -> Recording:
    """Record ``x w * (1 - softmax(x w) v)``, whose gate may be cut from the gradient."""
    operations = [
        Operation("matmul", (0, 1), (3,), layer="body"),
        Operation("softmax", (3,), (4,), {"axis": 1}, layer="gate"),
        *([Operation("stop_gradient", (4,), (5,), layer="gate.cut", source="model.py:7")] if cut else []),
        Operation("matmul", (5 if cut else 4, 2), (6,), layer="gate.out"),
        Operation("subtract", (6,), (7,), REVERSE, layer="gate"),
        Operation("multiply", (7, 3) if swapped else (3, 7), (8,), layer="head"),
    ]
    values = {0: X, 1: W, 2: V}
    for operation in operations:
        outputs = rules.evaluate(operation, [values[n] for n in operation.inputs])
        values.update(zip(operation.outputs, outputs, strict=True))
    y = values[8]
    gradients = {8: (y + np.cos(2 * y) / 2) / y.size}
    for operation in reversed(operations):
        (output,) = operation.outputs
        if operation.kind == "stop_gradient" or output not in gradients:
            continue
        inputs = [values[n] for n in operation.inputs]
        sent = rules.vjp(operation, inputs, [values[output]], [gradients[output]])
        for number, gradient in zip(operation.inputs, sent, strict=True):
            gradients[number] = gradients.get(number, 0) + gradient * (factor if number == 6 else 1.0)
    if frozen:
        del gradients[2]
    parameters = {"w": 1, "v": 2}
    names = frozenset(["v"]) if frozen else frozenset()
    one = Pass("float64", tuple(operations), values, (0,), {"0": 8}, parameters, frozen=names, gradients=gradients)
    return Recording("model.py:build", "numpy", {"float64": one})


def test_equal_models_have_equal_gradients() -> None:
    result = compare(record(), record(swapped=True))
    assert result.equal and result.compared["gradient"] == "equal to rounding"


def test_a_parameter_that_both_sides_freeze_needs_no_gradient() -> None:
    """TensorFlow has a gradient of what it watches, PyTorch none of what requires none."""
    frozen = record(frozen=True)
    one = replace(record().passes["float64"], frozen=frozenset(["v"]))
    assert compare(frozen, replace(frozen, passes={"float64": one})).equal


@pytest.mark.parametrize("side", ["a", "b"])
def test_a_cut_gradient_is_found_where_it_is_cut(side: str) -> None:
    sides = {"a": record(), "b": record(), side: record(cut=True)}
    (finding,) = compare(sides["a"], sides["b"]).findings
    assert (finding.mode, finding.kind, finding.status) == ("gradient", "stop_gradient", "verified")
    assert getattr(finding, side).layer == "gate.cut"
    assert getattr(finding, f"{side}_does") == "the gradient is cut"


def test_a_frozen_parameter_is_named() -> None:
    (finding,) = compare(record(frozen=True), record()).findings
    assert (finding.kind, finding.a.parameter, finding.a_does) == ("frozen_parameter", "v", "the parameter is frozen")


def test_a_factor_of_a_gradient_is_found_with_its_value() -> None:
    (finding,) = compare(record(), record(factor=3.0)).findings
    assert (finding.kind, finding.status) == ("gradient_factor", "verified")
    assert "3 times" in finding.b_does


def test_a_constant_in_float32_in_a_gradient_does_not_make_models_unequal() -> None:
    result = compare(record(), record(factor=1 + 3e-8))
    (finding,) = result.findings
    assert (finding.kind, finding.benign) == ("float32_constant", True)
    assert result.equal and result.compared["gradient"] == "equal to rounding"


@pytest.mark.parametrize("side", ["a", "b"])
def test_a_cut_is_found_beside_a_constant_in_float32(side: str) -> None:
    sides = {"a": record(), "b": record(), side: record(cut=True, factor=1 + 3e-8)}
    (finding,) = compare(sides["a"], sides["b"]).findings
    assert (finding.kind, finding.status, finding.benign) == ("stop_gradient", "verified", False)


def tied(untied: bool = False, names: int = 1) -> Recording:
    """Record ``tanh(x w) w^T`` with one variable w under one name or two, or with two copies of it."""
    operations = [
        Operation("matmul", (0, 1), (3,), layer="embed"),
        Operation("tanh", (3,), (4,), layer="body"),
        Operation("transpose", (2 if untied else 1,), (5,), {"axes": [1, 0]}, layer="head"),
        Operation("matmul", (4, 5), (6,), layer="head"),
    ]
    values = {0: X, 1: W, **({2: W.copy()} if untied else {})}
    for operation in operations:
        values[operation.outputs[0]] = rules.evaluate(operation, [values[n] for n in operation.inputs])[0]
    y = values[6]
    gradients = {6: (y + np.cos(2 * y) / 2) / y.size}
    for operation in reversed(operations):
        (output,) = operation.outputs
        sent = rules.vjp(operation, [values[n] for n in operation.inputs], [values[output]], [gradients[output]])
        for number, gradient in zip(operation.inputs, sent, strict=True):
            gradients[number] = gradients.get(number, 0) + gradient
    parameters = {"embed.w": 1, **({"head.w": 2 if untied else 1} if untied or names > 1 else {})}
    one = Pass("float64", tuple(operations), values, (0,), {"0": 6}, parameters, gradients=gradients)
    return Recording("model.py:build", "numpy", {"float64": one})


@pytest.mark.parametrize("a,b", [(1, 2), (2, 1), (2, 2)])
def test_a_variable_with_two_names_has_one_gradient(a: int, b: int) -> None:
    assert compare(tied(names=a), tied(names=b)).findings == ()


@pytest.mark.parametrize("names", [1, 2])
def test_a_copy_where_the_other_side_ties_is_found(names: int) -> None:
    (finding,) = compare(tied(untied=True), tied(names=names)).findings
    assert (finding.kind, finding.status, finding.a.layer) == ("untied_weights", "verified", "head")
    (finding,) = compare(tied(names=names), tied(untied=True)).findings
    assert (finding.kind, finding.status, finding.b.layer) == ("untied_weights", "verified", "head")


def own_gradient(right: bool) -> Recording:
    """Record ``silu(x w)`` computed inside of a function with its own gradient."""
    operations = [
        Operation("matmul", (0, 1), (2,), layer="body"),
        Operation("sigmoid", (2,), (3,), layer="act"),
        Operation("multiply", (2, 3), (4,), layer="act"),
    ]
    values = {0: X, 1: W}
    for operation in operations:
        (values[operation.outputs[0]],) = rules.evaluate(operation, [values[n] for n in operation.inputs])
    x, gate, y = values[2], values[3], values[4]
    sent = (y + np.cos(2 * y) / 2) / y.size
    inner = sent * gate * (1 + (x * (1 - gate) if right else 1 - gate))
    gradients = {4: sent, 2: inner, 1: X.T @ inner}
    one = Pass("float64", tuple(operations), values, (0,), {"0": 4}, {"w": 1}, gradients=gradients)
    return Recording("model.py:build", "numpy", {"float64": one})


@pytest.mark.parametrize("side", ["a", "b"])
def test_a_gradient_that_is_not_that_of_the_forward_pass_is_found_on_its_side(side: str) -> None:
    sides = {"a": own_gradient(True), "b": own_gradient(True), side: own_gradient(False)}
    (finding,) = compare(sides["a"], sides["b"]).findings
    assert (finding.kind, finding.status, finding.a.layer, finding.b.layer) == (
        "custom_gradient",
        "verified",
        "act",
        "act",
    )
    assert "not that of the forward pass" in getattr(finding, f"{side}_does")


def test_a_function_with_the_right_gradient_is_equal() -> None:
    assert compare(own_gradient(True), own_gradient(True)).equal


@pytest.mark.parametrize("frozen", [False, True])
def test_a_buffer_in_place_of_a_parameter_is_named_unless_the_other_side_freezes_it(frozen: bool) -> None:
    made = record(frozen=True)
    one = made.passes["float64"]
    one = replace(one, parameters={"w": 1}, buffers={"v": 2}, frozen=frozenset())
    result = compare(record(frozen=frozen), replace(made, passes={"float64": one}))
    if frozen:
        assert result.equal
    else:
        (finding,) = result.findings
        assert (finding.kind, finding.b.parameter, finding.b_does) == (
            "frozen_parameter",
            "v",
            "it is a buffer, not a parameter",
        )


def test_cotangents_of_zeros_and_of_symmetric_arrays_may_be_turned() -> None:
    mine = RANDOM.normal(size=(3, 3))
    for value in (np.zeros((3, 3)), np.eye(3)):
        assert any(np.array_equal(each, mine) for each in _turned(value, mine, [mine.T]))
    assert not any(np.allclose(each, mine) for each in _turned(np.zeros((3, 3)), mine, [2 * mine]))
    assert not list(_turned(RANDOM.normal(size=(3, 3)), mine, [mine.T]))


def embedded(change: str = "") -> Recording:
    """Record ``tanh(table[ids] w)``; the gradient of rows may be divided by how often they are read, or left out."""
    random = np.random.default_rng(4)
    ids, table, w = np.array([3, 0, 3, 5, 3, 0]), random.normal(size=(7, 4)), random.normal(size=(4, 3))
    operations = (
        Operation("gather", (1, 0), (3,), {"axis": 0}, layer="embed"),
        Operation("matmul", (3, 2), (4,), layer="head"),
        Operation("tanh", (4,), (5,), layer="head"),
    )
    x = table[ids]
    values = {0: ids, 1: table, 2: w, 3: x, 4: x @ w, 5: np.tanh(x @ w)}
    y = values[5]
    last = (y + np.cos(2 * y) / 2) / y.size
    inner = last * (1 - y**2)
    rows = np.zeros_like(table)
    np.add.at(rows, ids, inner @ w.T)
    if change == "frequency":
        rows /= np.maximum(np.bincount(ids, minlength=7), 1)[:, None]
    elif change == "padding":
        rows[0] = 0
    gradients = {5: last, 4: inner, 3: inner @ w.T, 2: x.T @ inner, 1: rows}
    one = Pass("float64", operations, values, (0,), {"0": 5}, {"table": 1, "w": 2}, gradients=gradients)
    return Recording("model.py:build", "numpy", {"float64": one})


@pytest.mark.parametrize(("change", "kind"), [("frequency", "gradient_scale"), ("padding", "padding_gradient")])
@pytest.mark.parametrize("side", ["a", "b"])
def test_rows_whose_gradient_is_changed_are_found_at_the_table(change: str, kind: str, side: str) -> None:
    sides = {"a": embedded(), "b": embedded(), side: embedded(change)}
    (finding,) = compare(sides["a"], sides["b"]).findings
    assert (finding.kind, finding.status, finding.a.layer) == (kind, "verified", "embed")
    assert ("divided" if change == "frequency" else "no gradient") in getattr(finding, f"{side}_does")
