"""Pairs of models with planted faults: each fault is found where it is and verified, and equal models are equal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import model_diff
from duet.cli.backends import backends
from duet.cli.environments import environment_exists

pytestmark = pytest.mark.together

QUICK = {
    "wavenet/kernel_reversed": "forward",
    "realnvp/elu": "forward",
    "realnvp/detached": "gradient",
    "mobilenet/bn_momentum": "training",
    "sgd_trainer/nesterov": "optimiser",
}


def measured(out: Path, *options: str) -> list[dict]:
    missing = [name for name, backend in backends().items() if not environment_exists(backend)]
    assert not missing, f"no environment of {', '.join(missing)} for this checkout; set DUET_<NAME>_PYTHON"
    assert model_diff.main([*options, "--out", str(out)]) == 0
    return json.loads((out / "model_diff.json").read_text(encoding="utf-8"))


def test_faults_are_found_and_equal_models_are_equal(tmp_path: Path) -> None:
    rows = measured(tmp_path, "--only", *QUICK, "realnvp/clean", "--seeds", "1")
    faults = {f"{row['pair']}/{row['fault']}": row for row in rows if row.get("fault")}
    assert {name: row["shows_in"] for name, row in faults.items()} == QUICK
    assert [name for name, row in faults.items() if not (row.get("place") and row.get("verified"))] == []
    clean = [row for row in rows if not row.get("fault")]
    assert clean and all(row.get("silent") for row in clean)


@pytest.mark.slow
def test_the_figures_of_the_documentation_are_reached_by_all_pairs(tmp_path: Path) -> None:
    rows = measured(tmp_path)
    faults, clean = ([row for row in rows if bool(row.get("fault")) == planted] for planted in (True, False))
    assert len(faults) >= 60 and sum(bool(row.get("place")) for row in faults) >= 0.95 * len(faults)
    assert sum(bool(row.get("verified")) for row in faults) >= 0.8 * len(faults)
    assert len(clean) >= 200 and all(row.get("silent") for row in clean)
