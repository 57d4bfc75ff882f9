"""Trackers receive the same as the event file, and their packages are imported only when named; packages are faked."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import commands
import numpy as np
import pytest
from omegaconf import DictConfig

from diffusion_core.common.errors import DuetError
from diffusion_core.runs.run_directory import RunDirectory
from diffusion_core.training.events import Record
from experiments.config.convert import plain
from experiments.training import trackers
from experiments.training.trackers import StartTracker, make_tracker


def composed(*words: str, hydra: bool = False) -> DictConfig:
    return commands.composed("train", *words, hydra=hydra)


def choose(*words: str) -> StartTracker | None:
    """Return the tracker of a configuration of a training."""
    return make_tracker(plain(composed(*words).tracker))


class Recorder:
    """An object whose methods all record their calls."""

    def __init__(self, calls: list[tuple]) -> None:
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        if name == "get_experiment_by_name":
            return lambda *given: None
        return lambda *given, **named: (
            self._calls.append((name, given, named)) or SimpleNamespace(info=SimpleNamespace(run_id="run 1"))
        )


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    """Replace both packages by fakes and return the list of their calls."""
    recorded: list[tuple] = []
    wandb, mlflow = ModuleType("wandb"), ModuleType("mlflow")
    wandb.init = lambda **named: recorded.append(("init", (), named)) or Recorder(recorded)
    wandb.Image = lambda image: ("image", image.shape)
    mlflow.MlflowClient = lambda uri: recorded.append(("client", (uri,), {})) or Recorder(recorded)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    return recorded


def log_run(tmp_path: Path, *words: str) -> None:
    """Log a run of two steps and an image."""
    start = choose(*words)
    run = RunDirectory(tmp_path / "a run")
    run.start("seed: 1\n", {}, [start(run.path, {"lr": {"peak": 0.1}, "seed": 1})])
    run.log([Record(64, 0.5, 1.0, 1e-3, (0.9,)), Record(128, 0.25, 1.0, 1e-3, (0.9,))], 99.0)
    run.log_image("samples", np.zeros((4, 4, 1), np.uint8), 128)
    run.close()


def test_wandb_receives_every_step(tmp_path, calls):
    log_run(tmp_path, "tracker=wandb", "tracker.mode=offline", "tracker.group=study")
    init, *rest = calls
    assert init[2] == {
        "project": "duet", "entity": None, "group": "study", "mode": "offline", "name": "a run",
        "dir": str(tmp_path / "a run"), "config": {"lr": {"peak": 0.1}, "seed": 1},
    }  # fmt: skip
    names = [name for name, *_ in rest]
    assert names == ["define_metric", "log", "log", "log", "finish"]
    first, second, image = (given[0] for name, given, _ in rest if name == "log")
    assert first["train/loss"] == 0.5 and first["images_seen"] == 64 and "train/images_per_second" not in first
    assert second["train/loss"] == 0.25 and second["train/images_per_second"] == 99.0
    assert image == {"samples": ("image", (4, 4)), "images_seen": 128}


def test_mlflow_receives_every_step(tmp_path, calls):
    log_run(tmp_path, "tracker=mlflow")
    assert calls[0] == ("client", ("sqlite:///mlruns.db",), {})
    params = {given[1]: given[2] for name, given, _ in calls if name == "log_param"}
    assert params == {"lr.peak": "0.1", "seed": "1"}
    metrics = [(*given[1:], named["step"]) for name, given, named in calls if name == "log_metric"]
    losses = [(value, step) for name, value, step in metrics if name == "train/loss"]
    assert losses == [(0.5, 64), (0.25, 128)]
    assert [name for name, *_ in calls][-2:] == ["log_image", "set_terminated"]


def test_a_run_with_a_tracker_still_writes_its_own_files(tmp_path, calls):
    log_run(tmp_path, "tracker=wandb")
    run = tmp_path / "a run"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2 and list(run.glob("events.out.tfevents*"))


def test_no_tracker_is_the_default_and_imports_nothing(monkeypatch):
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises
    importlib.reload(trackers)
    assert trackers.make_tracker(plain(composed().tracker)) is None


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_reported_in_one_line(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DuetError, match=rf"tracker: {name} was given, .*`pip install {name}`.*tracker=none"):
        choose(f"tracker={name}")


def test_wrong_tracker_options_are_refused(calls):
    with pytest.raises(DuetError, match="must be online, offline or disabled"):
        choose("tracker=wandb", "tracker.mode=ofline")
    with pytest.raises(DuetError, match="Did you mean 'project'"):
        choose("tracker=wandb", "+tracker.projct=x")


# --- the extra sweeps ---------------------------------------------------------------------------------------------


def test_a_hyperparameter_search_composes_with_or_without_optuna():
    cfg = composed("hparams_search=digits", hydra=True)
    assert cfg.hydra.sweeper.n_trials == 20 and cfg.model.channels == 24
    assert set(cfg.hydra.sweeper.params) == {"backend", "lr.peak", "process.label_dropout", "ema.decay"}
    assert cfg.hydra.launcher._target_.endswith("DuetLauncher")
    for launcher in ("joblib", "submitit_local", "submitit_slurm", "slurm"):
        assert composed(f"hydra/launcher={launcher}", hydra=True).hydra.launcher._target_
    assert "export SLURM_KILL_BAD_EXIT=1" in composed("hydra/launcher=slurm", hydra=True).hydra.launcher.setup


def test_a_missing_extra_is_reported_in_one_line():
    from importlib.util import find_spec

    from hydra_plugins.duet_launcher.extras import MissingLauncher, MissingSweeper

    for owner, absent in ((MissingSweeper, "optuna"), (MissingLauncher, "joblib")):
        said = (
            rf"{absent} was given, but .* is not installed; install it with `pip install \"duet-diffusion\[sweeps\]\"`"
        )
        with pytest.raises(DuetError, match=said):
            owner(absent, f"hydra_{absent}_plugin", n_trials=3)
    if find_spec("hydra_plugins.hydra_optuna_sweeper") is None:
        target = composed("hparams_search=digits", hydra=True).hydra.sweeper._target_
        assert target.endswith("MissingSweeper")
