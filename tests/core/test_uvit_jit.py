"""U-ViT and JiT: exact counts of every preset, where their weights start, and what their options change or refuse."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from diffusion_core.backend import reference
from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.networks import JiTSpec, NetworkSpec, UViTSpec, lower
from diffusion_core.networks.blocks import Dropout
from diffusion_core.networks.blocks.tokens import DropoutAttention, QKNorm, RotaryPositions, SwiGLU
from diffusion_core.networks.flops import multiply_adds
from duet.api.networks import network

# By preset: all elements, and those that are trained; U-ViT has no fixed table.
COUNTS = {
    "uvit_cifar10_small": (44_255_328, 44_255_328),
    "uvit_celeba64_small": (44_292_228, 44_292_228),
    "uvit_imagenet64_mid": (130_940_292, 130_940_292),
    "uvit_imagenet64_large": (286_827_652, 286_827_652),
    "uvit_imagenet256_large": (286_763_172, 286_763_172),
    "uvit_imagenet256_huge": (500_832_016, 500_832_016),
    "uvit_imagenet512_large": (286_861_524, 286_861_524),
    "uvit_imagenet512_huge": (500_942_656, 500_942_656),
    "jit_b": (131_320_320, 131_123_712),
    "jit_b_32": (133_387_008, 133_190_400),
    "jit_l": (459_139_808, 458_877_664),
    "jit_l_32": (461_796_320, 461_534_176),
    "jit_h": (952_842_048, 952_514_368),
    "jit_h_32": (956_383_296, 956_055_616),
}
UVIT = UViTSpec(8, 2, 2, num_classes=3, patch_size=2, channels=8, depth=2, heads=2)
JIT = JiTSpec(
    8, 2, 2, num_classes=3, patch_size=2, bottleneck=5, channels=16, depth=4, heads=2, context=2, context_start=1
)
CHANGES: dict[type[NetworkSpec], dict[str, object]] = {
    UViTSpec: {
        "image_size": 12, "in_channels": 3, "out_channels": 4, "num_classes": 4, "self_conditioning": True,
        "null_class": "none", "patch_size": 4, "channels": 12, "depth": 4, "heads": 4, "mlp_ratio": 3.5,
        "qkv_bias": True, "time_mlp": True, "skips": False, "final_conv": False,
    },
    JiTSpec: {
        "image_size": 12, "in_channels": 3, "out_channels": 4, "num_classes": 4, "self_conditioning": True,
        "patch_size": 4, "bottleneck": 6, "channels": 24, "depth": 5, "heads": 4, "mlp_ratio": 3.5, "context": 3,
        "context_start": 2, "dropout": 0.1, "attention_dropout": 0.1,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_a_preset_has_the_counts_of_the_original(name):
    program = lower(network(name))
    assert (sum(p.size for p in program.parameters), sum(p.size for p in program.trained)) == COUNTS[name]


def test_multiply_adds_are_those_of_the_published_networks():
    # Bao et al., table 7: U-ViT-H/2 133.25 GFLOPs and U-ViT-L/2 76.5, of one multiplication with its addition.
    for name, published in (("uvit_imagenet256_huge", 133.25e9), ("uvit_imagenet256_large", 76.52e9)):
        spec = network(name)
        assert abs(multiply_adds(lower(spec), spec.image_shape) / published - 1) < 0.02, name


@pytest.mark.parametrize("spec", [UVIT, JIT], ids=["uvit", "jit"])
def test_every_option_changes_the_program(spec):
    changes = CHANGES[type(spec)]
    assert changes.keys() == {field.name for field in fields(spec)} - {"init"}
    hashes = {lower(replace(spec, **{option: value})).sha256 for option, value in changes.items()}
    assert len(hashes | {lower(spec).sha256}) == len(changes) + 1


def starts(spec: NetworkSpec) -> dict[str, tuple[str, float]]:
    return {p.name: p.init for p in lower(spec).parameters}


def test_a_uvit_starts_as_the_original():
    start = starts(replace(UVIT, time_mlp=True, qkv_bias=True))
    dense = {name for name in start if name.endswith(".weight")} - {
        name for name in start if ".norm" in name or "conv" in name or name == "embed.label.weight"
    }
    assert len(dense) == 2 + 3 * 4 + 1 + 1  # the time, three blocks, one skip, the last layer
    assert {start[name] for name in dense} == {("normal", 0.02)}
    assert start["positions.table"] == ("normal", 0.02) and start["embed.label.weight"] == ("normal", 1.0)
    # Convolutions keep the start of PyTorch, with their biases.
    assert start["patch.conv.weight"] == start["patch.conv.bias"] == ("uniform", 1 / np.sqrt(2 * 4))
    assert start["final.conv.weight"] == start["final.conv.bias"] == ("uniform", 1 / np.sqrt(2 * 9))
    rest = [value for name, value in start.items() if name.endswith(".bias") and "conv" not in name]
    assert set(rest) == {("constant", 0.0)}


def test_a_jit_starts_as_the_original():
    start, width = starts(JIT), 16
    small = ("normal", 0.02)
    assert start["embed.dense0.weight"] == start["embed.dense1.weight"] == start["embed.label.weight"] == small
    assert start["in_context.positions.table"] == small
    assert start["patch.conv0.weight"] == ("uniform", np.sqrt(6 / (5 + 2 * 4)))
    assert start["patch.conv1.weight"] == ("uniform", np.sqrt(6 / (width + 5)))
    assert start["block.0.attn.qkv.weight"] == ("uniform", np.sqrt(6 / (4 * width)))
    assert start["block.3.mlp.dense0.weight"] == ("uniform", np.sqrt(6 / (width + 2 * JIT.hidden)))
    assert start["block.0.attn.qk_norm.query"] == start["block.0.attn.norm.weight"] == ("constant", 1.0)
    zero = {name for name, value in start.items() if value == ("constant", 0.0) and name.endswith(".weight")}
    assert zero == {"final.dense.weight", *(f"{name}.modulation.weight" for name in
                    ("block.0", "block.1", "block.2", "block.3", "final"))}  # fmt: skip
    assert all(value == ("constant", 0.0) for name, value in start.items() if name.endswith(".bias"))


def test_only_the_middle_half_of_the_blocks_has_dropout():
    spec = replace(JIT, depth=9, dropout=0.2, attention_dropout=0.1)
    nodes = [node for node in lower(spec).nodes if isinstance(node.block, Dropout | DropoutAttention)]
    # depth // 4 = 2 .. 3 (depth // 4) = 6 of nine blocks, as the original counts them.
    assert {int(node.name.split(".")[1]) for node in nodes} == {2, 3, 4, 5}
    assert len(nodes) == 4 * 3 and len({node.block.row for node in nodes}) == len(nodes)
    assert {node.block.rate for node in nodes if isinstance(node.block, DropoutAttention)} == {0.1}


def test_a_table_without_a_null_row_has_no_null_label():
    assert (lower(UVIT).null_label, lower(replace(UVIT, null_class="none")).null_label) == (3, None)
    assert lower(replace(UVIT, null_class="none")).classes == 3
    assert lower(JIT).null_label == 3 and lower(replace(JIT, num_classes=0, context=0)).null_label is None


def random_weights(spec: NetworkSpec) -> dict[str, np.ndarray]:
    return {
        p.name: Stream(1, f"tokens/{p.name}").normal([0], p.shape)[0] / np.sqrt(p.shape[-1])
        for p in lower(spec).parameters
    }


@pytest.mark.parametrize("spec", [UVIT, JIT, replace(JIT, num_classes=0, context=0)], ids=["uvit", "jit", "alone"])
def test_every_input_and_every_parameter_has_an_effect(spec):
    program, weights = lower(spec), random_weights(spec)
    x, t, label = Stream(0, "tokens/x").normal([0], (2, 8, 8, 2))[0], np.array([0.3, 0.7]), np.array([1, 3])

    def run(weights=weights, x=x, t=t, label=label) -> np.ndarray:
        return reference.forward(program, weights, x, t, label)

    base = run()
    assert np.abs(run(t=t + 0.1) - base).max() > 1e-6
    assert (np.abs(run(label=1 - label % 2) - base).max() > 1e-6) == bool(spec.num_classes)
    x_other = x.copy()
    x_other[0, 0, 0, 0] += 1.0
    changed = np.abs(run(x=x_other) - base).max(axis=-1)
    assert changed[0].min() > 0 and changed[1].max() == 0, "attention reaches every pixel of the image, and no other"
    for name, value in weights.items():
        other = run(weights | {name: value + 0.1 * Stream(2, name).normal([0], value.shape)[0]})
        assert np.abs(other - base).max() > 1e-7 or name.endswith("qkv.bias"), name


def test_rotation_keeps_lengths_and_depends_on_distances_alone():
    block = RotaryPositions(8, 1, 3, 3, 1)
    qkv = np.broadcast_to(Stream(0, "rotary").normal([0], (24,))[0], (1, 10, 24))
    turned = reference.BLOCK_FUNCTIONS["RotaryPositions"](block, qkv)[0]
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(qkv[0], axis=1), rtol=1e-14)
    np.testing.assert_array_equal(turned[0], qkv[0, 0])  # the skipped token
    np.testing.assert_array_equal(turned[1], qkv[0, 0])  # row 0, column 0
    np.testing.assert_array_equal(turned[:, 16:], qkv[0, :, 16:])  # v
    q, k = turned[1:, :8].reshape(3, 3, 8), turned[1:, 8:16].reshape(3, 3, 8)
    # One row down, or one column to the right, from anywhere.
    np.testing.assert_allclose((q[1:] * k[:-1]).sum(-1), (q[1, 0] * k[0, 0]).sum(), rtol=1e-12)
    np.testing.assert_allclose((q[:, 1:] * k[:, :-1]).sum(-1), (q[0, 1] * k[0, 0]).sum(), rtol=1e-12)
    # Channels 0 and 1 turn by the row at frequency 1, channels 2 and 3 at 1/100; 4 to 7 by the column.
    one = complex(*q[0, 0, :2]) * np.exp(1j)
    np.testing.assert_allclose(q[1, 0, :2], [one.real, one.imag], rtol=1e-13)
    np.testing.assert_array_equal(q[1, 0, 4:], q[0, 0, 4:])
    slow = complex(*q[0, 0, 6:]) * np.exp(2j / 100)
    np.testing.assert_allclose(q[0, 2, 6:], [slow.real, slow.imag], rtol=1e-13)


REFUSED: list[tuple[NetworkSpec, dict[str, object], str]] = [
    (UVIT, {"patch_size": 3}, "model.patch_size: 3 was given, which does not divide model.image_size=8"),
    (UVIT, {"depth": 3}, "model.depth: 3 was given; it must be even, for blocks on both sides of the middle"),
    (UVIT, {"channels": 9, "heads": 3}, "model.channels: 9 was given; it must be even, for cosines and sines"),
    (UVIT, {"heads": 3}, "model.heads: 3 heads do not divide 8 channels; give a divisor of 8"),
    (UVIT, {"null_class": "zero"}, "model.null_class: 'zero' was given; it must be one of last, none"),
    (UVIT, {"mlp_ratio": 0.0}, "model.mlp_ratio: 0.0 was given; it must be positive"),
    (JIT, {"patch_size": 3}, "model.patch_size: 3 was given, which does not divide model.image_size=8"),
    (JIT, {"heads": 8}, "model.heads: 8 was given for 16 channels; each head needs a multiple of 4 channels"),
    (JIT, {"context": -1}, "model.context: -1 was given; it must be 0 or the number of tokens"),
    (JIT, {"num_classes": 0}, "model.context: 2 was given, but its tokens hold the class, and model.num_classes is 0"),
    (JIT, {"context_start": 4}, "model.context_start: 4 was given; it must be one of the 4 blocks, 0 to 3"),
    (JIT, {"dropout": 1.0}, "model.dropout: 1.0 was given; it must be a probability below 1"),
    (JIT, {"attention_dropout": -0.1}, "model.attention_dropout: -0.1 was given"),
    (JIT, {"mlp_ratio": -1.0}, "model.mlp_ratio: -1.0 was given; it must be positive"),
    (JIT, {"bottleneck": 0}, "model.bottleneck: 0 was given; it must be at least 1"),
]


@pytest.mark.parametrize(("spec", "change", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_an_option_that_does_not_fit_is_refused_by_its_key(spec, change, message):
    with pytest.raises(DuetError, match=message):
        lower(replace(spec, **change))


@pytest.mark.parametrize(("make", "shape", "message"), [
    (lambda: QKNorm(8, 3, 1e-6), (4, 24), "model.heads: 3 heads do not divide 8 channels"),
    (lambda: QKNorm(8, 2, 1e-6), (4, 23), r"block QKNorm: tokens of the shape \(4, 23\) were given; .* of 24 channels"),
    (lambda: RotaryPositions(8, 4, 2, 2, 0), (4, 24), "each head needs a multiple of 4 channels"),
    (lambda: RotaryPositions(8, 2, 2, 2, 1), (4, 24), "block RotaryPositions: 4 tokens were given; it reads 1 and 2 x"),
    (lambda: DropoutAttention(8, 2, 1.0, 0), (4, 24), "model.attention_dropout: 1.0 was given"),
    (lambda: DropoutAttention(8, 2, 0.5, 0), (2, 2, 24), "block DropoutAttention: a value of the shape"),
    (lambda: SwiGLU(), (4, 5), "block SwiGLU: a value of the shape .4, 5. was given; .* even number of channels"),
    (lambda: SwiGLU(), (2, 2, 4), "it reads vectors or tokens"),
])  # fmt: skip
def test_blocks_refuse_other_values(make, shape, message):
    with pytest.raises(DuetError, match=message):
        make().output_shape(shape)
