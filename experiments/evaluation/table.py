"""Numbers as a table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from diffusion_core.metrics.protocol import Number

__all__ = ["number_table"]


def number_table(numbers: Sequence[Number]) -> list[str]:
    """Return a line per number: name, value, confidence interval, standard error behind ±, and unit."""
    width = max(len(number.name) for number in numbers)
    rows = []
    for number in numbers:
        ends = number.interval
        interval = f"[{_short(ends.low)}, {_short(ends.high)}]" if ends else ""
        error = "" if number.error is None else f"± {_short(number.error)}"
        rows.append(f"{number.name:{width}}  {_short(number.value):>9}  {interval:20}  {error} {number.unit}".rstrip())
    levels = {f"{number.interval.confidence:.0%}" for number in numbers if number.interval}
    return [*rows, f"[ , ]: {' and '.join(sorted(levels))} intervals, from disjoint sets"] if levels else rows


def _short(x: float) -> str:
    """Return four decimals, or four significant digits of a small number such as a kernel distance."""
    return f"{x:.4f}" if x == 0 or abs(x) >= 0.1 else f"{x:.4g}"
