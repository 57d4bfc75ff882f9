"""Writing a file completely or not at all: into a temporary file, flushed to the disk, then renamed.

A reader sees the old content or the new content, never a part of it. The name of a temporary file contains the host and
the process, so that what a killed process left behind can be told from a file that is being written.
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

__all__ = ["flush_directory", "pack_safetensors", "remove_leftovers", "write_atomically", "write_flushed"]


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file such that a reader sees the old content or the new content, never a part.

    Raises:
        DuetError: if it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{_host()}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_flushed(temporary, content)
        os.replace(temporary, path)
        flush_directory(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise DuetError(f"{path}: it cannot be written ({error.strerror or error})") from error
        raise


# The names of temporary files, and the age in seconds at which one of another machine counts as left behind.
_TEMPORARY = re.compile(r"\..+\.(?P<host>[A-Za-z0-9-]+)\.(?P<pid>\d+)")
_MAX_AGE_SECONDS = 86400


def _host() -> str:
    """Return the name of this machine as a part of a file name: several machines may write to the same disk."""
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()) or "-"


def remove_leftovers(directory: Path) -> None:
    """Delete the temporary files of killed processes in a directory, but none that may still be written."""
    for path in directory.iterdir() if directory.is_dir() else ():
        match = _TEMPORARY.fullmatch(path.name)
        if match is None or not path.is_file():
            continue
        with suppress(FileNotFoundError):  # its process renamed it in the meantime
            if match["host"] == _host():
                is_left = not _is_running_elsewhere(int(match["pid"]))
            else:
                is_left = time.time() - path.stat().st_mtime > _MAX_AGE_SECONDS
            if is_left:
                path.unlink()


def _is_running_elsewhere(pid: int) -> bool:
    """Return whether a process other than this one has this number on this machine."""
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
    """Write a file and wait until the disk has it."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def flush_directory(path: Path) -> None:
    """Wait until the disk has the names in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def pack_safetensors(arrays: Mapping[str, NDArray], facts: Mapping[str, str] | None = None) -> bytes:
    """Return the content of a safetensors file with these arrays and, in its header, these facts."""
    # safetensors stores the memory of an array whatever its strides are, so it must be in C order.
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    return tensors.save(contiguous, facts and dict(facts))
