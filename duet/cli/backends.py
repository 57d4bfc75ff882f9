"""The backends, as the files in configs/backend describe them.

Hydra reads these files as YAML. Here, before PyYAML is installed, `read_keys` reads the lines `key: value` at their top
level; a test compares the two. The keys that the command `duet` uses:

    title         the name for people
    environment   folder of the virtual environment, relative to the repository
    python        an interpreter to use instead of that environment
    packages      the first is that which the backend needs; where Duet was installed by pip, a Python may not have it
    extras        the extras of pyproject.toml that the environment installs, separated by commas
    download      the size of these packages, for people
    parallel      the option of group `parallel` that joins several processes

An extra named X gives way to X-cuda where pyproject.toml has both and the machine has an NVIDIA driver.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from duet.cli.terminal import Stop, one_of
from duet.layout import CONFIGS, ROOT

__all__ = ["CONFIGS", "ROOT", "Backend", "backends", "get_backend", "read_keys"]


class Backend(NamedTuple):
    """A backend, as its file in configs/backend describes it; the attributes are described in the module docstring.

    `package` is the first of `packages`.
    """

    name: str
    title: str
    environment: str
    python: str
    package: str
    extras: tuple[str, ...]
    download: str
    parallel: str


def read_keys(path: Path) -> dict[str, str]:
    """Read the lines `key: value` of a YAML file that are not indented; null and nested values become "".

    A value is plain text or text in quotes, and may be followed by a comment.
    """
    keys = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.match(r"([A-Za-z_][\w-]*):(?:\s+(.*))?$", line)
        if not match:
            continue
        value = (match.group(2) or "").strip()
        quoted = re.match(r"(['\"])(.*?)\1\s*(#.*)?$", value)
        value = quoted.group(2) if quoted else re.split(r"(?:^|\s)#", value)[0].strip()
        keys[match.group(1)] = "" if value in ("null", "~") and not quoted else value
    return keys


def backends(*folders: Path) -> OrderedDict[str, Backend]:
    """Return the backends by name: first the default of configs/train.yaml, then the others by name.

    Args:
        folders: other folders of configurations, whose backends are added.
    """
    files = {path.stem: path for folder in (*folders, CONFIGS) for path in (folder / "backend").glob("*.yaml")}
    if not files:
        raise Stop(f"{CONFIGS / 'backend'}: the folder has no .yaml file, so there is no backend", 1)
    default = default_backend("train")
    names = sorted(files, key=lambda name: (name != default, name))
    return OrderedDict((name, read_backend(files[name])) for name in names)


def read_backend(path: Path) -> Backend:
    """Return the backend that a file describes."""
    name, keys = path.stem, read_keys(path)
    return Backend(
        name=name,
        title=keys.get("title") or name,
        environment=keys.get("environment") or f".venvs/{name}",
        python=keys.get("python", ""),
        package=next(iter(re.findall(r"[\w.]+", keys.get("packages", ""))), ""),
        extras=tuple(filter(None, re.split(r"[,\s]+", keys.get("extras") or name))),
        download=keys.get("download", ""),
        parallel=keys.get("parallel", ""),
    )


def get_backend(name: str, *folders: Path) -> Backend:
    """Return the backend of that name, or stop; `folders` are those of `backends`."""
    known = backends(*folders)
    titles = {backend.title.lower(): backend.name for backend in known.values()}
    return known[one_of("backend", name, known, titles.get(name.lower()))]


def default_backend(command: str) -> str | None:
    """Return the backend that configs/COMMAND.yaml chooses, or None if it chooses none."""
    return default_option(CONFIGS / f"{command}.yaml", "backend")


def default_option(config: Path, group: str) -> str | None:
    """Return the option of a group in the defaults list of a configuration, or None."""
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    match = re.search(rf"^\s*- {group}: *(\w+)", text, re.MULTILINE)
    return match.group(1) if match and match.group(1) != "null" else None
