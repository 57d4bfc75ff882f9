"""Arrays in MATLAB's files, by SciPy, which runs no code that they may hold."""

from __future__ import annotations

from pathlib import Path

from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError

__all__ = ["read_mat"]


def read_mat(what: str, file: Path, *names: str) -> list[NDArray]:
    """Some arrays of a file, in the order of their names.

    Raises:
        DuetError: it cannot be read, or one of them is not in it.
    """
    from scipy.io import loadmat  # slow to import, and only two data sets need it

    try:
        arrays = loadmat(file, variable_names=names)
        return [arrays[name] for name in names]
    # What SciPy raises depends on the byte at which the file stops to make sense.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DuetError(f"{what}: {str(file)!r} is no MATLAB file with {', '.join(names)} ({reason})") from error
