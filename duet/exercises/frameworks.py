"""The arrays that a function is called with: those of the framework it is written for.

A framework is named, or found: by the modules that the function's code names, also in the functions that it calls, or
by its class. A function that names none is called with NumPy arrays. No framework is imported here unless it is asked
for or the function has imported it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import CodeType, ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, one_of

__all__ = ["FRAMEWORKS", "Framework", "find_frameworks", "named_framework", "to_numpy"]


@dataclass(frozen=True)
class Framework:
    """How to make the arrays of one framework.

    Args:
        title: its name in sentences.
        module: imported when it is used.
        make: an array from one of NumPy, given the module.
        cast: an array with the type of another one, given the module.
        channels_first: whether its images are b c h w.
    """

    title: str
    module: str
    make: Callable[[Any, NDArray], Any]
    cast: Callable[[Any, Any, Any], Any]
    channels_first: bool = False

    def array(self, value: NDArray) -> Any:
        """Return a copy of a NumPy array as an array of the framework."""
        return self.make(importlib.import_module(self.module), np.array(value))

    def caster(self) -> Callable[[Any, Any], Any]:
        """Return the function that casts a number or an array to the type of another array."""
        module, cast = importlib.import_module(self.module), self.cast
        return lambda value, other: (
            cast(module, value, other) if hasattr(value, "dtype") and hasattr(other, "dtype") else value
        )


FRAMEWORKS: Mapping[str, Framework] = {
    "numpy": Framework("NumPy arrays", "numpy", lambda np, a: np.asarray(a), lambda np, a, b: a.astype(b.dtype)),
    "torch": Framework(
        "PyTorch tensors",
        "torch",
        lambda torch, a: torch.as_tensor(a),
        lambda torch, a, b: torch.as_tensor(a).to(b),
        True,
    ),
    "tf": Framework(
        "TensorFlow tensors",
        "tensorflow",
        lambda tf, a: tf.convert_to_tensor(a),
        lambda tf, a, b: tf.cast(a, b.dtype),
    ),
}
_OTHER_NAMES = {"np": "numpy", "pytorch": "torch", "tensorflow": "tf", "keras": "tf"}


def named_framework(name: str) -> Framework:
    """Return the framework with this name.

    Raises:
        DuetError: for an unknown one, or one that is not installed.
    """
    own = _OTHER_NAMES.get(str(name).lower(), str(name).lower())
    if own not in FRAMEWORKS:
        raise one_of("framework", name, FRAMEWORKS, _OTHER_NAMES)
    if importlib.util.find_spec(FRAMEWORKS[own].module) is None:
        raise DuetError(f"framework: {name!r} was given, but {FRAMEWORKS[own].module} is not installed in this Python")
    return FRAMEWORKS[own]


def find_frameworks(function: Callable[..., Any]) -> list[Framework]:
    """Return the frameworks to call a function with, in the order in which to try them.

    First those that its code or its class names, then NumPy, then the others that this program has imported. Code that
    names NumPy alone is called with nothing else: a method such as ``var`` means another thing for another array.

    Example:
        >>> [framework.title for framework in find_frameworks(lambda x: np.sqrt(x))]
        ['NumPy arrays']
    """
    words = _modules_of(function)
    named = [f for f in FRAMEWORKS.values() if f.module != "numpy" and f.module in words]
    if "numpy" in words and not named:
        return [FRAMEWORKS["numpy"]]
    loaded = [f for f in FRAMEWORKS.values() if f.module == "numpy" or f.module in sys.modules]
    return list(dict.fromkeys([*named, *loaded]))


def _modules_of(function: Any) -> set[str]:
    """Return the top-level modules that a function uses, or that its class is made of."""
    words, seen, waiting = set(), set(), [function]
    while waiting:
        item = waiting.pop()
        item = getattr(item, "__wrapped__", getattr(item, "func", getattr(item, "__func__", item)))
        if id(item) in seen:
            continue
        seen.add(id(item))
        code = getattr(item, "__code__", None)
        if isinstance(item, ModuleType):
            words.add(_top(item.__name__))
        elif isinstance(code, CodeType):
            names = _names(code)
            words |= {_top(name) for name in names}
            used = [item.__globals__[name] for name in names if name in item.__globals__]
            held = [cell.cell_contents for cell in item.__closure__ or () if _is_filled(cell)]
            waiting += [
                value for value in (*used, *held) if isinstance(value, ModuleType) or hasattr(value, "__code__")
            ]
        else:
            words |= {_top(kind.__module__) for kind in (item if isinstance(item, type) else type(item)).__mro__}
            if hasattr(type(item).__call__, "__code__") and not isinstance(item, type):
                waiting.append(type(item).__call__)
    if "keras" in words:
        words.add(_keras_backend())
    return words


def _names(code: CodeType) -> set[str]:
    """Return the global names that code reads or imports, with those of the functions within it."""
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*inner)


def _is_filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:  # a name that is assigned later
        return False
    return True


def _top(name: str) -> str:
    return str(name).partition(".")[0]


def _keras_backend() -> str:
    """Return the module of the framework that Keras runs on."""
    keras = sys.modules.get("keras")
    return keras.backend.backend() if hasattr(getattr(keras, "backend", None), "backend") else "tensorflow"


def to_numpy(value: Any) -> NDArray:
    """Return the value of an array of any framework, a number or a list of these as a NumPy array.

    Numbers of 16 bits, which NumPy knows in one form only, become float16.
    """
    if isinstance(value, (list, tuple)):
        return np.array([to_numpy(part) for part in value])
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    if "bfloat16" in str(getattr(value, "dtype", "")):
        return np.asarray(value.float() if hasattr(value, "float") else value).astype(np.float16)
    return np.asarray(value)
