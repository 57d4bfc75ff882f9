"""The walk-throughs of docs/extending.md: each diff applies to a copy of the repository, and its check passes."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
SECTIONS = {title: section for title, section in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.S | re.M)}
COPIED = (
    "backends", "benchmarks", "configs", "diffusion_core", "docs", "duet", "experiments", "hydra_plugins", "tests",
)  # fmt: skip


def fenced(title: str, language: str) -> str:
    (content,) = re.findall(rf"^```{language}\n(.*?)^```", SECTIONS[title], re.S | re.M)
    return content


@pytest.fixture
def extended(tmp_path):
    """Apply the diff of a section to a copy of the repository, and install its entry points as pip does."""

    def extend(*titles: str) -> Path:
        for name in COPIED:
            shutil.copytree(ROOT / name, tmp_path / name)
        for file in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / file, tmp_path)
        # One line of context is enough, so that changes nearby do not invalidate a diff.
        apply = ["git", "apply", "-C1", "-"]
        for title in titles:
            subprocess.run(apply, cwd=tmp_path, input=fenced(title, "diff"), text=True, check=True)
        entries = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]["entry-points"]["duet.backends"]
        info = tmp_path / "duet_diffusion-0.2.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: duet-diffusion\nVersion: 0.2.0\n")
        lines = [f"{name} = {value}" for name, value in entries.items()]
        (info / "entry_points.txt").write_text("\n".join(["[duet.backends]", *lines, ""]))
        return tmp_path

    return extend


def run(folder: Path, *arguments: str) -> str:
    """Return what a Python printed that ended without an error."""
    env = os.environ | {"PYTHONPATH": str(folder), "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_there_is_a_walk_through_of_everything_that_can_be_added():
    assert list(SECTIONS) == [
        "A sampler",
        "A schedule",
        "A block",
        "A token block",
        "A network",
        "A training target",
        "An optimiser",
        "A backend",
    ]


@pytest.mark.parametrize("title", SECTIONS)
def test_the_diff_applies_and_its_check_passes(extended, title):
    folder = extended(title)
    for line in fenced(title, "sh").splitlines():
        python, *arguments = shlex.split(line)
        assert python == "python"
        printed = run(folder, *arguments, *(("-p", "no:cacheprovider") if "pytest" in arguments else ()))
        assert "pytest" not in arguments or re.search(r"\b[1-9]\d* passed", printed), printed


RUNG_2 = """
import sys
from diffusion_core.backend.interface import BackendConfig, load_backend
from diffusion_core.parity import cases, rungs, trace
for precision in ("float64", "float32"):
    backend = load_backend(sys.argv[1], BackendConfig(device="cpu", precision=precision, threads=1))
    result = trace.Trace(sys.argv[1], precision)
    rungs.blocks(backend, result, [case for case in cases.BLOCKS if case.name in sys.argv[2:]])
    assert len(result.checks) == 2 and all(check.passed for check in result.checks), result.checks
    print(precision)
"""


@pytest.mark.backend
def test_the_new_blocks_climb_rung_2_in_a_backend(extended, backend_name):
    folder = extended("A block", "A token block")
    assert run(folder, "-c", RUNG_2, backend_name, "LeakyReLU", "Registers").split()[-2:] == ["float64", "float32"]
