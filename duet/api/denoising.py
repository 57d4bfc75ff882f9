"""A trained network's estimate of the image behind noise.

    D(x_t) = c_skip x_t + c_out F(c_in x_t, c_noise)

with the columns of the model's process at t, see `diffusion_core.diffusion.process`. The same for every prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.networks.own_call import images_to_samples, samples_to_images
from diffusion_core.runs.checkpoint import Checkpoint
from duet.api.options import check_types
from duet.api.runs import load_run, run_setup
from experiments.sampling.classes import named_labels, names_of_checkpoint
from experiments.sampling.options import choose_weights, sample_labels

__all__ = ["denoise"]


@check_types
def denoise(
    checkpoint: Checkpoint | str | Path,
    x: ArrayLike,
    t: ArrayLike,
    *,
    labels: int | str | Sequence[int | str] | None = None,
    batch: int = 256,
    weights: str | None = None,
    backend: str | None = None,
    device: str = "auto",
    precision: str | None = None,
    compile: bool | str = "auto",
    threads: int | None = None,
) -> NDArray[np.floating]:
    """Return the estimate of the images x_0 in noisy images x_t, by one evaluation of a trained network.

    Args:
        checkpoint: what `duet.train` or `duet.load` returns, or the path of a run or a checkpoint.
        x: noisy images x_t = alpha x_0 + sigma eps, with shape (N, H, W, C), where x_0 is in the value range of the
            model: from -1 to 1 unless the model says otherwise. For an own network the shape of its data, with
            channels last.
        t: the noise level of all images, or of each, with shape (N,): a timestep of the model's schedule.
        labels: one class for all, or a class for each image, as numbers or names; None for no class.
        batch: images per network call; it does not change any estimate.
        weights: ``"ema"``, a further average (``"ema1"`` ...) or ``"weights"``; None is what the run samples with.
        backend: name of an installed backend; None takes the one that this Python can import.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        precision: ``"float64"``, ``"float32"`` or ``"bf16"``; None is ``"float32"``, or that of an own network.
        compile: True, False or ``"auto"``.
        threads: CPU threads; None leaves the framework's choice.

    Returns:
        The estimates, with the shape of `x`, in the value range of the model.

    Raises:
        DuetError: for images, times or classes that do not fit the model.

    Example:
        What the network sees in a digit at half of the noise::

            digit = duet.load_dataset("digits").images[:1] / 127.5 - 1
            alpha, sigma = checkpoint.model.process.schedule(500)
            noisy = alpha * digit + sigma * np.random.default_rng(0).normal(size=digit.shape)
            estimate = duet.denoise(checkpoint, noisy, 500, labels=3)
    """
    loaded = checkpoint if isinstance(checkpoint, Checkpoint) else load_run(checkpoint)
    model = loaded.model
    model.check_generates()
    if batch < 1:
        raise DuetError(f"batch: {batch} was given; it must be at least 1")
    x, shape = np.asarray(x, np.float64), model.spec.sample_shape
    if x.shape[1:] != shape or not len(x):
        raise DuetError(
            f"x: an array of shape {x.shape} was given; it must be (N, {', '.join(map(str, shape))}), N at least 1"
        )
    t = np.asarray(t)
    if t.shape not in ((), (len(x),)):
        raise DuetError(f"t: {t.shape} times were given for {len(x)} images; give one, or one for each image")
    columns = model.process.columns(np.broadcast_to(t, len(x)))
    numbers = _labels(loaded, labels, len(x))
    setup = run_setup(loaded, backend, device, precision, compile, threads)
    chosen = loaded.state.parts[choose_weights("weights", weights, loaded)]
    network = setup.choose_mode(setup.load(), calls=-(-len(x) // batch)).network(model.program, chosen)

    def per_image(column: NDArray) -> NDArray:
        return column[:, None, None, None]

    dtype, images = setup.config.host_dtype, samples_to_images(x, "channels_last")
    scaled = (per_image(columns.c_in) * images).astype(dtype)
    outputs = [
        network.forward(scaled[i : i + batch], columns.c_noise[i : i + batch], numbers[i : i + batch])
        for i in range(0, len(x), batch)
    ]
    output = np.concatenate(outputs)[..., : shape[-1]].astype(np.float64)
    estimates = per_image(columns.c_skip) * images + per_image(columns.c_out) * output
    return images_to_samples(estimates.astype(dtype), shape, "channels_last")


def _labels(checkpoint: Checkpoint, labels: object, count: int) -> NDArray[np.int32]:
    """Return the network's label of each image: without classes, that of no class."""
    program = checkpoint.model.program
    if labels is None and program.classes and program.null_label is None:
        raise DuetError("labels: None was given, but the network knows its images with their class only; give labels")
    if labels is None:
        return np.full(count, program.null_label or 0, np.int32)
    numbers = named_labels("labels", labels, names_of_checkpoint(checkpoint))
    if np.ndim(numbers) == 1 and len(numbers) != count:
        raise DuetError(f"labels: {len(numbers)} were given for {count} images; give one, or one for each image")
    return sample_labels(numbers, count, checkpoint.model)
