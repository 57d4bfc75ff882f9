"""Making a thing from a configuration: a name, and options for the function of that name.

The functions' own signatures are the schema; an unknown name, an unknown or missing option and a value of
the wrong type each get one clear error, before the function runs.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from diffusion_core.common.errors import DuetError, one_of

__all__ = ["build", "check_options"]

T = TypeVar("T")


def build(
    what: str,
    registry: Mapping[str, Callable[..., T]],
    name: str,
    options: Mapping[str, Any],
    *given: Any,
    beside: Iterable[str] = (),
) -> T:
    """Call ``registry[name](*given, **options)``.

    Args:
        what: the configuration group, as in "sampler"; errors name it.
        registry: functions by name.
        name: which one.
        options: its options, as a person wrote them.
        given: leading arguments that are not options.
        beside: options that the caller takes itself, which an error about another one names too.

    Raises:
        DuetError: the name or an option does not exist, one is missing, or a value has the wrong type.
    """
    check_options(what, registry, name, options, len(given), beside)
    return registry[name](*given, **options)


def check_options(
    what: str,
    registry: Mapping[str, Callable[..., Any]],
    name: str,
    options: Mapping[str, Any],
    given: int = 0,
    beside: Iterable[str] = (),
) -> None:
    """Refuse what `build` would refuse, and call nothing.

    Args:
        what: as in `build`, as are registry, name, options and beside.
        given: how many leading arguments are not options.
    """
    if name not in registry:
        raise one_of(f"{what}.name", name, registry)
    function = registry[name]
    parameters = list(inspect.signature(function).parameters.values())[given:]
    hints = typing.get_type_hints(function)
    allowed = {p.name: p for p in parameters}
    for option, value in options.items():
        if option not in allowed:
            raise one_of(f"option of {what} {name!r}", option, [*allowed, *beside])
        if option in hints and not _fits(value, hints[option]):
            raise DuetError(f"{what}.{option}: {value!r} was given; it must be {_words(hints[option])}")
    for p in parameters:
        if p.default is p.empty and p.name not in options:
            raise DuetError(f"{what} {name!r}: no {p.name} was given; it takes {', '.join(allowed)}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value (number, text, None) has the type of the hint; other hints are not judged."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return any(_fits(value, part) for part in typing.get_args(hint))
    if hint is type(None):
        return value is None
    if hint in (int, float):
        number = isinstance(value, int if hint is int else (int, float))
        return number and not isinstance(value, bool)
    return isinstance(value, hint) if hint in (str, bool) else True


def _words(hint: Any) -> str:
    """The hint in words."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return " or ".join(_words(part) for part in typing.get_args(hint))
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(hint, str(hint))
