"""Reading foreign files: arrays by name, and configurations. Nothing is unpickled."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import numpy as tensors

from diffusion_core.errors import DuetError

__all__ = ["Reader", "read_arrays", "read_config"]

# Reads a file of a framework's own format; a backend's `read_arrays`.
Reader = Callable[[Path], dict[str, NDArray]]


def read_arrays(path: Path, framework: Reader) -> dict[str, NDArray]:
    """The arrays of a `.safetensors` or `.npz` file, or of one that a framework reads.

    Raises:
        DuetError: if it cannot be read, or is a pickle with code.
    """
    if path.suffix in (".pkl", ".pickle"):
        raise DuetError(
            f"{path}: a pickle runs code when it is read, so it is refused; where you trust it, convert it to plain "
            f"weights, as in: safetensors.torch.save_file(pickle.load(file)['ema'].state_dict(), 'weights.safetensors')"
        )
    if path.suffix not in (".safetensors", ".npz"):
        return framework(path)
    try:
        if path.suffix == ".safetensors":
            return tensors.load(path.read_bytes())
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except OSError as error:
        raise DuetError(f"{path}: it cannot be read ({error.strerror or error})") from error
    except Exception as error:  # what these readers raise depends on the byte at which the file stops to make sense
        raise DuetError(f"{path}: it is no {path.suffix} file of arrays ({_first_line(error)})") from error


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object, without the entries that start with an underscore other than the class name.

    Raises:
        DuetError: if it is missing or something else.
    """
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        raise DuetError(f"{path}: it cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DuetError(f"{path}: it is not JSON ({_first_line(error)})") from error
    if not isinstance(config, dict):
        raise DuetError(f"{path}: it holds a {type(config).__name__}; a configuration is a mapping")
    return {name: value for name, value in config.items() if name == "_class_name" or not name.startswith("_")}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
