"""What a resumed run keeps of the run that it goes on from, and what it refuses to mix with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import composed
from omegaconf import DictConfig

from diffusion_core.backend import TrainerState
from diffusion_core.checkpoint import Checkpoint, save_checkpoint
from diffusion_core.ema import describe
from diffusion_core.errors import DuetError
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
