"""Where two sides part and why: several differences one behind the other, other forms of one formula, masks."""

from __future__ import annotations

import numpy as np
import pytest
from written import Tape, both, weights

from diffusion_core.parity.diff import operations as rules
from diffusion_core.parity.diff.comparison import compare, compare_pass
from diffusion_core.parity.diff.graph import to_graph
from diffusion_core.parity.diff.recording import Operation, Recording

X = weights("partings x", 4, 6)
STEPS = weights("partings steps", 4, 3, 6)
IDS = np.array([[3, 1, 0], [2, 0, 0], [1, 1, 0], [4, 3, 0]])


def norm(tape: Tape) -> int:
    """A layer norm in one of two forms, behind a sum whose terms may be scaled."""
    x = tape.input(X)
    y = tape.linear(tape("multiply", x, scalar=tape.get("factor")) if tape.get("factor") else x, "in", 6)
    y = tape("add", y, x)
    mean = tape("mean", y, axes=[1], keepdims=True)
    variance = tape("variance", y, axes=[1], keepdims=True, ddof=0)
    scale, shift = tape.parameter("scale", weights("scale", 6)), tape.parameter("shift", weights("shift", 6))
    root = tape("sqrt", tape("add", variance, scalar=tape.get("epsilon", 1e-5)))
    if tape.get("folded"):
        factor = tape("multiply", tape("reciprocal", root), scale)
        moved = tape("multiply", tape("negative", mean), factor)
        y = tape("add", tape("multiply", y, factor), tape("add", moved, shift))
    else:
        y = tape("add", tape("multiply", tape("divide", tape("subtract", y, mean), root), scale), shift)
    return tape.linear(y, "out", 3)


def test_a_norm_in_its_other_form_is_the_same() -> None:
    a, b = both(norm, {}, {"folded": True})
    compared = compare_pass(a, b, None, "forward")
    assert not compared.findings
    graph = to_graph(b)
    (output,) = b.outputs.values()
    assert np.allclose(graph.values[output], b.values[output], rtol=1e-13)
    assert "negative" not in {operation.kind for operation in graph.operations}


@pytest.mark.parametrize(("options", "kind"), [({"epsilon": 1e-3}, "norm_epsilon"), ({"factor": 4.0}, "factor")])
def test_a_difference_before_a_norm_in_its_other_form_is_explained(options: dict, kind: str) -> None:
    (finding,) = compare_pass(*both(norm, {}, {"folded": True, **options}), None, "forward").findings
    assert (finding.kind, finding.status) == (kind, "verified")


def test_what_another_operation_reads_is_left_in_its_form() -> None:
    two = {"scalar": None, "reverse": False}
    operations = [
        Operation("multiply", (0, 1), (2,), two),
        Operation("multiply", (3, 1), (4,), two),
        Operation("subtract", (5, 4), (6,), two),
        Operation("add", (2, 6), (7,), two),
        Operation("tanh", (2,), (8,)),
    ]
    assert rules.one_form(operations, iter(range(9, 99)).__next__, frozenset({7, 8})) == operations
    changed = rules.one_form(operations[:-1], iter(range(9, 99)).__next__, frozenset({7}))
    assert [operation.kind for operation in changed[-3:]] == ["subtract", "multiply", "add"]


def cell(tape: Tape) -> int:
    """A recurrent cell; its gates may be exchanged, and steps whose input is 0 skipped."""
    rows = tape("unstack", tape.input(STEPS.transpose(1, 0, 2)), axis=0)
    mask = tape("not_equal", tape.input(IDS), scalar=0, reverse=False) if tape.get("skips") else tape.input(IDS)
    u, v = tape.parameter("u", weights("u", 6, 10)), tape.parameter("v", weights("v", 5, 10))
    h = c = tape.constant(np.zeros((4, 5)))
    for t, x in enumerate(rows):
        gates = tape("split", tape("add", tape("matmul", x, u), tape("matmul", h, v)), axis=1, sizes=[5, 5])
        i, g = gates[::-1] if tape.get("exchanged") else gates
        c_new = tape("add", c, tape("multiply", tape("sigmoid", i), tape(tape.get("inner", "tanh"), g)))
        h_new = tape(tape.get("inner", "tanh"), c_new)
        if tape.get("skips"):
            seen = tape("slice", mask, start=[0, t], stop=[4, t + 1], step=[1, 1])
            c_new = tape("where", seen, c_new, c, scalars=[None, None])
            h_new = tape("where", seen, h_new, h, scalars=[None, None])
        h, c = h_new, c_new
    return tape.linear(h, "out", 2)


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ({"inner": "relu"}, {"activation"}),
        ({"exchanged": True}, {"gate_order"}),
        ({"skips": True}, {"implicit_mask", "mask_missing"}),
    ],
)
def test_one_mistake_in_every_step_is_one_finding(options: dict, kinds: set[str]) -> None:
    first, *others = compare_pass(*both(cell, {}, options), None, "forward").findings
    assert first.kind in kinds and first.status == "verified" and not others


def rotary(tape: Tape) -> int:
    """Scores of queries and keys whose features are turned in pairs by an angle that grows with the position."""
    x, rates = tape.input(STEPS), np.array([1.0, 0.3, 0.1])
    angles = np.arange(3.0)[:, None] * rates
    cos, sin = tape.constant(np.cos(angles)), tape.constant(np.sin(angles))
    turned = []
    for name in ("q", "k"):
        y = tape.linear(x, name, 6, bias=False)
        if tape.get("neighbours"):
            p, q = (tape("slice", y, start=[0, 0, i], stop=[4, 3, 6], step=[1, 1, 2]) for i in (0, 1))
        else:
            p, q = tape("split", y, axis=2, sizes=[3, 3])
        real = tape("subtract", tape("multiply", p, cos), tape("multiply", q, sin))
        imaginary = tape("add", tape("multiply", q, cos), tape("multiply", p, sin))
        if tape.get("neighbours"):
            turned.append(tape("reshape", tape("stack", real, imaginary, axis=3), shape=[4, 3, 6]))
        else:
            turned.append(tape("concat", real, imaginary, axis=2))
    return tape.linear(tape("softmax", tape("einsum", *turned, equation="bqd,bkd->bqk"), axis=2), "out", 2)


@pytest.mark.parametrize("order", [1, -1])
def test_the_pairs_of_a_rotary_position_are_found_in_queries_and_keys(order: int) -> None:
    (finding,) = compare_pass(*both(rotary, *({}, {"neighbours": True})[::order]), None, "forward").findings
    assert (finding.kind, finding.status) == ("rotary_order", "verified")


def heads(tape: Tape) -> tuple[int, int]:
    """Two branches of one value, with a mask that may be left out in both."""
    x = tape.input(X)
    hidden = tape.constant(np.array([0.0, 0, 0, -1e4, 0, 0]))
    outputs = []
    for name in ("first", "second"):
        scores = tape.linear(x, f"{name}.scores", 6)
        if tape.get("mask", True):
            scores = tape("add", scores, hidden)
        outputs.append(tape.linear(tape("softmax", scores, axis=1), f"{name}.out", 3))
    return tuple(outputs)


def test_what_is_missing_in_two_branches_is_told_once_with_both_places() -> None:
    first, *others = compare_pass(*both(heads, {}, {"mask": False}), None, "forward").findings
    assert (first.kind, first.status, len(first.also)) == ("mask_missing", "verified", 1) and not others


def test_outputs_of_other_names_in_another_order_are_the_same() -> None:
    def model(tape: Tape) -> tuple[int, int]:
        x = tape.input(X)
        y, z = tape.linear(x, "y", 5), tape.linear(x, "z", 2)
        return (z, y) if tape.get("turned") else (y, z)

    a, b = both(model, {}, {"turned": True})
    sides = [Recording(f"{name}.py:build", "numpy", {"float64": one}) for name, one in (("a", a), ("b", b))]
    assert compare(*sides).equal
