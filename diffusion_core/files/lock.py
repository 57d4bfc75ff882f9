"""Reserving a directory for one process.

The lock is on a file in the directory. The system releases it when the process ends in any way, so nothing must be
repaired after a kill; the file then remains and locks nothing. A process that ends normally deletes the file, so a lock
counts only while the name of the file still leads to the locked file.
"""

from __future__ import annotations

import errno
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from diffusion_core.common.errors import DuetError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

__all__ = ["LOCK", "lock_directory"]

LOCK = ".lock"

# The errors of file systems that have no locks.
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextmanager
def lock_directory(directory: Path, name: str = LOCK) -> Iterator[None]:
    """Reserve a directory for this process; on a file system without locks, warn and continue without one.

    Args:
        directory: an existing directory.
        name: of the lock file in it.

    Raises:
        DuetError: if another process, which the message names, holds the directory, or if it cannot be written.
    """
    path = Path(directory) / name
    try:
        descriptor = _acquire(path)
    except OSError as error:
        raise DuetError(
            f"{directory}: the directory cannot be written ({error.strerror or error}); give another one"
        ) from error
    try:
        yield
    finally:
        try:
            path.unlink(missing_ok=True)  # while the lock is held, the name cannot be that of another process
        finally:
            os.close(descriptor)


def _acquire(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same_file(path, descriptor):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, _holder().encode())
                return descriptor
        except BlockingIOError:
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise DuetError(f"{path.parent}: it is in use by {holder}; wait for it, or give another one") from None
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                warnings.warn(f"{path.parent}: its file system has no locks ({error.strerror})", stacklevel=3)
                return descriptor
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder deleted the file in the meantime: try again


def _is_same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder() -> str:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return f"process {os.getpid()} on {socket.gethostname()}, since {since}\n"
