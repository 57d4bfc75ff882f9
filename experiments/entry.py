"""How every entry point starts: Hydra composes the configuration, and a mistake is one line and exit code 2."""

from __future__ import annotations

import difflib
import errno
import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.config_source import ConfigSource
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.data import DATASETS
from diffusion_core.diffusion.continuous import CONTINUOUS
from diffusion_core.diffusion.loss_weighting import WEIGHTINGS
from diffusion_core.diffusion.schedule import SCHEDULES
from diffusion_core.diffusion.timestep_sampling import TIMESTEP_SAMPLERS
from diffusion_core.files.safe_read import file_errors
from diffusion_core.metrics.evaluate import METRICS, metric_options
from diffusion_core.optim import PROFILES
from diffusion_core.runs.run_directory import exclusive_directory
from diffusion_core.runtime import signals
from diffusion_core.sampling import SAMPLERS
from experiments.processes import one_speaks, world_of
from experiments.schema import MODELS, SCHEMAS, register
from experiments.stored import check_yaml
from features import FEATURES

__all__ = ["entry", "plain"]

# No room on the disk, in the quota, or in the largest file that is allowed; writing does not say which file.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

CONFIGS = Path(__file__).resolve().parent.parent / "configs"

# Where Hydra makes what a configuration names, and what of it is trusted: the plugins, and the parts of Optuna's.
_MAKERS = ("hydra.launcher.", "hydra.sweeper.")
_MADE = ("hydra._internal.core_plugins.", "hydra_plugins.", "optuna.samplers.")
_LOGGING = ("hydra.job_logging.", "hydra.hydra_logging.")
_LOGS = re.compile(r"(logging|logging\.handlers|colorlog)\.[A-Z]\w*")


def entry(
    name: str, keeps: tuple[str, str] | None = None
) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make a task into a `main` that reads ``configs/<name>.yaml``.

    Args:
        name: of the file.
        keeps: the last file that the task writes into its directory `out`, and what that is, for people. While the
            task is done, the directory is its process's alone; one that has such a file is refused.
    """

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(task)
        def guarded(cfg: DictConfig) -> Any:
            # Hydra adds lines to an exception that reaches it.
            with _one_clear_line(), one_speaks(world_of(cfg)), _own(cfg, keeps):
                return task(cfg)

        @functools.wraps(task)
        def main() -> None:
            register()
            # Hydra then raises instead of printing a traceback of its own, and the line below is all one sees.
            os.environ.setdefault("HYDRA_FULL_ERROR", "1")
            with _one_clear_line(), signals.raise_on_signal(), _looked_at():
                hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(guarded)()

        return main

    return decorate


@contextmanager
def _own(cfg: DictConfig, keeps: tuple[str, str] | None) -> Iterator[None]:
    """Hold the directory that a task writes; a process that helps another one writes nothing and holds none."""
    if keeps is None:
        yield
        return
    file, what = keeps
    with exclusive_directory(cfg.out) if world_of(cfg).is_main_process else nullcontext():
        if Path(cfg.out, file).exists():
            raise DuetError(f"out: {cfg.out} holds {what} already; give another directory")
        yield


@contextmanager
def _looked_at() -> Iterator[None]:
    """Look at every file before Hydra reads it and at every configuration before Hydra makes anything of it.

    Duet makes nothing that a configuration names; Hydra makes its sweeper, its launcher and its callbacks, and with
    them whatever stands in their options under ``_target_``. The pickle that it can run again is refused.
    """
    flags = [word.split("=")[0] for word in sys.argv[1:] if word.startswith("--e")]  # it may be shortened
    if any("--experimental-rerun".startswith(flag) for flag in flags):
        raise DuetError("--experimental-rerun: it reads a pickle, which runs code; give the overrides of the run again")
    Plugins.instance()  # which finds what reads files
    files = SourcesRegistry.instance().resolve("file")
    read, compose = files.load_config, ConfigLoaderImpl.load_configuration

    def checked_file(source: ConfigSource, config_path: str) -> Any:
        path = Path(source.path, source._normalize_file_name(config_path))
        if path.exists():  # Hydra says what is missing, and what there is
            check_yaml(path)
        with file_errors(path, "it is no configuration"):
            return read(source, config_path)

    def checked(*given: Any, **named: Any) -> DictConfig:
        config = compose(*given, **named)
        _refuse_targets(OmegaConf.to_container(config, resolve=False))
        return config

    files.load_config, ConfigLoaderImpl.load_configuration = checked_file, checked
    try:
        yield
    finally:
        files.load_config, ConfigLoaderImpl.load_configuration = read, compose


def _refuse_targets(node: Any, path: str = "") -> None:
    """Refuse a class or function that a configuration names, but for those that sweepers and launchers are made of."""
    if isinstance(node, dict):
        for key, value in node.items():
            here = f"{path}.{key}" if path else str(key)
            made = key == "_target_" and not (here.startswith(_MAKERS) and str(value).startswith(_MADE))
            if made or (key in ("class", "()") and here.startswith(_LOGGING) and not _LOGS.fullmatch(str(value))):
                raise DuetError(f"{here}: {value!r} was given; a configuration names no class or function to call")
            _refuse_targets(value, here)
    elif isinstance(node, list):
        for place, value in enumerate(node):
            _refuse_targets(value, f"{path}[{place}]")


@contextmanager
def _one_clear_line() -> Iterator[None]:
    """Leave with one line and exit code 2 where a person gave something that does not fit; defects pass."""
    try:
        yield
    except DuetError as error:
        _leave(str(error), 2)
    except (HydraException, OmegaConfBaseException) as error:
        _leave(_one_line(error), 2)
    except OSError as error:  # Hydra makes the output directory before any task of ours runs
        if error.filename is None and error.errno not in _FULL:
            raise
        what = f"{error.filename}: it cannot be read or written" if error.filename else "a file cannot be written"
        _leave(f"{what} ({error.strerror})", 2)
    except signals.Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.code)
    except KeyboardInterrupt:
        _leave("interrupted", 130)


def plain(config: Any) -> Any:
    """A resolved part of the configuration as plain data."""
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise DuetError(f"{missing[0]}: no value was given; add {missing[0]}=VALUE to the command")
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


def _leave(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _one_line(error: Exception) -> str:
    """What Hydra and OmegaConf say, in one line, with the nearest name for one that does not exist."""
    texts, cause = [], error
    while cause is not None:
        if isinstance(cause, DuetError):  # raised by what Hydra made, which wraps it
            return str(cause)
        if isinstance(cause, MissingConfigException) and cause.missing_cfg_file:
            group, _, given = cause.missing_cfg_file.rpartition("/")
            # Of a group of which several are chosen, Hydra does not say which there are.
            if there := cause.options or sorted(path.stem for path in (CONFIGS / group).glob("*.yaml")):
                return str(one_of(group, given, there))
        texts.append(str(cause))
        cause = cause.__cause__
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(("object_type=", "reference_type=", "To append to your"))]
    message = "; ".join(dict.fromkeys(kept))
    missing = re.search(r"Missing mandatory value: ([\w.]+)", message)
    if missing:
        return f"{missing.group(1)}: no value was given; add {missing.group(1)}=VALUE to the command"
    unknown = re.search(r"Key '([^']+)' (?:is not in struct|not in)", message)
    full = re.search(r"full_key: ([\w.\[\]]+)", message)
    if unknown:
        asked = full.group(1) if full else unknown.group(1)
        near = difflib.get_close_matches(asked, _known_keys(), n=1, cutoff=0.5)
        # The key of another architecture is no misspelling.
        message += f". Did you mean {near[0]}?" if near and near[0] != asked else ""
    return message


def _known_keys() -> list[str]:
    """Every key of every schema and architecture, with its path, and every option of what is made by name."""

    def walk(node: Any, path: str) -> list[str]:
        if not OmegaConf.is_dict(node):
            return [path]
        below = [key for name in node for key in walk(node._get_node(name), f"{path}.{name}" if path else name)]
        return [path, *below]

    keys = {key for schema in SCHEMAS.values() for key in walk(OmegaConf.structured(schema), "") if key}
    keys |= {key for schema in MODELS.values() for key in walk(OmegaConf.structured(schema), "model")}
    from experiments.edit import MODES
    from experiments.evaluate import METHODS  # an entry point itself, it imports this file
    from experiments.prepare import SPLITS
    from experiments.trackers import TRACKERS

    made = {"mode": MODES, "sampler": SAMPLERS, "data.options": DATASETS, "ema": PROFILES, "split": SPLITS}
    made |= {
        "process.schedule": SCHEDULES | CONTINUOUS,
        "process.weighting": WEIGHTINGS,
        "process.timestep_sampling": TIMESTEP_SAMPLERS,
    }
    made |= {"features": FEATURES, "tracker": TRACKERS, **METHODS}
    for group, functions in made.items():
        keys |= {f"{group}.{option}" for f in functions.values() for option in inspect.signature(f).parameters}
    keys |= {f"metrics.{name}.{option}" for name, metric in METRICS.items() for option in metric_options(metric)}
    return sorted(keys)
