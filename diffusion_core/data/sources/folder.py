"""A folder of pictures.

Each folder directly inside is a class, in the order of the sorted names, and holds its pictures at
any depth; a folder with pictures and no folders is one class. How a picture becomes a square of bytes is
told in `square`. Hidden files and files of other kinds are left out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffusion_core.common.errors import DuetError
from diffusion_core.data.archives import About
from diffusion_core.data.source import Source
from diffusion_core.data.square import SUFFIXES

__all__ = ["FOLDER", "image_folder"]

FOLDER = About("Pictures of a folder", size=64)


def image_folder(path: Path) -> dict[str, Source]:
    """The one part "all", one class per folder; a picture's name is its place in the folder.

    Args:
        path: the folder.

    Raises:
        DuetError: there is no such folder, it holds no pictures or mixes pictures with class folders.
    """
    wanted = f"it must hold pictures ({', '.join(SUFFIXES)}), or one folder of pictures per class"
    if not path.is_dir():
        raise DuetError(f"image folder: {str(path)!r} is no folder; {wanted}")
    classes = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    loose = _pictures(path, "*")
    if classes and loose:
        raise DuetError(
            f"image folder: {str(path)!r} holds {loose[0].name!r} beside the folder {classes[0].name!r}; {wanted}"
        )
    groups = classes or [path]
    files = [_pictures(group, "**/*") for group in groups]
    for group, found in zip(groups, files, strict=True):
        if not found:
            raise DuetError(f"image folder: {str(group)!r} holds no pictures; {wanted}")
    labels = np.repeat(np.arange(len(groups)), [len(found) for found in files])
    pictures = tuple(file for found in files for file in found)
    names = tuple(file.relative_to(path).as_posix() for file in pictures)
    return {
        "all": Source(pictures, labels, tuple(group.resolve().name for group in groups), path.resolve().name, names)
    }


def _pictures(folder: Path, pattern: str) -> list[Path]:
    """The files of known suffix, in sorted order, none of them hidden or in a hidden folder."""
    return sorted(
        file
        for file in folder.glob(pattern)
        if file.suffix.lower() in SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
