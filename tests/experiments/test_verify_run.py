"""A run of PyTorch is verified in either framework, and a change of it is found in either."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import call
from tampering import CHANGES, rehash

from diffusion_core.files.safe_read import read_json
from diffusion_core.runs.checkpoint import list_checkpoints

pytestmark = pytest.mark.backend
# It has two segments and a certificate. `train` made it in PyTorch with the words of its environment.json.
RUN = Path(__file__).parent.parent / "data" / "run_certified"


def test_a_run_of_pytorch_is_verified_in_either_framework(backend_name, tmp_path):
    run = shutil.copytree(RUN, tmp_path / "run")
    words = (f"run={run}", f"backend={backend_name}", "twins=1", "segments=1", "draw_seed=0")
    code, out, err = call("verify", *words)
    assert code == 0 and "verdict: NOT" not in out, out + err
    if backend_name != "torch":
        assert "bits need not be equal: backend: torch recorded" in out and "nearest to its bound" in out
    written = read_json(next((run / "verdicts").iterdir()))
    assert written["verdict"] in ("BIT-EXACT", "WITHIN") and written["claims"]["data"]["name"] == "digits"
    assert written["head"] == read_json(run / "certificate.json")["head"] and written["draw"]["seed"] == 0
    (replayed,) = written["draw"]["replayed"]
    (run / "certificate.json").unlink()
    for other in set(range(2)) - {replayed - 1}:  # so that the drawn segment ends at the only checkpoint to change
        kept = shutil.move(list_checkpoints(run / "checkpoints")[other], tmp_path / "kept")
    CHANGES["change_a_weight"](run, np.random.default_rng(0))
    shutil.move(kept, run / "checkpoints" / f"{8 * (other + 1):012d}")
    rehash(run)
    code, out, _ = call("verify", *words, "results=false")
    assert code == 1 and "verdict: DIFFERS, first in weights, " in out, out
