"""Facts of a run as plain data: where do those that it recorded differ from those that it has when it is made again?"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from math import isclose
from typing import Any

__all__ = ["differing", "short"]


def short(value: Any) -> str:
    """Return a value as text, a hash by its beginning."""
    return re.sub(r"\b([0-9a-f]{16})[0-9a-f]{48}\b", r"\1", str(value))


def differing(
    recorded: Any, found: Any, place: str = "", skipped: Collection[str] = ()
) -> Iterator[tuple[str, Any, Any]]:
    """Yield the places at which two facts differ, with both.

    Args:
        recorded: as a run recorded it.
        found: as the present version says it. Versions add keys, so those that only one of both has are ignored.
        place: of both, by the names of keys.
        skipped: places that are not compared.
    """
    if place in skipped:
        return
    if isinstance(recorded, Mapping) and isinstance(found, Mapping):
        for key in (key for key in recorded if key in found):
            yield from differing(recorded[key], found[key], f"{place}.{key}".strip("."), skipped)
    elif isinstance(recorded, list | tuple) and isinstance(found, list | tuple) and len(recorded) == len(found):
        for number, (one, other) in enumerate(zip(recorded, found, strict=True)):
            yield from differing(one, other, f"{place}[{number}]", skipped)
    elif recorded != found and not _is_close(recorded, found):
        yield place, recorded, found


def _is_close(recorded: Any, found: Any) -> bool:
    """Return whether two numbers differ by no more than functions of NumPy do on different processors."""
    return isinstance(recorded, float) and isinstance(found, float) and isclose(recorded, found, rel_tol=1e-9)
