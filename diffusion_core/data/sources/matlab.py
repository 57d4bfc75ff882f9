"""Read arrays of MATLAB files with SciPy, which runs no code from them."""

from __future__ import annotations

from pathlib import Path

from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import first_line

__all__ = ["read_mat"]


def read_mat(what: str, file: Path, *names: str) -> list[NDArray]:
    """Return some arrays of a file, in the order of their names.

    Raises:
        DuetError: the file cannot be read, or an array is missing.
    """
    from scipy.io import loadmat  # slow to import, and needed only here

    try:
        arrays = loadmat(file, variable_names=names)
        return [arrays[name] for name in names]
    # On a corrupted file SciPy may raise anything.
    except Exception as error:
        reason = first_line(error)
        raise DuetError(f"{what}: {str(file)!r} is not a MATLAB file with {', '.join(names)} ({reason})") from error
