"""Samples as image files: one PNG per sample, in a folder per class if the samples have class names.

    FOLDER/00000.png 00001.png ...          samples without class names
    FOLDER/Coast/00000.png  Forest/00001.png ...

The number of a file is the index of its sample in the whole set, so names are unique and sort as the samples were
drawn. A character of a class name that not every file system takes is written as its bytes in hexadecimal, each after
a percent sign, as in addresses: "T-shirt/top" is the folder ``T-shirt%2Ftop``.

`read_image_files` reads such a folder, and any other folder of images that have one size, by the rules of
`images.files` and `data.layout`. PNG files of Duet are read exactly as they were written.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffusion_core.common.errors import DuetError
from diffusion_core.data.layout import Layout, read_layout
from diffusion_core.data.reading import BY_CONTENT, METADATA, UNREADABLE, Reading, check_unreadable
from diffusion_core.images.decode import UnreadableImage, decode
from diffusion_core.images.files import Folder, readable_name, scan

__all__ = ["ImageFiles", "check_image_files", "read_image_files", "write_image_files"]

_NUMBERED = re.compile(r"\d{5,}\.png")


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """The images of a folder.

    Args:
        images: uint8 with shape (N, H, W, C).
        labels: class ids with shape (N,), or None.
        classes: the name of each class id; empty without labels.
        reading: how they were found.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int32] | None
    classes: tuple[str, ...]
    reading: Reading


def check_image_files(directory: Path) -> None:
    """Refuse a directory that holds anything, before samples are drawn for it.

    Raises:
        DuetError: it exists and is not empty.
    """
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise DuetError(
            f"image files: {str(directory)!r} exists already and is left as it is; give another directory, or delete it"
        )


def write_image_files(
    directory: Path,
    images: NDArray[np.uint8],
    labels: NDArray[np.integer],
    classes: Mapping[int, str] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Write samples as PNG files, all of them or none.

    Args:
        directory: a new directory. Files that this function wrote there earlier, and nothing else, are replaced.
        images: uint8 with shape (N, H, W, C), where C is 1 or 3.
        labels: a class id for each.
        classes: the name of each class id; without any, there are no folders.
        progress: called with the number of files that are written.

    Raises:
        DuetError: the directory holds other files.
    """
    part = directory.with_name(f".{directory.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    if directory.exists() and not _is_ours(directory):
        check_image_files(directory)
    names = {label: (classes or {}).get(label, f"class {label}") for label in np.unique(labels).tolist()}
    folders = {label: _folder_name(name) for label, name in names.items()} if classes else {}
    digits = max(5, len(str(len(images) - 1)))
    try:
        for index, (image, label) in enumerate(zip(images, np.asarray(labels).tolist(), strict=True)):
            folder = part / folders[label] if label in folders else part
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.ascontiguousarray(image[..., 0] if image.shape[2] == 1 else image)
            Image.fromarray(pixels).save(folder / f"{index:0{digits}d}.png", format="PNG")
            progress(index + 1)
        if directory.exists():
            shutil.rmtree(directory)
        part.rename(directory)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def read_image_files(path: Path, max_unreadable: float = 0.01) -> ImageFiles:
    """Read the images of a folder; those of class folders have labels.

    Args:
        path: the folder.
        max_unreadable: the largest fraction of the images that may be unreadable; they are left out and named.

    Raises:
        DuetError: it has no images, several parts, images of several sizes, or too many unreadable ones.
    """
    tree, scanned = scan(path)
    if not tree.count:
        seen = "; ".join(Reading(left_out=scanned.names).lines)
        why = f" ({seen})" if seen else ""
        raise DuetError(f"{path}: it is not a run with samples/samples.npz and not a folder with images{why}")
    layout, remarks = _layout(path, tree)
    files, labels, classes = layout.files["all"], layout.labels["all"], layout.class_names["all"]
    images: NDArray[np.uint8] | None = None
    kept, failed, damaged = [], [], []
    for file, label in zip(files, labels, strict=True):
        name = readable_name(file.relative_to(path).as_posix())
        try:
            image, remark = decode(file)
        except UnreadableImage as error:
            failed.append((name, error.reason))
            continue
        pixels = np.asarray(image.convert("L") if image.mode == "1" else image)
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        if images is None:
            images, first = np.empty((len(files), *pixels.shape), np.uint8), name
        if pixels.shape[:2] != images.shape[1:3]:
            height, width = images.shape[1:3]
            raise DuetError(
                f"{path}: {name} is {pixels.shape[1]} x {pixels.shape[0]} pixels and {first} {width} x {height}; "
                f"images to judge must have one size. As a reference, images of any size are resized with "
                f"data=image_folder data.options.path={path} data.options.size={height}"
            )
        if pixels.shape[2] > images.shape[3]:  # grey images so far, now a colour image
            images = np.repeat(images, 3, axis=3)
        images[len(kept)] = pixels
        kept.append(label)
        if remark:
            damaged.append(f"{name}: {remark}")
    check_unreadable(str(path), failed, len(files), max_unreadable)
    left_out = {**scanned.names, **layout.left_out}
    reading = Reading((*remarks, *layout.remarks), left_out).with_left_out(BY_CONTENT, scanned.by_content)
    reading = reading.with_left_out(METADATA, damaged)
    reading = reading.with_left_out(UNREADABLE, [f"{name}: {reason}" for name, reason in failed])
    # One class says nothing about the samples.
    classes = tuple(map(unquote, classes)) if len(classes) > 1 else ()
    return ImageFiles(images[: len(kept)], np.array(kept, np.int32) if classes else None, classes, reading)


def _layout(path: Path, tree: Folder) -> tuple[Layout, tuple[str, ...]]:
    """Return the images of a folder with their classes, if its folders are classes beyond doubt."""
    try:
        layout = read_layout(tree)
    except DuetError:
        remark = "the folders are not understood as classes, so the images are judged without labels"
        return read_layout(tree, "flat"), (remark,)
    if list(layout.files) != ["all"]:
        raise DuetError(
            f"{path}: it holds the parts {', '.join(layout.files)}; give the folder of one of them, or name the data "
            f"with data=image_folder data.options.path={path} data.options.part=PART"
        )
    return layout, ()


def _is_ours(directory: Path) -> bool:
    files = [file for file in directory.rglob("*") if not file.is_dir()]
    return directory.is_dir() and all(_NUMBERED.fullmatch(file.name) for file in files)


def _folder_name(name: str) -> str:
    """Return a class name as the name of a folder, from which `urllib.parse.unquote` makes it again."""
    name = re.sub(r'[%/\\:*?"<>|\x00-\x1f\x7f]', _escaped, name)
    return re.sub(r"^[.\s]|[.\s]$", _escaped, name)


def _escaped(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode())
