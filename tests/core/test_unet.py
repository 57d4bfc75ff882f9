"""The network as data: parameter counts, names, hashes, and invalid programs and specs."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from diffusion_core.common.errors import DuetError
from diffusion_core.networks import Node, Program, Training, UNetSpec, lower
from diffusion_core.networks.blocks import (
    Add,
    Attention,
    BatchNorm,
    Conv,
    Dropout,
    Fourier,
    GroupNorm,
    LayerNorm,
    Linear,
    Resample,
    SiLU,
)
from diffusion_core.networks.weights import parameter_count

TINY = UNetSpec(4, 1, 1, 4, (1, 2), 1, (2,), norm_groups=2, num_classes=3)


def test_count_of_a_tiny_network_by_hand():
    # One level of width 4, embedding 16: sums of (inputs outputs area + bias), norms 2 per channel.
    spec = UNetSpec(4, 1, 2, 4, (1,), 1, (), middle_attention=False, norm_groups=2)
    embed = (4 * 16 + 16) + (16 * 16 + 16)
    same = 8 + (4 * 4 * 9 + 4) + (16 * 4 + 4) + 8 + (4 * 4 * 9 + 4)
    joined = 16 + (8 * 4 * 9 + 4) + (16 * 4 + 4) + 8 + (4 * 4 * 9 + 4) + (8 * 4 + 4)
    ends = (1 * 4 * 9 + 4) + 8 + (4 * 2 * 9 + 2)
    assert parameter_count(lower(spec)) == embed + 3 * same + 2 * joined + ends  # down, two in the middle; two up


def test_names_and_shapes_of_a_tiny_network():
    spec = replace(TINY, channel_multipliers=(1,), attention_resolutions=(4,), middle_attention=False, qkv_bias=False)
    manifest = {p.name: p.shape for p in lower(spec).parameters}
    block = {
        "norm0.weight": (4,), "norm0.bias": (4,), "conv0.weight": (4, 4, 3, 3), "conv0.bias": (4,),
        "time.weight": (4, 16), "time.bias": (4,), "norm1.weight": (4,), "norm1.bias": (4,),
        "conv1.weight": (4, 4, 3, 3), "conv1.bias": (4,),
    }  # fmt: skip
    wide = block | {"norm0.weight": (8,), "norm0.bias": (8,), "conv0.weight": (4, 8, 3, 3)}
    wide |= {"shortcut.weight": (4, 8, 1, 1), "shortcut.bias": (4,)}
    attention = {
        "norm.weight": (4,), "norm.bias": (4,), "qkv.weight": (12, 4, 1, 1),
        "proj.weight": (4, 4, 1, 1), "proj.bias": (4,),
    }  # fmt: skip
    expected = {
        "embed.dense0.weight": (16, 4), "embed.dense0.bias": (16,),
        "embed.dense1.weight": (16, 16), "embed.dense1.bias": (16,), "embed.label.weight": (4, 16),
        "conv_in.weight": (4, 1, 3, 3), "conv_in.bias": (4,),
    }  # fmt: skip
    for prefix, parts in (
        ("down.0.0.block", block), ("down.0.0.attn", attention), ("mid.block0", block), ("mid.block1", block),
        ("up.0.0.block", wide), ("up.0.0.attn", attention), ("up.0.1.block", wide), ("up.0.1.attn", attention),
    ):  # fmt: skip
        expected |= {f"{prefix}.{name}": shape for name, shape in parts.items()}
    expected |= {
        "out.norm.weight": (4,), "out.norm.bias": (4,), "out.conv.weight": (1, 4, 3, 3), "out.conv.bias": (1,),
    }  # fmt: skip
    assert manifest == expected
    assert list(manifest) != sorted(manifest) and next(iter(manifest)) == "embed.dense0.weight"


def test_names_of_blocks_in_the_order_of_computation():
    names = [node.name for node in lower(replace(TINY, attention_resolutions=()))
             .nodes if node.kind in ("Conv", "Attention")]  # fmt: skip
    assert names == [
        "conv_in", "down.0.0.block.conv0", "down.0.0.block.conv1", "down.0.down.conv",
        "down.1.0.block.conv0", "down.1.0.block.conv1", "down.1.0.block.shortcut",
        "mid.block0.conv0", "mid.block0.conv1",
        "mid.attn.qkv", "mid.attn.attend", "mid.attn.proj", "mid.block1.conv0", "mid.block1.conv1",
        "up.1.0.block.conv0", "up.1.0.block.conv1", "up.1.0.block.shortcut",
        "up.1.1.block.conv0", "up.1.1.block.conv1", "up.1.1.block.shortcut", "up.1.up.conv",
        "up.0.0.block.conv0", "up.0.0.block.conv1", "up.0.0.block.shortcut",
        "up.0.1.block.conv0", "up.0.1.block.conv1", "up.0.1.block.shortcut", "out.conv",
    ]  # fmt: skip


# Options without effect on the tiny network are changed in a network on which they have one.
SONG = replace(
    TINY, embedding="fourier", encoder="residual", down="block", up="block", resample_filter=(1.0, 3.0, 3.0, 1.0)
)
SONG_CHANGES = {
    "embedding_scale": 8.0, "resample_filter": (1.0, 2.0, 2.0, 1.0), "resample_projection": True, "encoder": "standard",
    "embedding": "sinusoid",
}  # fmt: skip
# The start of the weights is no part of the function; the width of the first convolution is that of the first level.
OTHERS = {"image_size", "init", "first_conv"}
CHANGES = {
    "up_attention": "last", "qkv_order": "heads", "norm_group_channels": 4, "dropout": 0.1, "embedding_multiplier": 2,
    "class_embedding": "before", "null_class": "zero", "augment_dim": 9,
    "in_channels": 2, "out_channels": 2, "channels": 8, "channel_multipliers": (1, 1), "blocks_per_resolution": 2,
    "attention_resolutions": (4, 2), "middle_attention": False, "heads": 2, "head_channels": 2, "qkv_bias": False,
    "norm_groups": 1, "norm_eps": 1e-5, "time": "scale_shift", "embedding_divisor": "half",
    "embedding_sin_first": False, "down": "pool", "up": "nearest", "down_padding": (0, 1), "skip_scale": 0.5,
    "zero_init": False, "num_classes": 4, "self_conditioning": True, "up_attention_resolutions": (4,), "middle": False,
    "middle_norm_groups": 0, "middle_skip_scale": 0.5, "activation": "gelu", "embedding_width": 9,
    "second_time": True,
}  # fmt: skip


def test_every_option_changes_the_hash():
    # The image size changes no block: the same weights work at any size.
    assert CHANGES.keys() | SONG_CHANGES.keys() == {field.name for field in fields(UNetSpec)} - OTHERS
    hashes = {lower(replace(TINY, **{name: value})).sha256 for name, value in CHANGES.items()}
    hashes |= {lower(replace(SONG, **{name: value})).sha256 for name, value in SONG_CHANGES.items()}
    hashes |= {lower(replace(TINY, **{name: "block"})).sha256 for name in ("down", "up")}
    hashes |= {lower(replace(TINY, down_padding=(1, 0))).sha256, lower(TINY).sha256, lower(SONG).sha256}
    assert len(hashes) == len(CHANGES) + len(SONG_CHANGES) + 5
    assert lower(replace(TINY)).sha256 == lower(TINY).sha256
    for change in ({"null_label": 2}, {"classes": 2}, {"features": 2}):
        assert replace(lower(TINY), **change).sha256 not in hashes


@pytest.mark.parametrize("changes, widths", [
    ({"channels": 24, "channel_multipliers": (1, 32 / 24), "norm_groups": 8}, (24, 32)),
    ({"channels": 8, "channel_multipliers": (0.5, 1, 2), "first_conv": "first"}, (4, 8, 16)),
    ({"channels": 22, "channel_multipliers": (1.0, 77 / 22), "norm_groups": 11}, (22, 77)),
])  # fmt: skip
def test_widths_are_whole_numbers_of_channels(changes, widths):
    spec = replace(TINY, **changes)
    assert spec.widths == widths
    shapes = {p.name: p.shape for p in lower(spec).parameters}
    for level, width in enumerate(widths):
        assert shapes[f"down.{level}.0.block.conv1.weight"] == (width, width, 3, 3)
    assert shapes["conv_in.weight"][0] == (widths[0] if spec.first_conv == "first" else spec.channels)
    assert shapes["embed.dense1.weight"] == (4 * spec.channels,) * 2
    assert [type(m) for m in replace(spec, channel_multipliers=(2.0, 0.5)).channel_multipliers] == [int, float]


def test_each_step_between_resolutions_may_resample_in_its_own_way():
    three = {"channel_multipliers": (1, 1, 2), "image_size": 8, "attention_resolutions": ()}
    spec = replace(TINY, **three, down=("block", "conv"), up=("conv", "nearest"))
    names = {node.name for node in lower(spec).nodes}
    assert {"down.0.down.conv0", "down.1.down.conv", "up.1.up.conv", "up.2.up.nearest"} <= names
    assert not {"down.1.down.conv0", "up.2.up.conv"} & names
    same = replace(TINY, **three, down=("pool", "pool"))
    assert lower(same).sha256 == lower(replace(same, down="pool")).sha256


SPECS = [TINY, replace(TINY, num_classes=0), replace(TINY, down="block", up="block", time="scale_shift")]


@pytest.mark.parametrize("spec", SPECS, ids=range(len(SPECS)))
def test_values_are_freed_after_their_last_use(spec):
    program = lower(spec)
    alive, freed = {"x", "c_noise", "label", "features"}, []
    for node, done in zip(program.nodes, program.last_use, strict=True):
        assert set(node.inputs) <= alive, f"{node.name} reads what was let go"
        alive.add(node.name)
        assert set(done) <= set(node.inputs)
        alive -= set(done)
        freed += done
    assert len(freed) == len(set(freed))
    unread = {"features"} | (set() if spec.num_classes else {"label"})
    assert alive == {program.nodes[-1].name} | unread


def test_a_program_runs_its_nodes_in_order():
    program = Program((Node("a", SiLU(), ("x",)), Node("b", Add(1.0), ("a", "x")), Node("c", Add(1.0), ("b", "b"))))
    modules = {"a": lambda x: x * 2, "b": lambda a, x: a - x, "c": lambda b, again: b + again}
    assert program.run(modules, {"x": 5}) == 10


def test_blocks_with_a_training_mode_receive_the_training_context():
    program = Program((Node("a", SiLU(), ("x",)), Node("b", Dropout(0.5, 0), ("a",))))
    modules = {"a": lambda x: x, "b": lambda x, training: (x, training)}
    training = Training((1, 2), [0])
    assert program.run(modules, {"x": 5}) == (5, None)
    assert program.run(modules, {"x": 5}, training) == (5, training)


def test_running_statistics_and_random_frequencies_are_not_trained():
    nodes = (Node("f", Fourier(4, 1.0, True), ("c_noise",)), Node("b", BatchNorm(3, 1e-3, 0.1), ("x",)))
    program = Program(nodes)
    assert [p.name for p in program.parameters if not p.trained] == ["f.frequencies", "b.mean", "b.variance"]
    assert [p.name for p in program.trained] == ["b.weight", "b.bias"]
    assert parameter_count(program) == 6


def test_labels_start_after_a_null_label_of_zero():
    nodes = (Node("a", SiLU(), ("x",)),)
    assert list(Program(nodes, 3, 3).labels) == [0, 1, 2]
    assert list(Program(nodes, 0, 3).labels) == [1, 2, 3]
    assert list(Program(nodes).labels) == []


@pytest.mark.parametrize("nodes, words", [
    ([Node("a", SiLU(), ("x",)), Node("a", SiLU(), ("a",))], "the name a is used twice"),
    ([Node("x", SiLU(), ("x",))], "the name x is used twice"),
    ([Node("a", SiLU(), ("b",)), Node("b", SiLU(), ("x",))], "a reads b, which is no input and no earlier block"),
    ([Node("a", SiLU(), ("a",))], "a reads a"),
    ([Node("a", object(), ("x",))], "node a: block object: this kind is not registered"),
])  # fmt: skip
def test_an_invalid_program_is_refused(nodes, words):
    with pytest.raises(DuetError, match=f"program: .*{words}"):
        Program(tuple(nodes))


def test_zero_init_applies_to_the_last_layers_of_branches():
    zero = {p.name for p in lower(TINY).parameters if p.init == ("constant", 0.0) and p.name.endswith("weight")}
    assert zero == {p.name for p in lower(TINY).parameters
                    if p.name.endswith(("conv1.weight", "proj.weight", "out.conv.weight"))}  # fmt: skip
    open_ = lower(replace(TINY, zero_init=False)).parameters
    assert not [p.name for p in open_ if p.init == ("constant", 0.0) and p.name.endswith("weight")]


def test_heads_are_set_by_number_or_by_channels():
    def heads(spec):
        return [node.block.heads for node in lower(spec).nodes if isinstance(node.block, Attention)]

    spec = replace(TINY, channels=8, attention_resolutions=(4, 2))
    assert set(heads(replace(spec, heads=2))) == {2}
    assert heads(replace(spec, head_channels=4)) == [2, 4, 4, 4, 4, 2, 2]


@pytest.mark.parametrize("changes, words", [
    ({"image_size": 6, "channel_multipliers": (1, 1, 1)},
     "6 pixels cannot be halved 2 times for 3 resolutions; use 4 or 8"),
    ({"image_size": 3, "channel_multipliers": (1, 1, 1)}, "3 pixels cannot be halved 2 times for 3 resolutions; use 4"),
    ({"attention_resolutions": (8,)},
     "model.attention_resolutions: 8 was given; the resolutions of the network are 4, 2"),
    ({"image_size": 0}, "model.image_size: 0 was given; it must be at least 1"),
    ({"in_channels": 0}, "model.in_channels"),
    ({"blocks_per_resolution": 0}, "model.blocks_per_resolution"),
    ({"norm_groups": 0}, "model.norm_groups: 0"),
    ({"norm_groups": 3}, "model.norm_groups: 3 groups do not divide 4 channels"),
    ({"norm_eps": 0.0}, "model.norm_eps: 0.0 was given; it must be positive"),
    ({"norm_eps": float("nan")}, "model.norm_eps: nan"),
    ({"heads": 3}, "model.heads: 3 heads do not divide 8 channels"),
    ({"heads": 0}, "model.heads: 0"),
    ({"head_channels": 3}, "model.head_channels: 3 channels per head do not divide 8 channels"),
    ({"head_channels": 5}, "model.head_channels: 5 channels per head do not divide 8 channels"),
    ({"head_channels": 16}, "model.head_channels: 16 channels per head do not divide 8 channels"),
    ({"head_channels": 0}, "model.head_channels: 0"),
    ({"head_channels": -4}, "model.head_channels: -4"),
    ({"channel_multipliers": ()}, "model.channel_multipliers"),
    ({"channel_multipliers": (1, 0)}, "model.channel_multipliers"),
    ({"channels": 5, "norm_groups": 1}, "model.channels: 5 was given; the time embedding needs an even number"),
    ({"channels": 2, "norm_groups": 1}, "model.channels: 2"),
    ({"num_classes": -1}, "model.num_classes: -1"),
    ({"time": "scale-shift"}, "model.time: .* Did you mean 'scale_shift'"),
    ({"down": "stride"}, "model.down: 'stride' was given; it must be one of conv, pool, block"),
    ({"up": "bilinear"}, "model.up: 'bilinear'"),
    ({"up": ("conv", "bilinear")}, "model.up: 2 ways were given; give one of .* each of the 1 steps"),
    ({"down": ("stride",)}, "model.down: 'stride' was given"),
    ({"channel_multipliers": (1, 1.3)}, "model.channel_multipliers: 1.3 was given, which is 5.2 channels for model.ch"),
    ({"first_conv": "last"}, "model.first_conv: 'last' was given"),
    ({"up_attention_resolutions": (3,)}, "model.up_attention_resolutions: 3 was given; the resolutions"),
    ({"activation": "tanh"}, "model.activation: 'tanh' was given; it must be one of silu, relu, gelu, mish"),
    ({"embedding_width": 0}, "model.embedding_width: 0"), ({"middle_norm_groups": -1}, "model.middle_norm_groups: -1"),
    ({"embedding_divisor": "third"}, "model.embedding_divisor"),
    ({"down_padding": (2, 2)}, "model.down_padding"),
    ({"down_padding": (0, 2)}, "model.down_padding"),
    ({"down_padding": (0, 0)}, "model.down_padding"),
    ({"down_padding": (1,)}, "model.down_padding"),
    ({"down_padding": (2, -1)}, "model.down_padding"),
    ({"dropout": 1.0}, "model.dropout: 1.0 was given"),
    ({"augment_dim": -1}, "model.augment_dim: -1"),
    ({"resample_filter": (1.0, 2.0)}, "model.resample_filter: .* 2 or 4 symmetric taps"),
    ({"resample_filter": (1.0, 2.0, 1.0)}, "model.resample_filter"),
    ({"qkv_order": "kqv"}, "model.qkv_order: 'kqv'"),
    ({"null_class": "first"}, "model.null_class: 'first'"),
])  # fmt: skip
def test_invalid_options_of_a_network_are_refused(changes, words):
    with pytest.raises(DuetError, match=words) as caught:
        lower(replace(TINY, **changes))
    assert "\n" not in str(caught.value)


def test_blocks_list_their_parameters():
    assert [p.shape for p in Conv(2, 3, 5, 1, (2, 2, 2, 2), True, 1.0).parameters()] == [(3, 2, 5, 5), (3,)]
    assert [p.name for p in Linear(2, 3, False, 1.0).parameters()] == ["weight"]
    assert [p.init for p in GroupNorm(4, 2, 1e-5).parameters()] == [("constant", 1.0), ("constant", 0.0)]


def test_a_layer_norm_normalises_channels_or_an_image():
    assert [p.axes for p in LayerNorm((4, 2, 2), 1e-5).parameters()] == ["o h w", "o h w"]
    with pytest.raises(DuetError, match=r"shape \(4, 2\) was given; it must be \(c,\) or \(c, h, w\)"):
        LayerNorm((4, 2), 1e-5)


def test_resampling_keeps_constant_images():
    inside = slice(2, -2)
    for block in (Resample("bilinear"), Resample("bilinear_corners")):
        np.testing.assert_allclose(block.matrix(5) @ np.ones(5), 1.0, rtol=0, atol=1e-15)
    for rule in ("up", "down"):
        block = Resample(rule, (1.0, 3.0, 3.0, 1.0), 1)
        np.testing.assert_allclose((block.matrix(8) @ np.ones(8))[inside], 1.0, rtol=0, atol=1e-15)


def test_resampling_keeps_linear_images():
    ramp = np.arange(6.0)
    corners = Resample("bilinear_corners").matrix(6) @ ramp
    np.testing.assert_allclose(corners, np.linspace(0, 5, 12), rtol=0, atol=1e-14)
    centres = Resample("bilinear").matrix(6) @ ramp
    np.testing.assert_allclose(centres[1:-1], (np.arange(1, 11) + 0.5) / 2 - 0.5, rtol=0, atol=1e-14)
    assert (centres[0], centres[-1]) == (0, 5)
    fir = Resample("up", (1.0, 3.0, 3.0, 1.0), 1).matrix(6) @ ramp
    np.testing.assert_allclose(fir[1:-1], (np.arange(1, 11) + 0.5) / 2 - 0.5, rtol=0, atol=1e-14)


def test_two_tap_filters_equal_pooling_and_nearest_neighbour():
    x = np.arange(4.0)
    np.testing.assert_array_equal(Resample("up", (1.0, 1.0)).matrix(4) @ x, x.repeat(2))
    np.testing.assert_array_equal(Resample("down", (1.0, 1.0)).matrix(4) @ x, [0.5, 2.5])
    with pytest.raises(DuetError, match=r"Resample\.rule: 'bicubic' was given"):
        Resample("bicubic")
