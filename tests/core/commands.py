"""Commands as a person calls them, but in this process; and configurations as commands compose them.

A command is composed and called here through Hydra's public functions: its own `main` would compose twice, and would
configure logging, which closes the stream that TensorFlow's logger took when it was loaded. Arguments that start with a
dash go through `main`.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from diffusion_core.runtime import signals
from experiments.config.arguments import read_arguments
from experiments.config.entry import CONFIGS, one_line_errors
from experiments.config.from_run import use_run
from experiments.config.schema import register


class Called(NamedTuple):
    """The exit code of a command, and what it printed."""

    code: int
    out: str
    err: str


def enter(module: str, *words: str) -> None:
    """Run a command of `experiments`, or of another package by its full name; its output and its exit pass through."""
    path = module if "." in module else f"experiments.{module}"
    main = importlib.import_module(path).main
    with mock.patch.object(sys, "argv", [path, *words]), mock.patch.dict(os.environ):
        if any(word.startswith("-") for word in words):
            GlobalHydra.instance().clear()
            main()
            return
        with one_line_errors(path.rpartition(".")[2]), signals.raise_on_signal():
            arguments, name = use_run(read_arguments(words, path.rpartition(".")[2]), path.rpartition(".")[2])
            with composing():
                config = compose(name, arguments, return_hydra_config=True)
                with open_dict(config):
                    config.hydra.job.num = 0
                    config.hydra.runtime.output_dir = str(Path(config.hydra.run.dir).absolute())
                Path(config.hydra.runtime.output_dir).mkdir(parents=True, exist_ok=True)
                HydraConfig.instance().set_config(config)
                with open_dict(config):
                    del config["hydra"]
                main.task(config)


def call(module: str, *words: str) -> Called:
    """Run a command of `experiments`; an exception other than an exit passes through."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            enter(module, *words)
        except SystemExit as left:
            code = left.code
    return Called(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def composing() -> Iterator[None]:
    """Give Hydra's `compose` the configuration directory."""
    register()
    GlobalHydra.instance().clear()
    # Each composition copies the store of all schemas, which takes a fifth of its time and which nothing changes.
    shared = mock.patch.object(ConfigStore, "__deepcopy__", lambda store, memo: store, create=True)
    with shared, initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield


def composed(name: str, *words: str, hydra: bool = False) -> DictConfig:
    """Return the configuration of a command, with Hydra's own part or without."""
    arguments, name = use_run(words, name)
    with composing():
        return compose(name, arguments, return_hydra_config=hydra)
