"""Laws of the magnitude-preserving blocks, on the NumPy reference."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_core.backend.reference import block_function, per_image_losses
from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.networks import Node, Program
from diffusion_core.networks.blocks.magnitude import (
    Clip,
    MPAttention,
    MPConcat,
    MPConv,
    MPFourier,
    MPLinear,
    MPSiLU,
    MPSum,
    OneHot,
    PixelNorm,
    WithConstant,
)
from diffusion_core.networks.registry import Block
from diffusion_core.networks.weights import initial_weights
from diffusion_core.optim.normalisation import normalise_weights
from diffusion_core.parity import cases


def noise(name: str, *shape: int) -> np.ndarray:
    return Stream(0, name).normal([0], shape)[0]


def value(block: Block, *inputs: np.ndarray) -> np.ndarray:
    """Return the value of a block with its initial weights."""
    kinds = ("x", "estimate") if inputs[0].ndim > 1 else ("c_noise",)
    weights = initial_weights(Program((Node("b", block, kinds[: len(inputs)]),)), 0)
    mode = {"training": None} if block.has_training_mode else {}
    return block_function("b", block, weights)(*inputs, **mode)


def size(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


@pytest.mark.parametrize(
    "block, inputs",
    [
        (MPLinear(256, 512, False, 1e-4), [noise("v", 64, 256)]),
        (MPSiLU(0.596), [noise("x", 4, 32, 32, 8)]),
        (MPSum(0.3), [noise("x", 4, 32, 32, 8), noise("y", 4, 32, 32, 8)]),
        (MPConcat(0.5), [noise("x", 4, 32, 32, 8), noise("y", 4, 32, 32, 24)]),
        (MPConcat(0.3), [noise("x", 4, 32, 32, 24), noise("y", 4, 32, 32, 8)]),
        (MPConv(64, 128, 1, False, 1e-4), [noise("x", 4, 16, 16, 64)]),
        (PixelNorm(1e-4), [7.0 * noise("x", 4, 8, 8, 16)]),
        (MPFourier(512, 1.0), [noise("t", 512)]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Block) else "",
)
def test_inputs_of_size_1_give_values_of_size_1(block, inputs):
    assert size(value(block, *inputs)) == pytest.approx(1.0, abs=0.02)


def test_the_size_of_a_weight_does_not_matter_but_for_eps():
    x, block = noise("x", 2, 5, 5, 3), MPConv(3, 4, 3, False, 0.0)
    weight = noise("w", 4, 3, 3, 3)
    small, large = (block_function("b", block, {"b.weight": k * weight})(x, training=None) for k in (0.1, 10.0))
    np.testing.assert_allclose(small, large, rtol=1e-12)


def test_a_concatenation_has_the_share_of_each_input_whatever_their_widths():
    joined = value(MPConcat(0.3), noise("x", 4, 16, 16, 8), noise("y", 4, 16, 16, 40))
    parts = [np.square(part).sum() for part in np.split(joined, [8], axis=-1)]
    assert parts[1] / sum(parts) == pytest.approx(0.3**2 / (0.3**2 + 0.7**2), abs=0.01)


def test_attention_reads_q_k_and_v_from_neighbouring_channels_and_ignores_their_size():
    """With k of one direction everywhere, attention is the mean of v, whose vectors have size 1."""
    qkv = noise("qkv", 2, 3, 3, 24)
    qkv[..., 1::3] = 1.0
    got = value(MPAttention(8, 2, 0.0), qkv)
    v = qkv[..., 2::3].reshape(2, 9, 2, 4)
    v = v / np.sqrt(np.square(v).mean(axis=-1, keepdims=True))
    np.testing.assert_allclose(got, np.broadcast_to(v.mean(axis=1).reshape(2, 1, 1, 8), got.shape), rtol=1e-12)
    np.testing.assert_allclose(value(MPAttention(8, 2, 0.0), 5.0 * qkv), got, rtol=1e-12)


def test_attention_refuses_heads_that_do_not_divide_the_channels():
    with pytest.raises(DuetError, match=r"model\.head_channels: 3 heads do not divide 8 channels"):
        MPAttention(8, 3, 1e-4)


def test_no_class_is_a_vector_of_zeros():
    labels = np.arange(4)
    np.testing.assert_array_equal(block_function("b", OneHot(3, 2.0), {})(labels), 2.0 * np.eye(4)[:, :3])


def test_the_constant_channel_is_the_last_and_clip_leaves_what_is_within():
    x = noise("x", 1, 2, 2, 3)
    np.testing.assert_array_equal(value(WithConstant(1.0), x), np.concatenate([x, np.ones((1, 2, 2, 1))], axis=-1))
    np.testing.assert_array_equal(value(Clip(0.5), x), np.where(np.abs(x) > 0.5, 0.5 * np.sign(x), x))


def test_phases_start_uniform_on_one_turn_and_frequencies_normal():
    weights = initial_weights(Program((Node("f", MPFourier(4096, 1.0), ("c_noise",)),)), 0)
    phases, frequencies = weights["f.phases"], weights["f.frequencies"]
    assert phases.min() > 0 and phases.max() < 2 * np.pi and phases.mean() == pytest.approx(np.pi, abs=0.1)
    assert frequencies.std() == pytest.approx(2 * np.pi, rel=0.05)


def test_forced_normalisation_gives_rows_of_size_1_and_is_no_projection():
    weights = {"a": 3.0 * noise("a", 5, 4, 3, 3), "b": noise("b", 5, 4), "c": noise("c", 4)}
    once = normalise_weights(weights, {"a": 1e-2, "b": 0.0})
    rows = np.sqrt(np.square(once["a"]).mean(axis=(1, 2, 3)))
    raw = np.sqrt(np.square(weights["a"]).mean(axis=(1, 2, 3)))
    np.testing.assert_allclose(rows, raw / (raw + 1e-2), rtol=1e-12)
    np.testing.assert_allclose(np.square(once["b"]).mean(axis=1), 1.0, rtol=1e-12)
    assert once["c"] is weights["c"]
    assert np.abs(normalise_weights(once, {"a": 1e-2})["a"] - once["a"]).max() > 1e-3


def test_the_loss_of_training_is_that_at_the_normalised_weights():
    program = Program((Node("conv", MPConv(2, 2, 3, False, 0.3), ("x",)),))
    weights, batch = initial_weights(program, 0), cases.noise_batch(program, (4, 4, 2))
    sized = normalise_weights(weights, program.normalised)
    inside = per_image_losses(program, weights, batch, "mse")[0]
    plain = Program((Node("conv", MPConv(2, 2, 3, False, 0.3), ("x",)),))
    object.__setattr__(plain, "normalised", {})  # the same network without the rule
    np.testing.assert_allclose(inside, per_image_losses(plain, sized, batch, "mse")[0], rtol=1e-14)
    assert np.abs(inside - per_image_losses(plain, weights, batch, "mse")[0]).max() > 1e-3
