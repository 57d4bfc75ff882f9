"""The two records that the environments wrote."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from diffusion_core.parity.compare import PRECISIONS, compare_records, load_arrays, own_checks
from diffusion_core.parity.ladder import Check

NAMES = ("torch", "tf")


@dataclass(frozen=True)
class Exchange:
    """A directory with a record per backend."""

    path: Path

    @cached_property
    def compared(self) -> list[Check]:
        """Every check of one backend against the other."""
        return compare_records(*(self.path / name for name in NAMES), NAMES)

    @cached_property
    def own(self) -> dict[str, list[Check]]:
        """Every check of a backend against the reference."""
        return {name: own_checks(self.path / name) for name in NAMES}

    @cached_property
    def arrays(self) -> dict[str, dict]:
        """All arrays, as ``arrays["torch/float64"]`` and ``arrays["torch/handover/float64"]``."""
        return {
            f"{name}/{file}": load_arrays(self.path / name / f"{file}.npz")
            for name in NAMES
            for precision in PRECISIONS
            for file in (precision, f"handover/{precision}")
        }


@pytest.fixture(scope="session")
def exchange() -> Exchange:
    """What lies in DUET_EXCHANGE."""
    given = os.environ.get("DUET_EXCHANGE")
    if not given:
        pytest.fail("DUET_EXCHANGE is not set: `python3 duet.py test` writes both records and names their directory")
    missing = [name for name in NAMES if not (Path(given) / name / "checks.json").is_file()]
    if missing:
        pytest.fail(f"DUET_EXCHANGE: {given} has no record of {' and '.join(missing)}; experiments.trace writes one")
    return Exchange(Path(given))
