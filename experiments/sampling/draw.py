"""Drawing samples into a directory: images, a grid, and figures of how they were generated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.interface import Backend, Guidance, Network
from diffusion_core.data import to_uint8
from diffusion_core.images import render
from diffusion_core.images.channels import as_pictures
from diffusion_core.metrics.image_files import write_image_files
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.model.generate import generate
from diffusion_core.networks.own_call import images_to_samples
from diffusion_core.runs.run_directory import write_samples
from diffusion_core.sampling import SamplerPlan
from experiments.runtime.latents import LatentDecoder
from experiments.runtime.progress import Counter
from experiments.sampling.figures import make_trajectory
from experiments.sampling.options import SampleOptions, sample_features, sample_labels
from experiments.sampling.sheet import sample_sheet, sheet_columns

__all__ = ["save_samples"]


def save_samples(
    backend: Backend,
    network: Network,
    model: DiffusionModel,
    plan: SamplerPlan,
    directory: Path | None,
    options: SampleOptions,
    name: str = "samples",
    figures: bool = True,
    guidance: Guidance | None = None,
    pause: Callable[[], None] | None = None,
    names: Mapping[int, str] | None = None,
    keep_values: bool = False,
    condition_names: Sequence[str] = (),
    on_values: Callable[[NDArray, NDArray, NDArray | None], None] | None = None,
    decoder: LatentDecoder | None = None,
    **facts: Any,
) -> NDArray[np.uint8]:
    """Draw samples and write ``<name>.npz`` and ``<name>.png``; return the images with shape (N, H, W, C).

    With ``options.files``, each sample is also written as a file of its own, in the directory ``<name>``.

    Of several processes that draw together, the main one writes.

    Args:
        directory: where to write; not used by a process other than the main one.
        options: number, classes and seed of the samples.
        name: starts with "samples".
        figures: whether to write the figures and the states of a `figures.Trajectory` too, with the suffix that follows
            "samples" in the name.
        guidance: see `generate`, as is `pause`.
        names: the name of each label, for the grid and the facts.
        keep_values: whether to keep the values themselves too, for data that are no bytes.
        condition_names: the names of the conditions, if the options name them.
        on_values: called in the main process with the values themselves, the labels and the features.
        decoder: makes images of the samples of a network of latents.
        facts: are added to the facts in the ``.npz`` file.
    """
    classifier = guidance.classifier.program if guidance and guidance.classifier else None
    labels = sample_labels(options.labels, options.count, model, classifier)
    features = sample_features(options.conditions, options.count, model.program, condition_names)
    if features is not None:  # label dropout does not drop them, so they are those of both evaluations under guidance
        guidance = replace(guidance or Guidance(), features=features, null_features=features)
    trajectory = make_trajectory(model, plan, network, labels, names or {}) if figures else None
    with Counter(f"{name}: {plan.name}", options.count) as progress:
        samples = generate(
            backend, network, plan, model.spec.image_shape, labels, options.seed,
            batch=options.batch, callback=trajectory and trajectory.callback, progress=progress,
            guidance=guidance, collective=backend.collective, pause=pause,
        )  # fmt: skip
    if decoder is None:
        images = to_uint8(as_pictures(samples), model.value_range)
    else:
        images = as_pictures(decoder.decode(samples, backend))
    if not backend.collective.group.is_main_process:
        return images
    if on_values is not None:
        on_values(samples, labels, features)
    scale = max(1, 64 // images.shape[1])
    sheet = sample_sheet(images, labels, names or {}, sheet_columns(model.spec.num_classes), scale)
    render.save_png(directory / f"{name}.png", sheet)
    if trajectory:
        trajectory.save(directory, name.removeprefix("samples"))
    # Plans of one name may differ, for example in their guidance; the sums tell them apart.
    sums = {name: float(np.abs(table, dtype=np.float64).sum()) for name, table in plan.tables().items()}
    facts |= {"plan": plan.name, "plan_sums": sums, "seed": options.seed, "backend": backend.describe().backend}
    facts["conditional"] = bool(model.program.classes or classifier)
    if features is not None:
        facts["conditions"] = options.conditions
    if names:
        facts["class_names"] = {str(label): names[label] for label in np.unique(labels).tolist() if label in names}
    if options.files is not None:
        by_label = names or {int(label): f"class {label}" for label in np.unique(labels) if facts["conditional"]}
        with Counter(f"{name}: files", len(images)) as progress:
            write_image_files(directory / name, images, labels, by_label, progress)
    # Written last: if it exists, the other files are complete.
    values = images_to_samples(samples, model.spec.sample_shape, "channels_last") if keep_values else None
    kept = {"values": values} if decoder is None else {"latents": values}
    write_samples(directory / f"{name}.npz", images, labels, **kept, **facts)
    return images
