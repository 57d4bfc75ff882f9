"""The backend with which tests marked `backend` run."""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Callable
from functools import cache
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark.expression import Expression

from diffusion_core.backend.interface import BackendConfig, load_backend
from diffusion_core.common.errors import name_keys
from duet.cli.backends import ROOT, backends


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--part I/N`, with which `duet test` distributes tests over processes."""
    parser.addoption("--part", help="run part I of N: every Nth test file, by size", metavar="I/N")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import the files of which this process runs no test: importing all of them takes 15 seconds.

    Files that are named on the command line are imported, so that a selection of none of their tests is said as usual.
    """
    if config.option.file_or_dir or not is_test_file(collection_path):
        return None
    return collection_path not in files_of_part(config) or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of one part, where files are named on the command line too."""
    kept = files_of_part(config)
    if config.getoption("--part"):
        config.hook.pytest_deselected(items=[item for item in items if item.path not in kept])
        items[:] = [item for item in items if item.path in kept]


def is_test_file(path: Path) -> bool:
    """Return whether pytest looks for tests in a file."""
    return path.suffix == ".py" and path.name.startswith("test_")


def files_of_part(config: pytest.Config) -> frozenset[Path]:
    """Return the files with tests that `-m` may select, of one part. The parts are dealt out by size.

    The size of a file says roughly how long its tests take.
    """
    return _files_of_part(config.rootpath / "tests", config.getoption("-m"), config.getoption("--part") or "1/1")


@cache
def _files_of_part(folder: Path, marks: str, part: str) -> frozenset[Path]:
    index, count = map(int, part.split("/"))
    files = [path for path in folder.rglob("test_*.py") if may_select(marks, path.read_text(encoding="utf-8"))]
    return frozenset(sorted(files, key=lambda path: (-path.stat().st_size, path))[index - 1 :: count])


def may_select(marks: str, text: str) -> bool:
    """Return whether the expression `marks` may hold for a test of a file, by the marks that its text names.

    Those of `pytestmark` are marks of all its tests; any of the others may be marks of one of them.
    """
    if not marks:
        return True
    expression = Expression.compile(marks)
    whole = "".join(re.findall(r"^pytestmark = (?:\[\n(?:.*\n)*?\]|.*)", text, re.MULTILINE))
    always, some = (set(re.findall(r"\bpytest\.mark\.(\w+)", words)) for words in (whole, text))

    def holds(chosen: tuple[str, ...]) -> bool:
        return expression.evaluate(lambda name, **_: name in always.union(chosen))

    subsets = chain.from_iterable(combinations(sorted(some - always), size) for size in range(len(some - always) + 1))
    return any(map(holds, subsets))


@pytest.fixture(autouse=True, scope="module")
def _little_to_collect() -> None:
    """Keep what earlier files left out of garbage collections: Keras runs one a second long at each `clear_session`."""
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
