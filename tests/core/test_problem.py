"""A diffusion model: its checks, and its round trip through plain data."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from diffusion_core.common.errors import DuetError
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import ARCHITECTURES, UNetSpec
from diffusion_core.parity import cases

SPEC = UNetSpec(4, 1, 1, 4, (1, 2), 1, (2,), norm_groups=2)
MODEL = DiffusionModel(SPEC, {"name": "cosine", "T": 10}, "v")


def test_round_trip_through_json():
    back = DiffusionModel.from_dict(json.loads(json.dumps(MODEL.to_dict())))
    assert back == MODEL
    assert back.program.sha256 == MODEL.program.sha256
    assert back.process.prediction == "v" and back.process.schedule.name == "cosine"
    assert back.process.schedule.steps == 10


@pytest.mark.parametrize("schedule, prediction, words", [
    ({"name": "cosin"}, "v", "Did you mean 'cosine'"),
    ({"name": "flow"}, "eps", "alpha is 0"),
    ({"name": "linear"}, "w", "process.prediction"),
])  # fmt: skip
def test_invalid_arguments_are_refused_at_construction(schedule, prediction, words):
    with pytest.raises(DuetError, match=words):
        DiffusionModel(SPEC, schedule, prediction)


def test_an_unknown_option_of_a_checkpoint_is_named():
    data = MODEL.to_dict()
    data["spec"]["chanels"] = 3
    with pytest.raises(
        DuetError, match=r"model, for the architecture unet: 'chanels' was given; .*Did you mean 'channels'"
    ):
        DiffusionModel.from_dict(data)


@pytest.mark.parametrize("title", cases.NETWORKS)
def test_round_trip_of_every_network(title):
    model = DiffusionModel(cases.NETWORKS[title], {"name": "linear", "T": 10}, "eps", (0.0, 1.0))
    back = DiffusionModel.from_dict(json.loads(json.dumps(model.to_dict())))
    assert back == model and back.program.sha256 == model.program.sha256
    assert type(back.spec) is ARCHITECTURES[back.architecture]


def test_the_output_has_the_channels_of_the_image_or_twice_as_many():
    assert DiffusionModel(replace(SPEC, out_channels=2), {"name": "linear"}, "eps").spec.out_channels == 2
    with pytest.raises(
        DuetError, match=r"model.out_channels: 3 was given for 1 in_channels; it must be 1, or 2 to predict a variance"
    ):
        DiffusionModel(replace(SPEC, out_channels=3), {"name": "linear"}, "eps")


@pytest.mark.parametrize("trained, other", [("learned", "learned_range"), ("learned_range", "learned")])
def test_a_learned_variance_must_be_sampled_as_it_was_trained(trained, other):
    model = DiffusionModel(replace(SPEC, out_channels=2), {"name": "linear"}, "eps", variance=trained)
    with pytest.raises(
        DuetError, match=f"^sampler.variance: {other} was given, .* trained with {trained}; use {trained}, or"
    ):
        model.plan("ddpm", steps=4, variance=other)
    for fits in (trained, "fixed_small", "fixed_large"):
        model.plan("ddpm", steps=4, variance=fits)
    # If the meaning of the second half is unknown, as for weights without their pipeline, the user has to choose.
    assert replace(model, variance="fixed").plan("ddpm", steps=4, variance=other).learned is not None


@pytest.mark.parametrize("value_range", [(1.0, 0.0), (0.0, 0.0), (0.0,)])
def test_white_must_be_above_black(value_range):
    with pytest.raises(DuetError, match=r"process.value_range: .* it must be two numbers"):
        DiffusionModel(SPEC, {"name": "linear"}, "eps", value_range)


def test_a_clip_of_one_ends_at_black_and_white():
    model = DiffusionModel(SPEC, {"name": "linear"}, "eps", (0.0, 1.0))
    assert model.plan("ddim", clip=1.0).bounds == (0.0, 1.0)
    assert model.plan("ddim", clip=2.0).bounds == (-0.5, 1.5)
    assert model.plan("ddim", clip=None).bounds is None
    assert replace(model, value_range=(-1.0, 1.0)).plan("ddim", clip=1.0).bounds == (-1.0, 1.0)


def test_time_scale_multiplies_the_time_input():
    model = DiffusionModel(SPEC, {"name": "cosine", "T": 4000}, "eps", time_scale=0.25)
    assert model.process.columns([3999]).c_noise == [999.75]
    assert model.plan("ddim", steps=4, spacing="trailing").c_noise[0] == 999.75
    with pytest.raises(DuetError, match=r"process\.time_scale: 0 was given; it must be a number other than 0"):
        replace(model, time_scale=0)


def test_continuous_time_and_sigma_data_survive_a_checkpoint():
    model = DiffusionModel(SPEC, {"name": "edm", "sigma_max": 50.0}, "edm", sigma_data=0.3)
    again = DiffusionModel.from_dict(model.to_dict())
    assert again == model and again.process.sigma_data == 0.3
    assert again.plan("ddim", steps=4, spacing="karras").start_scale == pytest.approx(50)
    # A checkpoint from before this option existed.
    old = {name: value for name, value in model.to_dict().items() if name != "sigma_data"}
    assert DiffusionModel.from_dict(old).sigma_data == 0.5
