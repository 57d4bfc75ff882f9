"""Outputs of two models: which belong together, and one that is returned before the other side is finished."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_core.parity.diff.comparison import compare
from diffusion_core.parity.diff.findings import Comparison
from diffusion_core.parity.diff.recording import Pass, Recording
from tests.diff.written import Tape, both

X = np.random.default_rng(3).normal(size=(6, 5))


def compared(a: Pass, b: Pass) -> Comparison:
    return compare(*(Recording(f"{name}.py:build", "numpy", {"float64": each}) for name, each in (("a", a), ("b", b))))


def chain(tape: Tape) -> int:
    """A linear layer and as many of the steps behind it as are asked for."""
    h = tape.linear(tape.input(X), "head", 4)
    for kind in tape.get("steps", ()):
        h = tape(kind, h, **({"axis": -1} if kind == "softmax" else {}))
    return h


@pytest.mark.parametrize("last", ["softmax", "tanh", "relu"])
@pytest.mark.parametrize("side", ["a", "b"])
def test_the_last_step_that_one_side_leaves_out_is_found(last: str, side: str) -> None:
    steps = {"a": {"steps": ("sigmoid",)}, "b": {"steps": ("sigmoid",)}}
    steps[side] = {"steps": ("sigmoid", last)}
    a, b = both(chain, steps["a"], steps["b"])
    result = compared(a, b)
    if last == "relu":  # of a sigmoid it changes nothing
        assert result.equal
        return
    (finding,) = result.findings
    assert (finding.mode, finding.status) == ("forward", "verified")
    place = getattr(finding, side)
    assert place.kind == last


@pytest.mark.parametrize("side", ["a", "b"])
def test_layers_that_one_side_leaves_out_at_the_end_are_named(side: str) -> None:
    def model(tape: Tape) -> int:
        h = tape("tanh", tape.linear(tape.input(X), "body", 4))
        return tape("tanh", tape.linear(h, "head", 4)) if tape.get("head") else h

    options = {"a": {}, "b": {}, side: {"head": True}}
    (finding,) = compared(*both(model, options["a"], options["b"])).findings
    assert finding.kind in ("missing_end", "missing_steps") and finding.status == "verified"
    assert all(word in getattr(finding, f"{side}_does") for word in ("matmul", "tanh"))


def test_a_model_that_returns_its_input_differs_from_one_that_does_not() -> None:
    a, b = both(lambda tape: tape("tanh", tape.input(X)) if tape.get("does") else tape.input(X), {"does": True}, {})
    for result in (compared(a, b), compared(b, a)):
        (finding,) = result.findings
        assert finding.status == "verified" and not result.equal


def test_what_follows_from_an_early_output_is_not_disturbed() -> None:
    def model(tape: Tape) -> tuple[int, int]:
        h = tape.linear(tape.input(X), "body", 4)
        first = tape("softmax", h, axis=-1) if tape.get("softmax") else h
        return first, tape.linear(tape("tanh" if tape.get("tanh") else "sigmoid", h), "head", 4)

    for a, b in (({"softmax": True}, {"tanh": True}), ({"tanh": True}, {"softmax": True})):
        result = compared(*both(model, a, b))
        assert [finding.status for finding in result.findings] == ["verified", "verified"]


def test_outputs_in_another_order_are_equal_and_told() -> None:
    def model(tape: Tape) -> tuple[int, ...]:
        x = tape.input(X)
        outputs = (tape("tanh", x), tape("sigmoid", x))
        return outputs[::-1] if tape.get("back") else outputs

    result = compared(*both(model, {}, {"back": True}))
    assert result.equal and max(result.outputs["0"].values()) == 0
    assert any("another order" in note for note in result.notes)


def test_numbers_that_are_not_finite_are_told() -> None:
    result = compared(*both(lambda tape: tape("log", tape.input(np.array([[-1.0, 1.0, 2.0, 4.0]]))), {}, {}))
    assert result.equal and "numbers of the output '0' are NaN or infinite: 25% in A and 25% in B" in result.notes


@pytest.mark.parametrize("side", ["a", "b"])
def test_an_output_that_only_one_side_returns_is_told(side: str) -> None:
    def model(tape: Tape) -> tuple[int, ...]:
        x = tape.input(X)
        return (tape("tanh", x), tape("sigmoid", x)) if tape.get("two") else (tape("sigmoid", x),)

    options = {"a": {}, "b": {}, side: {"two": True}}
    result = compared(*both(model, options["a"], options["b"]))
    assert result.equal
    assert f"only {side.upper()} returns the output '0'" in result.notes


@pytest.mark.parametrize("side", ["a", "b"])
def test_an_output_that_is_found_early_behind_another_difference_is_told(side: str) -> None:
    def model(tape: Tape) -> int:
        h = tape("relu" if tape.get("relu") else "tanh", tape.linear(tape.input(X), "body", 4))
        y = tape.linear(h, "head", 4)
        return tape("log_softmax", y, axis=-1) if tape.get("more") else y

    options = {"a": {"relu": True}, "b": {}}
    options[side] = {**options[side], "more": True}
    first, last = compared(*both(model, options["a"], options["b"])).findings
    assert (first.kind, last.status) == ("activation", "verified")
    assert "log softmax" in getattr(last, f"{side}_does")


def test_a_side_that_computes_in_less_than_float32_is_told() -> None:
    def recording(step: float) -> Recording:
        passes = {}
        for name, dtype in (("float64", np.float64), ("float32", np.float32)):
            tape = Tape()
            y = tape("exp", tape.input(X.astype(dtype)))
            if name == "float32":
                tape.values[y] = tape.values[y] * np.float32(1 + step)
            passes[name] = tape.record(y, name=name)
        return Recording("net.py:build", "numpy", passes)

    result = compare(recording(0.0), recording(3e-3))
    assert result.equal and any("B computes parts in less than float32" in note for note in result.notes)
    assert not compare(recording(3e-3), recording(3e-3)).notes


def test_sides_without_a_weight_in_common_are_told_how_to_copy_them() -> None:
    def model(tape: Tape) -> int:
        rng = np.random.default_rng(tape.get("seed", 0))
        h = tape("matmul", tape.input(X), tape.parameter("w", rng.normal(size=(5, 4))))
        return tape("matmul", tape("tanh", h), tape.parameter("v", rng.normal(size=(4, 3))))

    assert any("--copy-weights" in note for note in compared(*both(model, {}, {"seed": 1})).notes)
    assert not compared(*both(model, {}, {})).notes


def test_a_parameter_with_other_numbers_is_named() -> None:
    def model(tape: Tape) -> int:
        w = np.random.default_rng(1).normal(size=(5, 4))
        return tape("tanh", tape("matmul", tape.input(X), tape.parameter("w", w + tape.get("more", 0.0))))

    (finding,) = compared(*both(model, {}, {"more": 0.3 * np.eye(5)[:, :4]})).findings
    assert (finding.kind, finding.status) == ("parameter", "verified")
    assert "w" in (finding.a.parameter, finding.b.parameter)


IMAGE = np.random.default_rng(4).normal(size=(2, 4, 4, 4))


@pytest.mark.parametrize(
    ("axes", "shape", "usual"),
    [
        ((0, 1, 2, 3), (2, 4, 4, 4), True),
        ((0, 2, 3, 1), (2, 4, 4, 4), True),  # channels last
        ((1, 0, 2, 3), (4, 2, 4, 4), True),
        ((0, 1, 3, 2), (2, 4, 4, 4), False),  # an image turned round its diagonal
        ((0, 1, 2, 3), (2, 64), True),
        ((0, 2, 3, 1), (2, 64), False),  # flattened in another order
    ],
)
def test_an_output_of_the_same_numbers_in_another_order_is_a_difference(axes, shape, usual) -> None:
    def model(tape: Tape) -> int:
        y = tape("tanh", tape.input(IMAGE))
        y = tape("transpose", y, axes=list(tape.get("axes", (0, 1, 2, 3))))
        flat = (2, 64) if shape == (2, 64) else tape.values[y].shape
        return tape("reshape", y, shape=list(flat))

    result = compared(*both(model, {}, {"axes": axes}))
    assert result.equal == usual
    if not usual:
        (finding,) = result.findings
        assert (finding.kind, finding.status) == ("output_order", "verified")
