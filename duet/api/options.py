"""Options in Python: the error for one that a function does not have, and plain values in place of NumPy's."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from diffusion_core.common.errors import DuetError, one_of

__all__ = ["check_types", "plain_values", "unknown_option"]

F = TypeVar("F", bound=Callable[..., Any])
_WORDS = {
    int: "a whole number", float: "a number", str: "text", bool: "True or False", type(None): "None", Path: "a path",
    Mapping: "a mapping",
}  # fmt: skip


def check_types(function: F) -> F:
    """Let a function refuse arguments of another type than its annotations say, before it begins.

    Numbers may be those of NumPy, a truth value is no number, and annotations other than classes accept anything.
    """
    signature = inspect.signature(function)
    hints = functools.cache(lambda: typing.get_type_hints(function))

    @functools.wraps(function)
    def checked(*arguments: Any, **keywords: Any) -> Any:
        bound = signature.bind(*arguments, **keywords).arguments
        for name, value in bound.items():
            hint = hints().get(name, Any)
            is_further = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            if not is_further and not _fits(value, hint):
                raise DuetError(f"{name}: {value!r} was given; it must be {_describe(hint)}")
        return function(*arguments, **keywords)

    return typing.cast(F, checked)


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value has the type of an annotation."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool | np.bool_)
    if origin is Mapping:
        return isinstance(value, Mapping)
    if hint is Path:
        return isinstance(value, Path)
    return isinstance(value, hint) if inspect.isclass(hint) and not getattr(hint, "_is_protocol", False) else True


def _describe(hint: Any) -> str:
    """Return an annotation in words."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(_describe(part) for part in typing.get_args(hint)))
    if (origin := typing.get_origin(hint)) is not None and origin in _WORDS:
        return _WORDS[origin]
    return _WORDS.get(hint) or (f"a duet.{hint.__name__}" if inspect.isclass(hint) else "an array or a list")


def unknown_option(
    function: Callable[..., Any], name: str, options: Iterable[str], called: str | None = None
) -> DuetError:
    """Return the error, which suggests the nearest of the function's own keywords and of its further options.

    Args:
        function: what was called.
        name: of the option that does not exist.
        options: what the function takes beyond its keywords.
        called: what the user called, where that is not the function.
    """
    keywords = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return one_of(f"option of {called or function.__name__}", name, [*keywords, *sorted(options)])


def plain_values(value: Any) -> Any:
    """Return options with lists and numbers in place of NumPy's, so that a run can store them."""
    if isinstance(value, Mapping):
        return {key: plain_values(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(v) for v in value]
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
