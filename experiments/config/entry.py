"""How every command starts: Hydra composes the configuration; a user's mistake is one line and exit code 2."""

from __future__ import annotations

import errno
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.runs.run_directory import exclusive_directory
from diffusion_core.runtime import signals
from experiments.config.build import process_group
from experiments.config.schema import register
from experiments.config.suggest import check_renamed, nearest_key, register_options
from experiments.runtime.processes import main_process_prints

__all__ = ["CONFIGS", "Config", "command", "one_line_errors"]

# A composed configuration. Only this package and the commands handle one.
Config = DictConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

# The disk or the quota is full, or a file exceeds the largest size allowed; such an error does not name the file.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def command(
    name: str,
    result: tuple[str, str] | None = None,
    options: Mapping[str, Mapping[str, Callable[..., Any]]] | None = None,
) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make a function of a configuration into a `main` that reads ``configs/<name>.yaml`` and the command line.

    `main.task` is the function itself, for callers that compose a configuration in another way.

    Args:
        name: of the configuration file.
        result: the last file that the command writes into the directory `out`, and what it holds, for the error
            message. The directory is locked while the command runs, and refused if it has such a file already.
        options: by configuration group, the functions that the command selects by name; their arguments are offered
            when somebody misspells a key.
    """
    for group, functions in (options or {}).items():
        register_options(group, functions)

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(task)
        def guarded(cfg: DictConfig) -> Any:
            # Inside Hydra, which adds lines to an exception that reaches it.
            with one_line_errors(), main_process_prints(process_group(cfg)), _claimed(cfg, result):
                return task(cfg)

        @functools.wraps(task)
        def main() -> None:
            register()
            # Makes Hydra raise its errors instead of printing a traceback, so that `one_line_errors` prints them.
            os.environ.setdefault("HYDRA_FULL_ERROR", "1")
            with one_line_errors(), signals.raise_on_signal():
                check_renamed(sys.argv[1:])
                hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(guarded)()

        main.task = guarded
        return main

    return decorate


@contextmanager
def _claimed(cfg: DictConfig, result: tuple[str, str] | None) -> Iterator[None]:
    """Lock the output directory; worker processes other than the main one write nothing and lock nothing."""
    if result is None:
        yield
        return
    file, what = result
    with exclusive_directory(cfg.out) if process_group(cfg).is_main_process else nullcontext():
        if Path(cfg.out, file).exists():
            raise DuetError(f"out: {cfg.out} holds {what} already; give another directory")
        yield


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a user's mistake into one line and exit code 2; a defect keeps its traceback."""
    try:
        yield
    except DuetError as error:
        _exit(str(error), 2)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        _exit(_one_line(error), 2)
    except OSError as error:  # Hydra makes the output directory before the command runs
        if error.filename is None and error.errno not in _FULL:
            raise
        what = f"{error.filename}: it cannot be read or written" if error.filename else "a file cannot be written"
        _exit(f"{what} ({error.strerror})", 2)
    except signals.Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.code)
    except KeyboardInterrupt:
        _exit("interrupted", 130)


def _exit(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _one_line(error: Exception) -> str:
    """Return a message of Hydra, OmegaConf or PyYAML as one line, with the nearest name for an unknown one."""
    texts, cause = [], error
    while cause is not None:
        if isinstance(cause, DuetError):  # raised by an object that Hydra constructed, and wrapped by Hydra
            return str(cause)
        if isinstance(cause, MissingConfigException) and cause.missing_cfg_file:
            group, _, name = cause.missing_cfg_file.rpartition("/")
            # Hydra does not list the options of a group of which several are selected.
            if available := cause.options or sorted(path.stem for path in (CONFIGS / group).glob("*.yaml")):
                return str(one_of(group, name, available))
        texts.append(str(cause))
        cause = cause.__cause__
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(("object_type=", "reference_type=", "To append to your"))]
    message = "; ".join(dict.fromkeys(kept))
    if missing := re.search(r"Missing mandatory value: ([\w.]+)", message):
        return f"{missing.group(1)}: no value was given; add {missing.group(1)}=VALUE to the command"
    if unknown := re.search(r"Key '([^']+)' (?:is not in struct|not in)", message):
        full = re.search(r"full_key: ([\w.\[\]]+)", message)
        near = nearest_key(full.group(1) if full else unknown.group(1))
        message += f". Did you mean {near}?" if near else ""
    return message
