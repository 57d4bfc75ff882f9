"""The backend with which tests marked `backend` run."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from diffusion_core.backend.interface import BackendConfig, load_backend
from diffusion_core.common.errors import name_keys
from duet.cli.backends import ROOT, backends


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--part I/N`, with which `duet test` distributes tests over processes."""
    parser.addoption("--part", help="run part I of N: every Nth test file, by size", metavar="I/N")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the files of one part. The files are dealt out by size, which says roughly how long they take."""
    if not (part := config.getoption("--part")):
        return
    index, count = map(int, part.split("/"))
    files = sorted({item.path for item in items}, key=lambda path: (-path.stat().st_size, path))
    kept = set(files[index - 1 :: count])
    config.hook.pytest_deselected(items=[item for item in items if item.path not in kept])
    items[:] = [item for item in items if item.path in kept]


def pytest_collection_finish() -> None:
    """Keep what is loaded by now out of garbage collections, which takes a tenth off the time of the tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _errors_name_keys() -> None:
    """Let errors name configuration keys, whether or not an earlier test used `import duet`, which names arguments."""
    name_keys()


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
