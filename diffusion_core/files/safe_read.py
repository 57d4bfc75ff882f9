"""Reading files of unknown origin: with bounds, and without trusting their content.

Every file that Duet reads passes through here:

* a file is a regular one, since reading a pipe or a device may wait or never end;
* sizes are read from headers and compared with the file before anything is allocated. A compressed file may unpack to
  at most `max_unpacked` bytes, which images never exceed and a file made to fill the memory does;
* text is UTF-8, and a JSON object with a repeated key is refused, since one of the two values would be lost silently;
* arrays are of plain numbers or text. Nothing is unpickled.

Every failure is one `DuetError` that names the file. What a reader raises depends on the byte at which a broken file
stops making sense, so `file_errors` converts every kind of exception.
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
import safetensors
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import first_line
from diffusion_core.files.small_floats import WIDENED

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

# The limits of `max_unpacked`: bytes that every file may unpack to, and the largest compression ratio beyond that.
_MIN_UNPACKED, _MAX_RATIO = 1 << 28, 200
_CHUNK, _MAX_ARCHIVE = 1 << 20, 1 << 35
# The limit of safetensors itself.
_MAX_HEADER = 100_000_000
# Kinds of NumPy types for plain numbers and text. Objects would be pickles, and Duet has no record types.
_KINDS = "biufcUS"
# The types of safetensors that NumPy has.
_SAFETENSORS = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?", "C64": "<c8",
}  # fmt: skip
_OPENERS = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open}


def max_unpacked(size: int) -> int:
    """Return how many bytes a compressed file of `size` bytes may unpack to: 256 MiB, or 200 times its size if larger.

    Deflate reaches a ratio of about a thousand at most, and only for a single repeated value.
    """
    return max(_MIN_UNPACKED, _MAX_RATIO * size)


@contextmanager
def file_errors(path: str | Path, problem: str = "it is corrupt") -> Iterator[None]:
    """Convert every exception in the block, which reads and parses a file, to one `DuetError` that names the file.

    Args:
        path: the file.
        problem: the statement before the reason in the message, as in "it is not a file of samples".

    Raises:
        DuetError: for any exception.

    Example:
        >>> with file_errors("run/state.json"):
        ...     {}["seed"]
        Traceback (most recent call last):
        ...
        diffusion_core.common.errors.DuetError: run/state.json: it is corrupt (KeyError: 'seed')
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
        if isinstance(error, OSError) and error.errno is not None:  # gzip raises its own OSErrors, without a number
            raise DuetError(f"{error.filename or path}: it cannot be read ({error.strerror})") from error
        raise DuetError(f"{path}: {problem} ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """Return the first line of an exception's message, shortened to 200 characters."""
    line = first_line(error)
    line = line if len(line) <= 200 else f"{line[:197]}..."
    return f"{type(error).__name__}: {line}" if isinstance(error, KeyError | TypeError | AttributeError) else line


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading bytes.

    Raises:
        OSError: if it does not exist or cannot be read.
        ValueError: if it is a pipe, a device or something else that may never end.
    """
    # Without O_NONBLOCK, opening a pipe would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if stat.S_ISREG(mode := os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(21, "it is a directory", str(path))
    raise ValueError("it is a pipe or a device")


def read_bytes(path: str | Path, max_bytes: int | None = None) -> bytes:
    """Return the content of a regular file.

    Args:
        path: the file.
        max_bytes: the largest size that is read; None has no limit.

    Raises:
        DuetError: if the file cannot be read, or is larger.
    """
    with file_errors(path, "it cannot be read"), open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if max_bytes is not None and size > max_bytes:
            raise DuetError(f"{path}: it has {size} bytes; at most {max_bytes} are expected")
        return file.read()


def read_text(path: str | Path, max_bytes: int = _MIN_UNPACKED) -> str:
    """Return the text of a UTF-8 file of at most `max_bytes` bytes.

    Raises:
        DuetError: if it cannot be read, is larger, or is not UTF-8.
    """
    with file_errors(path, "it is not UTF-8 text"):
        return read_bytes(path, max_bytes).decode("utf-8")


def parse_json(text: str | bytes) -> Any:
    """Return the data in a JSON text.

    Raises:
        ValueError: if it is not JSON in UTF-8, or an object repeats a key.
        RecursionError: if it is nested too deeply.
    """
    return json.loads(text.decode("utf-8") if isinstance(text, bytes) else text, object_pairs_hook=_unique_keys)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in data if keys.count(key) > 1)
        raise ValueError(f"the key {repeated!r} appears twice")
    return data


def read_json(path: str | Path, problem: str = "it is not JSON") -> Any:
    """Return the data in a JSON file.

    Args:
        path: the file.
        problem: the statement in an error message, see `file_errors`.

    Raises:
        DuetError: if the file is missing or corrupt.
    """
    with file_errors(path, problem):
        return parse_json(read_bytes(path, _MIN_UNPACKED))


def read_safetensors(path: str | Path, max_bytes: int | None = None) -> dict[str, NDArray]:
    """Return the arrays of a safetensors file of at most `max_bytes` bytes, by name.

    Arrays of bfloat16 and float8, which NumPy does not have, become float32 without rounding.

    Raises:
        DuetError: if it cannot be read, is larger, or is not a safetensors file.
    """
    check_safetensors(path)
    with file_errors(path, "it is not a safetensors file"):
        return {name: _tensor(name, **tensor) for name, tensor in safetensors.deserialize(read_bytes(path, max_bytes))}


def _tensor(name: str, dtype: str, shape: Sequence[int], data: bytearray) -> NDArray:
    if dtype in WIDENED:
        return WIDENED[dtype](data).reshape(shape)
    if dtype not in _SAFETENSORS:
        raise DuetError(
            f"{name} has the type {dtype}; only {', '.join([*_SAFETENSORS, *WIDENED])} are read, so save it as "
            "one of these first"
        )
    return np.frombuffer(data, _SAFETENSORS[dtype]).reshape(shape)


def check_safetensors(path: str | Path) -> None:
    """Refuse a safetensors file whose size differs from what its header says, before reading its arrays.

    Raises:
        DuetError: if the size differs, or if it is not a safetensors file.
    """
    with file_errors(path, "it is not a safetensors file"), open_regular(path) as file:
        _check_size(file)


def _check_size(file: BinaryIO) -> None:
    size, head = os.fstat(file.fileno()).st_size, file.read(8)
    length = int.from_bytes(head, "little")
    if len(head) < 8 or length > size - 8:
        raise EOFError("it is cut short")
    if length > _MAX_HEADER:
        raise ValueError(f"its header has {length} bytes; at most {_MAX_HEADER} are read")
    header = parse_json(file.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if (expected := 8 + length + max(ends, default=0)) != size:
        raise ValueError(f"it is cut short or too long: its header announces {expected} bytes, the file has {size}")


def read_npy(path: str | Path, mapped: bool = False) -> NDArray:
    """Return the array of an `.npy` file, in memory or as a read-only memory map.

    Raises:
        DuetError: if the file is missing, truncated or not an array of plain numbers or text.
    """
    with file_errors(path, "it is not an .npy file of plain numbers"), open_regular(path) as file:
        shape, order, dtype = _header(file, os.fstat(file.fileno()).st_size)
        if mapped:
            return np.memmap(path, dtype, "r", file.tell(), shape, order)
        return _read_array(file, shape, order, dtype)


@contextmanager
def open_npz(path: str | Path, what: str = "an .npz file of arrays") -> Iterator[Mapping[str, NDArray]]:
    """Open an `.npz` file as a mapping of arrays by name; each array is read on access.

    Args:
        path: the file.
        what: what the file should be, with its article, for error messages, including those of the caller's block.

    Raises:
        DuetError: if the file cannot be read, would unpack to more than `max_unpacked`, or repeats a name.
    """
    with file_errors(path, f"it is not {what}"), open_regular(path) as file, zipfile.ZipFile(file) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise ValueError("two of its arrays have the same name")
        total, limit = sum(m.file_size for m in members.values()), max_unpacked(os.fstat(file.fileno()).st_size)
        if total > limit:
            raise ValueError(f"it would unpack to {total} bytes; at most {limit} are allowed for its size")
        yield _Npz(archive, members)


class _Npz(Mapping[str, NDArray]):
    """The arrays in an open archive."""

    def __init__(self, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> None:
        self._archive, self._members = archive, members

    def __getitem__(self, name: str) -> NDArray:
        member = self._members[name]
        with _opened(self._archive, member) as file:
            array = _read_array(file, *_header(file, member.file_size))
            if file.read(1):  # reading to the end makes zipfile compare the checksum
                raise ValueError(f"{name!r} has data after its end")
            return array

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return the bytes of one file in a zip archive.

    Raises:
        ValueError: if it would unpack to more than `max_unpacked`.
    """
    member = archive.getinfo(name)
    if member.file_size > max_unpacked(member.compress_size):
        raise ValueError(f"{name!r} would unpack to {member.file_size} bytes")
    with _opened(archive, member) as file:
        return file.read()


def _opened(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> BinaryIO:
    # Unpacking the other methods may itself need gigabytes of memory, and no file of arrays uses them.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename!r} is compressed by method {member.compress_type}; only deflate is read")
    return archive.open(member)


def _header(file: BinaryIO, size: int) -> tuple[tuple[int, ...], str, np.dtype]:
    """Return (shape, order, type) of an array whose header and numbers have `size` bytes together."""
    if size < np.lib.format.MAGIC_LEN:
        raise EOFError("it is cut short")
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"its format is {version}; only (1, 0) and (2, 0) are read")
    try:
        shape, is_fortran, dtype = readers[version](file)
    except (MemoryError, RecursionError) as error:  # raised by Python's parser for a header with many brackets
        raise ValueError("its header is nested too deeply") from error
    if dtype.hasobject:
        raise ValueError("it holds objects, which are pickles; Duet unpickles nothing")
    if dtype.kind not in _KINDS or not dtype.itemsize:
        raise ValueError(f"its type is {dtype}; only plain numbers and text are read")
    if any(length < 0 for length in shape):
        raise ValueError(f"its shape is {shape}")
    expected, actual = math.prod(shape) * dtype.itemsize, size - file.tell()
    if expected != actual:
        raise ValueError(
            f"it is cut short or too long: its header announces {expected} bytes of numbers, the file has {actual}"
        )
    return shape, "F" if is_fortran else "C", dtype


def _read_array(file: BinaryIO, shape: Sequence[int], order: str, dtype: np.dtype) -> NDArray:
    content = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)
    unread = memoryview(content)
    while unread:
        if not (chunk := file.read(min(len(unread), _CHUNK))):
            raise EOFError("it is cut short")
        unread[: len(chunk)] = chunk
        unread = unread[len(chunk) :]
    return content.view(dtype).reshape(shape, order=order)


@contextmanager
def open_decompressed(path: str | Path, what: str, max_bytes: int | None = None) -> Iterator[BinaryIO]:
    """Open a file; if it is compressed by gzip or bzip2, its decompressed content.

    Args:
        path: the file.
        what: what the file should be, with its article, for error messages, including those of the caller's block.
        max_bytes: the largest content that is read; None allows `max_unpacked`, up to 32 GiB.

    Raises:
        DuetError: if the file cannot be read, or its content is larger.
    """
    with file_errors(path, f"it is not {what}"), open_regular(path) as file:
        decompress = _OPENERS.get(file.read(2), lambda plain: plain)
        file.seek(0)
        size = os.fstat(file.fileno()).st_size
        limit = min(max_unpacked(size), _MAX_ARCHIVE) if max_bytes is None else max_bytes
        if size > limit:  # gzip would read all zeros behind its end, byte by byte
            raise ValueError(f"it has {size} bytes; at most {limit} are read")
        yield _Bounded(decompress(file), limit)


class _Bounded(io.RawIOBase):
    """A file that raises an error when it is read beyond a limit."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._file, self._limit = file, limit

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        remaining = self._limit - self._file.tell()
        content = self._file.read(remaining + 1 if size < 0 else min(size, remaining + 1))
        if len(content) > remaining:
            raise ValueError(f"it has more than {self._limit} bytes")
        return content
