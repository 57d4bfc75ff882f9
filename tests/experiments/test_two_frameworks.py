"""Experiments over both environments, started from the command line: a sweep, a hand-over, a comparison."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from diffusion_core.parity.ladder import TOLERANCES, l2_of_all
from diffusion_core.runs.checkpoint import load_checkpoint
from diffusion_core.runs.run_directory import read_metrics, read_samples

pytestmark = pytest.mark.together

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    *("experiment=digits", "debug=fast", "model.channels=16"),
    *("trainer.images=256", "trainer.batch=32", "trainer.checkpoint_images=128", "backend.threads=1"),
    *("sampler.steps=4", "sample.count=20", "sample.batch=20", "ema=post_hoc", "ema.snapshot_images=64"),
]
BACKENDS = ("torch", "tf")


def start(python: str | Path, module: str, *words: str, code: int = 0) -> str:
    """Run a command to its end and check its exit code; return what it printed."""
    done = subprocess.run(
        [str(python), "-m", f"experiments.{module}", *words], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def python_of(backend: str) -> Path:
    """Return the Python of the environment that owns a backend."""
    own = os.environ.get(f"DUET_{backend.upper()}_PYTHON")
    return (
        Path(own)
        if own
        else ROOT / OmegaConf.load(ROOT / "configs/backend" / f"{backend}.yaml").environment / "bin/python"
    )


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each backend, launched by one command that loads neither framework."""
    folder = tmp_path_factory.mktemp("sweep")
    start(sys.executable, "train", "-m", "backend=torch,tf", f"hydra.sweep.dir={folder}", *TINY)
    return {backend: folder / str(i) for i, backend in enumerate(BACKENDS)}


def test_a_sweep_runs_each_job_in_the_environment_that_owns_its_backend(sweep: dict[str, Path]) -> None:
    for backend, run in sweep.items():
        environment = json.loads((run / "environment.json").read_text())
        assert environment["backend"] == backend
        assert {"torch": "torch", "tf": "tensorflow"}[backend] in environment["versions"]


def test_the_losses_of_two_frameworks_agree_at_every_step(sweep: dict[str, Path]) -> None:
    one, two = (np.array([line["loss"] for line in read_metrics(run / "metrics.jsonl")]) for run in sweep.values())
    assert len(one) == len(two) == 8
    np.testing.assert_allclose(one, two, rtol=TOLERANCES["training loss, 10 steps"].float32)


@pytest.mark.parametrize("taker", BACKENDS)
def test_a_run_handed_over_to_the_other_framework_ends_like_the_uninterrupted_one(
    sweep: dict[str, Path], taker: str, tmp_path: Path
) -> None:
    other = sweep[BACKENDS[1 - BACKENDS.index(taker)]]
    half = other / "checkpoints" / "000000000128"
    words = [f"backend={taker}", f"resume={half}", f"hydra.run.dir={tmp_path / 'run'}", *TINY]
    start(python_of(taker), "train", *words)
    ended, whole = load_checkpoint(tmp_path / "run"), load_checkpoint(other)
    assert ended.images_seen == whole.images_seen and ended.state.updates == whole.state.updates
    for part in ("weights", "ema", "ema1"):
        error = l2_of_all(ended.state.parts[part], whole.state.parts[part])
        assert 0 < error <= TOLERANCES["training weights, 10 steps"].float32
    later = list(read_metrics(tmp_path / "run" / "metrics.jsonl"))
    wanted = [line for line in read_metrics(other / "metrics.jsonl") if line["images_seen"] > 128]
    assert [line["images_seen"] for line in later] == [line["images_seen"] for line in wanted]


TRANSFORMERS = {"dit_digits": "model.depth=2", "uvit_digits": "model.depth=2", "jit_digits": "model.depth=2"}


@pytest.mark.slow
@pytest.mark.parametrize("model", TRANSFORMERS)
def test_a_transformer_is_trained_alike_and_handed_over(model: str, tmp_path: Path) -> None:
    """Rungs 7 and 8 of the ladder for each transformer, in float64: losses, weights, averages, and a hand-over."""
    words = [word for word in TINY if not word.startswith("model.")]
    words += [f"model={model}", TRANSFORMERS[model], "precision=float64"]
    start(sys.executable, "train", "-m", "backend=torch,tf", f"hydra.sweep.dir={tmp_path}", *words)
    runs = [tmp_path / "0", tmp_path / "1"]
    one, two = (np.array([line["loss"] for line in read_metrics(run / "metrics.jsonl")]) for run in runs)
    assert len(one) == len(two) == 8
    np.testing.assert_allclose(one, two, rtol=TOLERANCES["training loss, 10 steps"].float64)
    half, other = runs[0] / "checkpoints" / "000000000128", tmp_path / "other"
    start(python_of("tf"), "train", "backend=tf", f"resume={half}", f"hydra.run.dir={other}", *words)
    ends = [load_checkpoint(run) for run in (*runs, other)]
    for part in ("weights", "ema"):
        for end in ends[1:]:
            error = l2_of_all(ends[0].state.parts[part], end.state.parts[part])
            assert 0 < error <= TOLERANCES["training weights, 10 steps"].float64


def killed(run: Path, lines: int, words: list[str]) -> bool:
    """Kill a run when its metrics have so many lines; return whether it was still at work."""
    command = [str(python_of("torch")), "-m", "experiments.train", *words]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    next((line for line in process.stdout if line.startswith("data: ")), None)
    file = run / "metrics.jsonl"
    while process.poll() is None and (not file.exists() or file.read_bytes().count(b"\n") < lines):
        time.sleep(0.002)  # busy waiting would take the core from the run
    process.kill()
    process.communicate()
    assert process.returncode in (0, -signal.SIGKILL)
    return process.returncode != 0


def test_a_killed_and_resumed_run_equals_the_uninterrupted_one(sweep: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["backend=torch", f"hydra.run.dir={run}", *TINY, "trainer.checkpoint_images=32", "resume=auto"]
    for lines in (1, 5):  # in its metrics when it is killed
        before = tmp_path / f"before-{lines}"
        for _ in range(10):  # on a busy machine a run may end before it is killed; it is then put back and tried again
            if run.exists() and not before.exists():
                shutil.copytree(run, before)
            if killed(run, lines, words):
                break
            shutil.rmtree(run)
            if before.exists():
                shutil.copytree(before, run)
        else:
            pytest.fail("the run ended before it could be killed")
    start(python_of("torch"), "train", *words)
    resumed, whole = load_checkpoint(run), load_checkpoint(sweep["torch"])
    for name, value in whole.state.weights.items():
        np.testing.assert_array_equal(resumed.state.weights[name], value)
    assert list(read_metrics(run / "metrics.jsonl")) == list(read_metrics(sweep["torch"] / "metrics.jsonl"))
    np.testing.assert_array_equal(
        read_samples(run / "samples/samples.npz")[0], read_samples(sweep["torch"] / "samples/samples.npz")[0]
    )


def test_each_environment_reconstructs_an_average_from_the_snapshots_of_the_other(
    sweep: dict[str, Path], tmp_path: Path
) -> None:
    made = {}
    for backend, other in zip(BACKENDS, reversed(BACKENDS), strict=True):
        words = (f"run={sweep[backend]}", "ema.sigma_rel=0.07", f"out={tmp_path / backend}")
        assert "8 of 8 snapshots" in start(python_of(other), "reconstruct_ema", *words)
        made[backend] = load_checkpoint(tmp_path / backend).state.ema
    assert 0 < l2_of_all(*made.values()) <= TOLERANCES["training weights, 10 steps"].float32


def test_comparing_two_runs_writes_a_report(sweep: dict[str, Path], tmp_path: Path) -> None:
    out = start(sys.executable, "compare", f"runs=[{sweep['torch']},{sweep['tf']}]", f"out={tmp_path}")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["verdict"]["agree"] and "agree" in out
    assert max(report["loss"]["relative_difference"]) <= TOLERANCES["training loss, 10 steps"].float32
    assert {run["backend"] for run in report["runs"]} == set(BACKENDS)


def test_comparing_detects_a_run_that_diverged(sweep: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "parted"
    subprocess.run(["cp", "-r", str(sweep["tf"]), str(run)], check=True)
    lines = list(read_metrics(run / "metrics.jsonl"))
    lines[3]["loss"] *= 1 + 1e-5
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    start(sys.executable, "compare", f"runs=[{sweep['torch']},{run}]", f"out={tmp_path}", code=1)
    assert not json.loads((tmp_path / "report.json").read_text())["verdict"]["agree"]


def test_comparing_names_the_difference_between_two_experiments(sweep: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "other"
    subprocess.run(["cp", "-r", str(sweep["tf"]), str(run)], check=True)
    config = OmegaConf.load(run / "config.yaml")
    config.seed = 1
    OmegaConf.save(config, run / "config.yaml")
    out = start(sys.executable, "compare", f"runs=[{sweep['torch']},{run}]", f"out={tmp_path}")
    assert "No verdict: the runs differ in seed (0, 1)" in out and "agree" not in out
    assert json.loads((tmp_path / "report.json").read_text())["verdict"]["agree"] is None
