"""Bounded reading of YAML files that somebody else may have written.

The text is checked before anything is made of it: nested aliases turn ten lines into gigabytes, and a tag names a class
to construct. The configuration that a run directory keeps is resolved, so interpolations, which may read the
environment, are refused too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from diffusion_core.files.safe_read import file_errors, read_text

__all__ = ["check_text", "check_yaml", "parse_config", "read_config"]

_MAX_BYTES, _MAX_DEPTH, _MAX_NODES = 1 << 20, 50, 100_000


def read_config(path: str | Path) -> dict[str, Any]:
    """Return the configuration in a ``config.yaml`` that a run wrote, as plain data.

    Raises:
        DuetError: if the file is missing or corrupted, or holds something that a run does not write.
    """
    with file_errors(path):
        text = read_text(path, _MAX_BYTES)
    return parse_config(text, path)


def parse_config(text: str, path: str | Path) -> dict[str, Any]:
    """Return the configuration in a text that a run wrote, as plain data; errors name `path`.

    Raises:
        DuetError: as `read_config`.
    """
    check_text(text, path)
    with file_errors(path, "it is no configuration of a run"):
        if "${" in text:
            raise ValueError("it has an interpolation; a run writes its values")
        config = OmegaConf.create(text)
        if not isinstance(config, DictConfig):
            raise TypeError("it is no mapping")
        return OmegaConf.to_container(config)


def check_yaml(path: str | Path) -> str:
    """Return the text of a YAML file without tags, after checking its size, depth and length with aliases expanded.

    Raises:
        DuetError: if the file has a tag or exceeds a bound.
    """
    with file_errors(path, "it is no plain YAML"):
        text = read_text(path, _MAX_BYTES)
    return check_text(text, path)


def check_text(text: str, path: str | Path) -> str:
    """Return a text, which stands in the file `path`, after the same check."""
    with file_errors(path, "it is no plain YAML"):
        if len(text) > _MAX_BYTES:
            raise ValueError(f"it is longer than {_MAX_BYTES} bytes")
        counts, names, sizes = [0], [""], {}
        for event in yaml.parse(text, yaml.SafeLoader):
            if getattr(event, "tag", None) is not None:
                raise ValueError(f"it has the tag {event.tag!r}")
            if isinstance(event, yaml.CollectionStartEvent):
                counts.append(1)
                names.append(event.anchor or "")
            elif isinstance(event, yaml.CollectionEndEvent):
                sizes[names.pop()] = (size := counts.pop())
                counts[-1] += size
            elif isinstance(event, yaml.AliasEvent):
                counts[-1] += sizes.get(event.anchor, 1)
            else:
                counts[-1] += 1
            if len(counts) > _MAX_DEPTH:
                raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
            if counts[-1] > _MAX_NODES:
                raise ValueError(f"it has more than {_MAX_NODES} entries")
        return text
