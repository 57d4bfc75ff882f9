"""The backend with which tests marked `backend` run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from diffusion_core.backend.interface import BackendConfig, load_backend
from duet.cli.backends import ROOT, backends


@pytest.fixture(scope="session")
def backend_name() -> str:
    """Return DUET_BACKEND, or else the backend whose virtual environment runs the tests."""
    if given := os.environ.get("DUET_BACKEND"):
        return given
    here = Path(sys.prefix).resolve()
    for name, backend in backends().items():
        if (ROOT / backend.environment).resolve() == here:
            return name
    pytest.fail(f"{here} is the environment of no backend; name one with DUET_BACKEND: {', '.join(backends())}")


@pytest.fixture(scope="session")
def open_backend(backend_name: str) -> Callable[..., Any]:
    """Return a function that opens the backend in a precision, by default on the CPU with one thread.

    Small networks are as fast on one thread, and the bits then do not depend on the machine's load.
    """

    @cache
    def opened(precision: str = "float32", **settings: Any) -> Any:
        return load_backend(
            backend_name, BackendConfig(**{"device": "cpu", "precision": precision, "threads": 1} | settings)
        )

    return opened
