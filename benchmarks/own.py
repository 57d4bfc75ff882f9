"""Own networks in a bench: ``network=FILE:NAME`` in place of a model, in each backend that the network has code for.

The command itself loads no framework. So its model knows the shape of a sample and the process only, and each
contestant reads the network from the user's code. Products and convolutions are not counted, as an own
network shows no blocks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffusion_core.backend.interface import BackendConfig
from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.variational import LEARNED
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks.own import OwnSpec
from experiments.config.build import open_own_network
from experiments.config.convert import plain
from experiments.runtime.backends import BackendSetup

__all__ = ["PARTS", "build_model", "make_request", "placeholder"]

# The parts of workloads that need the blocks of a network.
PARTS = ("convolutions", "matrix")


def make_request(cfg: DictConfig) -> dict[str, Any] | None:
    """Return what contestants must know of the own network of a configuration; None without one.

    Raises:
        DuetError: if keys do not fit together.
    """
    named = plain(cfg.network) if OmegaConf.is_config(cfg.network) else cfg.network
    if not named:
        for key in ("network_options", "network_call", "shape"):
            if cfg[key]:
                raise DuetError(f"{key}: {plain(cfg[key])} was given without a network; add network=my_file:build")
        return None
    if not 1 <= len(cfg.shape) <= 4 or min(cfg.shape) < 1:
        raise DuetError(
            f"shape: {list(cfg.shape)} was given; with network= it must be the shape of one sample, its channels "
            f"last, as in shape=[32,32,3]"
        )
    if cfg.vary == "image_size":
        raise DuetError("vary: image_size was given, which is a key of a model; an own network has one shape")
    call, options = plain(cfg.network_call), plain(cfg.network_options)
    return {
        "network": named, "options": options, "call": call, "shape": list(cfg.shape), "directory": os.getcwd(),
    }  # fmt: skip


def placeholder(request: Mapping[str, Any], process: Mapping[str, Any]) -> DiffusionModel:
    """Return the model of an own network that is not loaded: it has a shape and a process, and computes nothing."""
    shape, networks = tuple(request["shape"]), request["network"]
    name = networks if isinstance(networks, str) else ", ".join(networks.values())
    spec = OwnSpec(
        image_size=max(shape), in_channels=shape[-1], out_channels=shape[-1] * (1 + (process["variance"] in LEARNED)),
        num_classes=0, reference=name, shape=shape,
    )  # fmt: skip
    return DiffusionModel(
        spec, process["schedule"], process["prediction"], tuple(process["value_range"]), process["time_scale"],
        process["sigma_data"], variance=process["variance"], uncertainty=process["uncertainty"],
    )  # fmt: skip


def build_model(
    request: Mapping[str, Any], backend: str, config: BackendConfig, model: Mapping[str, Any]
) -> DiffusionModel:
    """Return the model with the own network of a backend.

    Args:
        request: see `make_request`.
        backend: its name.
        config: of the backend.
        model: the placeholder as plain data.

    Raises:
        DuetError: if there is no network for the backend, or it cannot be built.
    """
    named, made = request["network"], DiffusionModel.from_dict(model)
    reference = named.get(backend) if isinstance(named, Mapping) else named
    if reference is None:
        raise DuetError(f"network: there is none for {backend}")
    os.chdir(request["directory"])
    sys.path.insert(0, request["directory"])
    own = open_own_network(reference, BackendSetup(backend, config), request["options"], request["call"])
    rows = own.manifest.class_rows
    classes = own.classes if own.classes is not None or rows is None else rows - 1
    learned = made.variance in LEARNED
    *sizes, channels = request["shape"]
    shape = (channels, *sizes) if own.layout == "channels_first" else (*sizes, channels)
    return replace(made, spec=own.spec(shape, classes=classes, learned=learned, owned=True))
