"""A data set on disk, opened without reading it.

A store is a directory::

    images-00000.npy ...   uint8 with shape (n, H, W, C) each, one after another, opened as memory maps; or floats, or
                           another shape (n, ...)
    labels.npy             int32 with shape (N,)
    conditions.npy         float32 with shape (N, D); only if images have conditions
    noise-00000.npy ...    floats with the shape of the images, in files of the same lengths; only of pairs
    std-00000.npy ...      the same, the standard deviation of each image; only of latents that a training draws
    names.txt              the name of each image, one per line; only if images have names
    data.json              name, class names, shape, the length of each file of images, and the hash of the content;
                           only of floats with a range: value_range; only with conditions: their names; only of
                           pairs: the files of noise, and how they were made; only of latents: how they were encoded,
                           and the files of std

It is written to a temporary directory, flushed, then renamed: a reader sees a whole store or none. `prepare` writes
directories of stores, one for each part of a data set.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.data.dataset import Dataset
from diffusion_core.data.latents import LatentRecord
from diffusion_core.data.reading import Reading
from diffusion_core.data.shards import Shards
from diffusion_core.data.source import resolve_parts
from diffusion_core.files.safe_read import read_json, read_npy, read_text

__all__ = [
    "finish_store",
    "open_store",
    "list_stores",
    "store_parts",
    "read_names",
    "STD",
    "save_store",
    "shard_length",
    "shard_name",
]

_FORMAT = 2
_CONDITIONS = "conditions.npy"
_IMAGES, _NOISE, STD = "images", "noise", "std"
_EXPECTED = "a store is a directory that experiments.prepare wrote"
_SHARD_BYTES, _SHARD_IMAGES = 1 << 26, 2048


def shard_length(image_bytes: int) -> int:
    """Return the number of images per file: at most 64 MiB, and few enough to keep many processes busy."""
    return max(1, min(_SHARD_IMAGES, _SHARD_BYTES // image_bytes))


def shard_name(number: int, kind: str = _IMAGES) -> str:
    """Return the name of a file of images, or of noise."""
    return f"{kind}-{number:05d}.npy"


def save_store(dataset: Dataset, directory: str | Path, made: Mapping[str, Any] | None = None) -> Path:
    """Write a data set to a new directory; do nothing if it is already there.

    Args:
        dataset: the data set.
        directory: of the store.
        made: how the data were made, as plain data; kept in data.json.

    Raises:
        DuetError: the directory holds something else.
    """
    final = Path(directory).expanduser()
    if _holds(final, dataset):
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    part = final.with_name(f".{final.name}.{os.getpid()}.part")
    try:
        part.mkdir()
        step, lengths = shard_length(dataset.images[0].nbytes), []
        for start in range(0, len(dataset), step):
            images = np.ascontiguousarray(dataset.images[start : start + step])
            write_array(part / shard_name(len(lengths)), images)
            if dataset.noise is not None:
                noise = np.ascontiguousarray(dataset.noise[start : start + step])
                write_array(part / shard_name(len(lengths), _NOISE), noise)
            if dataset.std is not None:
                std = np.ascontiguousarray(dataset.std[start : start + step])
                write_array(part / shard_name(len(lengths), STD), std)
            lengths.append(len(images))
        finish_store(
            part, lengths, dataset.labels, dataset.class_names, dataset.name, None, dataset.value_range,
            dataset.conditions, dataset.condition_names, dataset.noise is not None, made, dataset.latents,
            dataset.std is not None,
        )  # fmt: skip
        try:
            part.rename(final)
        except OSError:
            # Another process may have written the same store first.
            if not _holds(final, dataset):
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return final


def finish_store(
    directory: Path,
    lengths: Sequence[int],
    labels: NDArray[np.int32],
    class_names: Sequence[str],
    name: str,
    names: Iterable[str] | None = None,
    value_range: Sequence[float] | None = None,
    conditions: NDArray[np.float32] | None = None,
    condition_names: Sequence[str] = (),
    noise: bool = False,
    made: Mapping[str, Any] | None = None,
    latents: LatentRecord | None = None,
    std: bool = False,
) -> Dataset:
    """Make a store of a directory that so far contains only shards.

    Args:
        directory: the directory.
        lengths: the number of images in each file; a file of length 0 need not exist.
        labels: class ids with shape (N,).
        class_names: the name of each class id.
        name: the name of the data set.
        names: the names of the images, if they have any.
        value_range: as for `Dataset`, like conditions and condition_names.
        conditions: a vector for each image, or None.
        condition_names: the name of each of its numbers.
        noise: whether the directory holds files of noise too, of the same lengths.
        made: how the data were made, as plain data.
        latents: how the images were encoded, with the autoencoder relative to the directory.
        std: whether the directory holds files of standard deviations too, of the same lengths.

    Returns:
        The data set of the store.
    """
    files, noises, stds = (
        [{"file": shard_name(k, kind), "length": int(n)} for k, n in enumerate(lengths) if n]
        for kind in (_IMAGES, _NOISE, STD)
    )
    dataset = Dataset(
        _open_images(directory, files), labels, tuple(class_names), name, Reading(), value_range, conditions,
        tuple(condition_names), _open_images(directory, noises) if noise else None, None,
        _open_images(directory, stds) if std else None,
    )  # fmt: skip
    write_array(directory / "labels.npy", dataset.labels)
    if dataset.conditions is not None:
        write_array(directory / _CONDITIONS, dataset.conditions)
    if names is not None:
        with open(directory / "names.txt", "w", encoding="utf-8") as file:
            file.writelines(name.replace("\n", " ") + "\n" for name in names)
            _flush(file)
    header = {
        "format": _FORMAT,
        "name": dataset.name,
        "class_names": dataset.class_names,
        "shape": dataset.images.shape,
        "images": files,
        "sha256": dataset.sha256,
    }
    if dataset.value_range is not None:
        header["value_range"] = dataset.value_range
    if dataset.conditions is not None:
        header["condition_names"] = dataset.condition_names
    if noise:
        header["noise"] = noises
    if std:
        header["std"] = stds
    if made is not None:
        header["made"] = made
    if latents is not None:
        header["latents"] = latents.to_dict()
    with open(directory / "data.json", "w", encoding="utf-8") as file:
        json.dump(header, file, indent=2)
        _flush(file)
    return dataset


def open_store(directory: str | Path, part: str | None = None, verify: bool = True, pairs: bool = True) -> Dataset:
    """Open the data set of a store; its images are memory maps.

    Args:
        directory: a store, or a directory of stores.
        part: which of several stores; ``"all"`` for all of them, one after another; None for the only one, or "train".
        verify: read everything once and compare the hash. Without it, only shapes and lengths are checked.
        pairs: whether a store of pairs is opened with its noise; without it, training draws other noise.

    Raises:
        DuetError: there is no such part, or a file is missing, truncated or changed.
    """
    if not pairs:
        return replace(open_store(directory, part, verify), noise=None)
    directory = Path(directory).expanduser()
    parts = store_parts(directory)
    if not parts and not (directory / "data.json").exists() and (others := list_stores(directory.parent)):
        raise DuetError(f"store: {str(directory)!r} was given, which is no store; these exist: {', '.join(others)}")
    if not parts or (directory / "data.json").exists():
        return _open_one(directory, verify)
    chosen = resolve_parts(f"store {str(directory)!r}", parts, part)
    opened = [_open_one(directory / name, verify) for name in chosen]
    reading = Reading(part="+".join(chosen), parts=tuple(parts)) if len(parts) > 1 else Reading()
    first, *others = opened
    if not others:
        return replace(first, reading=reading)
    if any(_kind(other) != _kind(first) for other in others):
        raise DuetError(f"store {str(directory)!r}: its parts have different classes; open one of them")
    images = _joined([dataset.images for dataset in opened])
    noise = None if first.noise is None else _joined([dataset.noise for dataset in opened])
    std = None if first.std is None else _joined([dataset.std for dataset in opened])
    labels = np.concatenate([dataset.labels for dataset in opened])
    conditions = None if first.conditions is None else np.concatenate([dataset.conditions for dataset in opened])
    return replace(first, images=images, labels=labels, reading=reading, conditions=conditions, noise=noise, std=std)


def _kind(dataset: Dataset) -> tuple[Any, ...]:
    """Return what the parts of a data set have in common."""
    has = (dataset.noise is None, dataset.std is None)
    return dataset.class_names, dataset.value_range, dataset.condition_names, dataset.latents, has


def _joined(arrays: Sequence[NDArray | Shards]) -> Shards:
    """Return several arrays as one."""
    return Shards([shard for array in arrays for shard in getattr(array, "parts", [array])])


def _open_one(directory: Path, verify: bool) -> Dataset:
    """Open the data set of one store."""
    header = _read_header(directory)
    images = _open_images(directory, header["images"])
    noise, std = (_open_images(directory, header[kind]) if kind in header else None for kind in (_NOISE, STD))
    labels = _read_array(directory / "labels.npy", mapped=False)
    if list(images.shape) != header["shape"]:
        raise DuetError(
            f"store {str(directory)!r}: its images have shape {images.shape}, data.json says {tuple(header['shape'])}"
        )
    try:
        conditions = _read_array(directory / _CONDITIONS, mapped=False) if "condition_names" in header else None
        dataset = Dataset(
            images, labels, tuple(header["class_names"]), header["name"], Reading(), header.get("value_range"),
            conditions, tuple(header.get("condition_names", ())), noise, _read_latents(header, directory), std,
        )  # fmt: skip
    except DuetError as error:
        raise DuetError(f"store {str(directory)!r}: {error}") from None
    if verify and dataset.sha256 != header["sha256"]:
        raise DuetError(
            f"store {str(directory)!r}: its content has hash {dataset.sha256[:12]}, "
            f"data.json says {header['sha256'][:12]}; it was changed after it was written, so write it again"
        )
    return dataset


def _read_latents(header: Mapping[str, Any], directory: Path) -> LatentRecord | None:
    if "latents" not in header:
        return None
    return LatentRecord.from_dict(header["latents"], "data.json").found_from(directory)


def store_parts(directory: str | Path) -> list[str]:
    """Return the names of the stores in a directory, the training part first."""
    names = [path.parent.name for path in Path(directory).expanduser().glob("*/data.json")]
    return sorted(names, key=lambda name: (name != "train", name))


def list_stores(folder: str | Path) -> list[str]:
    """Return the paths of the stores and of the directories of stores in a folder, in alphabetical order."""
    folder = Path(folder).expanduser()
    found = {file.parent for file in folder.glob("*/data.json")} | {
        file.parents[1] for file in folder.glob("*/*/data.json")
    }
    return sorted(str(path) for path in found)


def read_names(directory: Path | None, count: int) -> list[str]:
    """Return the names of the images of a store; "image 0", "image 1", ... if they have none, or without a store."""
    file = directory and directory.expanduser() / "names.txt"
    names = read_text(file).split("\n")[:-1] if file and file.is_file() else []
    return names if len(names) == count else [f"image {k}" for k in range(count)]


def write_array(file: Path, array: NDArray) -> None:
    """Write an array as `.npy`, and flush it to disk."""
    with open(file, "wb") as out:
        np.save(out, array, allow_pickle=False)
        _flush(out)


def _holds(directory: Path, dataset: Dataset) -> bool:
    """Return whether `directory` is the store of `dataset`; False if it does not exist or is empty.

    Raises:
        DuetError: it holds something else.
    """
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    try:
        existing = open_store(directory)
    except DuetError as error:
        raise DuetError(f"store {str(directory)!r} exists and is left as it is: {error}") from None
    if existing.sha256 != dataset.sha256:
        raise DuetError(
            f"store {str(directory)!r} exists and holds another data set, {existing.name!r} with hash "
            f"{existing.sha256[:12]}; {dataset.name!r} with hash {dataset.sha256[:12]} needs a directory of its own"
        )
    return True


def _read_header(directory: Path) -> dict:
    if not (directory / "data.json").exists():
        raise DuetError(f"store: {str(directory)!r} has no data.json; {_EXPECTED}")
    try:
        header = read_json(directory / "data.json")
    except DuetError as error:
        raise DuetError(f"store: {error}; {_EXPECTED}") from error
    kinds = {"format": int, "name": str, "class_names": list, "shape": list, "sha256": str}
    for key, kind in kinds.items():
        if not isinstance(header, dict) or not isinstance(header.get(key), kind):
            raise DuetError(f"store {str(directory)!r}: data.json has no valid {key!r}; {_EXPECTED}")
    if header["format"] != _FORMAT:
        raise DuetError(
            f"store {str(directory)!r}: its format is {header['format']}; this version reads {_FORMAT}, "
            f"so prepare it again"
        )
    for kind in (_IMAGES, _NOISE) if _NOISE in header else (_IMAGES,):
        files = header.get(kind)
        if not isinstance(files, list) or not files or not all(_is_shard(file, kind) for file in files):
            raise DuetError(f"store {str(directory)!r}: data.json has no valid {kind!r}; {_EXPECTED}")
    return header


def _is_shard(file: object, kind: str) -> bool:
    """Return whether an entry has the name and the length of a file inside the store."""
    if not isinstance(file, dict) or not isinstance(file.get("length"), int):
        return False
    name = file.get("file")
    return isinstance(name, str) and name.startswith(f"{kind}-") and "/" not in name and "\\" not in name


def _open_images(directory: Path, files: Sequence[dict]) -> NDArray[np.uint8] | Shards:
    """Open the images of several files as one array; a single file is an ordinary memory map."""
    maps = []
    for file in files:
        images = _read_array(directory / file["file"], mapped=True)
        if images.ndim < 2 or len(images) != file["length"]:
            raise DuetError(
                f"store {str(directory)!r}: {file['file']} has shape {images.shape}, data.json says {file['length']}"
            )
        maps.append(images)
    try:
        return maps[0] if len(maps) == 1 else Shards(maps)
    except DuetError as error:
        raise DuetError(f"store {str(directory)!r}: {error}") from None


def _read_array(file: Path, mapped: bool) -> NDArray:
    try:
        return read_npy(file, mapped)
    except DuetError as error:
        raise DuetError(f"store: {error}; {_EXPECTED}") from error


def _flush(file: IO) -> None:
    file.flush()
    os.fsync(file.fileno())
