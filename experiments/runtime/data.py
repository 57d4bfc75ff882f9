"""The choice of a data set: by name, from its files or its prepared store, or a fallback where one is asked for."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import join_some, pluralize
from diffusion_core.data import DATASETS, Dataset, gather_some, load_dataset, source_parts
from diffusion_core.data.held_out import AUTO, GENERATED, HELD_OUT_COUNT, choose_held_out
from diffusion_core.data.layout import UNLABELLED
from diffusion_core.data.reading import METADATA, UNREADABLE, check_max_unreadable, reading_lines
from diffusion_core.data.source import resolve_parts
from diffusion_core.data.sources import DATASET_INFO, SOURCES
from diffusion_core.data.store import list_stores, store_parts
from diffusion_core.files.safe_read import read_json
from diffusion_core.networks import NetworkSpec
from diffusion_core.runtime.heartbeat import heartbeat

__all__ = ["DataSource", "HeldOut", "check_data", "count_classes", "describe_clip", "describe_data"]

_LOOKED_AT = 1000  # items whose values are compared with the bound of the sampler


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The held-out part of a data set, which a run validates on.

    Args:
        part: its name.
        dataset: its images.
    """

    part: str
    dataset: Dataset


@dataclass(frozen=True)
class DataSource:
    """Where a data set comes from.

    Args:
        name: of the data set, as in `diffusion_core.data.DATASETS`.
        options: of that data set. ``path: None`` means that the files have to be prepared in `store`; a data set that
            has no option `path`, such as the digits, ignores it.
        store: the directory that `experiments.prepare` writes.
        fallback: name and options of the data set that can take its place; empty for none.
        use_fallback: whether the fallback is used if there are neither files nor a store; otherwise that is an error.
        max_unreadable: the largest fraction of the files of images that may be unreadable.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    store: str | None = None
    fallback: Mapping[str, Any] = field(default_factory=dict)
    use_fallback: bool = False
    max_unreadable: float = 0.01

    def __post_init__(self) -> None:
        # An experiment for files sets path: null; with data=digits that remains, although the digits have no files.
        known = inspect.signature(DATASETS[self.name]).parameters if self.name in DATASETS else {"path": None}
        if "path" not in known and self.options.get("path", "") is None:
            object.__setattr__(self, "options", {key: value for key, value in self.options.items() if key != "path"})

    def load(self, announce: bool = True) -> Dataset:
        """Load the data set; the name of a fallback says what it replaces.

        Args:
            announce: whether to print what the number of images does not show: how folders were read, what was left
                out, which part was chosen, which classes are empty, and that a fallback is used.

        Raises:
            DuetError: if there are no such files, or an option does not fit.
        """
        check_max_unreadable(self.max_unreadable)
        with heartbeat(f"data {self.name}: reading"):
            dataset, lines = self._load()
        if announce:
            for line in (*lines, *dataset.reading.lines, *self._about(dataset)):
                print(f"data {self.name}: {line}", flush=True)
        return dataset

    def parts(self) -> list[str]:
        """Return the names of all parts if none is chosen and there are several; otherwise nothing."""
        options = dict(self.options)
        if options.get("part") is not None or (self.name not in SOURCES and self.name != "store"):
            return []
        if self.name in SOURCES and options.get("path") is None:
            found = store_parts(self.store or "")
        else:
            found = _parts(self.name, options)
        return found if len(found) > 1 else []

    def _load(self) -> tuple[Dataset, tuple[str, ...]]:
        options, fallback = dict(self.options), dict(self.fallback)
        if options.get("path") == "":
            raise DuetError("data.options.path: an empty text was given; it is a file or a folder")
        if options.get("path", "") is not None:
            limit = {"max_unreadable": self.max_unreadable} if self.name in SOURCES else {}
            return load_dataset(self.name, **options, **limit), ()
        if self.store and store_parts(self.store):
            selected = {"directory": self.store, "part": options.get("part"), "classes": options.get("classes")}
            return self._check_store(load_dataset("store", **selected)), ()
        where = f"{self.store} holds no store" if self.store else "data.store is null"
        missing = (
            f"{where}, and data.options.path is null; make the store once with {self._prepare_command()}, or name the "
            f"files with data.options.path=PATH"
        )
        if others := list_stores(Path(self.store or "data").parent):
            missing += f"; the stores that exist (data=store data.options.directory=STORE): {', '.join(others)}"
        if not fallback:
            raise DuetError(f"data {self.name}: {missing}")
        name = fallback.pop("name")
        if not self.use_fallback:
            raise DuetError(
                f"data {self.name}: {missing}; to use the data set {name} in its place, for a try without the files, "
                f"add data.use_fallback=true"
            )
        dataset = load_dataset(name, **fallback)
        line = f"NOT FOUND; {len(dataset):,} images of the data set {name} are used in its place ({missing})"
        return replace(dataset, name=f"{dataset.name}, in place of {self.name}"), (line,)

    def load_held_out(self, part: str | None = AUTO, count: int = 0, announce: bool = True) -> HeldOut | None:
        """Load the images to validate on; None if the data set has no held-out part.

        Of image files, only as many are read as are needed; see `held_out.HELD_OUT_COUNT`.

        Args:
            count: the number of images that will be used.
            part: the name of a part; "auto" for the one that `held_out.choose_held_out` finds; None or "none" for none.
            announce: whether to print which of its images are unreadable or damaged.

        Raises:
            DuetError: there is no such part, it is trained on, or it cannot be read.
        """
        if part in (None, "none"):
            return None
        name, options = self._resolved()
        if name in GENERATED:
            chosen = choose_held_out(name, ["train", "held_out"], "train", part)
            return HeldOut(chosen, _generated(name, options))
        sources = source_parts(name, options["path"], options) if name in SOURCES else {}
        parts, trained = list(sources) or _parts(name, options), options.get("part")
        if trained not in (None, "all") and len(parts) > 1:
            (trained,) = resolve_parts(name, parts, trained)  # "training" is the part "train"
        chosen = choose_held_out(name, parts, trained, part)
        if chosen is None:
            return None
        try:
            with heartbeat(f"data {self.name}: reading {chosen}"):
                if sources:
                    most = max(count, HELD_OUT_COUNT)
                    dataset = gather_some(name, sources[chosen], most, options, self.max_unreadable)
                else:
                    dataset = load_dataset(name, **options | {"part": chosen})
        except DuetError as error:
            raise DuetError(
                f"{error}\n(in the held-out part {chosen!r}, which the validation loss needs; "
                f"validation.part=none trains without it)"
            ) from error
        if announce:
            if dataset.class_names == (UNLABELLED,):
                print(f"data {self.name}, {chosen}: it has no classes, so it validates networks without classes alone")
            found = dataset.reading.plain["left_out"]
            for line in reading_lines({"left_out": {k: found[k] for k in (UNREADABLE, METADATA) if k in found}}):
                print(f"data {self.name}, {chosen}: {line}", flush=True)
        return HeldOut(chosen, dataset)

    def _resolved(self) -> tuple[str, dict[str, Any]]:
        """Return name and options of the data set that `load` reads: the files, the store, or the fallback."""
        options, fallback = dict(self.options), dict(self.fallback)
        if options.get("path", "") is not None:
            return self.name, options
        if self.store and store_parts(self.store):
            selected = {"directory": self.store, "part": options.get("part"), "classes": options.get("classes")}
            return "store", selected
        return fallback.pop("name"), fallback

    def _prepare_command(self) -> str:
        """Return the command that makes the store; a data set that cannot be downloaded needs its path."""
        path = "" if DATASET_INFO[self.name].archives else " data.options.path=PATH"
        size = f" data.options.size={self.options['size']}".replace(", ", ",") if self.options.get("size") else ""
        return f"python3 -m duet prepare data={self.name}{path}{size}"

    def _about(self, dataset: Dataset) -> list[str]:
        """Return lines on a part that was chosen by default, and on classes without images."""
        lines, reading = [], dataset.reading
        if reading.parts and self.options.get("part") is None:
            lines.append(f"part {reading.part} is used, of {', '.join(reading.parts)}; choose with data.options.part")
        if empty := dataset.empty_classes:
            lines.append(f"{len(empty)} of {dataset.num_classes} classes have no image: {join_some(empty, 5)}")
        return lines

    def _check_store(self, dataset: Dataset) -> Dataset:
        """Refuse a prepared data set that was not made as the options say; default options say nothing."""
        card = Path(self.store).expanduser() / "card.json"
        made = read_json(card).get("options", {}) if card.is_file() else {}
        defaults = {key: p.default for key, p in inspect.signature(DATASETS[self.name]).parameters.items()}
        made = {key: value for key, value in made.items() if self.options.get(key) != defaults.get(key)}
        made |= {"size": dataset.image_size, "channels": dataset.channels}
        kept = ("size", "channels")  # null says that these are kept as they are
        for key, prepared in made.items():
            given = self.options.get(key, prepared)
            given, prepared = (tuple(one) if isinstance(one, list) else one for one in (given, prepared))
            if given != prepared and not (key in kept and (given is None or not dataset.is_bytes)):
                raise DuetError(
                    f"data.options.{key}: {self.options[key]} was given, but {self.store} was prepared with "
                    f"{prepared}; give that, or prepare it again with another data.store"
                )
        return dataset


def check_data(dataset: Dataset, spec: NetworkSpec, is_trained: bool = True) -> None:
    """Refuse a data set whose image shape or classes do not fit the network.

    Args:
        dataset: the data set.
        spec: of the network.
        is_trained: whether the network is that of a checkpoint, which cannot change.
    """
    shape, taken = dataset.shape, tuple(spec.sample_shape)
    if shape != taken:
        found = f"data {dataset.name}: its images are {shape}, but the network takes {taken} (h, w, c)"
        if is_trained and len(taken) == 3:
            size = taken[0] if taken[0] == taken[1] else f"[{taken[0]},{taken[1]}]"
            raise DuetError(
                f"{found}; set data.options.size={size} data.options.channels={taken[2]} if the data set has these "
                f"options, or choose other data"
            )
        if is_trained or len(shape) != 3 or shape[0] != shape[1]:
            raise DuetError(
                f"{found}; choose other data, or a network of your own that takes {shape}; the networks of "
                f"model=NAME take square images"
            )
        raise DuetError(
            f"{found}; set model.image_size={shape[0]} model.in_channels={shape[2]} model.out_channels={shape[2]}, "
            f"or choose other data"
        )
    if spec.num_classes and spec.num_classes != dataset.num_classes:
        remedy = f"set model.num_classes={dataset.num_classes if dataset.num_classes > 1 else 0}"
        if is_trained:
            remedy = "choose the data that it was trained on, or its classes with data.options.classes"
        raise DuetError(
            f"data {dataset.name}: it has {pluralize(dataset.num_classes, 'class')}, but the network has "
            f"{spec.num_classes}; {remedy}"
        )


def count_classes(dataset: Dataset) -> str:
    """Return the number of classes and, unless they are numbers, the first of their names."""
    names = dataset.class_names
    text = pluralize(len(names), "class")
    is_numbered = all(name.rpartition(" ")[2].isdigit() for name in names)
    return text if len(names) == 1 or is_numbered else f"{text}: {join_some(names, 5)}"


def describe_data(dataset: Dataset, num_classes: int, features: int = 0, is_own: bool = False) -> str:
    """Return a line on the images of a run, one on classes that its network does not receive, and one on conditions.

    Args:
        dataset: the images.
        num_classes: the number of classes of the network.
        features: the number of its features.
        is_own: whether it is an own network, which has no `model`.
    """
    part = f"{dataset.reading.part}, " if dataset.reading.part else ""
    line = f"data: {dataset.name}, {part}{pluralize(len(dataset), 'image')}, {count_classes(dataset)}"
    line += ", with the noise of each image" if dataset.noise is not None else ""
    if not num_classes and dataset.num_classes > 1:
        key = f"network_call.classes={dataset.num_classes}, or classes={dataset.num_classes} in Python,"
        own = "" if is_own else "model.num_classes=0: "
        more = key if is_own else f"model.num_classes={dataset.num_classes}"
        line += f"\n{own}the network does not receive the class of an image; {more} trains with classes"
    if size := dataset.condition_size:
        named = join_some(dataset.condition_names, 5)
        line += f"\n{pluralize(size, 'condition')} of each image ({named}): "
        line += "the features of the network" if features else f"not used; model.augment_dim={size} trains with them"
    return line


def describe_clip(dataset: Dataset, clip: float | None, value_range: Sequence[float]) -> str | None:
    """Return a line if the sampler bounds its estimates to less than the values of data that are no bytes."""
    if dataset.is_bytes or clip is None:
        return None
    values = dataset.network_values(slice(0, _LOOKED_AT), np.float64, value_range)
    middle, half = (value_range[0] + value_range[1]) / 2, clip * (value_range[1] - value_range[0]) / 2
    if np.abs(values - middle).max() <= half:
        return None
    return (
        f"sampler.clip={clip:g} bounds the samples to {middle - half:g} to {middle + half:g}, but the data reach from "
        f"{values.min():.4g} to {values.max():.4g}; sampler.clip=null does not"
    )


def _parts(name: str, options: Mapping[str, Any]) -> list[str]:
    """Return the names of the parts of a data set."""
    if name == "store":
        return store_parts(options["directory"])
    if name == "digits":
        return ["train", "held_out"]
    if name not in SOURCES:
        return []
    return list(source_parts(name, options["path"], options))


def _generated(name: str, options: Mapping[str, Any]) -> Dataset:
    """Return the items of a generated data set that follow those of its training set."""
    count = options.get("count", inspect.signature(DATASETS[name]).parameters["count"].default)
    whole = {key: value for key, value in options.items() if key != "classes"} | {"count": count + HELD_OUT_COUNT}
    later = load_dataset(name, **whole).select(np.arange(count, count + HELD_OUT_COUNT))
    classes = options.get("classes")
    return later if classes is None else later.select_classes(classes)
