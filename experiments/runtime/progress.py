"""Progress: a bar with loss, speed and time left on a terminal; elsewhere a plain line every ten seconds.

The plain lines come from a thread too, so a step that takes minutes is not silent. The time left is shown once a rate
is known: that of the work after the first step, which may trace or compile.
"""

from __future__ import annotations

import sys
import time
from threading import Lock
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from diffusion_core.common.text import format_clock, format_seconds
from diffusion_core.runtime.heartbeat import EVERY_SECONDS, Ticker

__all__ = ["Counter", "format_speed"]


def format_speed(per_second: float, unit: str = "images") -> str:
    """Return a speed, with two digits where it is small.

    Example:
        >>> format_speed(12345.6), format_speed(0.0456)
        ('12,346 images/s', '0.046 images/s')
    """
    return f"{per_second:,.0f} {unit}/s" if round(per_second) >= 10 else f"{per_second:.2g} {unit}/s"


class Counter:
    """Shows progress towards a total, as a context manager.

    Args:
        title: what is counted.
        total: the number at the end.
        unit: its plural, as in "images".
        start: the number at the beginning.
        every: seconds between plain lines.
    """

    def __init__(
        self, title: str, total: int, unit: str = "images", start: int = 0, every: float = EVERY_SECONDS
    ) -> None:
        self.title, self.total, self.unit, self.start, self.every = title, total, unit, start, every
        self.done, self.note = start, ""
        self.began = self.printed = time.monotonic()
        # After the first step, the number done then and the time; the rate is measured from there.
        self.first: tuple[int, float] | None = None
        self.left: float | None = None
        self.is_new, self.is_over, self.lock = False, False, Lock()
        self.bar: Progress | None = None
        self.ticker: Ticker | None = None
        if sys.stdout.isatty():
            columns = (
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(unit),
                TextColumn("{task.fields[note]}"),
            )
            self.bar = Progress(*columns, console=Console())
            self.task = self.bar.add_task(title, total=total, completed=start, note="")

    def __enter__(self) -> Counter:
        if self.bar:
            self.bar.start()
        else:
            self.ticker = Ticker(self._tick, self.every).__enter__()
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar:
            self.bar.stop()
        elif self.ticker:
            self.ticker.__exit__(kind, value, trace)

    def __call__(self, done: int, note: str = "") -> None:
        """Show that `done` of the total are done, with a note such as the loss."""
        now = time.monotonic()
        with self.lock:
            self.done, self.note, self.is_new = done, note, True
            self._measure(now)
            if self.bar:
                shown = ", ".join(filter(None, (note, self._when(now) if done < self.total else "")))
                self.bar.update(self.task, completed=done, note=shown)
            elif not self.is_over and (done >= self.total or now - self.printed >= self.every):
                self._print(now)
            self.is_over = done >= self.total  # the end is printed once

    def _measure(self, now: float) -> None:
        if self.first is None:
            self.first = (self.done, now) if self.done > self.start else None
        elif self.done > self.first[0] and now > self.first[1]:
            rate = (self.done - self.first[0]) / (now - self.first[1])
            self.left = (self.total - self.done) / rate

    def _when(self, now: float) -> str:
        if self.done >= self.total:
            return f"done in {format_seconds(now - self.began)}"
        if self.left is None:
            return "" if now - self.began < self.every else f"{format_seconds(now - self.began)} so far"
        return f"{format_clock(self.left)} left"

    def _tick(self) -> None:
        """Print where the work is, if nothing was printed lately."""
        now = time.monotonic()
        with self.lock:
            if self.done < self.total and now - self.printed >= 0.9 * self.every:
                self._print(now)

    def _print(self, now: float) -> None:
        # What is not new since the last line is not shown again: a loss that stands still would look like a result.
        note = self.note if self.is_new else ""
        when = self._when(now) if self.is_new else f"{format_seconds(now - self.began)} so far"
        parts = [f"{self.title}: {self.done:,}/{self.total:,} {self.unit}", note, when]
        print(", ".join(filter(None, parts)), flush=True)
        self.printed, self.is_new = now, False
