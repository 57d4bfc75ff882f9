"""The parity record of one backend: its checks against the reference, and the arrays that the other must match."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.interface import Backend
from diffusion_core.common.errors import one_of
from diffusion_core.common.text import format_seconds, pluralize
from diffusion_core.files.atomic import write_atomically
from diffusion_core.parity import cases, edm2
from diffusion_core.parity.compare import PRECISIONS, load_arrays
from diffusion_core.parity.record import record
from diffusion_core.parity.rungs import BATCH, HANDOVER_STEP, STEPS, continue_training, sample_images
from diffusion_core.parity.trace import Trace
from diffusion_core.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from diffusion_core.runs.run_directory import describe_environment, exclusive_directory, write_json
from diffusion_core.runtime.heartbeat import heartbeat
from experiments.runtime.backends import BackendSetup

__all__ = ["LadderSetup", "check_precisions", "record_ladder"]


@dataclass(frozen=True)
class LadderSetup:
    """A request for a parity record.

    Args:
        backend: what is recorded.
        precisions: one record is written for each.
        handover: the record of another framework whose training state and weights are taken over; None records
            this backend by itself.
        whole: whether to check all networks and plans; otherwise a few.
    """

    backend: BackendSetup
    precisions: Sequence[str] = ("float64", "float32")
    handover: str | None = None
    whole: bool = True

    def __post_init__(self) -> None:
        check_precisions(self.precisions)


def check_precisions(precisions: Sequence[str]) -> None:
    """Refuse precisions that have no tolerances, or none at all."""
    unknown = [p for p in precisions if p not in PRECISIONS]
    if unknown or not precisions:
        raise one_of("precisions", unknown[0] if unknown else "nothing", PRECISIONS)


def record_ladder(setup: LadderSetup, out: Path) -> None:
    """Write the record in each precision into the directory `out`, and print what was checked."""
    for precision in setup.precisions:
        with exclusive_directory(out / precision):  # other processes may record other precisions in `out`
            backend = setup.backend.with_precision(precision).load()
            print(backend.describe().line(), flush=True)
            began = perf_counter()
            if setup.handover is None:
                done = _write_record(backend, out, precision, setup.whole)
            else:
                done = _take_over(backend, out, precision, Path(setup.handover), setup.whole)
        print(
            f"{setup.backend.name}, {precision}: {done} in {format_seconds(perf_counter() - began)}: {out}", flush=True
        )


def _write_record(backend: Backend, out: Path, precision: str, whole: bool) -> str:
    few = () if whole else (cases.FEW_NETWORKS, cases.FEW_PLANS)
    trace = record(backend, *few, around=_shown)
    _write_arrays(out / f"{precision}.npz", trace.arrays)
    for step in (HANDOVER_STEP, STEPS):
        notes = {"backend": trace.backend, "precision": precision}
        checkpoint = Checkpoint(step * BATCH, cases.PARITY, cases.SEED, trace.states[step], notes)
        save_checkpoint(out / precision / "checkpoints", checkpoint)
    facts = describe_environment(backend.describe())
    write_json(out / f"{precision}.json", {"environment": facts, "checks": [c.to_dict() for c in trace.checks]})
    failed = [c for c in trace.checks if not c.passed]
    for c in failed:
        print(f"  rung {c.rung}, {c.name}: {c.error:.3g} > {c.tolerance:.3g}")
    return f"{len(trace.checks) - len(failed)} of {len(trace.checks)} checks against the reference passed"


@contextmanager
def _shown(part: str, trace: Trace) -> Iterator[None]:
    """Print what is being measured, and then its checks and how long it took."""
    before, began = len(trace.checks), perf_counter()
    with heartbeat(f"  {part}", says_end=False):
        yield
    checks = trace.checks[before:]
    passed = sum(c.passed for c in checks)
    result = f"{passed:,} of {pluralize(len(checks), 'check')} passed" if checks else "recorded"
    print(f"  {part}: {result}, {format_seconds(perf_counter() - began)}", flush=True)


def _take_over(backend: Backend, out: Path, precision: str, other: Path, whole: bool) -> str:
    checkpoints = other / precision / "checkpoints"
    middle = load_checkpoint(checkpoints / f"{HANDOVER_STEP * BATCH:012d}", cases.PARITY.program)
    last = load_checkpoint(checkpoints / f"{STEPS * BATCH:012d}", cases.PARITY.program)
    plans = cases.PLANS if whole else {name: cases.PLANS[name] for name in cases.FEW_PLANS}
    with heartbeat("  hand-over: training on from the other framework's state (rung 8)"):
        arrays = continue_training(backend, middle.state)
        arrays |= edm2.continue_training(backend, load_arrays(other / f"{precision}.npz"))
    with heartbeat("  hand-over: sampling the other framework's weights (rung 8)"):
        arrays |= sample_images(backend, last.state.ema, plans)
    _write_arrays(out / "handover" / f"{precision}.npz", arrays)
    return f"continued from {other}"


def _write_arrays(path: Path, arrays: Mapping[str, NDArray]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomically(path, buffer.getvalue())
