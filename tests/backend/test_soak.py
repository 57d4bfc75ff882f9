"""A long run keeps its memory: training, logs, checkpoints and samples of a real process, whose memory is watched.

    DUET_SOAK_MINUTES=30 pytest -s -m slow tests/backend/test_soak.py

in each environment. The memory is what /proc says of the process, so nothing is added to what runs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
# MiB per minute by which memory may grow after the warm-up: a leak of the state of this network, with each checkpoint
# (about every second), is a hundred times as much; one of a batch with each step as well.
SLOPE = 0.5
WARM_UP = 0.4  # of the time, with the compiling of training and of sampling
WORDS = (
    "experiment=digits model.channels=16 model.norm_groups=4 model.attention_resolutions=[] "
    "model.middle_attention=false "
    "trainer.images=1000000000 trainer.batch=32 trainer.log_images=320 trainer.checkpoint_images=1280 "
    "trainer.keep_checkpoints=2 trainer.sample_images=6400 sample.count=8 sampler.steps=4 lr.decay=constant "
    "backend.threads=1 backend.device=cpu"
)


def resident_mib(pid: int) -> float:
    """The resident memory of a process that runs."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


@pytest.mark.slow
@pytest.mark.backend
def test_memory_does_not_grow(backend_name: str, tmp_path: Path) -> None:
    seconds = 60 * float(os.environ.get("DUET_SOAK_MINUTES", "30"))
    command = [
        sys.executable,
        "-m",
        "experiments.train",
        f"backend={backend_name}",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    with open(tmp_path / "printed.txt", "wb") as printed:
        process = subprocess.Popen([*command, *WORDS.split()], cwd=ROOT, stdout=printed, stderr=subprocess.STDOUT)
    try:
        began, watched = time.monotonic(), []
        while time.monotonic() - began < seconds:
            assert process.poll() is None, (tmp_path / "printed.txt").read_text()[-2000:]
            watched.append((time.monotonic() - began, resident_mib(process.pid)))
            if len(watched) % 20 == 1:
                print(f"{watched[-1][0]:.0f} s: {watched[-1][1]:.1f} MiB", flush=True)
            time.sleep(min(5.0, seconds / 100))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    minutes, mib = np.array(watched)[int(WARM_UP * len(watched)) :].T / [[60.0], [1.0]]
    slope = np.polyfit(minutes, mib, 1)[0]
    steps = (tmp_path / "run" / "metrics.jsonl").read_bytes().count(b"\n")
    told = {"backend": backend_name, "minutes": seconds / 60, "steps": steps, "first_mib": mib[0], "last_mib": mib[-1]}
    print(json.dumps(told | {"largest_mib": mib.max(), "mib_per_minute": slope}))
    print([round(m) for _, m in watched][:: max(1, len(watched) // 60)])
    assert steps > 100 and len(mib) > 20
    assert slope < SLOPE, f"{slope:.2f} MiB per minute"
