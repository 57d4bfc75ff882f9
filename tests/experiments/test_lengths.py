"""Lengths that must agree with that of the run: errors are refused, oddities said in one line, the rest is silent."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from commands import call, composed

from diffusion_core.common.errors import DuetError
from diffusion_core.data import Dataset
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import PlainSpec
from diffusion_core.optim import initial_weight, make_ema, make_profile, step_weights
from diffusion_core.optim.adam import LearningRate
from diffusion_core.training.training_config import TrainingConfig
from experiments.config import build
from experiments.training.lengths import describe_lengths
from experiments.training.setup import TrainingSetup

DATA = Dataset(np.zeros((8, 8, 8, 1), np.uint8), np.zeros(8, int), ("all",), "grey")
SPEC = PlainSpec(8, 1, 1, channels=(4,), bottleneck=8)


def setup(
    images: int = 64, batch: int = 8, rate: object = None, ema: object = None, **options: object
) -> TrainingSetup:
    objective = options.pop("objective", None)
    return TrainingSetup.create(
        DiffusionModel(SPEC, {"name": "cosine", "T": 10}, "v"), DATA, TrainingConfig(images, batch, **options),
        learning_rate=rate, ema=ema, objective=objective, sampler={"name": "ddim", "steps": 4},
    )  # fmt: skip


@pytest.mark.parametrize("decay", ["linear", "cosine"])
@pytest.mark.parametrize("total", [8, 32, 56])
def test_a_run_that_is_longer_than_its_decay_to_zero_is_refused(decay, total):
    with pytest.raises(
        DuetError, match=rf"lr.total_images: {total} was given, but .*lr.total_images=null.*images={total}"
    ):
        setup(rate=LearningRate(0.1, decay=decay, total_images=total))
    assert describe_lengths(setup(rate=LearningRate(0.1, decay=decay, total_images=total, floor=0.01))) == []


@pytest.mark.parametrize("total", [None, 57, 64])
def test_no_step_has_the_rate_zero_but_the_last(total):
    rate = setup(rate=LearningRate(0.1, decay="cosine", total_images=total)).learning_rate
    assert all(rate(n) > 0 for n in range(8, 57, 8)) and rate.total_images == (total or 64)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, None),
        ({"rate": LearningRate(0.1, 64)}, None),
        ({"rate": LearningRate(0.1, 128)}, "lr.warmup_images: .* rises to 0.05 and never reaches lr.peak, 0.1"),
        ({"rate": LearningRate(0.1, 0, "cosine", 128)}, "lr.total_images: the decay ends at 128 images, after"),
        ({"rate": LearningRate(0.1, 0, "steps", factor=0.5, every_images=63)}, None),
        ({"rate": LearningRate(0.1, 0, "steps", factor=0.5, every_images=64)}, "lr.every_images: .* does not decay"),
        (
            {"rate": LearningRate(0.1, 0, "steps", factor=0.01, every_images=8)},
            "lr.factor: from 32 images on the .* 1e-06",
        ),
        ({"rate": LearningRate(0.1, 0, "steps", 0, 1e-5, factor=0.01, every_images=8)}, None),
        ({"rate": LearningRate(0.1, 0, "inverse_sqrt", decay_start_images=64)}, "lr.decay_start_images: .* decay"),
        ({"ema": make_ema("fixed", decay=0.9, start=7)}, "ema: .* 90.0% of ema is still"),
        ({"ema": make_ema("fixed", decay=0.9, start=8)}, "ema.start: ema begins to average after 8 updates, .* has 8"),
        ({"ema": make_ema("inverse_gamma", start=9)}, "ema.start: .* after 9 updates"),
        ({"ema": make_ema("fixed", decay=0.9)}, None),
        (
            {"ema": make_ema("fixed", decay=0.999)},
            "ema: at the end of the run 99.2% of ema is still what it began with",
        ),
        ({"ema": make_ema("half_life", images=500, ramp=None)}, "ema: .* 91.5% of ema"),
        ({"ema": make_ema("half_life", images=500)}, None),
        ({"ema": make_ema("power", extra=[{"name": "fixed", "decay": 0.99}])}, "ema: .* 92.3% of ema1"),
        ({"ema": make_ema("warmup", snapshot_images=65)}, "ema.snapshot_images=65: longer than the run of 64 images"),
        ({"checkpoint_images": 100, "sample_images": 99}, "checkpoint_images=100, trainer.sample_images=99: longer"),
        ({"checkpoint_images": 64, "sample_images": 8}, None),
        ({"batch": 16}, "trainer.batch: 16 is more than the 8 images of the data"),
        ({"objective": {"timestep_sampling": {"name": "loss_second_moment"}}}, "stays uniform"),
        ({"objective": {"timestep_sampling": {"name": "loss_second_moment", "history": 6}}}, None),
    ],
)
def test_an_odd_length_is_said_in_one_line(options, said):
    (line,) = describe_lengths(setup(**({"batch": 8} | options))) or ("",)
    assert line == "" if said is None else re.search(said, line), line


@pytest.mark.parametrize(
    "profile", [("fixed", {"decay": 0.9}), ("warmup", {"decay": 0.7}), ("half_life", {"images": 50, "ramp": None}),
                ("power", {}), ("inverse_gamma", {})],
)  # fmt: skip
def test_the_initial_weight_is_that_of_step_zero(profile):
    made = make_profile(profile[0], **profile[1])
    for updates in (0, 1, 7):
        assert initial_weight(made, updates, 8) == pytest.approx(step_weights(made, updates, 8)[0], abs=1e-15)
    assert initial_weight(make_profile("fixed", decay=0.9, start=3), 7, 8, since=3) == pytest.approx(0.9**4)


@pytest.mark.parametrize("experiment", ["digits", "toy"])
def test_the_shipped_experiments_are_silent(experiment):
    shipped = build.training_setup(composed("train", f"experiment={experiment}"))
    assert describe_lengths(shipped) == []
    assert shipped.learning_rate.total_images in (None, shipped.training_config.images)
    assert describe_lengths(build.training_setup(composed("train", f"experiment={experiment}", "debug=fast"))) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("experiment=shortcut_digits",), None),
        (("experiment=shortcut_digits", "objective.decay=0.999"), "objective.decay: at the end of the run 60.6%"),
        (("experiment=shortcut_digits", "objective.decay=0"), None),
        (("experiment=consistency_training_digits",), None),
    ],
)  # fmt: skip
def test_a_target_by_an_average_that_hardly_moves_is_said(words, said):
    lines = describe_lengths(build.training_setup(composed("train", *words)))
    assert (lines == []) if said is None else (len(lines) == 1 and lines[0].startswith(said)), lines


def test_cosine_decay_needs_no_length_on_the_command_line():
    made = build.training_setup(composed("train", "data=digits", "lr.decay=cosine", "trainer.images=1280"))
    assert made.learning_rate == LearningRate(1e-3, decay="cosine", total_images=1280)


def test_a_refused_length_leaves_no_directory(tmp_path: Path):
    words = ("data=digits", "lr.decay=cosine", "lr.total_images=64", "trainer.images=128", "trainer.batch=64")
    done = call("train", *words, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.code == 2 and "lr.total_images: 64 was given" in done.err and not list(tmp_path.iterdir())
