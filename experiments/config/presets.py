"""The networks in ``configs/model``, read without composing a whole configuration."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from diffusion_core.common.errors import one_of
from diffusion_core.networks import NetworkSpec, make_spec
from experiments.config.entry import CONFIGS

__all__ = ["network_preset"]


def network_preset(name: str, **changes: Any) -> NetworkSpec:
    """Return the network of a file in ``configs/model``, with some options changed.

    Raises:
        DuetError: for a name or an option that does not exist, or options that do not fit together.
    """
    files = {path.stem: path for path in (CONFIGS / "model").glob("*.yaml")}
    if name not in files:
        raise one_of("network", name, sorted(files))
    options = OmegaConf.to_container(OmegaConf.load(files[name]), resolve=True)
    # A file starts from the schema of its architecture: `/architecture@_here_: unet`.
    defaults = {
        key: value for entry in options.pop("defaults") if isinstance(entry, dict) for key, value in entry.items()
    }
    return make_spec(defaults["/architecture@_here_"], **options | changes)
