"""The author's code of one side of `duet diff`: finding the function, calling it, and saying what went wrong in it.

It runs in the interpreter of the model's author, so that it needs NumPy and the standard library alone.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Refused",
    "build_model",
    "call_with",
    "describe_error",
    "find",
    "is_builder",
    "load_module",
    "packages_used",
    "signature",
    "to_inputs",
]

# Duet's own folders that run in the process of a side.
_ROOT = Path(__file__).resolve().parents[2]
_OWN = tuple(str(_ROOT / name) + os.sep for name in ("backends", "diffusion_core", "experiments", "duet"))


class Refused(Exception):
    """What a side cannot do, in one line for the user."""


def load_module(place: str, folder: str) -> ModuleType:
    """Load the author's module, as Python would in its own folder.

    Args:
        place: "path/to/file.py", whose folder comes first on the path, or a module's name.
        folder: the working directory, where relative paths and modules are searched.
    """
    if not place.endswith(".py"):
        sys.path.insert(0, folder)
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is None or not (place == error.name or place.startswith(f"{error.name}.")):
                raise  # a module that the author's code imports
            raise Refused(
                f"there is no module {error.name!r} in {folder} or among the packages of {sys.executable}; give "
                f"path/to/FILE.py:FUNCTION, or start in the folder that holds {error.name.split('.')[0]}"
            ) from error
    path = Path(folder, Path(place).expanduser()).resolve()
    if not path.is_file():
        raise Refused(f"there is no file {place}")
    package, top = [path.stem], path.parent
    while (top / "__init__.py").is_file():  # a file of a package imports its neighbours by relative imports
        package.insert(0, top.name)
        top = top.parent
    sys.path[:0] = dict.fromkeys([str(path.parent), str(top)])
    if len(package) > 1:
        return importlib.import_module(".".join(package))
    taken = path.stem in sys.modules or path.stem in sys.builtin_module_names or not path.stem.isidentifier()
    name = "duet_side" if taken else path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def find(module: ModuleType, place: str, name: str) -> Any:
    """Return what a dotted name stands for in a module."""
    found: Any = module
    for word in name.split("."):
        if not hasattr(found, word):
            named = [each for each in vars(found) if not each.startswith("_")] if hasattr(found, "__dict__") else []
            near = difflib.get_close_matches(word, named, n=1)
            own = [each for each in named if inspect.isroutine(getattr(found, each))]
            hint = f"; did you mean {near[0]!r}?" if near else f"; its functions are {', '.join(own) or 'none'}"
            raise Refused(f"{place} has nothing called {word!r}{hint}")
        found = getattr(found, word)
    return found


def is_builder(found: Any, options: Mapping[str, Any]) -> bool:
    """Return whether an object is called to get the model, rather than being the model.

    A class is, and a function all of whose arguments have defaults or are `dtype`, `seed` or options.
    """
    if inspect.isclass(found):
        return True
    if not (inspect.isroutine(found) or isinstance(found, functools.partial)):
        return False
    inner = found
    while inner is not (inner := inspect.unwrap(getattr(inner, "func", inner))):
        pass
    if not (inspect.isroutine(inner) or inspect.isclass(inner)):
        return False  # a decorator around a model
    known = {"dtype", "seed", *options}
    return all(
        each.default is not each.empty or each.name in known or each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        for each in signature(found)
    )


def signature(function: Callable) -> Sequence[inspect.Parameter]:
    """Return the arguments of a function; none if Python does not know them."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return []


def call_with(function: Callable, offered: Mapping[str, Any]) -> Any:
    """Call a function with those of the offered arguments that its signature names."""
    names = {each.name for each in signature(function) if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
    return function(**{name: value for name, value in offered.items() if name in names})


def build_model(reference: str, found: Any, options: Mapping[str, Any], dtype: str, seed: int) -> Any:
    """Return the model that an object is or makes.

    Args:
        reference: what the user named.
        found: the object of the author's module.
        options: arguments that the user gave.
        dtype: "float64" or "float32", for a function that has an argument of that name.
        seed: likewise.
    """
    if isinstance(found, (str, bytes, int, float, ModuleType, type(None))):
        raise Refused(
            f"{reference} is {type(found).__name__}; it must be a function that returns the model, or a model"
        )
    if not is_builder(found, options):
        if options:
            raise Refused(f"{reference} is the model itself, which has no options; leave out {', '.join(options)}")
        return found
    arguments = signature(found)
    names = [each.name for each in arguments if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    if not any(each.kind is each.VAR_KEYWORD for each in arguments):
        for name in options:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise Refused(
                    f"{reference} has no argument {name!r}; its arguments are {', '.join(names) or 'none'}{hint}"
                )
    missing = [
        each.name
        for each in arguments
        if each.default is each.empty
        and each.name in names
        and each.name not in options
        and each.name not in ("dtype", "seed")
    ]
    if missing:  # a class; a function with such arguments is the model
        raise Refused(f"{reference} needs {', '.join(missing)}; give {'=VALUE '.join(missing)}=VALUE as its options")
    model = found(**{name: value for name, value in (("dtype", dtype), ("seed", seed)) if name in names}, **options)
    if model is None:
        raise Refused(f"{reference} returned None; it must return the model")
    return model


def to_inputs(given: Any, where: str) -> tuple[NDArray, ...] | dict[str, NDArray]:
    """Return the inputs of a model as NumPy arrays: a tuple, or a dictionary for keyword arguments."""
    if isinstance(given, Mapping):
        return {str(name): _array(value, f"{where}[{name!r}]") for name, value in given.items()}
    many = given if isinstance(given, (tuple, list)) else (given,)
    if len(many) == 1 and isinstance(many[0], Mapping):  # the one argument of the model is a dictionary
        return to_inputs(many[0], where)
    return tuple(_array(value, f"{where}[{i}]" if len(many) > 1 else where) for i, value in enumerate(many))


def _array(value: Any, where: str) -> NDArray:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise Refused(f"{where} is no array ({error}); give arrays, and arguments without one in a dict") from error
    if array.dtype.kind not in "fiub":
        raise Refused(
            f"{where} has the type {array.dtype}; it must be an array of floats, integers or booleans; leave out what "
            f"is None, and name the others in a dict"
        )
    return array


def describe_error(reference: str, error: BaseException) -> tuple[str, str]:
    """Return one line for an exception of a side, and the traceback from the author's first line on ("" if none)."""
    if isinstance(error, Refused):
        return f"{reference}: {error}", ""
    what = f"{type(error).__name__}: {_first_line(error)}"
    if isinstance(error, SyntaxError) and error.filename:
        return f"{reference}: {what} ({Path(error.filename).name}, line {error.lineno})", ""
    frames = traceback.extract_tb(error.__traceback__)
    own = [i for i, frame in enumerate(frames) if _is_author(frame.filename)]
    if not own:
        # A recorder says in one line what it cannot do; anything else is a defect of Duet.
        refuses = isinstance(error, ValueError) and frames and frames[-1].filename.startswith(_OWN)
        if refuses:
            return f"{reference}: {_first_line(error)}", ""
        if any(frame.name == "call_model" for frame in frames):  # the framework refuses what the model is called with
            return f"{reference}: {what}", ""
        return f"{reference}: {what}", "".join(traceback.format_exception(type(error), error, error.__traceback__))
    last = frames[own[-1]]
    if isinstance(error, ModuleNotFoundError):
        what += f"; {sys.executable} has no such package: name another Python for this side"
    if isinstance(error, SystemExit):
        what = "the file ended the program; put what a script does under if __name__ == '__main__'"
    text = "Traceback (most recent call last):\n" + "".join(traceback.format_list(frames[own[0] :]))
    text += "".join(traceback.format_exception_only(type(error), error))
    return f"{reference}: {what} ({Path(last.filename).name}, line {last.lineno})", text


def _first_line(error: BaseException) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # colours
    text = re.sub(r"\[\[[\d\s.,eE+\-\[\]]*\]\]", "[...]", text)  # arrays of many lines
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Exception encountered when calling"):
        del lines[0]  # of Keras, which goes on with what happened
    return lines[0][:500] if lines else "no message"


def _is_installed(filename: str) -> bool:
    return "site-packages" in filename or "dist-packages" in filename


def _is_author(filename: str) -> bool:
    """Return whether a file is neither Duet's, nor Python's, nor that of an installed package."""
    if filename.startswith((*_OWN, "<")) or _is_installed(filename):
        return False
    return not filename.startswith(os.path.dirname(os.__file__) + os.sep)


def packages_used(function: Any) -> set[str]:
    """Return the packages of what a function reads: of modules, and of the classes of objects."""
    function = getattr(function, "__func__", function)
    if not inspect.isfunction(function):
        function = type(function).__call__ if callable(function) else None
    if not inspect.isfunction(function):
        return set()
    modules: set[str] = set()
    functions, seen = [function], set()
    while functions:
        function = functions.pop()
        if id(function) in seen:
            continue
        seen.add(id(function))
        names, todo = set(), [function.__code__]
        while todo:
            current = todo.pop()
            names |= set(current.co_names)
            todo += [each for each in current.co_consts if inspect.iscode(each)]
        cells = [cell.cell_contents for cell in function.__closure__ or () if cell != type(cell)()]
        found = [function.__globals__[name] for name in names if name in function.__globals__] + cells
        found += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        for each in found:
            modules.add(each.__name__ if isinstance(each, ModuleType) else type(each).__module__)
            if callable(each) and isinstance(getattr(each, "__module__", None), str):
                modules.add(each.__module__)
            if inspect.isfunction(each) and _is_author(each.__code__.co_filename):
                functions.append(each)  # the author's own, which may be what uses the framework
    return {module.split(".")[0] for module in modules}
