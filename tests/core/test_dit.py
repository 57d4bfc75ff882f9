"""DiT and SiT: exact counts of every preset, where their weights start, and what each option changes."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from diffusion_core.backend import reference
from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.model.generate import check_labels, known_labels
from diffusion_core.networks import DiTSpec, lower
from diffusion_core.networks.blocks.tokens import sine_table
from diffusion_core.networks.flops import multiply_adds
from diffusion_core.networks.weights import initial_weights
from diffusion_core.parity import cases
from diffusion_core.training.objective import Objective
from duet.api.networks import network

# By preset: all elements for images of 256 and of 512 pixels, and those that are trained.
COUNTS = {
    "xl_2": (675_129_632, 676_014_368, 674_834_720),
    "xl_4": (675_074_432, 675_295_616, 675_000_704),
    "xl_8": (675_683_072, 675_738_368, 675_664_640),
    "l_2": (458_102_816, 458_889_248, 457_840_672),
    "l_4": (458_053_760, 458_250_368, 457_988_224),
    "l_8": (458_594_816, 458_643_968, 458_578_432),
    "b_2": (130_512_416, 131_102_240, 130_315_808),
    "b_4": (130_475_648, 130_623_104, 130_426_496),
    "b_8": (130_881_536, 130_918_400, 130_869_248),
    "s_2": (32_963_360, 33_258_272, 32_865_056),
    "s_4": (32_945_024, 33_018_752, 32_920_448),
    "s_8": (33_148_160, 33_166_592, 33_142_016),
}
TINY = DiTSpec(8, 2, 2, num_classes=3, patch_size=2, channels=8, depth=2, heads=2, embedding_features=12)
CHANGES = {
    "image_size": 12, "in_channels": 3, "out_channels": 4, "num_classes": 4, "self_conditioning": True,
    "patch_size": 4, "channels": 12, "depth": 1, "heads": 4, "mlp_ratio": 3.5, "null_class": "none",
    "discarded_channels": 1, "second_time": True, "embedding_features": 10, "embedding_divisor": "half_minus_one",
    "norm_eps": 1e-5, "mlp_norm_eps": 1e-5, "qkv_bias": False, "embedders": "per_block",
}  # fmt: skip


def count(spec: DiTSpec) -> tuple[int, int]:
    program = lower(spec)
    return sum(p.size for p in program.parameters), sum(p.size for p in program.trained)


@pytest.mark.parametrize("kind", ["dit", "sit"])
@pytest.mark.parametrize("size", COUNTS)
def test_a_preset_has_the_counts_of_the_original(kind, size):
    small, large, trained = COUNTS[size]
    spec = network(f"{kind}_{size}")
    assert count(spec) == (small, trained)
    assert count(replace(spec, image_size=64)) == (large, trained)


def test_the_counts_without_learned_sigma():
    dit, sit = network("dit_xl_2", out_channels=4), network("sit_xl_2", discarded_channels=0)
    assert count(dit) == count(sit) == (675_111_184, 674_816_272)


def test_the_count_of_diffusers_which_embeds_in_every_block():
    total, trained = count(network("dit_xl_2", embedders="per_block"))
    assert (trained, total - trained) == (749_826_464, 294_912)


def test_multiply_adds_of_dit_xl_2_are_those_of_the_paper():
    # 118.64 Gflops in its table 4, where one flop is a multiplication with its addition.
    spec = network("dit_xl_2")
    assert abs(multiply_adds(lower(spec), spec.image_shape) / 118.64e9 - 1) < 1e-3


def test_every_option_changes_the_program():
    assert CHANGES.keys() == {field.name for field in fields(TINY)} - {"init"}
    hashes = {lower(replace(TINY, **{option: value})).sha256 for option, value in CHANGES.items()}
    assert len(hashes | {lower(TINY).sha256}) == len(CHANGES) + 1


def test_weights_start_as_in_the_original():
    spec = replace(TINY, in_channels=3, second_time=True)
    starts = {p.name: p.init for p in lower(spec).parameters}
    c, hidden = 8, 32
    time = ("normal", 0.02)
    assert starts["embed.dense0.weight"] == starts["embed.dense1.weight"] == starts["embed.label.weight"] == time
    assert starts["embed.second.dense0.weight"] == starts["embed.second.dense1.weight"] == time
    assert starts["patch.conv.weight"] == ("uniform", np.sqrt(6 / (c + 3 * 4)))
    assert starts["block.0.attn.qkv.weight"] == ("uniform", np.sqrt(6 / (c + 3 * c)))
    assert starts["block.1.mlp.dense0.weight"] == ("uniform", np.sqrt(6 / (c + hidden)))
    zero = [name for name, start in starts.items() if start == ("constant", 0.0) and name.endswith(".weight")]
    assert zero == ["block.0.modulation.weight", "block.1.modulation.weight", "final.modulation.weight",
                    "final.dense.weight"]  # fmt: skip
    assert all(start == ("constant", 0.0) for name, start in starts.items() if name.endswith(".bias"))
    weights = initial_weights(lower(spec), 0)
    np.testing.assert_array_equal(weights["positions.table"], sine_table(4, 4, 8))


def test_other_starts_are_those_of_their_layers():
    starts = {p.name: p.init for p in lower(replace(TINY, init="torch")).parameters}
    assert starts["embed.dense0.weight"] == ("uniform", 1 / np.sqrt(12))
    assert starts["block.0.attn.qkv.weight"] == ("uniform", np.sqrt(6 / (8 + 24)))
    assert starts["block.0.modulation.weight"] == ("constant", 0.0)


def random_weights(spec: DiTSpec) -> dict[str, np.ndarray]:
    return {
        p.name: Stream(1, f"dit/{p.name}").normal([0], p.shape)[0] / np.sqrt(p.shape[-1])
        for p in lower(spec).parameters
    }


def run(spec: DiTSpec, weights: dict[str, np.ndarray], label=(1, 3), **inputs) -> np.ndarray:
    x = Stream(0, "dit/x").normal([0], (2, 8, 8, 2))[0]
    return reference.forward(lower(spec), weights, x, np.array([0.3, 700.0]), np.array(label), **inputs)


def test_discarded_channels_are_the_last_ones_of_a_wider_output():
    wide, cut = replace(TINY, out_channels=4), replace(TINY, discarded_channels=2)
    weights = random_weights(wide)
    np.testing.assert_array_equal(run(cut, weights), run(wide, weights)[..., :2])


def test_a_network_without_a_null_row_has_one_row_less_and_no_null_label():
    program = lower(replace(TINY, null_class="none"))
    assert (program.null_label, program.classes, list(program.labels)) == (None, 3, [0, 1, 2])
    assert lower(TINY).null_label == 3
    assert next(p.shape for p in program.parameters if p.name == "embed.label.weight") == (3, 8)


def test_a_network_without_a_null_row_samples_its_classes_alone():
    program, plan = lower(replace(TINY, null_class="none")), cases.SHORT
    assert known_labels(program) == [0, 1, 2]
    np.testing.assert_array_equal(check_labels([2, 0], program, plan), [2, 0])
    with pytest.raises(DuetError, match=r"label 3: the network has classes 0\.\.2, and none for no class"):
        check_labels([3], program, plan)
    with pytest.raises(DuetError, match="2 was given, but the network was trained without a label for no class; use 1"):
        check_labels([1], program, plan.with_guidance(2.0))
    with pytest.raises(DuetError, match=r'no label for "no class"; use 0, or set model\.null_class=last'):
        Objective(cases.PARITY.process, 0, label_dropout=0.1, classes=3)


def test_the_modulated_blocks_start_as_the_identity():
    """The output of a new network is 0, and that of its blocks their input."""
    weights = initial_weights(lower(TINY), 0)
    weights["final.dense.weight"] = np.random.default_rng(0).normal(size=weights["final.dense.weight"].shape)
    other = weights | {"block.0.attn.proj.bias": np.full(8, 5.0), "block.1.mlp.dense1.bias": np.full(8, 5.0)}
    np.testing.assert_array_equal(run(TINY, weights), run(TINY, other))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 3}, "model.patch_size: 3 was given, which does not divide model.image_size=8"),
        ({"heads": 3}, "model.heads: 3 heads do not divide 8 channels"),
        ({"channels": 6, "heads": 2}, "model.channels: 6 was given.* a multiple of 4"),
        ({"null_class": "zero"}, "model.null_class: 'zero' was given; it must be one of last, none"),
        ({"embedders": "each"}, "model.embedders: 'each' was given; it must be one of shared, per_block"),
        ({"embedding_divisor": "third"}, "model.embedding_divisor: 'third'"),
        ({"embedding_features": 7}, "model.embedding_features: 7 was given; it must be an even number"),
        ({"discarded_channels": -1}, "model.discarded_channels: -1 was given"),
        ({"mlp_ratio": 0.0}, "model.mlp_ratio: 0.0 was given"),
        ({"norm_eps": 0.0}, "model.norm_eps: 0.0 was given"),
        ({"depth": 0}, "model.depth: 0 was given; it must be at least 1"),
    ],
)
def test_an_option_that_does_not_fit_is_refused_by_its_key(change, message):
    with pytest.raises(DuetError, match=message):
        lower(replace(TINY, **change))
