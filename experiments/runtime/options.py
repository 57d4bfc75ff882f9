"""The files of a configuration group by name, for applications that take an option of the group without Hydra."""

from __future__ import annotations

from typing import Any

import yaml

from diffusion_core.common.errors import one_of
from duet.layout import CONFIGS

__all__ = ["CONFIGS", "read_option"]


def read_option(group: str, name: str, what: str | None = None) -> dict[str, Any]:
    """Return the content of ``configs/GROUP/NAME.yaml``.

    Args:
        group: a folder of ``configs``.
        name: of a file in it.
        what: what the name stands for in an error; None is the group.

    Raises:
        DuetError: if there is no such file; it suggests the most similar name.

    Example:
        >>> read_option("sampler", "ddim")["steps"]
        50
    """
    files = {path.stem: path for path in (CONFIGS / group).glob("*.yaml")}
    if name not in files:
        raise one_of(what or group, name, sorted(files))
    return yaml.safe_load(files[name].read_text(encoding="utf-8"))
