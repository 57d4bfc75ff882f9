"""A folder of images.

Each folder directly inside is a class, in the order of the sorted names, and holds its images at any depth; a folder
with images and no folders is one class. `square` describes how an image becomes a square of bytes. Hidden files and
files of other kinds are ignored.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffusion_core.common.errors import DuetError
from diffusion_core.data.archives import DatasetInfo
from diffusion_core.data.source import Source
from diffusion_core.data.square import SUFFIXES

__all__ = ["FOLDER", "image_folder"]

FOLDER = DatasetInfo("Images of a folder", size=64)


def image_folder(path: Path) -> dict[str, Source]:
    """Return the only part, "all", with one class per folder; the name of an image is its path within the folder.

    Args:
        path: the folder.

    Raises:
        DuetError: the folder does not exist, holds no images, or mixes images with class folders.
    """
    expected = f"it must hold images ({', '.join(SUFFIXES)}), or one folder of images per class"
    if not path.is_dir():
        what = "is not a folder" if Path(path).exists() else "does not exist"
        raise DuetError(f"image folder: {str(path)!r} {what}; {expected}")
    classes = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    loose = _images(path, "*")
    if classes and loose:
        raise DuetError(
            f"image folder: {str(path)!r} holds {loose[0].name!r} and the folder {classes[0].name!r}; {expected}"
        )
    groups = classes or [path]
    files = [_images(group, "**/*") for group in groups]
    for group, images in zip(groups, files, strict=True):
        if not images:
            raise DuetError(f"image folder: {str(group)!r} holds no images; {expected}")
    labels = np.repeat(np.arange(len(groups)), [len(images) for images in files])
    images = tuple(file for group_files in files for file in group_files)
    names = tuple(file.relative_to(path).as_posix() for file in images)
    return {"all": Source(images, labels, tuple(group.resolve().name for group in groups), path.resolve().name, names)}


def _images(folder: Path, pattern: str) -> list[Path]:
    """Return the files with a known suffix, sorted, without hidden files and folders."""
    return sorted(
        file
        for file in folder.glob(pattern)
        if file.suffix.lower() in SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
