"""Initial weights as DDPM, Keras and PyTorch draw them; the layers of the frameworks confirm the limits."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
from commands import composed

from diffusion_core.common.errors import DuetError
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import ARCHITECTURES, DoubleConvSpec, Node, Program, UNetSpec, lower, make_spec
from diffusion_core.networks.blocks import (
    Attention,
    BatchNorm,
    Conv,
    ConvTranspose,
    Embedding,
    GroupNorm,
    LayerNorm,
    Linear,
)
from diffusion_core.networks.initialisation import INITS
from diffusion_core.networks.weights import initial_weights
from experiments.config import build

C, HEADS, K = 24, 4, 3
BLOCKS = {
    "linear": Linear(20, 60, True, 1.0),
    "conv": Conv(C, 10, K, 2, (1, 1, 1, 1), True, 1.0),
    "up": ConvTranspose(C, 6, 4, 2, 1, True, 1.0),
    "qkv": Conv(C, 3 * C, 1, 1, (0, 0, 0, 0), True, 1.0),
    "attend": Attention(C, HEADS),
    "proj": Conv(C, C, 1, 1, (0, 0, 0, 0), True, 1.0),
    "zero": Conv(C, C, 1, 1, (0, 0, 0, 0), True, 0.0),
    "table": Embedding(50, 12),
    "batch": BatchNorm(C, 1e-3, 0.01),
    "group": GroupNorm(C, 1, 1e-3),
    "layer": LayerNorm((C,), 1e-3),
}
INPUTS = {"attend": ("qkv",), "proj": ("attend",)}
# By name: the bound of the weight, then that of the bias.
LIMITS = {
    "keras": {
        "linear": (math.sqrt(6 / 80), 0),
        "conv": (math.sqrt(6 / (34 * K**2)), 0),
        "up": (math.sqrt(6 / (30 * 16)), 0),
        "qkv": (math.sqrt(6 / (2 * C)), 0),
        "proj": (math.sqrt(6 / (2 * C)), 0),
        "table": (0.05, None),
    },
    "torch": {
        "linear": (1 / math.sqrt(20), 1 / math.sqrt(20)),
        "conv": (1 / math.sqrt(C * K**2), 1 / math.sqrt(C * K**2)),
        "up": (1 / math.sqrt(6 * 16), 1 / math.sqrt(6 * 16)),  # the fan-in of a transposed convolution is its output
        "qkv": (math.sqrt(6 / (4 * C)), 0),
        "proj": (1 / math.sqrt(C), 0),
    },
}


def program(init: str) -> Program:
    return Program(
        tuple(Node(name, block, INPUTS.get(name, ("x",))) for name, block in BLOCKS.items()), init=init
    )  # fmt: skip


def weights(init: str) -> dict[str, np.ndarray]:
    return initial_weights(program(init), 0)


def assert_uniform(value: np.ndarray, bound: float, name: str) -> None:
    """Check the limit and the variance, bound^2 / 3, of a uniform distribution."""
    assert np.abs(value).max() <= bound, name
    if value.size > 50:
        assert np.abs(value).max() > 0.93 * bound, name
        # The variance of an estimate of a uniform's variance is 4/5 of the square, over n.
        assert abs(value.var() / (bound**2 / 3) - 1) < 4 * math.sqrt(0.8 / value.size), name


@pytest.mark.parametrize("init", LIMITS)
def test_limits_and_variances(init):
    drawn = weights(init)
    for name, (weight, bias) in LIMITS[init].items():
        assert_uniform(drawn[f"{name}.weight"], weight, name)
        if bias == 0:
            assert not drawn[f"{name}.bias"].any(), name
        elif bias is not None:
            assert drawn[f"{name}.bias"].any(), name
            assert_uniform(drawn[f"{name}.bias"], bias, name)


@pytest.mark.parametrize("init", INITS)
def test_norms_and_layers_of_scale_zero_start_alike_under_every_convention(init):
    drawn, ddpm = weights(init), weights("ddpm")
    for name in drawn:
        if name.split(".")[0] in ("batch", "group", "layer", "zero"):
            np.testing.assert_array_equal(drawn[name], ddpm[name], err_msg=name)


def test_keras_starts_as_ddpm_except_at_embeddings_and_attention():
    keras, ddpm = weights("keras"), weights("ddpm")
    differ = {name for name in keras if not np.array_equal(keras[name], ddpm[name])}
    assert differ == {"table.weight", "qkv.weight"}


def test_embeddings_are_standard_normal_in_pytorch():
    np.testing.assert_array_equal(weights("torch")["table.weight"], weights("ddpm")["table.weight"])


@pytest.mark.parametrize("init", LIMITS)
def test_an_initial_weight_is_a_scaled_draw_of_its_own_stream(init):
    """So a start differs from that of DDPM by a factor per tensor, in every framework."""
    drawn, ddpm = weights(init), weights("ddpm")
    for name in ("linear", "conv", "up", "qkv", "proj"):
        ratio = drawn[f"{name}.weight"] / ddpm[f"{name}.weight"]
        np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-12, err_msg=name)


def test_the_start_does_not_change_what_a_network_computes():
    specs = [DoubleConvSpec(8, 1, 1, channels=4, channel_multipliers=(1, 2), embedding=8, init=init) for init in INITS]
    assert len({lower(spec).sha256 for spec in specs}) == 1
    assert lower(specs[0]).sha256 == "a08d82320ee82738273354bb4580098a1025c350de60694e0577ddc60cf83de7"


def test_layers_around_attention_are_found_in_every_architecture_that_has_it():
    """The last layers of branches start at zero by default; with zero_init=False they follow the convention."""
    spec = UNetSpec(8, 1, 1, 8, (1, 2), 1, (4,), norm_groups=4, init="torch")
    zero, drawn = (
        {p.name: p.init for p in lower(replace(spec, zero_init=zero)).parameters if "mid.attn" in p.name}
        for zero in (True, False)
    )
    assert zero["mid.attn.proj.weight"] == ("constant", 0.0)
    assert drawn["mid.attn.proj.weight"] == ("uniform", 1 / math.sqrt(16))
    assert drawn["mid.attn.proj.bias"] == drawn["mid.attn.qkv.bias"] == ("constant", 0.0)
    assert drawn["mid.attn.qkv.weight"] == ("uniform", math.sqrt(6 / 64))


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - {"classifier"}))
def test_an_unknown_start_is_refused(architecture):
    with pytest.raises(DuetError, match=r"model\.init: .*kears.*keras"):
        make_spec(architecture, image_size=32, init="kears")


def test_a_checkpoint_records_the_start_and_an_older_one_started_as_ddpm():
    spec = DoubleConvSpec(8, 1, 1, channels=4, channel_multipliers=(1, 2), embedding=8, init="keras")
    data = DiffusionModel(spec, "cosine", "eps").to_dict()
    assert data["spec"]["init"] == "keras"
    assert DiffusionModel.from_dict(data).program.init == "keras"
    del data["spec"]["init"]
    assert DiffusionModel.from_dict(data).spec == replace(spec, init="ddpm")
    assert asdict(spec)["init"] == "keras"


def test_the_uncertainty_of_the_loss_still_starts_at_zero():
    spec = UNetSpec(8, 1, 1, 8, (1,), 1, norm_groups=4, init="torch")
    model = DiffusionModel(spec, "cosine", "v", uncertainty=True)
    assert model.program.init == "torch"
    assert not initial_weights(model.program, 0)["uncertainty.dense.weight"].any()


SYSTEMS = {
    "simple": "keras", "landscape": "keras", "sixteen_step": "keras", "denoising_autoencoder": "keras",
    "double_conv_attention": "torch", "plain": "torch",
    "digits": "ddpm", "toy": "ddpm", "images32": "ddpm",
}  # fmt: skip


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_source_system_starts_as_its_framework_and_the_others_as_ddpm(name):
    assert build.network_spec(composed("train", f"experiment={name}")).init == SYSTEMS[name]
