"""Initial weights, and the check that weights fit a program."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.networks import Node, Program, UNetSpec, lower
from diffusion_core.networks.blocks import Conv, Embedding, Linear
from diffusion_core.networks.registry import Parameter
from diffusion_core.networks.weights import check_weights, initial_weights, parameter_count

PROGRAM = lower(UNetSpec(4, 1, 1, 4, (1, 2), 1, (2,), norm_groups=2, num_classes=3))


def test_weights_follow_the_manifest():
    weights = initial_weights(PROGRAM, 0)
    assert list(weights) == [p.name for p in PROGRAM.parameters]
    assert all(weights[p.name].shape == p.shape for p in PROGRAM.parameters)
    assert parameter_count(PROGRAM) == sum(value.size for value in weights.values())
    check_weights(PROGRAM, weights)


def test_an_initial_weight_depends_on_its_name_and_the_seed_alone():
    convs = {name: Conv(4, 4, 3, 1, (1, 1, 1, 1), True, 1.0) for name in "abc"}
    forwards = Program(tuple(Node(name, block, ("x",)) for name, block in convs.items()))
    backwards = Program(tuple(Node(name, convs[name], ("x",)) for name in "cb"))
    one, two = initial_weights(forwards, 0), initial_weights(backwards, 0)
    for name, value in two.items():
        np.testing.assert_array_equal(value, one[name])
    assert not np.any(one["a.weight"] == one["b.weight"])
    assert not np.any(one["a.weight"] == initial_weights(forwards, 1)["a.weight"])


def test_weights_are_those_of_their_stream():
    bound = math.sqrt(6 / (4 * 9 + 8 * 9))
    program = Program((Node("conv", Conv(4, 8, 3, 1, (1, 1, 1, 1), False, 1.0), ("x",)),))
    u = Stream(3, "weights/conv.weight").uniform([0], 8 * 4 * 9)[0]
    np.testing.assert_array_equal(initial_weights(program, 3)["conv.weight"], (bound * (2 * u - 1)).reshape(8, 4, 3, 3))


@pytest.mark.parametrize("scale", [1.0, 0.1])
@pytest.mark.parametrize("make, fans", [
    (lambda scale: Conv(16, 48, 3, 1, (1, 1, 1, 1), True, scale), (16 * 9, 48 * 9)),
    (lambda scale: Linear(64, 128, True, scale), (64, 128)),
], ids=["conv", "linear"])  # fmt: skip
def test_bounds_and_variances(make, fans, scale):
    weights = initial_weights(Program((Node("n", make(scale), ("x",)),)), 0)
    weight, variance = weights["n.weight"], scale / np.mean(fans)
    assert np.abs(weight).max() <= math.sqrt(3 * variance)
    # The variance of an estimate of a uniform's variance is 4/5 of the square, over n.
    assert abs(weight.var() / variance - 1) < 4 * math.sqrt(0.8 / weight.size)
    assert abs(weight.mean()) < 4 * math.sqrt(variance / weight.size)
    assert not weights["n.bias"].any()


def test_embeddings_are_standard_normal_and_scale_zero_is_zeros():
    weights = initial_weights(Program((Node("n", Embedding(100, 100), ("label",)),)), 0)
    assert abs(weights["n.weight"].var() - 1) < 4 * math.sqrt(2 / 10_000)
    zeros = initial_weights(Program((Node("n", Linear(3, 3, True, 0.0), ("x",)),)), 0)
    assert not any(value.any() for value in zeros.values())
    norms = {name: value for name, value in initial_weights(PROGRAM, 0).items() if "norm" in name}
    assert all(np.all(value == name.endswith("weight")) for name, value in norms.items())


def test_weights_are_drawn_in_float64_and_cast():
    wide, narrow = initial_weights(PROGRAM, 0), initial_weights(PROGRAM, 0, np.float32)
    for name, value in wide.items():
        assert narrow[name].dtype == np.float32
        np.testing.assert_array_equal(narrow[name], value.astype(np.float32))


def test_an_unknown_initial_distribution_is_refused():
    class Odd:
        def parameters(self):
            return (Parameter("weight", (1,), "o", ("cauchy", 1.0)),)

    program = object.__new__(Program)  # bypass the constructor, which refuses unregistered kinds
    object.__setattr__(program, "nodes", (Node("n", Odd(), ("x",)),))
    with pytest.raises(DuetError, match=r"n.weight: unknown initial distribution 'cauchy'"):
        initial_weights(program, 0)


@pytest.mark.parametrize("change, words", [
    (lambda w: w.pop("conv_in.bias"), r"file: conv_in.bias: the network needs shape \(4,\), but it is missing$"),
    (lambda w: w.update(extra=np.zeros(1)), r"file: extra: no parameter of the network has this name$"),
    (lambda w: w.update({"conv_in.weight": w["conv_in.weight"].transpose(1, 0, 2, 3)}),
     r"conv_in.weight: the network needs shape \(4, 1, 3, 3\), but \(1, 4, 3, 3\) was given$"),
    (lambda w: w.clear(), r"embed.dense0.weight: .* missing \(and \d+ more\)$"),
])  # fmt: skip
def test_a_mismatch_is_named(change, words):
    weights = initial_weights(PROGRAM, 0)
    change(weights)
    with pytest.raises(DuetError, match=words) as caught:
        check_weights(PROGRAM, weights, "file")
    assert str(caught.value).startswith("file: ")


def test_every_mismatch_is_counted():
    weights = initial_weights(PROGRAM, 0)
    del weights["conv_in.bias"]
    weights["embed.dense0.bias"] = np.zeros(3)
    weights["extra"] = np.zeros(1)
    words = r"conv_in.bias: .* missing; embed.dense0.bias: .* \(3,\) was given; extra: no parameter"
    with pytest.raises(DuetError, match=words):
        check_weights(PROGRAM, weights)


def test_a_wider_network_is_refused_by_its_first_weight():
    wider = lower(replace(UNetSpec(4, 1, 1, 8, (1, 2), 1, (2,), norm_groups=2, num_classes=3)))
    with pytest.raises(DuetError, match=r"embed.dense0.weight: the network needs shape \(32, 8\), but \(16, 4\)"):
        check_weights(wider, initial_weights(PROGRAM, 0))
