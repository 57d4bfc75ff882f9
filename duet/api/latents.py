"""Latents from Python: images to latents and back by an autoencoder of diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.data import Dataset
from duet.api.backends import backend_setup
from duet.api.data import as_loaded
from duet.api.options import check_types
from experiments.data.latents import LatentOptions, encode_images
from experiments.runtime.latents import find_decoder

__all__ = ["decode", "encode"]


@check_types
def encode(
    data: Any,
    autoencoder: str | Path,
    *,
    sample: str = "mean",
    scaling: str = "autoencoder",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    scaling_factor: float | None = None,
    image_range: Sequence[float] | None = None,
    seed: int = 0,
    batch: int = 8,
    backend: str | None = None,
    device: str = "auto",
    precision: str = "float32",
    threads: int | None = None,
) -> Dataset:
    """Return the latents of images as a data set, on which networks train; what they sample is decoded.

    ``python3 -m duet prepare autoencoder=DIR`` writes the same to a store.

    Args:
        data: what `duet.load_dataset` takes, or a data set of images.
        autoencoder: the folder of an `AutoencoderKL` of diffusers, or of a pipeline that has one.
        sample: ``"mean"`` of each image's posterior, ``"once"`` for a draw of it, or ``"always"`` for a draw at each
            position of a training.
        scaling: how latents are scaled: ``"autoencoder"``, as the folder says, or ``"edm2"``.
        mean: of each channel, in place of that of the scaling, like the following.
        std: of each channel.
        scaling_factor: the deviation that latents then have.
        image_range: of the images that the autoencoder takes.
        seed: of the draws of ``"once"``.
        batch: images per network call; affects only rounding.
        backend: name of an installed backend; None takes the one that this Python can import.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        precision: ``"float64"``, ``"float32"`` or ``"bf16"``.
        threads: CPU threads; None leaves the framework's choice.

    Raises:
        DuetError: if the images do not fit the autoencoder, or an option does not exist.

    Example:
        Training on latents::

            latents = duet.encode("cifar10", "sd-vae-ft-mse", sample="always")
            model = duet.Model(duet.network("dit_s_2", image_size=4, num_classes=10), duet.process("dit"))
            run = duet.train(model, latents, sampler={"name": "ddim", "clip": None}, out="runs/latents")
            images = run.sample(4)  # uint8 images
    """
    numbers = {
        "mean": None if mean is None else tuple(mean), "std": None if std is None else tuple(std),
        "scaling_factor": scaling_factor, "image_range": None if image_range is None else tuple(image_range),
    }  # fmt: skip
    options = LatentOptions(sample=sample, seed=seed, batch=batch, scaling=scaling, **numbers)
    opened = backend_setup(backend, device, precision, False, threads).open()
    return encode_images(as_loaded(data), str(autoencoder), options, opened)


@check_types
def decode(
    latents: Any,
    autoencoder: str | Path | None = None,
    *,
    scaling: str = "autoencoder",
    backend: str | None = None,
    device: str = "auto",
    precision: str = "float32",
    threads: int | None = None,
) -> NDArray[np.uint8]:
    """Return the images of latents as uint8 (N, H, W, C).

    Args:
        latents: a data set that `encode` made, which knows its autoencoder and scaling; or an array (N, h, w, c).
        autoencoder: the folder of the autoencoder; None is the one that encoded the data set.
        scaling: of an array, see `encode`.
        backend: name of an installed backend; None takes the one that this Python can import.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        precision: ``"float64"``, ``"float32"`` or ``"bf16"``.
        threads: CPU threads; None leaves the framework's choice.

    Raises:
        DuetError: if the autoencoder is missing, is another one, or does not fit the latents.

    Example:
        What an autoencoder loses::

            latents = duet.encode("cifar10", "sd-vae-ft-mse")
            images = duet.decode(latents)
    """
    record = latents.latents if isinstance(latents, Dataset) else None
    values = latents.network_values(slice(None), np.float64) if isinstance(latents, Dataset) else np.asarray(latents)
    opened = backend_setup(backend, device, precision, False, threads).open()
    path = None if autoencoder is None else str(autoencoder)
    if record is None and path is None:
        raise DuetError("autoencoder: nothing was given; it is the folder that decodes the latents")
    if values.ndim != 4:
        raise DuetError(f"latents: an array with shape {values.shape} was given; it must be (N, h, w, channels)")
    return find_decoder(record, path, values.shape[-1], scaling).decode(values, opened)
