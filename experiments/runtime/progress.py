"""Progress: a bar with loss, speed and time left on a terminal; elsewhere a plain line every ten seconds."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Counter", "format_seconds"]


def format_seconds(seconds: float) -> str:
    """Return a time as h:mm:ss, or below ten seconds with one decimal.

    Example:
        >>> format_seconds(3.21), format_seconds(3725)
        ('3.2 s', '1:02:05')
    """
    if not seconds >= 10:  # also not a number
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


class Counter:
    """Shows progress towards a total, as a context manager.

    Args:
        title: what is counted.
        total: the number at the end.
        unit: its plural, as in "images".
        start: the number at the beginning.
        every: seconds between plain lines.
    """

    def __init__(self, title: str, total: int, unit: str = "images", start: int = 0, every: float = 10.0) -> None:
        self.title, self.total, self.unit, self.start, self.every = title, total, unit, start, every
        self.began = self.printed = time.monotonic()
        self.bar: Progress | None = None
        if sys.stdout.isatty():
            columns = (
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(unit),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=Console())
            self.task = self.bar.add_task(title, total=total, completed=start, note="")

    def __enter__(self) -> Counter:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar:
            self.bar.stop()

    def __call__(self, done: int, note: str = "") -> None:
        """Show that `done` of the total are done, with a note such as the loss."""
        now = time.monotonic()
        if self.bar:
            self.bar.update(self.task, completed=done, note=note)
        elif done >= self.total or now - self.printed >= self.every:
            elapsed = now - self.began
            speed = (done - self.start) / max(elapsed, 1e-9)
            if done >= self.total:
                when = f"done in {format_seconds(elapsed)}"
            else:
                when = f"{format_seconds((self.total - done) / speed if speed else math.nan)} left"
            note = f", {note}" if note else ""
            print(f"{self.title}: {done:,}/{self.total:,} {self.unit}{note}, {when}", flush=True)
            self.printed = now
