"""The network as data: `UNetSpec` is written by a person, `lower` makes the `Program` that a backend builds."""

from diffusion_core.unet.lower import lower
from diffusion_core.unet.program import Node, Program
from diffusion_core.unet.spec import UNetSpec

__all__ = ["Node", "Program", "UNetSpec", "lower"]
