"""Causes in what is connected with what: planted in small models, found and verified on either side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from diffusion_core.parity.diff.comparison import compare_pass
from tests.diff.written import Tape, both, weights

X = weights("x", 6, 8)
WORDS = np.random.default_rng(1).integers(2, 9, (3, 5))


def gated(tape: Tape) -> int:
    """Two blocks with a residual connection, gated in the manner of SwiGLU."""
    h = tape.input(X)
    for block in range(2):
        gate, up = (tape.linear(h, f"{block}.{name}", 12, bias=False) for name in ("gate", "up"))
        if tape.get("branch") == "up":
            gate, up = up, gate
        active = tape("silu", gate) if tape.get("fused") else tape("multiply", gate, tape("sigmoid", gate))
        product = tape("multiply", active, up) if tape.get("fused") else tape("multiply", up, active)
        h = tape("add", h, tape.linear(product, f"{block}.down", 8, bias=False))
    return h


def recurrent(tape: Tape) -> int:
    """Words, shifted by one behind a start word, are read by a gated recurrence that begins at a state."""
    words, first = tape.input(WORDS), tape.input(weights("state", 3, 4))
    if tape.get("shifted", True):
        start = tape.constant(np.ones((3, 1), WORDS.dtype))
        rest = tape("slice", words, start=[0, 0], stop=[3, 4], step=[1, 1])
        words = tape("concat", start, rest, axis=1)
    table = tape.parameter("table", weights("table", 9, 4))
    steps = tape("unstack", tape("gather", table, words, axis=0), axis=1)
    state = first = tape("tanh", first)
    kernel, inner = (tape.parameter(n, weights(n, 4, 4)) for n in ("kernel", "inner"))
    gates = tape.parameter("gates", weights("gates", 4, 4))
    for x in reversed(steps) if tape.get("backwards") else steps:
        z = tape("sigmoid", tape("matmul", state, gates))
        new = tape("tanh", tape("add", tape("matmul", x, kernel), tape("matmul", state, inner)))
        rest = tape("subtract", z, scalar=1, reverse=True)
        if tape.get("meaning") == "new":
            z, rest = rest, z
        state = tape("add", tape("multiply", z, state), tape("multiply", rest, new))
    return tape.linear(tape("add", state, first), "end", 3)


def rotary(tape: Tape) -> int:
    """Halves of the features, turned by angles that the code makes itself or has as a table."""
    h = tape.linear(tape.input(weights("sequence", 2, 5, 8)), "query", 8, bias=False)
    base = tape.get("base", 1e4)
    if tape.get("table"):
        angles = np.arange(5)[:, None] * base ** (-np.arange(4) / 4)
        cos, sin = tape.constant(np.cos(angles)), tape.constant(np.sin(angles))
    else:
        powers = tape("power", tape.constant(np.arange(4) / 4), scalar=base, reverse=True)
        places = tape("reshape", tape.constant(np.arange(5.0)), shape=[5, 1])
        angles = tape("divide", places, powers)
        cos, sin = tape("cos", angles), tape("sin", angles)
    one, other = tape("split", h, axis=2, sizes=[4, 4])
    first = tape("subtract", tape("multiply", one, cos), tape("multiply", other, sin))
    second = tape("add", tape("multiply", other, cos), tape("multiply", tape("negative", tape("negative", one)), sin))
    return tape.linear(tape("concat", first, second, axis=2), "out", 3)


def patches(tape: Tape) -> int:
    """Patches of an image, projected by a matrix or by a convolution of the same numbers."""
    kernel = weights("kernel", 7, 3, 2, 2)
    if tape.get("conv"):
        x = tape.input(weights("image", 2, 3, 4, 6))
        options = {"strides": [2, 2], "padding": [(0, 0), (0, 0)], "dilation": [1, 1], "groups": 1}
        y = tape("conv", x, tape.parameter("kernel", kernel), **options, layout="channels_first", kernel="OIHW")
        y = tape("transpose", tape("reshape", y, shape=[2, 7, 6]), axes=[0, 2, 1])
    else:
        x = tape.input(weights("image", 2, 3, 4, 6).transpose(0, 2, 3, 1))
        x = tape("reshape", x, shape=[2, 2, 2, 3, 2, 3])
        order = [0, 1, 3, 5, 2, 4] if tape.get("order") else [0, 1, 3, 2, 4, 5]
        x = tape("reshape", tape("transpose", x, axes=order), shape=[2, 6, 12])
        y = tape("matmul", x, tape.parameter("kernel", kernel.transpose(2, 3, 1, 0).reshape(12, 7)))
    return tape.linear(tape("tanh", y), "out", 3)


PLANTED = [
    (patches, {"conv": True}, {"order": True}, "patch_order"),
    (rotary, {"table": True}, {"base": 5e5}, "time_embedding_frequency"),
    (gated, {}, {"branch": "up"}, "activation_branch"),
    (gated, {"fused": True}, {"branch": "up"}, "activation_branch"),
    (recurrent, {}, {"meaning": "new"}, "gate_meaning"),
    (recurrent, {}, {"backwards": True}, "sequence_order"),
    (recurrent, {}, {"shifted": False}, "other_source|missing_steps"),
]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("model", "a", "b", "kind"), PLANTED, ids=[f"{p[0].__name__}-{p[3]}" for p in PLANTED])
def test_a_planted_fault_is_the_only_finding(
    model: Callable[[Tape], Any], a: dict[str, Any], b: dict[str, Any], kind: str, turned: bool
) -> None:
    found = compare_pass(*both(model, *((b, a) if turned else (a, b))), None, "forward").findings
    assert found[0].status == "verified", [(f.kind, f.a_does, f.b_does) for f in found]
    assert found[0].kind in kind.split("|")
    assert len(found) == 1


@pytest.mark.parametrize("model", [gated, recurrent, rotary, patches])
def test_equal_models_have_no_cause(model: Callable[[Tape], Any]) -> None:
    assert compare_pass(*both(model, {}, {"fused": True}), None, "forward").findings == ()
