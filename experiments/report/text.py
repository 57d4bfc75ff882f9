"""How the pages print values; these functions are the filters of the templates.

A missing value is an en dash. A value that is not finite is printed as NaN or ∞, because hiding it would hide a fault;
in JSON, which has no such numbers, it becomes null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np
from jinja2 import Undefined

from diffusion_core.common.errors import DuetError

__all__ = ["DASH", "brief", "json_value", "moment", "number", "percent", "real", "text", "value"]

DASH = "–"


def text(value: object) -> str:
    """Return the value as text; None, an empty text and a missing entry become an en dash."""
    return DASH if value is None or value == "" or isinstance(value, Undefined) else str(value)


def real(value: object) -> float | None:
    """Return the value as a float, NaN and infinity included; None if it is not a number."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        return None
    return float(value)


def _without_digits(value: object) -> str | None:
    """Return the text for a value that has no digits (missing, not a number, not finite), else None."""
    x = real(value)
    if x is None:
        return text(value)
    if math.isnan(x):
        return "NaN"
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"
    return None


def number(value: object) -> str:
    """Format with four significant digits and thousands separators; very small and large values are scientific."""
    special = _without_digits(value)
    if special is not None:
        return special
    x = float(value)
    if x == 0 or (x.is_integer() and abs(x) < 1e9):
        return f"{x:,.0f}".replace("-", "−")
    if not 1e-3 <= abs(x) < 1e9:
        return brief(x)
    digits = max(0, 3 - math.floor(math.log10(abs(x))))
    return f"{x:,.{digits}f}".replace("-", "−")


def brief(value: object) -> str:
    """Format with two significant digits in scientific notation, as in 2.1e-15 or 1e-12."""
    special = _without_digits(value)
    if special is not None:
        return special
    if float(value) == 0:
        return "0"
    mantissa, exponent = f"{float(value):.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def percent(value: object) -> str:
    """Format a fraction of one as a percentage with one decimal."""
    return _without_digits(value) or f"{100 * float(value):.1f} %"


def value(value: object) -> str:
    """Format a number as `number` does, and anything else as `text` does."""
    return number(value) if real(value) is not None else text(value)


def moment(value: object) -> str | None:
    """Return an ISO time in words, as in "3 May 2026, 14:05 UTC"; None if the value is not such a time."""
    try:
        when = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    zone = " UTC" if when.tzinfo else ""
    when = when.astimezone(UTC) if when.tzinfo else when
    return f"{when.day} {when:%B %Y, %H:%M}{zone}"


def json_value(value: object, where: str = "report") -> object:
    """Return the value as JSON stores it: lists, dictionaries with string keys, and null for numbers not finite.

    Raises:
        DuetError: a part of it is not a JSON value; the message names the part.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.generic | np.ndarray):
        return json_value(value.tolist(), where)
    if isinstance(value, Mapping):
        return {str(key): json_value(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise DuetError(f"{where}: a {type(value).__name__} was given; it must be a JSON value")
