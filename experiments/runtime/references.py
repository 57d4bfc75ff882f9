"""Networks by reference: ``my_package.my_file:build`` or ``path/to/file.py:build`` names an object in the user's code.

The code runs when the reference is read, as with any import. So a reference is taken from what the user types, never
from a checkpoint, which may come from elsewhere.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.common.paths import similar_path

__all__ = ["build_network", "is_reference"]


def is_reference(text: object) -> bool:
    """Return whether a text names an object in code.

    Example:
        >>> is_reference("my_package.my_file:build"), is_reference("nets/mine.py:build"), is_reference("outputs/a")
        (True, True, False)
    """
    module, colon, attribute = str(text).rpartition(":")
    names = attribute.split(".") if module.endswith(".py") else [*module.split("."), *attribute.split(".")]
    return bool(colon and module) and all(name.isidentifier() for name in names)


def build_network(reference: str, options: Mapping[str, Any] | None = None) -> Any:
    """Return the network that a reference names: the object itself, or what the class or function returns.

    Args:
        reference: see the module.
        options: keyword arguments of the class or function.

    Raises:
        DuetError: if there is no such file or object, if the user's code raises an exception, or if an option does not
            exist; the message names the place.
    """
    if not is_reference(reference):
        raise DuetError(
            f"network: {reference!r} was given; it must name an object in code, as in my_package.my_file:build or "
            f"path/to/file.py:build"
        )
    where, _, attribute = reference.rpartition(":")
    found: Any = _import(where, reference)
    for name in attribute.split("."):
        if not hasattr(found, name):
            names = [other for other in dir(found) if not other.startswith("_")]
            raise one_of(f"network {where}", name, names)
        found = getattr(found, name)
    options = dict(options or {})
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        if options:
            raise DuetError(f"network_options: {options} were given, but {reference} is an object, not a function")
        return found
    known = inspect.signature(found).parameters
    if inspect.isfunction(found) and not options and _is_network(known):
        return found
    if not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        for name in options:
            if name not in known:
                raise one_of(f"network_options of {reference}", name, [*known])
    for name, parameter in known.items():
        is_variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.default is parameter.empty and not is_variadic and name not in options:
            raise DuetError(f"network: {reference} needs a value for {name}; add network_options.{name}=VALUE")
    try:
        return found(**options)
    except Exception as error:
        raise _in_user_code(reference, error) from error


def _is_network(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Return whether a function is a network itself: its first parameters are x and a time."""
    names = [name for name, p in parameters.items() if p.default is p.empty]
    return len(names) >= 2 and names[0] in ("x", "images", "samples", "sample", "x_t", "inputs")


def _import(where: str, reference: str) -> ModuleType:
    """Return the module of a reference."""
    if where.endswith(".py"):
        path = Path(where).expanduser()
        if not path.is_file():
            raise DuetError(f"network: {where!r} does not exist{similar_path(path)}")
        name = path.stem
        folder = str(path.parent.resolve())
        if folder not in sys.path:  # so that the file can import its neighbours
            sys.path.insert(0, folder)
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(name, module)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise _in_user_code(reference, error) from error
        return module
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise _in_user_code(reference, error) from error
        raise DuetError(
            f"network: there is no module {error.name!r} for {reference}; it is looked for in the working directory "
            f"and among the installed packages"
        ) from error
    except Exception as error:
        raise _in_user_code(reference, error) from error


def _in_user_code(reference: str, error: Exception) -> DuetError:
    """Return the error for an exception in the user's code, with its place there."""
    if isinstance(error, DuetError):
        return error
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    frames = [frame for frame in frames if "importlib" not in frame.filename]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return DuetError(f"network {reference}: {type(error).__name__}: {error}{place}")
