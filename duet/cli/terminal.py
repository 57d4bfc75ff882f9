"""Output, errors and durations of the command `duet`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TextIO

__all__ = ["Stop", "duration", "one_of", "say"]


class Stop(Exception):
    """The command cannot continue: one line for the user, and the exit code."""

    def __init__(self, line: str, code: int = 2):
        super().__init__(line)
        self.code = code


def say(line: str, file: TextIO | None = None) -> None:
    """Print one line and flush it, so that it precedes the output of child processes."""
    print("duet: " + line, file=file, flush=True)


def one_of(what: str, given: str, allowed: Iterable[str], meant: str | None = None) -> str:
    """Return `given`, or stop with the nearest name, or the one that is `meant`, if it is not an `allowed` name."""
    allowed = list(allowed)
    if given not in allowed:
        simple = {name.lower().replace("-", "_"): name for name in allowed}
        close = [meant] if meant else difflib.get_close_matches(given.lower().replace("-", "_"), simple, n=1)
        near = "".join(f" Did you mean {simple.get(name, name)!r}?" for name in close)
        raise Stop(f"{what}: {given!r} was given; it must be one of {', '.join(allowed)}.{near}")
    return given


def duration(seconds: float) -> str:
    """Write a time as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
