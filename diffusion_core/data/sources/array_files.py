"""Data with an `.npy` file for each item, as latents are often kept: in a folder or in a zip archive.

    FOLDER/0.npy ...             one class
    FOLDER/CLASS/0.npy ...       a class for each folder
    FOLDER/dataset.json, ...     the labels of EDM's file, whatever the folders; folders are no classes then

All items have one shape. Their channels are first or last; `data.arrays` decides.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.data.file_labels import DATASET_JSON, labels_by_name, parse_labels
from diffusion_core.files.safe_read import file_errors, read_bytes, read_member, read_npy
from diffusion_core.images.files import is_ignored, natural_order

__all__ = ["read_array_files"]

_SUFFIX, _MAX_LABELS = ".npy", 1 << 28


def read_array_files(path: Path, labels: str | None = None) -> tuple[NDArray, list[Any] | None, tuple[str, ...], str]:
    """Return the items with shape (N, ...), their labels, their names, and what the labels are.

    Args:
        path: a folder or a zip archive.
        labels: a file of labels, in it or elsewhere; None reads dataset.json if there is one, or else the folders.

    Raises:
        DuetError: there are no `.npy` files, or they differ in shape or type.
    """
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file()]
        names = [file.relative_to(path).as_posix() for file in files]
        return _read(path, names, lambda name: read_npy(path / name), lambda name: read_bytes(path / name), labels)
    with file_errors(path, "it is not a zip archive"), zipfile.ZipFile(path) as archive:
        names = [info.filename for info in archive.infolist() if not info.is_dir()]

        def array(name: str) -> NDArray:
            with file_errors(path / name, "it is not an .npy file of plain numbers"):
                return np.lib.format.read_array(io.BytesIO(read_member(archive, name)), allow_pickle=False)

        return _read(path, names, array, lambda name: read_member(archive, name), labels)


def _read(
    path: Path,
    every: Sequence[str],
    array: Callable[[str], NDArray],
    content: Callable[[str], bytes],
    labels: str | None,
) -> tuple[NDArray, list[Any] | None, tuple[str, ...], str]:
    names = [
        n for n in every if PurePosixPath(n).suffix == _SUFFIX and not any(map(is_ignored, PurePosixPath(n).parts))
    ]
    names.sort(key=lambda name: [natural_order(part) for part in name.split("/")])
    if not names:
        raise DuetError(f"arrays: {str(path)!r} holds no .npy files; it must hold one for each item")
    first = array(names[0])
    items = np.empty((len(names), *first.shape), first.dtype)
    for k, name in enumerate(names):
        item = first if k == 0 else array(name)
        if item.shape != first.shape or item.dtype != first.dtype:
            raise DuetError(
                f"arrays: {name!r} is {item.dtype} {item.shape}, {names[0]!r} is {first.dtype} {first.shape}; all must "
                f"have one shape and type"
            )
        items[k] = item
    source = labels or (DATASET_JSON if DATASET_JSON in every else None)
    if source is not None:
        inside = source in every
        if not inside and not Path(source).expanduser().is_file():
            raise DuetError(f"data.options.labels: {source!r} was given; it is no file, in {str(path)!r} or elsewhere")
        found = parse_labels(source, content(source) if inside else read_bytes(Path(source).expanduser(), _MAX_LABELS))
        if found is None:
            return items, None, tuple(names), f"{source} says that there are no labels"
        return items, labels_by_name(source, found, names)[0], tuple(names), f"the labels are those of {source}"
    folders = [name.partition("/")[0] if "/" in name else None for name in names]
    if None in folders or len(set(folders)) == 1:
        return items, None, tuple(names), "all items are of one class"
    return items, folders, tuple(names), "the folders are the classes"
