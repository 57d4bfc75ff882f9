"""Real processes of `experiments.train`, killed at random moments: gone on with, they end as the uninterrupted run.

    DUET_KILLS=50 pytest -s -m slow tests/experiments/test_kills.py

kills so many over both backends, both precisions and two hand-overs, and tells what it did. Weights, averages, moments
and metrics are compared bit for bit; a short form is in `test_two_frameworks`. Checkpoints are written every few steps,
so that kills fall into them as well.
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
# Each stage of a run: how far it goes, and what it is told.
Stages = Sequence[tuple[int, str]]
HALF = IMAGES // 2


def words_of(stage: tuple[int, str], run: Path) -> list[str]:
    """What a stage of a run is told."""
    images, words = stage
    return [*WORDS, *words.split(), f"trainer.images={images}", f"hydra.run.dir={run}"]


def started(stage: tuple[int, str], run: Path) -> subprocess.Popen[str]:
    """A process of a stage, in the environment of its backend."""
    backend = next(word.split("=")[1] for word in stage[1].split() if word.startswith("backend="))
    python = backend_python({"name": backend, "environment": f".venvs/{backend}"}, os.environ)
    return subprocess.Popen(
        [str(python), "-m", "experiments.train", *words_of(stage, run)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def ended(stage: tuple[int, str], run: Path) -> None:
    """A stage from where it is to its end."""
    process = started(stage, run)
    said, _ = process.communicate()
    assert process.returncode == 0, said


def wait_for_training(process: subprocess.Popen[str]) -> None:
    """Read what is printed before the first step."""
    next((line for line in process.stdout if line.startswith("data: ")), None)


def stopped_by(number: int, process: subprocess.Popen[str], seconds: float, training: bool) -> bool:
    """Whether a signal reached a process so long after its start, or after its training began."""
    if training:
        wait_for_training(process)
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.send_signal(number)
    said, _ = process.communicate()
    if number != signal.SIGKILL and process.returncode == 128 + number:
        assert f"stopped by {signal.Signals(number).name}; its last checkpoint" in said and "resume=latest" in said, (
            said
        )
    assert process.returncode in (0, -number, 128 + number), said
    return process.returncode != 0


def left_of(run: Path) -> dict[str, object]:
    """All of a run that must not depend on where it was cut, with its weights by their hash."""
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
def test_runs_killed_at_random_moments_end_as_the_uninterrupted_ones(tmp_path):
    wanted, chance = int(os.environ.get("DUET_KILLS", "50")), random.Random(int(os.environ.get("DUET_SEED", "0")))
    told: Counter[str] = Counter()
    for number, (arm, stages) in enumerate(ARMS.items()):
        for stage in stages:
            ended(stage, tmp_path / arm / "whole")
        whole, kills = left_of(tmp_path / arm / "whole"), 0
        assert len(whole["metrics"].splitlines()) == IMAGES // 16 and not whole["hidden"]
        runs, share = 0, (wanted * (number + 1)) // len(ARMS) - (wanted * number) // len(ARMS)
        while kills < share:
            run, runs = tmp_path / arm / f"{runs}", runs + 1
            for stage in stages:
                for _ in range(min(share - kills, 6 // len(stages))):  # killed a few times, and then left alone
                    training = chance.random() < 0.85
                    signum = signal.SIGTERM if chance.random() < 0.1 and training else signal.SIGKILL
                    after = chance.uniform(0, 1.5 if training else 4.0)
                    if not stopped_by(signum, started(stage, run), after, training):
                        break
                    kills += signum == signal.SIGKILL
                    told[signal.Signals(signum).name] += 1
                    hidden = [path.name for path in run.rglob(".*.*")] if run.exists() else []
                    told["in the midst of a file or checkpoint"] += bool([n for n in hidden if n != ".hydra"])
                    told["before a first checkpoint"] += not any((run / "checkpoints").glob("[0-9]*"))
                else:
                    ended(stage, run)
            assert left_of(run) == whole, f"{arm}, {run}"
            told["runs compared"] += 1
        print(f"{arm}: {kills} kills, {runs} runs as the uninterrupted one", flush=True)
    print(json.dumps(told))
    assert told["SIGKILL"] >= wanted
