"""Samples from own networks."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.interface import Guidance, StepCallback
from diffusion_core.common.errors import DuetError
from diffusion_core.model.generate import check_labels, generate, known_source, noise_source, start_noise
from diffusion_core.networks.own import OwnSpec
from diffusion_core.networks.own_call import images_to_samples, samples_to_images
from diffusion_core.sampling.edit import Edit, add_start_noise, start_row
from diffusion_core.sampling.plan import SamplerPlan
from duet.api.options import check_types, unknown_option
from duet.api.own import CALL, read_labels, split_call
from experiments.runtime import own_networks
from experiments.runtime.own_networks import OwnNetwork, pack_conditions

__all__ = ["sample_network"]


@check_types
def sample_network(
    network: Any,
    plan: SamplerPlan,
    *,
    shape: Any,
    labels: Any = None,
    seed: int = 0,
    first: int = 0,
    batch: int | None = None,
    conditions: Mapping[str, Any] | None = None,
    null_conditions: Mapping[str, Any] | None = None,
    guide: Any = None,
    classifier: Any = None,
    start: Any = None,
    strength: float | None = None,
    known: Any = None,
    mask: Any = None,
    callback: Callable[[int, Any, Any], None] | None = None,
    progress: Callable[[int], None] | None = None,
    compile: bool = False,
    differentiable: bool = False,
    **call: Any,
) -> Any:
    """Sample from an own network; see `duet.sample`."""
    own = own_networks.adapt(network, **split_call(call))
    for name in call:
        raise unknown_option(sample_network, name, CALL, called="sample")
    shape = _shape(shape)
    count, sample_shape = shape[0], shape[1:]
    if batch is not None and batch < 1:
        raise DuetError(f"batch: {batch} was given; it must be at least 1, or None for all samples at once")
    to_array = own.backend.own.to_array
    kinds, features = pack_conditions(conditions, count, to_array)
    null_kinds, null_features = pack_conditions(null_conditions, count, to_array)
    if null_conditions and null_kinds != kinds:
        raise DuetError(f"null_conditions: {null_kinds} were given; they must be those of conditions, {kinds}")
    numbers = read_labels(own, labels, count)
    _check_guidance(own, plan, numbers, has_null=guide is not None or bool(null_conditions))
    _check_times(own, plan)
    spec = own.spec(
        sample_shape, classes=own.known_classes(numbers), with_label=numbers is not None or None, conditions=kinds,
        learned=plan.learned is not None,
    )  # fmt: skip
    if numbers is None and spec.num_classes:
        raise DuetError("labels: the network takes a class; give one for each sample, such as labels=[0, 1, 2]")
    numbers = np.zeros(count, np.int32) if numbers is None else numbers
    opened, built = own.open(compile), own.build(spec, compile)
    dtype = opened.config.host_dtype
    guidance = Guidance(
        guide=_other(own, guide, "guide", sample_shape, spec, compile),
        classifier=_other(own, classifier, "classifier", sample_shape, spec, compile),
        features=None if features is None else features.astype(dtype),
        null_features=None if null_features is None else null_features.astype(dtype),
    )
    index = first + np.arange(count)
    given = [_images(own, name, value, shape) for name, value in (("known", known), ("mask", mask))]
    if (known is None) != (mask is None):
        raise DuetError("inpainting: known or mask is missing; give both, or neither")
    if mask is not None and not np.all((given[1] == 0) | (given[1] == 1)):
        raise DuetError("mask: it must be 1 where samples are known and 0 elsewhere")
    if strength is not None:
        if start is None:
            raise DuetError("strength: it was given without start; give the samples to change as start")
        plan = _last_rows(plan, strength)
        clean = _images(own, "start", start, shape)
        noisy = add_start_noise(plan, clean, index, seed).astype(dtype)
        start = opened.tensor(images_to_samples(noisy, sample_shape, own.layout))
    if differentiable:
        if not hasattr(opened, "samplers"):
            raise DuetError("differentiable: True was given; a function of NumPy arrays has no gradients, so use False")
        if callback is not None:
            raise DuetError("callback: it cannot be combined with differentiable=True; leave it out")
        guidance.check(plan)
        check_labels(
            numbers, built.program, plan, guide is not None, guidance.classifier and guidance.classifier.program
        )
        image_shape = spec.image_shape
        if start is None:
            start = opened.tensor(
                images_to_samples(start_noise(plan, seed, index, image_shape, dtype), sample_shape, own.layout)
            )
        if tuple(start.shape) != shape:
            raise DuetError(f"start: a tensor with shape {tuple(start.shape)} was given; it must have {shape}")
        if mask is not None:
            source = known_source(plan, given[0], seed, index, dtype)
            guidance = replace(guidance, mask=given[1].astype(dtype), known=source)
            guidance.check(plan)
        registers = own.backend.own.from_own(start, sample_shape, own.layout)
        noise = noise_source(seed, index, image_shape, dtype)
        result = opened.samplers.sample_tensors(built, plan, registers, numbers, noise, None, guidance)
        return own.backend.own.to_own(result, sample_shape, own.layout)
    edit = None
    if start is not None or mask is not None:
        edit = Edit(plan, index, start=_images(own, "start", start, shape), images=given[0], mask=given[1])

    def to_samples(images: NDArray) -> Any:
        return opened.tensor(images_to_samples(images, sample_shape, own.layout))

    images = generate(
        opened, built, plan, spec.image_shape, numbers, seed, first=first, batch=batch or count,
        callback=callback and StepCallback(lambda row, x, x0: callback(row, to_samples(x), to_samples(x0))),
        progress=progress, guidance=guidance, edit=edit,
    )  # fmt: skip
    if not np.all(np.isfinite(images)):
        bad = int(np.sum(~np.isfinite(images).reshape(count, -1).all(axis=1)))
        warnings.warn(
            f"sample: {bad} of {count} samples have numbers that are not finite; the network returned such numbers, or "
            f"the plan does not fit what it predicts",
            stacklevel=4,
        )
    return to_samples(images)


def _shape(shape: Any) -> tuple[int, ...]:
    try:
        numbers = tuple(operator.index(size) for size in shape)
    except TypeError:
        numbers = ()
    if len(numbers) < 2 or min(numbers) < 1:
        raise DuetError(
            f"shape: {shape!r} was given; it must be the number of samples and the shape of one, as in (16, 3, 32, 32)"
        )
    return numbers


def _check_guidance(own: OwnNetwork, plan: SamplerPlan, numbers: NDArray | None, has_null: bool) -> None:
    """Check that a plan with guidance has classes, and a label for "no class", which the network knows."""
    if not np.any(plan.is_guided) or has_null:
        return
    if numbers is None:
        raise DuetError("labels: the plan has guidance, which needs the class of each sample; give labels")
    rows = own.manifest.class_rows
    if own.classes is None and own.null_label is None:
        if rows is None or numbers.max() >= rows - 1:
            raise DuetError(
                "classes: the plan has guidance, which evaluates the network without a class too; give classes=K, the "
                "number of classes, whose null label is K, or null_label=0 if it counts its classes from 1"
            )
        warnings.warn(
            f"guidance: label {rows - 1} stands for no class, the last of the {rows} that the network knows; give "
            f"classes={rows - 1} to say so",
            stacklevel=5,
        )
    elif rows is not None and own.classes is not None and own.classes >= rows and own.null_label != 0:
        raise DuetError(
            f"classes: {own.classes} was given, whose null label is {own.classes}, but the network's embedding has "
            f"{rows} rows; guidance needs one row more"
        )


def _check_times(own: OwnNetwork, plan: SamplerPlan) -> None:
    """Refuse fractions for a network that takes whole timesteps."""
    if own.time == "int" and np.any(plan.c_noise != np.rint(plan.c_noise)):
        wrong = plan.c_noise[plan.c_noise != np.rint(plan.c_noise)][0]
        raise DuetError(
            f"time: the network takes whole numbers, but the plan has t = {wrong:g}; use a spacing of whole timesteps, "
            f"such as spacing='trailing', or time='float'"
        )


def _other(own: OwnNetwork, network: Any, what: str, shape: tuple[int, ...], spec: OwnSpec, compile: bool) -> Any:
    """Return a second network, which guides the first."""
    if network is None:
        return None
    other = own_networks.adapt(network)
    if other.framework != own.framework:
        raise DuetError(f"{what}: it is of {other.framework}, but the network of {own.framework}; both must be of one")
    if other.layout != own.layout:
        last = spec.sample_shape
        shape = last if other.layout == "channels_last" else (last[-1], *last[:-1])
    if what == "classifier":
        if not spec.num_classes and other.classes is None:
            raise DuetError("classifier: give its number of classes, as in duet.adapt(classifier, classes=10)")
        classes = other.classes or spec.num_classes
        made = other.spec(shape, classes=0, with_label=False, out_channels=classes, logits=True)
    else:
        takes = bool(spec.num_classes) or None
        made = other.spec(shape, classes=spec.num_classes, with_label=takes, conditions=spec.conditions)
    return other.build(made, compile)


def _last_rows(plan: SamplerPlan, strength: float) -> SamplerPlan:
    """Return the rows of a plan that change a sample by a strength, see `sampling.edit`."""
    row = start_row(plan, strength)
    if not plan.is_self_contained(row):
        rows = [other for other in range(plan.rows) if plan.is_self_contained(other)]
        nearest = min(rows, key=lambda other: abs(other - row))
        raise DuetError(
            f"strength: {strength:g} was given, but row {row} of {plan.name} continues from earlier rows; use "
            f"strength={(plan.rows - nearest) / plan.rows:g}, or a sampler of single steps, such as ddim or heun"
        )
    return plan.tail(row)


def _images(own: OwnNetwork, name: str, value: Any, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    """Return samples as images b h w c; their axes may be broadcast."""
    if value is None:
        return None
    array = own.backend.own.to_array(value)
    if array.dtype == np.uint8:
        raise DuetError(
            f"{name}: uint8 was given; it must be floats in the value range of the data, for example "
            f"value / 127.5 - 1 for (-1, 1)"
        )
    try:
        array = np.broadcast_to(array.astype(np.float64), shape)
    except ValueError:
        raise DuetError(f"{name}: an array with shape {array.shape} was given; it must have {shape}") from None
    return samples_to_images(array, own.layout)
