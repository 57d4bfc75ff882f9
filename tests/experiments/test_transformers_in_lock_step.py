"""Rungs 7 and 8 for transformers: trained in both frameworks in float64, and handed over in the middle.

The ladder of every test run trains a small UNet and a small EDM2; these take a minute each to trace in TensorFlow.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from diffusion_core.parity.ladder import TOLERANCES, l2_of_all
from diffusion_core.runs.checkpoint import load_checkpoint
from diffusion_core.runs.run_directory import read_metrics

pytestmark = [pytest.mark.together, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
STEPS, HANDOVER, BATCH = 10, 5, 8
SHARED = [
    "precision=float64", "backend.device=cpu", "backend.threads=1", "model.channels=16", f"trainer.batch={BATCH}",
    f"trainer.log_images={BATCH}", f"trainer.images={STEPS * BATCH}", f"trainer.checkpoint_images={HANDOVER * BATCH}",
    "lr.warmup_images=0", "sampler.steps=2", "sample.count=4", "sample.batch=4", "validation.part=none",
]  # fmt: skip
EXPERIMENTS = {
    "jit_digits": ["model.dropout=0.2", "model.attention_dropout=0.1"],
    "uvit_digits": ["model.depth=2"],
    "dit_digits": ["model.depth=2"],
}


def train(backend: str, experiment: str, out: Path, *words: str) -> Path:
    """Train in the environment that owns a backend; return the run."""
    own = os.environ.get(f"DUET_{backend.upper()}_PYTHON")
    environment = OmegaConf.load(ROOT / "configs/backend" / f"{backend}.yaml").environment
    python = own or str(ROOT / environment / "bin/python")
    words = (f"backend={backend}", f"experiment={experiment}", f"hydra.run.dir={out}", *words)
    command = [python, "-m", "experiments.train", *SHARED, *EXPERIMENTS[experiment], *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def losses(run: Path) -> np.ndarray:
    return np.array([line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line])


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_transformer_trains_in_lock_step_and_is_handed_over(experiment: str, tmp_path: Path) -> None:
    one, two = (train(backend, experiment, tmp_path / backend) for backend in ("torch", "tf"))
    half = one / "checkpoints" / f"{HANDOVER * BATCH:012d}"
    handed = train("tf", experiment, tmp_path / "handed", f"resume={half}")
    allowed = TOLERANCES["training loss, 10 steps"].float64
    assert len(losses(one)) == STEPS
    np.testing.assert_allclose(losses(two), losses(one), rtol=allowed)
    np.testing.assert_allclose(losses(handed)[-(STEPS - HANDOVER) :], losses(one)[HANDOVER:], rtol=allowed)
    last, *others = (load_checkpoint(run / "checkpoints" / f"{STEPS * BATCH:012d}").state for run in (one, two, handed))
    for other in others:
        for part, arrays in (("weights", other.weights), ("ema", other.ema)):
            error = l2_of_all(arrays, last.parts[part])
            assert error <= TOLERANCES["training weights, 10 steps"].float64, part
