"""The one error that a person can cause, and how it is worded.

Every message says what was given and what would fit. An entry point prints it as a single line
and leaves with exit code 2; anything else that is raised is a defect of Duet and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["DuetError", "OutOfMemory", "one_of", "out_of_memory_error"]


class DuetError(ValueError):
    """Something given to Duet does not fit; the message names it and what would.

    Names that stand in files are quoted in messages, so what does not print, line ends among it, is written as escapes.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in str(message)))


class OutOfMemory(DuetError):
    """The device has too little memory for what was asked of it; nothing was changed by what failed."""


def out_of_memory_error(device: str, reason: object, changes: bool = False) -> DuetError:
    """The error for a device that has too little memory, with what its framework says of it in one line.

    Args:
        device: its name.
        reason: what the framework says.
        changes: whether what failed may have changed something, so that it must not be tried again; the error is an
            `OutOfMemory` if not.
    """
    said = next(iter(str(reason).strip().splitlines()), "")[:200]
    after = "; an update may be half made: go on from the last checkpoint with resume=latest" if changes else ""
    return (DuetError if changes else OutOfMemory)(
        f"{device}: it has too little memory; compute fewer images at a time with trainer.micro_batch (or let "
        f"trainer.on_out_of_memory=halve find how many), draw fewer with sample.batch and measure fewer with "
        f"likelihood.batch or accuracy.batch{after} ({said})"
    )


def one_of(what: str, given: object, allowed: Iterable[object]) -> DuetError:
    """The error for a name that is not among the `allowed` ones, with the nearest of them.

    Args:
        what: what the name stands for, as in "schedule".
        given: what arrived.
        allowed: what would fit.
    """
    names = [str(name) for name in allowed]
    near = difflib.get_close_matches(str(given), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return DuetError(f"{what}: {given!r} was given; it must be one of {', '.join(names)}.{hint}")
