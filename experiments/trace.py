"""Write the parity record of one backend: its checks against the reference, and what the other must match.

    python3 -m duet trace backend=torch out=outputs/trace/torch
    python3 -m duet trace backend=tf out=outputs/trace/tf
    python3 -m duet trace backend=tf out=outputs/trace/tf handover=outputs/trace/torch

The last form takes over the training state and the weights that the other framework left, and records what it
makes of them. `whole=false` climbs with a few networks and plans instead of all, in either form.
`experiments.compare` reads two such records.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from diffusion_core.backend.interface import Backend, load_backend
from diffusion_core.common.errors import one_of
from diffusion_core.files.atomic import write_atomically
from diffusion_core.parity import cases
from diffusion_core.parity.compare import PRECISIONS
from diffusion_core.parity.trace import BATCH, HANDOVER_STEP, STEPS, continue_training, record, sample_images
from diffusion_core.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from diffusion_core.runs.run_directory import describe_environment, exclusive_directory, write_json
from experiments.common import settings_of
from experiments.config.entry import command


@command("trace")
def main(cfg: DictConfig) -> None:
    """Record the precisions asked for, or take over what another framework recorded in them."""
    out = Path(cfg.out)
    for precision in cfg.precisions:
        if precision not in PRECISIONS:
            raise one_of("precisions", precision, PRECISIONS)
    for precision in cfg.precisions:
        with exclusive_directory(
            out / precision
        ):  # `out` may be at the same time that of a record in another precision
            backend = load_backend(cfg.backend.name, settings_of(cfg, precision))
            print(backend.describe().line(), flush=True)
            began = perf_counter()
            if cfg.handover is None:
                done = _write_record(backend, out, precision, cfg.whole)
            else:
                done = _take_over(backend, out, precision, Path(cfg.handover), cfg.whole)
        print(f"{cfg.backend.name}, {precision}: {done} in {perf_counter() - began:.0f} s: {out}", flush=True)


def _write_record(backend: Backend, out: Path, precision: str, whole: bool) -> str:
    trace = record(backend) if whole else record(backend, cases.FEW_NETWORKS, cases.FEW_PLANS)
    _write_arrays(out / f"{precision}.npz", trace.arrays)
    for step in (HANDOVER_STEP, STEPS):
        notes = {"backend": trace.backend, "precision": precision}
        found = Checkpoint(step * BATCH, cases.PARITY, cases.SEED, trace.states[step], notes)
        save_checkpoint(out / precision / "checkpoints", found)
    facts = describe_environment(backend.describe())
    write_json(out / f"{precision}.json", {"environment": facts, "checks": [c.to_dict() for c in trace.checks]})
    failed = [c for c in trace.checks if not c.passed]
    for c in failed:
        print(f"  rung {c.rung}, {c.name}: {c.error:.3g} > {c.tolerance:.3g}")
    return f"{len(trace.checks) - len(failed)} of {len(trace.checks)} checks against the reference passed"


def _take_over(backend: Backend, out: Path, precision: str, other: Path, whole: bool) -> str:
    checkpoints = other / precision / "checkpoints"
    middle = load_checkpoint(checkpoints / f"{HANDOVER_STEP * BATCH:012d}", cases.PARITY.program)
    last = load_checkpoint(checkpoints / f"{STEPS * BATCH:012d}", cases.PARITY.program)
    plans = cases.PLANS if whole else {name: cases.PLANS[name] for name in cases.FEW_PLANS}
    arrays = continue_training(backend, middle.state) | sample_images(backend, last.state.ema, plans)
    _write_arrays(out / "handover" / f"{precision}.npz", arrays)
    return f"went on from {other}"


def _write_arrays(path: Path, arrays: Mapping[str, NDArray]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


if __name__ == "__main__":
    main()
