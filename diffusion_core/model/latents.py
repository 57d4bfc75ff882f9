"""Images to latents and back, by an autoencoder that a backend runs; see `networks.autoencoder`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.interface import Backend, Network
from diffusion_core.common.random import Stream
from diffusion_core.data.pixels import VALUE_RANGE, from_stored
from diffusion_core.networks.autoencoder import Autoencoder, moments

__all__ = ["LatentCodec"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LatentCodec:
    """An autoencoder in a backend.

    Args:
        autoencoder: its programs and weights.
        backend: runs them.
        batch: images per network call; affects only rounding.
    """

    autoencoder: Autoencoder
    backend: Backend
    batch: int = 8

    @cached_property
    def _encoder(self) -> Network:
        return self.backend.network(self.autoencoder.spec.encoder, self.autoencoder.encoder)

    @cached_property
    def _decoder(self) -> Network:
        return self.backend.network(self.autoencoder.spec.decoder, self.autoencoder.decoder)

    def moments(self, images: NDArray) -> tuple[Array, Array]:
        """Return (mean, standard deviation) of z for images in [-1, 1] with shape (N, H, W, C)."""
        self.autoencoder.spec.latent_shape(*images.shape[1:3])
        if (own := self.autoencoder.spec.image_range) != VALUE_RANGE:
            images = from_stored(np.asarray(images), np.float64, own, VALUE_RANGE)
        return moments(self._run(self._encoder, images))

    def encode(self, images: NDArray, seed: int | None = None, index: NDArray | None = None) -> Array:
        """Return the latents of images in [-1, 1].

        Args:
            images: with shape (N, H, W, C).
            seed: of the draws of z, from Stream(seed, "latents/sample"); None takes the mean.
            index: of each image in that stream.
        """
        z, std = self.moments(images)
        if seed is not None:
            z = z + std * Stream(seed, "latents/sample").normal(np.asarray(index), z.shape[1:])
        return self.autoencoder.spec.to_latents(z)

    def posterior(self, images: NDArray) -> tuple[Array, Array]:
        """Return (mean, standard deviation) of the latents of images in [-1, 1]."""
        (mean, std), spec = self.moments(images), self.autoencoder.spec
        return spec.to_latents(mean), spec.spread_of_latents(std)

    def decode(self, latents: NDArray) -> Array:
        """Return the images of latents, near [-1, 1]."""
        images = self._run(self._decoder, self.autoencoder.spec.from_latents(latents))
        own = self.autoencoder.spec.image_range
        return images if own == VALUE_RANGE else from_stored(images, np.float64, VALUE_RANGE, own)

    def _run(self, network: Network, values: NDArray) -> Array:
        dtype, outputs = self.backend.config.host_dtype, []
        for start in range(0, len(values), self.batch):
            part = np.asarray(values[start : start + self.batch], dtype)
            outputs.append(network.forward(part, np.zeros(len(part)), np.zeros(len(part), np.int32)))
        return np.concatenate(outputs).astype(np.float64)
