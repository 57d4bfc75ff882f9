"""Every network in configs/model: loaded as in an experiment, with its exact number of trained parameters."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException

from diffusion_core.common.errors import DuetError
from diffusion_core.convert import ddpm_tf, diffusers_config, edm, guided_diffusion
from diffusion_core.networks import ARCHITECTURES, Program, UNetSpec, lower, make_spec
from diffusion_core.networks.blocks import Attention, Dropout, GroupNorm, Resample, Sinusoid
from diffusion_core.networks.weights import parameter_count
from experiments.config.build import make_model
from experiments.config.schema import register

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module", autouse=True)
def hydra():
    register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield


@functools.cache
def program(name: str, *words: str) -> Program:
    """The program of a preset, with changes as on the command line."""
    return make_model(compose("train", overrides=[f"model={name}", *words])).program


def blocks(name: str, kind: type, *words: str) -> list:
    return [node.block for node in program(name, *words).nodes if isinstance(node.block, kind)]


# The standard networks have the counts of their published constructions; those of the source systems follow by hand.
COUNTS = {
    "adm_64": 295_904_454,
    "adm_128": 421_529_606,
    "adm_256": 553_838_086,
    "adm_edm_64": 295_899_267,
    "ddpm_256": 113_673_219,
    "ddpm_cifar10": 35_746_307,
    "ddpmpp_32": 55_733_891,
    "denoising_autoencoder": 1_883_267,
    "digits": 396_121,
    "digits_classifier": 626_122,
    "dit_digits": 316_676,
    "double_conv_attention": 23_331_457,
    "edm2_digits": 406_771,
    # With the 128 weights of the learned log-variance.
    "edm2_xxs_512": 31_309_029,
    "edm2_xs_512": 124_713_253,
    "edm2_s_512": 280_212_837,
    "edm2_m_512": 497_807_781,
    "edm2_l_512": 777_498_085,
    "edm2_xl_512": 1_119_283_749,
    "edm2_xxl_512": 1_523_164_773,
    "edm2_xs_64": 124_710_949,
    "edm2_s_64": 280_209_381,
    "edm2_m_64": 497_803_173,
    "edm2_l_64": 777_492_325,
    "edm2_xl_64": 1_119_276_837,
    "improved_32": 52_546_438,
    "jit_digits": 330_580,
    "landscape": 23_334_275,
    "linear_attention": 35_711_491,
    "ncsnpp_32": 56_397_827,
    "plain": 31_032_451,
    "shapes": 1_192_515,
    "simple": 3_482_231,
    "sixteen_step": 3_586_819,
    "toy": 217_059,
    "uvit_digits": 268_046,
}


# Their counts, with those of the tables of positions, are in test_dit.py and test_uvit_jit.py.
TRANSFORMERS = ("dit_s", "dit_b", "dit_l", "dit_xl", "sit_s", "sit_b", "sit_l", "sit_xl")


def test_every_preset_has_an_expected_count():
    elsewhere = [f"{name}_{patch}" for name in TRANSFORMERS for patch in (2, 4, 8)]
    names = [path.stem for path in (CONFIGS / "model").glob("*.yaml")]
    elsewhere += [name for name in names if name.startswith(("uvit_", "jit_")) and not name.endswith("_digits")]
    assert sorted([*COUNTS, *elsewhere]) == sorted(names)


@pytest.mark.parametrize("name", COUNTS)
def test_a_preset_has_the_expected_parameter_count(name):
    assert parameter_count(program(name)) == COUNTS[name]


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("double_conv_attention", ["model.in_channels=3", "model.out_channels=3"], 23_332_739),
        ("adm_256", ["model.num_classes=0"], 552_814_086),
        ("edm2_xs_512", ["model.num_classes=0"], 124_201_253),
        ("edm2_xs_512", ["model.logvar_channels=0"], 124_713_253 - 128),
        # Ten columns and a bias, in the width of the features: 11 x 128 and 11 x 256 more.
        ("ddpmpp_32", ["model.num_classes=10"], 55_735_299),
        ("ncsnpp_32", ["model.num_classes=10"], 56_400_643),
        # 576 weights belong to the time, an extra channel of the first convolution.
        ("plain", ["model.time=none"], 31_032_451 - 9 * 64),
        # Six rows of 256 for five classes and "no class".
        ("landscape", ["model.num_classes=0"], 23_334_275 - 6 * 256),
    ],
)
def test_a_variant_has_the_expected_parameter_count(name, words, expected):
    assert parameter_count(program(name, *words)) == expected


def conv(inputs: int, outputs: int, kernel: int) -> int:
    return outputs * (inputs * kernel**2 + 1)


def test_the_count_of_simple_by_hand():
    def block(inputs, width):
        return conv(inputs, width, 3) + conv(width, width, 3) + 4 * width + conv(32, width, 1) + conv(width, width, 4)

    embed, ends = conv(32, 32, 1), conv(3, 28, 3) + conv(28, 3, 1)
    levels = block(28, 128) + block(128, 256) + block(2 * 256, 128) + block(2 * 128, 28)
    assert embed + ends + levels == COUNTS["simple"]


def test_the_count_of_sixteen_step_by_hand():
    def block(inputs):
        return 2 * conv(inputs, 128, 3) + conv(192, 128, 1) + 2 * 128

    time = conv(1, 192, 1) + 2 * 192
    bottom = conv(4 * 4 * 128 + 192, 128, 1) + 2 * 128 + conv(128, 512, 1) + 2 * 512
    levels = block(3) + 3 * block(128) + block(32 + 128) + 3 * block(256)
    assert time + bottom + levels + conv(128, 3, 1) == COUNTS["sixteen_step"]


def test_the_counts_of_the_plain_networks_by_hand():
    def double(inputs, width):
        return conv(inputs, width, 3) + conv(width, width, 3)

    down = double(4, 64) + double(64, 128) + double(128, 256) + double(256, 512) + double(512, 1024)
    up = sum(conv(2 * width, width, 2) + double(2 * width, width) for width in (512, 256, 128, 64))
    assert down + up + conv(64, 3, 1) == COUNTS["plain"]
    down = double(3, 64) + double(64, 128) + double(128, 256)
    up = double(256 + 128, 128) + double(128 + 64, 64)
    assert down + up + conv(64, 3, 1) == COUNTS["denoising_autoencoder"]


def test_resolutions_with_attention_in_double_conv():
    # A stage of attention per width and size: 128 at 32, 256 at 16 and 8, 128 at 16, 64 at 32 and 64.
    nodes = program("double_conv_attention").nodes
    size, found = 64, []
    for node in nodes:
        size = size // 2 if node.kind == "MaxPool" else 2 * size if node.kind == "Resample" else size
        if node.kind == "Attention":
            found.append((node.block.channels, size, node.block.heads))
    assert found == [(128, 32, 4), (256, 16, 4), (256, 8, 4), (128, 16, 4), (64, 32, 4), (64, 64, 4)]


def test_labels_of_landscapes_start_after_no_class():
    landscape, grey = program("landscape"), program("double_conv_attention")
    assert (landscape.null_label, list(landscape.labels)) == (0, [1, 2, 3, 4, 5])
    assert (grey.null_label, list(grey.labels)) == (None, [])


# Dropout of training, as published; presets without an entry have none.
DROPOUT = {
    "ddpm_cifar10": 0.1,
    "improved_32": 0.3,
    "adm_64": 0.1,
    "ddpmpp_32": 0.13,
    "ncsnpp_32": 0.13,
    "adm_edm_64": 0.1,
    **{f"edm2_{size}_64": 0.1 for size in ("m", "l", "xl")},
    **{f"edm2_{size}_512": 0.1 for size in ("m", "l", "xl", "xxl")},
}


@pytest.mark.parametrize("name", COUNTS)
def test_dropout_of_the_presets(name):
    dropouts = blocks(name, Dropout)
    assert {block.rate for block in dropouts} == ({DROPOUT[name]} if name in DROPOUT else set())
    assert [block.row for block in dropouts] == list(range(len(dropouts)))


# (epsilon, divisor of the sinusoid, sine first, order of q k v, heads of the widest attention)
OPTIONS = {
    "ddpm_cifar10": (1e-6, 63, True, "qkv", 1),
    "ddpm_256": (1e-6, 63, True, "qkv", 1),
    "improved_32": (1e-5, 64, False, "heads", 4),
    "adm_64": (1e-5, 96, False, "qkv", 12),
    "adm_128": (1e-5, 128, False, "heads", 4),
    "adm_256": (1e-5, 128, False, "heads", 16),
    "ddpmpp_32": (1e-6, 63, True, "interleaved", 1),
    "adm_edm_64": (1e-5, 96, False, "interleaved", 12),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_the_standard_presets(name):
    eps, divisor, sin_first, order, heads = OPTIONS[name]
    assert {block.eps for block in blocks(name, GroupNorm)} == {eps}
    [embedding] = blocks(name, Sinusoid)
    assert (embedding.divisor, embedding.sin_first) == (divisor, sin_first)
    attentions = blocks(name, Attention)
    assert {block.order for block in attentions} == {order}
    assert max(attentions, key=lambda block: block.channels).heads == heads


# Preset, changes, and the source of its published weights with the options of the import.
IMPORTS = [
    ("ddpm_cifar10", [], ddpm_tf, {"image_size": 32}),
    ("ddpm_256", [], ddpm_tf, {"image_size": 256}),
    ("improved_32", [], guided_diffusion, {"image_size": 32, "heads": 4, "qkv_order": "heads"}),
    ("adm_64", [], guided_diffusion, {"image_size": 64, "head_channels": 64, "qkv_order": "qkv"}),
    ("adm_128", [], guided_diffusion, {"image_size": 128, "heads": 4, "qkv_order": "heads"}),
    ("adm_256", [], guided_diffusion, {"image_size": 256, "head_channels": 64, "qkv_order": "heads"}),
    ("adm_256", ["model.num_classes=0"], guided_diffusion,
     {"image_size": 256, "head_channels": 64, "qkv_order": "heads"}),
    ("ddpmpp_32", [], edm, {}),
    ("ddpmpp_32", ["model.num_classes=10"], edm, {}),
    ("ncsnpp_32", [], edm, {}),
    ("ncsnpp_32", ["model.num_classes=10"], edm, {}),
    ("adm_edm_64", [], edm, {}),
]  # fmt: skip


def shapes_of(source: ModuleType, spec: UNetSpec, taps: tuple[float, ...]) -> dict[str, np.ndarray]:
    """Return the arrays of the network in the foreign format, with its resampling filters; weights take no memory."""
    names = source.make_name_map(spec, lower(spec))
    arrays = {
        name.removeprefix("model/"): array
        for p in lower(spec).parameters
        for name, array in zip(
            names[p.name].names, names[p.name].layout.from_duet(np.broadcast_to(np.float32(0), p.shape)), strict=True
        )
    }
    if source is edm:
        side = np.array(taps, np.float32)
        arrays["enc.16x16_down.conv0.resample_filter"] = (np.outer(side, side) / side.sum() ** 2)[None, None]
    return arrays


@pytest.mark.parametrize(("name", "words", "source", "options"), IMPORTS)
def test_the_published_weights_of_a_preset_are_imported_as_that_preset(name, words, source, options):
    """Every number of a preset equals that of the importer, which knows the original network and not the preset."""
    spec = make_model(compose("train", overrides=[f"model={name}", *words])).spec
    taps = (1.0, 3.0, 3.0, 1.0) if name == "ncsnpp_32" else (1.0, 1.0)
    told = source.read_spec(shapes_of(source, spec, taps), name, **options, norm_groups=32, dropout=spec.dropout)
    assert lower(told).describe() == lower(spec).describe()
    assert lower(told).sha256 == lower(spec).sha256


@pytest.mark.parametrize("name", ["ddpm_cifar10", "ddpm_256", "improved_32", "adm_64", "adm_256"])
def test_a_preset_survives_a_round_trip_through_diffusers(name):
    spec = make_model(compose("train", overrides=[f"model={name}", "model.dropout=0.1"])).spec
    # diffusers stores q, k and v as three layers, so their order is not in the file.
    spec = replace(spec, qkv_order="qkv")
    config = diffusers_config.make_config(spec, lower(spec))
    assert lower(diffusers_config.read_spec(config, name, null_class=spec.null_class)).sha256 == lower(spec).sha256


def test_only_ncsnpp_filters_with_four_taps():
    assert {block.taps for block in blocks("ncsnpp_32", Resample)} == {(1.0, 3.0, 3.0, 1.0)}
    for rule, size in (("up", 8), ("down", 16)):
        block = next(block for block in blocks("ncsnpp_32", Resample) if block.rule == rule)
        middle = block.matrix(size)[4]
        # A flat image keeps its value; a pixel weighs 3/4 and 1/4 of its neighbours (down: 1 3 3 1 eighths).
        weights = sorted(middle[middle > 0] * 8)
        np.testing.assert_allclose(weights, [2, 6] if rule == "up" else [1, 1, 3, 3], rtol=1e-15)
    assert not blocks("ddpmpp_32", Resample)


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("digits", "unet"),
        ("landscape", "double_conv"),
        ("simple", "simple"),
        ("sixteen_step", "sixteen_step"),
        ("plain", "plain"),
        ("linear_attention", "linear_attention"),
        ("edm2_digits", "edm2"),
    ],
)
def test_unknown_keys_and_wrong_types_of_an_architecture_are_refused(name, architecture):
    assert compose("train", overrides=[f"model={name}"]).model.architecture == architecture
    with pytest.raises(ConfigCompositionException):
        compose("train", overrides=[f"model={name}", "model.colour=red"])
    with pytest.raises(ConfigCompositionException):
        compose("train", overrides=[f"model={name}", "model.image_size=large"])


def test_a_key_of_the_architecture_can_be_changed_even_if_the_file_does_not_name_it():
    rates = {block.rate for block in blocks("digits", Dropout, "model.dropout=0.25")}
    assert rates == {0.25}
    assert compose("train", overrides=["model=simple"]).model.norm_momentum == 0.01


def test_a_preset_of_another_architecture_is_refused():
    with pytest.raises(DuetError, match="architecture plain: 'channel_multipliers' was given"):
        program("digits", "model.architecture=plain")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"architecture": "plane", "image_size": 8}, "model.architecture: .* Did you mean 'plain'"),
        ({"architecture": "plain", "image_size": 16, "chanels": [4]}, "'chanels' .* Did you mean 'channels'"),
        ({"architecture": "plain"}, "model.image_size: no value was given"),
    ],
)
def test_invalid_options_of_make_spec_are_refused(options, words):
    with pytest.raises(DuetError, match=words):
        make_spec(**options)


def test_make_spec_equals_the_constructor():
    spec = ARCHITECTURES["simple"](8, channels=(4, 6))
    assert make_spec("simple", image_size=8, channels=[4, 6]) == spec
    assert lower(spec).sha256 == lower(make_spec("simple", image_size=8, channels=[4, 6])).sha256
