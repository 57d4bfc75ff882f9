"""Numbers in sentences."""

from __future__ import annotations

__all__ = ["pluralize"]


def pluralize(n: int, noun: str) -> str:
    """Return a number with its noun.

    Example:
        >>> pluralize(1, "check"), pluralize(1200, "check")
        ('1 check', '1,200 checks')
    """
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
