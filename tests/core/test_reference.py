"""The NumPy reference: every block against loops over single elements, and its executor against a second one."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from diffusion_core.backend import reference
from diffusion_core.backend.interface import TrainBatch
from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import linear
from diffusion_core.networks import Node, Program, UNetSpec, lower
from diffusion_core.networks.blocks import (
    ATTENTION_ORDERS,
    GELU,
    Add,
    Attention,
    AvgPool,
    BatchNorm,
    Concat,
    Conv,
    ConvTranspose,
    Dropout,
    Embedding,
    Flatten,
    Fourier,
    GroupNorm,
    LayerNorm,
    Linear,
    MaxPool,
    Mean,
    Modulate,
    Multiply,
    Number,
    ReLU,
    Resample,
    Sigmoid,
    SiLU,
    Sinusoid,
    Unflatten,
    Upsample,
)
from diffusion_core.networks.program import Training
from diffusion_core.networks.weights import initial_weights
from diffusion_core.sampling import SamplerPlan
from diffusion_core.sampling.ddim import ddim
from diffusion_core.training.objective import Objective


def numbers(name: str, *shape: int) -> np.ndarray:
    return Stream(0, f"reference/{name}").normal([0], shape)[0]


def apply(block, *inputs, training=None, **weights):
    """Apply the reference function of a block."""
    assert {p.name: p.shape for p in block.parameters()} == {name: value.shape for name, value in weights.items()}
    told = {"training": training} if block.has_training_mode else {}
    return reference.block_function("n", block, {f"n.{k}": v for k, v in weights.items()})(*inputs, **told)


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


@pytest.mark.parametrize("kernel, stride, crop", [(2, 2, 0), (4, 2, 1), (3, 1, 1), (3, 2, 0), (1, 1, 0)])
def test_a_transposed_convolution_is_the_adjoint_of_the_convolution(kernel, stride, crop):
    # <conv(x), y> = <x, transposed(y)> for all x and y: the outputs of one are the inputs of the other.
    large = ConvTranspose(3, 6, kernel, stride, crop, False, 1.0)
    small = Conv(6, 3, kernel, stride, (crop,) * 4, False, 1.0)
    weight, y = numbers("w", 3, 6, kernel, kernel), numbers("y", 2, 3, 4, 3)
    transposed = apply(large, y, weight=weight)
    assert transposed.shape == (2, 2 * stride + kernel - 2 * crop, 3 * stride + kernel - 2 * crop, 6)
    x = numbers("other side", *transposed.shape)
    assert np.sum(apply(small, x, weight=weight) * y) == pytest.approx(np.sum(x * transposed), rel=1e-12)
    bias = numbers("b", 6)
    biased = apply(replace(large, bias=True), y, weight=weight, bias=bias)
    close(biased, transposed + bias)


def test_a_transposed_convolution_writes_the_kernel_around_a_pixel():
    block, weight, x = ConvTranspose(1, 1, 3, 2, 0, False, 1.0), numbers("w", 1, 1, 3, 3), np.zeros((1, 2, 2, 1))
    x[0, 1, 0, 0] = 2.0
    expected = np.zeros((5, 5))
    expected[2:, :3] = 2 * weight[0, 0]
    close(apply(block, x, weight=weight)[0, :, :, 0], expected)
    close(apply(replace(block, crop=1), x, weight=weight)[0, :, :, 0], expected[1:4, 1:4])


@pytest.mark.parametrize("groups, eps", [(1, 1e-6), (2, 1e-5), (3, 0.5), (6, 1e-5)])
def test_group_norm_normalises_each_group(groups, eps):
    weight, bias = numbers("w", 6), numbers("b", 6)
    expected, size = np.zeros_like(X), 6 // groups
    for n in range(2):
        for g in range(groups):
            part = X[n, :, :, g * size : (g + 1) * size]
            normed = (part - np.mean(part)) / math.sqrt(np.var(part) + eps)
            expected[n, :, :, g * size : (g + 1) * size] = normed
    close(apply(GroupNorm(6, groups, eps), X, weight=weight, bias=bias), expected * weight + bias)


def test_group_norm_is_precise_for_large_values():
    # A variance computed as mean of squares minus squared mean would lose all digits.
    block, ones, zeros = GroupNorm(6, 2, 1e-5), np.ones(6), np.zeros(6)
    apart = apply(block, X + 1e8, weight=ones, bias=zeros)
    np.testing.assert_allclose(apart, apply(block, X, weight=ones, bias=zeros), atol=1e-6)


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_a_layer_norm_of_channels_is_a_group_norm_of_one_pixel(eps):
    weight, bias = numbers("w", 6), numbers("b", 6)
    got = apply(LayerNorm((6,), eps), X, weight=weight, bias=bias)
    pixels = apply(GroupNorm(6, 1, eps), X.reshape(-1, 1, 1, 6), weight=weight, bias=bias)
    close(got, pixels.reshape(X.shape))
    close(apply(LayerNorm((6,), eps), X[:, 0, 0], weight=weight, bias=bias), got[:, 0, 0])


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_a_layer_norm_of_images_is_a_group_norm_of_one_group_with_a_scale_per_number(eps):
    x, weight, bias = X[:, :3], numbers("w", 6, 3, 4), numbers("b", 6, 3, 4)
    normed = apply(GroupNorm(6, 1, eps), x, weight=np.ones(6), bias=np.zeros(6))
    expected = np.zeros_like(x)
    for n, y, column, c in np.ndindex(*x.shape):
        expected[n, y, column, c] = normed[n, y, column, c] * weight[c, y, column] + bias[c, y, column]
    close(apply(LayerNorm((6, 3, 4), eps), x, weight=weight, bias=bias), expected)


# Batch normalisation


def statistics(n: int = 6) -> dict[str, np.ndarray]:
    """Return scale, shift and running statistics, all different from their initial values."""
    return {"weight": numbers("w", n), "bias": numbers("b", n), "mean": numbers("mean", n),
            "variance": 0.5 + numbers("variance", n) ** 2}  # fmt: skip


def fresh(n: int = 6) -> dict[str, np.ndarray]:
    return {"weight": np.ones(n), "bias": np.zeros(n), "mean": np.zeros(n), "variance": np.ones(n)}


def training(*positions: int) -> Training:
    return Training(np.array(Stream(0, "train/dropout").key), np.array(positions, np.int64))


@pytest.mark.parametrize("x", [X, X[:, 0, 0], X[:, :, :3]], ids=["image", "vector", "wide image"])
def test_batch_norm_in_training_gives_mean_0_and_variance_1(x):
    got = apply(BatchNorm(6, 0.0, 0.1), x, training=training(0, 1), **fresh()).reshape(-1, 6)
    np.testing.assert_allclose(got.mean(axis=0), 0.0, atol=1e-14)
    np.testing.assert_allclose(np.square(got).mean(axis=0), 1.0, rtol=1e-12)


def test_batch_norm_in_training_ignores_running_statistics():
    block, own = BatchNorm(6, 1e-3, 0.1), statistics()
    got = apply(block, X, training=training(0, 1), **own)
    close(apply(block, X, training=training(0, 1), **own | {"mean": np.zeros(6), "variance": np.ones(6)}), got)
    # Normalise over batch and pixels, with eps under the root, then scale and shift.
    for c in range(6):
        part = X[..., c]
        expected = (part - np.mean(part)) / math.sqrt(np.var(part) + 1e-3) * own["weight"][c] + own["bias"][c]
        close(got[..., c], expected)


def test_batch_norm_in_evaluation_uses_the_running_statistics_alone():
    own = statistics()
    got = apply(BatchNorm(6, 1e-3, 0.1), X, **own)
    for n, y, x, c in np.ndindex(*X.shape):
        normed = (X[n, y, x, c] - own["mean"][c]) / math.sqrt(own["variance"][c] + 1e-3)
        assert got[n, y, x, c] == pytest.approx(normed * own["weight"][c] + own["bias"][c], rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.5, 1.0])
def test_momentum_is_the_weight_of_the_new_statistics(momentum):
    own, told = statistics(), training(0, 1)
    apply(BatchNorm(6, 1e-3, momentum), X, training=told, **own)
    pixels = X.reshape(-1, 6)
    close(told.statistics["n.mean"], (1 - momentum) * own["mean"] + momentum * np.mean(pixels, axis=0))
    # The unbiased variance: the sum of squares over n - 1.
    unbiased = np.sum((pixels - np.mean(pixels, axis=0)) ** 2, axis=0) / (len(pixels) - 1)
    close(told.statistics["n.variance"], (1 - momentum) * own["variance"] + momentum * unbiased)


def test_running_statistics_converge_to_those_of_a_repeated_batch():
    block, own = BatchNorm(6, 1e-5, 0.3), fresh()
    for _ in range(100):
        told = training(0, 1)
        apply(block, X, training=told, **own)
        own |= {name: told.statistics[f"n.{name}"] for name in ("mean", "variance")}
    pixels = X.reshape(-1, 6)
    close(own["mean"], np.mean(pixels, axis=0))
    close(own["variance"], np.var(pixels, axis=0, ddof=1))
    # Training and evaluation then differ by the factor n/(n-1) of the variance.
    shrunk = apply(block, X, **own) * np.sqrt((own["variance"] + 1e-5) / (np.var(pixels, axis=0) + 1e-5))
    np.testing.assert_allclose(shrunk, apply(block, X, training=training(0, 1), **own), atol=1e-12)


# Dropout


def test_dropout_in_evaluation_is_the_identity():
    np.testing.assert_array_equal(apply(Dropout(0.9, 0), X), X)


@pytest.mark.parametrize("rate, row", [(0.0, 0), (0.25, 0), (0.5, 3), (0.9, 1)])
def test_dropout_drops_where_a_uniform_number_of_the_stream_is_below_the_rate(rate, row):
    positions = [5, 2**33 + 7]
    kept = Stream(0, "train/dropout").uniform(positions, 4 * 4 * 6, row) > rate
    expected = np.zeros_like(X)
    for n, y, x, c in np.ndindex(*X.shape):
        if kept[n, (y * 4 + x) * 6 + c]:  # counted in the order h w c
            expected[n, y, x, c] = X[n, y, x, c] / (1 - rate)
    close(apply(Dropout(rate, row), X, training=training(*positions)), expected)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_its_fraction_and_keeps_the_mean(rate):
    x = np.ones((4, 50, 50, 10))
    got = apply(Dropout(rate, 0), x, training=training(0, 1, 2, 3))
    spread = math.sqrt(rate * (1 - rate) / x.size)
    assert abs(np.mean(got == 0) - rate) < 4 * spread
    assert abs(np.mean(got) - 1) < 4 * spread / (1 - rate)
    np.testing.assert_array_equal(np.unique(got), [0.0, 1 / (1 - rate)])


def dropped(*positions: int, row: int = 0, key: str = "train/dropout", rate: float = 0.5) -> np.ndarray:
    told = Training(np.array(Stream(0, key).key), np.array(positions))
    return apply(Dropout(rate, row), np.ones((len(positions), 8, 8, 4)), training=told) == 0


def test_dropout_of_an_image_depends_on_its_position_row_and_key_alone():
    together = dropped(9, 4, 2**40)
    for at, position in enumerate((9, 4, 2**40)):
        np.testing.assert_array_equal(dropped(position)[0], together[at])
    for other in (dropped(4), dropped(9 + 2**32), dropped(9, row=1), dropped(9, key="train/noise")):
        # Two unrelated sets of 256 coins agree on 128 of them, with a standard deviation of 8.
        assert abs(np.count_nonzero(other[0] == together[0]) - 128) < 4 * 8
    # A higher rate drops more of the same.
    assert np.all(dropped(9, rate=0.6) | ~dropped(9, rate=0.4)) and np.any(dropped(9, rate=0.6) & ~dropped(9, rate=0.4))


# Attention


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


def channel(order: str, which: int, head: int, at: int, heads: int, width: int) -> int:
    """Return the channel of q (0), k (1) or v (2) of a head, by counting."""
    return {
        "qkv": (which * heads + head) * width + at,
        "heads": (head * 3 + which) * width + at,
        "interleaved": (head * width + at) * 3 + which,
    }[order]


@pytest.mark.parametrize("order", ATTENTION_ORDERS)
def test_orders_of_attention_are_permutations_of_one_another(order):
    heads, width = 2, 3
    qkv = numbers("qkv", 2, 3, 2, 3 * heads * width)
    other = np.zeros_like(qkv)
    for which, head, at in itertools.product(range(3), range(heads), range(width)):
        there, here = (channel(name, which, head, at, heads, width) for name in (order, "qkv"))
        other[..., there] = qkv[..., here]
    # The output has one order, head by head, whatever the input's.
    close(apply(Attention(6, heads, order), other), apply(Attention(6, heads), qkv))


# Numbers and labels


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


@pytest.mark.parametrize("sin_first", [True, False])
def test_fourier_counts_whole_turns(sin_first):
    c_noise, turns = np.array([0.0, 0.5, -1.25]), np.array([1.0, 0.25, 3.5])
    expected = np.zeros((3, 6))
    for i, k in itertools.product(range(3), range(3)):
        angle = 2 * math.pi * turns[k] * c_noise[i]
        first, second = (math.sin, math.cos) if sin_first else (math.cos, math.sin)
        expected[i, k], expected[i, 3 + k] = first(angle), second(angle)
    got = apply(Fourier(6, 16.0, sin_first), c_noise, frequencies=turns)
    np.testing.assert_allclose(got, expected, atol=1e-13)
    assert np.abs(got[1, 3 * (not sin_first)]) < 1e-15  # the sine of half a turn is zero


def test_number_scales_its_input():
    close(apply(Number(0.25), np.array([3.0, -8.0])), [[0.75], [-2.0]])


def test_linear_is_a_sum_over_its_inputs():
    x, weight, bias = numbers("v", 2, 3), numbers("w", 4, 3), numbers("b", 4)
    expected = [[sum(x[n, i] * weight[o, i] for i in range(3)) + bias[o] for o in range(4)] for n in range(2)]
    close(apply(Linear(3, 4, True, 1.0), x, weight=weight, bias=bias), expected)
    close(apply(Linear(3, 4, False, 1.0), x, weight=weight), np.array(expected) - bias)


def test_embedding_is_a_row_per_label():
    weight = numbers("w", 5, 3)
    close(apply(Embedding(5, 3), np.array([4, 0, 4]), weight=weight), [weight[4], weight[0], weight[4]])


def test_the_label_after_the_last_row_gives_zeros():
    weight = numbers("w", 5, 3)
    got = apply(Embedding(5, 3, zero=True), np.array([4, 5, 0]), weight=weight)
    close(got, [weight[4], np.zeros(3), weight[0]])


# Activations


def test_silu_is_x_times_its_logistic():
    close(apply(SiLU(), X), np.reshape([x / (1 + math.exp(-x)) for x in X.ravel()], X.shape))


def test_relu_and_sigmoid():
    close(apply(ReLU(), X), np.reshape([x if x > 0 else 0.0 for x in X.ravel()], X.shape))
    close(apply(Sigmoid(), X), np.reshape([(1 + math.tanh(x / 2)) / 2 for x in X.ravel()], X.shape))


def test_gelu_is_x_times_the_normal_distribution():
    # Phi(1) and Phi(2) from tables; the approximation with tanh has an error of 1e-4.
    close(apply(GELU(), np.array([[0.0, 1.0, -2.0]])), [[0.0, 0.841344746068543, -2 * 0.022750131948179]])
    # Phi by the integral of its density: Simpson's rule from 0.
    steps = np.linspace(0.0, 1.0, 2001)
    simpson = np.where(np.arange(2001) % 2, 4.0, 2.0)
    simpson[[0, -1]] = 1.0
    values = X.reshape(-1, 1)
    density = np.exp(-((values * steps) ** 2) / 2) / math.sqrt(2 * math.pi)
    phi = 0.5 + values[:, 0] * (density @ simpson) / (3 * 2000)
    np.testing.assert_allclose(apply(GELU(), X).ravel(), values[:, 0] * phi, atol=1e-12)


# Sums, joins and sizes


def test_add_multiply_modulate_and_concat():
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


def test_a_vector_acts_on_every_pixel():
    other, vector = numbers("other", 2, 4, 4, 6), numbers("vector", 2, 6)
    close(apply(Multiply(), X, other), X * other)
    close(apply(Multiply(), vector, vector), vector**2)
    multiplied, joined = apply(Multiply(), X, vector), apply(Concat(), X, vector[:, :2])
    assert joined.shape == (2, 4, 4, 8)
    for n, y, x in np.ndindex(2, 4, 4):
        close(multiplied[n, y, x], X[n, y, x] * vector[n])
        close(joined[n, y, x], [*X[n, y, x], *vector[n, :2]])
    close(apply(Concat(), vector, vector[:, :2])[0], [*vector[0], *vector[0, :2]])


def test_resampling_by_hand():
    up, down = apply(Upsample(), X), apply(AvgPool(), X)
    assert up.shape == (2, 8, 8, 6) and down.shape == (2, 2, 2, 6)
    for n, y, x, c in np.ndindex(*up.shape):
        assert up[n, y, x, c] == X[n, y // 2, x // 2, c]
    for n, y, x, c in np.ndindex(*down.shape):
        mean = sum(X[n, 2 * y + i, 2 * x + j, c] for i in (0, 1) for j in (0, 1)) / 4
        assert down[n, y, x, c] == pytest.approx(mean, rel=1e-12)
    close(apply(AvgPool(), up), X)
    largest = apply(MaxPool(), X)
    for n, y, x, c in np.ndindex(*largest.shape):
        assert largest[n, y, x, c] == max(X[n, 2 * y + i, 2 * x + j, c] for i in (0, 1) for j in (0, 1))
    close(apply(MaxPool(), up), X)


@pytest.mark.parametrize("taps, padding", [((1.0, 3.0, 3.0, 1.0), 1), ((1.0, 2.0, 1.0), 1), ((1.0, 3.0, 3.0, 1.0), 0)])
def test_a_filter_is_a_convolution_of_each_channel_and_its_transpose(taps, padding):
    taps = np.array(taps)
    kernel, size = np.outer(taps, taps) / np.sum(taps) ** 2, len(taps)
    own = np.zeros((6, 6, size, size))
    own[range(6), range(6)] = kernel
    down = apply(Conv(6, 6, size, 2, (padding,) * 4, False, 1.0), X, weight=own)
    close(apply(Resample("down", tuple(taps), padding), X), down)
    up = apply(ConvTranspose(6, 6, size, 2, padding, False, 1.0), X, weight=4 * own)
    close(apply(Resample("up", tuple(taps), padding), X), up)


@pytest.mark.parametrize("rule, at", [
    ("bilinear", lambda i, n: min(max((i + 0.5) / 2 - 0.5, 0), n - 1)),
    ("bilinear_corners", lambda i, n: i * (n - 1) / (2 * n - 1)),
])  # fmt: skip
def test_bilinear_is_the_weighted_mean_of_four_pixels(rule, at):
    x = X[:, :3]
    got = apply(Resample(rule), x)
    assert got.shape == (2, 6, 8, 6)
    for n, i, j, c in np.ndindex(*got.shape):
        y, z = at(i, 3), at(j, 4)
        above, left = min(int(y), 1), min(int(z), 2)
        below, right = y - above, z - left
        rows = x[n, above : above + 2, left : left + 2, c]
        expected = np.array([1 - below, below]) @ rows @ np.array([1 - right, right])
        assert got[n, i, j, c] == pytest.approx(expected, rel=1e-12, abs=1e-13)


def test_flatten_goes_row_by_row_and_pixel_by_pixel():
    flat = apply(Flatten(), X[:, :3])
    assert flat.shape == (2, 3 * 4 * 6)
    for n, y, x, c in np.ndindex(2, 3, 4, 6):
        assert flat[n, (y * 4 + x) * 6 + c] == X[n, y, x, c]
    np.testing.assert_array_equal(apply(Unflatten(3, 4), flat), X[:, :3])


def test_mean_is_taken_per_channel():
    np.testing.assert_allclose(apply(Mean(), X[:, :3]), X[:, :3].reshape(2, 12, 6).sum(axis=1) / 12, rtol=1e-12)


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


def test_images_of_a_batch_are_independent():
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
    ("pseudo_huber", lambda r: math.hypot(r, 0.03) - 0.03),
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


# A training batch of two: both blocks with a training mode, and one more channel than the image.
LIVELY = Program(
    (
        Node("conv", Conv(1, 2, 1, 1, (0, 0, 0, 0), True, 1.0), ("x",)),
        Node("norm", BatchNorm(2, 1e-3, 0.1), ("conv",)),
        Node("dense", Linear(3, 2, False, 1.0), ("features",)),
        Node("sum", Add(1.0), ("norm", "dense")),
        Node("drop", Dropout(0.4, 2), ("sum",)),
    ),
    features=3,
)
LIVELY_WEIGHTS = initial_weights(LIVELY, 0) | {f"norm.{name}": value for name, value in statistics(2).items()}


def test_a_training_pass_runs_blocks_in_training_mode():
    batch = replace(BATCH, features=numbers("features", 2, 3), positions=np.array([7, 3]))
    x, target = reference.noised(batch)
    weights = LIVELY_WEIGHTS
    conv = x * weights["conv.weight"][:, 0, 0, 0] + weights["conv.bias"]
    own = {name: weights[f"norm.{name}"] for name in ("weight", "bias", "mean", "variance")}
    told = Training(batch.dropout_key, batch.positions)
    h = apply(BatchNorm(2, 1e-3, 0.1), conv, training=told, **own)
    h = h + (batch.features @ weights["dense.weight"].T)[:, None, None]
    h = apply(Dropout(0.4, 2), h, training=told)
    # Only the first of the two channels is compared with the target.
    expected = np.mean((h[..., :1] - target) ** 2)
    loss, moved = reference.training_pass(LIVELY, weights, batch, "mse")
    assert loss == pytest.approx(expected, rel=1e-12) == reference.loss(LIVELY, weights, batch, "mse")
    assert set(moved) == {"norm.mean", "norm.variance"}
    for name in ("mean", "variance"):
        close(moved[f"norm.{name}"], told.statistics[f"n.{name}"])
        assert np.all(moved[f"norm.{name}"] != own[name])


def test_evaluation_drops_nothing_and_mixes_no_images():
    x, features = numbers("x", 2, 4, 4, 1), numbers("features", 2, 3)
    together = reference.forward(LIVELY, LIVELY_WEIGHTS, x, [0, 0], [0, 0], features)
    assert np.all(together != 0)
    alone = reference.forward(LIVELY, LIVELY_WEIGHTS, x[1:], [0], [0], features[1:])
    np.testing.assert_allclose(alone[0], together[1], atol=1e-13)


def test_missing_features_are_zeros():
    x = numbers("x", 2, 4, 4, 1)
    bare = reference.forward(LIVELY, LIVELY_WEIGHTS, x, [0, 0], [0, 0])
    np.testing.assert_array_equal(bare, reference.forward(LIVELY, LIVELY_WEIGHTS, x, [0, 0], [0, 0], np.zeros((2, 3))))
    features = numbers("features", 2, 3)
    given = reference.forward(LIVELY, LIVELY_WEIGHTS, x, [0, 0], [0, 0], features)
    close(given - bare, np.broadcast_to((features @ LIVELY_WEIGHTS["dense.weight"].T)[:, None, None], bare.shape))


def test_sampling_uses_the_first_channels_of_an_output():
    plan = ddim(Process(linear(), "eps"), 3)
    first = Program((Node("conv", Conv(1, 1, 1, 1, (0, 0, 0, 0), True, 1.0), ("x",)),))
    wide = Program((Node("conv", Conv(1, 2, 1, 1, (0, 0, 0, 0), True, 1.0), ("x",)),))
    weights = {"conv.weight": numbers("w", 2, 1, 1, 1), "conv.bias": numbers("b", 2)}
    images = [
        reference.sample(program, {k: v[:n] for k, v in weights.items()}, plan, START, np.zeros(2, int), None)
        for program, n in ((first, 1), (wide, 2))
    ]
    np.testing.assert_array_equal(*images)


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
        if plan.guidance_scale[i] != 1:
            none = network(x, t, 3)
            eps = none + plan.guidance_scale[i] * (eps - none)
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
    # Arbitrary numbers: a plan that preserves "nothing" is not checked for consistency of its rows.
    rows = 3
    base = {name: numbers(name, rows) for name in ("c_skip", "c_out", "c_in")}
    plan = SamplerPlan(
        name="made up", t=np.arange(rows)[::-1], alpha=np.ones(rows + 1), sigma=np.ones(rows + 1),
        c_noise=np.array([5.0, 3.0, 1.0]), guidance_scale=np.ones(rows), state=numbers("state", rows, 2, 2),
        denoised=numbers("denoised", rows, 2, 2), noise=numbers("noise", rows, 2), preserves="nothing",
        **base,
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
