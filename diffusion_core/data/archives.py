"""The files that data sets are published as: finding them on disk and reading archives without unpacking them.

Nothing is unpickled and no link in an archive is followed.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from diffusion_core.common.errors import DuetError
from diffusion_core.files.safe_read import open_decompressed

__all__ = ["Archive", "DatasetInfo", "content", "find", "members", "need", "sha256_file"]

# Of one file that is read whole.
_MOST_BYTES = 1 << 28


@dataclass(frozen=True)
class Archive:
    """One file of a data set, as it was published.

    Args:
        names: its name, then others that do as well, such as what it unpacks to.
        url: where the first is fetched from; None if its authors give it to people alone.
        md5: of the first.
    """

    names: tuple[str, ...]
    url: str | None = None
    md5: str | None = None


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a published data set.

    Args:
        title: its name in words.
        homepage: where it is described.
        licence: what is known of its licence.
        citation: authors, title and year.
        archives: its files.
        size: height and width that its images have, or are usually brought to.
        channels: of its images.
    """

    title: str
    homepage: str = ""
    licence: str = "not known; look it up where the images come from before you share them"
    citation: str = ""
    archives: tuple[Archive, ...] = ()
    size: int = 32
    channels: int = 3

    def missing(self, where: Path) -> list[Archive]:
        """The archives of which no name is found at a place."""
        return [archive for archive in self.archives if find(where, *archive.names) is None]

    def found(self, where: Path) -> list[Path]:
        """The files that are."""
        files = (find(where, *archive.names) for archive in self.archives)
        return list(dict.fromkeys(file for file in files if file is not None))


def find(where: Path, *names: str) -> Path | None:
    """The first of some files or folders that is at a place, directly or deeper; or None.

    Args:
        where: a folder; or a file, which is then found if it has one of the names.
        names: in the order of preference.
    """
    if where.is_file():
        return where if where.name in names else None
    for name in names:
        if (where / name).exists():
            return where / name
        if deeper := min(where.rglob(name), default=None):
            return deeper
    return None


def need(what: str, where: Path, *names: str) -> Path:
    """As `find`, but it must be there."""
    found = find(where, *names)
    if found is None:
        others = f" (or {', '.join(names[1:])})" if names[1:] else ""
        raise DuetError(f"{what}: {str(where)!r} holds no {names[0]}{others}; bring that file there")
    return found


def content(what: str, file: Path) -> bytes:
    """A file's bytes, unpacked if it is packed."""
    try:
        with open_decompressed(file, "a whole file", _MOST_BYTES) as opened:
            return opened.read()
    except DuetError as error:
        raise DuetError(f"{what}: {error}; fetch it again") from error


def members(what: str, file: Path, wanted: Callable[[str], bool], fits: str) -> tuple[dict[str, bytes], list[str]]:
    """The contents of some files in a tar archive, packed or not, and the names of all, without their folders.

    Args:
        what: who asks; errors begin with it.
        file: the archive.
        wanted: whether a file of this name is read.
        fits: what the file should be, for errors.

    Raises:
        DuetError: it cannot be read to its end.
    """
    found, names = {}, []
    try:
        with open_decompressed(file, "a whole archive") as opened, tarfile.open(fileobj=opened, mode="r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                name = member.name.rsplit("/", 1)[-1]
                names.append(name)
                if wanted(name):
                    found[name] = archive.extractfile(member).read()
            # An archive ends before its file does, and gzip compares its checksum at the end of the file.
            while opened.read(1 << 20):
                pass
    except DuetError as error:
        raise DuetError(f"{what}: {error}; {fits}") from error
    return found, names


def sha256_file(file: Path) -> str:
    """The hash of a file's bytes; memory stays bounded."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
