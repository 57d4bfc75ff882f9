"""The PyTorch backend: implements `diffusion_core.backend.interface`, file by file the twin of `backends.tf`."""

from __future__ import annotations

from backends.torch import device, files, loss, network, own, sampler, trainer
from diffusion_core.backend import interface as backend

__all__ = ["Backend"]


class Backend(backend.Backend):
    """Programs and plans in PyTorch."""

    device, files, losses, networks, own, samplers, trainers = device, files, loss, network, own, sampler, trainer
