"""Samples from own networks."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.interface import Guidance, StepCallback
from diffusion_core.common.errors import DuetError
from diffusion_core.model.generate import check_labels, generate, known_source, noise_source, start_noise
from diffusion_core.networks.own import OwnSpec
from diffusion_core.networks.own_call import images_to_samples, samples_to_images
from diffusion_core.sampling.edit import Edit, add_start_noise, start_row
from diffusion_core.sampling.linear_operators import LinearOperator
from diffusion_core.sampling.measurement import Measurement
from diffusion_core.sampling.plan import SamplerPlan
from duet.api.options import check_types, unknown_option
from duet.api.own import CALL, check_has_labels, read_labels, split_call
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
    measurement: Measurement | None = None,
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
    if batch is not None and batch < 1:
        raise DuetError(f"batch: {batch} was given; it must be at least 1, or None for all samples at once")
    kinds, features, null_features = _features(own, conditions, null_conditions, shape[0])
    numbers = read_labels(own, labels, shape[0])
    if own.null_label == 0 and numbers is not None and not np.all(numbers):
        warnings.warn(
            "labels: 0 was given, which stands for no class with null_label=0; the classes of the network count from 1",
            stacklevel=4,
        )
    _check_guidance(own, plan, numbers, has_null=guide is not None or bool(null_conditions))
    _check_times(own, plan)
    spec = own.spec(
        shape[1:], classes=own.known_classes(numbers), with_label=numbers is not None or None, conditions=kinds,
        two_times=plan.second_time is not None, learned=plan.learned is not None,
    )  # fmt: skip
    check_has_labels(spec, numbers)
    numbers = np.zeros(shape[0], np.int32) if numbers is None else numbers
    opened, built = own.open(compile), own.build(spec, compile)
    guidance = Guidance(
        guide=_other(own, guide, "guide", shape[1:], spec, compile),
        classifier=_other(own, classifier, "classifier", shape[1:], spec, compile),
        features=None if features is None else features.astype(opened.config.host_dtype),
        null_features=None if null_features is None else null_features.astype(opened.config.host_dtype),
    )
    known, mask = (_images(own, name, value, shape) for name, value in (("known", known), ("mask", mask)))
    if (known is None) != (mask is None):
        raise DuetError("inpainting: known or mask is missing; give both, or neither")
    if mask is not None and not np.all((mask == 0) | (mask == 1)):
        raise DuetError("mask: it must be 1 where samples are known and 0 elsewhere")
    samples = _Samples(own, opened, built, spec, shape, numbers, seed, first + np.arange(shape[0]))
    if strength is not None:
        if start is None:
            raise DuetError("strength: it was given without start; give the samples to change as start")
        plan = _last_rows(plan, strength)
    if differentiable:
        if callback is not None:
            raise DuetError("callback: it cannot be combined with differentiable=True; leave it out")
        if measurement is not None:
            raise DuetError("measurement: it cannot be combined with differentiable=True; leave one out")
        return _sample_tensors(samples, plan, guidance, start, strength is not None, known, mask)
    start = _images(own, "start", start, shape)
    if strength is not None:
        start = add_start_noise(plan, start, samples.index, seed)
    edit = None
    if start is not None or mask is not None or measurement is not None:
        measured = None if measurement is None else _measured(measurement, own, shape, spec)
        edit = Edit(plan, samples.index, start=start, images=known, mask=mask, measurement=measured)
    images = generate(
        opened, built, plan, spec.image_shape, numbers, seed, first=first, batch=batch or shape[0],
        callback=callback and StepCallback(
            lambda row, x, x0: callback(row, samples.from_images(x), samples.from_images(x0))
        ),
        progress=progress, guidance=guidance, edit=edit,
    )  # fmt: skip
    if not np.all(np.isfinite(images)):
        bad = int(np.sum(~np.isfinite(images).reshape(len(images), -1).all(axis=1)))
        warnings.warn(
            f"sample: {bad} of {len(images)} samples have numbers that are not finite; the network returned such "
            f"numbers, or the plan does not fit what it predicts",
            stacklevel=4,
        )
    return samples.from_images(images)


def _measured(measurement: Measurement, own: OwnNetwork, shape: tuple[int, ...], spec: OwnSpec) -> Measurement:
    """Return a measurement of samples in the network's layout as one of images b h w c."""
    given = measurement.of_images(shape[1:], shape[0])  # checks the operator with samples
    operator = LinearOperator(
        lambda images: given.operator.forward(images_to_samples(images, shape[1:], own.layout)),
        lambda y: samples_to_images(np.asarray(given.operator.adjoint(y)), own.layout),
        given.operator.name,
    )
    return replace(given, operator=operator, shape=spec.image_shape)


@dataclass(frozen=True, eq=False)
class _Samples:
    """The samples to draw: their network in its backend, their shape with the batch, labels and random numbers."""

    own: OwnNetwork
    opened: Any
    network: Any
    spec: OwnSpec
    shape: tuple[int, ...]
    labels: NDArray[np.int32]
    seed: int
    index: NDArray[np.int64]

    def from_images(self, images: NDArray) -> Any:
        """Return images b h w c as a tensor of the framework, in the network's layout."""
        images = images.astype(self.opened.config.host_dtype, copy=False)
        return self.opened.tensor(images_to_samples(images, self.shape[1:], self.own.layout))


def _features(
    own: OwnNetwork, conditions: Mapping[str, Any] | None, null_conditions: Mapping[str, Any] | None, count: int
) -> tuple[tuple[tuple[str, tuple[int, ...], str], ...], NDArray | None, NDArray | None]:
    """Return the kinds of the conditions, and the features with and without them, each (count, F)."""
    to_array = own.backend.own.to_array
    kinds, features = pack_conditions(conditions, count, to_array)
    null_kinds, null_features = pack_conditions(null_conditions, count, to_array)
    if null_conditions and null_kinds != kinds:
        raise DuetError(f"null_conditions: {null_kinds} were given; they must be those of conditions, {kinds}")
    return kinds, features, null_features


def _sample_tensors(
    samples: _Samples,
    plan: SamplerPlan,
    guidance: Guidance,
    start: Any,
    is_clean: bool,
    known: NDArray | None,
    mask: NDArray | None,
) -> Any:
    """Run a plan on tensors from start to end, so that gradients flow from the samples to `start` and the weights.

    Args:
        samples: what to draw.
        plan: the rows to run.
        guidance: without a mask.
        start: a tensor or an array; None draws it.
        is_clean: whether noise is added to `start`.
        known: see `duet.sample`, as images b h w c.
        mask: like `known`.

    Raises:
        DuetError: for a function of NumPy arrays, a start of another shape, or labels that do not exist.
    """
    opened, network, own, dtype = samples.opened, samples.network, samples.own, samples.opened.config.host_dtype
    if not hasattr(opened, "samplers"):
        raise DuetError("differentiable: True was given; a function of NumPy arrays has no gradients, so use False")
    classifier = guidance.classifier and guidance.classifier.program
    check_labels(samples.labels, network.program, plan, guidance.guide is not None, classifier)
    image_shape, sample_shape = samples.spec.image_shape, samples.shape[1:]
    if start is None:
        start = samples.from_images(start_noise(plan, samples.seed, samples.index, image_shape, dtype))
    else:
        _refuse_bytes("start", start)
        start = own.backend.own.as_tensor(start, opened.context)
    if is_clean:  # alpha x + sigma eps, with sigma eps from the host
        noise = add_start_noise(plan, np.zeros((len(samples.index), *image_shape)), samples.index, samples.seed)
        start = float(plan.alpha[0]) * start + samples.from_images(noise)
    if tuple(start.shape) != samples.shape:
        raise DuetError(f"start: a tensor with shape {tuple(start.shape)} was given; it must have {samples.shape}")
    if mask is not None:
        source = known_source(plan, known, samples.seed, samples.index, dtype)
        guidance = replace(guidance, mask=mask.astype(dtype), known=source)
    guidance.check(plan)
    registers = own.backend.own.from_own(start, sample_shape, own.layout)
    noise = noise_source(samples.seed, samples.index, image_shape, dtype)
    result = opened.samplers.sample_tensors(network, plan, registers, samples.labels, noise, None, guidance)
    return own.backend.own.to_own(result, sample_shape, own.layout)


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
    _refuse_bytes(name, array)
    try:
        array = np.broadcast_to(array.astype(np.float64), shape)
    except ValueError:
        raise DuetError(f"{name}: an array with shape {array.shape} was given; it must have {shape}") from None
    return samples_to_images(array, own.layout)


def _refuse_bytes(name: str, value: Any) -> None:
    if "uint8" in str(getattr(value, "dtype", "")):
        raise DuetError(
            f"{name}: uint8 was given; it must be floats in the value range of the data, for example "
            f"value / 127.5 - 1 for (-1, 1)"
        )
