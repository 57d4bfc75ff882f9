"""Numbers and times in sentences."""

from __future__ import annotations

__all__ = ["format_clock", "format_seconds", "pluralize"]


def pluralize(n: int, noun: str) -> str:
    """Return a number with its noun.

    Example:
        >>> pluralize(1, "check"), pluralize(1200, "check"), pluralize(2, "class")
        ('1 check', '1,200 checks', '2 classes')
    """
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
