"""Own networks named by a text: a reference to code, or a file.

    my_package.my_file:build     an object of a module, which Python finds from the working directory
    folder/my_file.py:build      an object of a file
    net.onnx                     a file of ONNX, for onnxruntime
    net.keras, a SavedModel      a format of a framework, which the file of its backend in `configs/backend` names

A reference runs the user's own code, which the user named. Files are read only in formats that run no code.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from diffusion_core.common.errors import DuetError, check_choice, one_of
from diffusion_core.convert.onnx_network import open_onnx_network
from experiments.runtime.options import CONFIGS

__all__ = [
    "RUNS_CODE",
    "backend_of_file",
    "is_network",
    "is_reference",
    "open_network",
    "split_reference",
    "user_code_error",
]

# Formats whose readers may run code that is in the file, with how their users read them.
RUNS_CODE = {
    ".pt2": "torch.export.load(FILE).module()",
    ".pt": "the module, after module.load_state_dict(...)",
    ".pth": "the module, after module.load_state_dict(...)",
    ".ckpt": "the module, after module.load_state_dict(...)",
    ".ts": "torch.jit.load(FILE)",
    ".pkl": "the object that is in it",
    ".pickle": "the object that is in it",
    ".h5": "keras.saving.load_model(FILE)",
}


def split_reference(text: str) -> tuple[str, str] | None:
    """Return (module or file, attribute) of a reference to code; None for any other text.

    Example:
        >>> split_reference("my_package.my_file:build"), split_reference("nets/mine.py:Net")
        (('my_package.my_file', 'build'), ('nets/mine.py', 'Net'))
        >>> split_reference("nets/mine.onnx")
    """
    place, colon, attribute = text.rpartition(":")
    is_module = place.endswith(".py") or all(word.isidentifier() for word in place.split("."))
    named = all(word.isidentifier() for word in attribute.split("."))
    return (place, attribute) if colon and is_module and named else None


def is_reference(text: str | Path) -> bool:
    """Return whether a text names a network in code, as in ``"my_package.my_file:build"``, rather than a path."""
    return split_reference(str(text)) is not None


def is_network(source: str | Path) -> bool:
    """Return whether a text or a path names an own network, rather than a checkpoint of Duet."""
    path = Path(source)
    return (
        is_reference(source) or path.suffix == ".onnx" or path.suffix in RUNS_CODE or backend_of_file(path) is not None
    )


def open_network(source: str | Path, options: Mapping[str, Any] | None = None) -> Any:
    """Return the network that a text or a path names.

    Args:
        source: see the head of this file.
        options: keyword arguments of the function or class that a reference names.

    Raises:
        DuetError: if it does not exist, cannot be read, or could run code that nobody chose to run.
    """
    if reference := split_reference(str(source)):
        return _build(str(source), _attribute(*reference), dict(options or {}))
    path = Path(source).expanduser()
    if options:
        raise DuetError(f"network: {source} is a file, which has no options; leave them out")
    if path.suffix in RUNS_CODE:
        raise DuetError(
            f"network: {source} is in a format whose reader may run code that is in the file; if you trust it, read it "
            f"yourself and give the object: {RUNS_CODE[path.suffix]}"
        )
    if not path.exists():
        looks_like_code = all(word.isidentifier() for word in str(source).removesuffix(".py").split("."))
        hint = f"; code is named as network={source}:NAME, where NAME makes the network" if looks_like_code else ""
        raise DuetError(f"network: {source} does not exist{hint}")
    if path.suffix == ".onnx":
        return open_onnx_network(path)
    name = backend_of_file(path)
    if name is None:
        raise DuetError(
            f"network: {source} is no file of a network; it must be an ONNX file, a SavedModel, a .keras file, or a "
            f"reference such as my_package.my_file:build"
        )
    return entry_points(group="duet.backends")[name].load().files.load_network(path)


def backend_of_file(path: Path) -> str | None:
    """Return the backend that reads a path as a network: by its ending, or by a file that the directory holds."""
    for config in sorted((CONFIGS / "backend").glob("*.yaml")):
        for form in yaml.safe_load(config.read_text(encoding="utf-8")).get("network_files", ()):
            if path.suffix == form or (not form.startswith(".") and (path / form).is_file()):
                return config.stem
    return None


def _attribute(place: str, attribute: str) -> Any:
    """Return the object that a reference names."""
    found: Any = _file(Path(place).expanduser()) if place.endswith(".py") else _module(place)
    for word in attribute.split("."):
        if not hasattr(found, word):
            names = [name for name in vars(found) if not name.startswith("_")] if hasattr(found, "__dict__") else []
            raise one_of(f"network {place}", word, names)
        found = getattr(found, word)
    return found


def _module(name: str) -> ModuleType:
    """Import a module, as Python does in the working directory."""
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise  # a module that the user's own code imports
        raise DuetError(
            f"network: there is no module {error.name!r} in {here} or among the installed packages; give "
            f"network=PACKAGE.FILE:NAME from the directory that holds PACKAGE, or network=path/to/FILE.py:NAME"
        ) from error


def _file(path: Path) -> ModuleType:
    """Run a file as a module; files beside it can be imported."""
    if not path.is_file():
        raise DuetError(f"network: there is no file {path}")
    path = path.resolve()
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    loaded = sys.modules.get(path.stem)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    # Under a name of its own if another module has it, for example a file called `networks.py`.
    name = path.stem if loaded is None and path.stem.isidentifier() else f"duet_network_{abs(hash(path)):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _build(reference: str, found: Any, options: dict[str, Any]) -> Any:
    """Return the network that an object is, or that a class or a function without required arguments makes."""
    is_function = inspect.isroutine(found) or inspect.isclass(found)
    if isinstance(found, str):
        raise DuetError(f"network: {reference} is a text; it must be a network, or a function or class that makes one")
    if not is_function:
        if options:
            raise DuetError(f"network: {reference} is an object, which has no options; leave them out")
        return found
    try:
        parameters = list(inspect.signature(found).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    missing = [name for name in required if name not in options]
    if missing and not inspect.isclass(found) and not options:
        return found  # the function of (x, t) is the network
    if missing:
        raise DuetError(
            f"network: {reference} needs {', '.join(missing)}; give "
            f"{', '.join(f'network_options.{name}=VALUE' for name in missing)}"
        )
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        for name in options:
            check_choice(f"option of network {reference}", name, names)
    network = found(**options)
    if network is None:
        raise DuetError(f"network: {reference} returned None; it must return the network")
    return network


def user_code_error(reference: str, error: BaseException) -> DuetError:
    """Return the error for an exception that the user's code raised, with its place in that code."""
    if isinstance(error, SyntaxError):  # the file was not run, so no frame is in it
        place = f"{error.filename}, line {error.lineno}"
        return DuetError(f"network {reference}: {type(error).__name__}: {error.msg} ({place})")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and "importlib" not in frame.filename and "site-packages" not in frame.filename
    ]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    if isinstance(error, SystemExit):
        return DuetError(
            f"network {reference}: its code ended the program{place}; put what a script does, such as reading its "
            f"arguments, under if __name__ == '__main__'"
        )
    return DuetError(f"network {reference}: {type(error).__name__}: {error}{place}")
