"""Causes in training mode: rules of running statistics and dropouts planted in NumPy, told apart and explained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diffusion_core.parity.diff.causes.training import training_findings
from diffusion_core.parity.diff.recording import Layer, Operation, Pass, Recording
from diffusion_core.parity.diff.weights import align

SHAPE = (3, 5, 4, 4)  # channels first
N = 48


def inputs():
    return np.random.default_rng(0).normal(1.0, 2.0, size=SHAPE)


def norm(
    last=False,
    momentum=0.1,
    biased=False,
    frozen=False,
    update=True,
    cumulative=False,
    statistic=None,
    fused=True,
    known=True,
    noise=0.0,
    name="train64",
):
    """Record a BatchNorm in training mode, in torch's names, or with channels last in Keras's."""
    random = np.random.default_rng(1)
    gamma, beta, mean, variance = (random.uniform(0.5, 1.5, size=5) for _ in range(4))
    dtype = np.float64 if name.endswith("64") else np.float32
    x = inputs()
    axes = (0, 2, 3)
    after, kept = [], [mean, variance]
    for k in range(2):
        batch = x + noise * k
        stats = [batch.mean(axis=axes), batch.var(axis=axes, ddof=0 if biased else 1)]
        if statistic:
            stats[1] = statistic(batch, axes)
        m = 1 / (k + 1) if cumulative else momentum
        moving = update and not frozen
        kept = [(1 - m) * s + m * b if moving else s for s, b in zip(kept, stats, strict=True)]
        after.append(kept)
    used = (mean, variance) if frozen else (x.mean(axis=axes), x.var(axis=axes))
    wide = (1, 5, 1, 1)
    y = gamma.reshape(wide) * (x - used[0].reshape(wide)) / np.sqrt(used[1].reshape(wide) + 1e-5) + beta.reshape(wide)
    if last:
        x, y = (np.ascontiguousarray(np.moveaxis(v, 1, -1)) for v in (x, y))
    names = ["bn/gamma", "bn/beta", "bn/moving_mean", "bn/moving_variance"]
    if not last:
        names = ["bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"]
    values = dict(enumerate(v.astype(dtype) for v in (x, gamma, beta, mean, variance, y)))
    attributes = {"epsilon": 1e-5, "axis": 3 if last else 1, "training": not frozen, "has": []}
    kind = "batch_norm" if fused else "opaque"
    operation = Operation(kind, (0, 1, 2, 3, 4), (5,), attributes, layer="bn", source="m.py:3", code="x = self.bn(x)")
    options = {"momentum": None if cumulative else momentum}
    layers = (Layer("bn", "BatchNorm", options, (0,), (5,)),) if known else ()
    record = Pass(
        name,
        (operation,),
        values,
        (0,),
        {"": 5},
        {names[0]: 1, names[1]: 2},
        {names[2]: 3, names[3]: 4},
        buffers_after=tuple(dict(zip(names[2:], (v.astype(dtype) for v in kept), strict=True)) for kept in after),
        layers=layers,
    )
    return Recording("m.py:build", "torch 2", {name: record})


def compare(a, b):
    name = next(iter(a.passes))
    return training_findings(a, b, align(a.passes[name], b.passes[name]))


PLANTED = {
    "opposite momentum": ({"momentum": 0.9}, "bn_momentum", "0.1 in Keras's"),
    "default of Keras": ({"momentum": 0.01}, "bn_momentum", "0.99 in Keras's"),
    "cumulative": ({"cumulative": True}, "bn_momentum", "cumulative"),
    "biased": ({"biased": True}, "bn_running_var_bias", "biased (n = 48)"),
    "frozen": ({"frozen": True}, "bn_frozen", "normalises with them"),
    "not updated": ({"update": False}, "bn_update_missing", "not updated"),
    "deviation": ({"statistic": lambda x, axes: x.std(axis=axes)}, "bn_statistics", "standard deviation"),
    "mean square": ({"statistic": lambda x, axes: np.mean(x * x, axis=axes)}, "bn_statistics", "mean square"),
}


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "by hand"])
@pytest.mark.parametrize("name", ["train64", "train32"])
@pytest.mark.parametrize("plant", PLANTED)
def test_a_planted_rule_of_running_statistics_is_found(plant, name, fused):
    options, kind, words = PLANTED[plant]
    found = compare(norm(name=name), norm(last=True, name=name, fused=fused, **options))
    assert [(f.kind, f.status) for f in found] == [(kind, "verified")]
    assert words in found[0].b_does
    assert (found[0].a.layer, found[0].b.source) == ("bn", "m.py:3")
    assert [f.kind for f in compare(norm(last=True, name=name, **options), norm(name=name))] == [kind]


@pytest.mark.parametrize("options", [{}, *({**o} for o, _, _ in PLANTED.values())])
def test_equal_rules_are_equal(options):
    assert compare(norm(**options), norm(last=True, fused=False, **options)) == []


def test_biased_variance_is_found_without_the_layers_input():
    found = compare(norm(known=False, fused=False), norm(last=True, known=False, fused=False, biased=True))
    assert [(f.kind, f.b_does) for f in found] == [("bn_running_var_bias", "the running variance is biased (n = 48)")]


def test_momentum_is_found_where_the_batch_is_drawn_anew():
    a, b = norm(noise=0.3), norm(last=True, noise=0.7, momentum=0.4)
    assert [f.kind for f in compare(a, b)] == ["bn_momentum"]
    assert compare(a, norm(last=True, noise=0.7)) == []


def function(**options):
    """Return a norm that is a function of tensors: it reads no buffer, no layer owns them, and their names are flat."""
    recording = norm(known=False, **options)
    record = recording.passes["train64"]
    (operation,) = record.operations
    order = np.array([3, 0, 4, 1, 2])
    values = {n: v[..., order] if v.ndim == 1 else v[:, order] for n, v in record.values.items()}
    flat = {name: name.replace(".", "_") for name in (*record.parameters, *record.buffers)}
    new = replace(
        record,
        operations=(replace(operation, inputs=(0, 1, 2), layer=""),),
        values=values,
        parameters={flat[name]: n for name, n in record.parameters.items()},
        buffers={flat[name]: n for name, n in record.buffers.items()},
        buffers_after=tuple({flat[name]: v[order] for name, v in each.items()} for each in record.buffers_after),
    )
    return replace(recording, passes={"train64": new})


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "by hand"])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_norm_of_tensors_with_permuted_channels_is_judged_by_the_input_that_explains_it(fused, noise):
    assert compare(function(noise=noise, fused=fused), norm(last=True, noise=noise / 2)) == []
    (found,) = compare(function(noise=noise, fused=fused), norm(last=True, noise=noise, momentum=0.3))
    assert (found.kind, found.status) == ("bn_momentum", "verified")
    assert (found.a.layer, found.a.source, found.b.layer) == ("", "m.py:3", "bn")


def test_statistics_of_other_values_pair_up_by_their_layer():
    a, b = norm(), norm(last=True, momentum=0.3)
    record = b.passes["train64"]
    values = {**record.values, 3: record.values[3] * 7 + 1, 4: record.values[4] * 3}
    moved = [
        {n: values[3 + i] + (0.3 if k == 0 else 0.51) * (1 + i) * np.arange(1, 6) for i, n in enumerate(record.buffers)}
        for k in range(2)
    ]
    b = replace(b, passes={"train64": replace(record, values=values, buffers_after=tuple(moved))})
    assert "bn_momentum" in [f.kind for f in compare(a, b)]


def dropout(rate=0.3, channels=False, scaled=True, seed=0, form="where", extra=False, absent=False):
    """Record one dropout, or two, in one of the forms in which frameworks write it."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(4, 6, 8)) + 3
    keep = (random.uniform(size=(4, 1, 8) if channels else x.shape) >= rate).astype(np.float64)
    factor = 1 / (1 - rate) if scaled else 1.0
    values, operations = {0: x}, []

    def add(kind, reads, value, **attributes):
        values[len(values)] = value
        operations.append(Operation(kind, tuple(reads), (len(values) - 1,), attributes, layer="drop"))
        return len(values) - 1

    n = 0
    for _ in range(0 if absent else 1 + extra):
        if form == "where":
            n = add("multiply", [n], values[n] * factor, scalar=factor) if scaled else n
            draw = add("random", [], keep, distribution="bernoulli", rate=rate)
            n = add("where", [draw, n], keep * values[n], scalars=[None, 0.0])
        elif form == "mask":
            draw = add("random", [], keep, distribution="bernoulli", rate=rate)
            mask = add("divide", [draw], keep * factor, scalar=1 - rate) if scaled else draw
            n = add("multiply", [n, mask], values[n] * values[mask])
        else:
            draw = add("random", [], random.uniform(size=keep.shape), distribution="uniform", rate=None)
            mask = add("greater_equal", [draw], keep > 0, scalar=rate, reverse=False)
            mask = add("cast", [mask], keep, dtype="float64")
            n = add("multiply", [n, mask], values[n] * keep)
            n = add("multiply", [n], values[n] * factor, scalar=factor) if scaled else n
    record = Pass("train64", tuple(operations), values, (0,), {"": n})
    return Recording("m.py:build", "torch 2", {"train64": record})


DROPPED = {
    "rate": ({"rate": 0.5}, "dropout_rate", "0.5"),
    "keep": ({"rate": 0.7}, "dropout_rate", "0.7"),
    "channels": ({"channels": True}, "dropout_channels", "whole channels"),
    "not scaled": ({"scaled": False}, "dropout_scale", "not scaled"),
    "twice": ({"extra": True}, "dropout_missing", "rate 0.3"),
    "off": ({"absent": True}, "dropout_missing", "no dropout"),
}


@pytest.mark.parametrize("form", ["where", "mask", "uniform"])
@pytest.mark.parametrize("plant", DROPPED)
def test_a_planted_dropout_is_found(plant, form):
    options, kind, words = DROPPED[plant]
    found = compare(dropout(), dropout(seed=1, form=form, **options))
    assert [(f.kind, f.status) for f in found] == [(kind, "verified")]
    assert words in found[0].b_does


@pytest.mark.parametrize("form", ["where", "mask", "uniform"])
def test_dropouts_that_differ_by_chance_are_equal(form):
    assert compare(dropout(), dropout(seed=1, form=form)) == []


def test_a_missing_dropout_is_behind_what_makes_the_numbers_that_the_other_side_drops():
    a, b = dropout(), dropout(absent=True)
    record = b.passes["train64"]
    made = np.moveaxis(record.values[0], 1, -1)  # the same numbers with channels last
    operations = (
        Operation("relu", (0,), (1,), {}, layer="act", source="m.py:4"),
        Operation("multiply", (1,), (2,), {"scalar": 2.0}, layer="twice", source="m.py:5"),
    )
    record = replace(record, operations=operations, values={**record.values, 1: made, 2: 2 * made}, outputs={"": 2})
    b = replace(b, passes={"train64": record})
    for one, other in ((a, b), (b, a)):
        (found,) = compare(one, other)
        places = (found.a, found.b) if one is a else (found.b, found.a)
        assert [place.layer for place in places] == ["drop", "act"]
