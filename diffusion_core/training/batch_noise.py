r"""The noise of a training batch: drawn, or of stored pairs, then paired with the images and perturbed.

Offset noise adds one more normal number per image and channel, the same at all pixels,

    eps + s offset                                  "train/offset_noise"

and counts as noise: x_t and the target both contain it. Input perturbation adds noise to x_t that the target does not
contain, gamma times another normal number xi per pixel, drawn in "train/perturbation":

    x_t = alpha x_0 + sigma (eps + gamma xi),       target = target_x0 x_0 + target_eps eps

A batch holds one image and one noise per example, which the backend mixes to both x_t and the target. Solve both
equations for image and noise: with the determinant ``d = alpha target_eps - sigma target_x0`` they are

    x_0 + (target_eps/d) sigma gamma xi      and      eps - (target_x0/d) sigma gamma xi

and the batch holds these.

References:
    Input Perturbation Reduces Exposure Bias in Diffusion Models (Ning et al., 2023), algorithm 1,
    https://arxiv.org/abs/2301.11706
    Diffusion with Offset Noise (Guttenberg, 2023), https://www.crosslabs.org/blog/diffusion-with-offset-noise
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.diffusion.process import Process
from diffusion_core.networks.own_call import samples_to_images
from diffusion_core.training.coupling import Coupling

__all__ = ["BatchNoise"]


@dataclass(frozen=True)
class BatchNoise:
    """How the noise of a batch is made.

    Args:
        seed: of the run.
        offset: s, the standard deviation of the noise that all pixels of a channel share.
        coupling: of noise and images.
        coupling_name: its name in a configuration.
    """

    seed: int
    offset: float
    coupling: Coupling
    coupling_name: str

    def drawn(self, streams: str, positions: NDArray, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
        """Return the noise of the images at these positions, from the streams of this name."""
        stream = Stream(self.seed, f"{streams}/noise")
        if not self.offset:
            return stream.normal(positions, shape, dtype=dtype)
        offset = Stream(self.seed, f"{streams}/offset_noise").normal(positions, (1, 1, shape[-1]))
        return (stream.normal(positions, shape) + self.offset * offset).astype(dtype)

    def given(
        self, streams: str, noise: NDArray | None, positions: NDArray, images: NDArray, dtype: DTypeLike
    ) -> NDArray:
        """Return the noise of stored pairs, or drawn noise."""
        if noise is None:
            return self.drawn(streams, positions, images.shape[1:], dtype)
        self.check_pairs()
        return samples_to_images(noise, "channels_last").astype(dtype, copy=False)

    def check_pairs(self) -> None:
        """Refuse options that would change the noise of stored pairs.

        Raises:
            DuetError: for a coupling, or offset noise.
        """
        for name, given, default, changes in (
            ("coupling", self.coupling_name, "independent", not self.coupling.is_independent),
            ("offset_noise", self.offset, 0, self.offset),
        ):
            if changes:
                raise DuetError(
                    f"process.{name}: {given} was given, but the data are pairs of noise and image; use {default}, or "
                    f"data.options.pairs=false to draw other noise"
                )

    def paired(
        self,
        streams: str,
        images: NDArray,
        noise: NDArray,
        labels: NDArray,
        positions: NDArray,
        features: NDArray | None,
    ) -> tuple[NDArray, NDArray, NDArray, NDArray | None]:
        """Return images, noise, labels and features as the coupling pairs them."""
        if self.coupling.is_independent:
            return images, noise, labels, features

        def u() -> NDArray[np.float64]:
            return Stream(self.seed, f"{streams}/coupling").uniform(positions, 1)[:, 0]

        i, j = self.coupling.pairs(images, noise, labels, u)
        return images[j], noise[i], labels[j], None if features is None else features[j]

    def perturbed(
        self, process: Process, gamma: float, images: NDArray, noise: NDArray, positions: NDArray, t: NDArray
    ) -> tuple[NDArray, NDArray]:
        """Return the (images, noise) in float64 whose x_t contains more noise than their target."""
        (alpha, sigma), columns = process.schedule(t), process.columns(t)
        determinant = alpha * columns.target_eps - sigma * columns.target_x0
        xi = Stream(self.seed, "train/perturbation").normal(positions, images.shape[1:])
        more = (gamma * sigma / determinant)[:, None, None, None] * xi
        of_image, of_noise = (column[:, None, None, None] for column in (columns.target_eps, columns.target_x0))
        return images.astype(np.float64) + of_image * more, noise - of_noise * more
