"""Own networks from Python: how they are called, samples from them, and their training loss."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.backend.interface import Guidance, StepCallback
from diffusion_core.common.errors import DuetError
from diffusion_core.data.pixels import VALUE_RANGE, from_uint8
from diffusion_core.diffusion.process import Process
from diffusion_core.model.generate import generate, noise_source, start_noise
from diffusion_core.networks.own import OwnSpec, images_to_samples, samples_to_images
from diffusion_core.sampling.edit import Edit
from diffusion_core.sampling.plan import SamplerPlan
from diffusion_core.training.objective import OPTIONS, Objective
from duet.api.options import check_types, unknown_option
from experiments.runtime import own_networks
from experiments.runtime.own_networks import OwnNetwork, pack_conditions

__all__ = ["adapt", "loss", "sample_network"]

# The keywords of `adapt`, which `sample` and `loss` take as well.
CALL = ("inputs", "layout", "output", "time", "classes", "null_label", "framework")


@check_types
def adapt(
    network: Any,
    *,
    inputs: str | None = None,
    layout: str | None = None,
    output: str | int | None = None,
    time: str = "float",
    classes: int | None = None,
    null_label: int | None = None,
    framework: str | None = None,
    name: str | None = None,
) -> OwnNetwork:
    """Say how an own network is called, where that is not ``network(x, t)`` or ``network(x, t, label)``.

    `duet.sample`, `duet.loss` and `duet.train` take the result in place of the network. What was traced or compiled is
    kept with it.

    Args:
        network: an `nn.Module`, a `keras.Model`, a `tf.Module`, a `tf.function`, a function of NumPy arrays, or a
            function of tensors with its `framework`.
        inputs: the arguments of a call: ``x`` the noisy samples, ``t`` the noise level as the process encodes it,
            ``label`` the class, ``one_hot`` the class as a vector, or the name of a condition; each by position or by
            keyword, as in ``"x, t, class_labels=label"``; ``"[x, t]"`` for one list. None reads it from the names of
            the network's parameters.
        layout: ``"channels_first"`` or ``"channels_last"``; None is that of the framework.
        output: which part of the result is the output: an attribute, a key or a position. None takes the result, its
            first part if it has several, or its attribute ``sample``.
        time: whether t is a ``"float"`` or an ``"int"``.
        classes: number of classes K; labels are 0 to K - 1.
        null_label: the label that stands for "no class" in guidance; None is K. ``one_hot`` is then zeros.
        framework: the backend of a function of tensors, such as ``"torch"``.
        name: what messages and files call it; None is the name of its class.

    Raises:
        DuetError: for arguments that do not exist, or an object that cannot be called.

    Example:
        A network that takes NumPy arrays under names of its own:

        >>> import numpy as np
        >>> def halved(time, images):
        ...     return images / 2
        >>> adapt(halved, inputs="t, x", name="halved")
        OwnNetwork(halved, numpy, inputs t, x, channels_last)
    """
    return own_networks.adapt(
        network, inputs=inputs, layout=layout, output=output, time=time, classes=classes, null_label=null_label,
        framework=framework, name=name,
    )  # fmt: skip


def split_call(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the keywords of `adapt` from options and return them."""
    return {name: options.pop(name) for name in CALL if name in options}


@check_types
def sample_network(
    network: Any,
    plan: SamplerPlan,
    *,
    shape: Sequence[int],
    labels: ArrayLike | None = None,
    seed: int = 0,
    first: int = 0,
    batch: int | None = None,
    conditions: Mapping[str, Any] | None = None,
    null_conditions: Mapping[str, Any] | None = None,
    guide: Any = None,
    classifier: Any = None,
    start: Any = None,
    known: Any = None,
    mask: Any = None,
    callback: Callable[[int, NDArray, NDArray], None] | None = None,
    progress: Callable[[int], None] | None = None,
    compile: bool = False,
    differentiable: bool = False,
    **call: Any,
) -> Any:
    """Sample from an own network; see `duet.sample`."""
    own = own_networks.adapt(network, **split_call(call))
    for name in call:
        raise unknown_option(sample_network, name, CALL, called="sample")
    if not isinstance(plan, SamplerPlan):
        raise DuetError(
            f"plan: {plan!r} was given; it must be a plan, for example "
            f"duet.samplers.ddim(duet.process('cosine', 'eps'), steps=50)"
        )
    shape = _shape(shape)
    count, sample_shape = shape[0], shape[1:]
    to_array = own.backend.own.to_array
    kinds, features = pack_conditions(conditions, count, to_array)
    null_kinds, null_features = pack_conditions(null_conditions, count, to_array)
    if null_conditions and null_kinds != kinds:
        raise DuetError(f"null_conditions: {null_kinds} were given; they must be those of conditions, {kinds}")
    numbers = _labels(own, labels, count, plan, guide is not None or bool(null_conditions))
    classes = own.known_classes(numbers)
    outputs = None if plan.learned is None else 2
    spec = own.spec(sample_shape, classes=classes, with_label=numbers is not None or None, conditions=kinds)
    if outputs:
        spec = own.spec(
            sample_shape, classes=classes, with_label=numbers is not None or None, conditions=kinds,
            out_channels=2 * spec.in_channels,
        )  # fmt: skip
    _check_times(own, plan)
    if numbers is None and spec.num_classes:
        raise DuetError("labels: the network takes a class; give one for each sample, such as labels=[0, 1, 2]")
    numbers = np.zeros(count, np.int32) if numbers is None else numbers
    opened, built = own.open(compile), own.build(spec, compile)
    others = {
        "guide": _other(own, guide, "guide", sample_shape, spec, compile),
        "classifier": _other(own, classifier, "classifier", sample_shape, spec, compile),
    }
    dtype = opened.config.host_dtype
    guidance = Guidance(
        **others,
        features=None if features is None else features.astype(dtype),
        null_features=None if null_features is None else null_features.astype(dtype),
    )
    if differentiable:
        if not hasattr(opened, "samplers"):
            raise DuetError("differentiable: True was given; a function of NumPy arrays has no gradients, so use False")
        if known is not None or callback is not None:
            raise DuetError("differentiable: known and callback cannot be combined with it; leave them out")
        guidance.check(plan)
        image_shape, index = spec.image_shape, first + np.arange(count)
        if start is None:
            start = opened.tensor(
                images_to_samples(start_noise(plan, seed, index, image_shape, dtype), sample_shape, own.layout)
            )
        registers = own.backend.own.from_own(start, sample_shape, own.layout)
        noise = noise_source(seed, index, image_shape, dtype)
        result = opened.samplers.sample_tensors(built, plan, registers, numbers, noise, None, guidance)
        return own.backend.own.to_own(result, sample_shape, own.layout)
    edit = _edit(own, plan, shape, first, start, known, mask)
    images = generate(
        opened, built, plan, spec.image_shape, numbers, seed, first=first, batch=batch or count,
        callback=callback and StepCallback(callback), progress=progress, guidance=guidance, edit=edit,
    )  # fmt: skip
    return opened.tensor(images_to_samples(images, sample_shape, own.layout))


def _shape(shape: Sequence[int]) -> tuple[int, ...]:
    try:
        numbers = tuple(int(size) for size in shape)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) < 2 or min(numbers) < 1:
        raise DuetError(
            f"shape: {shape!r} was given; it must be the number of samples and the shape of one, as in (16, 3, 32, 32)"
        )
    return numbers


def _labels(
    own: OwnNetwork, labels: ArrayLike | None, count: int, plan: SamplerPlan, has_null: bool
) -> NDArray[np.int32] | None:
    """Return one class per sample as int32; None without classes."""
    guided = bool(np.any(plan.is_guided))
    if labels is None:
        if guided and not has_null:
            raise DuetError("labels: the plan has guidance, which needs the class of each sample; give labels")
        return None
    numbers = own.backend.own.to_array(labels)
    if numbers.ndim == 0:
        numbers = np.full(count, numbers)
    if numbers.shape != (count,) or numbers.dtype.kind not in "iu" or numbers.min(initial=0) < 0:
        raise DuetError(
            f"labels: {numbers.dtype} with shape {numbers.shape} was given; there must be one class of at least 0 for "
            f"each of the {count} samples"
        )
    rows = own.manifest.class_rows
    if guided and not has_null and own.classes is None and own.null_label is None:
        if rows is None or numbers.max() >= rows - 1:
            raise DuetError(
                "classes: the plan has guidance, which evaluates the network without a class too; give classes=K, the "
                "number of classes, whose null label is K, or null_label=L"
            )
        warnings.warn(
            f"guidance: label {rows - 1} stands for no class, the last of the {rows} that the network knows; give "
            f"classes={rows - 1} to say so",
            stacklevel=4,
        )
    if rows is not None and numbers.max(initial=0) >= rows:
        raise DuetError(f"labels: {numbers.max()} was given, but the network knows the labels 0 to {rows - 1}")
    return numbers.astype(np.int32)


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
    if what == "classifier":
        if not spec.num_classes and other.classes is None:
            raise DuetError("classifier: give its number of classes, as in duet.adapt(classifier, classes=10)")
        classes = other.classes or spec.num_classes
        made = other.spec(shape, classes=0, with_label=False, out_channels=classes, logits=True)
    else:
        made = other.spec(shape, classes=spec.num_classes, with_label=True if spec.num_classes else None)
    return other.build(made, compile)


def _edit(
    own: OwnNetwork, plan: SamplerPlan, shape: tuple[int, ...], first: int, start: Any, known: Any, mask: Any
) -> Edit | None:
    """Return what samples start from and keep; None for sampling from noise."""
    if (known is None) != (mask is None):
        raise DuetError("inpainting: known or mask is missing; give both, or neither")
    if start is None and known is None:
        return None
    images = {}
    for name, value in (("start", start), ("images", known), ("mask", mask)):
        if value is None:
            continue
        array = own.backend.own.to_array(value).astype(np.float64)
        try:
            array = np.broadcast_to(array, shape)
        except ValueError:
            raise DuetError(f"{name}: an array with shape {array.shape} was given; it must have {shape}") from None
        images[name] = samples_to_images(array, own.layout)
    return Edit(plan, first + np.arange(shape[0]), **images)


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
    **options: Any,
) -> Any:
    """Return the training loss of an own network on a batch, as a number of its framework that can be differentiated.

    Noise and timesteps are those of step `step` of `duet.train` with the same seed, in any framework. The network is
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
    if not hasattr(own.backend, "trainers"):
        raise DuetError(
            "network: a function of NumPy arrays has no gradients; duet.loss needs a network of a framework"
        )
    to_array = own.backend.own.to_array
    array = to_array(images)
    if array.ndim < 2 or array.dtype.kind not in "fu":
        raise DuetError(f"images: {array.dtype} with shape {array.shape} was given; it must be a batch of numbers")
    opened = own.open()
    dtype, count = opened.config.host_dtype, len(array)
    values = from_uint8(array, dtype, value_range) if array.dtype == np.uint8 else array
    kinds, features = pack_conditions(conditions, count, to_array)
    numbers = None if labels is None else to_array(labels)
    if numbers is not None and (numbers.shape != (count,) or numbers.dtype.kind not in "iu"):
        raise DuetError(f"labels: {numbers.dtype} with shape {numbers.shape} was given; it must be ({count},) integers")
    classes = own.known_classes(numbers)
    if options.get("label_dropout") and not own.knows_null_label:
        raise DuetError("classes: label_dropout needs the null label; give classes=K, the number of classes")
    variance = options.pop("variance", "fixed")
    spec = own.spec(array.shape[1:], classes=classes, with_label=numbers is not None or None, conditions=kinds)
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
    trainers = opened.trainers
    return trainers.loss_tensors(built, trainers.batch_tensors(batch, opened.context), distance)[0]
