"""The backend that tests marked `backend` run with."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import pytest

from diffusion_core.backend.interface import BackendConfig, load_backend

FRAMEWORKS = {"torch": "torch", "tf": "tensorflow"}


@pytest.fixture(scope="session")
def backend_name() -> str:
    """DUET_BACKEND; where it is not set, the backend whose framework is installed here."""
    if given := os.environ.get("DUET_BACKEND"):
        return given
    installed = [name for name, framework in FRAMEWORKS.items() if find_spec(framework)]
    if len(installed) != 1:
        pytest.fail(f"of the backends {list(FRAMEWORKS)} this Python has {installed}: say which with DUET_BACKEND")
    return installed[0]


@pytest.fixture(scope="session")
def open_backend(backend_name: str) -> Callable[..., Any]:
    """The backend in a precision, with any other settings; unless they say otherwise, on one thread of the CPU.

    Small networks are as fast on one thread, and the bits then do not depend on the machine's load.
    """

    @cache
    def opened(precision: str = "float32", **settings: Any) -> Any:
        return load_backend(
            backend_name, BackendConfig(**{"device": "cpu", "precision": precision, "threads": 1} | settings)
        )

    return opened
