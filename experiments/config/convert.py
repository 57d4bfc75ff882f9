"""A composed configuration as plain Python data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffusion_core.common.errors import DuetError

__all__ = ["missing_value", "plain", "to_yaml"]

# What the value of a key stands for, as the help of the commands writes it.
_VALUES = {"bundle": "RUN/non_finite/N", "checkpoint": "RUN", "out": "DIR", "path": "PATH", "run": "RUN"}


def missing_value(key: str) -> DuetError:
    """Return the error for a key that has no value."""
    return DuetError(f"{key}: no value was given; add {key}={_VALUES.get(key, 'VALUE')} to the command")


def plain(config: Any) -> Any:
    """Return a part of a configuration as dictionaries, lists and numbers, with interpolations resolved.

    Raises:
        DuetError: if a mandatory value is missing.
    """
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise missing_value(missing[0])
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


def to_yaml(config: DictConfig, choices: Mapping[str, Any] | None = None) -> str:
    """Return a configuration as YAML text with interpolations resolved, as a run directory keeps it.

    Args:
        config: the configuration, which is not changed.
        choices: by key, values that take the place of those that were left open.
    """
    if choices:
        config = config.copy()
        for key, value in choices.items():
            OmegaConf.update(config, key, value, merge=False)
    return OmegaConf.to_yaml(config, resolve=True)
