"""Numbers as a table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from diffusion_core.metrics.protocol import Number
from diffusion_core.statistics.bootstrap import Interval

__all__ = ["interval_note", "number_table"]


_CORRECTED = ("frechet", "spatial")  # metrics whose bias can be removed where there are enough samples


def number_table(numbers: Sequence[Number]) -> list[str]:
    """Return a line per number: name, value, confidence interval, standard error behind ±, and unit.

    A second line has what puts the value into perspective, if it was measured: the interval over draws of the reference
    too, the value of as many images of the reference, and the value without its bias.
    """
    width = max(len(number.name) for number in numbers)
    rows = []
    for number in numbers:
        interval = _brackets(number.interval)
        error = "" if number.error is None else f"± {_short(number.error)}"
        rows.append(f"{number.name:{width}}  {_short(number.value):>9}  {interval:20}  {error} {number.unit}".rstrip())
        if details := _details(number):
            rows.append(f"{'':{width}}  {details}")
    return [*rows, *interval_note(numbers)]


def interval_note(numbers: Sequence[Number]) -> list[str]:
    """Return a line on what the intervals are for; none without an interval."""
    levels = {f"{number.interval.confidence:.0%}" for number in numbers if number.interval}
    if not levels:
        return []
    counts = sorted({_sets(number) for number in numbers if number.interval and not number.trials} - {0})
    sets = f", from {' or '.join(map(str, counts))} disjoint sets" if counts else ""
    note = f"[ , ]: {' and '.join(sorted(levels))} intervals over draws of the samples{sets}"
    note += "; they hold the expected value at this number of samples"
    if any("reference" in number.protocol for number in numbers):
        note += " for this reference, not that of infinitely many samples"
    lines = [f"{note}, and not that of another training"]
    if any(number.trials for number in numbers):
        lines.append("fractions of independent samples have Wilson's interval")
    return lines


def _details(number: Number) -> str:
    parts = []
    if number.interval_both is not None:
        parts.append(f"{_brackets(number.interval_both)} over draws of the reference too")
    count = number.protocol.get("samples", {}).get("count")
    if number.floor is not None:
        parts.append(f"{_short(number.floor)} for {count:,} images of the reference itself")
    if number.corrected is not None:
        parts.append(f"{_short(number.corrected)} without the bias of {count:,} samples")
    elif number.floor is not None and number.protocol["metric"] in _CORRECTED:
        parts.append(f"no value without bias: {count:,} samples are too few for these features")
    return "; ".join(parts)


def _sets(number: Number) -> int:
    """Return the number of disjoint sets of the samples; 0 if it is not known."""
    protocol = number.protocol
    return protocol.get("samples", {}).get("sets", protocol.get("sets", {})).get("count", 0)


def _brackets(interval: Interval | None) -> str:
    return f"[{_short(interval.low)}, {_short(interval.high)}]" if interval else ""


def _short(x: float) -> str:
    """Return four decimals, or four significant digits of a small number such as a kernel distance."""
    return f"{x:.4f}" if x == 0 or abs(x) >= 0.1 else f"{x:.4g}"
