"""What a resumed run keeps of the run that it goes on from, and what it refuses to mix with it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import call, composed
from omegaconf import DictConfig

from diffusion_core.backend import TrainerState
from diffusion_core.checkpoint import Checkpoint, save_checkpoint
from diffusion_core.ema import describe
from diffusion_core.errors import DuetError
from diffusion_core.run import read_json, read_metrics, read_samples
from diffusion_core.weights import initial_weights
from experiments import train

TINY = (
    "experiment=digits", "model.channels=8", "model.norm_groups=4", "model.attention_sizes=[]",
    "model.middle_attention=false", "process.levels.name=loss_second_moment", "trainer.batch=64",
    "trainer.images=2560", "ema=warmup",
)  # fmt: skip


def configured(*words: str) -> tuple[DictConfig, train.Experiment]:
    """A configuration and what it describes."""
    cfg = composed("train", *TINY, *words)
    return cfg, train.Experiment.of(cfg)


def start(run: Path, *words: str) -> Checkpoint:
    """Where a run starts that goes on from this one."""
    return train._start(*configured(f"resume='{run}'", *words), run)[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run after one step, whose levels depend on its losses."""
    cfg, experiment = configured()
    state = TrainerState.fresh(initial_weights(experiment.problem.program, 0, np.float32))
    history = experiment.objective.law.fresh().after(np.arange(3), np.arange(1.0, 4.0))
    notes = {
        "averages": [describe(profile) for profile in experiment.ema.profiles],
        "trained_for": train._trained_for(cfg, experiment),
    }
    checkpoint = Checkpoint(64, experiment.problem, 0, replace(state, updates=1), notes, history)
    save_checkpoint(path := tmp_path_factory.mktemp("run"), checkpoint)
    return path


def test_the_losses_of_another_objective_are_not_gone_on_with(run):
    kept = start(run, "change_objective=true").history
    np.testing.assert_array_equal(kept.counts[:4], [1, 1, 1, 0])
    with pytest.raises(DuetError, match=r"process.distance mse, but l1 was given; change_objective=true"):
        start(run, "process.distance=l1")
    assert start(run, "process.distance=l1", "change_objective=true").history is None
    with pytest.raises(DuetError, match=r"data.flip False, but True was given; change_objective=true"):
        start(run, "data.flip=true")


def test_an_average_is_not_gone_on_with_by_another_profile(run):
    assert start(run).state.updates == 1
    with pytest.raises(DuetError, match=r"averages are .*'warmup'.* but .*'power'.* change_objective=true goes on"):
        start(run, "ema=power")
    assert start(run, "ema=power", "change_objective=true").state.updates == 1
    # Snapshots are of one profile from the start, whatever is asked for.
    with pytest.raises(DuetError, match="a snapshot is of one profile"):
        start(run, "ema=power", "ema.snapshot_images=64", "change_objective=true")


# A run of the plane, of five steps.
TOY = (
    "experiment=toy", "model.channels=8", "trainer.images=80", "trainer.batch=16", "trainer.log_images=32",
    "lr.warmup_images=0", "lr.decay=constant", "sample.count=4", "sampler.steps=2",
    "backend.threads=1", "backend.device=cpu",
)  # fmt: skip


def trained(run: Path, backend: str, *words: str) -> str:
    """Train the toy in this process; gives what was printed."""
    code, out, err = call("train", f"backend={backend}", f"hydra.run.dir={run}", *TOY, *words)
    assert code == 0, err
    return out


@pytest.mark.backend
@pytest.mark.either
def test_a_run_that_was_cut_short_after_its_last_step_is_finished(backend_name, tmp_path):
    trained(whole := tmp_path / "whole", backend_name)
    shutil.copytree(whole, cut := tmp_path / "cut")
    (cut / "result.json").unlink()
    for path in (cut / "samples").iterdir():
        path.unlink()
    trained(cut, backend_name, "resume=latest")
    one, other = (read_json(path / "result.json") for path in (whole, cut))
    lines = list(read_metrics(cut / "metrics.jsonl"))
    assert lines == list(read_metrics(whole / "metrics.jsonl")) and len(lines) == 5
    assert one["objective"] == other["objective"] == lines[4]["loss"]  # logged at 32, 64 and the end
    assert one["images_seen"] == other["images_seen"] == 80 and one.keys() == other.keys()
    np.testing.assert_array_equal(*(read_samples(path / "samples/samples.npz")[0] for path in (whole, cut)))
    # What is finished is left as it is, and can be made longer.
    result = (cut / "result.json").read_bytes()
    assert "nothing is left to do" in trained(cut, backend_name, "resume=latest")
    assert (cut / "result.json").read_bytes() == result
    trained(cut, backend_name, "resume=latest", "trainer.images=96")
    assert read_json(cut / "result.json")["images_seen"] == 96
