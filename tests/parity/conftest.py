"""A backend that caches its networks, and the records that the two environments wrote."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest

from diffusion_core.networks import Program
from diffusion_core.networks.weights import Weights
from diffusion_core.parity.compare import PRECISIONS, compare_records, load_arrays, own_checks
from diffusion_core.parity.ladder import Check

NAMES = ("torch", "tf")


class Kept:
    """A backend that builds the same network once, because TensorFlow takes a second to trace one."""

    def __init__(self, backend: Any) -> None:
        self._backend, self._networks = backend, {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def network(self, program: Program, weights: Weights) -> Any:
        """Return the cached network of a program and weights."""
        key = (program.sha256, *((name, value.tobytes()) for name, value in weights.items()))
        if key not in self._networks:
            self._networks[key] = self._backend.network(program, weights)
        return self._networks[key]


@pytest.fixture(scope="session")
def kept(open_backend) -> Callable[[str], Kept]:
    """Return the backend of a precision, with its cached networks."""
    return cache(lambda precision: Kept(open_backend(precision)))


@dataclass(frozen=True)
class Exchange:
    """A directory with a record per backend."""

    path: Path

    @cached_property
    def compared(self) -> list[Check]:
        """Every check of one backend against the other."""
        return compare_records([self.path / name for name in NAMES], NAMES)

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
    """The records in DUET_EXCHANGE."""
    given = os.environ.get("DUET_EXCHANGE")
    if not given:
        pytest.fail("DUET_EXCHANGE is not set: `python3 -m duet test` writes both records and names their directory")
    missing = [name for name in NAMES if not (Path(given) / name / "float32.json").is_file()]
    if missing:
        pytest.fail(f"DUET_EXCHANGE: {given} has no record of {' and '.join(missing)}; experiments.trace writes one")
    return Exchange(Path(given))


@pytest.fixture(scope="session")
def exact(kept) -> Kept:
    """Return the backend in float64."""
    return kept("float64")
