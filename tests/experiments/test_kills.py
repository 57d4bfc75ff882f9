"""Processes of `experiments.train` killed at random moments and resumed equal the uninterrupted run.

    DUET_KILLS=50 pytest -s -m slow tests/experiments/test_kills.py

makes 50 kills over both backends, both precisions and two hand-overs, and prints a summary. Weights, averages, moments
and metrics are compared bit for bit; a short form is in `test_two_frameworks`. Checkpoints are written every few steps,
so that some kills occur within them.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from diffusion_core.files.safe_read import read_json
from diffusion_core.runs.checkpoint import find_checkpoint
from diffusion_core.runs.run_directory import read_samples
from hydra_plugins.duet_launcher.launcher import backend_python

ROOT = Path(__file__).resolve().parents[2]
IMAGES = 1280
WORDS = (
    "experiment=toy", "model.channels=8", "trainer.batch=16", "trainer.log_images=48", "trainer.checkpoint_images=32",
    "trainer.sample_images=320", "trainer.keep_checkpoints=2", "lr.warmup_images=0", "lr.decay=constant",
    "ema.snapshot_images=160", "sample.count=4", "sampler.steps=2", "backend.threads=1", "backend.device=cpu",
    "resume=auto",
)  # fmt: skip
# The stages of a run: the images seen at the end of each, and its further options.
Stages = Sequence[tuple[int, str]]
HALF = IMAGES // 2


def stage_words(stage: tuple[int, str], run: Path) -> list[str]:
    """Return the options of a stage of a run."""
    images, words = stage
    return [*WORDS, *words.split(), f"trainer.images={images}", f"hydra.run.dir={run}"]


def start(stage: tuple[int, str], run: Path) -> subprocess.Popen[str]:
    """Start the process of a stage, in the environment of its backend."""
    backend = next(word.split("=")[1] for word in stage[1].split() if word.startswith("backend="))
    python = backend_python({"name": backend, "environment": f".venvs/{backend}"}, os.environ)
    return subprocess.Popen(
        [str(python), "-m", "experiments.train", *stage_words(stage, run)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(stage: tuple[int, str], run: Path) -> None:
    """Run a stage to its end."""
    process = start(stage, run)
    output, _ = process.communicate()
    assert process.returncode == 0, output


def wait_for_training(process: subprocess.Popen[str]) -> None:
    """Read the lines printed before the first step."""
    next((line for line in process.stdout if line.startswith("data: ")), None)


def stop_by(number: int, process: subprocess.Popen[str], seconds: float, training: bool) -> bool:
    """Send a signal some seconds after the start, or the first step, of a process; return whether it was running."""
    if training:
        wait_for_training(process)
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.send_signal(number)
    output, _ = process.communicate()
    if number != signal.SIGKILL and process.returncode == 128 + number:
        assert (
            f"stopped by {signal.Signals(number).name}; its last checkpoint" in output and "resume=latest" in output
        ), output
    assert process.returncode in (0, -number, 128 + number), output
    return process.returncode != 0


def content(run: Path) -> dict[str, object]:
    """Return everything of a run that must not depend on where it was interrupted, with the hashes of its weights."""
    last = find_checkpoint(run)
    return {
        "checkpoint": (last.name, read_json(last / "state.json")["files"]),
        "metrics": (run / "metrics.jsonl").read_bytes(),
        "objective": read_json(run / "result.json")["objective"],
        "samples": {p.name: read_samples(p)[0].tobytes() for p in (run / "samples").glob("samples*.npz")},
        "snapshots": sorted(path.name for path in (run / "snapshots").iterdir()),
        "hidden": sorted(path.name for path in run.rglob(".*") if path.name != ".hydra"),
    }


ARMS: dict[str, Stages] = {
    **{
        f"{backend} {precision}": [(IMAGES, f"backend={backend} precision={precision}")]
        for backend in ("torch", "tf")
        for precision in ("float32", "float64")
    },
    "torch to tf": [(HALF, "backend=torch"), (IMAGES, "backend=tf")],
    "tf to torch": [(HALF, "backend=tf precision=float64"), (IMAGES, "backend=torch precision=float64")],
}


@pytest.mark.slow
@pytest.mark.together
def test_runs_killed_at_random_times_equal_the_uninterrupted_ones(tmp_path):
    total, chance = int(os.environ.get("DUET_KILLS", "50")), random.Random(int(os.environ.get("DUET_SEED", "0")))
    summary: Counter[str] = Counter()
    for number, (arm, stages) in enumerate(ARMS.items()):
        for stage in stages:
            finish(stage, tmp_path / arm / "whole")
        whole, kills = content(tmp_path / arm / "whole"), 0
        assert len(whole["metrics"].splitlines()) == IMAGES // 16 and not whole["hidden"]
        runs, target = 0, (total * (number + 1)) // len(ARMS) - (total * number) // len(ARMS)
        while kills < target:
            run, runs = tmp_path / arm / f"{runs}", runs + 1
            for stage in stages:
                for _ in range(min(target - kills, 6 // len(stages))):  # killed a few times, then run to the end
                    training = chance.random() < 0.85
                    signum = signal.SIGTERM if chance.random() < 0.1 and training else signal.SIGKILL
                    after = chance.uniform(0, 1.5 if training else 4.0)
                    if not stop_by(signum, start(stage, run), after, training):
                        break
                    kills += signum == signal.SIGKILL
                    summary[signal.Signals(signum).name] += 1
                    hidden = [path.name for path in run.rglob(".*.*")] if run.exists() else []
                    summary["within a file or checkpoint"] += bool([n for n in hidden if n != ".hydra"])
                    summary["before the first checkpoint"] += not any((run / "checkpoints").glob("[0-9]*"))
                else:
                    finish(stage, run)
            assert content(run) == whole, f"{arm}, {run}"
            summary["runs compared"] += 1
        print(f"{arm}: {kills} kills, {runs} runs equal to the uninterrupted one", flush=True)
    print(json.dumps(summary))
    assert summary["SIGKILL"] >= total
