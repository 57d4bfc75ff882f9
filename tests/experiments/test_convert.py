"""Weights in and out by command. The formats here need no framework, so this runs as one process."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra

from diffusion_core.backend import TrainerState
from diffusion_core.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, save_checkpoint
from diffusion_core.problem import Problem
from diffusion_core.unet import UNetSpec
from diffusion_core.weights import initial_weights

SPEC = UNetSpec(8, channels=8, multipliers=(1, 2), blocks_per_level=1, norm_groups=4, num_classes=3, null_class="zero")
PROBLEM = Problem(SPEC, {"name": "linear", "T": 20}, "v")


def run(module: str, *words: str) -> None:
    """An entry point in this process."""
    main = importlib.import_module(f"experiments.{module}").main
    GlobalHydra.instance().clear()
    with mock.patch.object(sys, "argv", [f"experiments.{module}", *words]), mock.patch.dict(os.environ):
        main()


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A run whose weights and average differ."""
    weights, ema = (initial_weights(PROBLEM.program, seed, np.float32) for seed in (0, 1))
    state = TrainerState(**(vars(TrainerState.fresh(weights)) | {"ema": ema}))
    save_checkpoint(tmp_path / "run" / "checkpoints", Checkpoint(256, PROBLEM, 0, state, {}))
    return tmp_path / "run"


@pytest.mark.parametrize("which", ["ema", "weights"])
def test_what_is_exported_is_imported_as_it_was(which, trained, tmp_path, capsys):
    run("export_weights", "target=diffusers", f"checkpoint={trained}", f"out={tmp_path / 'out'}", f"weights={which}")
    assert "a UNet2DModel with classes" in capsys.readouterr().out
    run("import_weights", "source=diffusers", f"path={tmp_path / 'out'}", f"out={tmp_path / 'back'}")
    assert f"checkpoint={tmp_path / 'back'}" in capsys.readouterr().out
    found = load_checkpoint(tmp_path / "back")
    assert found.problem.program.sha256 == PROBLEM.program.sha256
    assert (found.problem.prediction, found.problem.process.schedule.steps) == ("v", 20)
    assert (found.images_seen, found.state.updates, found.notes["source"]) == (0, 0, "diffusers")
    for name, value in getattr(load_checkpoint(trained).state, which).items():
        np.testing.assert_array_equal(found.state.weights[name], value)
        np.testing.assert_array_equal(found.state.ema[name], value)
        assert not found.state.moment1[name].any() and not found.state.moment2[name].any()


def test_a_process_that_is_given_takes_the_place_of_the_sources_own(trained, tmp_path):
    run("export_weights", "target=diffusers", f"checkpoint={trained}", f"out={tmp_path / 'out'}")
    words = ("process=x0_cosine", "process.schedule.T=50", "source.null_class=last")
    run("import_weights", "source=diffusers", f"path={tmp_path / 'out'}", f"out={tmp_path / 'back'}", *words)
    problem = load_checkpoint(tmp_path / "back").problem
    assert (problem.prediction, problem.schedule) == ("x0", {"name": "cosine", "T": 50})
    assert (problem.spec.num_classes, problem.spec.null_class) == (2, "last")


@pytest.mark.parametrize("module, words, named", [
    ("import_weights", ["source=diffuser"], "source/diffuser"),
    ("import_weights", ["source=edm", "path=edm.pkl"], "edm.pkl: a pickle runs code"),
    ("import_weights", ["source=edm", "path=edm.npz"], "edm.npz: it cannot be read"),
    ("import_weights", ["source=edm", "path=edm.npz", "source.heads=3"], "Key 'heads' not in"),
    ("import_weights", ["source=ddpm_tf", "path=a.npz"], "'ddpm_tf': no image_size was given; it takes image_size"),
    ("import_weights", ["source=ddpm_tf", "path=a.npz", "source.image_size=8px"], "8px"),
    ("export_weights", ["target=diffusers", "weights=emaa"], "weights: 'emaa' was given"),
    ("export_weights", ["target=flax"], "target/flax"),
    ("export_weights", ["target=diffusers", "target.variance=learned"], "target.variance: 'learned' was given"),
])  # fmt: skip
def test_a_mistake_is_one_line_and_leaves_nothing(module, words, named, trained, tmp_path, capsys):
    where = {"import_weights": ["path=nowhere"], "export_weights": [f"checkpoint={trained}"]}[module]
    with pytest.raises(SystemExit) as left:
        run(module, *where, *words, f"out={tmp_path / 'out'}")
    line = capsys.readouterr().err
    assert left.value.code == 2 and line.startswith("error: ") and line.count("\n") == 1
    assert named in line
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(trained, tmp_path, capsys):
    run("export_weights", "target=diffusers", f"checkpoint={trained}", f"out={tmp_path / 'out'}")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for module, words in (
        ("export_weights", ["target=diffusers", f"checkpoint={trained}", f"out={tmp_path / 'out'}"]),
        ("import_weights", ["source=diffusers", f"path={tmp_path / 'out'}", f"out={trained}"]),
    ):
        with pytest.raises(SystemExit):
            run(module, *words)
        assert "already; give another" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert len(list_checkpoints(trained / "checkpoints")) == 1
