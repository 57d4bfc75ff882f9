"""Pairs of noise and sample, as data to train on: reflow and the distillation of a teacher.

Sample k of a deterministic sampler is a function of its noise, Stream(seed, "sample/start") at k, so that the pair of
both tells a student what the teacher makes of each noise. Both are kept as floats of the precision that computed them,
the noise with standard deviation 1 and the sample unclipped, in the value range of the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import pluralize
from diffusion_core.data import Dataset
from diffusion_core.data.dataset import default_class_names
from diffusion_core.data.latents import LatentRecord
from diffusion_core.data.store import save_store
from diffusion_core.files.atomic import write_atomically
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.model.generate import start_noise
from diffusion_core.networks.own_call import images_to_samples
from diffusion_core.sampling import SamplerPlan

__all__ = ["check_directory", "check_pairs", "make_pairs", "save_pairs"]


def check_pairs(model: DiffusionModel, plan: SamplerPlan, labels: NDArray) -> None:
    """Refuse samples that are no function of their noise, or have no class.

    Raises:
        DuetError: for a sampler with fresh noise, or the label of "no class".
    """
    if plan.is_noisy.any():
        raise DuetError(
            f"pairs: true was given with the sampler {plan.name}, which adds fresh noise, so that a sample is no "
            "function of its first noise; use a deterministic one, such as sampler=ddim or sampler=heun"
        )
    if model.program.null_label is not None and np.any(labels == model.program.null_label):
        raise DuetError("sample.labels: no class was given with pairs=true; pairs to train on need a class each")


def check_directory(directory: Path) -> None:
    """Refuse a directory that holds something, before anything is drawn."""
    if directory.exists() and any(directory.iterdir()):
        raise DuetError(f"pairs: {str(directory)!r} exists; pairs are not written over others, so give another out=DIR")


def make_pairs(
    samples: NDArray,
    labels: NDArray,
    features: NDArray | None,
    *,
    model: DiffusionModel,
    plan: SamplerPlan,
    seed: int,
    names: Mapping[int, str],
    condition_names: Sequence[str] = (),
    dtype: DTypeLike = np.float32,
    latents: Mapping[str, Any] | None = None,
) -> Dataset:
    """Return samples 0, 1, ... with their noise as a data set.

    Args:
        samples: the images as they were generated, with shape (N, H, W, C).
        labels: of the network, with shape (N,).
        features: of the network, with shape (N, F), or None.
        model: the teacher.
        plan: that drew the samples.
        seed: of their noise.
        names: the name of each label.
        condition_names: of the first features; the others, of augmentation, are left out.
        dtype: of the noise.
        latents: how the data of the teacher were encoded; None or empty for images.
    """
    program = model.program
    noise = start_noise(replace(plan, start_scale=1.0), seed, np.arange(len(labels)), samples.shape[1:], dtype)
    classes = list(program.labels) if program.classes else [0]
    class_names = tuple(names.get(label, "") for label in classes)
    if not all(class_names):
        class_names = default_class_names(len(classes)) if program.classes else ("all",)
    conditions = features[:, : len(condition_names)] if features is not None and condition_names else None
    arrays = (images_to_samples(array, model.spec.sample_shape, "channels_last") for array in (samples, noise))
    images, noise = (np.ascontiguousarray(array) for array in arrays)
    return Dataset(
        images, np.asarray(labels) - classes[0], class_names, "pairs", value_range=tuple(model.value_range),
        conditions=conditions, condition_names=() if conditions is None else tuple(condition_names), noise=noise,
        latents=LatentRecord.from_dict(latents, "the checkpoint") if latents else None,
    )  # fmt: skip


def save_pairs(pairs: Dataset, directory: Path, made: Mapping[str, Any]) -> None:
    """Write pairs as a store, with a page that says how they were made.

    Args:
        pairs: of `make_pairs`.
        directory: of the store.
        made: the teacher and its sampler, as plain data.
    """
    save_store(pairs, directory, made)
    shape = " x ".join(map(str, pairs.shape))
    lines = [
        "# Pairs of noise and image",
        "",
        f"{pluralize(len(pairs), 'pair')}, {shape}, {pairs.images.dtype}, value range {list(pairs.value_range)}.  ",
        f"SHA-256 of the content: `{pairs.sha256}`",
        "",
        "To train on them: `data=store data.options.directory=THIS_DIRECTORY`, with the process of the teacher.",
        "",
        *(f"- {name}: {value}" for name, value in made.items()),
    ]
    write_atomically(directory / "README.md", ("\n".join(lines) + "\n").encode())
