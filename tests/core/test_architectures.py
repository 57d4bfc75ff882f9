"""Laws of the networks of the source systems, on tiny variants run by the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace

import numpy as np
import pytest

from diffusion_core.backend import reference
from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.networks import (
    ARCHITECTURES,
    DiTSpec,
    DoubleConvSpec,
    EDM2Spec,
    JiTSpec,
    LinearAttentionSpec,
    NetworkSpec,
    OwnSpec,
    PlainSpec,
    Program,
    SimpleSpec,
    SixteenStepSpec,
    UNetSpec,
    UViTSpec,
    lower,
)
from diffusion_core.networks.blocks import Resample
from diffusion_core.networks.classifier import ClassifierSpec

TINY: dict[str, NetworkSpec] = {
    "double_conv": DoubleConvSpec(8, 2, 2, channels=4, channel_multipliers=(1, 2, 4), embedding=8, heads=2),
    "landscape": DoubleConvSpec(
        8, 2, 2, num_classes=3, channels=4, channel_multipliers=(1, 2, 4), embedding=8, heads=2
    ),
    "simple": SimpleSpec(8, 2, 2, channels=(4, 6, 5), embedding=8),
    "sixteen_step": SixteenStepSpec(
        8, 2, 2, channels=4, levels=3, embedding=6, bottleneck=5, bottom_channels=3, norm_eps=1e-5
    ),
    "plain": PlainSpec(8, 2, 2, channels=(4, 6), bottleneck=8, time_scale=0.5),
    "linear_attention": LinearAttentionSpec(
        8, 2, 2, channels=4, channel_multipliers=(1, 2), heads=2, head_channels=3, memory=2
    ),
    "autoencoder": PlainSpec(8, 2, 2, channels=(4, 6), bottleneck=8, time="none", up="nearest", output="sigmoid"),
}

X = Stream(0, "architectures/x").normal([0], (2, 8, 8, 2))[0]
T = np.array([3.0, 5.0])
LABEL = np.array([1, 3])


def some_weights(program: Program) -> dict[str, np.ndarray]:
    """Return random weights of unit gain, so that no branch vanishes; running variances are positive."""
    weights = {}
    for p in program.parameters:
        drawn = Stream(1, f"architectures/{p.name}").normal([0], p.shape)[0]
        weights[p.name] = drawn / math.sqrt(np.prod(p.shape[1:])) if len(p.shape) > 1 else 0.5 * drawn
        if p.name.endswith("variance"):
            weights[p.name] = np.exp(drawn)
    return weights


def run(
    spec: NetworkSpec,
    weights: Mapping[str, np.ndarray] | None = None,
    t: np.ndarray = T,
    label: np.ndarray = LABEL,
    instead: Mapping[str, Callable] | None = None,
    x: np.ndarray = X,
) -> dict[str, np.ndarray]:
    """Return every value of the network by name, and the output as "output"; `instead` replaces functions of nodes."""
    program = lower(spec)
    weights = some_weights(program) if weights is None else weights
    values: dict[str, np.ndarray] = {}

    def watched(name: str, function: Callable) -> Callable:
        def call(*inputs, **training):
            values[name] = function(*inputs, **training)
            return values[name]

        return call

    functions = {n.name: reference.block_function(n.name, n.block, weights) for n in program.nodes} | dict(
        instead or {}
    )
    modules = {name: watched(name, function) for name, function in functions.items()}
    inputs = {"x": x, "c_noise": t, "label": label, "features": None}
    values["output"] = program.run(modules, inputs)
    return values


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def concats(spec: NetworkSpec, way: str = "up") -> list:
    return [node for node in lower(spec).nodes if node.kind == "Concat" and node.name.startswith(way)]


@pytest.mark.parametrize("name", TINY)
def test_recomputed_values_equal_the_reference(name):
    # The runner of these tests is the executor of the reference, but keeps all values.
    program = lower(TINY[name])
    expected = reference.forward(program, some_weights(program), X, T, LABEL)
    assert np.array_equal(run(TINY[name])["output"], expected)
    assert expected.shape == X.shape


# Pixels and channels of some values of each network.
STAGES = {
    "double_conv": {
        "in.norm1": (8, 4), "down.1.attn.sum1": (4, 8), "down.2.attn.sum1": (2, 16), "bottom.0.norm1": (2, 32),
        "bottom.1.norm1": (2, 32), "bottom.2.norm1": (2, 8), "up.1.concat": (4, 16), "up.1.double1.norm0": (4, 8),
        "up.1.attn.sum1": (4, 4), "up.0.concat": (8, 8), "up.0.attn.sum1": (8, 4), "out": (8, 2),
    },
    "simple": {
        "in": (8, 4), "down.0.norm1": (8, 6), "down.0.conv": (4, 6), "down.1.norm1": (4, 5), "down.1.conv": (2, 5),
        "up.1.concat": (2, 10), "up.1.conv": (4, 6), "up.0.concat": (4, 12), "up.0.conv": (8, 4), "out": (8, 2),
    },
    "sixteen_step": {
        "down.0.act": (8, 4), "down.1.act": (4, 4), "down.2.act": (2, 4), "bottom.unflatten": (2, 3),
        "up.2.concat": (2, 7), "up.1.concat": (4, 8), "up.0.concat": (8, 8), "out": (8, 2),
    },
    "plain": {
        "in.concat": (8, 3), "down.0.act1": (8, 4), "down.1.act1": (4, 6), "bottom.act1": (2, 8),
        "up.1.resize": (4, 6), "up.1.concat": (4, 12), "up.0.concat": (8, 8), "out": (8, 2),
    },
    "autoencoder": {"bottom.act1": (2, 8), "up.1.concat": (4, 14), "up.0.concat": (8, 10), "out_act": (8, 2)},
}  # fmt: skip


@pytest.mark.parametrize("name", STAGES)
def test_shapes_of_every_stage(name):
    values = run(TINY[name])
    assert {stage: values[stage].shape for stage in STAGES[name]} == {
        stage: (2, size, size, width) for stage, (size, width) in STAGES[name].items()
    }


@pytest.mark.parametrize("name", TINY)
def test_the_output_depends_on_time_if_the_network_reads_it(name):
    change = np.abs(run(TINY[name])["output"] - run(TINY[name], t=T + 1.0)["output"]).max(axis=(1, 2, 3))
    assert np.all(change == 0) if name == "autoencoder" else np.all(change > 1e-4)


@pytest.mark.parametrize("name", TINY)
def test_the_output_depends_on_the_class_if_there_are_classes(name):
    change = np.abs(run(TINY[name])["output"] - run(TINY[name], label=LABEL - 1)["output"]).max(axis=(1, 2, 3))
    assert np.all(change > 1e-4) if name == "landscape" else np.all(change == 0)


def test_a_class_is_added_to_the_time():
    # With a table of zeros the network is the one without classes; with equal rows, the class has no effect.
    program = lower(TINY["landscape"])
    weights = some_weights(program)
    table = weights.pop("embed.label.weight")
    assert table.shape == (4, 8)
    plain = run(TINY["double_conv"], weights)["output"]
    assert np.array_equal(run(TINY["landscape"], weights | {"embed.label.weight": 0 * table})["output"], plain)
    same = weights | {"embed.label.weight": np.repeat(table[:1], 4, axis=0)}
    outputs = [run(TINY["landscape"], same, label=np.array([i, i]))["output"] for i in range(4)]
    assert all(np.array_equal(output, outputs[0]) for output in outputs)
    assert not np.allclose(outputs[0], plain)


@pytest.mark.parametrize(
    ("name", "node", "side"),
    [(name, node.name, side) for name, spec in TINY.items() for node in concats(spec) for side in (0, 1)],
)
def test_both_inputs_of_every_concatenation_matter(name, node, side):
    def without(*inputs):
        parts = list(inputs)
        parts[side] = np.zeros_like(parts[side])
        return np.concatenate(parts, axis=-1)

    whole = run(TINY[name])["output"]
    change = np.abs(run(TINY[name], instead={node: without})["output"] - whole)
    assert np.all(change.max(axis=(1, 2, 3)) > 1e-5)


# The inputs of each concatenation, from the deepest up; their order decides which weights act on which input.
JOINTS = {
    "double_conv": [("down.1.attn.sum1", "up.1.resize"), ("in.norm1", "up.0.resize")],
    "simple": [("down.1.conv", "down.1.conv"), ("up.1.conv", "down.0.conv")],
    "sixteen_step": [
        ("bottom.unflatten", "down.2.act"), ("up.2.nearest", "down.1.act"), ("up.1.nearest", "down.0.act"),
    ],
    "plain": [("up.1.resize", "down.1.act1"), ("up.0.resize", "down.0.act1")],
    "autoencoder": [("up.1.nearest", "down.1.act1"), ("up.0.nearest", "down.0.act1")],
}  # fmt: skip


@pytest.mark.parametrize("name", JOINTS)
def test_inputs_of_each_concatenation(name):
    assert [node.inputs for node in concats(TINY[name])] == JOINTS[name]


def test_the_deepest_value_of_simple_is_concatenated_with_itself():
    values = run(TINY["simple"])
    joint = values["up.1.concat"]
    assert np.array_equal(joint[..., :5], joint[..., 5:])
    # So only the sum of both halves of its weights matters.
    program = lower(TINY["simple"])
    weights = some_weights(program)
    kernel = weights["up.1.conv0.weight"]
    folded = np.concatenate([kernel[:, :5] + kernel[:, 5:], 0 * kernel[:, 5:]], axis=1)
    close(run(TINY["simple"], weights | {"up.1.conv0.weight": folded})["output"], values["output"])


def test_simple_normalises_after_the_activation():
    values = run(TINY["simple"])
    weights = some_weights(lower(TINY["simple"]))
    for block in ("down.0", "up.0"):
        for i in range(2):
            x = values[f"{block}.act{i}"]
            assert np.array_equal(x, np.maximum(values[f"{block}.conv{i}"], 0.0))
            mean, variance, scale, shift = (
                weights[f"{block}.norm{i}.{part}"] for part in ("mean", "variance", "weight", "bias")
            )
            close(values[f"{block}.norm{i}"], (x - mean) / np.sqrt(variance + 1e-3) * scale + shift)
        time = np.maximum(values[f"{block}.time"], 0.0)
        close(values[f"{block}.add_time"], values[f"{block}.norm0"] + time[:, None, None, :])


@pytest.mark.parametrize(("name", "divisor"), [("double_conv", 4.0), ("simple", 3.0)])
def test_features_of_the_time_are_sines_then_cosines(name, divisor):
    # Width 8: inverse frequencies 10000^(k / 4), as in the tutorial, or 10000^(k / 3), ending at 10000 exactly.
    angle = T[:, None] / 10000.0 ** (np.arange(4) / divisor)
    close(run(TINY[name])["embed.features"], np.concatenate([np.sin(angle), np.cos(angle)], axis=1))


def test_a_stage_of_double_convolutions_adds_the_time_to_every_pixel():
    values, weights = run(TINY["double_conv"]), some_weights(lower(TINY["double_conv"]))
    features = values["embed.features"]
    vector = features / (1.0 + np.exp(-features)) @ weights["up.0.time.weight"].T + weights["up.0.time.bias"]
    close(
        values["up.0.add_time"] - values["up.0.double1.norm1"], np.broadcast_to(vector[:, None, None, :], (2, 8, 8, 4))
    )


def gelu(x: np.ndarray) -> np.ndarray:
    return np.vectorize(lambda number: 0.5 * number * (1.0 + math.erf(number / math.sqrt(2.0))))(x)


def test_a_residual_double_convolution_activates_the_sum():
    values = run(TINY["double_conv"])
    x = values["down.1.pool"]
    close(values["down.1.double0.act1"], gelu(x + values["down.1.double0.norm1"]))
    assert values["down.1.double1.norm1"].min() < -0.2  # below the minimum of GELU: no activation follows the last norm


@pytest.mark.parametrize("part", ["in", "down.1.double0", "bottom.1", "up.0.double1"])
def test_a_double_convolution_normalises_whole_images(part):
    values, weights = run(TINY["double_conv"]), some_weights(lower(TINY["double_conv"]))
    for i in range(2):
        x = values[f"{part}.conv{i}"]
        x = (x - x.mean(axis=(1, 2, 3), keepdims=True)) / np.sqrt(x.var(axis=(1, 2, 3), keepdims=True) + 1e-5)
        close(values[f"{part}.norm{i}"], x * weights[f"{part}.norm{i}.weight"] + weights[f"{part}.norm{i}.bias"])


def test_attention_of_double_convolutions_written_out():
    # Tokens are pixels: y = x + P(softmax(q k / sqrt d) v), then y + B(gelu(A(LayerNorm y))), with biases everywhere.
    values, weights = run(TINY["double_conv"]), some_weights(lower(TINY["double_conv"]))
    x = values["down.2.add_time"].reshape(2, 4, 16)
    w = {name.removeprefix("down.2.attn."): value for name, value in weights.items() if name.startswith("down.2.attn.")}

    def norm(x, i):
        centred = x - x.mean(-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return normed * w[f"norm{i}.weight"] + w[f"norm{i}.bias"]

    def dense(x, name):
        return x @ w[f"{name}.weight"][:, :, 0, 0].T + w[f"{name}.bias"]

    q, k, v = np.split(dense(norm(x, 0), "qkv"), 3, axis=-1)
    mixed = np.zeros_like(x)
    for head in (slice(0, 8), slice(8, 16)):
        scores = np.exp(np.einsum("bid,bjd->bij", q[..., head], k[..., head]) / math.sqrt(8))
        mixed[..., head] = scores / scores.sum(-1, keepdims=True) @ v[..., head]
    y = x + dense(mixed, "proj")
    y = y + dense(gelu(dense(norm(y, 1), "dense0")), "dense1")
    close(values["down.2.attn.sum1"].reshape(2, 4, 16), y)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_bilinear_with_aligned_corners_keeps_corners_and_planes(size):
    matrix = Resample("bilinear_corners").matrix(size)
    assert matrix.shape == (2 * size, size)
    close(matrix.sum(axis=1), 1.0)
    assert np.array_equal(matrix[[0, -1]], np.eye(size)[[0, -1]])
    # Pixel j of the new line is at position j (n - 1) / (2n - 1) of the old line.
    close(matrix @ np.arange(size), np.linspace(0.0, size - 1.0, 2 * size))


def test_upsampling_keeps_planes():
    values = run(TINY["double_conv"], instead={"bottom.2.norm1": lambda x: plane(2, 8)})
    rows, columns = np.meshgrid(np.linspace(0, 1, 4), np.linspace(0, 1, 4), indexing="ij")
    close(values["up.1.resize"], np.broadcast_to((2.0 + 3.0 * rows - columns)[None, :, :, None], (2, 4, 4, 8)))


def plane(size: int, width: int) -> np.ndarray:
    rows, columns = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    return np.repeat(np.repeat((2.0 + 3.0 * rows - columns)[None, :, :, None], 2, axis=0), width, axis=-1)


@pytest.mark.parametrize("block", ["down.0", "down.2", "up.1"])
def test_time_multiplies_a_branch_of_sixteen_step(block):
    spec = TINY["sixteen_step"]
    weights = some_weights(lower(spec))
    names = [f"{block}.time.weight", f"{block}.time.bias"]
    before = run(spec, weights)
    scaled = run(spec, weights | {name: 3.0 * weights[name] for name in names})
    assert before[f"{block}.multiply"].max() > 0.01
    close(scaled[f"{block}.multiply"], 3.0 * before[f"{block}.multiply"])
    assert np.array_equal(scaled[f"{block}.conv"], before[f"{block}.conv"])
    # With a time vector of zeros the branch vanishes, and its weights have no effect.
    off = weights | {name: np.zeros_like(weights[name]) for name in names}
    other = off | {f"{block}.branch.weight": 2.0 + weights[f"{block}.branch.weight"]}
    assert np.array_equal(run(spec, off)["output"], run(spec, other)["output"])
    assert not np.allclose(run(spec, off)["output"], before["output"])


def test_a_block_of_sixteen_step_normalises_the_sum_over_channels():
    values, weights = run(TINY["sixteen_step"]), some_weights(lower(TINY["sixteen_step"]))
    x = (
        values["down.1.conv"]
        + np.maximum(values["down.1.branch"], 0) * np.maximum(values["down.1.time"], 0)[:, None, None]
    )
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    close(values["down.1.act"], np.maximum(x * weights["down.1.norm.weight"] + weights["down.1.norm.bias"], 0.0))


def test_the_bottom_of_sixteen_step_reads_all_pixels_and_the_time():
    values = run(TINY["sixteen_step"])
    close(values["bottom.concat"], np.concatenate([values["down.2.act"].reshape(2, 16), values["time.act"]], axis=1))
    # The last norm goes over the whole smallest image: before scale and shift, 2 x 2 x 3 numbers of mean 0.
    plain = some_weights(lower(TINY["sixteen_step"]))
    plain |= {"bottom.1.norm.weight": np.ones(12), "bottom.1.norm.bias": np.zeros(12)}
    normed = run(TINY["sixteen_step"], plain)["bottom.1.norm"]
    close(normed.mean(axis=1), 0.0)
    close(np.maximum(normed, 0).reshape(2, 2, 2, 3), run(TINY["sixteen_step"], plain)["bottom.unflatten"])


def test_the_time_of_plain_is_an_extra_channel():
    values = run(TINY["plain"])
    assert np.array_equal(values["in.concat"][..., :2], X)
    close(values["in.concat"][..., 2], np.broadcast_to(0.5 * T[:, None, None], (2, 8, 8)))
    # A network without time whose image contains the time channel is the same network.
    wider = replace(TINY["plain"], in_channels=3, time="none")
    assert np.array_equal(
        run(wider, some_weights(lower(TINY["plain"])), x=values["in.concat"])["output"], values["output"]
    )


def test_the_output_option_adds_a_sigmoid_only():
    linear = run(replace(TINY["autoencoder"], output="linear"), some_weights(lower(TINY["autoencoder"])))["output"]
    close(run(TINY["autoencoder"])["output"], 1.0 / (1.0 + np.exp(-linear)))


def test_a_transposed_convolution_of_plain_maps_each_pixel_to_its_own_square():
    values, weights = run(TINY["plain"]), some_weights(lower(TINY["plain"]))
    x, up = values["bottom.act1"], values["up.1.resize"]
    kernel = weights["up.1.resize.weight"]
    for i in range(2):
        for j in range(2):
            close(up[:, i::2, j::2], x @ kernel[:, :, i, j] + weights["up.1.resize.bias"])


CHANGES: dict[type[NetworkSpec], dict[str, object]] = {
    DoubleConvSpec: {
        "in_channels": 3, "out_channels": 4, "num_classes": 5, "channels": 8, "channel_multipliers": (1, 2, 2),
        "embedding": 6, "heads": 4, "norm_eps": 1e-3, "null_class": "zero", "bottom": (6, 8),
    },
    SimpleSpec: {
        "in_channels": 3, "out_channels": 4, "channels": (4, 6), "embedding": 6, "norm_eps": 1e-5, "norm_momentum": 0.1,
    },
    SixteenStepSpec: {
        "image_size": 16, "in_channels": 3, "out_channels": 4, "channels": 5, "levels": 2, "embedding": 5,
        "bottleneck": 4, "bottom_channels": 2, "norm_eps": 1e-3,
    },
    PlainSpec: {
        "in_channels": 3, "out_channels": 4, "channels": (4,), "bottleneck": 9, "time": "none", "time_scale": 1.0,
        "up": "nearest", "output": "sigmoid",
    },
    LinearAttentionSpec: {
        "in_channels": 3, "out_channels": 4, "channels": 6, "channel_multipliers": (1, 3),
        "first_width": 5, "full_attention": (8,), "heads": 3, "head_channels": 4, "memory": 1, "max_period": 100.0,
        "dropout": 0.1,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ["landscape", "simple", "sixteen_step", "plain", "linear_attention"])
def test_every_option_changes_the_program(name):
    # In a purely convolutional network the image size changes no block; where the weights start never does.
    spec = TINY[name]
    idle = {"init"} | ({"image_size"} if name != "sixteen_step" else set())
    idle |= {"num_classes"} if name != "landscape" else set()
    changes = CHANGES[type(spec)] | {"self_conditioning": True}
    assert changes.keys() == {field.name for field in fields(spec)} - idle
    hashes = {lower(replace(spec, **{option: value})).sha256 for option, value in changes.items()}
    assert len(hashes | {lower(spec).sha256}) == len(changes) + 1


def test_every_architecture_is_tested_here():
    # The standard UNet, EDM2, the classifier, transformers and own networks have test files of their own.
    others = {UNetSpec, EDM2Spec, ClassifierSpec, DiTSpec, UViTSpec, JiTSpec, OwnSpec}
    assert {type(spec) for spec in TINY.values()} | others == set(ARCHITECTURES.values())


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("linear_attention", {"full_attention": (3,)}, "model.full_attention: 3 was given; .* resolutions .* are 8, 4"),
        ("linear_attention", {"channels": 5}, "model.channels: 5 was given; the time embedding needs an even"),
        ("linear_attention", {"channel_multipliers": (1, 0)}, "model.channel_multipliers: .* one or more entries >= 1"),
        ("linear_attention", {"memory": 0}, "model.memory: 0 was given"),
        ("linear_attention", {"first_width": 0}, "model.first_width: 0"),
        ("linear_attention", {"max_period": 1.0}, "model.max_period: 1.0"),
        ("linear_attention", {"dropout": 1.0}, "model.dropout: 1.0"),
        ("linear_attention", {"num_classes": 2}, "model.num_classes: 2 was given; this architecture has no class"),
        ("double_conv", {"image_size": 6}, "6 pixels cannot be halved 2 times for 3 resolutions; use 4 or 8"),
        ("double_conv", {"channel_multipliers": (1,)}, "model.channel_multipliers: .* it needs two or more entries"),
        ("double_conv", {"channel_multipliers": (1, 0)}, "model.channel_multipliers"),
        ("double_conv", {"embedding": 7}, "model.embedding: 7 was given; .* even"),
        ("double_conv", {"null_class": "last"}, "model.null_class: 'last' was given; it must be one of first, zero"),
        ("double_conv", {"bottom": ()}, "model.bottom: .* it needs one or more widths"),
        ("double_conv", {"heads": 3}, "model.heads: 3 heads do not divide 8 channels"),
        ("double_conv", {"heads": 0}, "model.heads: 0 was given; it must be at least 1"),
        ("double_conv", {"norm_eps": 0.0}, "model.norm_eps: 0.0 was given; it must be positive"),
        ("double_conv", {"num_classes": -1}, "model.num_classes: -1"),
        ("double_conv", {"channels": 0}, "model.channels: 0"),
        ("simple", {"image_size": 7}, "7 pixels cannot be halved 2 times for 3 resolutions; use 4 or 8"),
        ("simple", {"channels": (4,)}, "model.channels: .* two or more widths"),
        ("simple", {"channels": (4, 0)}, "model.channels"),
        ("simple", {"embedding": 2}, "model.embedding: 2 was given; it must be an even number >= 4"),
        ("simple", {"embedding": 5}, "model.embedding: 5"),
        ("simple", {"norm_eps": -1.0}, "model.norm_eps: -1.0"),
        ("simple", {"norm_momentum": 0.0}, "model.norm_momentum: 0.0"),
        ("simple", {"norm_momentum": 1.5}, "model.norm_momentum: 1.5"),
        (
            "simple",
            {"num_classes": 3},
            "model.num_classes: 3 was given; this architecture has no class embedding, so use 0",
        ),
        ("sixteen_step", {"image_size": 10}, "10 pixels cannot be halved 2 times for 3 resolutions; use 8 or 12"),
        ("sixteen_step", {"levels": 0}, "model.levels: 0"),
        ("sixteen_step", {"bottleneck": 0}, "model.bottleneck: 0"),
        ("sixteen_step", {"bottom_channels": 0}, "model.bottom_channels: 0"),
        ("sixteen_step", {"norm_eps": float("nan")}, "model.norm_eps: nan"),
        ("sixteen_step", {"num_classes": 1}, "model.num_classes: 1"),
        ("plain", {"image_size": 2}, "2 pixels cannot be halved 2 times for 3 resolutions; use 4"),
        ("plain", {"channels": ()}, "model.channels"),
        ("plain", {"bottleneck": 0}, "model.bottleneck: 0"),
        ("plain", {"time": "chanel"}, "model.time: .* Did you mean 'channel'"),
        ("plain", {"up": "bilinear"}, "model.up: 'bilinear' was given; it must be one of transposed, nearest"),
        ("plain", {"output": "tanh"}, "model.output: 'tanh'"),
        ("plain", {"num_classes": 2}, "model.num_classes: 2"),
    ],
)
def test_invalid_options_of_a_network_are_refused(name, changes, words):
    with pytest.raises(DuetError, match=words) as caught:
        lower(replace(TINY[name], **changes))
    assert "\n" not in str(caught.value)
