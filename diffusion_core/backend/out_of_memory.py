"""The translation of a framework's error for too little memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

__all__ = ["translate_out_of_memory"]

_Method = TypeVar("_Method", bound=Callable[..., Any])


def translate_out_of_memory(method: _Method) -> _Method:
    """Make a method of an object with a `context` raise `OutOfMemory`, which says what to change, if memory runs out.

    Use it for methods that change nothing, since the caller may call them again.
    """

    @wraps(method)
    def translated(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.context.translate_out_of_memory():
            return method(self, *args, **kwargs)

    return translated  # type: ignore[return-value]
