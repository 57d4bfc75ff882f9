"""The TensorFlow backend: implements `diffusion_core.backend.interface`, file by file the twin of `backends.torch`."""

from __future__ import annotations

from backends.tf import device, files, loss, network, own, sampler, trainer
from diffusion_core.backend import interface as backend

__all__ = ["Backend"]


class Backend(backend.Backend):
    """Programs and plans in TensorFlow."""

    device, files, losses, networks, own, samplers, trainers = device, files, loss, network, own, sampler, trainer
