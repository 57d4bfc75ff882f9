"""The training loss of own networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from diffusion_core.common.errors import DuetError
from diffusion_core.data.pixels import VALUE_RANGE, from_uint8
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.variational import LEARNED
from diffusion_core.networks.own import samples_to_images
from diffusion_core.training.objective import OPTIONS, Objective
from duet.api.options import check_types, unknown_option
from duet.api.own import CALL, read_labels, split_call
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
    value_range: tuple[float, float] = VALUE_RANGE,
    variance: str = "fixed",
    **options: Any,
) -> Any:
    """Return the training loss of an own network on a batch, as a number of its framework that can be differentiated.

    For a function of NumPy arrays it is a float. Noise and timesteps are those of step `step` of `duet.train` with the same seed, in any framework. The network is
    called in the mode that it is in.

    Args:
        network: see `adapt`.
        images: a batch in the network's layout: numbers in `value_range`, or uint8, which is converted to it.
        process: see `duet.process`.
        labels: the class of each sample, for a network with classes.
        seed: of the run.
        step: number of the step, from 0; batches of one size B take the positions ``step * B`` to ``(step + 1) * B``.
        conditions: further inputs of the network by name, each with one value per sample.
        value_range: of the data.
        variance: ``"fixed"``, or the variance of the variational bound, see `duet.Model`; with a learned one the output
            has twice the channels.
        options: of `duet.Objective`, such as ``weighting={"name": "min_snr"}``, ``distance="l1"`` or
            ``label_dropout=0.1``; and of `adapt`, such as ``classes=10``.

    Raises:
        DuetError: for an option that does not exist, or images and labels that do not fit.

    Example:
        One step of your own loop in PyTorch::

            loss = duet.loss(module, images, duet.process("cosine", "v"), labels=labels, seed=0, step=i)
            loss.backward()
    """
    own = own_networks.adapt(network, **split_call(options))
    for name in options:
        if name not in OPTIONS:
            raise unknown_option(loss, name, [*OPTIONS, *CALL])
    to_array = own.backend.own.to_array
    array = to_array(images)
    if array.ndim < 2 or array.dtype.kind not in "fu":
        raise DuetError(f"images: {array.dtype} with shape {array.shape} was given; it must be a batch of numbers")
    opened = own.open()
    dtype, count = opened.config.host_dtype, len(array)
    values = from_uint8(array, dtype, value_range) if array.dtype == np.uint8 else array
    kinds, features = pack_conditions(conditions, count, to_array)
    numbers = read_labels(own, labels, count)
    classes = own.known_classes(numbers)
    if options.get("label_dropout") and not own.knows_null_label:
        raise DuetError("classes: label_dropout needs the null label; give classes=K, the number of classes")
    spec = own.spec(
        array.shape[1:], classes=classes, with_label=numbers is not None or None, conditions=kinds,
        learned=variance in LEARNED,
    )  # fmt: skip
    built = own.build(spec)
    program = built.program
    distance = options.pop("distance", "mse")
    objective = Objective(
        process=process, seed=seed, null_label=program.null_label, features=program.features, classes=program.classes,
        variance=variance, value_range=value_range, distance=distance, **options,
    )  # fmt: skip
    batch = objective.batch(
        samples_to_images(values, own.layout),
        np.zeros(count, np.int32) if numbers is None else numbers,
        step * count + np.arange(count),
        dtype,
        features=features,
    )
    if not hasattr(opened, "trainers"):
        return opened.loss(built, batch, distance)
    trainers = opened.trainers
    return trainers.loss_tensors(built, trainers.batch_tensors(batch, opened.context), distance)[0]
