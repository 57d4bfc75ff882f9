"""A composed configuration as the objects and frozen dataclasses that the applications take.

Each function reads one part of a configuration; nothing beyond this package and the commands sees a configuration.
"""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig

from diffusion_core.backend.interface import BackendConfig
from diffusion_core.common.errors import DuetError
from diffusion_core.data import Dataset
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import NetworkSpec, make_spec
from diffusion_core.runtime.distributed import ProcessGroup, find_parallel_launch
from experiments.config.convert import plain
from experiments.runtime.backends import BackendSetup
from experiments.runtime.data import DataSource
from experiments.sampling.guidance import GuidanceModels
from experiments.sampling.options import SampleOptions

__all__ = [
    "backend_setup",
    "data_source",
    "guidance_models",
    "load_data",
    "make_model",
    "network_spec",
    "process_group",
    "sample_options",
]


def process_group(cfg: DictConfig) -> ProcessGroup:
    """Return the rank and size of this process among those that compute together.

    Raises:
        DuetError: if `parallel` does not match how this process was started.
    """
    if "parallel" not in cfg:
        return ProcessGroup()
    name = cfg.parallel.name
    if name == "none" and (variable := find_parallel_launch(os.environ)):
        raise DuetError(
            f"parallel: none was given, but {variable} says that several processes were started, which would all do the "
            f"same work; add parallel=ddp (PyTorch) or parallel=multiworker (TensorFlow), or unset {variable} to run a "
            f"single process"
        )
    return ProcessGroup.from_environment(name, os.environ, cfg.parallel.timeout_seconds)


def backend_setup(cfg: DictConfig, precision: str | None = None) -> BackendSetup:
    """Return the backend that the configuration names, in `precision`, by default that of the configuration."""
    given = plain(cfg.backend)
    options = {f.name: given[f.name] for f in fields(BackendConfig) if f.name in given and f.name != "compile"}
    precision = cfg.precision if precision is None else precision
    return BackendSetup(
        given["name"], BackendConfig(precision=precision, **options), given["compile"], given["compile_after"],
        process_group(cfg),
    )  # fmt: skip


def network_spec(cfg: DictConfig) -> NetworkSpec:
    """Return the network of a configuration with the group `model`."""
    model = plain(cfg.model)
    if "architecture" not in model:
        raise DuetError(
            "model.architecture: no name was given; start the file from one, as configs/model/digits.yaml does"
        )
    return make_spec(**model)


def make_model(cfg: DictConfig) -> DiffusionModel:
    """Return the network and the process of a configuration with the groups `model` and `process`."""
    spec, process = network_spec(cfg), plain(cfg.process)
    if "name" not in process["schedule"]:
        raise DuetError("process.schedule: no name was given; it is, for example, {name: linear, T: 1000}")
    return DiffusionModel(
        spec, process["schedule"], process["prediction"], tuple(process["value_range"]), process["time_scale"],
        process["sigma_data"], variance=process["variance"], uncertainty=process["uncertainty"],
    )  # fmt: skip


def data_source(data: DictConfig) -> DataSource:
    """Return where the data set of a group `data` comes from."""
    return DataSource(data.name, plain(data.options), data.store, plain(data.fallback))


def load_data(data: DictConfig) -> Dataset:
    """Load the data set of a group `data`."""
    return data_source(data).load()


def sample_options(sample: DictConfig) -> SampleOptions:
    """Return the options of a group `sample`."""
    return SampleOptions(**plain(sample))


def guidance_models(cfg: DictConfig) -> GuidanceModels:
    """Read the checkpoints of the networks that guide sampling."""
    given: dict[str, Any] = {f.name: cfg[f.name] for f in fields(GuidanceModels)}
    return GuidanceModels.load(**given)
