"""A data set on disk, opened without reading it.

A store is a directory::

    images.npy   uint8 with shape (N, H, W, C), opened as a memory map
    labels.npy   int32 with shape (N,)
    data.json    name, class names, shape and the hash of the content

It is written beside its final name, flushed, then renamed: a reader sees a whole store or none.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from diffusion_core.data.dataset import Dataset
from diffusion_core.errors import DuetError

__all__ = ["open_store", "save_store"]

_FORMAT = 1
_FITS = "a store is a directory that save_store wrote"


def save_store(dataset: Dataset, directory: str | Path) -> Path:
    """Write a data set to a new directory; if it is already there, nothing is done.

    Raises:
        DuetError: the directory holds something else.
    """
    final = Path(directory).expanduser()
    if _holds(final, dataset):
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    part = final.with_name(f".{final.name}.{os.getpid()}.part")
    header = {
        "format": _FORMAT,
        "name": dataset.name,
        "class_names": dataset.class_names,
        "shape": dataset.images.shape,
        "sha256": dataset.sha256,
    }
    try:
        part.mkdir()
        _write_array(part / "images.npy", dataset.images)
        _write_array(part / "labels.npy", dataset.labels)
        with open(part / "data.json", "w", encoding="utf-8") as file:
            json.dump(header, file, indent=2)
            _flush(file)
        try:
            part.rename(final)
        except OSError:
            # Another process may have been first; the same content is as good.
            if not _holds(final, dataset):
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return final


def open_store(directory: str | Path, verify: bool = True) -> Dataset:
    """The data set that `save_store` wrote, its pictures a memory map.

    Args:
        directory: the store.
        verify: read it all once and compare its hash. Without this, only shapes and lengths are checked.

    Raises:
        DuetError: a file is missing, cut short or not what was written.
    """
    directory = Path(directory).expanduser()
    header = _read_header(directory)
    images = _read_array(directory / "images.npy", "r")
    labels = _read_array(directory / "labels.npy", None)
    if list(images.shape) != header["shape"]:
        raise DuetError(
            f"store {str(directory)!r}: images.npy has shape {images.shape}, data.json says {tuple(header['shape'])}"
        )
    try:
        dataset = Dataset(images, labels, tuple(header["class_names"]), header["name"])
    except DuetError as error:
        raise DuetError(f"store {str(directory)!r}: {error}") from None
    if verify and dataset.sha256 != header["sha256"]:
        raise DuetError(
            f"store {str(directory)!r}: its content has hash {dataset.sha256[:12]}, "
            f"data.json says {header['sha256'][:12]}; it has changed since it was written, so write it again"
        )
    return dataset


def _holds(directory: Path, dataset: Dataset) -> bool:
    """Whether `directory` is the store of `dataset`; not if it does not exist or is empty.

    Raises:
        DuetError: it holds something else.
    """
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    try:
        held = open_store(directory)
    except DuetError as error:
        raise DuetError(f"store {str(directory)!r} exists and is left as it is: {error}") from None
    if held.sha256 != dataset.sha256:
        raise DuetError(
            f"store {str(directory)!r} exists and holds another data set, {held.name!r} with hash {held.sha256[:12]}; "
            f"{dataset.name!r} with hash {dataset.sha256[:12]} needs a directory of its own"
        )
    return True


def _read_header(directory: Path) -> dict:
    try:
        header = json.loads((directory / "data.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DuetError(f"store: {str(directory)!r} holds no data.json; {_FITS}") from None
    except (OSError, ValueError) as error:
        raise DuetError(f"store {str(directory)!r}: data.json cannot be read: {error}; {_FITS}") from error
    kinds = {"format": int, "name": str, "class_names": list, "shape": list, "sha256": str}
    for key, kind in kinds.items():
        if not isinstance(header, dict) or not isinstance(header.get(key), kind):
            raise DuetError(f"store {str(directory)!r}: data.json has no valid {key!r}; {_FITS}")
    if header["format"] != _FORMAT:
        raise DuetError(f"store {str(directory)!r}: its format is {header['format']}; this version reads {_FORMAT}")
    return header


def _read_array(file: Path, mmap_mode: str | None) -> NDArray:
    try:
        return np.load(file, mmap_mode=mmap_mode, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DuetError(f"store: {str(file)!r} is missing, cut short or no array: {error}; {_FITS}") from error


def _write_array(file: Path, array: NDArray) -> None:
    with open(file, "wb") as out:
        np.save(out, array, allow_pickle=False)
        _flush(out)


def _flush(file: IO) -> None:
    file.flush()
    os.fsync(file.fileno())
