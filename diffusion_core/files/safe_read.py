"""Reading files that anyone may have written: bounded, and never trusted.

What is read back passes through here, whoever reads it:

* a file is a regular one, as a pipe or a device would wait or never end;
* sizes come from headers and are compared with the file before anything is allocated; what is packed may unpack to
  `max_unpacked` bytes, which no pictures exceed, and a file that is made to fill the memory does;
* text is UTF-8, and no key of a JSON object is there twice, of which one value would be silently lost;
* arrays are of plain numbers or text. Nothing is unpickled.

What goes wrong is one `DuetError` that names the file; what a reader raises depends on the byte at which a broken file
stops to make sense, so `file_errors` takes every kind.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import math
import os
import stat
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import numpy as tensors

from diffusion_core.common.errors import DuetError

__all__ = [
    "check_safetensors",
    "file_errors",
    "max_unpacked",
    "open_decompressed",
    "open_npz",
    "open_regular",
    "parse_json",
    "read_bytes",
    "read_json",
    "read_member",
    "read_npy",
    "read_safetensors",
    "read_text",
]

_LEAST_UNPACKED, _MOST_PACKING = 1 << 28, 200
_PIECE, _MOST_ARCHIVE = 1 << 20, 1 << 35
# What safetensors itself reads.
_MOST_HEADER = 100_000_000
# Of plain numbers and text; objects are pickles, and records are nothing that Duet has.
_KINDS = "biufcUS"
_UNPACKERS = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open}


def max_unpacked(size: int) -> int:
    """How many bytes a packed file of so many may unpack to: 256 MiB, or 200 times its size if that is more.

    Deflate packs a thousandfold at most, and such a factor is that of one value repeated.
    """
    return max(_LEAST_UNPACKED, _MOST_PACKING * size)


@contextmanager
def file_errors(path: str | Path, said: str = "it is corrupt") -> Iterator[None]:
    """Whatever goes wrong while a file is read and taken apart is one error that names it.

    Args:
        path: the file.
        said: what is said of it, before the reason, as in "it is not a file of samples".

    Raises:
        DuetError: for any exception.
    """
    try:
        yield
    except DuetError as error:
        if str(path) in str(error):
            raise
        raise DuetError(f"{path}: {error}") from error
    except MemoryError as error:
        raise DuetError(f"{path}: it does not fit into memory") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # gzip has errors of its own of this kind
            raise DuetError(f"{error.filename or path}: it cannot be read ({error.strerror})") from error
        raise DuetError(f"{path}: {said} ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """The first line of what an exception says, at most so long as one reads."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    said = said if len(said) <= 200 else f"{said[:197]}..."
    return f"{type(error).__name__}: {said}" if isinstance(error, KeyError | TypeError | AttributeError) else said


def open_regular(path: str | Path) -> BinaryIO:
    """A file opened for reading bytes, if it is an ordinary one.

    Raises:
        OSError: if it is not there or cannot be read.
        ValueError: if it is a pipe, a device or another thing that may never end.
    """
    # A pipe without a writer would else wait for one.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if stat.S_ISREG(mode := os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(21, "it is a directory", str(path))
    raise ValueError("it is a pipe or a device")


def read_bytes(path: str | Path, most: int | None = None) -> bytes:
    """What an ordinary file holds.

    Args:
        path: the file.
        most: how many bytes it may have; None takes any size.

    Raises:
        DuetError: if it cannot be read, or is larger.
    """
    with file_errors(path, "it cannot be read"), open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise DuetError(f"{path}: it has {size} bytes; what belongs there has at most {most}")
        return file.read()


def read_text(path: str | Path, most: int = _LEAST_UNPACKED) -> str:
    """The text of a UTF-8 file of up to so many bytes.

    Raises:
        DuetError: if it cannot be read, or is something else.
    """
    with file_errors(path, "it is not UTF-8 text"):
        return read_bytes(path, most).decode("utf-8")


def parse_json(text: str | bytes) -> Any:
    """Plain data.

    Raises:
        ValueError: if it is not JSON in UTF-8, or has a key twice.
        RecursionError: if it is nested too deeply.
    """
    return json.loads(text.decode("utf-8") if isinstance(text, bytes) else text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def read_json(path: str | Path, said: str = "it is not JSON") -> Any:
    """The data in a JSON file.

    Args:
        path: the file.
        said: what an error says of it, see `file_errors`.

    Raises:
        DuetError: if it is missing or corrupt.
    """
    with file_errors(path, said):
        return parse_json(read_bytes(path, _LEAST_UNPACKED))


def read_safetensors(path: str | Path, most: int | None = None) -> dict[str, NDArray]:
    """The arrays of a safetensors file of up to so many bytes.

    Raises:
        DuetError: if it cannot be read, or is something else.
    """
    check_safetensors(path)
    with file_errors(path, "it is not a safetensors file"):
        return tensors.load(read_bytes(path, most))


def check_safetensors(path: str | Path) -> None:
    """Refuse a safetensors file that is shorter or longer than its header says, before more of it is read.

    Raises:
        DuetError: so, or if it is something else.
    """
    with file_errors(path, "it is not a safetensors file"), open_regular(path) as file:
        _check_places(file)


def _check_places(file: BinaryIO) -> None:
    size, head = os.fstat(file.fileno()).st_size, file.read(8)
    length = int.from_bytes(head, "little")
    if len(head) < 8 or length > size - 8:
        raise EOFError("it is cut short")
    if length > _MOST_HEADER:
        raise ValueError(f"its header has {length} bytes; at most {_MOST_HEADER} are read")
    header = parse_json(file.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if (promised := 8 + length + max(ends, default=0)) != size:
        raise ValueError(f"it is cut short or overlong: its header promises {promised} bytes, and there are {size}")


def read_npy(path: str | Path, mapped: bool = False) -> NDArray:
    """The array of an `.npy` file, in memory or as a read-only memory map.

    Raises:
        DuetError: if it is missing, cut short or no array of plain numbers or text.
    """
    with file_errors(path, "it is not an .npy file of plain numbers"), open_regular(path) as file:
        shape, order, dtype = _header(file, os.fstat(file.fileno()).st_size)
        if mapped:
            return np.memmap(path, dtype, "r", file.tell(), shape, order)
        return _read_array(file, shape, order, dtype)


@contextmanager
def open_npz(path: str | Path, what: str = "an .npz file of arrays") -> Iterator[Mapping[str, NDArray]]:
    """The arrays of an `.npz` file by name, each read when it is asked for.

    Args:
        path: the file.
        what: what it should be, with its article; errors say it, those of the caller's block as well.

    Raises:
        DuetError: if it cannot be read, would unpack to more than `max_unpacked`, or has a name twice.
    """
    with file_errors(path, f"it is not {what}"), open_regular(path) as file, zipfile.ZipFile(file) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise ValueError("two of its arrays have one name")
        total, most = sum(m.file_size for m in members.values()), max_unpacked(os.fstat(file.fileno()).st_size)
        if total > most:
            raise ValueError(f"it would unpack to {total} bytes; one of its size has at most {most}")
        yield _Npz(archive, members)


class _Npz(Mapping[str, NDArray]):
    """The arrays in an opened archive."""

    def __init__(self, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> None:
        self._archive, self._members = archive, members

    def __getitem__(self, name: str) -> NDArray:
        member = self._members[name]
        with _opened(self._archive, member) as file:
            array = _read_array(file, *_header(file, member.file_size))
            if file.read(1):  # at the end of a member its checksum is compared
                raise ValueError(f"{name!r} goes on after its end")
            return array

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of one file in a zip archive that unpacks to no more than `max_unpacked`.

    Raises:
        ValueError: if it would unpack to more.
    """
    member = archive.getinfo(name)
    if member.file_size > max_unpacked(member.compress_size):
        raise ValueError(f"{name!r} would unpack to {member.file_size} bytes")
    with _opened(archive, member) as file:
        return file.read()


def _opened(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> BinaryIO:
    # The other ways of packing may ask for gigabytes of memory themselves, and no file of arrays has them.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename!r} is packed by method {member.compress_type}; deflate would fit")
    return archive.open(member)


def _header(file: BinaryIO, size: int) -> tuple[tuple[int, ...], str, np.dtype]:
    """(shape, order, type) of an array of which header and numbers have `size` bytes together."""
    if size < np.lib.format.MAGIC_LEN:
        raise EOFError("it is cut short")
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"its format is {version}; (1, 0) and (2, 0) are read")
    try:
        shape, is_fortran, dtype = readers[version](file)
    except (MemoryError, RecursionError) as error:  # of Python's parser, for a header of many brackets
        raise ValueError("its header is nested too deeply") from error
    if dtype.hasobject:
        raise ValueError("it holds objects, which are pickles, and nothing is unpickled")
    if dtype.kind not in _KINDS or not dtype.itemsize:
        raise ValueError(f"its type is {dtype}; plain numbers and text are read")
    if any(length < 0 for length in shape):
        raise ValueError(f"its shape is {shape}")
    promised, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if promised != there:
        raise ValueError(
            f"it is cut short or overlong: its header promises {promised} bytes of numbers, and there are {there}"
        )
    return shape, "F" if is_fortran else "C", dtype


def _read_array(file: BinaryIO, shape: Sequence[int], order: str, dtype: np.dtype) -> NDArray:
    content = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)
    left = memoryview(content)
    while left:
        if not (piece := file.read(min(len(left), _PIECE))):
            raise EOFError("it is cut short")
        left[: len(piece)] = piece
        left = left[len(piece) :]
    return content.view(dtype).reshape(shape, order=order)


@contextmanager
def open_decompressed(path: str | Path, what: str, most: int | None = None) -> Iterator[BinaryIO]:
    """A file, unpacked if it is packed by gzip or bzip2.

    Args:
        path: the file.
        what: what it should be, with its article; errors say it, those of the caller's block as well.
        most: how many bytes may be read from it; None allows `max_unpacked`, up to 32 GiB.

    Raises:
        DuetError: if it cannot be read, or goes on beyond that.
    """
    with file_errors(path, f"it is not {what}"), open_regular(path) as file:
        unpack = _UNPACKERS.get(file.read(2), lambda plain: plain)
        file.seek(0)
        size = os.fstat(file.fileno()).st_size
        most = min(max_unpacked(size), _MOST_ARCHIVE) if most is None else most
        if size > most:  # gzip would look through all zeros behind its end, byte by byte
            raise ValueError(f"it has {size} bytes; at most {most} are read")
        yield _Bounded(unpack(file), most)


class _Bounded(io.RawIOBase):
    """A file that is not read beyond a place."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self._file, self._most = file, most

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        left = self._most - self._file.tell()
        content = self._file.read(left + 1 if size < 0 else min(size, left + 1))
        if len(content) > left:
            raise ValueError(f"it has more than {self._most} bytes")
        return content
