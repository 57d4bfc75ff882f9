"""EDM2 learns the digits as well as EDM does with as many weights. Run with `pytest -m slow -s`, which prints both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import enter

from diffusion_core.backend import reference
from diffusion_core.data import Loader, load_dataset
from diffusion_core.parity.cases import cast
from diffusion_core.runs.checkpoint import find_checkpoint, load_checkpoint
from diffusion_core.training.loop import make_batch
from diffusion_core.training.objective import Objective

pytestmark = [pytest.mark.backend, pytest.mark.slow]


def denoising_loss(backend: Any, run: Path) -> float:
    """Return the weighted denoising loss of the averaged weights on 2,048 held-out digits, without the log-variance."""
    checkpoint = load_checkpoint(find_checkpoint(str(run)))
    model, levels = checkpoint.model, {"name": "log_normal", "mean": -1.2, "std": 1.2}
    objective = Objective.for_model(model, 5, timestep_sampling=levels, weighting={"name": "edm"})
    network = backend.network(model.program, checkpoint.state.ema)
    program, loader = replace(model.program, uncertainty=False), Loader(load_dataset("digits", part="held_out"), 5)
    losses = []
    for start in range(0, 2048, 256):
        batch = cast(make_batch(loader, objective, start, 256), np.float32)
        losses.append(reference.evaluation_pass(network.forward, program, batch, "mse")[0])
    return float(np.mean(losses))


def test_edm2_learns_the_digits_as_well_as_edm(tmp_path, backend_name, open_backend):
    losses = {}
    for name in ("edm_digits", "edm2_digits"):
        words = f"experiment={name}", f"backend={backend_name}", f"hydra.run.dir={tmp_path / name}"
        enter("train", *words, "sample.count=16", "sampler.steps=4", "backend.device=cpu", "backend.threads=1")
        losses[name] = denoising_loss(open_backend("float32"), tmp_path / name)
    print(losses)
    assert losses["edm2_digits"] < 1.1 * losses["edm_digits"] < 0.5
