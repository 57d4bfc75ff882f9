"""Read files of other projects: arrays by name, and configurations. No pickle is ever loaded."""

from __future__ import annotations

import glob
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import join_some
from diffusion_core.files.safe_read import open_npz, read_json, read_safetensors
from diffusion_core.files.torch_file import is_torch_file, read_torch_file

__all__ = ["Reader", "describe_folder", "read_arrays", "read_config"]

# Reads a file in a framework's own format, as `Backend.read_arrays` does.
Reader = Callable[[Path], dict[str, NDArray]]


def read_arrays(path: Path, framework: Reader) -> dict[str, NDArray]:
    """Return the arrays of a `.safetensors` or `.npz` file, of `torch.save`, or of a file that the framework reads.

    Raises:
        DuetError: if the file cannot be read, or is a pickle with code.
    """
    if path.suffix in (".pkl", ".pickle"):
        raise DuetError(
            f"{path}: reading a pickle runs code, so Duet refuses it; if you trust the file, convert it to plain "
            f'weights in a clone of the repository that published it, with: python -c "import pickle, torch; '
            f"network = pickle.load(open({str(path)!r}, 'rb'))['ema']; "
            f"torch.save(network.state_dict(), 'weights.pt')\"; then give path=weights.pt"
        )
    is_plain = path.suffix in (".safetensors", ".npz")
    # The path of a TensorFlow checkpoint is the prefix of several files, or a folder with a file of this name.
    parts = [] if is_plain or not path.parent.is_dir() else path.parent.glob(f"{glob.escape(path.name)}.*")
    if not path.exists() and not any(parts):
        raise DuetError(f"{path}: it cannot be read (No such file or directory); {describe_folder(path.parent)}")
    if path.is_dir() and not (path / "checkpoint").exists():
        raise DuetError(f"{path}: it is a directory; give a file: {describe_folder(path)}")
    if not is_plain:
        return read_torch_file(path) if is_torch_file(path) else framework(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    with open_npz(path) as file:
        return dict(file)


def describe_folder(folder: Path, shown: int = 8) -> str:
    """Return what a folder holds, for an error about a file that is not there."""
    if not folder.is_dir():
        return f"there is no folder {folder}; nothing is downloaded here, so give a model that lies on this machine"
    names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in folder.iterdir())
    return f"{folder} holds {join_some(names, shown) or 'nothing'}"


def read_config(path: Path) -> dict[str, Any]:
    """Return a JSON object without the entries that start with an underscore, except the class name.

    Raises:
        DuetError: if the file is missing or is not a JSON object.
    """
    config = read_json(path)
    if not isinstance(config, dict):
        raise DuetError(f"{path}: it holds a {type(config).__name__}; it must be a JSON object")
    return {name: value for name, value in config.items() if name == "_class_name" or not name.startswith("_")}
