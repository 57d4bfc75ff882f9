"""Decode the latents that a network samples, by the autoencoder that encoded its data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.interface import Backend
from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.convert.autoencoder import import_autoencoder
from diffusion_core.data import to_uint8
from diffusion_core.data.latents import LatentRecord
from diffusion_core.model.latents import LatentCodec
from diffusion_core.networks.autoencoder import CONVENTIONS, DEFAULT, Autoencoder
from diffusion_core.sampling import SamplerPlan

__all__ = ["LatentDecoder", "clips_latents", "find_decoder"]


class LatentDecoder:
    """The autoencoder of a network's latents, read and checked."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        self.autoencoder = autoencoder
        self._codec: LatentCodec | None = None

    def decode(self, latents: NDArray, backend: Backend) -> NDArray[np.uint8]:
        """Return the images of latents (N, h, w, c), which a backend computes."""
        if self._codec is None or self._codec.backend is not backend:
            self._codec = LatentCodec(self.autoencoder, backend)
        return to_uint8(self._codec.decode(latents), (-1.0, 1.0))


def find_decoder(
    latents: LatentRecord | Mapping[str, Any] | None,
    path: str | None = None,
    channels: int | None = None,
    scaling: str = DEFAULT,
) -> LatentDecoder | None:
    """Return the decoder of latents; None for data that are no latents.

    Args:
        latents: how they were encoded, or an empty table.
        path: the folder of the autoencoder; None is the one that encoded them.
        channels: of the samples of a network whose data are not known, as of imported weights: it takes any autoencoder
            with latents of as many channels. None for a network with a record of its training.
        scaling: the name of the scaling of their latents, for these networks.

    Raises:
        DuetError: if the autoencoder is missing, or is another one.
    """
    check_choice("sample.latent_scaling", scaling, CONVENTIONS)
    if scaling != DEFAULT and (latents or path is None):
        why = "the data of this network say how theirs were scaled" if latents else "no autoencoder decodes the samples"
        raise DuetError(f"sample.latent_scaling: {scaling} was given, but {why}; leave it out")
    if not latents:
        if path is not None and channels is not None:
            return LatentDecoder(_with_channels(_read(Path(path).expanduser()), path, channels).scaled(scaling))
        if path is not None:
            raise DuetError(
                f"sample.autoencoder: {path} was given, but the network was not trained on latents; leave it out"
            )
        return None
    record = latents if isinstance(latents, LatentRecord) else LatentRecord.from_dict(latents, "the checkpoint")
    folder = Path(record.autoencoder if path is None else path).expanduser()
    if path is None and not folder.is_dir():
        raise DuetError(
            f"sample.autoencoder: {folder}, which encoded the data of this network, is missing; give the folder of the "
            f"same autoencoder, as sample.autoencoder=DIR"
        )
    autoencoder = _read(folder)
    if autoencoder.sha256 != record.sha256:
        raise DuetError(
            f"sample.autoencoder: {folder} has the hash {autoencoder.sha256[:12]}, but the data of this network were "
            f"encoded by one with {record.sha256[:12]}; give that one"
        )
    # The record says how the latents were scaled, whatever the folder says.
    return LatentDecoder(autoencoder.scaled(**record.scaling))


def _read(folder: Path) -> Autoencoder:
    def refuse(file: Path) -> dict[str, NDArray]:
        raise DuetError(f"autoencoder: {file} cannot be read here; save it as safetensors")

    return import_autoencoder(folder, refuse)


def _with_channels(autoencoder: Autoencoder, path: str, channels: int) -> Autoencoder:
    if (own := autoencoder.spec.latent_channels) != channels:
        raise DuetError(
            f"sample.autoencoder: {path} was given, whose latents have {own} channels, but the network samples "
            f"{channels}; give the autoencoder of its data, or leave it out"
        )
    return autoencoder


def clips_latents(decoder: LatentDecoder | None, plan: SamplerPlan | None) -> list[str]:
    """Return a line if a sampler bounds estimates of latents, which have no range."""
    if decoder is None or plan is None or plan.clip is None:
        return []
    return [f"sampler.clip: {plan.clip:g} bounds the latents, which have no range; use sampler.clip=null"]
