"""Sides of `duet diff` that are files: an ONNX file, a run of Duet, a SavedModel or a `.keras` file.

Each is opened by a module that looks like an author's file: a function that returns the model, called with the path and
with those of its arguments `dtype` and `weights`, and `inputs(seed, path)` where inputs can be drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.runs.checkpoint import load_checkpoint
from experiments.runtime.options import CONFIGS
from experiments.runtime.own_files import RUNS_CODE, backend_of_file, is_reference

__all__ = ["FileSide", "find_file_side"]


@dataclass(frozen=True)
class FileSide:
    """How a file is opened and recorded.

    Attributes:
        path: the file or directory.
        backend: the backend whose environment it needs; "" for any that has the packages.
        packages: what that environment must have.
        recorder: the module that records it.
        opener: the function that opens it, as "module:function".
        inputs: the function that draws inputs for it, or "".
        fixed: whether its weights and their precision are in the file.
    """

    path: Path
    backend: str
    packages: tuple[str, ...]
    recorder: str
    opener: str
    inputs: str
    fixed: bool


def find_file_side(text: str, backend: str | None = None) -> FileSide | None:
    """Return how a side that is a file is opened; None if the text names code.

    Args:
        text: what the user named.
        backend: the backend that computes a run; None is the one that trained it. Other files have one themselves.

    Raises:
        DuetError: if there is no such file, or if it is of a format that cannot be opened without running its code.
    """
    if is_reference(text):
        return None
    path = Path(text).expanduser()
    if not path.exists():
        hint = (
            f"; code is named as {text}:FUNCTION" if path.suffix in ("", ".py") or Path(f"{text}.py").exists() else ""
        )
        raise DuetError(f"{text}: there is no such file{hint}")
    if path.suffix == ".py":
        raise DuetError(f"{text}: name the function that returns the model, as in {text}:build")
    if path.suffix == ".onnx":
        here = "experiments.model_diff.onnx_side"
        return FileSide(path, "", ("onnx", "onnxruntime"), here, f"{here}:build", f"{here}:inputs", True)
    if path.suffix in RUNS_CODE:
        raise DuetError(
            f"{text}: the reader of this format may run code that is in the file; write a function that returns "
            f"{RUNS_CODE[path.suffix]}, and name it, as in FILE.py:FUNCTION"
        )
    if (name := backend_of_file(path)) is not None:
        return FileSide(path, name, (), f"backends.{name}.recorder", f"backends.{name}.files:load_network", "", True)
    if not path.is_dir():
        raise DuetError(
            f"{text}: this is no file of a model; it must be an ONNX file, a SavedModel, a .keras file, a run of Duet, "
            f"or code, as in model.py:build"
        )
    names = sorted(config.stem for config in (CONFIGS / "backend").glob("*.yaml"))
    trained = load_checkpoint(path, key=text).notes.get("backend")
    name = backend or (trained if trained in names else names[0])
    check_choice("backend", name, names)
    module = f"backends.{name}.run_model"
    return FileSide(path, name, (), f"backends.{name}.recorder", f"{module}:build", f"{module}:inputs", False)
