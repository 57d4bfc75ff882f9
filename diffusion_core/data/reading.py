"""How the images of a data set were found: what was recognised, what was left out, and which part was read.

Reading a folder always leaves a report. `Reading.lines` tells what the number of images does not show: how folders
became classes and parts, which files were left out and why, and which classes are empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from diffusion_core.common.errors import DuetError

__all__ = [
    "BY_CONTENT",
    "METADATA",
    "UNREADABLE",
    "Reading",
    "check_max_unreadable",
    "check_unreadable",
    "merge_readings",
    "reading_lines",
]

UNREADABLE = "unreadable images"
# Kinds of files that are read, but with a remark.
METADATA, BY_CONTENT = "used: images with damaged metadata", "used: files without the suffix of an image"
_NAMED, _LISTED = 3, 100


@dataclass(frozen=True)
class Reading:
    """How the images of a data set were found.

    Args:
        remarks: one sentence each.
        left_out: by kind, the names of files and folders that are not part of the data set, or were read with a remark.
            A data set may lie among a million other files, so only the first hundred names of each kind are kept.
        counts: the number of files of each kind.
        part: the part that was read, if there are several.
        parts: the names of all parts.
    """

    remarks: tuple[str, ...] = ()
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    part: str | None = None
    parts: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = {kind: self.counts.get(kind, len(names)) for kind, names in self.left_out.items()}
        object.__setattr__(self, "counts", counts)
        first = {kind: tuple(names[:_LISTED]) for kind, names in self.left_out.items()}
        object.__setattr__(self, "left_out", first)

    def with_left_out(self, kind: str, names: Sequence[str]) -> Reading:
        """Return the reading with further names of a kind."""
        if not names:
            return self
        left_out = {**self.left_out, kind: (*self.left_out.get(kind, ()), *names)}
        return replace(self, left_out=left_out, counts={**self.counts, kind: self.counts.get(kind, 0) + len(names)})

    @property
    def lines(self) -> tuple[str, ...]:
        """The remarks and the files left out, one line each; empty if there are none."""
        return reading_lines(self.plain)

    @property
    def plain(self) -> dict[str, Any]:
        """Remarks, and the count and first names of each kind, as plain data."""
        left_out = {kind: {"count": self.counts[kind], "first": list(names)} for kind, names in self.left_out.items()}
        return {"remarks": list(self.remarks), "left_out": left_out}


def merge_readings(plains: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge the plain data of the readings of several parts.

    Parts of one folder share its remarks and the files left out; each has its own unreadable images and metadata.
    """
    merged: dict[str, Any] = {"remarks": [], "left_out": {}}
    for plain in plains:
        merged["remarks"] += [remark for remark in plain.get("remarks", ()) if remark not in merged["remarks"]]
        for kind, facts in plain.get("left_out", {}).items():
            before = merged["left_out"].setdefault(kind, {"count": 0, "first": []})
            if not before["count"] or kind in (UNREADABLE, METADATA):
                first = [*before["first"], *facts["first"]][:_LISTED]
                merged["left_out"][kind] = {"count": before["count"] + facts["count"], "first": first}
    return merged


def reading_lines(plain: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the lines of a reading from its plain data, as a data card shows them."""
    lines = list(plain.get("remarks", ()))
    for kind, facts in plain.get("left_out", {}).items():
        more = f", and {facts['count'] - _NAMED:,} more" if facts["count"] > _NAMED else ""
        what = kind if kind in (METADATA, BY_CONTENT) else f"left out: {kind}"
        lines.append(f"{what}: {facts['count']:,} ({', '.join(facts['first'][:_NAMED])}{more})")
    return tuple(lines)


def check_max_unreadable(max_unreadable: float) -> None:
    """Raise a `DuetError` unless the largest fraction of unreadable images is one."""
    if not 0 <= max_unreadable < 1:
        raise DuetError(
            f"data.max_unreadable: {max_unreadable} was given; it must be a fraction, at least 0 and below 1"
        )


def check_unreadable(what: str, failed: Sequence[tuple[str, str]], total: int, max_unreadable: float) -> None:
    """Refuse a part with too many unreadable images.

    Args:
        what: the data set or its part; the error begins with it.
        failed: names and reasons.
        total: the number of images of the part.
        max_unreadable: the largest fraction that may be unreadable.

    Raises:
        DuetError: if more are unreadable (it names the first three), or if `max_unreadable` is not a fraction.
    """
    check_max_unreadable(max_unreadable)
    if len(failed) > max_unreadable * total:
        examples = "; ".join(f"{name}: {reason}" for name, reason in failed[:3])
        raise DuetError(
            f"{what}: {len(failed)} of {total} images cannot be read, more than data.max_unreadable={max_unreadable:g} "
            f"allows ({examples}); repair them, or raise data.max_unreadable"
        )
