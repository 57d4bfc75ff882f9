"""Values as the page prints them.

A missing value is an en dash. A value that is not finite is printed as NaN or ∞, since hiding it would
hide a fault; in JSON, which has no such numbers, it becomes null.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np

from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import pluralize as count

__all__ = ["DASH", "brief", "count", "element", "escape", "moment", "number", "percent", "plain", "real"]

DASH = "–"


def escape(value: object) -> str:
    """Text that is safe in an element and in a quoted attribute; None becomes an en dash."""
    if value is None or value == "":
        return DASH
    return html.escape(str(value).encode("utf-8", "replace").decode("utf-8"), quote=True)


def real(value: object) -> float | None:
    """The value as a float, NaN and infinity included; None if it is not a number."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        return None
    return float(value)


def _special(value: object) -> str | None:
    """What stands for a value that has no digits, or None if it has some."""
    x = real(value)
    if x is None:
        return escape(value)
    if math.isnan(x):
        return "NaN"
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"
    return None


def number(value: object) -> str:
    """Four significant digits, thousands separated, in scientific form when very small or very large."""
    special = _special(value)
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
    """Two significant digits in scientific form, as in 2.1e-15 or 1e-12."""
    special = _special(value)
    if special is not None:
        return special
    if float(value) == 0:
        return "0"
    mantissa, exponent = f"{float(value):.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def percent(value: object) -> str:
    """A fraction of one as a percentage with one decimal."""
    return _special(value) or f"{100 * float(value):.1f} %"


def element(tag: str, name: str, value: object) -> str:
    """An element of a class that holds the value; empty if there is no value."""
    return "" if value is None or value == "" else f'<{tag} class="{name}">{escape(value)}</{tag}>'


def moment(value: object) -> str:
    """An ISO time as a `time` element in words; any other text as it is."""
    try:
        when = datetime.fromisoformat(str(value))
    except ValueError:
        return escape(value)
    zone = " UTC" if when.tzinfo else ""
    when = when.astimezone(UTC) if when.tzinfo else when
    return f'<time datetime="{escape(value)}">{when.day} {when:%B %Y, %H:%M}{zone}</time>'


def plain(value: object, where: str = "report") -> object:
    """The value as JSON has it: lists, dictionaries with string keys, and null for what is not finite.

    Raises:
        DuetError: something in it is no JSON value, named by its place.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist(), where)
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise DuetError(f"{where}: a {type(value).__name__} was given; it must be a JSON value")
