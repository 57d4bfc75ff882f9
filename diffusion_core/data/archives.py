"""Find the published files of a data set on disk, and read archives without unpacking them.

Nothing is unpickled, and no link inside an archive is followed.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from diffusion_core.common.errors import DuetError
from diffusion_core.files.safe_read import open_decompressed

__all__ = ["DatasetInfo", "Archive", "read_packed", "find_file", "read_tar_members", "require_file", "sha256_file"]

# The largest file that is read into memory.
_MAX_BYTES = 1 << 28


@dataclass(frozen=True)
class Archive:
    """One published file of a data set.

    Args:
        names: its file name, then alternatives that can replace it, such as a file that it unpacks to.
        url: where to download the first; None if its authors require people to request it.
        md5: the MD5 of the first.
    """

    names: tuple[str, ...]
    url: str | None = None
    md5: str | None = None


@dataclass(frozen=True)
class DatasetInfo:
    """Facts about a published data set.

    Args:
        title: its name in words.
        homepage: where it is described.
        licence: what is known of its licence.
        citation: authors, title and year.
        archives: its files.
        size: the height and width that its images have, or are usually resized to; None keeps them as they are.
        channels: the number of channels of its images; None is colour if any of some images is.
    """

    title: str
    homepage: str = ""
    licence: str = "unknown; look it up at the source of the images before you share them"
    citation: str = ""
    archives: tuple[Archive, ...] = ()
    size: int | None = 32
    channels: int | None = 3

    def missing(self, where: Path) -> list[Archive]:
        """Return the archives that are not in a folder under any of their names."""
        return [archive for archive in self.archives if find_file(where, *archive.names) is None]

    def found(self, where: Path) -> list[Path]:
        """Return the files that are in a folder."""
        files = (find_file(where, *archive.names) for archive in self.archives)
        return list(dict.fromkeys(file for file in files if file is not None))


def find_file(where: Path, *names: str) -> Path | None:
    """Return the first of several files or folders that exists in a folder, at any depth, or None.

    Args:
        where: a folder; or a file, which is returned if it has one of the names.
        names: in order of preference.
    """
    if where.is_file():
        return where if where.name in names else None
    for name in names:
        if (where / name).exists():
            return where / name
        if deeper := min(where.rglob(name), default=None):
            return deeper
    return None


def require_file(what: str, where: Path, *names: str) -> Path:
    """Return what `find_file` returns.

    Raises:
        DuetError: there is no such file.
    """
    file = find_file(where, *names)
    if file is None:
        others = f" (or {', '.join(names[1:])})" if names[1:] else ""
        raise DuetError(f"{what}: {str(where)!r} has no {names[0]}{others}; copy that file there")
    return file


def read_packed(what: str, file: Path) -> bytes:
    """Return the bytes of a file, decompressed if it is compressed."""
    try:
        with open_decompressed(file, "a whole file", _MAX_BYTES) as opened:
            return opened.read()
    except DuetError as error:
        raise DuetError(f"{what}: {error}; download it again") from error


def read_tar_members(
    what: str, file: Path, wanted: Callable[[str], bool], expected: str
) -> tuple[dict[str, bytes], list[str]]:
    """Read some files of a tar archive, compressed or not.

    Args:
        what: the name of the data set, with which errors begin.
        file: the archive.
        wanted: returns whether to read the file with a name.
        expected: which file is expected, for errors.

    Returns:
        The contents by file name, and the names of all files of the archive, without their folders.

    Raises:
        DuetError: the archive cannot be read to its end.
    """
    contents, names = {}, []
    try:
        with open_decompressed(file, "a whole archive") as opened, tarfile.open(fileobj=opened, mode="r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                name = member.name.rsplit("/", 1)[-1]
                names.append(name)
                if wanted(name):
                    contents[name] = archive.extractfile(member).read()
            # A tar archive ends before its file does; gzip checks its checksum only at the end of the file.
            while opened.read(1 << 20):
                pass
    except DuetError as error:
        raise DuetError(f"{what}: {error}; {expected}") from error
    return contents, names


def sha256_file(file: Path) -> str:
    """Return the SHA-256 of a file, read in blocks."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
