"""Dropouts differ by chance: what follows from them is compared all the same, and which belong together."""

from __future__ import annotations

import numpy as np
import pytest
from written import Tape

from diffusion_core.parity.diff.comparison import compare
from diffusion_core.parity.diff.recording import Recording

RNG = np.random.default_rng(0)
X, W, V = RNG.normal(size=(6, 8)), RNG.normal(size=(8, 10)), RNG.normal(size=(10, 5))


def drop(tape, x, rate, random):
    """Drop as PyTorch does (a scaled mask) or as TensorFlow does (scale, then choose)."""
    mask = tape.draw(random.uniform(size=np.shape(tape.values[x])))
    keep = tape("greater_equal", mask, scalar=rate, reverse=False)
    if tape.options.get("tf"):
        scaled = tape("divide", x, scalar=1 - rate, reverse=False)
        return tape("where", keep, scaled, scalars=[None, 0.0])
    kept = tape("divide", tape("cast", keep, dtype="float64"), scalar=1 - rate, reverse=False)
    return tape("multiply", x, kept)


def side(seed, rate=0.3, at="middle", slope=0.1, tf=False, noise=False):
    """Two layers with a dropout, and a leaky ReLU behind it; B is written as TensorFlow writes it."""
    random, tape = np.random.default_rng(seed), Tape(tf=tf)
    x, w, v = tape.input(X), tape.parameter("w", W.T.copy() if tf else W), tape.parameter("v", V)
    h = tape("matmul", x, tape("transpose", w, axes=[1, 0]) if tf else w, transpose_a=False, transpose_b=False)
    h = tape("tanh", h)
    if at == "middle":
        h = drop(tape, h, rate, random)
    if noise:
        number = tape.draw(random.normal(size=(6, 10)))
        tape.operations[-1].attributes["distribution"] = "normal"
        h = tape("add", h, tape("multiply", number, scalar=0.3, reverse=False))
    h = tape("leaky_relu", h, slope=slope)
    y = tape("matmul", h, v, transpose_a=False, transpose_b=False)
    if at == "end":
        y = drop(tape, y, rate, random)
    return Recording("m.py:build", "torch 2", {"train64": tape.record(y, name="train64")})


def found(a, b):
    return [(f.kind, f.status) for f in compare(a, b).findings]


@pytest.mark.parametrize("tf", [False, True])
@pytest.mark.parametrize("options", [{}, {"noise": True}, {"at": "none", "noise": True}, {"at": "end"}])
def test_equal_models_that_draw_are_equal(options, tf):
    assert found(side(1, **options), side(2, tf=tf, **options)) == []


@pytest.mark.parametrize(
    "options,kind",
    [({"rate": 0.5}, "dropout_rate"), ({"at": "end"}, "dropout_position"), ({"at": "none"}, "dropout_missing")],
)
def test_a_dropout_that_differs_is_the_only_difference(options, kind):
    assert found(side(1), side(2, tf=True, **options)) == [(kind, "verified")]
    assert found(side(1, tf=True, **options), side(2)) == [(kind, "verified")]


@pytest.mark.parametrize("options", [{}, {"noise": True}])
def test_what_differs_behind_a_draw_is_found(options):
    ((kind, status),) = found(side(1, **options), side(2, slope=0.2, tf=True, **options))
    assert (kind, status) == ("activation_slope", "verified")
