"""Writing files whole or not at all: a temporary file, flushed to the disk, then renamed.

A reader sees the old content or the new one, never a part of it. A temporary file carries the names of its host and
process, so what a killed process left can be told from what is still being written.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import numpy as tensors

from diffusion_core.common.errors import DuetError

__all__ = ["flush_directory", "pack", "remove_leftovers", "write_atomically", "write_flushed"]


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    Raises:
        DuetError: if it cannot be written.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{_host()}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_flushed(beside, content)
        os.replace(beside, path)
        flush_directory(path.parent)
    except BaseException as error:
        with suppress(OSError):
            beside.unlink()
        if isinstance(error, OSError):
            raise DuetError(f"{path}: it cannot be written ({error.strerror or error})") from error
        raise


# A file that a kill left beside the one that it was to become, and after how many seconds nobody writes it any more.
_BESIDE = re.compile(r"\..+\.(?P<host>[A-Za-z0-9-]+)\.(?P<pid>\d+)")
_LEFT_SECONDS = 86400


def _host() -> str:
    """This machine's name, as a part of a file's: another one may write to the same disk."""
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()) or "-"


def remove_leftovers(directory: Path) -> None:
    """Delete what killed calls of `write_atomically` left in a directory, but nothing that may still be written."""
    for path in directory.iterdir() if directory.is_dir() else ():
        found = _BESIDE.fullmatch(path.name)
        if found is None or not path.is_file():
            continue
        with suppress(FileNotFoundError):  # it got its name meanwhile
            here = found["host"] == _host()
            if not _lives(int(found["pid"])) if here else time.time() - path.stat().st_mtime > _LEFT_SECONDS:
                path.unlink()


def _lives(pid: int) -> bool:
    """Whether another process of this number runs here."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def write_flushed(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def flush_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def pack(arrays: Mapping[str, NDArray], facts: Mapping[str, str] | None = None) -> bytes:
    """The content of a safetensors file with these arrays and, in its header, these facts."""
    # safetensors stores the bytes of an array as they lie, whatever its strides: they must be in C order.
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return tensors.save(whole, facts and dict(facts))
