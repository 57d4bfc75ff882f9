"""pyproject.toml, the constraints, the conda files and the backends' configurations agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from duet.cli.backends import backends
from duet.cli.environments import SUPPORTED

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {name: ",".join(backend.extras) for name, backend in backends().items()}
both = pytest.mark.parametrize("backend", EXTRAS)


def pins(backend: str) -> dict[str, str]:
    """Return the constraints as name -> version."""
    lines = (ROOT / f"constraints-{backend}.txt").read_text().splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    matches = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line) for line in lines]
    assert all(matches), [line for line, match in zip(lines, matches, strict=True) if not match]
    named = [(canonicalize_name(match[1]), match[2]) for match in matches if match]
    assert len(dict(named)) == len(named), "a package is pinned twice"
    return dict(named)


def direct(extra: str | None) -> list[Requirement]:
    """Return the requirements of the project, or of one extra including the extras of the project that it names."""
    texts = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    found = []
    for requirement in map(Requirement, texts):
        own = requirement.name == PROJECT["name"]
        found += [r for other in requirement.extras for r in direct(other)] if own else [requirement]
    return found


@both
def test_every_direct_dependency_is_pinned_within_its_range(backend):
    pinned = pins(backend)
    wanted = direct(None) + [r for extra in EXTRAS[backend].split(",") for r in direct(extra)] + direct("dev")
    assert {"numpy", "pytest", "ruff"} <= {requirement.name for requirement in wanted}
    for requirement in wanted:
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not pinned in constraints-{backend}.txt"
        assert version in requirement.specifier, f"{requirement} does not allow the pin {version}"


@both
def test_no_environment_pins_the_other_framework_or_what_torch_pins_itself(backend):
    other = {"torch": {"tensorflow", "keras"}, "tf": {"torch", "torchvision"}}[backend]
    pinned = set(pins(backend))
    assert not pinned & other
    assert not [name for name in pinned if re.match(r"nvidia-|cuda-|triton", name)]


def test_what_both_environments_pin_is_the_same():
    torch, tf = pins("torch"), pins("tf")
    shared = torch.keys() & tf.keys()
    assert {"numpy", "scikit-learn", "hydra-core"} <= shared
    assert {name: torch[name] for name in shared} == {name: tf[name] for name in shared}


@both
def test_the_conda_file_installs_what_duet_setup_installs(backend):
    conda = yaml.safe_load((ROOT / f"environment-{backend}.yml").read_text())
    assert conda["name"] == f"duet-{backend}" and conda["channels"] == ["conda-forge"]
    python, pip, by_pip = conda["dependencies"]
    assert pip == "pip"
    assert SpecifierSet(python.removeprefix("python")) == SpecifierSet(PROJECT["requires-python"])
    assert by_pip == {"pip": [f"--constraint constraints-{backend}.txt", f"-e .[{EXTRAS[backend]},dev]"]}


def test_the_command_supports_the_pythons_of_pyproject():
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert tuple((3, minor) for minor in range(30) if f"3.{minor}" in allowed) == SUPPORTED


def test_each_backend_is_an_entry_point_with_an_extra():
    assert PROJECT["entry-points"]["duet.backends"].keys() == EXTRAS.keys()
    assert all({*extras.split(",")} <= PROJECT["optional-dependencies"].keys() for extras in EXTRAS.values())
    assert PROJECT["scripts"] == {"duet": "duet.cli:main"}
