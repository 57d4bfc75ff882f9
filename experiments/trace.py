"""Write the parity record of one backend: its checks against the reference, and what the other must match.

    python -m experiments.trace backend=torch out=outputs/trace/torch
    python -m experiments.trace backend=tf out=outputs/trace/tf
    python -m experiments.trace backend=tf out=outputs/trace/tf handover=outputs/trace/torch

The last form takes over the training state and the weights that the other framework left, and records what it
makes of them. `experiments.compare` reads two such records.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from diffusion_core.backend import Backend, load_backend
from diffusion_core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, write_atomically
from diffusion_core.parity import cases
from diffusion_core.parity.compare import PRECISIONS
from diffusion_core.parity.ladder import Check
from diffusion_core.parity.trace import BATCH, HANDOVER_STEP, STEPS, continue_training, record, sample_images
from diffusion_core.run import environment, write_json
from experiments.common import settings_of
from experiments.entry import entry


@entry("trace")
def main(cfg: DictConfig) -> None:
    """Record both precisions, or take over what another framework recorded."""
    out = Path(cfg.out)
    checks: list[Check] = []
    backend = None
    for precision in PRECISIONS:
        backend = load_backend(cfg.backend.name, settings_of(cfg, precision))
        began = perf_counter()
        if cfg.handover is None:
            checks += _write_record(backend, out, precision)
        else:
            _take_over(backend, out, precision, Path(cfg.handover))
        what = "recorded" if cfg.handover is None else f"went on from {cfg.handover}"
        print(f"{backend.describe().line()}: {what} in {perf_counter() - began:.1f} s", flush=True)
    if cfg.handover is None:
        facts = environment(backend.describe())
        write_json(out / "checks.json", {"environment": facts, "checks": [c.to_dict() for c in checks]})
        failed = [c for c in checks if not c.passed]
        print(f"{len(checks) - len(failed)} of {len(checks)} checks against the reference passed: {out}")
        for c in failed:
            print(f"  rung {c.rung}, {c.name}, {c.precision}: {c.error:.3g} > {c.tolerance:.3g}")


def _write_record(backend: Backend, out: Path, precision: str) -> list[Check]:
    trace = record(backend)
    _write_arrays(out / f"{precision}.npz", trace.arrays)
    for step in (HANDOVER_STEP, STEPS):
        notes = {"backend": trace.backend, "precision": precision}
        state = trace.states[step]
        save_checkpoint(
            out / precision / "checkpoints", Checkpoint(step * BATCH, cases.PARITY, cases.SEED, state, notes)
        )
    return trace.checks


def _take_over(backend: Backend, out: Path, precision: str, other: Path) -> None:
    checkpoints = other / precision / "checkpoints"
    middle = load_checkpoint(checkpoints / f"{HANDOVER_STEP * BATCH:012d}", cases.PARITY.program)
    last = load_checkpoint(checkpoints / f"{STEPS * BATCH:012d}", cases.PARITY.program)
    arrays = continue_training(backend, middle.state) | sample_images(backend, last.state.ema)
    _write_arrays(out / "handover" / f"{precision}.npz", arrays)


def _write_arrays(path: Path, arrays: Mapping[str, NDArray]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


if __name__ == "__main__":
    main()
