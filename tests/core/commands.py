"""Entry points as a person calls them, but in this process; and configurations as they compose them.

Hydra composes every configuration twice, first to see whether it is a sweep. Here it is told that it is none. Nor does
it set up its logging, which closes the stream that TensorFlow's logger took when it was loaded: pytest's own.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from typing import NamedTuple
from unittest import mock

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig

from experiments.entry import CONFIGS
from experiments.schema import register


class Called(NamedTuple):
    """What a command left with, and what it printed."""

    code: int
    out: str
    err: str


def enter(module: str, *words: str) -> None:
    """Run an entry point of `experiments`; what it prints and its exit pass through."""
    main = importlib.import_module(f"experiments.{module}").main
    GlobalHydra.instance().clear()
    with (
        mock.patch.object(sys, "argv", [f"experiments.{module}", *words]),
        mock.patch.dict(os.environ),
        mock.patch("hydra._internal.hydra.Hydra.get_mode", return_value=RunMode.RUN),
        mock.patch("hydra._internal.hydra.configure_log"),
        mock.patch("hydra.core.utils.configure_log"),
    ):
        main()


def call(module: str, *words: str) -> Called:
    """Run an entry point of `experiments`; an exception that is no exit passes through."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            enter(module, *words)
        except SystemExit as left:
            code = left.code
    return Called(code, out.getvalue(), err.getvalue())


def composed(name: str, *words: str, hydra: bool = False) -> DictConfig:
    """The configuration of an entry point, with Hydra's own part or without."""
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(name, list(words), return_hydra_config=hydra)
