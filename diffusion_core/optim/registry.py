"""The optimisers by name, and making one from plain data, as a configuration or a file has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from diffusion_core.common.registry import build
from diffusion_core.optim.adafactor import Adafactor
from diffusion_core.optim.adam import Adam
from diffusion_core.optim.adam_variants import NAdam, RAdam
from diffusion_core.optim.momentum import SGD, Lion
from diffusion_core.optim.muon import Muon
from diffusion_core.optim.optimiser import Optimiser
from diffusion_core.optim.schedule_free import ScheduleFree
from diffusion_core.optim.soap import SOAP

__all__ = ["OPTIMISERS", "make_optimiser", "optimiser_options"]

OPTIMISERS: Mapping[str, Callable[..., Optimiser]] = {
    "adam": Adam,
    "sgd": SGD,
    "lion": Lion,
    "adafactor": Adafactor,
    "radam": RAdam,
    "nadam": NAdam,
    "muon": Muon,
    "soap": SOAP,
    "schedule_free": ScheduleFree,
}


def make_optimiser(name: str = "adam", **options: Any) -> Optimiser:
    """Return the optimiser with this name and these options; without a name it is Adam, as in files of Duet 1.

    Raises:
        DuetError: if the name or an option is unknown, or a value has the wrong type or is out of range.

    Example:
        >>> make_optimiser("adam", beta2=0.99).beta2
        0.99
    """
    return build("optimiser", OPTIMISERS, name, options)


def optimiser_options(optimiser: Optimiser) -> dict[str, Any]:
    """Return the name and all options of an optimiser, from which `make_optimiser` makes it again."""
    name = next((name for name, kind in OPTIMISERS.items() if type(optimiser) is kind), type(optimiser).__name__)
    options = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(optimiser).items()}
    return {"name": name, **options}
