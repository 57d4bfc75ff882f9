"""Building an object from a configuration: a name, and options for the function of that name.

The signature of the function is the schema. An unknown name, an unknown or missing option and a value of the wrong type
each raise one clear error before the function runs.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from typing import Any, TypeVar

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.common.synonyms import OPTIONS

__all__ = ["build", "check_fields", "check_options", "complete_options"]

T = TypeVar("T")


def build(
    what: str,
    registry: Mapping[str, Callable[..., T]],
    name: str,
    options: Mapping[str, Any],
    *arguments: Any,
    also_allowed: Iterable[str] = (),
) -> T:
    """Call ``registry[name](*arguments, **options)`` and return its result.

    Args:
        what: the configuration group, as in "sampler"; error messages name it.
        registry: functions by name.
        name: which function to call.
        options: keyword arguments, as a user wrote them.
        arguments: leading positional arguments, which are not options.
        also_allowed: names of options that the caller handles itself; the error for an unknown option lists them too.

    Raises:
        DuetError: if the name or an option is unknown, an option is missing, or a value has the wrong type.

    Example:
        >>> def scaled(x: float, factor: float = 2.0) -> float:
        ...     return factor * x
        >>> build("map", {"scaled": scaled}, "scaled", {"factor": 3.0}, 2.0)
        6.0
    """
    check_options(what, registry, name, options, len(arguments), also_allowed)
    return registry[name](*arguments, **options)


def check_options(
    what: str,
    registry: Mapping[str, Callable[..., Any]],
    name: str,
    options: Mapping[str, Any],
    arguments: int = 0,
    also_allowed: Iterable[str] = (),
) -> None:
    """Raise the errors that `build` would raise, without calling the function.

    Args:
        what: as in `build`, like registry, name, options and also_allowed.
        arguments: the number of leading positional arguments, which are not options.
    """
    if not isinstance(name, str) or name not in registry:
        raise one_of(f"{what}.name", name, registry)
    if not isinstance(options, Mapping):
        raise DuetError(f"{what}: {options!r} was given; it must be the options of {name!r}, as in {{a: 1}}")
    parameters, hints = _schema(registry[name])
    parameters = parameters[arguments:]
    allowed = {p.name: p for p in parameters}
    for option, value in options.items():
        if option not in allowed:
            synonyms = OPTIONS.get(what)
            raise one_of(f"option of {what} {name!r}", option, [*allowed, *also_allowed], synonyms)
        if option in hints and not _has_type(value, hints[option]):
            group = "data.options" if what == "data" else what
            raise DuetError(f"{group}.{option}: {value!r} was given; it must be {_describe(hints[option])}")
    for p in parameters:
        if p.default is p.empty and p.kind is not p.VAR_KEYWORD and p.name not in options:
            raise DuetError(f"{what} {name!r}: no {p.name} was given; it takes {', '.join(allowed)}")


def check_fields(what: str, instance: object) -> None:
    """Refuse values of another type than the fields of a dataclass declare: numbers, text, truth values, mappings.

    Args:
        what: the configuration group, as in "process"; error messages name it.
        instance: of the dataclass.

    Raises:
        DuetError: for the first such value.
    """
    for name, hint in _hints(type(instance)).items():
        if not _has_type(value := getattr(instance, name), hint):
            raise DuetError(f"{what}.{name}: {value!r} was given; it must be {_describe(hint)}")


@cache
def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


def complete_options(registry: Mapping[str, Callable[..., Any]], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a name with its options, and the defaults of those that are missing; two such tables compare by value.

    Example:
        >>> def scaled(x: float, factor: float = 2.0) -> float:
        ...     return factor * x
        >>> complete_options({"scaled": scaled}, {"name": "scaled"})
        {'factor': 2.0, 'name': 'scaled'}
    """
    function = registry.get(options.get("name"))
    parameters = inspect.signature(function).parameters.values() if function else ()
    return {p.name: p.default for p in parameters if p.default is not p.empty} | dict(options)


@cache
def _schema(function: Callable[..., Any]) -> tuple[list[inspect.Parameter], dict[str, Any]]:
    """Return the parameters of a function and their types, which takes longer to find out than a plan to make."""
    return list(inspect.signature(function).parameters.values()), typing.get_type_hints(function)


def _has_type(value: Any, hint: Any) -> bool:
    """Return whether a plain value (number, text, None) has the type of the hint; accept any value for other hints."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return any(_has_type(value, part) for part in typing.get_args(hint))
    if hint is type(None):
        return value is None
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    if typing.get_origin(hint) is Mapping:
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    if typing.get_origin(hint) is tuple:
        parts = [part for part in typing.get_args(hint) if part is not ...]
        return isinstance(value, list | tuple) and all(any(_has_type(v, part) for part in parts) for v in value)
    return isinstance(value, hint) if hint in (str, bool) else True


def _describe(hint: Any) -> str:
    """Return a type hint in words."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return " or ".join(_describe(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is Mapping:
        return "a name with options, such as {name: NAME}"
    if typing.get_origin(hint) is tuple:
        many = {int: "whole numbers", float: "numbers", str: "names"}
        return f"a list of {many.get(typing.get_args(hint)[0], 'values')}"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(hint, str(hint))
