"""Trainings and samples that are requested from Python, without a configuration."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from commands import call, composed

from diffusion_core.backend.interface import BackendConfig
from diffusion_core.common.errors import DuetError
from diffusion_core.data import load_dataset
from diffusion_core.files.safe_read import read_json
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import UNetSpec
from diffusion_core.optim import make_ema
from diffusion_core.optim.adam import LearningRate
from diffusion_core.runs.checkpoint import load_checkpoint
from diffusion_core.runs.run_directory import read_samples
from diffusion_core.training.training_config import TrainingConfig
from experiments.config import build
from experiments.config.safe_yaml import read_config
from experiments.runtime.backends import BackendSetup
from experiments.sampling.options import SampleOptions
from experiments.sampling.run import SamplingSetup, sample_checkpoint
from experiments.training.run import train
from experiments.training.setup import TrainingSetup

SPEC = UNetSpec(
    8, 1, 1, channels=8, channel_multipliers=(1, 2), blocks_per_resolution=1, attention_resolutions=(),
    middle_attention=False, norm_groups=4, num_classes=10,
)  # fmt: skip


def test_the_defaults_in_python_are_those_of_the_configuration():
    configured = build.training_setup(composed("train"))
    made = TrainingSetup.create(configured.model, load_dataset("digits", part="train"), TrainingConfig(128_000))
    for name in ("optimiser", "learning_rate", "ema", "sampler", "sample", "seed"):
        assert getattr(made, name) == getattr(configured, name), name
    assert made.objective.options == configured.objective.options
    given = configured.training_config
    for field in fields(given):  # an interval is a choice of the configuration, and changes no number
        if field.name not in ("checkpoint_images", "validation_images"):
            assert getattr(made.training_config, field.name) == getattr(given, field.name), field.name
    assert made.backend.config == configured.backend.config and made.backend.name == configured.backend.name
    np.testing.assert_array_equal(made.plan.t, configured.plan.t)


def test_what_does_not_fit_is_refused_in_python_too():
    model, digits = DiffusionModel(SPEC, {"name": "linear", "T": 100}, "eps"), load_dataset("digits", part="train")
    with pytest.raises(DuetError, match="option of the objective: 'drop_label'"):
        TrainingSetup.create(model, digits, objective={"drop_label": 0.1})
    with pytest.raises(DuetError, match="labels"):
        TrainingSetup.create(model, digits, sample=SampleOptions(labels=11))
    with pytest.raises(DuetError, match="its images are"):
        TrainingSetup.create(model, load_dataset("shapes", count=10))


@pytest.mark.backend
@pytest.mark.either
def test_a_run_from_python_equals_the_same_run_from_the_command_line(backend_name, tmp_path):
    network = [f"model.{word}" for word in ["channels=8", "attention_resolutions=[]", "norm_groups=4", "dropout=0"]]
    model = DiffusionModel(build.network_spec(composed("train", *network)), {"name": "linear", "T": 100}, "eps")
    backend = BackendSetup(backend_name, BackendConfig(device="cpu", threads=1))
    config, options = TrainingConfig(32, 16, log_images=16), SampleOptions(4, weights="ema")
    setup = TrainingSetup.create(
        model, load_dataset("digits", part="train"), config, objective={"label_dropout": 0.1}, seed=3, sample=options,
        learning_rate=LearningRate(2e-3), ema=make_ema("fixed", decay=0.9), backend=backend,
        sampler={"name": "ddim", "steps": 3},
    )  # fmt: skip
    result = train(setup, tmp_path / "python")
    done = call(
        "train", f"backend={backend_name}", f"hydra.run.dir={tmp_path / 'command'}", "backend.device=cpu",
        "backend.threads=1", *network, "process.schedule={name: linear, T: 100}",
        "process.label_dropout=0.1", "seed=3", "sample.count=4", "lr.peak=2e-3", "ema=fixed", "ema.decay=0.9",
        "trainer.images=32", "trainer.batch=16", "trainer.log_images=16", "sampler.steps=3", "sampler.clip=null",
        "data.options.part=train",
    )  # fmt: skip
    assert done.code == 0, done.err
    one, other = (load_checkpoint(tmp_path / name) for name in ("python", "command"))
    assert one.model == other.model and one.notes["trained_for"] == other.notes["trained_for"]
    assert one.state.weights.keys() == other.state.weights.keys()
    for name, weight in one.state.weights.items():
        np.testing.assert_array_equal(weight, other.state.weights[name], err_msg=name)
    assert result["objective"] == read_json(tmp_path / "command/result.json")["objective"]
    described = read_config(tmp_path / "python/config.yaml")
    assert described["backend"]["name"] == backend_name and described["trainer"]["images"] == 32
    assert train(setup, tmp_path / "python", resume="latest") == read_json(tmp_path / "python/result.json")


@pytest.mark.backend
@pytest.mark.either
def test_samples_from_python_equal_those_of_the_run(backend_name, tmp_path):
    model = DiffusionModel(SPEC, {"name": "linear", "T": 100}, "eps")
    backend = BackendSetup(backend_name, BackendConfig(device="cpu", threads=1))
    setup = TrainingSetup.create(
        model, load_dataset("digits", part="train"), TrainingConfig(16, 16), backend=backend,
        sample=SampleOptions(4), sampler={"name": "ddim", "steps": 3},
    )  # fmt: skip
    train(setup, run := tmp_path / "run")
    request = SamplingSetup.create(str(run), options=SampleOptions(4), backend=backend, figures=False)
    drawn = sample_checkpoint(request, tmp_path / "drawn").images
    np.testing.assert_array_equal(drawn, read_samples(run / "samples/samples.npz")[0])
    assert not Path(tmp_path / "drawn/trajectory.npz").exists()
