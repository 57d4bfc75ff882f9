"""The error for an option that a function of the Python interface does not have."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from diffusion_core.common.errors import DuetError, one_of

__all__ = ["unknown_option"]


def unknown_option(function: Callable[..., Any], name: str, options: Iterable[str]) -> DuetError:
    """Return the error, which suggests the nearest of the function's own keywords and of its further options.

    Args:
        function: what was called.
        name: of the option that does not exist.
        options: what the function takes beyond its keywords.
    """
    keywords = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return one_of(f"option of {function.__name__}", name, [*keywords, *sorted(options)])
