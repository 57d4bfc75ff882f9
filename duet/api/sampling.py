"""Sampling from Python."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.backend.interface import Backend, StepCallback
from diffusion_core.common.errors import DuetError
from diffusion_core.data import Dataset
from diffusion_core.data.pixels import to_uint8
from diffusion_core.diffusion.process import Process
from diffusion_core.model.generate import generate
from diffusion_core.networks.own_call import images_to_samples
from diffusion_core.runs.checkpoint import Checkpoint, load_checkpoint
from diffusion_core.sampling import SAMPLERS, SamplerPlan
from diffusion_core.sampling.edit import posterior
from diffusion_core.sampling.measurement import Measurement
from duet.api.options import check_types, unknown_option
from duet.api.own_sampling import sample_network
from duet.api.runs import run_setup
from experiments.runtime import own_files
from experiments.runtime.backends import BackendSetup, sampling_calls
from experiments.runtime.latents import clips_latents, find_decoder
from experiments.sampling.classes import labels_with_images, named_labels, names_of_checkpoint
from experiments.sampling.conditions import check_labels_trained, describe_weights
from experiments.sampling.guidance import GuidanceModels
from experiments.sampling.options import choose_weights, sample_features, sample_labels
from experiments.sampling.pairs import check_pairs, make_pairs
from experiments.sampling.plans import check_levels, choose_sampler, shared_options

__all__ = ["load_guidance", "open_backend", "read_checkpoint", "sample"]


@overload
def sample(
    checkpoint: Checkpoint | str | Path,
    count: int = 64,
    *,
    labels: int | str | Sequence[int | str] | None = None,
    sampler: str | Mapping[str, Any] | SamplerPlan | None = None,
    conditions: ArrayLike | Mapping[str, float] | None = None,
    seed: int = 0,
    batch: int = 128,
    weights: str | None = None,
    guide: Checkpoint | str | Path | None = None,
    classifier: Checkpoint | str | Path | None = None,
    measurement: Measurement | None = None,
    autoencoder: str | Path | None = None,
    latent_scaling: str = "autoencoder",
    callback: Callable[[int, NDArray, NDArray], None] | None = None,
    pairs: bool = False,
    backend: str | None = None,
    device: str = "auto",
    precision: str | None = None,
    compile: bool | str = "auto",
    threads: int | None = None,
    **options: Any,
) -> NDArray[np.uint8]: ...


@overload
def sample(
    checkpoint: Any,
    plan: SamplerPlan,
    *,
    shape: Sequence[int],
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
) -> Any: ...


def sample(checkpoint: Any, *arguments: Any, **options: Any) -> Any:
    """Sample images from a checkpoint, or from an own network by a plan.

    Sample k starts from the same noise in any batch, on any machine and in either framework.

    **From a checkpoint**, ``sample(checkpoint, count, ...)`` returns uint8 images with shape (count, H, W, C).

    Args:
        checkpoint: what `duet.train` or `duet.load` returns, or the path of a run or a checkpoint; or an own network,
            its file or its reference, see `duet.adapt`.
        count: number of images.
        labels: one class for all, a list of classes that repeats, or None for every class in turn. A class is a number
            or its name in the data that the network was trained on, as in ``["Coast", "Forest"]``.
        sampler: a name of `duet.SAMPLERS`, a name with options, or a plan of `duet.make_plan`; None is the sampler of
            the run.
        conditions: for a network that was trained with conditions: one vector for all images, one for each, or numbers
            by name; None is zeros.
        seed: of the noise.
        batch: images per network call; it does not change any image.
        weights: ``"ema"``, a further average (``"ema1"`` ...) or ``"weights"``; None is what the run samples with.
        guide: a weaker network for autoguidance.
        classifier: a classifier of noisy images for classifier guidance.
        measurement: what the images agree with, see `duet.Measurement`; in the value range of the network.
        autoencoder: the folder that decodes the samples of a network of latents; None is the one that encoded its data.
        latent_scaling: how latents are scaled, for imported weights, which do not know what encoded their data:
            ``"autoencoder"``, as the autoencoder says, or ``"edm2"``.
        callback: called after each row of the plan, for the first batch, with (row, x, estimate of x_0).
        pairs: return a `duet.Dataset` of the samples, as floats, with their noise, to train on (reflow); the sampler
            must add no fresh noise.
        backend: name of an installed backend; None takes the one that this Python can import.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        precision: ``"float64"``, ``"float32"`` or ``"bf16"``; None is ``"float32"``, or that of an own network.
        compile: True, False or ``"auto"``.
        threads: CPU threads; None leaves the framework's choice.
        options: of the sampler, such as ``steps=25`` and ``guidance_scale=1.5``.

    **From an own network**, ``sample(network, plan, shape=(N, ...), ...)`` returns N samples as a tensor of its
    framework, in its layout and in the value range of its data. It computes where the network is, in its number type,
    and changes no setting of the framework. The network is in evaluation mode meanwhile. Further arguments:

    Args:
        plan: see `duet.samplers`.
        shape: the number of samples and the shape of one, in the network's layout; one to four axes.
        labels: one class for all, or one for each sample, as the network takes them.
        first: the index of the first sample, which selects its noise.
        conditions: further inputs by name, each with one value per sample.
        null_conditions: the same for the evaluation without a class under guidance; None is zeros.
        guide: an own network of the same framework, for autoguidance.
        classifier: an own network that returns logits (N, K), for a plan with a weight ``classifier``.
        start: x at the plan's first noise level; None is noise. With a `strength`, clean samples to be changed.
        strength: the fraction of the plan's rows to run, above 0 and at most 1: `start` gets the noise of the first of
            them (image to image).
        known: samples of which a part is kept, for inpainting; in the value range of the data.
        mask: 1 where they are kept and 0 elsewhere.
        measurement: what the samples agree with, see `duet.Measurement`; its operator takes NumPy arrays of samples in
            the network's layout.
        callback: called after each row with (row, x, estimate of x_0), for the first batch, in the network's layout.
        progress: called after each batch with the number of samples done.
        compile: whether the network is compiled, with `torch.compile` or XLA.
        differentiable: whether gradients flow from the samples to `start` and to the weights. Memory grows with the
            number of rows, as each keeps what its backward pass needs; it is for short plans.
        call: how the network is called, see `duet.adapt`; for example ``classes=10``.

    Raises:
        DuetError: for labels, weights or options that do not exist or do not fit.

    Example:
        Sixteen sevens from the run in a directory::

            images = duet.sample("outputs/digits", 16, labels=7, sampler="heun", steps=18)

        A network that denoises by the mean of the data, here 0, at every noise level:

        >>> import numpy as np
        >>> from duet.api.processes import process
        >>> from duet.api.samplers import samplers
        >>> plan = samplers.ddim(process("cosine", "x0"), steps=4)
        >>> sample(lambda x, t: np.zeros_like(x), plan, shape=(2, 8, 8, 3)).shape
        (2, 8, 8, 3)
    """
    is_path = isinstance(checkpoint, str | Path) and not own_files.is_network(checkpoint)
    if is_path or checkpoint is None or isinstance(checkpoint, Checkpoint):
        return sample_checkpoint(checkpoint, *arguments, **options)
    plan = options.pop("plan", None) if not arguments else arguments[0]
    if len(arguments) > 1 or not isinstance(plan, SamplerPlan):
        what = "a process, which a plan is made of" if isinstance(plan, Process) else repr(plan)
        raise DuetError(
            f"plan: {what} was given; sample(network, plan, shape=(N, ...)) takes a plan, for example "
            f"duet.samplers.ddim(duet.process('cosine', 'eps'), steps=50)"
        )
    if options.get("shape") is None:
        raise DuetError("shape: it is missing; give the number of samples and the shape of one, as in (16, 3, 32, 32)")
    return sample_network(checkpoint, plan, **options)


@check_types
def sample_checkpoint(
    checkpoint: Checkpoint | str | Path,
    count: int = 64,
    *,
    labels: int | str | Sequence[int | str] | None = None,
    sampler: str | Mapping[str, Any] | SamplerPlan | None = None,
    conditions: ArrayLike | Mapping[str, float] | None = None,
    seed: int = 0,
    batch: int = 128,
    weights: str | None = None,
    guide: Checkpoint | str | Path | None = None,
    classifier: Checkpoint | str | Path | None = None,
    measurement: Measurement | None = None,
    autoencoder: str | Path | None = None,
    latent_scaling: str = "autoencoder",
    callback: Callable[[int, NDArray, NDArray], None] | None = None,
    pairs: bool = False,
    backend: str | None = None,
    device: str = "auto",
    precision: str | None = None,
    compile: bool | str = "auto",
    threads: int | None = None,
    **options: Any,
) -> NDArray[np.uint8] | Dataset:
    """Sample images from a checkpoint; see `sample`."""
    _check_names(options)
    for name, number in (("sample.count", count), ("sample.batch", batch)):
        if number < 1:
            raise DuetError(f"{name}: {number} was given; it must be at least 1")
    loaded = read_checkpoint(checkpoint)
    which = choose_weights("weights", weights, loaded)
    models = load_guidance(guide=guide, classifier=classifier)
    plan = sampler if isinstance(sampler, SamplerPlan) else _make_plan(loaded, sampler, models, options)
    loaded.model.check_second_time(plan)
    numbers = named_labels("sample.labels", labels, names_of_checkpoint(loaded, models.classifier))
    numbers = labels_with_images(loaded) if numbers is None else numbers
    chosen = sample_labels(numbers, count, loaded.model, models.classifier_program)
    names = () if loaded.training is None else loaded.training.data.condition_names
    features = sample_features(conditions, count, loaded.model.program, names)
    if pairs:
        check_pairs(loaded.model, plan, chosen)
    notes = [
        *models.check_training(loaded, plan, which),
        *check_labels_trained(loaded, chosen),
        *describe_weights(loaded, which),
    ]
    for note in notes:
        warnings.warn(note, stacklevel=2)
    shape, edit = loaded.model.spec.image_shape, None
    if measurement is not None:
        edit = posterior(plan, measurement.of_images(shape, count))
    latents = loaded.training and loaded.training.data.latents
    unknown = None if loaded.training else loaded.model.spec.in_channels
    decoder = find_decoder(latents, None if autoencoder is None else str(autoencoder), unknown, latent_scaling)
    for note in clips_latents(decoder, plan):
        warnings.warn(note, stacklevel=2)
    setup = run_setup(loaded, backend, device, precision, compile, threads)
    opened = open_backend(setup, sampling_calls([(plan, count)], batch))
    network = opened.network(loaded.model.program, loaded.state.parts[which])
    guidance = models.build(opened)
    if features is not None:  # label dropout does not drop them, so they are those of both evaluations under guidance
        guidance = replace(guidance, features=features, null_features=features)
    images = generate(
        opened, network, plan, shape, chosen, seed, batch=batch,
        callback=callback and StepCallback(callback), guidance=guidance, edit=edit,
    )  # fmt: skip
    if pairs:
        return make_pairs(
            images, chosen, features, model=loaded.model, plan=plan, seed=seed,
            names=names_of_checkpoint(loaded, models.classifier), condition_names=names, dtype=opened.config.host_dtype,
            latents=latents,
        )  # fmt: skip
    if decoder is not None:
        return decoder.decode(images, opened)
    if loaded.training is not None and loaded.training.data.dtype != "uint8":
        return images_to_samples(images, loaded.model.spec.sample_shape, "channels_last")
    return to_uint8(images, loaded.model.value_range)


def _check_names(options: dict[str, Any]) -> None:
    """Refuse an option that no sampler has; the sampler itself refuses those of other samplers."""
    known = {name for sampler in SAMPLERS.values() for name in inspect.signature(sampler).parameters} - {"process"}
    known |= set(shared_options())
    for name in options:
        if name not in known:
            raise unknown_option(sample_checkpoint, name, known, called="sample")


def read_checkpoint(checkpoint: Checkpoint | str | Path) -> Checkpoint:
    """Return a checkpoint, or read the one at a path."""
    return checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint)


def load_guidance(**checkpoints: Checkpoint | str | Path | None) -> GuidanceModels:
    """Load the networks that guide, each once, with the weights that their runs sample with."""
    options: dict[str, Any] = {}
    for name, checkpoint in checkpoints.items():
        if checkpoint is not None:
            options[name] = read_checkpoint(checkpoint)
            options[f"{name}_weights"] = choose_weights(f"{name}_weights", None, options[name])
    return GuidanceModels(**options)


def _make_plan(
    checkpoint: Checkpoint, sampler: str | Mapping[str, Any] | None, models: GuidanceModels, options: dict[str, Any]
) -> SamplerPlan:
    if sampler is not None:
        options = {**(sampler if isinstance(sampler, Mapping) else {"name": sampler}), **options}
    check_levels(options)
    return models.plan(checkpoint.model, choose_sampler(options, checkpoint)[0])


def open_backend(setup: BackendSetup, calls: int) -> Backend:
    """Open the backend of a setup in the mode that suits this number of network calls."""
    return setup.choose_mode(_loaded(setup.name, setup.config), calls)


@lru_cache(maxsize=4)
def _loaded(name: str, config: Any) -> Backend:
    """Open a backend once for each configuration: what it traces and compiles is kept."""
    return BackendSetup(name, config).load()
