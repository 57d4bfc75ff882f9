"""How every command starts: Hydra composes the configuration; a user's mistake is one line and exit code 2."""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from diffusion_core.common.errors import DuetError
from diffusion_core.runs.run_directory import exclusive_directory, holds_run
from diffusion_core.runtime import signals
from diffusion_core.runtime.heartbeat import heartbeat
from experiments.config.arguments import read_arguments
from experiments.config.build import process_group
from experiments.config.composed import check_composed, expand_home, missing_files_named
from experiments.config.from_run import describe_start, use_run
from experiments.config.help import help_text
from experiments.config.hydra_errors import describe_error
from experiments.config.output_dirs import register_output_directories
from experiments.config.schema import register
from experiments.config.suggest import register_options
from experiments.runtime.options import CONFIGS
from experiments.runtime.processes import main_process_prints

__all__ = ["CONFIGS", "Config", "command", "one_line_errors"]

# A composed configuration. Only this package and the commands handle one.
Config = DictConfig

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
            with one_line_errors(name), missing_files_named(cfg):
                check_composed(cfg, name)
                expand_home(cfg)
                with main_process_prints(process_group(cfg)), _claimed(cfg, result, name):
                    if cfg.get("from_run"):
                        print(describe_start(cfg, name, HydraConfig.get().overrides.task), flush=True)
                    return task(cfg)

        @functools.wraps(task)
        def main() -> None:
            if os.getcwd() not in sys.path:  # last, where a user's folder `experiments` does not hide this package
                sys.path.append(os.getcwd())
            register()
            register_output_directories()
            # Makes Hydra raise its errors instead of printing a traceback, so that `one_line_errors` prints them.
            os.environ.setdefault("HYDRA_FULL_ERROR", "1")
            if {"-h", "--help"} & set(sys.argv[1:]):
                with one_line_errors(name):
                    words = [word for word in sys.argv[1:] if "=" not in word and not word.startswith("-")]
                    print(help_text(name, sys.modules[task.__module__].__doc__ or "", words))
                return
            # Whatever says nothing by itself, such as reading a large folder, is announced as long as it takes; the
            # runs of a sweep announce themselves.
            sweeps = {"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(sys.argv[1:])
            sign_of_life = nullcontext() if sweeps else heartbeat(f"{name}: at work", says_end=False)
            with one_line_errors(name), signals.raise_on_signal(), sign_of_life:
                sys.argv[1:], config_name = use_run(read_arguments(sys.argv[1:], name), name)
                hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(guarded)()

        main.task = guarded
        return main

    return decorate


@contextmanager
def _claimed(cfg: DictConfig, result: tuple[str, str] | None, command: str) -> Iterator[None]:
    """Lock the output directory; worker processes other than the main one write nothing and lock nothing."""
    if result is None:
        yield
        return
    file, what = result
    if holds_run(cfg.out):
        raise DuetError(
            f"out: {cfg.out} holds a run, whose config.yaml and environment.json would be overwritten; choose another "
            f"out=DIR, such as {Path(cfg.out) / command}"
        )
    with exclusive_directory(cfg.out) if process_group(cfg).is_main_process else nullcontext():
        if Path(cfg.out, file).exists():
            raise DuetError(f"out: {cfg.out} already contains {what}; choose another out=DIR, or delete it")
        yield


@contextmanager
def one_line_errors(command: str | None = None) -> Iterator[None]:
    """Turn a user's mistake into one line and exit code 2; a defect keeps its traceback.

    An unknown key is compared with those of `command`, if its name is given.
    """
    try:
        yield
    except DuetError as error:
        _exit(str(error), 2)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        _exit(describe_error(error, command, CONFIGS), 2)
    except BrokenPipeError:
        # The reader of the output has gone, as `head` does. What is still buffered would raise again at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
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
