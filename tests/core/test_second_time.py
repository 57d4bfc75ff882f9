"""A network of two times is sampled with the second time that it was trained with, or the sampler is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diffusion_core.backend import reference
from diffusion_core.backend.interface import TrainerState
from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.convert.onnx import onnx_model, open_onnx, save_onnx
from diffusion_core.diffusion.second_time import MEANINGS, SecondTime
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import UNetSpec
from diffusion_core.networks.weights import initial_weights
from diffusion_core.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from diffusion_core.training.objective import Objective
from diffusion_core.training.targets import METHODS

SPEC = UNetSpec(
    image_size=4, in_channels=1, out_channels=1, channels=4, channel_multipliers=(1,), blocks_per_resolution=1,
    norm_groups=2, second_time=True,
)  # fmt: skip
LINE = {"name": "flow_continuous"}
MEAN_FLOW = DiffusionModel(SPEC, LINE, "flow", second_time=SecondTime("length"))
SHORTCUT = DiffusionModel(
    SPEC, LINE, "velocity_to_data", time_scale=-1.0, time_offset=1.0, second_time=SecondTime("log2_steps", 3.0)
)
REGRESSION = replace(MEAN_FLOW, second_time=SecondTime("constant"))
X, T, LABELS = Stream(0, "x").normal(np.arange(2), (4, 4, 1)), np.array([0.2, 0.7]), np.zeros(2, int)


def scattered(model: DiffusionModel) -> dict:
    return {p.name: Stream(4, p.name).normal(np.arange(1), p.shape)[0] for p in model.program.parameters}


def test_a_missing_second_time_is_the_one_at_which_the_network_is_the_velocity():
    weights = scattered(SHORTCUT)
    wanted = reference.forward(SHORTCUT.program, weights, X, T, LABELS, second_time=np.full(2, 3.0))
    np.testing.assert_array_equal(reference.forward(SHORTCUT.program, weights, X, T, LABELS), wanted)
    assert np.abs(reference.forward(MEAN_FLOW.program, weights, X, T, LABELS) - wanted).max() > 1e-3
    assert SHORTCUT.program.sha256 == MEAN_FLOW.program.sha256  # an input, not another network


def test_a_sampler_of_one_time_follows_the_velocity_of_a_shortcut_model():
    weights, plan = scattered(SHORTCUT), SHORTCUT.plan("flow_euler", steps=2)
    explicit = replace(plan, second_time=np.full(2, 3.0))
    got, wanted = (
        reference.sample(SHORTCUT.program, weights, p, X, LABELS, lambda row: X) for p in (plan, explicit)
    )  # fmt: skip
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    "model, sampler, options, match",
    [
        (
            SHORTCUT,
            "mean_flow",
            {},
            "second time is the length of a step, but .* trained with log2 .* sampler=shortcut",
        ),
        (MEAN_FLOW, "shortcut", {}, "is log2 of the number of steps, but .* use sampler=mean_flow"),
        (REGRESSION, "mean_flow", {}, "trained with a constant, 0; use a sampler of one time such as flow_euler"),
        (SHORTCUT, "shortcut", {"steps": 16}, "sampler.steps: 16 was given, .* at most 8 steps"),
        (
            replace(MEAN_FLOW, spec=replace(SPEC, second_time=False)),
            "mean_flow",
            {},
            "which this network does not take",
        ),
    ],
)
def test_a_second_time_with_another_meaning_is_refused(model, sampler, options, match):
    with pytest.raises(DuetError, match=match):
        model.plan(sampler, **options)


def test_a_meaning_that_does_not_exist_is_refused():
    with pytest.raises(DuetError, match=r"second_time.meaning: 'lenght' was given; .* Did you mean 'length'"):
        SecondTime("lenght")
    with pytest.raises(DuetError, match="second_time: 'length' was given; it is what the method"):
        replace(MEAN_FLOW, second_time="length")


def test_what_fits_or_is_not_known_is_sampled():
    assert SHORTCUT.plan("shortcut", steps=8).rows == 8 and MEAN_FLOW.plan("mean_flow", steps=3).rows == 3
    for model in (SHORTCUT, MEAN_FLOW, REGRESSION):
        assert model.plan("flow_heun", steps=2).second_time is None
    assert replace(MEAN_FLOW, second_time=None).plan("shortcut").second_time_meaning == "log2_steps"


def test_every_method_of_two_times_declares_what_its_second_time_means():
    for name, method in METHODS.items():
        assert (method().second_time is not None) == method.two_times, name
    assert METHODS["shortcut"](steps=32).second_time == SecondTime("log2_steps", 5.0)
    objective = Objective.for_model(MEAN_FLOW, objective="mean_flow")
    assert objective.second_time(SHORTCUT.program) == SecondTime("length")
    assert Objective.for_model(MEAN_FLOW).second_time(SHORTCUT.program) == SecondTime("constant", 3.0)
    assert objective.second_time(replace(SHORTCUT, spec=replace(SPEC, second_time=False)).program) is None
    assert set(MEANINGS) == {"length", "log2_steps", "constant"}


def test_a_checkpoint_keeps_the_meaning_and_reads_it_from_the_notes_of_earlier_ones(tmp_path):
    weights = initial_weights(SHORTCUT.program, 0)
    for folder, model, notes in (
        ("new", SHORTCUT, {}),
        ("old", replace(SHORTCUT, second_time=None), {"trained_for": {"objective": {"name": "shortcut", "steps": 8}}}),
    ):
        save_checkpoint(tmp_path / folder, Checkpoint(0, model, 0, TrainerState.fresh(weights), notes))
        found = load_checkpoint(tmp_path / folder / "000000000000").model
        assert found.second_time == SecondTime("log2_steps", 3.0) and found.program.default_second_time == 3.0
    assert SecondTime.of_notes({"trained_for": {"objective": {"name": "mean_flow"}}}) == SecondTime("length")
    assert SecondTime.of_notes({}) is None and "second_time" not in replace(SHORTCUT, second_time=None).to_dict()


def test_an_onnx_file_knows_the_second_time(tmp_path):
    weights = {name: w.astype(np.float32) for name, w in scattered(SHORTCUT).items()}
    save_onnx(onnx_model(SHORTCUT.program, weights, (4, 4, 1)), tmp_path / "network.onnx")
    run = open_onnx(tmp_path / "network.onnx")
    np.testing.assert_array_equal(run(X, T, LABELS), run(X, T, LABELS, second_time=np.full(2, 3.0)))
