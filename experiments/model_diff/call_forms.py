"""How a model is called with the inputs of a comparison: by name, in order, or all of them in one argument.

It runs in the interpreter of the model's author, so that it needs NumPy and the standard library alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from experiments.model_diff.author_code import Refused, signature

__all__ = ["arrays_in", "call_forms", "how_named", "takes_nothing"]

# Arguments of a call that are no inputs of the model.
_MODES = ("training", "mask")


def call_forms(model: Any, inputs: Any) -> list[Any]:
    """Return the forms in which a model may be given its inputs, the likeliest first.

    Args:
        model: the model.
        inputs: a tuple of arrays, or a dictionary of them by name.

    Raises:
        Refused: some names are those of arguments, and there is no argument for another.
    """
    named = isinstance(inputs, Mapping)
    if hasattr(model, "_inputs_struct"):  # a functional model of Keras
        known = {each.name for each in model.inputs}
        return [inputs if not named or set(inputs) <= known else tuple(inputs.values())]
    arguments = _arguments(model)
    single = sum(each.default is each.empty or each.name not in _MODES for each in arguments) == 1
    single &= not any(each.kind is each.VAR_POSITIONAL for each in arguments)
    if not named:
        return [(list(inputs),), inputs] if single and len(inputs) > 1 else [inputs]
    names = [each.name for each in arguments if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    unknown = [name for name in inputs if name not in names]
    if not unknown or any(each.kind is each.VAR_KEYWORD for each in arguments):
        return [inputs]
    if len(unknown) < len(inputs):  # the names of the other side, of which some are the same
        free = [name for name in names if name not in inputs and name not in _MODES]
        if len(free) < len(unknown):
            raise Refused(f"the model has no argument {unknown[-1]!r}; its arguments are {', '.join(names)}")
        return [rename(inputs, dict(zip(unknown, free, strict=False)))]
    in_order, in_one = tuple(inputs.values()), (dict(inputs),)
    return [in_one, in_order] if single and len(inputs) > 1 else [in_order, in_one]


def rename(inputs: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return inputs under other names."""
    return {names.get(name, name): array for name, array in inputs.items()}


def how_named(inputs: Mapping[str, Any], given: Any) -> list[str]:
    """Say how named inputs were given to a model that does not have all of these names."""
    if isinstance(given, Mapping):
        renamed = [f"{one!r} was given as {other!r}" for one, other in zip(inputs, given, strict=True) if one != other]
        return [f"the model has other arguments: {', '.join(renamed)}"] if renamed else []
    how = "in one argument" if isinstance(given[0], Mapping) else "in order"
    return [f"no argument has the names of the inputs {', '.join(inputs)}: they were given {how}"]


def takes_nothing(model: Any) -> bool:
    """Return whether a model is called without inputs."""
    has_inputs = hasattr(model, "_inputs_struct") or hasattr(model, "signatures")
    return not has_inputs and _function(model) is not None and not _arguments(model)


def arrays_in(inputs: Any) -> Iterator[NDArray]:
    """Yield the arrays of a call's inputs in order."""
    if isinstance(inputs, Mapping):
        inputs = inputs.values()
    elif not isinstance(inputs, (list, tuple)):
        yield inputs
        return
    for each in inputs:
        yield from arrays_in(each)


def _function(model: Any) -> Any:
    """Return the author's function of a model, or None if it has none that can be looked into."""
    for name in ("forward", "call"):
        if hasattr(model, name):
            return getattr(model, name)
    if inspect.isroutine(model):
        return model if hasattr(model, "__code__") else None
    return getattr(model, "__call__", None) if hasattr(type(model).__call__, "__code__") else None  # noqa: B004


def _arguments(model: Any) -> Sequence[inspect.Parameter]:
    return signature(_function(model) or model)
