"""The oracle itself: every block against loops over single numbers, and its executor against a second one."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from diffusion_core import reference
from diffusion_core.backend import TrainBatch
from diffusion_core.errors import DuetError
from diffusion_core.objectives import Objective
from diffusion_core.process import Process
from diffusion_core.random import Stream
from diffusion_core.sampling import SamplerPlan, ddim
from diffusion_core.schedule import linear
from diffusion_core.unet import Node, Program, UNetSpec, lower
from diffusion_core.unet.blocks import (
    KINDS,
    Add,
    Attention,
    AvgPool,
    Concat,
    Conv,
    Embedding,
    GroupNorm,
    Linear,
    Modulate,
    SiLU,
    Sinusoid,
    Upsample,
)
from diffusion_core.weights import initial_weights


def numbers(name: str, *shape: int) -> np.ndarray:
    return Stream(0, f"reference/{name}").normal([0], shape)[0]


def apply(block, *inputs, **weights):
    """The block's function, with weights found by their full names."""
    assert {p.name: p.shape for p in block.parameters()} == {name: value.shape for name, value in weights.items()}
    return reference.block_function("n", block, {f"n.{k}": v for k, v in weights.items()})(*inputs)


def close(got: np.ndarray, expected) -> None:
    expected = np.asarray(expected)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-13)


X = numbers("x", 2, 4, 4, 6)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [(1, 1, 1, 1), (0, 1, 0, 1), (1, 0, 2, 0), (0, 0, 0, 0)])
@pytest.mark.parametrize("kernel, bias", [(1, True), (2, True), (3, True), (3, False)])
def test_conv_is_a_sum_over_its_window(kernel, bias, padding, stride):
    block = Conv(6, 3, kernel, stride, padding, bias, 1.0)
    weight, shift = numbers("w", 3, 6, kernel, kernel), numbers("b", 3) if bias else np.zeros(3)
    top, bottom, left, right = padding
    height = (4 + top + bottom - kernel) // stride + 1
    width = (4 + left + right - kernel) // stride + 1
    expected = np.zeros((2, height, width, 3))
    for n, y, x, o in np.ndindex(*expected.shape):
        total = shift[o]
        for dy, dx in itertools.product(range(kernel), repeat=2):
            row, column = y * stride + dy - top, x * stride + dx - left
            if 0 <= row < 4 and 0 <= column < 4:
                total += sum(X[n, row, column, c] * weight[o, c, dy, dx] for c in range(6))
        expected[n, y, x, o] = total
    close(apply(block, X, weight=weight, **({"bias": shift} if bias else {})), expected)


@pytest.mark.parametrize("groups, eps", [(1, 1e-6), (2, 1e-5), (3, 0.5), (6, 1e-5)])
def test_group_norm_takes_mean_and_variance_of_each_group(groups, eps):
    weight, bias = numbers("w", 6), numbers("b", 6)
    expected, size = np.zeros_like(X), 6 // groups
    for n in range(2):
        for g in range(groups):
            part = X[n, :, :, g * size : (g + 1) * size]
            normed = (part - np.mean(part)) / math.sqrt(np.var(part) + eps)
            expected[n, :, :, g * size : (g + 1) * size] = normed
    close(apply(GroupNorm(6, groups, eps), X, weight=weight, bias=bias), expected * weight + bias)


def test_group_norm_of_large_numbers_keeps_its_digits():
    # With the variance as mean of squares less square of the mean, nothing would be left.
    block, ones, zeros = GroupNorm(6, 2, 1e-5), np.ones(6), np.zeros(6)
    apart = apply(block, X + 1e8, weight=ones, bias=zeros)
    np.testing.assert_allclose(apart, apply(block, X, weight=ones, bias=zeros), atol=1e-6)


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_is_a_softmax_mean_per_head(heads):
    channels, size = 4, 2
    qkv = numbers("qkv", 2, size, 3, 3 * channels)
    pixels = qkv.reshape(2, size * 3, 3 * channels)
    width = channels // heads
    expected = np.zeros((2, size * 3, channels))
    for n, head, i in itertools.product(range(2), range(heads), range(size * 3)):
        first = head * width
        q = pixels[n, i, first : first + width]
        logits = [
            sum(q[d] * pixels[n, j, channels + first + d] for d in range(width)) / math.sqrt(width)
            for j in range(size * 3)
        ]
        total = sum(math.exp(v) for v in logits)
        for d in range(width):
            expected[n, i, first + d] = sum(
                math.exp(logits[j]) / total * pixels[n, j, 2 * channels + first + d] for j in range(size * 3)
            )
    close(apply(Attention(channels, heads), qkv), expected.reshape(2, size, 3, channels))


def test_attention_of_huge_logits_picks_the_largest():
    qkv = np.zeros((1, 1, 2, 3))
    qkv[0, 0, :, 0], qkv[0, 0, :, 1], qkv[0, 0, :, 2] = 1e3, [0.0, 1.0], [5.0, 7.0]
    close(apply(Attention(1, 1), qkv), np.full((1, 1, 2, 1), 7.0))


@pytest.mark.parametrize("sin_first", [True, False])
@pytest.mark.parametrize("divisor", [3.0, 4.0])
def test_sinusoid_is_sin_and_cos_of_falling_frequencies(divisor, sin_first):
    t = np.array([0.0, 1.0, 999.0])
    expected = np.zeros((3, 8))
    for i, k in itertools.product(range(3), range(4)):
        angle = t[i] * 10000.0 ** (-k / divisor)
        first, second = (math.sin, math.cos) if sin_first else (math.cos, math.sin)
        expected[i, k], expected[i, 4 + k] = first(angle), second(angle)
    got = apply(Sinusoid(8, 10000.0, divisor, sin_first), t)
    np.testing.assert_allclose(got, expected, atol=1e-11)


def test_linear_is_a_sum_over_its_inputs():
    x, weight, bias = numbers("v", 2, 3), numbers("w", 4, 3), numbers("b", 4)
    expected = [[sum(x[n, i] * weight[o, i] for i in range(3)) + bias[o] for o in range(4)] for n in range(2)]
    close(apply(Linear(3, 4, True, 1.0), x, weight=weight, bias=bias), expected)
    close(apply(Linear(3, 4, False, 1.0), x, weight=weight), np.array(expected) - bias)


def test_embedding_is_a_row_per_label():
    weight = numbers("w", 5, 3)
    close(apply(Embedding(5, 3), np.array([4, 0, 4]), weight=weight), [weight[4], weight[0], weight[4]])


def test_silu_is_x_times_its_logistic():
    close(apply(SiLU(), X), np.reshape([x / (1 + math.exp(-x)) for x in X.ravel()], X.shape))


def test_sums_and_joins():
    other, vector = numbers("other", 2, 4, 4, 6), numbers("vector", 2, 6)
    close(apply(Add(0.5), X, other), (X + other) / 2)
    close(apply(Add(1.0), vector, vector), 2 * vector)
    per_pixel = np.zeros_like(X)
    modulated, halves = np.zeros_like(X), numbers("halves", 2, 12)
    for n, y, x, c in np.ndindex(*X.shape):
        per_pixel[n, y, x, c] = (X[n, y, x, c] + vector[n, c]) * 0.5
        modulated[n, y, x, c] = X[n, y, x, c] * (1 + halves[n, c]) + halves[n, 6 + c]
    close(apply(Add(0.5), X, vector), per_pixel)
    close(apply(Modulate(6), X, halves), modulated)
    joined = apply(Concat(), X, other[..., :2])
    close(joined[..., :6], X)
    close(joined[..., 6:], other[..., :2])


def test_resampling():
    up, down = apply(Upsample(), X), apply(AvgPool(), X)
    assert up.shape == (2, 8, 8, 6) and down.shape == (2, 2, 2, 6)
    for n, y, x, c in np.ndindex(*up.shape):
        assert up[n, y, x, c] == X[n, y // 2, x // 2, c]
    for n, y, x, c in np.ndindex(*down.shape):
        mean = sum(X[n, 2 * y + i, 2 * x + j, c] for i in (0, 1) for j in (0, 1)) / 4
        assert down[n, y, x, c] == pytest.approx(mean, rel=1e-12)
    close(apply(AvgPool(), up), X)


def test_there_is_a_function_for_every_kind():
    assert set(reference._FUNCTIONS) == set(KINDS)


# Whole programs

SPEC = UNetSpec(4, 1, 1, 4, (1, 2), 1, (2,), norm_groups=2, num_classes=3, zero_init=False)
PROGRAM = lower(SPEC)
WEIGHTS = initial_weights(PROGRAM, 0)
START = Stream(0, "start").normal([0, 1], (4, 4, 1))
LABEL = np.array([0, 2], np.int32)


def test_forward_composes_the_blocks_by_name():
    program = Program(
        (
            Node("conv", Conv(1, 2, 1, 1, (0, 0, 0, 0), False, 1.0), ("x",)),
            Node("time", Sinusoid(2, 10000.0, 1.0, True), ("c_noise",)),
            Node("class", Embedding(3, 2), ("label",)),
            Node("vector", Add(1.0), ("time", "class")),
            Node("sum", Add(2.0), ("conv", "vector")),
        )
    )
    weights = {"conv.weight": np.reshape([2.0, 3.0], (2, 1, 1, 1)), "class.weight": np.arange(6.0).reshape(3, 2)}
    got = reference.forward(program, weights, START[:1], [0.5], [2])
    expected = [
        2 * (START[0] * 2 + math.sin(0.5) + 4.0),
        2 * (START[0] * 3 + math.cos(0.5) + 5.0),
    ]
    close(got[0], np.concatenate(expected, axis=-1))


def test_images_of_a_batch_do_not_mix():
    together = reference.forward(PROGRAM, WEIGHTS, START, [3.0, 700.0], LABEL)
    for i in range(2):
        alone = reference.forward(PROGRAM, WEIGHTS, START[i : i + 1], [[3.0, 700.0][i]], LABEL[i : i + 1])
        np.testing.assert_allclose(alone[0], together[i], atol=1e-13)
    for changed in (
        reference.forward(PROGRAM, WEIGHTS, START, [4.0, 700.0], LABEL),
        reference.forward(PROGRAM, WEIGHTS, START, [3.0, 700.0], [1, 2]),
    ):
        assert np.abs(changed[0] - together[0]).max() > 1e-6
        np.testing.assert_allclose(changed[1], together[1], atol=1e-13)


def test_forward_refuses_weights_that_do_not_fit():
    with pytest.raises(DuetError, match=r"conv_in.bias: the network needs shape"):
        reference.forward(PROGRAM, {k: v for k, v in WEIGHTS.items() if k != "conv_in.bias"}, START, [0.0, 0.0], LABEL)


BATCH = Objective(Process(linear(), "v"), 0, null_label=3).batch(START, LABEL, np.array([0, 1]), np.float64)


def test_noised_is_the_forward_process_and_its_target():
    x, target = reference.noised(BATCH)
    for i in range(2):
        close(x[i], BATCH.alpha[i] * BATCH.images[i] + BATCH.sigma[i] * BATCH.noise[i])
        close(target[i], BATCH.alpha[i] * BATCH.noise[i] - BATCH.sigma[i] * BATCH.images[i])


@pytest.mark.parametrize("distance, of", [
    ("mse", lambda r: r * r), ("l1", abs), ("huber", lambda r: r * r / 2 if abs(r) <= 1 else abs(r) - 0.5),
])  # fmt: skip
def test_loss_is_the_weighted_mean_of_distances(distance, of):
    batch: TrainBatch = replace(BATCH, weight=np.array([0.5, 3.0]), c_in=np.array([0.7, 1.1]))
    x, target = reference.noised(batch)
    output = reference.forward(PROGRAM, WEIGHTS, x * batch.c_in[:, None, None, None], batch.c_noise, LABEL)
    residual = output - target
    assert np.abs(residual).max() > 1 > np.abs(residual).min()
    expected = np.mean(
        [w * np.mean([of(r) for r in image.ravel()]) for w, image in zip((0.5, 3.0), residual, strict=True)]
    )
    assert reference.loss(PROGRAM, WEIGHTS, batch, distance) == pytest.approx(expected, rel=1e-12)


def network(x, c_noise, label):
    return reference.forward(PROGRAM, WEIGHTS, x, np.full(len(x), c_noise), np.broadcast_to(label, len(x)))


def test_sample_follows_a_guided_and_clipped_plan():
    plan = ddim(Process(linear(), "eps"), 4, eta=0.7, clip=0.5).with_guidance([1.0, 3.0, 0.0, 1.0])
    noise = {row: Stream(1, "z").normal([0, 1], (4, 4, 1), row) for row in range(4)}
    seen, asked = [], []

    def source(row):
        asked.append(row)
        return noise[row]

    got = reference.sample(PROGRAM, WEIGHTS, plan, START, LABEL, source, lambda *a: seen.append(a))
    x, clipped = START, 0
    for i, t in enumerate(plan.t):
        alpha, after, sigma, left = plan.alpha[i], plan.alpha[i + 1], plan.sigma[i], plan.sigma[i + 1]
        eps = network(x, t, LABEL)
        if plan.guidance[i] != 1:
            none = network(x, t, 3)
            eps = none + plan.guidance[i] * (eps - none)
        estimate = (x - sigma * eps) / alpha
        clipped += np.count_nonzero(np.abs(estimate) > 0.5)
        estimate = np.clip(estimate, -0.5, 0.5)
        fresh = 0.7 * left / sigma * math.sqrt(1 - (alpha / after) ** 2) if left else 0.0
        direction = (x - alpha * estimate) / sigma
        x = after * estimate + math.sqrt(left**2 - fresh**2) * direction + fresh * noise[i]
        np.testing.assert_allclose(seen[i][1], x, atol=1e-9)
        np.testing.assert_allclose(seen[i][2], estimate, atol=1e-9)
    np.testing.assert_allclose(got, x, atol=1e-9)
    assert clipped and asked == [0, 1, 2] and [row for row, _, _ in seen] == [0, 1, 2, 3]


def test_sample_keeps_registers_and_history():
    # Any numbers will do: a plan of two registers and two estimates is not held to the one-register identity.
    rows = 3
    base = {name: numbers(name, rows) for name in ("c_skip", "c_out", "c_in")}
    plan = SamplerPlan(
        name="made up", t=np.arange(rows)[::-1], alpha=np.ones(rows + 1), sigma=np.ones(rows + 1),
        c_noise=np.array([5.0, 3.0, 1.0]), guidance=np.ones(rows), state=numbers("state", rows, 2, 2),
        denoised=numbers("denoised", rows, 2, 2), noise=numbers("noise", rows, 2), **base,
    )  # fmt: skip
    noise = [Stream(1, "z").normal([0, 1], (4, 4, 1), row) for row in range(rows)]
    got = reference.sample(PROGRAM, WEIGHTS, plan, START, LABEL, lambda row: noise[row])
    first, second, before = START, np.zeros_like(START), np.zeros_like(START)
    for i in range(rows):
        output = network(plan.c_in[i] * first, plan.c_noise[i], LABEL)
        now = plan.c_skip[i] * first + plan.c_out[i] * output
        first, second = (
            plan.state[i, r, 0] * first + plan.state[i, r, 1] * second
            + plan.denoised[i, r, 0] * now + plan.denoised[i, r, 1] * before + plan.noise[i, r] * noise[i]
            for r in (0, 1)
        )  # fmt: skip
        before = now
    np.testing.assert_allclose(got, first, rtol=1e-10, atol=1e-10)
