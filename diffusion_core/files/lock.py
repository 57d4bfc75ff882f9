"""A directory for one process alone.

What is locked is a file in the directory. The system takes the lock back when the process ends, however it ends, so
nothing must be mended after a kill; the file then stays, and is no lock. A process that ends by itself deletes the
file, so a lock counts only while its name still leads to the locked file.
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
except ImportError:  # not on Windows
    fcntl = None

__all__ = ["LOCK", "lock_directory"]

LOCK = ".lock"

# What file systems say that keep no locks.
_NONE = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextmanager
def lock_directory(directory: Path, name: str = LOCK) -> Iterator[None]:
    """Hold a directory; on a file system that keeps no locks, warn and go on without one.

    Args:
        directory: which is there.
        name: of the file in it.

    Raises:
        DuetError: if another process holds it, which is named, or if it cannot be written.
    """
    path = Path(directory) / name
    try:
        descriptor = _take(path)
    except OSError as error:
        raise DuetError(
            f"{directory}: the directory cannot be written ({error.strerror or error}); give another one"
        ) from error
    try:
        yield
    finally:
        try:
            path.unlink(missing_ok=True)  # while it is held: nobody else's can have the name
        finally:
            os.close(descriptor)


def _take(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _leads_to(path, descriptor):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, _holder().encode())
                return descriptor
        except BlockingIOError:
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise DuetError(f"{path.parent}: it is in use by {holder}; wait for it, or give another one") from None
        except OSError as error:
            if error.errno in _NONE:
                warnings.warn(f"{path.parent}: its file system keeps no locks ({error.strerror})", stacklevel=3)
                return descriptor
            os.close(descriptor)
            raise
        os.close(descriptor)  # of a file that its holder deleted in the meantime


def _leads_to(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder() -> str:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return f"process {os.getpid()} on {socket.gethostname()}, since {since}\n"
