"""What Hydra accepts and Duet refuses: names that do not exist, and keys that nobody reads.

Hydra leaves out an ``optional`` group whose choice does not exist, adds any key that has a plus sign, and warns about a
search path that does not exist. Each would run something else than was typed.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.common.paths import similar_path
from experiments.config.schema import SCHEMAS
from experiments.config.suggest import key_hint
from experiments.sampling.plans import check_levels

__all__ = ["check_composed", "expand_home", "missing_files_named"]


def check_composed(cfg: DictConfig, command: str) -> None:
    """Refuse a composed configuration that ignores something that was typed.

    Args:
        cfg: the configuration of the command, without Hydra's own part.
        command: its name.

    Raises:
        DuetError: naming the key, the group or the folder, and the nearest one that exists.
    """
    for key in _unknown_keys(cfg, command):
        raise DuetError(f"{key}: there is no such key.{key_hint(key, command)}")
    if HydraConfig.initialized():
        hydra = HydraConfig.get()
        check_sources(hydra.runtime.config_sources)
        _check_truths(cfg, hydra)
        _check_choices(hydra)
        check_levels(
            {key.removeprefix("sampler."): value for key, value in _typed(hydra) if key.startswith("sampler.")}
        )


def check_sources(sources: Any) -> None:
    """Refuse a folder of configurations that does not exist.

    Args:
        sources: `hydra.runtime.config_sources`, each with `schema`, `path` and `provider`.
    """
    for source in sources:
        if source["schema"] == "file" and source["provider"] != "main" and not Path(source["path"]).is_dir():
            raise DuetError(f"hydra.searchpath: {source['path']!r} was given; there is no such folder")


def expand_home(node: Any) -> None:
    """Replace ``~`` at the start of every text of a configuration by the home directory."""
    if not OmegaConf.is_config(node):
        return
    for key in range(len(node)) if OmegaConf.is_list(node) else list(node):
        child = node._get_node(key)
        if OmegaConf.is_config(child):
            expand_home(child)
        elif child is not None and isinstance(text := child._value(), str) and text.startswith("~"):
            child._set_value(os.path.expanduser(text))


@contextmanager
def missing_files_named(cfg: DictConfig) -> Iterator[None]:
    """Name the key and the nearest path in the error of a file that does not exist."""
    try:
        yield
    except DuetError as error:
        found = re.match(r"(?:image ')?(.*?)'?:? (?:it )?cannot be read[ :(].*No such file or directory\)?", str(error))
        for key, value in _texts(cfg, "") if found else ():
            path = os.path.expanduser(value)
            if (found.group(1) == path or found.group(1).startswith(f"{path}{os.sep}")) and not Path(path).exists():
                rest = similar_path(path) or str(error)[found.end() :]
                raise DuetError(f"{key}: {path!r} was given, which does not exist{rest}") from error
        raise


def _texts(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield every text of a configuration with its key; those in a list have the key of the list."""
    if not OmegaConf.is_config(node) or node._is_none() or node._is_missing() or node._is_interpolation():
        return
    for key in range(len(node)) if OmegaConf.is_list(node) else list(node.keys()):
        child = node._get_node(key)
        full = path if OmegaConf.is_list(node) else f"{path}.{key}" if path else str(key)
        if OmegaConf.is_config(child):
            yield from _texts(child, full)
        elif child is not None and isinstance(value := child._value(), str) and value and "${" not in value:
            yield full, value


def _unknown_keys(cfg: DictConfig, command: str) -> Iterator[str]:
    """Yield the keys that the schema of the command does not have, which a plus sign has added."""
    if command in SCHEMAS:
        known = {field.name for field in dataclasses.fields(SCHEMAS[command])}
        yield from (str(key) for key in cfg if key not in known)
    yield from (key for key in _added_keys(cfg, "") if not key.startswith("model."))  # the network refuses its own


def _added_keys(node: DictConfig, path: str) -> Iterator[str]:
    owner = node._metadata.object_type
    known = {field.name for field in dataclasses.fields(owner)} if dataclasses.is_dataclass(owner) else None
    for key in node:
        full = f"{path}{key}"
        if path and known is not None and key not in known:
            yield full
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not (child._is_none() or child._is_missing() or child._is_interpolation()):
            yield from _added_keys(child, f"{full}.")


def _check_truths(cfg: DictConfig, hydra: HydraConf) -> None:
    """Refuse numbers other than 0 and 1 for true and false, which OmegaConf takes for true."""
    for key, value in _typed(hydra):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and value not in (0, 1) and isinstance(OmegaConf.select(cfg, key), bool):
            raise DuetError(f"{key}: {value} was given; it must be true or false")


def _typed(hydra: HydraConf) -> Iterator[tuple[str, Any]]:
    """Yield every key that was typed with its value."""
    for override in OverridesParser.create().parse_overrides(list(hydra.overrides.task)):
        if not override.is_delete():
            yield override.key_or_group, override.value()


def _check_choices(hydra: HydraConf) -> None:
    """Refuse the choice of an option that its group does not have; Hydra leaves it out if the group is optional."""
    if not GlobalHydra.instance().is_initialized():  # a job that another process composed
        return
    loader, overrides = GlobalHydra.instance().config_loader(), hydra.overrides
    for override in OverridesParser.create().parse_overrides(list(overrides.task)):
        group, value = override.key_or_group, override.value()
        names = value if isinstance(value, list) else [value]
        if override.is_delete() or "." in group or not all(isinstance(name, str) for name in names):
            continue
        options = loader.get_group_options(group, ObjectType.CONFIG, hydra.job.config_name, list(overrides.hydra))
        for name in names:
            if options and "/" not in name and name.removesuffix(".yaml") not in options:
                raise one_of(group, name, [option for option in options if option != "from_run"])
