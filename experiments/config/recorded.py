"""The configuration that the manifest of a run recorded, for the backend and the places of data of another command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from diffusion_core.common.errors import DuetError
from experiments.config.convert import plain
from experiments.config.from_run import with_present_names
from experiments.config.safe_yaml import parse_config
from experiments.config.schema import OWN_MODEL, register

__all__ = ["recorded_config"]

# What belongs to the place where a run is computed, and not to the run.
_PLACE = {"resume": None, "tracker": {"name": "none"}}
_DATA_PLACE = {"workers": 0, "loader": "duet"}


def recorded_config(text: str, where: str, cfg: DictConfig) -> DictConfig:
    """Return a recorded configuration of `train` as it is computed here.

    Args:
        text: the configuration as YAML text.
        where: it stands, for errors.
        cfg: of the command, with `backend`, `parallel`, the own network, and the places of the data and of the teacher.

    Raises:
        DuetError: if it is none, or the run was started from Python with data or a network that no configuration names.
    """
    recorded = with_present_names(parse_config(text, where))
    _check_complete(recorded, where)
    _check_code(recorded, cfg, where)
    here = plain(cfg.data)
    data = dict(recorded["data"]) | _DATA_PLACE
    data["options"] = dict(data["options"]) | here["options"]
    data["store"] = here["store"] or data.get("store")
    objective = dict(recorded["objective"]) | ({"teacher": cfg.teacher} if cfg.teacher else {})
    network = plain(cfg.network) if OmegaConf.is_config(cfg.network) else cfg.network
    own = {key: plain(cfg[key]) for key in ("network_options", "network_call") if cfg[key]}
    values: Mapping[str, Any] = recorded | _PLACE | {
        "data": data, "objective": objective, "backend": plain(cfg.backend), "parallel": plain(cfg.parallel),
        "network": network, **own,
    }  # fmt: skip
    register()
    schema = ConfigStore.instance().load("train_schema.yaml").node.copy()
    OmegaConf.set_struct(schema, False)
    return OmegaConf.merge(schema, OmegaConf.create(dict(values)))


def _check_complete(recorded: Mapping[str, Any], where: str) -> None:
    """Refuse the configuration of a run that Python code started with objects that it does not name."""
    data, model = recorded.get("data") or {}, recorded.get("model") or {}
    if model.get("architecture") == OWN_MODEL and not recorded.get("network"):
        what = "its network is an object of Python"
    elif "network" not in recorded and "options" not in data:
        what = "Python code started it, and its configuration does not say how its data are loaded"
    else:
        return
    raise DuetError(f"{where}: {what}; verify it from there, with duet.verify")


def _check_code(recorded: Mapping[str, Any], cfg: DictConfig, where: str) -> None:
    """Refuse to run code that a run names and nobody typed, and a network for a run without one."""
    own = recorded.get("network")
    if own and not cfg.network:
        shown = own if isinstance(own, str) else "my_file:build"
        raise DuetError(
            f"network: {where} is of an own network, {own}; a run may come from elsewhere, so its code is run only if "
            f"you name it: add network={shown}"
        )
    if cfg.network and not own:
        raise DuetError(f"network: {cfg.network} was given, but {where} is of a network of Duet; leave it out")
