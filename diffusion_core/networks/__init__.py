"""Networks as data: a spec describes a network by a few options, and `lower` turns it into the `Program` of a backend.

The block kinds are in `blocks/`, their registry in `registry.py`.

May import: diffusion, files, common; not optim or images.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from diffusion_core.common.errors import DuetError, check_choice, one_of
from diffusion_core.networks import unet as _unet  # noqa: F401  registers the lowering of UNetSpec
from diffusion_core.networks.builder import NetworkSpec, lower, with_uncertainty
from diffusion_core.networks.classifier import ClassifierSpec
from diffusion_core.networks.dit import DiTSpec
from diffusion_core.networks.double_conv import DoubleConvSpec
from diffusion_core.networks.edm2 import EDM2Spec
from diffusion_core.networks.jit import JiTSpec
from diffusion_core.networks.linear_attention import LinearAttentionSpec
from diffusion_core.networks.own import OwnSpec
from diffusion_core.networks.plain import PlainSpec
from diffusion_core.networks.program import Node, Program, Training
from diffusion_core.networks.simple import SimpleSpec
from diffusion_core.networks.sixteen_step import SixteenStepSpec
from diffusion_core.networks.unet_spec import UNetSpec
from diffusion_core.networks.uvit import UViTSpec

__all__ = [
    "ARCHITECTURES",
    "ClassifierSpec",
    "DiTSpec",
    "DoubleConvSpec",
    "EDM2Spec",
    "JiTSpec",
    "LinearAttentionSpec",
    "NetworkSpec",
    "Node",
    "OwnSpec",
    "PlainSpec",
    "Program",
    "SimpleSpec",
    "SixteenStepSpec",
    "Training",
    "UNetSpec",
    "UViTSpec",
    "lower",
    "make_spec",
    "with_uncertainty",
]

# The architectures by their names in configurations (`model.architecture`) and checkpoints.
ARCHITECTURES: dict[str, type[NetworkSpec]] = {
    "unet": UNetSpec,
    "double_conv": DoubleConvSpec,
    "linear_attention": LinearAttentionSpec,
    "simple": SimpleSpec,
    "sixteen_step": SixteenStepSpec,
    "plain": PlainSpec,
    "dit": DiTSpec,
    "uvit": UViTSpec,
    "jit": JiTSpec,
    "edm2": EDM2Spec,
    "classifier": ClassifierSpec,
    "own": OwnSpec,
}


def make_spec(architecture: str, **options: Any) -> NetworkSpec:
    """Return the spec of an architecture by name, from plain data as a file holds it; lists become tuples.

    Args:
        architecture: a key of `ARCHITECTURES`.
        options: fields of its spec; `image_size` is required.

    Raises:
        DuetError: if the architecture or an option does not exist, or a value is not allowed; the message names the
            configuration key.

    Example:
        >>> spec = make_spec("unet", image_size=32, channels=64, channel_multipliers=[1, 2, 2])
        >>> spec
        UNetSpec(image_size=32, channels=64, channel_multipliers=(1, 2, 2))
        >>> lower(spec)
        Program(192 blocks, 6,140,675 parameters)
    """
    check_choice("model.architecture", architecture, ARCHITECTURES)
    spec = ARCHITECTURES[architecture]
    known = {field.name for field in fields(spec)}
    for name in options:
        if name not in known:
            raise one_of(f"model, for the architecture {architecture}", name, sorted(known))
    if "image_size" not in options:
        raise DuetError("model.image_size: no value was given; set the height and width in pixels")
    return spec(**{name: tuple(value) if isinstance(value, list) else value for name, value in options.items()})
