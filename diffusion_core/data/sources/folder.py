"""A folder of images.

Each folder directly inside is a class, in the order of the sorted names, and holds its images at
any depth; a folder with images and no folders is one class. How an image becomes a square of bytes is
told in `square`. Hidden files and files of other kinds are left out.
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
    """The one part "all", one class per folder; an image's name is its place in the folder.

    Args:
        path: the folder.

    Raises:
        DuetError: there is no such folder, it holds no images or mixes images with class folders.
    """
    wanted = f"it must hold images ({', '.join(SUFFIXES)}), or one folder of images per class"
    if not path.is_dir():
        raise DuetError(f"image folder: {str(path)!r} is no folder; {wanted}")
    classes = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    loose = _images(path, "*")
    if classes and loose:
        raise DuetError(
            f"image folder: {str(path)!r} holds {loose[0].name!r} beside the folder {classes[0].name!r}; {wanted}"
        )
    groups = classes or [path]
    files = [_images(group, "**/*") for group in groups]
    for group, found in zip(groups, files, strict=True):
        if not found:
            raise DuetError(f"image folder: {str(group)!r} holds no images; {wanted}")
    labels = np.repeat(np.arange(len(groups)), [len(found) for found in files])
    images = tuple(file for found in files for file in found)
    names = tuple(file.relative_to(path).as_posix() for file in images)
    return {"all": Source(images, labels, tuple(group.resolve().name for group in groups), path.resolve().name, names)}


def _images(folder: Path, pattern: str) -> list[Path]:
    """The files of known suffix, in sorted order, none of them hidden or in a hidden folder."""
    return sorted(
        file
        for file in folder.glob(pattern)
        if file.suffix.lower() in SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
