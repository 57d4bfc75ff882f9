"""Laws of the network of EDM2, on tiny variants run by the reference."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from diffusion_core.backend import reference
from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.convert.edm2 import make_name_map, read_spec
from diffusion_core.convert.export_state_dict import export_state_dict
from diffusion_core.convert.names import read_weights, write_weights
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import EDM2Spec, Program, lower
from diffusion_core.networks.blocks import AvgPool, Resample, Upsample
from diffusion_core.networks.blocks.magnitude import MPAttention, MPSum, OneHot
from diffusion_core.networks.weights import initial_weights
from diffusion_core.parity import cases
from diffusion_core.training.objective import Objective

TINY = EDM2Spec(
    8, 2, 2, num_classes=3, channels=8, channel_multipliers=(1, 2), blocks_per_resolution=1,
    attention_resolutions=(), head_channels=8, logvar_channels=6,
)  # fmt: skip
LABEL = np.array([1, 3])


def value(spec: EDM2Spec, x: np.ndarray, label: np.ndarray = LABEL, **changed: np.ndarray) -> np.ndarray:
    program = lower(spec)
    weights = cases.scattered_weights(program) | changed
    return reference.forward(program, weights, x, np.array([0.3, -0.8]), label)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return Stream(0, "edm2/x").normal(np.arange(2), (8, 8, 2))


def attentions(program: Program) -> list[str]:
    return [node.name.removesuffix(".attend") for node in program.nodes if isinstance(node.block, MPAttention)]


def test_the_first_decoder_block_has_attention_whatever_the_resolutions_say():
    assert attentions(lower(TINY)) == ["dec.4x4_in0"]
    wider = attentions(lower(replace(TINY, attention_resolutions=(8, 64))))
    assert wider == ["enc.8x8_block0", "dec.4x4_in0", "dec.8x8_block0", "dec.8x8_block1"]


def test_there_is_no_attention_at_widths_below_a_head():
    assert attentions(lower(replace(TINY, attention_resolutions=(8,), head_channels=16))) == ["dec.4x4_in0"]
    assert attentions(lower(replace(TINY, head_channels=64))) == []


def test_the_network_returns_zeros_at_first_and_its_weights_start_standard_normal(x):
    program = lower(TINY)
    weights = initial_weights(program, 0)
    assert not reference.forward(program, weights, x, np.zeros(2), LABEL)[..., :2].any()
    everything = np.concatenate([v.ravel() for name, v in weights.items() if name.endswith(".weight")])
    assert (everything.mean(), everything.std()) == (pytest.approx(0, abs=0.02), pytest.approx(1, abs=0.02))
    assert {name for name, v in weights.items() if name.endswith("gain") and v == 0} >= {"out_conv.gain"}
    assert all(p.normalised == 1e-4 for p in program.parameters if p.name.endswith(".weight"))
    assert not any(p.normalised for p in program.parameters if not p.name.endswith(".weight"))


def test_no_class_is_an_embedding_of_the_noise_level_alone(x):
    """The label is one-hot times sqrt(K), and zeros for "no class": the class's weights then have no effect."""
    assert [node.block for node in lower(TINY).nodes if node.kind == "OneHot"] == [OneHot(3, 3**0.5)]
    rows = np.ones_like(cases.scattered_weights(lower(TINY))["emb_label.weight"])
    changed = np.abs(value(TINY, x, **{"emb_label.weight": rows}) - value(TINY, x)).max(axis=(1, 2, 3))
    assert changed[0] > 1e-3 and changed[1] == 0


def test_the_log_variance_is_one_number_per_image_and_depends_on_the_noise_level_alone(x):
    logvar, other = value(TINY, x)[..., -1], value(TINY, 2 * x, np.array([2, 0]))[..., -1]
    np.testing.assert_array_equal(logvar, np.broadcast_to(logvar[:, :1, :1], logvar.shape))
    np.testing.assert_array_equal(logvar, other)
    assert value(replace(TINY, logvar_channels=0), x).shape[-1] == 2


def test_a_model_of_this_network_learns_the_weighting_of_its_loss():
    """Its own channel takes the place of the one that `process.uncertainty` adds."""
    model = DiffusionModel(TINY, "edm", "edm")
    assert model.uncertainty and model.program.uncertainty and model.program == lower(TINY)
    plain = DiffusionModel(replace(TINY, logvar_channels=0), "edm", "edm")
    assert not plain.uncertainty
    assert "uncertainty.dense" in {node.name for node in replace(plain, uncertainty=True).program.nodes}
    assert DiffusionModel.from_dict(model.to_dict()).is_same_as(model)


def test_an_objective_that_does_not_train_the_log_variance_says_how_to_leave_it_out():
    model = DiffusionModel(TINY, "edm", "edm")
    with pytest.raises(DuetError, match=r"a network with an uncertainty, .* or model\.logvar_channels=0 for EDM2"):
        Objective.for_model(model, 0, objective={"name": "easy_consistency_tuning"})


def test_the_filter_of_two_taps_is_the_mean_and_the_copy():
    kinds = {type(node.block) for node in lower(TINY).nodes}
    assert {AvgPool, Upsample} < kinds and Resample not in kinds
    filtered = lower(replace(TINY, resample_filter=(1.0, 3.0, 3.0, 1.0)))
    assert [n.block.rule for n in filtered.nodes if isinstance(n.block, Resample)] == ["down", "up"]


def test_values_stay_of_size_1_through_the_whole_network(x):
    """At the initial weights but for the gain of the output."""
    spec = EDM2Spec(16, channels=32, channel_multipliers=(1, 2), blocks_per_resolution=2, head_channels=32)
    program, values = lower(spec), {}
    image = Stream(0, "edm2/image").normal(np.arange(2), (16, 16, 3))
    batch = cases.noise_batch(program, (16, 16, 3), 2)
    values = reference.activations(program, initial_weights(program, 1), replace(batch, images=image), "mse")
    for name, array in values.items():
        if name.endswith((".sum", ".attn_sum", ".concat")):
            assert 0.6 < np.sqrt(np.mean(np.square(array))) < 1.4, name


CHANGES: dict[str, object] = {
    "image_size": 16, "in_channels": 3, "out_channels": 4, "num_classes": 5, "channels": 16,
    "channel_multipliers": (1, 1), "noise_multiplier": 2, "embedding_multiplier": 3, "blocks_per_resolution": 2,
    "attention_resolutions": (8,), "head_channels": 4, "dropout": 0.1, "resample_filter": (1.0, 3.0, 3.0, 1.0),
    "label_balance": 0.4, "concat_balance": 0.4, "residual_balance": 0.4, "attention_balance": 0.4, "clip": 2.0,
    "logvar_channels": 4, "self_conditioning": True,
}  # fmt: skip


def test_every_option_changes_the_program():
    assert CHANGES.keys() == {field.name for field in fields(TINY)} - {"init"}
    spec = replace(TINY, image_size=16, attention_resolutions=(8,))
    changes = CHANGES | {"image_size": 8, "attention_resolutions": ()}
    hashes = {lower(replace(spec, **{option: value})).sha256 for option, value in changes.items()}
    assert len(hashes | {lower(spec).sha256}) == len(changes) + 1
    assert lower(replace(TINY, clip=None)).sha256 != lower(TINY).sha256


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": 7}, "7 pixels cannot be halved 1 times for 2 resolutions"),
        ({"channels": 0}, "model.channels: 0 was given"),
        ({"head_channels": 0}, "model.head_channels: 0"),
        ({"blocks_per_resolution": 0}, "model.blocks_per_resolution: 0"),
        ({"channel_multipliers": ()}, "model.channel_multipliers: .* one or more entries"),
        ({"noise_multiplier": 0}, "model.noise_multiplier: 0 was given; it must be at least 1, or null"),
        ({"embedding_multiplier": -1}, "model.embedding_multiplier: -1"),
        ({"residual_balance": 1.1}, "model.residual_balance: 1.1 was given; it must be a share"),
        ({"label_balance": -0.1}, "model.label_balance: -0.1"),
        ({"dropout": 1.0}, "model.dropout: 1.0"),
        ({"resample_filter": (1.0, 2.0, 1.0)}, "model.resample_filter: .* an even number of symmetric taps"),
        ({"resample_filter": (1.0, 2.0)}, "model.resample_filter"),
        ({"clip": 0.0}, "model.clip: 0.0 was given; it must be positive, or null"),
        ({"logvar_channels": -1}, "model.logvar_channels: -1"),
    ],
)
def test_options_that_are_not_allowed_are_refused(changes, words):
    with pytest.raises(DuetError, match=words):
        replace(TINY, **changes)


def test_heads_that_do_not_divide_a_width_are_refused():
    with pytest.raises(DuetError, match=r"model\.head_channels: 2 heads do not divide 15 channels"):
        lower(replace(TINY, channels=15, channel_multipliers=(1, 1), head_channels=7))


OTHERS = [
    TINY,
    replace(TINY, num_classes=0, logvar_channels=0),
    replace(TINY, channel_multipliers=(3, 2), noise_multiplier=1, embedding_multiplier=5),
    replace(TINY, in_channels=3, out_channels=3),
    replace(TINY, attention_resolutions=(8,), blocks_per_resolution=2, dropout=0.1, clip=3.0, residual_balance=0.2),
]


@pytest.mark.parametrize("spec", OTHERS, ids=range(len(OTHERS)))
def test_a_state_dict_comes_back_as_the_same_network_with_the_same_bits(spec):
    model = DiffusionModel(spec, "edm", "edm")
    weights = {name: v.astype(np.float32) for name, v in cases.scattered_weights(model.program).items()}
    arrays = export_state_dict(model, weights, "edm2")
    options = ("head_channels", "dropout", "clip", "residual_balance")
    found = read_spec(arrays, "file", **{name: getattr(spec, name) for name in options})
    assert lower(found).sha256 == model.program.sha256
    back = read_weights(make_name_map(found, model.program), model.program, arrays, "file")
    assert all(np.array_equal(back[name], v) and back[name].shape == v.shape for name, v in weights.items())


def test_attention_that_is_narrower_than_a_head_is_refused():
    model = DiffusionModel(replace(TINY, attention_resolutions=(8,)), "edm", "edm")
    arrays = export_state_dict(model, cases.scattered_weights(model.program), "edm2")
    with pytest.raises(DuetError, match=r"source\.head_channels: 64 was given, but file has attention at 8 channels"):
        read_spec(arrays, "file")


def test_another_state_dict_is_refused():
    with pytest.raises(DuetError, match=r"file: it has blocks of sizes .*; this is not a state dict of EDM2"):
        read_spec({"conv.weight": np.zeros(3)}, "file")


def test_the_names_are_those_of_the_original():
    program = lower(TINY)
    names = write_weights(make_name_map(TINY, program), initial_weights(program, 0))
    assert {
        "unet.emb_fourier.freqs", "unet.emb_fourier.phases", "unet.emb_noise.weight", "unet.emb_label.weight",
        "unet.enc.8x8_conv.weight", "unet.enc.4x4_down.emb_gain", "unet.enc.4x4_block0.conv_skip.weight",
        "unet.dec.4x4_in0.attn_qkv.weight", "unet.dec.8x8_up.conv_res1.weight", "unet.dec.8x8_block1.emb_linear.weight",
        "unet.out_gain", "unet.out_conv.weight", "logvar_fourier.freqs", "logvar_linear.weight",
    } < names.keys()  # fmt: skip
    assert names["unet.out_gain"].shape == names["unet.enc.8x8_block0.emb_gain"].shape == ()


def test_shares_of_0_and_1_take_one_input():
    assert MPSum(0.0).factors == (1.0, 0.0) and MPSum(1.0).factors == (0.0, 1.0)
