"""Which builds of the packages an environment gets: for CPUs only, and with further extras.

`duet setup --cpu` and `--extra NAME` are kept beside the environment, in .venvs/NAME.json, so that later updates keep
to them. For CPUs only,

- an extra named X gives way to X-cpu where pyproject.toml has it (TensorFlow has a package of its own for CPUs);
- packages whose versions in the user's package index include builds for CPUs, such as 2.14.1+cpu, are installed in
  that build. PyTorch publishes them in an index of its own, which a user may have in the settings of pip. Without one,
  the plain build is installed: on Linux it brings CUDA libraries, which stay unused; elsewhere it is a CPU build.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import NamedTuple

from duet.cli.backends import ROOT, Backend
from duet.cli.terminal import Stop, one_of, say

__all__ = [
    "BuildOptions",
    "check_extra",
    "extras_of_project",
    "for_cpu",
    "read_options",
    "requirement",
    "write_options",
]


class BuildOptions(NamedTuple):
    """How an environment differs from the default: whether it is for CPUs only, and further extras."""

    cpu: bool = False
    extras: tuple[str, ...] = ()


def options_file(backend: Backend) -> Path:
    """Return the file with the options of an environment."""
    return Path(f"{ROOT / backend.environment}.json")


def read_options(backend: Backend) -> BuildOptions:
    """Return the options with which an environment was or will be made."""
    try:
        values = json.loads(options_file(backend).read_text(encoding="utf-8"))
        return BuildOptions(bool(values["cpu"]), tuple(map(str, values["extras"])))
    except FileNotFoundError:
        return BuildOptions()
    except (ValueError, KeyError, TypeError) as error:
        raise Stop(
            f"{options_file(backend)}: it cannot be read ({error}); delete it and run `duet setup` again"
        ) from None


def write_options(backend: Backend, options: BuildOptions) -> None:
    """Keep the options of an environment; those of the default need no file."""
    file = options_file(backend)
    if options == BuildOptions():
        if file.exists():
            file.unlink()
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"cpu": options.cpu, "extras": list(options.extras)}) + "\n", encoding="utf-8")


def extras_of_project() -> dict[str, list[str]]:
    """Return the requirements of each extra in pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = re.search(r"^\[project\.optional-dependencies\]\n(.*?)(?=^\[|\Z)", text, re.MULTILINE | re.DOTALL)
    found = re.findall(r"^([\w-]+) *= *\[(.*?)\] *$", section.group(1) if section else "", re.MULTILINE | re.DOTALL)
    return {name: re.findall(r"(?:^|,)\s*\"([^\"]+)\"", items, re.MULTILINE) for name, items in found}


def requirement(backend: Backend, options: BuildOptions) -> str:
    """Return what pip installs: this repository with the extras of a backend, those of the options, and dev."""
    known = extras_of_project()
    suffix = "-cpu" if options.cpu else "-cuda" if Path("/proc/driver/nvidia").exists() else ""
    extras = [extra + suffix if suffix and extra + suffix in known else extra for extra in backend.extras]
    return f".[{','.join([*extras, *(extra for extra in options.extras if extra not in extras), 'dev'])}]"


def check_extra(name: str) -> str:
    """Return the name of an extra, or stop with the nearest one."""
    return one_of("--extra", name, sorted(extras_of_project()))


def for_cpu(backend: Backend, python: str, constraints: Path, target: Path) -> Path:
    """Write constraints that select the builds for CPUs which the package index has, and return their file.

    Args:
        backend: whose packages are installed.
        python: the Python whose pip installs them.
        constraints: the tested versions.
        target: the file to write.
    """
    lines = constraints.read_text(encoding="utf-8").splitlines() if constraints.is_file() else []
    known = extras_of_project()
    packages = list(filter(None, map(parse_requirement, known.get(backend.name, ()))))
    tested = dict(line.split("==", 1) for line in lines if "==" in line and not line.startswith("#"))
    has_own = backend.name + "-cpu" in known  # a package of its own for CPUs
    if not has_own and packages and all(name in tested for name, _ in packages):
        builds = {name: cpu_builds(name, python, lowest) for name, lowest in packages}
        chosen = matching_builds({name: tested[name] for name, _ in packages}, builds)
        if chosen:
            lines = [line for line in lines if line.partition("==")[0] not in chosen]
            lines += [f"{name}=={version}" for name, version in chosen.items()]
            versions = ", ".join(f"{name} {version}" for name, version in chosen.items())
            others = [f"{name} {tested[name]}" for name in chosen if chosen[name] != f"{tested[name]}+cpu"]
            note = f"; the tested versions are {', '.join(others)}" if others else ""
            say(f"{backend.name}: builds for CPUs: {versions}{note}")
        elif sys.platform.startswith("linux"):
            missing = [name for name in builds if not builds[name]] or list(builds)
            say(
                f"{backend.name}: the package index has no build for CPUs of {' and '.join(missing)} that fits; "
                "the plain build is installed, whose CUDA libraries stay unused"
            )
    target.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return target


def matching_builds(tested: dict[str, str], builds: dict[str, list[str]]) -> dict[str, str] | None:
    """Return a build for CPUs of each package, of versions that belong together, or None.

    The tested versions are taken if all have such builds. Otherwise they are the newest whose minor versions differ
    from the tested ones by the same number, as those of torchvision and torch do: a build of one does not load with a
    build of the other for CUDA.
    """
    exact = {name: f"{version}+cpu" for name, version in tested.items()}
    if all(exact[name] in builds[name] for name in tested):
        return exact
    first, *others = tested
    for candidate in builds[first]:
        step = numbers(candidate)[1] - numbers(tested[first])[1]
        chosen = {first: candidate}
        for name in others:
            fitting = [v for v in builds[name] if numbers(v)[1] == numbers(tested[name])[1] + step]
            chosen.update({name: fitting[0]} if fitting else {})
        if len(chosen) == len(tested):
            return chosen
    return None


def parse_requirement(text: str) -> tuple[str, tuple[int, ...]] | None:
    """Return the name and the lowest version of a requirement such as ``torch>=2.11``."""
    match = re.match(r"([A-Za-z][\w.-]*)>=([\d.]+)", text)
    return (match.group(1), numbers(match.group(2))) if match else None


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, for comparisons."""
    return tuple(map(int, re.findall(r"\d+", version.split("+")[0])))


def cpu_builds(name: str, python: str, lowest: tuple[int, ...]) -> list[str]:
    """Return the versions of a package that are builds for CPUs, at least `lowest`, the newest first."""
    command = [python, "-m", "pip", "index", "versions", name]
    answer = subprocess.run(command, cwd=ROOT, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, check=False).stdout
    versions = re.findall(r"[\w.]+\+cpu\b", answer.decode("utf-8", "replace"))
    return sorted({v for v in versions if numbers(v) >= lowest}, key=numbers, reverse=True)
