"""Reading foreign files: arrays by name, and configurations. Nothing is unpickled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.files.safe_read import open_npz, read_json, read_safetensors

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
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    with open_npz(path) as file:
        return dict(file)


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object, without the entries that start with an underscore other than the class name.

    Raises:
        DuetError: if it is missing or something else.
    """
    config = read_json(path)
    if not isinstance(config, dict):
        raise DuetError(f"{path}: it holds a {type(config).__name__}; a configuration is a mapping")
    return {name: value for name, value in config.items() if name == "_class_name" or not name.startswith("_")}
