"""Own networks where several processes compute: a study of two frameworks, and the processes of one run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import call
from own_scale import FILES, WORDS, write
from test_distributed import together

from diffusion_core.networks.own import OwnSpec
from diffusion_core.runs.checkpoint import find_checkpoint, load_checkpoint
from experiments.runtime.backends import BackendSetup
from experiments.training.run import start_of_main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.together
def test_a_study_trains_the_network_of_each_framework(tmp_path):
    networks = ", ".join(f"{name}: scale_{name}:Scale" for name in FILES)
    study = {
        "name": "mine", "seeds": [0], "common": [f"network={{{networks}}}", *WORDS],
        "stages": {"training": {"entry": "train"}}, "baseline": {"framework": "torch"},
        "factors": {"framework": {name: [f"backend={name}"] for name in FILES}},
        "metrics": {"loss": {"read": "result.objective"}},
    }  # fmt: skip
    (tmp_path / "study").mkdir()
    (tmp_path / "study/mine.yaml").write_text(yaml.safe_dump(study))
    done = subprocess.run(
        [sys.executable, "-m", "experiments.study", "--config-dir", str(tmp_path), "study=mine", "out=out"],
        cwd=write(tmp_path), env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    runs = [path.parent for path in sorted((tmp_path / "out/runs").glob("*/result.json"))]
    results = {load_checkpoint(find_checkpoint(run)).notes["backend"]: read(run)["objective"] for run in runs}
    assert results.keys() == FILES.keys()
    np.testing.assert_allclose(results["torch"], results["tf"], rtol=1e-5)


def read(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


@pytest.mark.backend
def test_threads_are_set_before_code_of_the_user_runs(tmp_path, backend_name, monkeypatch):
    opened = []
    (tmp_path / "late.py").write_text("from experiments.runtime.backends import BackendSetup\nBackendSetup.load(None)")
    monkeypatch.setattr(BackendSetup, "load", lambda setup: opened.append(setup and setup.config.threads))
    done = call("train", f"backend={backend_name}", f"network={tmp_path / 'late.py'}:build", *WORDS)
    assert done.code == 2 and opened == [1, None]


@pytest.mark.backend
def test_processes_start_from_the_weights_of_the_main_one(tmp_path, backend_name):
    run = write(tmp_path) / "run"
    done = call(
        "train", f"backend={backend_name}", f"network={tmp_path}/scale_{backend_name}.py:Scale", *WORDS,
        f"hydra.run.dir={run}",
    )  # fmt: skip
    assert done.code == 0, done.err
    checkpoint = load_checkpoint(find_checkpoint(run))
    assert isinstance(checkpoint.model.spec, OwnSpec)
    (name, array), *_ = checkpoint.state.weights.items()

    def start(collective):
        own = replace(checkpoint.state, weights={name: array + collective.group.rank})
        return start_of_main(replace(checkpoint, state=own), collective)

    for begun in together(2, start):
        np.testing.assert_array_equal(begun.state.weights[name], array)
        np.testing.assert_array_equal(begun.state.ema[name], array)


@pytest.mark.slow
@pytest.mark.backend
def test_a_killed_process_resumes_to_the_uninterrupted_run(tmp_path, backend_name):
    """The process is killed at its second checkpoint; the words of both calls are the same."""
    write(tmp_path)
    words = [*WORDS, f"backend={backend_name}", f"network=scale_{backend_name}:Scale", "trainer.images=4096"]
    words += ["trainer.checkpoint_images=16", "resume=auto", "ema=power"]
    command = [sys.executable, "-m", "experiments.train", *words]
    options = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(ROOT)}, "stdout": subprocess.DEVNULL}
    killed = subprocess.Popen([*command, "hydra.run.dir=killed"], **options)
    while killed.poll() is None and len(list((tmp_path / "killed/checkpoints").glob("[0-9]*"))) < 2:
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    reached = load_checkpoint(find_checkpoint(tmp_path / "killed")).images_seen
    assert reached < 4096
    for run in ("killed", "whole"):
        subprocess.run([*command, f"hydra.run.dir={run}"], check=True, timeout=300, **options)
    one, other = (load_checkpoint(find_checkpoint(tmp_path / run)).state.parts for run in ("killed", "whole"))
    for part, arrays in one.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, other[part][name], err_msg=f"{part}/{name}")
