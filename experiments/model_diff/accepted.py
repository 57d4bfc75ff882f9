"""Differences that the user knows and accepts: a file that says which, and why.

    [{"kind": "norm_epsilon", "a": "down_blocks.0.norm1", "b": "enc0_norm1", "reason": "as published"}]

An entry names the kind of the cause, the layer or parameter on one side or both, and a reason. A name may end in `*`.
An entry without a name accepts the kind everywhere.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.parity.diff.findings import Comparison, Finding, Place

__all__ = ["Accepted", "entry", "mark", "read_accepted", "to_accepted"]

_KEYS = ("kind", "a", "b", "reason", "mode")


@dataclass(frozen=True)
class Accepted:
    """One entry; a and b are names of layers or parameters, None for any."""

    kind: str
    a: str | None = None
    b: str | None = None
    reason: str = ""
    mode: str | None = None

    def fits(self, finding: Finding) -> bool:
        """Return whether a finding is what this entry accepts."""
        return (
            self.kind == finding.kind
            and self.mode in (None, finding.mode)
            and _at(self.a, finding.a)
            and _at(self.b, finding.b)
        )

    def __str__(self) -> str:
        where = [f"{side} {name!r}" for side, name in (("a", self.a), ("b", self.b)) if name is not None]
        return " ".join([f"{self.kind!r}" if self.kind else "an unknown cause", *(["at"] if where else []), *where])


def _at(name: str | None, place: Place | None) -> bool:
    if name is None:
        return True
    return place is not None and any(
        fnmatch.fnmatchcase(each, _pattern(name))
        for each in {place.layer, place.parameter, place.layer or place.source}
    )


def _pattern(name: str) -> str:
    """Return a name as a pattern in which only a star has a meaning."""
    return "".join("[[]" if letter == "[" else "[?]" if letter == "?" else letter for letter in name)


def read_accepted(path: Path) -> tuple[Accepted, ...]:
    """Read a file of accepted differences.

    Raises:
        DuetError: there is no such file, or it is not a list of entries.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DuetError(f"--accept: there is no file {path}") from error
    except (OSError, ValueError) as error:
        raise DuetError(f"--accept: {path} was given; it must be a JSON file ({error})") from error
    return to_accepted(content if isinstance(content, list) else [content], f"--accept: entry {{}} of {path}")


def to_accepted(entries: Sequence[Any], where: str = "accept: entry {}") -> tuple[Accepted, ...]:
    """Return entries that were given as dictionaries.

    Raises:
        DuetError: one of them is none; the message says which, in the words of `where`.
    """
    return tuple(_read(item, where.format(i)) for i, item in enumerate(entries, 1))


def _read(item: Any, where: str) -> Accepted:
    if not isinstance(item, dict):
        raise DuetError(f"{where} is {item!r}; it must be an object with kind, a, b and reason")
    for key in item:
        if key not in _KEYS:
            raise one_of(where, key, _KEYS)
    wrong = [key for key, value in item.items() if not isinstance(value, str | None)]
    if wrong:
        raise DuetError(f"{where}: {wrong[0]}: {item[wrong[0]]!r} was given; it must be a text")
    if "kind" not in item:
        raise DuetError(f'{where} has no kind; it must say which cause, as in "kind": "norm_epsilon"')
    if not item.get("reason"):
        raise DuetError(f"{where} has no reason; say why this difference is accepted")
    return Accepted(**item)


def entry(finding: Finding) -> dict[str, str]:
    """Return the entry that accepts a finding, but for its reason."""
    places = {
        side: place.layer or place.parameter or place.source
        for side, place in (("a", finding.a), ("b", finding.b))
        if place is not None
    }
    return {"kind": finding.kind, **{side: name for side, name in places.items() if name}, "reason": ""}


def mark(comparison: Comparison, accepted: Sequence[Accepted]) -> Comparison:
    """Mark the findings that the user accepts; an entry that fits none becomes a note."""
    if not accepted:
        return comparison
    findings, used = [], set()
    for finding in comparison.findings:
        fitting = next((each for each in accepted if each.fits(finding)), None)
        used |= {each for each in accepted if each.fits(finding)}
        findings.append(finding if fitting is None else replace(finding, accepted=fitting.reason))
    unused = [f"accepted, but not found: {each}" for each in accepted if each not in used]
    return replace(comparison, findings=tuple(findings), notes=(*comparison.notes, *unused))
