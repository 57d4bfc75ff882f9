"""Progress: a bar with loss, images per second and time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Counter"]


class Counter:
    """Counts towards a total, as a context manager.

    Args:
        title: what is counted.
        total: where it ends.
        unit: what one of it is.
        every: seconds between plain lines.
    """

    def __init__(self, title: str, total: int, unit: str = "images", start: int = 0, every: float = 10.0) -> None:
        self.title, self.total, self.unit, self.start, self.every = title, total, unit, start, every
        self.began = self.spoke = time.monotonic()
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
        """Say how far it is, and something about it."""
        now = time.monotonic()
        if self.bar:
            self.bar.update(self.task, completed=done, note=note)
        elif done >= self.total or now - self.spoke >= self.every:
            speed = (done - self.start) / max(now - self.began, 1e-9)
            left = (self.total - done) / speed if speed else float("nan")
            note = f", {note}" if note else ""
            print(f"{self.title}: {done:,}/{self.total:,} {self.unit}{note}, {left:.0f} s left", flush=True)
            self.spoke = now
