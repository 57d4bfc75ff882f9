"""Numbers in sentences."""

from __future__ import annotations

__all__ = ["pluralize"]


def pluralize(n: int, noun: str) -> str:
    """A number with its noun, as in "1 check" and "1,200 checks"."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
