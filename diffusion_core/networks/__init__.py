"""Networks as data: a person writes a spec, and `lower` turns it into the `Program` that a backend builds.

May import: diffusion, files, common; not optim or images.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.networks import unet as _unet  # noqa: F401  registers the lowering of UNetSpec
from diffusion_core.networks.builder import NetworkSpec, lower, with_uncertainty
from diffusion_core.networks.classifier import ClassifierSpec
from diffusion_core.networks.double_conv import DoubleConvSpec
from diffusion_core.networks.plain import PlainSpec
from diffusion_core.networks.program import Node, Program, Training
from diffusion_core.networks.simple import SimpleSpec
from diffusion_core.networks.sixteen_step import SixteenStepSpec
from diffusion_core.networks.unet_spec import UNetSpec

__all__ = [
    "ARCHITECTURES",
    "ClassifierSpec",
    "DoubleConvSpec",
    "NetworkSpec",
    "Node",
    "PlainSpec",
    "Program",
    "SimpleSpec",
    "SixteenStepSpec",
    "Training",
    "UNetSpec",
    "lower",
    "make_spec",
    "with_uncertainty",
]

# The architectures by the name that a model's configuration and a checkpoint give them.
ARCHITECTURES: dict[str, type[NetworkSpec]] = {
    "unet": UNetSpec,
    "double_conv": DoubleConvSpec,
    "simple": SimpleSpec,
    "sixteen_step": SixteenStepSpec,
    "plain": PlainSpec,
    "classifier": ClassifierSpec,
}


def make_spec(architecture: str, **options: Any) -> NetworkSpec:
    """The spec of an architecture by name, from plain data as a file holds it; lists become tuples.

    Raises:
        DuetError: if there is no such architecture, or it has no such option.
    """
    if architecture not in ARCHITECTURES:
        raise one_of("model.architecture", architecture, ARCHITECTURES)
    kind = ARCHITECTURES[architecture]
    known = {field.name for field in fields(kind)}
    for name in options:
        if name not in known:
            raise one_of(f"model, of the architecture {architecture}", name, sorted(known))
    if "image_size" not in options:
        raise DuetError("model.image_size: no value was given")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in options.items()})
