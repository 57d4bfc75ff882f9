"""Options in Python: the error for one that a function does not have, and plain values in place of NumPy's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from diffusion_core.common.errors import DuetError, one_of

__all__ = ["plain_values", "unknown_option"]


def unknown_option(function: Callable[..., Any], name: str, options: Iterable[str]) -> DuetError:
    """Return the error, which suggests the nearest of the function's own keywords and of its further options.

    Args:
        function: what was called.
        name: of the option that does not exist.
        options: what the function takes beyond its keywords.
    """
    keywords = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return one_of(f"option of {function.__name__}", name, [*keywords, *sorted(options)])


def plain_values(value: Any) -> Any:
    """Return options with lists and numbers in place of NumPy's, so that a run can store them."""
    if isinstance(value, Mapping):
        return {key: plain_values(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(v) for v in value]
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
