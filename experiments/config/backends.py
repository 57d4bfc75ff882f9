"""What the files in configs/backend say of each backend; the reports take its title and colours from here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from experiments.config.safe_yaml import check_yaml
from experiments.runtime.options import CONFIGS

__all__ = ["BackendInfo", "read_backends"]


@dataclass(frozen=True)
class BackendInfo:
    """A backend as the reports show it.

    Args:
        name: as in ``backend=NAME``.
        title: the name for people.
        colour: ``#rrggbb`` for the themes "light" and "dark"; a report chooses colours for a backend without any.
    """

    name: str
    title: str
    colour: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> BackendInfo:
        """Return the description in the group `backend` of a configuration."""
        return cls(options["name"], options.get("title") or options["name"], options.get("colour") or {})


def read_backends() -> dict[str, BackendInfo]:
    """Return every backend of configs/backend by its name."""
    files = sorted((CONFIGS / "backend").glob("*.yaml"))
    infos = [BackendInfo.from_options(yaml.safe_load(check_yaml(path))) for path in files]
    return {backend.name: backend for backend in infos}
