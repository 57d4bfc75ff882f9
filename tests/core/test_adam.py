"""Adam and the learning rate: closed forms, a second implementation, continuity."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.networks import UNetSpec, lower
from diffusion_core.optim.adam import DECAYS, Adam, LearningRate, adam_update, clip_factor, global_norm

SIZES = st.floats(-1e3, 1e3).filter(lambda g: abs(g) > 1e-3)


def arrays(name: str, row: int = 0) -> dict[str, np.ndarray]:
    return {key: Stream(0, f"{name}/{key}").normal([0], shape, row)[0] for key, shape in SHAPES.items()}


SHAPES = {"a.weight": (3, 2), "a.bias": (3,), "b.weight": (2, 1, 2, 2)}


@given(SIZES, st.floats(1e-5, 1.0), st.floats(0, 0.99), st.floats(0, 0.999))
def test_the_first_step_is_the_sign_of_the_gradient(gradient, lr, beta1, beta2):
    # m/(1 - beta1) = g and sqrt(v)/sqrt(1 - beta2) = |g|, so the step is lr g/(|g| + eps).
    adam = Adam(beta1, beta2, eps=1e-8, clip=None)
    g, zero = {"p": np.array([gradient])}, {"p": np.zeros(1)}
    weights, moment1, moment2 = adam_update(adam, zero, zero, zero, g, 1, lr)
    assert weights["p"][0] == pytest.approx(-lr * gradient / (abs(gradient) + 1e-8), rel=1e-12)
    assert moment1["p"][0] == pytest.approx((1 - beta1) * gradient, rel=1e-12)
    assert moment2["p"][0] == pytest.approx((1 - beta2) * gradient**2, rel=1e-12)


def scalar_adamw(p, gradients, lr, beta1, beta2, eps, decay):
    """Return AdamW of one number, as algorithm 2 of Loshchilov & Hutter states it."""
    m = v = 0.0
    for k, g in enumerate(gradients, 1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        m_hat, v_hat = m / (1 - beta1**k), v / (1 - beta2**k)
        p = p - lr * decay * p - lr * m_hat / (math.sqrt(v_hat) + eps)
    return p


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_twenty_steps_equal_a_scalar_implementation(weight_decay, clip):
    adam, lr = Adam(0.8, 0.95, 1e-3, weight_decay, clip), 0.05
    start, decays = arrays("start"), frozenset({"a.weight"})
    zeros = {name: np.zeros_like(value) for name, value in start.items()}
    state, clipped = (start, zeros, zeros), []
    for k in range(1, 21):
        gradients = arrays("gradient", k)
        norm = math.sqrt(sum(float(x) ** 2 for g in gradients.values() for x in g.ravel()))
        factor = 1.0 if clip is None else min(1.0, clip / (norm + 1e-6))
        clipped.append({name: factor * g for name, g in gradients.items()})
        state = adam_update(adam, *state, gradients, k, lr, decays)
    for name, value in start.items():
        decay = weight_decay if name in decays else 0.0
        for i in np.ndindex(value.shape):
            history = [g[name][i] for g in clipped]
            expected = scalar_adamw(value[i], history, lr, 0.8, 0.95, 1e-3, decay)
            assert state[0][name][i] == pytest.approx(expected, rel=1e-11, abs=1e-13)


def test_an_update_does_not_change_its_arguments():
    start, zeros = arrays("start"), {name: np.zeros(shape) for name, shape in SHAPES.items()}
    adam_update(Adam(weight_decay=0.1), start, zeros, zeros, arrays("gradient"), 1, 0.1, frozenset(SHAPES))
    for name, value in arrays("start").items():
        np.testing.assert_array_equal(start[name], value)
        assert not zeros[name].any()


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=8), st.floats(1e-3, 1e3))
def test_clipping_bounds_the_norm_and_keeps_the_direction(values, clip):
    gradients = {"a": np.array(values), "b": np.array([1.0])}
    norm = global_norm(gradients)
    assert norm == pytest.approx(math.hypot(*values, 1.0), rel=1e-12)
    factor = clip_factor(norm, clip)
    assert 0 < factor <= 1
    assert global_norm({name: factor * g for name, g in gradients.items()}) <= clip * (1 + 1e-12)
    if norm + 1e-6 <= clip:
        assert factor == 1
    else:
        assert factor * norm == pytest.approx(clip, rel=2e-6 / norm)
    assert clip_factor(norm, None) == 1


def test_the_clip_factor_has_its_constant_in_the_divisor():
    assert clip_factor(1.0, 1.0) == 1 / (1 + 1e-6)
    assert clip_factor(4.0, 1.0) == 1 / (4 + 1e-6)
    assert clip_factor(0.0, 1.0) == 1


def test_the_norm_of_float32_is_summed_in_float64():
    gradients = {"a": np.full(10**6, 0.1, np.float32)}
    assert global_norm(gradients) == pytest.approx(float(np.float32(0.1)) * 1000, rel=1e-12)


@given(st.integers(1, 10**6), st.floats(0.0, 0.9999), st.floats(0.0, 0.99999))
def test_bias_corrections_are_1_minus_the_powers_of_the_betas(update, beta1, beta2):
    one, two = Adam(beta1, beta2).bias_corrections(update)
    assert one == pytest.approx(1 - beta1**update, rel=1e-9)
    assert two**2 == pytest.approx(1 - beta2**update, rel=1e-9)


def test_weight_decay_applies_only_to_the_weights_of_layers():
    program = lower(UNetSpec(8, 1, 1, 8, (1, 2), 1, (4,), norm_groups=4, num_classes=3))
    for parameter in program.parameters:
        layer = parameter.axes in ("o i", "o i kh kw")
        assert parameter.decay == layer, parameter.name
        assert layer == (parameter.name.endswith(".weight") and "norm" not in parameter.name
                         and parameter.name != "embed.label.weight")  # fmt: skip


@pytest.mark.parametrize("options", [
    {"beta1": 1.0}, {"beta2": 1.0}, {"beta1": -0.1}, {"beta2": float("nan")}, {"eps": 0.0}, {"eps": float("nan")},
    {"clip": 0.0}, {"clip": -1.0}, {"clip": float("nan")}, {"weight_decay": -0.1}, {"weight_decay": float("nan")},
])  # fmt: skip
def test_adam_options_out_of_range_are_refused(options):
    with pytest.raises(DuetError, match=r"optimiser\."):
        Adam(**options)


# The learning rate

RATES = {
    "constant": LearningRate(0.1, 1000),
    "linear": LearningRate(0.1, 1000, "linear", 10_000, 0.01),
    "cosine": LearningRate(0.1, 1000, "cosine", 10_000, 0.01),
    "inverse_sqrt": LearningRate(0.1, 1000, "inverse_sqrt", decay_start_images=3000),
    "steps": LearningRate(0.1, 1000, "steps", floor=0.03, factor=0.5, every_images=4000),
    "edm2": LearningRate(0.1, 1000, "edm2", decay_start_images=3000),
}


@pytest.mark.parametrize("decay", [decay for decay in DECAYS if decay != "steps"])
def test_the_rate_is_continuous_and_bounded(decay):
    rate = RATES[decay]
    values = np.array([rate(n) for n in range(1, 12_001)])
    assert np.all(values > 0) and values.max() == rate.peak
    assert np.abs(np.diff(values)).max() <= rate.peak / rate.warmup_images * (1 + 1e-9)
    assert np.all(np.diff(values[999:]) <= 0)


@pytest.mark.parametrize(
    "name, peak, start", [("img512-xxs", 0.017, 70_000), ("img64-s", 0.01, 35_000), ("none", 0.01, 0)]
)
def test_the_rate_of_edm2_counts_the_images_before_the_step(name, peak, start):
    """The schedule of its training loop, whose arguments count batches of 2048 and millions of images."""
    rate, batch = LearningRate(peak, 10_000_000, "edm2", decay_start_images=start * 2048), 2048
    for before in (0, batch, 3_000_000, 10_000_384, 71_680_000, 143_360_000, 2048 << 20):
        expected = peak
        if start > 0:
            expected /= np.sqrt(max(before / (start * batch), 1))
        expected *= min(before / 10e6, 1)
        assert rate(before + batch, batch) == pytest.approx(expected, rel=1e-15, abs=0)
    assert rate(batch, batch) == 0.0
    assert LearningRate(peak, decay="edm2")(batch, batch) == peak


@pytest.mark.parametrize("decay", DECAYS)
def test_the_first_step_has_a_rate_above_zero(decay):
    assert RATES[decay](128) == pytest.approx(0.1 * 128 / 1000)
    assert RATES[decay](1000) == pytest.approx(0.1)
    assert LearningRate(0.1)(1) == 0.1


def test_stepwise_decay_is_constant_between_its_steps():
    rate = RATES["steps"]
    values = [rate(n) for n in range(1000, 20_000)]
    # 0.1, 0.05 and then the floor instead of 0.025; a step that ends exactly at a decay still has the old rate.
    assert [n for n in range(1001, 20_000) if rate(n) != rate(n - 1)] == [5001, 9001]
    assert sorted(set(values)) == [0.03, 0.05, 0.1]


def test_stepwise_decay_equals_a_factor_per_round_of_batches():
    # 8e-4, multiplied by 0.9 after every 50 rounds of 100 batches of 128 images, not below 1e-6.
    rate = LearningRate(8e-4, decay="steps", floor=1e-6, factor=0.9, every_images=50 * 100 * 128)
    current, step = 8e-4, 0
    for decays in range(70):
        for first in (1, 2, 2500, 4999, 5000):
            assert rate((step + first) * 128) == pytest.approx(current, rel=1e-12), (decays, first)
        step += 5000
        current = max(1e-6, current * 0.9)
    assert current == 1e-6


def test_decay_values_at_the_ends_and_in_the_middle():
    for decay in ("linear", "cosine"):
        assert RATES[decay](5500) == pytest.approx(0.055)
        assert RATES[decay](10_000) == RATES[decay](20_000) == pytest.approx(0.01)
    assert RATES["linear"](3250) == pytest.approx(0.01 + 0.09 * 0.75)
    assert RATES["cosine"](3250) == pytest.approx(0.01 + 0.09 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert RATES["inverse_sqrt"](3000) == 0.1
    assert RATES["inverse_sqrt"](12_000) == pytest.approx(0.05)


@pytest.mark.parametrize("options, words", [
    ({"peak": 0.0}, "peak 0.0 must be positive"),
    ({"peak": -1.0}, "peak -1.0 must be positive"),
    ({"peak": float("nan")}, "peak nan"),
    ({"peak": float("inf")}, "peak inf"),
    ({"peak": 0.1, "warmup_images": -1}, "warmup_images -1"),
    ({"peak": 0.1, "floor": 0.2}, "floor 0.2"),
    ({"peak": 0.1, "decay": "edm2", "decay_start_images": -1}, "lr.decay_start_images: -1 was given"),
    ({"peak": 0.1, "floor": -0.2}, "floor -0.2"),
    ({"peak": 0.1, "decay": "cosinus", "total_images": 10}, "Did you mean 'cosine'"),
    ({"peak": 0.1, "decay": "cosine", "total_images": -5}, "total_images -5, which must be more than warmup_images 0"),
    ({"peak": 0.1, "decay": "linear", "warmup_images": 90, "total_images": 90}, "lr.warmup_images below it, such as 9"),
    ({"peak": 0.1, "decay": "steps", "factor": 0.9}, "factor 0.9 every 0 images"),
    ({"peak": 0.1, "decay": "steps", "every_images": 100}, "factor 1.0 every 100 images"),
    ({"peak": 0.1, "decay": "steps", "factor": 0.0, "every_images": 100}, "factor must be between 0 and 1"),
    ({"peak": 0.1, "decay": "steps", "factor": float("nan"), "every_images": 100}, "factor nan"),
])  # fmt: skip
def test_learning_rates_out_of_range_are_refused(options, words):
    with pytest.raises(DuetError, match=words):
        LearningRate(**options)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_a_decay_without_an_end_ends_with_the_run(decay):
    rate = LearningRate(0.1, 20, decay)
    assert rate.for_run(100) == LearningRate(0.1, 20, decay, 100) and rate.for_run(100)(100) == 0
    assert LearningRate(0.1, 20, decay, 50).for_run(100).total_images == 50
    assert LearningRate(0.1, 20, decay, 0) == rate  # as earlier versions wrote it
    with pytest.raises(DuetError, match=r"lr\.total_images: none was given"):
        rate(10)
    with pytest.raises(DuetError, match=r"lr\.warmup_images: 20 was given for a run of 20 images, which leaves none"):
        rate.for_run(20)


def test_a_schedule_without_an_end_is_that_of_every_run():
    for rate in RATES.values():
        assert rate.for_run(64) is rate
