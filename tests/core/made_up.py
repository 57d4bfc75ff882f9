"""A fake Python of a backend: it accepts the commands of a study and writes made-up runs.

Everything is a function of seed and backend. Every command is recorded in `calls.txt` next to the fake Python. A
training fails if a file `fail` next to it holds its seed, and is interrupted after a checkpoint if a file `cut` exists.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEPS = 40
# The stages and arms of the study of the tests: two frameworks, and one after the other.
HAND_OVER: dict[str, Any] = {
    "stages": {
        "first half": {"entry": "train", "overrides": ["experiment=digits", "trainer.images=1280"]},
        "second half": {"entry": "train", "overrides": ["experiment=digits", "trainer.images=2560"]},
    },
    "factors": {
        "framework": {
            "PyTorch": ["backend=torch"],
            "TensorFlow": ["backend=tf"],
            "hand-over": {"first half": ["backend=torch"], "second half": ["backend=tf"]},
        }
    },
    "baseline": {"framework": "PyTorch"},
}


def write_fake_python(folder: Path) -> Path:
    """Write an executable into a folder that runs this file in place of Python."""
    here = Path(__file__).resolve()
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{here}" "{folder}" "$@"\n')
    python.chmod(0o755)
    return python


def main(folder: Path, words: list[str]) -> int:
    overrides = dict(word.split("=", 1) for word in words[2:] if "=" in word)
    overrides = {key: value.strip("'") for key, value in overrides.items()}
    with open(folder / "calls.txt", "a") as file:
        file.write(" ".join([words[1].removeprefix("experiments."), *words[2:]]) + "\n")
    seed = int(overrides.get("seed", overrides.get("sample.seed", 0)))
    if (folder / "fail").exists() and (folder / "fail").read_text() == str(seed):
        print("error: the loss is nan", file=sys.stderr)
        return 3
    if words[1] == "experiments.sample":
        write_samples(Path(overrides["out"]), seed, overrides["backend"], int(overrides.get("sampler.steps", 10)))
        (Path(overrides["out"]) / "result.json").write_text(json.dumps({"sampled": 20, "sample_seconds": 2.0}))
        return 0
    out = Path(overrides["hydra.run.dir"])
    if (folder / "cut").exists() and overrides.get("resume") != "latest":
        (out / "checkpoints" / "000000000064").mkdir(parents=True)
        (out / "checkpoints" / "000000000064" / "state.json").write_text("{}")
        return 130
    write_training(out, seed, overrides["backend"], "resume" in overrides)
    return 0


def losses(seed: int, backend: str) -> list[float]:
    """Return a falling loss that the seed changes by some percent and the backend by 1e-6 of it."""
    import numpy as np

    k = np.arange(STEPS)
    noise = np.random.default_rng(seed).normal(size=STEPS)
    slip = 1e-6 * np.random.default_rng(1000 + seed).normal(size=STEPS) if backend == "tf" else 0.0
    return ((0.05 + 0.9 / (1 + k / 4)) * np.exp(0.05 * noise) * (1 + slip)).tolist()


def write_training(out: Path, seed: int, backend: str, second_half: bool = False) -> None:
    """Write the run directory of a training, or of the second half of one."""
    curve = losses(seed, backend)
    first = STEPS // 2 if second_half else 0
    lines = [
        json.dumps({"images_seen": 64 * (k + 1), "loss": curve[k], "grad_norm": 1.0, "lr": 1e-3, "ema_decay": 0.9})
        for k in range(first, STEPS)
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    title, version = {"torch": ("PyTorch", "2.14.1"), "tf": ("TensorFlow", "2.21.0")}[backend]
    config = {"seed": seed, "precision": "float32", "backend": {"name": backend, "title": title}}
    (out / "config.yaml").write_text(json.dumps(config | {"data": {"name": "bars"}, "model": {}}))
    facts = {
        "command": f"python3 -m duet train backend={backend} seed={seed}", "commit": "abc1234",
        "platform": "Linux", "processor": "a processor", "cores": 2, "python": "3.11.2", "device": "cpu",
        "precision": "float32", "seed": seed, "parameters": 1234, "versions": {title: version, "numpy": "2.2.0"},
        "data": {"name": "digits", "images": 1797, "sha256": "0" * 64},
    }  # fmt: skip
    facts["command"] += f" hydra.run.dir={out}"  # two runs are never started by one command
    (out / "environment.json").write_text(json.dumps(facts))
    result = {
        "objective": sum(curve[-10:]) / 10, "images_seen": 64 * STEPS, "train_seconds": 20.0 + seed,
        "images_per_second": 300.0 + seed + (-90 if backend == "tf" else 0),
        "first_step_seconds": 4.0 if backend == "tf" else 0.2, "seconds": 15.0, "sample_seconds": 2.0, "sampled": 20,
        "peak_memory_mib": 500.0,
    }  # fmt: skip
    (out / "result.json").write_text(json.dumps(result))
    write_samples(out / "samples", seed, backend)


def write_samples(out: Path, seed: int, backend: str, steps: int = 10) -> None:
    """Twenty images of bars under fading noise; the backend changes a single value."""
    import numpy as np

    out.mkdir(parents=True, exist_ok=True)
    labels = np.repeat(np.arange(10), 2)
    images = np.zeros((20, 8, 8, 1), np.uint8)
    for i, label in enumerate(labels):
        images[i, label % 8, :, 0] = images[i, :, (label + seed) % 8, 0] = 200
    if backend == "tf":
        images[0, 4, 4, 0] ^= 1
    facts = {"plan": "ddim", "seed": seed, "backend": backend, "weights_sha256": backend}
    np.savez(out / "samples.npz", images=images, labels=labels, facts=np.array(json.dumps(facts)))
    noise = np.random.default_rng(seed).integers(0, 256, images.shape)
    fractions = np.linspace(1, 0, steps)[:, None, None, None, None]
    x = (fractions * noise[:10] + (1 - fractions) * images[:10]).astype(np.uint8)
    estimate = np.broadcast_to(images[:10], x.shape)
    np.savez(out / "trajectory.npz", row=np.arange(steps), x=x, estimate=estimate)


def make_up(plan: Any, runs: Path, failing: Callable[[Any], bool] = lambda job: False) -> None:
    """Write the directories of all jobs of a plan, as if its commands had run; jobs that fail write failed.json."""
    from diffusion_core.runs.run_directory import write_json

    for job in plan.jobs:
        out = runs / job.name
        words = ["python3", "-m", "duet", job.command, *job.arguments(Path("runs"))]
        facts = {
            "identity": job.identity, "command": words,
            "seconds": 40.0 + job.seed, "joules": None, "resumed": False,
        }  # fmt: skip
        if any(map(failing, (*job.before, job))):
            if failing(job):
                write_json(out / "failed.json", facts | {"exit_code": 2, "said": "error: the loss is nan"})
            continue
        backend = next(word.split("=")[1] for word in job.overrides if word.startswith("backend="))
        if job.command == "sample":
            steps = next((int(word.split("=")[1]) for word in job.overrides if word.startswith("sampler.steps=")), 10)
            write_samples(out, job.seed, backend, steps)
        else:
            write_training(out, job.seed, backend, bool(job.before))
        write_json(out / "done.json", facts)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
