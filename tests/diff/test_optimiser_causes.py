"""Causes in training steps: rules planted in NumPy on both sides are told apart, and equal ones stay silent."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diffusion_core.optim.adam import Adam, adam_update
from diffusion_core.parity.diff.causes.optimiser import step_findings
from diffusion_core.parity.diff.causes.update_history import explain_updates, make_history
from diffusion_core.parity.diff.causes.update_rules import Rule, clipped, make_state, update
from diffusion_core.parity.diff.recording import Operation, Pass, Recording, Step
from diffusion_core.parity.diff.weights import align

SHAPES = {"layer.weight": (3, 4), "norm.weight": (5,), "layer.bias": (4,)}
STEPS = 6


def start():
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape) for name, shape in SHAPES.items()}


def slope(p, k, loss=1.0):
    """The loss of batch k and its gradient: every element in a bowl of its own."""
    random = np.random.default_rng(100 + k)
    value, gradients = 0.0, {}
    for name, x in p.items():
        centre, width = random.normal(size=x.shape), random.uniform(0.1, 2.0, size=x.shape)
        value += float(np.sum(width * np.log(np.cosh(x - centre))))
        gradients[name] = loss * width * np.tanh(x - centre)
    return loss * value, gradients


def train(
    rule,
    rates,
    outside=("", 0.0),
    loss=1.0,
    penalty=0.0,
    frozen=(),
    average=None,
    every=1,
    total=False,
    dtype=np.float64,
):
    """Train for some steps; `outside` is clipping before the optimiser, `every` accumulation before it."""
    p = {name: x.astype(dtype) for name, x in start().items()}
    states = {name: make_state(rule, x) for name, x in p.items()}
    held, count, steps, kept = {}, 0, [], None
    for k in range(STEPS):
        value, gradients = slope(p, k, loss)
        value += penalty / 2 * float(np.sum(p["layer.weight"] ** 2))
        gradients["layer.weight"] = gradients["layer.weight"] + penalty * p["layer.weight"]
        gradients = {n: g.astype(dtype) for n, g in gradients.items() if n not in frozen}
        before, received = dict(p), {}
        held = {n: held.get(n, 0) + g for n, g in gradients.items()}
        inside = rule.every
        if inside > 1:
            received = gradients
        if (k + 1) % (every * inside) == 0:
            count += 1
            scale = 1 if (total or rule.total) else 1 / (every * inside)
            gradients = clipped({n: g * scale for n, g in held.items()}, *outside)
            received = received or gradients
            used = clipped(gradients, rule.clip, rule.limit)
            for name, g in used.items():
                new, states[name] = update(rule, p[name], g, rates[k], count, states[name], name not in rule.undecayed)
                p[name] = new.astype(dtype)
            held = {}
        kept = average(kept, before, p, k + 1) if average else None
        rate = float(rates[k])
        steps.append(Step(value, rate, None, received, dict(p), {}, kept or {}))
    return tuple(steps)


def side(steps, description, framework="torch 2", turned=False, operations=()):
    """Make a recording; side B has other names, and matrices the other way round."""

    def write(arrays):
        if not turned:
            return dict(arrays)
        return {n.replace(".", "/"): np.ascontiguousarray(x.T) for n, x in arrays.items()}

    steps = tuple(
        replace(s, gradients=write(s.gradients), parameters=write(s.parameters), averages=write(s.averages))
        for s in steps
    )
    values = write(
        {n: x.astype(steps[0].parameters[next(iter(steps[0].parameters))].dtype) for n, x in start().items()}
    )
    numbers = {name: i for i, name in enumerate(values)}
    name = "float64" if next(iter(values.values())).dtype == np.float64 else "float32"
    record = Pass(name, operations, dict(enumerate(values.values())), (), {}, numbers)
    passes = {name: record}
    if operations:
        passes["train64"] = replace(record, name="train64")
    return Recording("m.py:build", framework, passes, steps, description)


def compare(a, b):
    first = next(iter(a.passes))
    return step_findings(a, b, align(a.passes[first], b.passes[first]))


FLAT = (0.01,) * STEPS
FALLING = tuple(0.01 * 0.7**k for k in range(STEPS))
WARM = tuple(0.002 * (k + 1) for k in range(STEPS))
SGD = Rule("sgd", momentum=0.9)
ADAM = Rule("adam", beta1=0.9, beta2=0.999, epsilon=1e-8)
RMS = Rule("rmsprop", beta2=0.99, epsilon=1e-8)
ADAGRAD = Rule("adagrad", epsilon=1e-10)
DECAYED = replace(ADAM, decay=0.01, decay_at="before")

# what is planted: the rule of A, that of B, the rates of both, the kind, and a number that B's words have
RULES = {
    "momentum": (SGD, replace(SGD, momentum=0.95), FLAT, "momentum", "0.95"),
    "no momentum": (SGD, Rule("sgd"), FLAT, "momentum", "momentum is 0"),
    "dampening": (SGD, replace(SGD, dampening=0.1), FLAT, "momentum_dampening", "0.1"),
    "nesterov": (SGD, replace(SGD, nesterov=True), FLAT, "nesterov", "Nesterov"),
    "rate inside": (SGD, replace(SGD, rate_inside=True), FALLING, "momentum_form", "inside"),
    "epsilon": (ADAM, replace(ADAM, epsilon=1e-3), FLAT, "optimiser_epsilon", "0.001"),
    "epsilon hat": (
        replace(ADAM, epsilon=1e-3),
        replace(ADAM, epsilon=1e-3, epsilon_at="hat"),
        FLAT,
        "optimiser_epsilon_form",
        "uncorrected",
    ),
    "epsilon inside": (
        replace(ADAM, epsilon=1e-3),
        replace(ADAM, epsilon=1e-3, epsilon_at="inside"),
        FLAT,
        "optimiser_epsilon_form",
        "inside",
    ),
    "beta1": (ADAM, replace(ADAM, beta1=0.95), FLAT, "moment_decay", "0.95"),
    "beta2": (ADAM, replace(ADAM, beta2=0.98), FLAT, "moment_decay", "0.98"),
    "no correction": (ADAM, replace(ADAM, correction="none"), FLAT, "bias_correction", "not corrected"),
    "first correction": (ADAM, replace(ADAM, correction="first"), FLAT, "bias_correction", "first moment"),
    "count from 2": (ADAM, replace(ADAM, count_from=2), FLAT, "step_count", "2"),
    "amsgrad": (replace(ADAM, beta2=0.9), replace(ADAM, beta2=0.9, amsgrad=True), FLAT, "amsgrad", "AMSGrad"),
    "decay": (DECAYED, replace(DECAYED, decay=0.05), FLAT, "weight_decay", "0.05"),
    "no decay": (DECAYED, ADAM, FLAT, "weight_decay", "0"),
    "coupled": (DECAYED, replace(DECAYED, decay_at="gradient"), FLAT, "weight_decay_coupling", "gradient"),
    "decay after": (DECAYED, replace(DECAYED, decay_at="after"), FLAT, "weight_decay_order", "after"),
    "decay without rate": (
        DECAYED,
        replace(DECAYED, decay_at="before without rate"),
        FLAT,
        "weight_decay_rate",
        "without the rate",
    ),
    "sgd coupled": (
        replace(SGD, decay=0.01),
        replace(SGD, decay=0.01, decay_at="before"),
        FLAT,
        "weight_decay_coupling",
        "shrink",
    ),
    "rho": (RMS, replace(RMS, beta2=0.9), FLAT, "moment_decay", "0.9"),
    "rms epsilon inside": (
        replace(RMS, epsilon=1e-3),
        replace(RMS, epsilon=1e-3, epsilon_at="inside"),
        FLAT,
        "optimiser_epsilon_form",
        "inside",
    ),
    "centred": (RMS, replace(RMS, centred=True), FLAT, "rmsprop_centred", "centred"),
    "rms momentum": (RMS, replace(RMS, momentum=0.9), FLAT, "momentum", "0.9"),
    "accumulator": (ADAGRAD, replace(ADAGRAD, accumulator=0.1), FLAT, "adagrad_accumulator", "0.1"),
    "method": (ADAM, SGD, FLAT, "optimiser", "SGD"),
}


@pytest.mark.parametrize("plant", RULES)
def test_a_planted_rule_is_found_from_the_updates_alone(plant):
    one, other, rates, kind, words = RULES[plant]
    a, b = side(train(one, rates), {}), side(train(other, rates), {}, turned=True)
    found = compare(a, b)
    assert [f.kind for f in found if not f.benign] == [kind]
    assert found[0].status == "verified" and words in found[0].b_does
    assert found[0].error > 1e-6 and found[0].left < 1e-6


@pytest.mark.parametrize(
    "rule", [SGD, replace(SGD, nesterov=True, decay=1e-4), ADAM, DECAYED, replace(ADAM, amsgrad=True), RMS, ADAGRAD]
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_equal_rules_are_equal(rule, dtype):
    a, b = side(train(rule, FALLING, dtype=dtype), {}), side(train(rule, FALLING, dtype=dtype), {}, turned=True)
    assert [f for f in compare(a, b) if not f.benign] == []


def test_a_velocity_with_the_rate_inside_is_equal_at_a_constant_rate():
    a = side(train(SGD, FLAT), {})
    b = side(train(replace(SGD, rate_inside=True), FLAT), {}, "tensorflow 2", turned=True)
    assert compare(a, b) == []


def test_decay_of_norms_and_biases_is_told():
    out = frozenset({"norm.weight", "layer.bias"})
    a, b = side(train(DECAYED, FLAT), {}), side(train(replace(DECAYED, undecayed=out), FLAT), {}, turned=True)
    (found,) = compare(a, b)
    assert (found.kind, found.status) == ("weight_decay_exclusion", "verified")
    assert "norm/weight" in found.b_does and found.a_does == "every parameter decays"


def test_betas_in_float32_are_benign():
    told = {"class": "Adam", "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-8}
    a = side(train(replace(ADAM, epsilon_at="hat"), FLAT), {})
    b = side(train(replace(ADAM, epsilon_at="hat", rounded=True), FLAT), told, "tensorflow 2", turned=True)
    found = compare(a, b)
    assert [f.kind for f in found] == ["float32_hyper_parameters"] and found[0].benign


def test_a_hyper_parameter_is_read_from_the_optimiser():
    told = {"class": "Adam", "groups": [{"betas": [0.87, 0.9973], "eps": 3e-5}]}
    a = side(train(ADAM, FLAT), {})
    b = side(train(replace(ADAM, beta1=0.87, beta2=0.9973, epsilon=3e-5), FLAT), told, turned=True)
    assert {f.kind for f in compare(a, b)} == {"moment_decay", "optimiser_epsilon"}


UNUSUAL = {
    "momentum": (SGD, replace(SGD, momentum=0.83), "momentum", "0.83"),
    "decay": (DECAYED, replace(DECAYED, decay=0.037), "weight_decay", "0.037"),
    "coupled decay": (SGD, replace(SGD, decay=0.0123), "weight_decay", "0.0123"),
    "beta2": (ADAM, replace(ADAM, beta2=0.93), "moment_decay", "0.93"),
    "epsilon": (replace(ADAM, epsilon=1e-3), replace(ADAM, epsilon=2.5e-3), "optimiser_epsilon", "0.0025"),
}


@pytest.mark.parametrize("plant", UNUSUAL)
def test_an_unusual_number_of_a_loop_written_by_hand_is_solved_for(plant):
    one, other, kind, words = UNUSUAL[plant]
    (found,) = compare(side(train(one, FALLING), {}), side(train(other, FALLING), {}, turned=True))
    assert (found.kind, found.status) == (kind, "verified") and words in found.b_does


def test_several_unusual_numbers_are_solved_for_together():
    rule = replace(ADAM, beta1=0.87, beta2=0.97, epsilon=2e-3, decay=0.03, decay_at="before")
    a, b = side(train(rule, FALLING), {}), side(train(rule, FALLING), {}, turned=True)
    assert compare(a, b) == []
    c = side(train(replace(rule, beta1=0.86), FALLING), {}, turned=True)
    (found,) = compare(a, c)
    assert found.kind == "moment_decay" and "0.86" in found.b_does and "0.87" in found.a_does


def test_clipping_by_hand_behind_the_gradients_is_clipping():
    """B's gradients are recorded before its author clips them, A's behind."""
    rule = replace(DECAYED, epsilon=1e-4, undecayed=frozenset({"norm.weight", "layer.bias"}))
    told = {"class": "AdamW", "groups": [{"eps": 1e-4, "weight_decay": 0.01}, {"weight_decay": 0.0}]}
    a = side(train(rule, WARM, outside=("global norm", 0.35)), told)
    b = side(train(replace(rule, clip="global norm", limit=0.35), WARM), {}, "tensorflow 2", turned=True)
    assert compare(a, b) == []


def test_biases_that_do_not_decay_are_told_before_anything_else_is_tried():
    told = {"class": "AdamW", "groups": [{"eps": 1e-4, "weight_decay": 0.1}, {"weight_decay": 0.0}]}
    rule = replace(DECAYED, epsilon=1e-4, decay=0.1, undecayed=frozenset({"norm.weight", "layer.bias"}))
    history = make_history(side(train(rule, WARM), told))
    assert explain_updates(history).rule == rule


def test_a_summed_loss_is_told_behind_clipped_gradients():
    clipped_to = {"outside": ("global norm", 0.1)}
    a, b = side(train(ADAM, FLAT, **clipped_to), {}), side(train(ADAM, FLAT, loss=8.0, **clipped_to), {}, turned=True)
    (found,) = compare(a, b)
    assert (found.kind, found.status) == ("loss_reduction", "verified") and "8" in found.b_does


def test_gradients_are_compared_where_dropout_is_off_in_the_steps():
    draw = (Operation("random", (), (9,), {"distribution": "bernoulli", "rate": 0.5}),)
    a = side(train(SGD, FLAT, every=2), {}, operations=draw)
    b = side(train(SGD, FLAT, every=2, total=True), {}, turned=True, operations=draw)
    assert [f.kind for f in compare(a, b)] == ["gradient_accumulation"]


def test_duets_own_adam_is_explained():
    adam = Adam(weight_decay=0.01, clip=None, eps=1e-6)
    p, m, v = start(), {n: 0 * x for n, x in start().items()}, {n: 0 * x for n, x in start().items()}
    steps = []
    for k in range(STEPS):
        value, g = slope(p, k)
        p, m, v = adam_update(adam, p, m, v, g, k + 1, 0.01, frozenset({"layer.weight"}))
        steps.append(Step(value, 0.01, None, g, p))
    rule = replace(DECAYED, epsilon=1e-6, undecayed=frozenset({"norm.weight", "layer.bias"}))
    assert compare(side(tuple(steps), {}), side(train(rule, FLAT), {}, turned=True)) == []


RATES = {
    "first step is 0": (WARM, (0.0, *WARM[:-1]), "learning_rate_off_by_one"),
    "late": (FALLING, (FALLING[0], *FALLING[:-1]), "learning_rate_off_by_one"),
    "tenfold": (FLAT, (0.1,) * STEPS, "learning_rate"),
    "no decay": (FALLING, FLAT, "learning_rate_schedule"),
}


@pytest.mark.parametrize("plant", RATES)
@pytest.mark.parametrize("told", [True, False])
def test_learning_rates_are_compared(plant, told):
    one, other, kind = RATES[plant]
    sides = []
    for rates, turned in ((one, False), (other, True)):
        steps = train(ADAM, rates)
        steps = steps if told else tuple(replace(s, learning_rate=None) for s in steps)
        sides.append(side(steps, {}, turned=turned))
    found = compare(*sides)
    assert [(f.kind, f.status) for f in found] == [(kind, "verified")]


def test_a_learning_rate_in_float32_is_benign():
    rounded = tuple(float(np.float32(rate)) for rate in FLAT)
    found = compare(side(train(ADAM, FLAT), {}), side(train(ADAM, rounded), {}, turned=True))
    assert [f.kind for f in found] == ["float32_learning_rate"] and found[0].benign


GRADIENTS = {
    "sum": ({}, {"loss": 32.0}, "loss_reduction", "32"),
    "value": ({}, {"outside": ("value", 0.3)}, "gradient_clipping", "0.3"),
    "global norm": ({}, {"outside": ("global norm", 0.5)}, "gradient_clipping", "global norm 0.5"),
    "each norm": ({"outside": ("global norm", 0.5)}, {"outside": ("norm", 0.5)}, "gradient_clipping", "variable"),
    "penalty": ({}, {"penalty": 0.02}, "weight_decay_in_loss", "0.01"),
    "frozen": ({}, {"frozen": ("layer.bias",)}, "frozen_parameter", "layer/bias"),
    "accumulated sum": ({"every": 2}, {"every": 2, "total": True}, "gradient_accumulation", "sum"),
    "accumulated": ({}, {"every": 2}, "gradient_accumulation", "2"),
}


@pytest.mark.parametrize("plant", GRADIENTS)
@pytest.mark.parametrize("rule", [SGD, ADAM], ids=["sgd", "adam"])
def test_losses_and_gradients_are_compared(plant, rule):
    one, other, kind, words = GRADIENTS[plant]
    found = compare(side(train(rule, FLAT, **one), {}), side(train(rule, FLAT, **other), {}, turned=True))
    assert [(f.kind, f.status) for f in found] == [(kind, "verified")]
    assert words in found[0].b_does


@pytest.mark.parametrize("kind,limit,key", [("norm", 0.5, "clipnorm"), ("global norm", 0.5, "global_clipnorm")])
def test_clipping_inside_the_optimiser_is_clipping(kind, limit, key):
    told = {"class": "SGD", "momentum": 0.9, key: limit}
    inside = side(train(replace(SGD, clip=kind, limit=limit), FLAT), told, "tensorflow 2", turned=True)
    found = compare(side(train(SGD, FLAT, outside=("global norm", limit)), {}), inside)
    assert [f.kind for f in found] == ([] if kind == "global norm" else ["gradient_clipping"])


def test_accumulation_inside_the_optimiser_takes_the_mean():
    told = {"class": "SGD", "momentum": 0.9, "gradient_accumulation_steps": 2}
    inside = side(train(replace(SGD, every=2), FLAT), told, "tensorflow 2", turned=True)
    assert compare(side(train(SGD, FLAT, every=2), {}), inside) == []
    (found,) = compare(side(train(SGD, FLAT, every=2, total=True), {}), inside)
    assert found.kind == "gradient_accumulation" and found.status == "verified" and "sum" in found.a_does


def test_gradients_that_differ_by_chance_are_no_finding():
    draw = (Operation("random", (), (9,), {"distribution": "bernoulli", "rate": 0.5}),)
    steps = train(SGD, FLAT)
    other = tuple(replace(s, gradients={n: g * (1 + k) for n, g in s.gradients.items()}) for k, s in enumerate(steps))
    p, moved, states = start(), [], {n: make_state(SGD, x) for n, x in start().items()}
    for k, step in enumerate(other):
        for n, g in step.gradients.items():
            p[n], states[n] = update(SGD, p[n], g, 0.01, k + 1, states[n])
        moved.append(replace(step, parameters=dict(p)))
    assert compare(side(steps, {}, operations=draw), side(tuple(moved), {}, turned=True, operations=draw)) == []


def plain(decay, source="after", first="start", from_k=1, every=1, names=None):
    """A moving average; `first` says what it starts from."""

    def average(kept, before, after, k):
        x = after if source == "after" else before
        if kept is None:
            initial = {n: v.astype(v.dtype) for n, v in start().items()}
            kept = initial if first == "start" else {n: 0 * v for n, v in initial.items()}
        d = decay(k) if callable(decay) else decay
        if (first == "copy" and k == 1) or k < from_k:
            d = 0.0
        if k % every:
            d = 1.0
        new = {n: d * kept[n] + (1 - d) * x[n] for n in x}
        return {n: new[n] for n in (names or new)}

    return average


def warm(k):
    return min(0.999, (1 + k) / (10 + k))


AVERAGES = {
    "decay": (plain(0.9), plain(0.99), "ema_decay", "0.99"),
    "copy": (plain(0.9), plain(0.9, first="copy"), "ema_start", "copies"),
    "zero": (plain(0.9), plain(0.9, first="zero"), "ema_start", "zero"),
    "before": (plain(0.9), plain(0.9, source="before"), "ema_off_by_one", "before the update"),
    "warm-up": (plain(0.999), plain(warm), "ema_warmup", "decays"),
    "warm-up off by one": (plain(warm), plain(lambda k: warm(k - 1)), "ema_off_by_one", "decays"),
    "late": (plain(0.9), plain(0.9, from_k=4), "ema_start", "copies the weights for 3 updates"),
    "every other": (plain(0.9), plain(0.9, every=2), "ema_interval", "decays"),
    "debiased": (plain(0.9), plain(lambda k: 0.9 * (1 - 0.9 ** (k - 1)) / (1 - 0.9**k)), "ema_warmup", "copies"),
}


@pytest.mark.parametrize("plant", AVERAGES)
def test_moving_averages_are_compared(plant):
    one, other, kind, words = AVERAGES[plant]
    sides = [side(train(SGD, FLAT, average=x), {}, turned=t) for x, t in ((one, False), (other, True))]
    found = compare(*sides)
    assert [(f.kind, f.status) for f in found] == [(kind, "verified")]
    assert words in found[0].b_does
    assert compare(sides[0], side(train(SGD, FLAT, average=one), {}, turned=True)) == []


def test_weights_without_an_average_are_named():
    b = side(train(SGD, FLAT, average=plain(0.9)), {}, turned=True)
    b = replace(b, steps=tuple(replace(s, averages={"layer/weight": s.averages["layer/weight"]}) for s in b.steps))
    found = compare(side(train(SGD, FLAT, average=plain(0.9)), {}), b)
    assert [f.kind for f in found] == ["ema_which"] and "layer/bias" in found[0].b_does.replace(
        "norm/weight", "layer/bias"
    )


def test_two_biases_move_their_sum_twice_as_far():
    """torch's LSTM has two biases; both get the gradient of their sum."""
    random = np.random.default_rng(3)
    b1, b2 = random.normal(size=8), random.normal(size=8)
    sides = []
    for names, values in ((("l.bias_ih", "l.bias_hh"), [b1, b2]), (("l/bias",), [b1 + b2])):
        p, steps = dict(zip(names, values, strict=True)), []
        for k in range(3):
            g = np.tanh(sum(p.values())) * (1 + k)
            p = {n: x - 0.1 * g for n, x in p.items()}
            steps.append(Step(1.0 if k == 0 else 0.5, 0.1, None, dict.fromkeys(p, g), p))
        record = Pass("float64", (), dict(enumerate(values)), (), {}, {n: i for i, n in enumerate(names)})
        sides.append(Recording("m.py:build", "torch 2", {"float64": record}, tuple(steps)))
    found = compare(*sides)
    assert [(f.kind, f.status) for f in found] == [("doubled_bias", "verified")]


def test_an_update_without_a_known_rule_is_said():
    steps = train(SGD, FLAT)
    odd = tuple(
        replace(s, parameters={n: x + 0.1 * np.cos(k + x) for n, x in s.parameters.items()})
        for k, s in enumerate(steps)
    )
    found = compare(side(steps, {}), side(odd, {}, turned=True))
    assert [f for f in found if f.kind == "optimiser_unknown" and f.status == "unknown"]


def test_updates_that_agree_are_equal_whatever_the_optimiser_receives() -> None:
    """A decay that one side adds to the gradient itself; a penalty that changes the loss too is a difference."""
    plain, decaying = Rule("sgd"), Rule("sgd", decay=0.1, decay_at="gradient")
    inside = train(decaying, FLAT)
    by_hand = tuple(
        replace(s, gradients={n: g + 0.1 * before[n] for n, g in s.gradients.items()})
        for s, before in zip(inside, [start(), *(s.parameters for s in inside)], strict=False)
    )
    a = side(inside, {"class": "SGD", "lr": 0.01, "weight_decay": 0.1})
    assert not compare(a, side(by_hand, {"class": "SGD", "learning_rate": 0.01}, "tf 2", True))
    other = side(train(plain, FLAT, penalty=0.1), {"class": "SGD", "learning_rate": 0.01}, "tf 2", True)
    assert compare(side(train(plain, FLAT), {"class": "SGD", "lr": 0.01}), other)


def test_variables_with_optimisers_of_different_rules_may_agree() -> None:
    """No single rule explains such updates; where they agree, that is no difference."""
    first, second = train(Rule("sgd"), FLAT), train(Rule("adam"), FLAT)
    names = sorted(start())
    both = tuple(
        replace(
            x,
            gradients={n: (x if n == names[0] else y).gradients[n] for n in names},
            parameters={n: (x if n == names[0] else y).parameters[n] for n in names},
        )
        for x, y in zip(first, second, strict=True)
    )
    a = side(both, {"class": "SGD", "lr": 0.01, "others": ["Adam"]})
    b = side(both, {"class": "SGD", "learning_rate": 0.01, "others": ["Adam"]}, "tf 2", True)
    assert not [f for f in compare(a, b) if not f.benign]
