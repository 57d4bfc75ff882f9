"""The error for mistakes of a user, and its wording.

Every message says what was given and what is allowed. A command prints it as one line and exits with code 2; every
other exception is a defect of Duet and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["DuetError", "OutOfMemory", "one_of", "out_of_memory_error"]


class DuetError(ValueError):
    """A value, option or file that Duet cannot use; the message names it and what is allowed.

    Characters that cannot be printed, line ends among them, are written as escapes, since messages quote names that
    stand in files.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in str(message)))


class OutOfMemory(DuetError):
    """The device has too little memory; the call that failed changed nothing and may be tried again."""


def out_of_memory_error(device: str, reason: object, changes: bool = False) -> DuetError:
    """Return the error for a device with too little memory.

    Args:
        device: its name.
        reason: the message of the framework, whose first line is quoted.
        changes: whether the call may have changed something before it failed and must not be tried again. The error is
            an `OutOfMemory` if not.
    """
    quoted = next(iter(str(reason).strip().splitlines()), "")[:200]
    after = "; an update may be incomplete: continue from the last checkpoint with resume=latest" if changes else ""
    return (DuetError if changes else OutOfMemory)(
        f"{device}: out of memory; compute fewer images at a time with trainer.micro_batch (or let "
        f"trainer.on_out_of_memory=halve find how many), draw fewer with sample.batch and evaluate fewer with "
        f"likelihood.batch or accuracy.batch{after} ({quoted})"
    )


def one_of(what: str, given: object, allowed: Iterable[object]) -> DuetError:
    """Return the error for a name that is not among the `allowed` ones; it suggests the most similar name.

    Args:
        what: what the name stands for, as in "schedule".
        given: the unknown name.
        allowed: the known names.

    Example:
        >>> print(one_of("lr.decay", "cosin", ["linear", "cosine"]))
        lr.decay: 'cosin' was given; it must be one of linear, cosine. Did you mean 'cosine'?
    """
    names = [str(name) for name in allowed]
    near = difflib.get_close_matches(str(given), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return DuetError(f"{what}: {given!r} was given; it must be one of {', '.join(names)}.{hint}")
