"""Configuration files as data, whoever wrote them.

A file is looked at before anything is made of it: an alias of an alias of an alias makes gigabytes of ten lines, and a
tag names a class to make. The configuration that a run keeps is resolved, so that it has no interpolations either,
which may read the environment.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf

from diffusion_core.files.safe_read import file_errors, read_text

__all__ = ["check_yaml", "read_config"]

_MOST_BYTES, _MOST_DEPTH, _MOST_NODES = 1 << 20, 50, 100_000


def read_config(path: str | Path) -> DictConfig:
    """The configuration in a file that a run wrote.

    Raises:
        DuetError: if it is missing, corrupt, or holds what a run does not write.
    """
    text = check_yaml(path)
    with file_errors(path, "it is no configuration of a run"):
        if "${" in text:
            raise ValueError("it has an interpolation; a run writes its values")
        config = OmegaConf.create(text)
        if not isinstance(config, DictConfig):
            raise TypeError("it is no mapping")
        return config


def check_yaml(path: str | Path) -> str:
    """The text of a YAML file that is plain and no larger, deeper or longer, its aliases written out, than one needs.

    Raises:
        DuetError: if it is something else.
    """
    with file_errors(path, "it is no plain YAML"):
        text = read_text(path, _MOST_BYTES)
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
            if len(counts) > _MOST_DEPTH:
                raise ValueError(f"it is nested more than {_MOST_DEPTH} deep")
            if counts[-1] > _MOST_NODES:
                raise ValueError(f"it has more than {_MOST_NODES} entries")
        return text
