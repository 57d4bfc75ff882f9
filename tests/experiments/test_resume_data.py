"""A run is resumed on its own data, or the change is allowed and named; a changed optimiser is named as well."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import call

from diffusion_core.backend.interface import TrainerState
from diffusion_core.common.errors import DuetError
from diffusion_core.data import Dataset
from diffusion_core.files.lock import LOCK
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import PlainSpec
from diffusion_core.networks.weights import initial_weights
from diffusion_core.optim import profile_options
from diffusion_core.optim.adam import Adam, LearningRate
from diffusion_core.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from diffusion_core.runs.run_directory import read_json, write_json
from diffusion_core.training.training_config import TrainingConfig
from experiments.training import resume
from experiments.training.changes import describe_changes, objective_notes
from experiments.training.record import record_at
from experiments.training.setup import TrainingSetup

IMAGES = np.arange(6 * 64, dtype=np.uint8).reshape(6, 8, 8, 1)
PETS = Dataset(IMAGES, np.array([0, 0, 1, 1, 2, 2]), ("bird", "cat", "dog"), "pets")
OTHERS = {
    "a class renamed": (replace(PETS, class_names=("bird", "cat", "hound")), "class 2: dog -> hound"),
    "the classes in another order": (replace(PETS, class_names=("zbird", "cat", "dog")), "class 0: bird -> zbird"),
    "a class more": (replace(PETS, class_names=("bird", "cat", "dog", "eel")), "class 3: no class -> eel"),
    "an image changed": (replace(PETS, images=IMAGES + np.uint8(1)), "the same number of images but another content"),
    "a label changed": (replace(PETS, labels=np.array([0, 0, 1, 1, 2, 1])), "another content"),
    "another order of images": (replace(PETS, images=IMAGES[::-1].copy()), "another content"),
    "fewer images": (PETS.select([0, 2, 4]), r"but pets \(3 images, 3 classes, hash"),
}
SPEC = PlainSpec(8, 1, 1, channels=(4,), bottleneck=8)


def setup(dataset: Dataset = PETS, schedule: object = "cosine", **options: object) -> TrainingSetup:
    model = DiffusionModel(SPEC, schedule, "v")
    return TrainingSetup.create(model, dataset, **({"training_config": TrainingConfig(images=16, batch=2)} | options))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run after two steps on pets."""
    run, experiment = tmp_path_factory.mktemp("run"), setup()
    fresh, _ = resume.starting_point(experiment, run)
    notes = {
        "averages": [profile_options(profile) for profile in experiment.ema.profiles],
        "trained_for": objective_notes(experiment),
    }
    state = TrainerState.fresh(initial_weights(experiment.model.program, 0, np.float32))
    kept = Checkpoint(
        4, experiment.model, 0, replace(state, updates=2), notes, training=record_at(experiment, fresh, 4)
    )
    save_checkpoint(run / "checkpoints", kept)
    return run


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("how", ["latest", "auto", "the run", "the checkpoint"])
def test_a_run_is_resumed_on_other_data_only_if_it_is_allowed(run, what, how):
    (dataset, said), path = (
        OTHERS[what],
        {"the run": run, "the checkpoint": run / "checkpoints/000000000004"}.get(how, how),
    )
    with pytest.raises(DuetError, match=rf"pets \(6 images, 3 classes, hash .*{said}.*change_data=true"):
        resume.starting_point(setup(dataset), run, str(path))
    start, _ = resume.starting_point(setup(dataset), run, str(path), change_data=True)
    assert [line for line in describe_changes(start, setup(dataset)) if line.startswith("data changed: ")]


@pytest.mark.parametrize("what", OTHERS)
def test_a_run_that_starts_from_another_one_may_have_other_data_and_says_so(run, what, tmp_path):
    dataset, said = OTHERS[what]
    start, _ = resume.starting_point(setup(dataset), tmp_path, str(run))
    (line,) = describe_changes(start, setup(dataset))
    assert re.match(rf"data changed: trained so far on pets \(6 images, .*{said}", line)
    record = record_at(setup(dataset), start, 6)
    assert record.earlier_data == (load_checkpoint(run).training.data,) and record.data.sha256 == dataset.sha256


def test_the_same_data_under_another_name_are_accepted(run):
    """Neither the path nor the name nor the date of the files counts."""
    moved = replace(PETS, name="moved", images=IMAGES.copy())
    start, _ = resume.starting_point(setup(moved, data_options={"path": "elsewhere"}), run, "latest")
    assert describe_changes(start, setup(moved)) == []


def test_a_run_of_an_earlier_version_is_resumed_on_the_data_of_its_environment_only(run, tmp_path):
    shutil.copytree(run, old := tmp_path / "old")
    save_checkpoint(old / "checkpoints", replace(load_checkpoint(run), training=None))
    assert resume.starting_point(setup(), old, "latest")[1] is not None  # nothing is known
    for dataset, is_same in ((PETS, True), (OTHERS["an image changed"][0], False)):
        write_json(old / "environment.json", {"data": {"name": "pets", "images": 6, "sha256": dataset.sha256}})
        if is_same:
            assert resume.starting_point(setup(), old, "latest")[1] is not None
            continue
        with pytest.raises(DuetError, match=r"trained on pets \(6 images, hash .*change_data=true"):
            resume.starting_point(setup(), old, "latest")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"optimiser": Adam(beta2=0.99)}, ["changed: optimiser.beta2 was 0.999 and is now 0.99"]),
        ({"optimiser": Adam(clip=None)}, ["changed: optimiser.clip was 1.0 and is now null"]),
        (
            {"learning_rate": LearningRate(5e-4, warmup_images=4)},
            ["changed: lr.peak was 0.001 and is now 0.0005, lr.warmup_images was 0 and is now 4"],
        ),
        ({"training_config": TrainingConfig(images=16, batch=4)}, ["changed: trainer.batch was 2 and is now 4"]),
        ({"sample": None}, []),
    ],
)
def test_another_optimiser_rate_or_batch_is_named_in_one_line(run, options, said):
    start, _ = resume.starting_point(setup(**options), run, "latest")
    assert describe_changes(start, setup(**options)) == said


@pytest.mark.parametrize(
    "schedule",
    [{"name": "cosine", "T": 1000}, {"T": 1000, "s": 0.008, "max_beta": 0.999, "name": "cosine"},
     {"name": "cosine", "log_snr_shift": 0.0}],
)  # fmt: skip
def test_equal_schedules_are_equal_however_they_are_written(run, schedule):
    assert resume.starting_point(setup(schedule=schedule), run, "latest")[1] is not None


def test_other_schedules_are_refused(run):
    for schedule in ({"name": "cosine", "T": 999}, {"name": "cosine", "s": 0.009}, "linear", "cosine_continuous"):
        with pytest.raises(DuetError, match=r"was trained with process.schedule \{'name': 'cosine'\}, but"):
            resume.starting_point(setup(schedule=schedule), run, "latest")


def test_an_option_with_its_default_written_out_is_the_same_objective(tmp_path):
    lines = {"weighting": {"name": "min_snr"}}, {"weighting": {"name": "min_snr", "gamma": 5.0}}
    first, second, third = (setup(objective=one) for one in (*lines, {"weighting": {"name": "min_snr", "gamma": 4}}))
    fresh, _ = resume.starting_point(first, tmp_path)
    kept = replace(fresh, images_seen=4, notes={"trained_for": objective_notes(first)})
    save_checkpoint(tmp_path / "checkpoints", kept)
    assert resume.starting_point(second, tmp_path, "latest")[1] is not None
    with pytest.raises(DuetError, match=r"process\.weighting"):
        resume.starting_point(third, tmp_path, "latest")


TINY = (
    "data=toy", "model=toy", "model.channels=8", "process=v_cosine", "trainer.images=32", "trainer.batch=16",
    "trainer.log_images=16", "sample.count=4", "sampler.steps=2", "backend.threads=1", "backend.device=cpu",
)  # fmt: skip


def test_a_run_that_was_killed_while_it_started_is_begun_by_latest(tmp_path):
    """Hydra's directory alone is no run; that of an earlier process, or one with its lock, is."""
    assert not resume.was_begun(tmp_path) and not resume.was_begun(tmp_path / "none")
    (tmp_path / LOCK).touch()
    assert resume.was_begun(tmp_path)
    (tmp_path / LOCK).unlink()
    os.utime(tmp_path, (0, 0))
    assert resume.was_begun(tmp_path) and resume.find_source("latest", tmp_path, is_begun=True) is None


@pytest.mark.backend
@pytest.mark.either
def test_latest_begins_a_killed_run_afresh_and_refuses_other_data(backend_name, tmp_path):
    words = (*TINY, f"backend={backend_name}", f"hydra.run.dir={tmp_path / 'run'}", "resume=latest")
    assert call("train", *words).code == 2 and not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).touch()
    done = call("train", *words)
    assert done.code == 0, done.err
    assert "resume: the run was stopped before its first checkpoint; it starts again from the beginning" in done.out
    assert (
        load_checkpoint(tmp_path / "run").training.data.sha256
        == read_json(tmp_path / "run/environment.json")["data"]["sha256"]
    )
    other = ("trainer.images=64", "data.options.seed=1")
    refused = call("train", *words, *other)
    assert refused.code == 2 and "change_data=true" in refused.err, refused.err
