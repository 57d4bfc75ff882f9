"""The held-out part of a data set: images of the same kind that a run does not train on.

A published or prepared data set has it as a part of its own. Its name is read as that of a folder is
(`layout.split_name`), and the first of

    1. validation    validation, valid, val, dev, eval ...
    2. held out      held_out, heldout, holdout
    3. test          test, testing, tst
that the data set has, and that is not trained on, is its held-out part. Generated data (shapes,
toys, mixtures) have one without end: the items after those of the training set, since item i depends on (seed, i)
alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.data.layout import split_name

__all__ = ["AUTO", "GENERATED", "HELD_OUT_COUNT", "choose_held_out"]

AUTO = "auto"
# Data sets that are generated, so that more items than those of the training set exist.
GENERATED = ("shapes", "toy", "gaussian_mixture")
# The number of items of their held-out part; of files, as many images are read, unless more are needed.
HELD_OUT_COUNT = 1024

_KINDS = ("validation", "held_out", "test")


def _kind(part: str) -> str | None:
    """Return the kind of split that a part is named after; None if none."""
    named = split_name(part)
    return named[0] if named else None


def choose_held_out(what: str, parts: Sequence[str], trained: str | None, part: str = AUTO) -> str | None:
    """Return the part of a data set to validate on; None if it has none.

    Args:
        what: the name of the data set, for errors.
        parts: the names of its parts.
        trained: the part that is trained on; "all" for every part, None for the only one or for the training part.
        part: the name of a part, or "auto" for the held-out part.

    Raises:
        DuetError: there is no such part, or it is trained on.

    Example:
        >>> choose_held_out("birds", ["train", "test", "val"], "train")
        'val'
        >>> choose_held_out("birds", ["Training Data", "Testing Data"], "Training Data")
        'Testing Data'
        >>> choose_held_out("birds", ["all"], None) is None
        True
    """
    if trained is None:
        trained = next((name for name in parts if _kind(name) == "train"), parts[0] if parts else None)
    others = [] if trained == "all" else [name for name in parts if name != trained]
    if part != AUTO:
        if part in parts and part not in others:
            raise DuetError(
                f"validation.part: {part!r} was given, but {what} is trained on it; give another part "
                f"({', '.join(others) or 'there is none'}), or none"
            )
        if part not in others:
            raise one_of("validation.part", part, [AUTO, "none", *others])
        return part
    return next((name for kind in _KINDS for name in others if _kind(name) == kind), None)
