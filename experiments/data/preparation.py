"""Write a published data set, or one's own images, once as stores that both frameworks read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.common.registry import build
from diffusion_core.data import read_options
from diffusion_core.data.archives import sha256_file
from diffusion_core.data.prepare import prepare
from diffusion_core.data.source import Source, only_classes, split_by_file, split_by_stream
from diffusion_core.data.sources import DATASET_INFO, SOURCES
from diffusion_core.data.store import open_store
from diffusion_core.data.transform import ImageTransform
from diffusion_core.metrics.files import read_sample_set, write_statistics
from diffusion_core.runs.run_directory import describe_environment
from experiments.data.downloads import fetch
from experiments.evaluation.samples import make_features
from experiments.features import Features, extract
from experiments.runtime.progress import Counter

__all__ = ["SPLITS", "PreparationSetup", "PreparedData", "prepare_dataset"]


def _no_split(parts: dict[str, Source]) -> dict[str, Source]:
    return parts


def _by_stream(parts: dict[str, Source], *, fraction: float = 0.1, seed: int = 0) -> dict[str, Source]:
    return split_by_stream(parts, fraction, seed)


def _by_file(parts: dict[str, Source], *, path: str) -> dict[str, Source]:
    return split_by_file(parts, path)


# By name; each function takes the parts of a data set and its options.
SPLITS: Mapping[str, Callable[..., dict[str, Source]]] = {"none": _no_split, "stream": _by_stream, "file": _by_file}


@dataclass(frozen=True)
class PreparationSetup:
    """A request to prepare a data set.

    Args:
        name: one of `diffusion_core.data.sources.SOURCES`.
        out: the directory to write.
        options: the options of the data set, such as ``path``, ``size``, ``channels``, ``crop`` and ``classes``.
        archives: the folder of downloaded files; without ``path``, files are read from its subfolder `name`.
        download: whether to download missing files.
        split: name and options of a split of the first part, one of `SPLITS`.
        workers: the number of processes; None means one per core.
        max_unreadable: the largest fraction of the images of a part that may be unreadable; they are skipped.
        features: name and options of a feature network, whose mean and covariance are written for each part.
    """

    name: str
    out: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
    archives: str = "data/archives"
    download: bool = True
    split: Mapping[str, Any] = field(default_factory=lambda: {"name": "none"})
    workers: int | None = None
    max_unreadable: float = 0.01
    features: Mapping[str, Any] = field(default_factory=lambda: {"name": "none"})


@dataclass(frozen=True)
class PreparedData:
    """The result of a preparation.

    Args:
        card: the data card, as plain data.
        empty_parts: the parts that have no image of the selected classes.
        statistics: the files of mean and covariance of features, by part.
    """

    card: Mapping[str, Any]
    empty_parts: tuple[str, ...]
    statistics: Mapping[str, Path] = field(default_factory=dict)


def prepare_dataset(setup: PreparationSetup) -> PreparedData:
    """Find or download the files of a data set, read them, and write the stores and the data card.

    Raises:
        DuetError: the data set or an option is unknown, a file is missing or corrupted, or too many images are
            unreadable.
    """
    name, options = setup.name, setup.options
    check_choice("data to prepare", name, SOURCES)
    if not setup.out:
        raise DuetError("out: nothing was given; it is the directory to write")
    features = make_features(setup.features)
    info, (transform_options, _) = DATASET_INFO[name], read_options(name)
    crop = {key: value for key, value in options.items() if key in transform_options}
    transform = build("data", {name: ImageTransform}, name, crop)
    where = _find_files(setup)
    own = {k: v for k, v in options.items() if k not in transform_options | {"path", "part", "classes"}}
    parts = published = build("data", SOURCES, name, own, where)
    if options.get("classes") is not None:
        parts = only_classes(published, options["classes"])
    empty_parts = tuple(part for part in published if part not in parts)
    split = dict(setup.split)
    parts = build("split", SPLITS, split.pop("name", "none"), split, parts)
    files = [_describe(file) for file in info.found(where) if file.is_file()] if info.archives else []
    made = {key: value for key, value in options.items() if key not in ("path", "part", "classes")}
    facts = {"files": files, "command": describe_environment()["command"], "options": made}
    with _PartProgress(name) as progress:
        card = prepare(parts, setup.out, transform, info, facts, setup.workers, setup.max_unreadable, progress)
    statistics = {} if features is None else {part: _write_statistics(setup, features, part) for part in parts}
    return PreparedData(card, empty_parts, statistics)


def _write_statistics(setup: PreparationSetup, features: Features, part: str) -> Path:
    """Write mean and covariance of the features of a part, unless the file is there; return its path."""
    directory = Path(setup.out).expanduser()
    file = directory / "statistics" / f"{part}-{setup.features['name']}.npz"
    if file.exists() and read_sample_set(file).kind == features.kind:
        return file
    dataset = open_store(directory / part, verify=False)
    with Counter(f"{setup.name}, {part}: {setup.features['name']} features", len(dataset)) as progress:
        arrays = extract(features, dataset.images, 50, progress)
    facts = {"name": dataset.name, "split": part, "count": len(dataset), "sha256": dataset.sha256}
    write_statistics(file, arrays, features.kind, facts)
    return file


def _find_files(setup: PreparationSetup) -> Path:
    """Return where the files of the data set are, after downloading the missing ones."""
    name, path, info = setup.name, setup.options.get("path"), DATASET_INFO[setup.name]
    if path == "":
        raise DuetError("data.options.path: an empty text was given; it must be a file or a folder")
    if path is not None:
        return Path(path).expanduser()  # nothing is downloaded into a folder that the user names
    if not info.archives:
        raise DuetError(f"data.options.path: no value was given; data {name} needs the path of its files")
    folder = Path(setup.archives).expanduser() / name
    for archive in info.missing(folder):
        if not setup.download:
            raise DuetError(
                f"{name}: {folder} has no {archive.names[0]}, and download=false was given; copy it there from "
                f"{info.homepage}, or give its folder with data.options.path=FOLDER"
            )
        if archive.url:
            print(f"{name}: downloading {archive.names[0]}", flush=True)
        fetch(name, archive, folder, info.homepage)
    return folder


def _describe(file: Path) -> dict[str, Any]:
    return {"name": file.name, "bytes": file.stat().st_size, "sha256": sha256_file(file)}


class _PartProgress:
    """One progress bar for each part in turn."""

    def __init__(self, name: str) -> None:
        self.name, self.part, self.counter = name, None, None

    def __enter__(self) -> _PartProgress:
        return self

    def __exit__(self, *error: object) -> None:
        if self.counter:
            self.counter.__exit__(None, None, None)

    def __call__(self, part: str, done: int, total: int) -> None:
        if part != self.part:
            self.__exit__()
            self.part, self.counter = part, Counter(f"{self.name}, {part}", total, start=done).__enter__()
        self.counter(done)
