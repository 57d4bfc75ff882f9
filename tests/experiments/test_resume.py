"""What a resumed run keeps of the earlier run, and which changes it refuses."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import call, composed

from diffusion_core.backend.interface import TrainerState
from diffusion_core.common.errors import DuetError
from diffusion_core.files.safe_read import read_json
from diffusion_core.networks.weights import initial_weights
from diffusion_core.optim import profile_options
from diffusion_core.runs.checkpoint import Checkpoint, find_checkpoint, load_checkpoint, save_checkpoint
from diffusion_core.runs.run_directory import read_metrics, read_samples, write_json
from experiments.config import build
from experiments.sampling import draw
from experiments.training import changes, resume
from experiments.training.record import record_at
from experiments.training.setup import TrainingSetup

TINY = (
    "experiment=digits", "model.channels=8", "model.norm_groups=4", "model.attention_resolutions=[]",
    "model.middle_attention=false", "process.timestep_sampling.name=loss_second_moment", "trainer.batch=64",
    "trainer.images=2560", "ema=warmup",
)  # fmt: skip


def training(*overrides: str) -> TrainingSetup:
    """Return what a configuration of the tiny network describes."""
    return build.training_setup(composed("train", *TINY, *overrides))


def start(run: Path, *overrides: str, change_objective: bool = False) -> Checkpoint:
    """Return where a run starts that resumes this one."""
    return resume.starting_point(training(*overrides), run, str(run), change_objective)[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run after one step, whose timesteps depend on its losses."""
    experiment = training()
    state = TrainerState.fresh(initial_weights(experiment.model.program, 0, np.float32))
    history = experiment.objective.timestep_sampler.empty_history().appended(np.arange(3), np.arange(1.0, 4.0))
    notes = {
        "averages": [profile_options(profile) for profile in experiment.ema.profiles],
        "trained_for": changes.objective_notes(experiment),
    }
    checkpoint = Checkpoint(64, experiment.model, 0, replace(state, updates=1), notes, history)
    save_checkpoint(path := tmp_path_factory.mktemp("run"), checkpoint)
    return path


def test_a_changed_objective_is_refused_or_starts_a_new_loss_history(run):
    kept = start(run, change_objective=True).history
    np.testing.assert_array_equal(kept.counts[:4], [1, 1, 1, 0])
    with pytest.raises(DuetError, match=r"process.distance mse, but l1 was given; change_objective=true"):
        start(run, "process.distance=l1")
    assert start(run, "process.distance=l1", change_objective=True).history is None
    with pytest.raises(DuetError, match=r"data.flip False, but True was given; change_objective=true"):
        start(run, "data.flip=true")


def test_a_changed_ema_profile_is_refused_unless_it_is_allowed(run):
    assert start(run).state.updates == 1
    with pytest.raises(DuetError, match=r"averages are .*'warmup'.* but .*'power'.* change_objective=true allows"):
        start(run, "ema=power")
    assert start(run, "ema=power", change_objective=True).state.updates == 1
    # Snapshots need one profile from the start, whether or not the change is allowed.
    with pytest.raises(DuetError, match="a snapshot is of one profile"):
        start(run, "ema=power", "ema.snapshot_images=64", change_objective=True)


# A run of five steps on points in the plane.
TOY = (
    "experiment=toy", "model.channels=8", "trainer.images=80", "trainer.batch=16", "trainer.log_images=32",
    "lr.warmup_images=0", "lr.decay=constant", "sample.count=4", "sampler.steps=2",
    "backend.threads=1", "backend.device=cpu",
)  # fmt: skip


def trained(run: Path, backend: str, *words: str) -> str:
    """Train the toy network in this process; return what was printed."""
    code, out, err = call("train", f"backend={backend}", f"hydra.run.dir={run}", *TOY, *words)
    assert code == 0, err
    return out


@pytest.fixture(scope="module")
def whole(backend_name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of the toy network."""
    trained(run := tmp_path_factory.mktemp("whole") / "run", backend_name)
    return run


def assert_same(one: Path, other: Path) -> None:
    """Check that two runs have the same weights, metrics and samples, bit for bit."""
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert read_json(one / "result.json")["objective"] == read_json(other / "result.json")["objective"]
    last = [find_checkpoint(run) for run in (one, other)]
    assert last[0].name == last[1].name
    assert read_json(last[0] / "state.json")["files"] == read_json(last[1] / "state.json")["files"]
    made = [sorted((run / "samples").glob("samples*.npz")) for run in (one, other)]
    assert [path.name for path in made[0]] == [path.name for path in made[1]]
    for paths in zip(*made, strict=True):
        np.testing.assert_array_equal(*(read_samples(path)[0] for path in paths))


@pytest.mark.backend
@pytest.mark.either
def test_a_run_that_was_interrupted_after_its_last_step_is_completed(whole, backend_name, tmp_path):
    shutil.copytree(whole, cut := tmp_path / "cut")
    (cut / "result.json").unlink()
    for path in (cut / "samples").iterdir():
        path.unlink()
    trained(cut, backend_name, "resume=latest")
    assert_same(cut, whole)
    lines = list(read_metrics(cut / "metrics.jsonl"))
    assert read_json(cut / "result.json").keys() == read_json(whole / "result.json").keys()
    assert read_json(cut / "result.json")["objective"] == lines[4]["loss"] and len(lines) == 5  # logged at 32, 64, 80
    # A complete run is left as it is, and can be made longer.
    result = (cut / "result.json").read_bytes()
    assert "To continue, set trainer.images higher" in trained(cut, backend_name, "resume=latest")
    assert (cut / "result.json").read_bytes() == result
    trained(cut, backend_name, "resume=latest", "trainer.images=96")
    assert read_json(cut / "result.json")["images_seen"] == 96


@pytest.mark.backend
@pytest.mark.either
def test_a_resumed_run_keeps_the_record_of_where_its_weights_started(whole, backend_name, tmp_path):
    trained(tmp_path, backend_name, f"resume={whole}", "trainer.images=96", "model.init=torch")
    assert load_checkpoint(tmp_path).model.spec.init == load_checkpoint(whole).model.spec.init == "ddpm"


@pytest.mark.backend
@pytest.mark.either
def test_a_run_stopped_while_it_samples_prints_how_to_resume_and_resumes(whole, backend_name, tmp_path, monkeypatch):
    save_samples, calls = draw.save_samples, []

    def stopped(*given: Any, **named: Any) -> Any:
        calls.append(given)
        if len(calls) in (1, 2, 4):  # during the samples at 48, the same after resuming, and the final ones
            os.kill(os.getpid(), signal.SIGUSR1 if len(calls) == 4 else signal.SIGTERM)
        return save_samples(*given, **named)

    monkeypatch.setattr(draw, "save_samples", stopped)
    words = (f"backend={backend_name}", f"hydra.run.dir={tmp_path / 'run'}", *TOY, "trainer.sample_images=48")
    for code, name, seen in ((143, "SIGTERM", 48), (143, "SIGTERM", 48), (138, "SIGUSR1", 80)):
        left = call("train", *words, "resume=auto")
        assert left.code == code and len(left.err.splitlines()) == 1
        assert left.err.startswith(f"stopped by {name}; its last checkpoint is at {seen} of 80 images; to resume: ")
        assert left.err.strip().endswith(f"resume=latest hydra.run.dir={tmp_path / 'run'}")
    trained(tmp_path / "run", backend_name, "trainer.sample_images=48", "resume=auto")
    drawn = tmp_path / "run/samples/samples-000000000048.npz"
    assert len(calls) == 5 and len(read_samples(drawn)[0]) == 4
    drawn.unlink()
    assert_same(tmp_path / "run", whole)


def test_which_checkpoint_a_run_resumes_from(run, tmp_path):
    """Its last checkpoint; before it has one, the checkpoint that it started from; without a run, none."""
    assert resume.find_source(None, run) is None and resume.find_source(str(run), tmp_path) == run / "000000000064"
    assert resume.find_source("auto", tmp_path) is None
    with pytest.raises(DuetError, match="holds no checkpoint; start it without resume, or name an existing run"):
        resume.find_source("latest", tmp_path)
    for came, expected in ((None, None), ({"source": str(run)}, run / "000000000064")):
        write_json(tmp_path / "environment.json", {"resumed_from": came})
        assert resume.find_source("latest", tmp_path) == resume.find_source("auto", tmp_path) == expected
    shutil.copytree(run, tmp_path / "checkpoints")
    assert resume.find_source("latest", tmp_path) == tmp_path / "checkpoints/000000000064"


def test_invalid_counts_in_the_notes_are_refused(run, tmp_path):
    found = load_checkpoint(run)
    save_checkpoint(tmp_path, replace(found, notes={**found.notes, "skipped": "two"}))
    with pytest.raises(DuetError, match="skipped is 'two', not an integer"):
        start(tmp_path)
    save_checkpoint(tmp_path, replace(found, notes={**found.notes, "halved": 0}))
    with pytest.raises(DuetError, match="halved is 0, not a count"):
        start(tmp_path)
    save_checkpoint(tmp_path, replace(found, notes={**found.notes, "skipped": 2}))
    assert start(tmp_path).notes["skipped"] == 2


def test_the_record_counts_images_without_a_class_over_the_whole_history():
    """Label dropping that ended before a run was resumed counts; the history of imported weights is not known."""
    experiment, dropping = training("process.label_dropout=0"), training("process.label_dropout=0.25")
    fresh = resume.starting_point(dropping, Path("no-run"))[0]
    first = record_at(dropping, fresh, 64)
    assert (first.dropped_labels, first.label_dropout, first.data.part) == (16, 0.25, "train")
    assert first.data.class_names[3] == "3" and sum(first.data.class_images) == first.data.images == 1437
    later = record_at(experiment, replace(fresh, images_seen=64, training=first), 128)
    assert (later.dropped_labels, later.label_dropout, later.earlier_data) == (16, 0.0, ())
    assert record_at(experiment, replace(fresh, training=None), 64).dropped_labels is None
    old = {"trained_for": {"process.label_dropout": 0.5}}
    assert record_at(experiment, replace(fresh, images_seen=64, training=None, notes=old), 128).dropped_labels == 32
