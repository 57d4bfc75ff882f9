"""Which outputs of two models are the same quantity, and whether the walk has arrived at them.

Outputs belong together by their numbers, else by their names, else by their places. An output of B whose numbers are
found among A's values, but not among A's outputs, has only part of the way behind it: one side does more before it
returns. Such an output is *early*.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from diffusion_core.parity.diff.findings import Finding
from diffusion_core.parity.diff.graph import Graph
from diffusion_core.parity.diff.layouts import find_layout
from diffusion_core.parity.diff.partings import Parting
from diffusion_core.parity.diff.recording import Pass
from diffusion_core.parity.diff.vocabulary import LAYOUT_KINDS
from diffusion_core.parity.diff.walk import Walk

__all__ = ["Ends", "early_ends", "find_ends", "name_rest"]


@dataclass(frozen=True)
class Ends:
    """The outputs of two models.

    Attributes:
        pairs: names of the outputs that belong together, of A and of B, in B's order.
        early: for the value of an output of B that is found elsewhere in A, the value that A returns.
        only_a, only_b: names of outputs that the other side does not return.
    """

    pairs: tuple[tuple[str, str], ...]
    early: Mapping[int, int] = field(default_factory=dict)
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()

    def values(self, a: Pass, b: Pass) -> list[tuple[int, int]]:
        """Return the value numbers of the outputs that belong together, of A and of B."""
        return [(a.outputs[there], b.outputs[here]) for there, here in self.pairs]

    @property
    def complete(self) -> bool:
        """Whether both sides return the same quantities."""
        return not (self.only_a or self.only_b)

    def words(self) -> list[str]:
        """Say which outputs the other side does not return, and which have another name or place."""
        notes = [
            f"only {side} returns the output{'s' if len(names) > 1 else ''} {', '.join(map(repr, names))}"
            for side, names in (("A", self.only_a), ("B", self.only_b))
            if names
        ]
        others = [f"{there!r} in A is {here!r} in B" for there, here in self.pairs if there != here]
        if others and len(self.pairs) > 1:
            notes.append(f"the outputs have other names or another order: {', '.join(others)}")
        return notes


def find_ends(walk: Walk) -> Ends:
    """Return which outputs belong together, and which of B's are found before A returns."""
    a, b = walk.a.record, walk.b.record
    open_a, open_b = dict(a.outputs), dict(b.outputs)
    found: dict[str, str] = {}

    def pair(there: str, here: str) -> None:
        found[here] = there
        del open_a[there], open_b[here]

    for here, number in b.outputs.items():
        same = next((there for there in _preferred(open_a, here) if _equal(walk, open_a[there], number)), None)
        if same is not None:
            pair(same, here)
    equal = set(found)
    for here in list(open_b):
        if here in open_a:
            pair(here, here)
    for here in list(open_b):
        fitting = [there for there in open_a if _size(walk, open_a[there], open_b[here])]
        if len(open_a) == len(open_b) == 1 or fitting:
            pair((fitting or list(open_a))[0], here)
    pairs = tuple((found[here], here) for here in b.outputs if here in found)
    early = {
        b.outputs[here]: a.outputs[there] for there, here in pairs if here not in equal and walk.found(b.outputs[here])
    }
    return Ends(pairs, early, tuple(open_a), tuple(open_b))


def early_ends(walk: Walk, outputs: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Return the outputs of B that are found before A returns, now that A's numbers were put in at the exits."""
    return {
        here: there
        for there, here in outputs
        if here not in walk.given and here in walk.meetings and there not in walk.told and not _equal(walk, there, here)
    }


def name_rest(parting: Parting, finding: Finding) -> Finding:
    """Return a finding without a cause as verified, if one side returns what the other goes on from.

    Then nothing is wrong with an operation: what lies between there and the output is on one side only.
    """
    walk, end = parting.walk, parting.exits[0] if parting.exits else None
    if finding.kind or len(parting.exits) > 1 or (end is not None and end.at is not None):
        return finding
    met = {meeting.a for number, meeting in walk.meetings.items() if end is not None and number != end.b}
    if end is None and parting.region:
        return finding
    if end is None or end.b in walk.early:  # outputs of other sizes have no exit
        more, side = _steps(walk.a, parting.other_region), "a"
    elif end.a in met and not parting.other_region:
        more, side = _steps(walk.b, parting.region), "b"
    else:
        return finding
    none = "these operations are missing"
    does = {"a_does": none, "b_does": none, f"{side}_does": f"{more} come before the output"}
    title, advice = "operations that one side does not have before it returns", "do these steps on both sides"
    words = {"kind": "missing_end", "status": "verified", "title": title, "advice": advice, "left": 0.0, **does}
    return replace(finding, **words)


def _steps(graph: Graph, region: Iterable[int]) -> str:
    """Name the operations of a region, those that only move numbers left out."""
    operations = [graph.operations[i] for i in region]
    names = [each.fused or each.kind for each in operations if each.kind not in (*LAYOUT_KINDS, "constant", "cast")]
    words = [name.replace("_", " ") for name in dict.fromkeys(names)]
    return ", ".join(words[:6]) + (f" and {len(words) - 6} more" if len(words) > 6 else "") or "another layout"


def _preferred(names: Mapping[str, int], first: str) -> list[str]:
    """Return names with one of them, if it is there, in front."""
    return sorted(names, key=lambda name: name != first)


def _equal(walk: Walk, there: int, here: int) -> bool:
    """Return whether an output of B, run on A's values, has the numbers of an output of A."""
    meeting = walk.meetings.get(here)
    if meeting is not None and meeting.a == there:
        return True
    if here not in walk.values:
        return False
    theirs, mine = walk.a.values[there], walk.values[here]
    return mine.size == theirs.size and find_layout(theirs, mine, walk.tolerance(here)) is not None


def _size(walk: Walk, there: int, here: int) -> bool:
    return np.size(walk.a.values[there]) == np.size(walk.b.values[here])
