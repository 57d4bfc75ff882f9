"""Encode a data set by an autoencoder into a store of latents, which both frameworks train on."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import Counter as Tally
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.interface import Backend
from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.convert.autoencoder import export_autoencoder, import_autoencoder
from diffusion_core.data import Dataset, from_uint8
from diffusion_core.data.archives import DatasetInfo
from diffusion_core.data.card import PreparedPart, card_text, data_card
from diffusion_core.data.latents import SCALING, LatentRecord
from diffusion_core.data.pixels import VALUE_RANGE
from diffusion_core.data.source import Source
from diffusion_core.data.store import STD, finish_store, open_store, shard_length, shard_name, write_array
from diffusion_core.data.transform import ArrayTransform
from diffusion_core.files.atomic import write_atomically
from diffusion_core.files.safe_read import read_json
from diffusion_core.model.latents import LatentCodec
from diffusion_core.networks.autoencoder import DEFAULT, Autoencoder
from diffusion_core.runs.run_directory import describe_environment
from experiments.runtime.backends import BackendSetup
from experiments.runtime.data import DataSource
from experiments.runtime.progress import Counter

__all__ = ["LatentOptions", "LatentSetup", "encode_dataset", "encode_images"]

# The folder of a prepared data set that holds the autoencoder.
_AUTOENCODER = "autoencoder"
# What is taken of the posterior of an image.
SAMPLES = ("mean", "once", "always")


@dataclass(frozen=True)
class LatentOptions:
    """How images are encoded.

    Args:
        sample: ``"mean"`` takes the mean of each image's posterior as z, ``"once"`` a draw of it, and ``"always"``
            stores mean and deviation, of which a training draws z anew at each position of its run. False is the first
            and True the second.
        seed: of the draws of ``"once"``; those of a training follow from its own seed.
        batch: images per network call; affects only rounding.
        scaling: how latents follow from z, one of `networks.autoencoder.CONVENTIONS`: as the autoencoder says, or as in
            EDM2.
        mean: of z for each channel, in place of that of the scaling.
        std: of z for each channel.
        scaling_factor: the deviation that latents then have.
        image_range: of the images that the autoencoder takes.
    """

    sample: str | bool = "mean"
    seed: int = 0
    batch: int = 8
    scaling: str = DEFAULT
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scaling_factor: float | None = None
    image_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise DuetError(f"latents.batch: {self.batch} was given; it must be at least 1")
        sample = {False: "mean", True: "once"}[self.sample] if isinstance(self.sample, bool) else self.sample
        check_choice("latents.sample", sample, SAMPLES)
        object.__setattr__(self, "sample", sample)
        if (self.mean is None) != (self.std is None):
            given, missing = ("std", "mean") if self.mean is None else ("mean", "std")
            raise DuetError(f"latents.{given}: it was given without latents.{missing}; give both, or neither")

    def scale(self, autoencoder: Autoencoder) -> Autoencoder:
        """Return an autoencoder with these latents."""
        changes: dict[str, Any] = {"scaling_factor": self.scaling_factor, "image_range": self.image_range}
        if self.mean is not None:
            changes |= {"latents_mean": self.mean, "latents_std": self.std, "shift_factor": 0.0}
        made = {key: tuple(v) if isinstance(v, Sequence) else v for key, v in changes.items() if v is not None}
        return autoencoder.scaled(self.scaling, **made)


@dataclass(frozen=True, eq=False)
class LatentSetup:
    """A request to encode a data set.

    Args:
        source: the images; every part of a prepared data set is encoded.
        out: the directory to write.
        autoencoder: the folder of an `AutoencoderKL` of diffusers, or of a pipeline that has one.
        options: how images are encoded.
        backend: runs the encoder.
    """

    source: DataSource
    out: str
    autoencoder: str
    options: LatentOptions = field(default_factory=LatentOptions)
    backend: BackendSetup = field(default_factory=BackendSetup)


def encode_dataset(setup: LatentSetup) -> dict[str, Any]:
    """Write the latents of a data set as stores, one for each part, with a copy of the autoencoder; return the card.

    Nothing is done if the directory holds the same already.

    Raises:
        DuetError: if the images do not fit the autoencoder, or the directory holds something else.
    """
    backend = setup.backend.load()
    autoencoder = setup.options.scale(import_autoencoder(setup.autoencoder, backend.read_arrays))
    parts = {part: _load(setup.source, part) for part in setup.source.parts() or [None]}
    for dataset in parts.values():
        _check(dataset, autoencoder)
    named = {part or dataset.reading.part or "train": dataset for part, dataset in parts.items()}
    scaling = {name: getattr(autoencoder.spec, name) for name in SCALING}
    request = {
        "autoencoder": autoencoder.sha256, "sample": setup.options.sample, "seed": setup.options.seed,
        "scaling": {name: list(value) if isinstance(value, tuple) else value for name, value in scaling.items()},
        "parts": {part: dataset.sha256 for part, dataset in named.items()},
    }  # fmt: skip
    final = Path(setup.out).expanduser()
    if final.exists() and any(final.iterdir()):
        return _existing(final, request)
    final.parent.mkdir(parents=True, exist_ok=True)
    unfinished = final.with_name(f".{final.name}.{os.getpid()}.part")
    try:
        unfinished.mkdir()
        codec, first, made = LatentCodec(autoencoder, backend, setup.options.batch), 0, {}
        for part, dataset in named.items():
            made[part] = _encode_part(codec, dataset, part, unfinished / part, first, setup.options)
            first += len(dataset)
        card = _card(made, named, autoencoder, setup, request)
        for name, content in export_autoencoder(autoencoder).items():
            write_atomically(unfinished / _AUTOENCODER / name, content)
        write_atomically(unfinished / "card.json", _json(card))
        write_atomically(unfinished / "README.md", card_text(card).encode())
        if final.is_dir():  # it is empty
            final.rmdir()
        unfinished.rename(final)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return card


def encode_images(dataset: Dataset, path: str, options: LatentOptions, backend: Backend) -> Dataset:
    """Return the latents of a data set in memory.

    Args:
        dataset: the images.
        path: the folder of the autoencoder, see `LatentSetup`.
        options: how images are encoded.
        backend: runs the encoder.

    Raises:
        DuetError: if the images do not fit the autoencoder.
    """
    autoencoder = options.scale(import_autoencoder(path, backend.read_arrays))
    _check(dataset, autoencoder)
    codec = LatentCodec(autoencoder, backend, options.batch)
    made = [
        _encode(codec, dataset, np.arange(at, min(at + options.batch, len(dataset))), options)
        for at in range(0, len(dataset), options.batch)
    ]
    means, stds = zip(*made, strict=True)
    record = _record(codec, str(Path(path).expanduser().resolve()), dataset.shape, options)
    return Dataset(
        np.concatenate(means), dataset.labels, dataset.class_names, f"{dataset.name} latents",
        conditions=dataset.conditions, condition_names=dataset.condition_names, latents=record,
        std=np.concatenate(stds) if options.sample == "always" else None,
    )  # fmt: skip


def _encode(
    codec: LatentCodec, dataset: Dataset, index: NDArray, options: LatentOptions, first: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Return the latents of some images, and their deviations if these are kept."""
    images = from_uint8(dataset.pictures(index), np.float64, VALUE_RANGE)
    if options.sample == "always":
        mean, std = codec.posterior(images)
        return mean.astype(np.float32), std.astype(np.float32)
    seed = options.seed if options.sample == "once" else None
    return codec.encode(images, seed, first + index).astype(np.float32), None


def _record(codec: LatentCodec, path: str, shape: tuple[int, ...], options: LatentOptions) -> LatentRecord:
    spec = codec.autoencoder.spec
    return LatentRecord(
        path, codec.autoencoder.sha256, spec.scaling_factor, spec.shift_factor, options.sample != "mean", options.seed,
        shape, spec.latents_mean, spec.latents_std, spec.image_range,
    )  # fmt: skip


def _load(source: DataSource, part: str | None) -> Dataset:
    chosen = source if part is None else replace(source, options={**source.options, "part": part})
    return chosen.load(announce=part is None)


def _check(dataset: Dataset, autoencoder: Autoencoder) -> None:
    """Refuse data that are no pictures, or not such as the autoencoder takes."""
    spec = autoencoder.spec
    if not dataset.is_pictures:
        raise DuetError(f"data: {dataset.name} holds no pictures, but an autoencoder encodes pictures")
    if dataset.channels != spec.in_channels:
        raise DuetError(
            f"data: {dataset.name} has {dataset.channels} channels, but the autoencoder takes {spec.in_channels}; set "
            f"data.options.channels={spec.in_channels}, or use another autoencoder"
        )
    spec.latent_shape(*dataset.shape[:2])


def _existing(final: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the card of a directory that the same request made."""
    try:
        card = read_json(final / "card.json")
        found = card["latents"]["request"]
        if "scaling" not in found:  # of before: a truth value, and what the autoencoder says
            own = {"scaling": request["scaling"], "sample": "once" if found["sample"] else "mean"}
            found = {**found, **own} if _is_default(request["scaling"]) else {}
        same = found == request
    except (DuetError, KeyError, TypeError):
        raise DuetError(f"out: {str(final)!r} holds something else than latents; choose another directory") from None
    if not same:
        raise DuetError(
            f"out: {str(final)!r} holds latents of other images, of another autoencoder or other draws; choose another "
            f"directory, or delete it"
        )
    for part, facts in card["parts"].items():
        if open_store(final / part).sha256 != facts["sha256"]:
            raise DuetError(f"out: {str(final / part)!r} differs from its card; delete it and encode it again")
    return card


def _is_default(scaling: Mapping[str, Any]) -> bool:
    """Return whether latents have one factor and one shift."""
    return not scaling["latents_mean"] and tuple(scaling["image_range"]) == VALUE_RANGE


def _encode_part(
    codec: LatentCodec, dataset: Dataset, part: str, directory: Path, first: int, options: LatentOptions
) -> Dataset:
    """Write the latents of a part; `first` is the place of its first image among those of all parts."""
    spec, lengths = codec.autoencoder.spec, []
    directory.mkdir()
    step = shard_length(4 * math.prod(spec.latent_shape(*dataset.shape[:2])))
    keeps = options.sample == "always"
    with Counter(f"{dataset.name}, {part}: latents", len(dataset)) as progress:
        for start in range(0, len(dataset), step):
            shard, spread = [], []
            for at in range(start, min(start + step, len(dataset)), codec.batch):
                index = np.arange(at, min(at + codec.batch, start + step, len(dataset)))
                mean, std = _encode(codec, dataset, index, options, first)
                shard.append(mean)
                spread.append(std)
                progress(int(index[-1]) + 1)
            write_array(directory / shard_name(len(lengths)), np.concatenate(shard))
            if keeps:
                write_array(directory / shard_name(len(lengths), STD), np.concatenate(spread))
            lengths.append(sum(map(len, shard)))
    record = _record(codec, f"../{_AUTOENCODER}", dataset.shape, options)
    return finish_store(
        directory, lengths, dataset.labels, dataset.class_names, f"{dataset.name} latents", None, None,
        dataset.conditions, dataset.condition_names, latents=record, std=keeps,
    )  # fmt: skip


def _card(
    made: Mapping[str, Dataset],
    images: Mapping[str, Dataset],
    autoencoder: Autoencoder,
    setup: LatentSetup,
    request: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the data card: that of any floats, and how they were encoded."""
    parts = {}
    for part, dataset in made.items():
        source = Source(dataset.images, dataset.labels, dataset.class_names, dataset.name)
        size = " x ".join(map(str, images[part].shape[:2]))
        parts[part] = PreparedPart(source, dataset, (), (), Tally({size: len(dataset)}))
    first, spec = next(iter(made.values())), autoencoder.spec
    facts = {
        "autoencoder": str(setup.autoencoder),
        "sha256": autoencoder.sha256,
        **{name: getattr(spec, name) for name in SCALING},
        "z": {
            "mean": "the mean",
            "once": f"drawn with seed {setup.options.seed}",
            "always": "drawn anew at each position of a training",
        }[setup.options.sample],
        "image": list(next(iter(images.values())).shape),
        "request": dict(request),
    }
    name = next(iter(images.values())).name
    extra = {"latents": facts, "command": describe_environment()["command"]}
    info = DatasetInfo(f"Latents of {name}")
    return data_card(parts, ArrayTransform(first.shape, first.images.dtype), info, extra)


def _json(card: Mapping[str, Any]) -> bytes:
    return (json.dumps(card, indent=2) + "\n").encode()
