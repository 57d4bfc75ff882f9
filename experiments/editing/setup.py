"""What is edited, and with which network and sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.data import from_uint8
from diffusion_core.data.reading import Reading
from diffusion_core.data.transform import fit_image
from diffusion_core.files.safe_read import open_npz
from diffusion_core.images.decode import decode
from diffusion_core.images.files import is_image_file, readable_name, scan
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.runs.checkpoint import Checkpoint, load_checkpoint
from diffusion_core.sampling import SamplerPlan
from diffusion_core.training.labels import network_labels
from experiments.runtime.backends import BackendSetup
from experiments.runtime.data import DataSource, check_data
from experiments.runtime.own_networks import OwnNetwork, with_network
from experiments.sampling.classes import named_labels, names_of_checkpoint
from experiments.sampling.conditions import check_class_names, check_labels_trained, describe_weights
from experiments.sampling.guidance import GuidanceModels
from experiments.sampling.options import choose_weights, sample_labels
from experiments.sampling.plans import choose_sampler, make_sampler_plan

__all__ = ["EditContext", "EditSetup", "SourceImages"]


@dataclass(frozen=True, eq=False)
class EditSetup:
    """A request to edit images.

    Args:
        checkpoint: a run directory or one of its checkpoints; in Python also a checkpoint.
        data: the data set whose images are edited; None if `path` is given.
        path: an image file, a folder of images, or an ``.npz`` file with `images` and, optionally, `labels`.
        images: the positions of the images in the data set or the file; None for all.
        labels: one class for all, a list of classes that repeats, or None for the classes of the images; a class is a
            number or its name.
        variants: edited images per source image.
        batch: images per network call.
        seed: of the noise.
        weights: which weights of the checkpoint; None takes those that its run samples with.
        sampler: name and options; options alone change the sampler of the run.
        mode: name and options of the mode, see `experiments.editing.modes`.
        guidance: other networks that guide.
        backend: what computes.
        network: the own network that the checkpoint is of.
        arrays: the images themselves, uint8 (N, H, W, C), in place of data and path.
    """

    checkpoint: str | Checkpoint
    data: DataSource | None = None
    path: str | None = None
    images: int | Sequence[int] | None = (0, 1, 2, 3)
    labels: int | str | Sequence[int | str] | None = None
    variants: int = 1
    batch: int = 64
    seed: int = 0
    weights: str | None = None
    sampler: Mapping[str, Any] = field(default_factory=dict)
    mode: Mapping[str, Any] = field(default_factory=lambda: {"name": "image_to_image"})
    guidance: GuidanceModels = field(default_factory=GuidanceModels)
    backend: BackendSetup = field(default_factory=BackendSetup)
    network: OwnNetwork | None = None
    arrays: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        for name in ("variants", "batch"):
            if getattr(self, name) < 1:
                raise DuetError(f"{name}: {getattr(self, name)} was given; it must be at least 1")


@dataclass(frozen=True, eq=False)
class SourceImages:
    """The images to edit: uint8 with shape (N, H, W, C), the network's label of each, and their names."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int32]
    names: list[str]


class EditContext:
    """A setup with its checkpoint, its sampler and its images, which are read when they are first used.

    Raises:
        DuetError: if the checkpoint cannot be read, or does not have the weights.
    """

    def __init__(self, setup: EditSetup) -> None:
        self.setup = setup
        if isinstance(setup.checkpoint, Checkpoint):
            self.checkpoint = setup.checkpoint
        else:
            self.checkpoint = with_network(load_checkpoint(setup.checkpoint), setup.network, setup.checkpoint)
        if self.checkpoint.training is not None and self.checkpoint.training.data.latents:
            raise DuetError(
                "checkpoint: this network samples latents, but images are edited; use a network of images, or encode, "
                "edit and decode with duet.sample(network, plan, start=...)"
            )
        self.weights = choose_weights("weights", setup.weights, self.checkpoint)
        self.sampler, line = choose_sampler(setup.sampler, self.checkpoint)
        self.notes = [line, *describe_weights(self.checkpoint, self.weights)]  # printed once everything fits

    @property
    def model(self) -> DiffusionModel:
        """The network and its process."""
        return self.checkpoint.model

    @property
    def choices(self) -> dict[str, Any]:
        """By configuration key, the values that may have been left open."""
        weights = {key: getattr(self.setup.guidance, key) for key in ("guide_weights", "classifier_weights")}
        return {"sampler": self.sampler, "weights": self.weights, **weights}

    def plan(self, **options: Any) -> SamplerPlan:
        """Return the plan of the sampler; with `options` in place of its own, the plan of a part of it."""
        guidance = self.setup.guidance
        if not options:
            plan = guidance.plan(self.model, self.sampler)
            self._note(guidance.check_training(self.checkpoint, plan, self.weights))
            return plan
        # A spacing has the levels and the end of the part, in place of these two.
        own = {key: v for key, v in self.sampler.items() if "spacing" not in options or key not in ("sigmas", "end")}
        # Networks that fit the whole plan fit its parts, though a part may have another guidance scale, or none.
        return make_sampler_plan(self.model, own | options, guidance.guide and guidance.guide.model)

    @cached_property
    def sources(self) -> SourceImages:
        """The images to edit.

        Raises:
            DuetError: if they cannot be read, or do not fit the network.
        """
        setup, model = self.setup, self.model
        if setup.arrays is not None:
            images, labels, names = setup.arrays, None, [f"image {k}" for k in range(len(setup.arrays))]
        elif (setup.path is None) == (setup.data is None):
            raise DuetError("data, path: give the images by one of the two, as data=digits or path=FILE")
        else:
            images, labels, names = self._from_file(Path(setup.path)) if setup.path is not None else self._from_data()
        if images.shape[1:] != model.spec.image_shape:
            raise DuetError(f"images: they are {images.shape[1:]}, but the network takes {model.spec.image_shape}")
        return SourceImages(images, self.labels_of(len(images), labels), names)

    def labels_of(self, count: int, labels: NDArray[np.int32] | None = None) -> NDArray[np.int32]:
        """Return the labels that the request names, or else those of the images, or else no class.

        Raises:
            DuetError: for labels that the network does not have, or was never trained with.
        """
        setup, model = self.setup, self.model
        if setup.labels is not None:
            numbers = named_labels("labels", setup.labels, self.label_names)
            labels = sample_labels(numbers, count, model, setup.guidance.classifier_program)
        elif labels is None or not model.program.classes:
            labels = np.full(count, model.program.null_label or 0, np.int32)
        self.check_labels(labels, None if setup.labels is not None else "none was given, which draws without a class")
        return labels

    @property
    def label_names(self) -> dict[int, str]:
        """The name of each label, if they are known."""
        return names_of_checkpoint(self.checkpoint, self.setup.guidance.classifier)

    def check_labels(self, labels: NDArray[np.int32], no_class: str | None = None) -> None:
        """Refuse labels that the network was never trained with; `no_class` says why some are without a class."""
        self._note(check_labels_trained(self.checkpoint, labels, "labels", no_class))

    def _note(self, lines: Sequence[str]) -> None:
        self.notes += [line for line in lines if line not in self.notes]

    def _from_data(self) -> tuple[NDArray[np.uint8], NDArray[np.int32], list[str]]:
        dataset, program = self.setup.data.load(), self.model.program
        check_data(dataset, self.model.spec)
        if self.setup.labels is None:
            check_class_names("data", self.checkpoint, dataset.class_names, "give the classes by labels=CLASS")
        positions = self._positions(len(dataset))
        labels = network_labels(dataset.labels[positions], program.classes, program.null_label)
        if not dataset.is_pictures:
            raise DuetError(
                f"data: {dataset.name} holds {dataset.images.dtype} of shape {dataset.shape}, which are no pictures; "
                f"editing takes images of bytes, or floats with data.options.value_range"
            )
        return dataset.pictures(positions), labels, [f"{self.setup.data.name} {k}" for k in positions]

    def _from_file(self, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int32] | None, list[str]]:
        if is_image_file(path):
            return self.read_image(path, self.model.spec.in_channels)[None], None, [path.stem]
        if path.is_dir():
            return self._from_folder(path)
        with open_npz(path, "an image, a folder of images or an .npz with images") as file:
            images, labels = file["images"], file.get("labels")
        if images.dtype != np.uint8 or images.ndim != 4:
            raise DuetError(f"path: {path} has {images.dtype} images {images.shape}; they must be uint8 (N, H, W, C)")
        positions = self._positions(len(images))
        labels = None if labels is None else labels[positions].astype(np.int32)
        return images[positions], labels, [f"{path.stem} {k}" for k in positions]

    def _from_folder(self, path: Path) -> tuple[NDArray[np.uint8], None, list[str]]:
        """Read the images of a folder at the positions that the setup names, at any depth, in natural order."""
        tree, left_out = scan(path)
        files = list(tree.every_image())
        lines = Reading(left_out=left_out.names).lines
        if not files:
            raise DuetError(f"path: {path} holds no images{f' ({lines[0]})' if lines else ''}")
        self._note([f"{path}: {line}" for line in lines])
        chosen = [files[k] for k in self._positions(len(files))]
        images = np.stack([self.read_image(file, self.model.spec.in_channels) for file in chosen])
        return images, None, [readable_name(file.stem) for file in chosen]

    def read_image(self, path: Path, channels: int) -> NDArray[np.uint8]:
        """Return an image file in the size of the network, with shape (H, W, channels); note how it was resized."""
        decoded, size = decode(path), self.model.spec.image_size
        image = decoded.image.convert("RGB" if channels == 3 else "L")
        if decoded.remark:
            self.notes.append(f"{path}: {decoded.remark}")
        if image.size != (size, size):
            width, height = image.size
            cut = "" if width == height else f"cut to its central square of {min(image.size)} and "
            self.notes.append(f"{path}: of {width} x {height} pixels, {cut}resized to {size} x {size} (Lanczos)")
        return fit_image(image, size)

    def _positions(self, count: int) -> list[int]:
        images = self.setup.images
        positions = list(range(count)) if images is None else [images] if isinstance(images, int) else list(images)
        if not positions or not all(isinstance(k, int) and 0 <= k < count for k in positions):
            raise DuetError(f"images: {images} was given; it is a list of image positions, 0 to {count - 1}")
        return positions

    def pixels(self) -> NDArray[np.float64]:
        """Return the images in the value range of the model, each repeated for its variants."""
        images = np.repeat(self.sources.images, self.setup.variants, axis=0)
        return from_uint8(images, np.float64, self.model.value_range)
