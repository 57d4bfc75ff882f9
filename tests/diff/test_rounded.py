"""Weights that follow from others and were rounded to float32: equal to that rounding, and no more."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_core.parity.diff.comparison import compare
from diffusion_core.parity.diff.findings import Comparison
from diffusion_core.parity.diff.recording import Pass, Recording
from tests.diff.written import Tape, weights

X = np.random.default_rng(3).normal(size=(6, 5))


def narrow(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32).astype(np.float64)


W, V = narrow(weights("w", 5, 8)), narrow(weights("v", 8, 4))
MEAN, SCALE, VARIANCE = (narrow(weights(name, 8)) for name in ("mean", "scale", "variance"))


def net(folded: bool, epsilon: float = 1e-5, plain: bool = False) -> Pass:
    """A linear layer, a norm with running statistics and another layer; the norm may be folded into the first."""
    tape, variance = Tape(), np.square(VARIANCE) + 0.1
    x, factor = tape.input(X), SCALE / np.sqrt(narrow(variance) + epsilon)
    if folded:
        h = tape("matmul", x, tape.parameter("w", narrow(W * factor)))
        h = tape("add", h, tape.parameter("b", narrow(-MEAN * factor)))
    else:
        h = tape("subtract", tape("matmul", x, tape.parameter("w", W)), tape.parameter("mean", MEAN))
        root = tape("sqrt", tape("add", tape.parameter("variance", narrow(variance)), scalar=epsilon))
        h = tape("multiply", tape("divide", h, root), tape.parameter("scale", SCALE))
    v = tape.constant(V) if plain else tape.parameter("v", V)
    return tape.record(tape("matmul", tape("tanh", h), v))


def scaled(factor: float) -> Pass:
    tape = Tape()
    h = tape("matmul", tape.input(X), tape.parameter("w", narrow(W / factor)))
    return tape.record(tape("tanh", tape("multiply", h, scalar=factor)))


def compared(a: Pass, b: Pass) -> Comparison:
    return compare(*(Recording(f"{n}.py:build", "numpy", {p.name: p}) for n, p in (("a", a), ("b", b))))


@pytest.mark.parametrize("order", [1, -1])
def test_a_norm_that_was_folded_in_float32_is_equal_to_that_rounding(order: int) -> None:
    result = compared(*(net(False), net(True))[::order])
    assert result.equal and all(finding.kind == "float32_weights" for finding in result.findings)


@pytest.mark.parametrize("order", [1, -1])
def test_another_epsilon_is_found_next_to_a_folded_norm(order: int) -> None:
    findings = [f for f in compared(*(net(False), net(True, epsilon=1e-3))[::order]).findings if not f.benign]
    assert [(f.kind, f.status) for f in findings] == [("norm_epsilon", "verified")]


def test_a_factor_that_a_later_operation_takes_back_is_equal() -> None:
    assert compared(scaled(1.0), scaled(3.0)).equal and compared(scaled(3.0), scaled(7.0)).equal
