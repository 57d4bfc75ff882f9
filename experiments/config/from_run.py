"""Start a command from an earlier run or import: ``from=RUN``.

The configuration of RUN takes the place of the command's defaults, and only what is typed changes it. RUN is a run
directory, or one of its checkpoints; an import has a configuration too. ``from=RUN`` becomes the key ``from_run``, as
``from`` is a reserved word of Python, and a primary configuration ``COMMAND_from_run`` for Hydra: that of the command,
with the groups and values of RUN in its defaults list. So Hydra composes everything else as it always does: groups,
experiments and keys on the command line come after it.

`FROM` says by command which groups and values it takes from a run, and which of its keys is RUN itself.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from diffusion_core.common.errors import DuetError
from diffusion_core.common.paths import similar_path
from diffusion_core.common.registry import complete_options
from diffusion_core.optim import OPTIMISERS
from diffusion_core.runs.checkpoint import list_checkpoints
from diffusion_core.training.targets import METHODS
from experiments.config.arguments import unquote
from experiments.config.safe_yaml import read_config
from experiments.config.schema import OWN_MODEL, SCHEMAS
from experiments.config.suggest import RENAMED_KEYS
from experiments.runtime.options import CONFIGS
from experiments.sampling.plans import GUIDANCE_OPTIONS, shared_options

__all__ = ["FROM", "FromRun", "command_name", "describe_start", "run_configuration", "use_run", "with_present_names"]

_SUFFIX = "_from_run"  # of the primary configuration; its groups have the option `from_run`
_OPTION = "from_run"


@dataclass(frozen=True)
class FromRun:
    """What a command takes from a run.

    Args:
        path_key: the key that gets the path of the run; None if only its configuration matters.
        groups: configuration groups.
        values: keys that belong to no group.
    """

    path_key: str | None
    groups: tuple[str, ...] = ()
    values: tuple[str, ...] = ()


FROM: Mapping[str, FromRun] = {
    "train": FromRun(
        "resume",
        ("data", "model", "process", "objective", "sampler", "optimiser", "ema", "trainer", "features", "metrics"),
        ("seed", "precision", "lr", "sample", "validation", "sets", "confidence"),
    ),
    "sample": FromRun("checkpoint", values=("precision",)),
    "edit": FromRun("checkpoint", ("data",), ("precision",)),
    "gallery": FromRun("checkpoint", values=("precision",)),
    "evaluate": FromRun("samples", ("data", "features"), ("precision",)),
    "export_weights": FromRun("checkpoint"),
    "reconstruct_ema": FromRun("run"),
    "inspect": FromRun(None, ("data",)),
    "networks": FromRun(None, ("model",)),
}
_SAMPLING = ("train", "sample", "edit")  # have a group `sampler`
_GUIDANCE = "guidance_of_run"  # the group that keeps the guidance of a run for another sampler
# `evaluate` measures samples; with one of these groups, it measures the checkpoint.
_OF_CHECKPOINT = ("likelihood", "accuracy", "loss")


def use_run(arguments: Sequence[str], command: str) -> tuple[list[str], str]:
    """Prepare Hydra for ``from=RUN``.

    Args:
        arguments: of the command line.
        command: whose configuration is composed.

    Returns:
        The arguments for Hydra, and the name of the primary configuration: that of the command itself without a run.

    Raises:
        DuetError: if the command cannot start from a run, or RUN has no configuration.
    """
    typed = [argument for argument in arguments if _key(argument) in ("from", _OPTION)]
    if not typed:
        return list(arguments), command
    if command not in FROM:
        raise DuetError(f"from: {command} does not start from a run; these commands do: {', '.join(FROM)}")
    value = _value(typed[-1])
    if not value:
        raise DuetError(f"from: no run was given; it is the directory of a run or an import, as in {command} from=RUN")
    is_one = Path(value).expanduser().exists() or not {"-m", "--multirun"} & set(arguments)
    first = value if is_one else value.split(",")[0]
    # Where it was typed: Hydra wants all keys in one place, before or after its flags.
    place = len(arguments) - 1 - list(reversed(arguments)).index(typed[-1])
    key = f"{_OPTION}={typed[-1].partition('=')[2]}"
    prepared = [key if k == place else word for k, word in enumerate(arguments) if k == place or word not in typed]
    _register(Path(first).expanduser(), command, [word for word in prepared if word != key])
    return prepared, command + _SUFFIX


def command_name(config_name: str) -> str:
    """Return the command that a primary configuration belongs to."""
    return config_name.removesuffix(_SUFFIX)


def describe_start(cfg: DictConfig, command: str, typed: Sequence[str]) -> str:
    """Return a line on what a configuration took from a run and what was typed."""
    taken, own = FROM[command], run_configuration(cfg[_OPTION])
    names = {
        "data": OmegaConf.select(cfg, "data.name"),
        "model": OmegaConf.select(cfg, "model.architecture"),
        "process": f"{OmegaConf.select(cfg, 'process.prediction')} on {OmegaConf.select(cfg, 'process.schedule.name')}",
        "sampler": OmegaConf.select(cfg, "sampler.name"),
    }
    groups = {_key(override) for override in typed}
    present = [key for key in (*taken.groups, *taken.values) if own.get(key) is not None and key not in groups]
    parts = [f"{key} {names[key]}" if names.get(key) else key for key in present]
    paths = ("checkpoint", "samples") if command == "evaluate" else (taken.path_key,)
    parts = [f"{key}={cfg[key]}" for key in paths if key and cfg.get(key)] + parts
    if "sampler" in groups:
        parts += [f"sampler.{key}={cfg.sampler[key]}" for key in _guidance_to_keep(own, command, typed)]
    changed = [override for override in typed if _key(override) != _OPTION and override != f"model={OWN_MODEL}"]
    return f"from {cfg[_OPTION]}: {', '.join(parts)}; typed: {' '.join(changed) if changed else 'nothing else'}"


def run_configuration(path: str | Path) -> dict[str, Any]:
    """Return the configuration of a run or an import with the present names of its keys.

    Args:
        path: a run directory, its folder of checkpoints, or one of its checkpoints.

    Raises:
        DuetError: if there is no run, or its configuration cannot be read.
    """
    path = Path(path)
    for directory in (path, path.parent, path.parent.parent):
        if (directory / "config.yaml").is_file():
            return with_present_names(read_config(directory / "config.yaml"))
        if directory == path and not path.exists():
            break
    if not path.exists():
        raise DuetError(
            f"from: {str(path)!r} does not exist; give the directory of a run or an import{similar_path(path)}"
        )
    if list_checkpoints(path / "checkpoints"):
        raise DuetError(
            f"from: {path} has checkpoints but no config.yaml, as imports of earlier versions do; import it again, or "
            f"name the network and the process, and use resume={path}"
        )
    offer = ""
    if (path / "model_index.json").is_file():
        offer = (
            f"; it is a pipeline of diffusers: import_weights source=diffusers path={shlex.quote(str(path))} out=DIR"
        )
    raise DuetError(f"from: {path} has no config.yaml, so it is neither a run nor an import{offer}")


def _register(run: Path, command: str, typed: Sequence[str]) -> None:
    """Store the primary configuration of a command that starts from `run`, and the options of its groups."""
    taken, config, store = FROM[command], run_configuration(run), ConfigStore.instance()
    primary = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{command}.yaml"))
    groups = [group for group in taken.groups if config.get(group)]
    # Of data that Python code passed as an object, nothing says how to load them.
    if "data" in groups and "options" not in config["data"]:
        groups.remove("data")
    for group in groups:
        store.store(group=group, name=_OPTION, node=_group_node(group, config[group]))
    if own := config.get("network"):
        _check_network(own, run, command, typed)
        chosen_model = {"model": OWN_MODEL}
    else:
        chosen_model = {}
    # An import knows no data: they must be named, rather than be the data of the default configuration.
    chosen = {group: _OPTION if group in groups else "???" for group in taken.groups if group in (*groups, "data")}
    chosen |= chosen_model if "model" in taken.groups else {}
    guidance = _guidance_to_keep(config, command, typed)
    if guidance:
        store.store(group=_GUIDANCE, name=_OPTION, node={"sampler": guidance}, package="_global_")
    backend = (config.get("backend") or {}).get("name")
    if backend and (CONFIGS / "backend" / f"{backend}.yaml").is_file():
        chosen["backend"] = backend  # its device and its other options describe the machine, not the run
    defaults = [_with_choice(entry, chosen) for entry in primary["defaults"]]
    if guidance:  # after the sampler, and before an experiment, which may have guidance of its own
        place = next(k for k, entry in enumerate(defaults) if isinstance(entry, dict) and "sampler" in entry)
        defaults.insert(place + 1, {_GUIDANCE: _OPTION})
    primary["defaults"] = defaults
    primary |= {key: config[key] for key in taken.values if config.get(key) is not None}
    primary |= _paths(run, command, {_key(argument) for argument in typed}, typed, primary)
    store.store(name=command + _SUFFIX, node=primary)


def _check_network(own: Any, run: Path, command: str, typed: Sequence[str]) -> None:
    """Refuse to run code that a run names and nobody typed."""
    has_key = "network" in {field.name for field in dataclasses.fields(SCHEMAS[command])}
    has_key = has_key and (command != "evaluate" or _evaluates_checkpoint(typed))
    if has_key and not any(_key(argument) == "network" for argument in typed):
        raise DuetError(
            f"network: {run} trained an own network, {own}; a run may come from elsewhere, so its code is run only if "
            f"you name it: add network={own if isinstance(own, str) else 'my_file:build'}"
        )


def _guidance_to_keep(config: Mapping[str, Any], command: str, typed: Sequence[str]) -> dict[str, Any]:
    """Return the options of guidance that a run samples with, if another sampler is typed, which would reset them.

    They belong to the network and not to the method: a sampler is exchanged, the guidance stays.
    """
    named = [_value(argument) for argument in typed if _key(argument) == "sampler"]
    if command not in _SAMPLING or not named or named[-1] in ("null", ""):
        return {}
    own, defaults = config.get("sampler") or {}, shared_options()
    return {key: own[key] for key in GUIDANCE_OPTIONS if own.get(key, defaults[key]) != defaults[key]}


def _paths(run: Path, command: str, keys: set[str], typed: Sequence[str], primary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a command that name the run."""
    key = FROM[command].path_key
    if command == "evaluate" and _evaluates_checkpoint(typed):
        key = "checkpoint"
    if key is None:
        return {}
    named = {key: str(run)}
    resume = [_value(argument) for argument in typed if _key(argument) == "resume"]
    if command == "train" and resume and resume[-1] in ("latest", "auto") and "hydra.run.dir" not in keys:
        # To resume the run itself, in its own directory.
        hydra = dict(primary["hydra"])
        named["hydra"] = hydra | {"run": {"dir": str(run)}}
    return named


def _evaluates_checkpoint(typed: Sequence[str]) -> bool:
    return any(_key(argument) in _OF_CHECKPOINT and _value(argument) != "none" for argument in typed)


def _with_choice(entry: Any, chosen: Mapping[str, str]) -> Any:
    """Return an entry of a defaults list with the option that a run has for its group."""
    if not isinstance(entry, dict) or len(entry) != 1:
        return entry
    (group,) = entry
    name = group.removeprefix("optional ")
    return {group: chosen[name]} if name in chosen else entry


def _group_node(group: str, values: Any) -> dict[str, Any]:
    """Return the option of a group with the values of a run; networks keep the types of their architecture."""
    if group == "model" and "architecture" in values:
        defaults = [{"/architecture@_here_": values["architecture"]}, "_self_"]
        return {"defaults": defaults, **values}
    if group == "ema" and "profiles" in values:  # as a run that Python code started writes it
        first, *extra = values["profiles"]
        return first | {"extra": extra, "snapshot_images": values.get("snapshot_images", 0)}
    if group == "objective":  # with the options that Python code did not give
        teacher = {key: values.get(key) for key in ("teacher", "teacher_weights", "start")}
        method = METHODS.get(values.get("name", ""))
        takes = method is not None and (method.needs_teacher or method.takes_teacher)
        defaults = (
            {} if method is None else {k: list(v) if isinstance(v, tuple) else v for k, v in method().options.items()}
        )
        return defaults | (teacher if takes else {}) | dict(values)
    if group == "optimiser":  # with the keys that earlier versions did not have
        return complete_options(OPTIMISERS, {"name": "adam"} | dict(values))
    return dict(values)


def with_present_names(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with the keys of earlier versions renamed."""
    config = OmegaConf.create(config)
    for old, new in RENAMED_KEYS.items():
        if "=" not in new and "." in old and OmegaConf.select(config, old) is not None:
            OmegaConf.update(config, new, OmegaConf.select(config, old), merge=False)
            parent, _, name = old.rpartition(".")
            del OmegaConf.select(config, parent)[name]
    return OmegaConf.to_container(config)


def _key(argument: str) -> str:
    return argument.partition("=")[0].lstrip("+~")


def _value(argument: str) -> str:
    value = argument.partition("=")[2].strip()
    return unquote(value)
