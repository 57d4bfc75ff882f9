"""Numbers, times, lists and reasons in sentences."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["first_line", "format_clock", "format_seconds", "join_some", "pluralize"]


def pluralize(n: int, noun: str) -> str:
    """Return a number with its noun.

    Example:
        >>> pluralize(1, "check"), pluralize(1200, "check"), pluralize(2, "class"), pluralize(2, "entry")
        ('1 check', '1,200 checks', '2 classes', '2 entries')
    """
    if n != 1 and noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{n:,} {noun[:-1]}ies"
    ending = "" if n == 1 else "es" if noun.endswith(("s", "x", "ch", "sh")) else "s"
    return f"{n:,} {noun}{ending}"


def format_seconds(seconds: float) -> str:
    """Return a time as h:mm:ss, or below ten seconds with one decimal.

    Example:
        >>> format_seconds(3.21), format_seconds(3725)
        ('3.2 s', '1:02:05')
    """
    # Not a number is written as it is.
    return format_clock(seconds) if round(seconds, 1) >= 10 else f"{seconds:.1f} s"


def format_clock(seconds: float) -> str:
    """Return a time as h:mm:ss.

    Example:
        >>> format_clock(3.21)
        '0:00:03'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def join_some(names: Sequence[str], most: int) -> str:
    """Return the first names of a list, and how many others there are.

    Example:
        >>> join_some(["a", "b", "c"], most=2), join_some(["a"], most=2)
        ('a, b and 1 more', 'a')
    """
    others = len(names) - most
    return ", ".join(names[:most]) + (f" and {others} more" if others > 0 else "")


def first_line(reason: object) -> str:
    """Return the first line of a text or of an error; of an error without a message, its type.

    Example:
        >>> first_line(ValueError("too large\\nfor this")), first_line(KeyError())
        ('too large', 'KeyError')
    """
    lines = str(reason).strip().splitlines()
    return lines[0].rstrip() if lines else "" if isinstance(reason, str) else type(reason).__name__
