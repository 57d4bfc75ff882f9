"""The training loss of own networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from diffusion_core.common.errors import DuetError
from diffusion_core.data.pixels import VALUE_RANGE, from_uint8
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.variational import LEARNED
from diffusion_core.networks.own_call import samples_to_images
from diffusion_core.training.objective import OPTIONS, Objective
from duet.api.options import check_types, unknown_option
from duet.api.own import CALL, check_has_labels, read_labels, split_call
from experiments.runtime import own_networks
from experiments.runtime.own_networks import pack_conditions

__all__ = ["loss"]


@check_types
def loss(
    network: Any,
    images: Any,
    process: Process,
    *,
    labels: ArrayLike | None = None,
    seed: int = 0,
    step: int = 0,
    conditions: Mapping[str, Any] | None = None,
    noise: Any = None,
    value_range: tuple[float, float] = VALUE_RANGE,
    variance: str = "fixed",
    **options: Any,
) -> Any:
    """Return the training loss of an own network on a batch, as a number of its framework that can be differentiated.

    For a function of NumPy arrays it is a float. Noise and timesteps are those of step `step` of `duet.train` with the
    same seed, in any framework; `duet.batches` gives the images of that step. A PyTorch module is called in the mode
    that it is in; dropout, too, draws what it draws in `duet.train`. Images that are floats on the device stay there,
    and gradients flow to them.

    Args:
        network: see `adapt`.
        images: a batch in the network's layout: numbers in `value_range`, or uint8, which is converted to it.
        process: see `duet.process`.
        labels: the class of each sample, 0 to K - 1, for a network with classes.
        seed: of the run.
        step: number of the step, from 0; batches of one size B take the positions ``step * B`` to ``(step + 1) * B``.
        conditions: further inputs of the network by name, each with one value per sample.
        noise: of pairs, the noise of each image in the network's layout, as `duet.batches` gives it; None draws it.
        value_range: of the data.
        variance: ``"fixed"``, or the variance of the variational bound, see `duet.Model`; with a learned one the output
            has twice the channels.
        options: of `duet.Objective`, such as ``weighting={"name": "min_snr"}``, ``distance="l1"`` or
            ``label_dropout=0.1``; and of `duet.adapt`, such as ``classes=10``.

    Raises:
        DuetError: for an option that does not exist, or images and labels that do not fit.

    Example:
        One step of your own loop in PyTorch::

            loss = duet.loss(module, images, duet.process("cosine", "v"), labels=labels, seed=0, step=i)
            loss.backward()
    """
    if step < 0:
        raise DuetError(f"step: {step} was given; steps count from 0")
    own = own_networks.adapt(network, **split_call(options))
    for name in options:
        if name not in OPTIONS:
            raise unknown_option(loss, name, [*OPTIONS, *CALL])
    if "objective" in options:
        raise DuetError("objective: it was given, but targets that need the network need a trainer; use duet.train")
    shape, kind = _shape_and_kind(images)
    opened, count = own.open(), shape[0]
    dtype = opened.config.host_dtype
    kinds, features = pack_conditions(conditions, count, own.backend.own.to_array)
    numbers = read_labels(own, labels, count)
    classes = own.known_classes(numbers)
    if options.get("label_dropout") and not own.knows_null_label:
        raise DuetError("classes: label_dropout needs the null label; give classes=K, the number of classes")
    spec = own.spec(
        shape[1:], classes=classes, with_label=numbers is not None or None, conditions=kinds,
        learned=variance in LEARNED,
    )  # fmt: skip
    check_has_labels(spec, numbers)
    built = own.build(spec)
    program = built.program
    distance = options.pop("distance", "mse")
    objective = Objective(
        process=process, seed=seed, null_label=program.null_label, features=program.features, classes=program.classes,
        variance=variance, value_range=value_range, distance=distance, **options,
    )  # fmt: skip
    # What is drawn does not depend on the images, so they stay where they are. Input perturbation and noise around the
    # path add to them on the host, a coupling compares them with the noise there, and bytes are converted there.
    has_tensors = hasattr(opened, "losses")
    stays = has_tensors and kind == "float" and not objective.reads_images
    values = np.broadcast_to(np.zeros((), dtype), (count, *spec.image_shape))
    if not stays:
        array = own.backend.own.to_array(images)
        array = from_uint8(array, dtype, value_range) if array.dtype == np.uint8 else array
        values = samples_to_images(array, own.layout)
    numbers = np.zeros(count, np.int32) if numbers is None else numbers
    given_noise = None
    if noise is not None:
        given_noise = samples_to_images(own.backend.own.to_array(noise), own.layout)
        if given_noise.shape != values.shape:
            raise DuetError(f"noise: shape {tuple(np.shape(noise))} was given; it must be that of the images, {shape}")
    positions = step * count + np.arange(count)
    batch = objective.batch(values, numbers, positions, dtype, features=features, noise=given_noise)
    if not has_tensors:
        return opened.loss(built, batch, distance)
    given = {}
    if stays:
        tensor = own.backend.own.as_tensor(images, opened.context)
        batch, given = replace(batch, images=None), {"images": own.backend.own.from_own(tensor, spec.shape, own.layout)}
    tensors = opened.losses.batch_tensors(batch, opened.context)._replace(**given)
    return opened.losses.loss_tensors(built, tensors, distance)[0]


def _shape_and_kind(images: Any) -> tuple[tuple[int, ...], str]:
    """Return the shape of a batch, and whether it holds "float" numbers or "uint8".

    Raises:
        DuetError: for anything else.
    """
    if not hasattr(images, "dtype"):
        images = np.asarray(images)
    shape, name = tuple(images.shape), str(images.dtype)
    kind = next((kind for kind in ("float", "uint8") if kind in name), None)
    if kind is None or len(shape) < 2 or not shape[0]:
        raise DuetError(
            f"images: {name} with shape {shape} was given; it must be a batch of floats in the value range, or of uint8"
        )
    return shape, kind
