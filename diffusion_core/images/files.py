"""The images in a folder: one answer for training, preparing, inspecting, evaluating and editing.

`scan` lists a folder and everything below it as a tree, in the natural order of the names (img2 before img10), and
names every file and folder that it leaves out, by kind:

* files are images if their suffix says so, in any case, and Pillow here reads that format. A file without such a
  suffix is an image if its first bytes are those of one;
* hidden files, and those that systems leave behind (``__MACOSX``, ``Thumbs.db`` ...), are no loss and are not named;
* links to files are followed. A link to a folder is followed once: not if the folder is read anyway, and not into a
  circle;
* a name that is not UTF-8 is shown with its bytes as ``\\xff``.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path, PurePath
from typing import Any

from PIL import Image, features

from diffusion_core.common.errors import DuetError

__all__ = [
    "SUFFIXES",
    "Folder",
    "LeftOut",
    "is_ignored",
    "is_image_file",
    "kind_of_content",
    "natural_order",
    "plain_order",
    "readable_name",
    "readable_suffixes",
    "scan",
]

# The suffixes of image files; which of them can be read depends on Pillow.
SUFFIXES = (
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx", ".pbm", ".pgm",
    ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip
# Images that are named as such when they are left out.
_OTHER_IMAGES = (
    ".arw", ".cr2", ".cr3", ".dng", ".exr", ".hdr", ".heic", ".heif", ".jxl", ".nef", ".orf", ".psd", ".raf", ".rw2",
    ".svg",
)  # fmt: skip
# Copies and incomplete downloads, which may well begin as an image does.
_COPIES = ("~", ".bak", ".crdownload", ".download", ".old", ".orig", ".part", ".tmp")
_SYSTEM = {
    "$recycle.bin", "@eadir", "__macosx", "desktop.ini", "ehthumbs.db", "icon\r", "lost+found",
    "system volume information", "thumbs.db",
}  # fmt: skip
# Formats that Pillow can be built without, and what it calls them.
_OPTIONAL = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}

# The kinds of what is left out.
BROKEN = "broken links"
READ_ALREADY = "links to folders that are read already"
CIRCLES = "links to folders that contain this one"
CLOSED = "folders that cannot be opened"
NOT_FILES = "pipes, sockets or devices"
OTHER_FORMATS = "images in formats that are not read here"
OTHER_FILES = "files that are no images"
COPIES = "copies or incomplete downloads"


@dataclass(frozen=True, eq=False)
class LeftOut:
    """The names of what a scan left out, by kind, in the order of the scan; names of files read by their content."""

    names: dict[str, list[str]] = field(default_factory=dict)
    by_content: list[str] = field(default_factory=list)

    def add(self, kind: str, name: str) -> None:
        """Note one more name of a kind."""
        self.names.setdefault(kind, []).append(name)


@dataclass(frozen=True, eq=False)
class Folder:
    """A folder with images at any depth.

    Args:
        name: its name, readable.
        path: where it is.
        images: the images directly in it, in order: paths, or members of an archive.
        folders: the folders directly in it, in order, with or without images.
        key: the order of names.
    """

    name: str
    path: Path
    images: tuple[Any, ...]
    folders: tuple[Folder, ...]
    key: Callable[[str], object]

    def __repr__(self) -> str:
        return f"Folder({self.name!r}: {self.count:,} images)"

    @cached_property
    def count(self) -> int:
        """The number of images at any depth."""
        return len(self.images) + sum(folder.count for folder in self.folders)

    @cached_property
    def filled(self) -> tuple[Folder, ...]:
        """The folders directly in it that hold an image at any depth."""
        return tuple(folder for folder in self.folders if folder.count)

    def every_image(self) -> Iterator[Any]:
        """Yield the images at any depth; folders and images of one folder are sorted together."""
        # The name of a member of an archive is its path within it.
        images = ((file.name.rpartition("/")[2], file) for file in self.images)
        entries = [*images, *((folder.path.name, folder) for folder in self.folders)]
        for _, entry in sorted(entries, key=lambda pair: self.key(pair[0])):
            if isinstance(entry, Folder):
                yield from entry.every_image()
            else:
                yield entry


def natural_order(name: str) -> tuple[str, str]:
    """Return a key that sorts numbers in names by value, and everything else by character: img2 before img10.

    A run of digits is replaced by 0, its length and its digits without leading zeros. It still sorts against other
    characters as a digit, so names with equally many digits keep their plain order.
    """

    def by_value(match: re.Match[str]) -> str:
        digits = match[0].lstrip("0")
        return f"0{chr(len(digits))}{digits}"

    return re.sub("[0-9]+", by_value, name), name


def plain_order(name: str) -> str:
    """Return a key that sorts names character by character: img10 before img2."""
    return name


def readable_name(name: str) -> str:
    """Return a file name as text; bytes that are not UTF-8 are written as ``\\xff``, line ends as spaces."""
    return os.fsencode(name).decode("utf-8", "backslashreplace").replace("\n", " ").replace("\r", " ")


@cache
def readable_suffixes() -> frozenset[str]:
    """Return those of `SUFFIXES` whose format Pillow reads here."""
    Image.init()
    formats = Image.registered_extensions() | {".tga": "TGA"}
    missing = {name for name, feature in _OPTIONAL.items() if not features.check(feature)}
    return frozenset(s for s in SUFFIXES if (name := formats.get(s)) in Image.OPEN and name not in missing)


def is_image_file(path: Path) -> bool:
    """Return whether a file counts as an image: by its suffix, or by its first bytes."""
    return path.suffix.lower() in readable_suffixes() or (path.is_file() and _kind(path) is None)


def scan(root: Path, key: Callable[[str], object] = natural_order) -> tuple[Folder, LeftOut]:
    """List the images of a folder at any depth.

    Args:
        root: the folder.
        key: the order of names, `natural_order` or `plain_order`.

    Returns:
        The folder, and what was left out, by names relative to it.

    Raises:
        DuetError: the folder cannot be opened.
    """
    walk = _Walk(root, key)
    try:
        tree = walk.folder(Path(root), "")
    except OSError as error:
        raise DuetError(f"image folder: {str(root)!r} cannot be opened ({error.strerror})") from error
    return tree, walk.left_out


class _Walk:
    """One pass over a folder; it remembers the folders that it has read."""

    def __init__(self, root: Path, key: Callable[[str], object]) -> None:
        self.root, self.key, self.left_out = Path(os.path.realpath(root)), key, LeftOut()
        self.seen: set[tuple[int, int]] = set()

    def folder(self, path: Path, relative: str) -> Folder:
        """Read one folder; `relative` is its readable path below the root, with a slash at the end."""
        with os.scandir(path) as opened:
            entries = [entry for entry in opened if not is_ignored(entry.name)]
        entries.sort(key=lambda entry: self.key(entry.name))
        state = path.stat()
        self.seen.add((state.st_dev, state.st_ino))
        images, folders = [], []
        for entry in entries:
            name, file = relative + readable_name(entry.name), path / entry.name
            if entry.is_dir(follow_symlinks=False):
                self._enter(file, name, folders)
            elif not entry.is_symlink():
                self._take(file, name, entry.is_file(follow_symlinks=False), images)
            elif not file.exists():  # it leads nowhere, or in a circle
                self.left_out.add(BROKEN, name)
            elif not file.is_dir():
                self._take(file, name, stat.S_ISREG(file.stat().st_mode), images)
            elif kind := self._refused(file):
                self.left_out.add(kind, name)
            else:
                self._enter(file, name, folders)
        return Folder(readable_name(path.name), path, tuple(images), tuple(folders), self.key)

    def _enter(self, path: Path, name: str, folders: list[Folder]) -> None:
        try:
            state = path.stat()
            if (state.st_dev, state.st_ino) in self.seen:
                self.left_out.add(READ_ALREADY, name)
                return
            folders.append(self.folder(path, f"{name}/"))
        except OSError:
            self.left_out.add(CLOSED, name)

    def _refused(self, link: Path) -> str | None:
        """Return why a link to a folder is not followed; None if it is."""
        target = Path(os.path.realpath(link))
        if self.root.is_relative_to(target):
            return CIRCLES
        # Folders below the root are read in their own place, whatever the order of the names.
        below = target.is_relative_to(self.root) and not any(map(is_ignored, target.relative_to(self.root).parts))
        return READ_ALREADY if below else None

    def _take(self, file: Path, name: str, is_regular: bool, images: list[Path]) -> None:
        if not is_regular:
            self.left_out.add(NOT_FILES, name)
        elif file.suffix.lower() in readable_suffixes():
            images.append(file)
        elif (kind := _kind(file)) is None:
            images.append(file)
            self.left_out.by_content.append(name)
        else:
            self.left_out.add(kind, name)


def is_ignored(name: str) -> bool:
    """Return whether a file or a folder is hidden, or one that systems leave behind."""
    return name.startswith(".") or name.lower() in _SYSTEM


def _kind(file: Path) -> str | None:
    """Return as what a file without the suffix of a readable image is left out; None if its content is an image."""
    try:
        with open(file, "rb") as opened:
            return kind_of_content(file, opened.read(32))
    except OSError:
        return kind_of_content(file, b"")


def kind_of_content(file: PurePath, head: bytes) -> str | None:
    """Return as what a file without the suffix of a readable image is left out, given its first 32 bytes; or None."""
    suffix = file.suffix.lower()
    if suffix in SUFFIXES or suffix in _OTHER_IMAGES:
        return OTHER_FORMATS
    if not _begins_as_image(head, anything=not suffix):
        return OTHER_FILES
    return COPIES if file.name.lower().endswith(_COPIES) else None


def _begins_as_image(head: bytes, anything: bool) -> bool:
    """Return whether the first 32 bytes of a file are those of an image that Pillow reads here.

    Args:
        head: the first bytes.
        anything: also TIFF, of which the raw files of cameras are a kind.
    """
    bitmap = head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in (12, 40, 52, 56, 64, 108, 124)
    if head[:3] == b"\xff\xd8\xff" or head[:8] == b"\x89PNG\r\n\x1a\n" or head[:6] in (b"GIF87a", b"GIF89a") or bitmap:
        return True
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return ".webp" in readable_suffixes()
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        return ".avif" in readable_suffixes()
    if head[:12] == b"\0\0\0\x0cjP  \r\n\x87\n" or head[:4] == b"\xff\x4f\xff\x51":
        return ".jp2" in readable_suffixes()
    return anything and head[:4] in (b"II*\0", b"MM\0*")
