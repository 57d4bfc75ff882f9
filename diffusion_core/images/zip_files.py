"""The images in a zip archive, listed as those of a folder are, without unpacking it.

The same files count as images, the same are ignored, and everything else is named by its kind; see `images.files`.
Names with ``..`` or a drive, which a program that unpacks could write anywhere, are left out, and so are files that
need a password.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from diffusion_core.common.errors import DuetError
from diffusion_core.files.safe_read import file_errors
from diffusion_core.images.decode import Member
from diffusion_core.images.files import Folder, LeftOut, is_ignored, kind_of_content, natural_order, readable_suffixes

__all__ = ["scan_zip"]

UNSAFE = "names that lead out of the archive"
LOCKED = "files that need a password"


def scan_zip(archive: Path, key: Callable[[str], object] = natural_order) -> tuple[Folder, LeftOut]:
    """List the images of a zip archive at any depth, as `images.files.scan` lists those of a folder.

    Args:
        archive: the file.
        key: the order of names.

    Returns:
        The archive as a folder of members, called as the file without its suffix, and what was left out.

    Raises:
        DuetError: the file is no zip archive, or holds two files of one name.
    """
    left_out, images = LeftOut(), []
    with file_errors(archive, "it is not a zip archive"), zipfile.ZipFile(archive) as opened:
        infos = [info for info in opened.infolist() if not info.is_dir()]
        names = [info.filename for info in infos]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DuetError(f"{archive}: it holds {twice!r} twice; pack it anew")
        for info in infos:
            path = PurePosixPath(info.filename)
            if any(is_ignored(part) for part in path.parts if part != ".."):
                continue
            if kind := _left_out(opened, info, path, left_out):
                left_out.add(kind, info.filename)
            else:
                images.append(path)
    return _tree(archive, archive.with_suffix(""), PurePosixPath(), images, key), left_out


def _left_out(opened: zipfile.ZipFile, info: zipfile.ZipInfo, path: PurePosixPath, left_out: LeftOut) -> str | None:
    """Return the kind of a file that is left out; None for an image."""
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        return UNSAFE
    if info.flag_bits & 1:
        return LOCKED
    if path.suffix.lower() in readable_suffixes():
        return None
    with opened.open(info) as file:
        kind = kind_of_content(path, file.read(32))
    if kind is None:
        left_out.by_content.append(info.filename)
    return kind


def _tree(
    archive: Path, shown: Path, inside: PurePosixPath, images: list[PurePosixPath], key: Callable[[str], object]
) -> Folder:
    """Return one folder of the archive, of the images at any depth below it."""
    depth, here, below = len(inside.parts), [], {}
    for image in images:
        if len(image.parts) == depth + 1:
            here.append(image)
        else:
            below.setdefault(image.parts[depth], []).append(image)
    folders = [_tree(archive, shown / name, inside / name, below[name], key) for name in sorted(below, key=key)]
    members = [Member(archive, str(image)) for image in sorted(here, key=lambda image: key(image.name))]
    return Folder(shown.name, shown, tuple(members), tuple(folders), key)
