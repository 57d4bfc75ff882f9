"""What a verification found: a verdict, as text and as a file.

    BIT-EXACT     every replayed segment has the bits of the record
    WITHIN        at least one has other bits, all within a bound that was measured for it
    DIFFERS       something contradicts the record
    NOT REPLAYED  nothing contradicts the record, and nothing was computed again

The first two are a success.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from diffusion_core.common.text import format_seconds, pluralize
from diffusion_core.runs.checkpoint import hash_entries
from diffusion_core.runs.run_directory import plain_data
from diffusion_core.statistics.detection import found_probability, needed_draws
from experiments.verification.compare import Difference
from experiments.verification.recorded import Finding
from experiments.verification.segments import Draw, Segment

__all__ = ["BIT_EXACT", "DIFFERS", "NOT_REPLAYED", "WITHIN", "SegmentResult", "Verdict"]

BIT_EXACT, WITHIN, DIFFERS, NOT_REPLAYED = "BIT-EXACT", "WITHIN", "DIFFERS", "NOT REPLAYED"
FORMAT = 1
_SHOWN = 3


@dataclass(frozen=True)
class SegmentResult:
    """What was found for one segment, or for the results at the end.

    Args:
        name: of the segment.
        verdict: one of the verdicts.
        reasons: why its bits need not be equal; empty where they must be.
        worst: the difference that is the largest part of its bound, if bits differ within bounds.
        first: the first difference that is not allowed.
        count: how many differences are not allowed.
        compared: what was compared, as text.
        bound: how the bound was measured; None without one.
        seconds: that it took.
        number: of the segment; None for the results.
    """

    name: str
    verdict: str
    reasons: tuple[str, ...] = ()
    worst: Difference | None = None
    first: Difference | None = None
    count: int = 0
    compared: str = ""
    bound: Mapping[str, Any] | None = field(default=None, hash=False)
    seconds: float = 0.0
    number: int | None = None

    def line(self) -> str:
        """Return the result as a line."""
        took = f" ({format_seconds(self.seconds)})"
        if self.verdict == BIT_EXACT:
            return f"{self.name}: BIT-EXACT: {self.compared}{took}"
        if self.verdict == WITHIN:
            worst = self.worst
            near = f"; nearest to its bound: {worst}, {worst.ratio:.2f} of it" if worst else ""
            return f"{self.name}: WITHIN: {self.compared}{near}{took}"
        more = f"; {pluralize(self.count - 1, 'more difference')}" if self.count > 1 else ""
        return f"{self.name}: {self.verdict}: {self.first}{more}{took}"


@dataclass(frozen=True)
class Verdict:
    """The outcome of a verification.

    Args:
        run: the path that was given.
        head: of the chain.
        claims: what the run claims, see `diffusion_core.runs.certificate`.
        problems: what contradicts the record without any computing.
        draw: which segments there are, and which were drawn.
        results: of the drawn segments, and of the results of the run.
        unchecked: what no check covers.
        environments: where the run was computed and where it was verified.
        seconds: of all.
    """

    run: str
    head: str
    claims: Mapping[str, Any] = field(hash=False)
    problems: tuple[Finding, ...]
    draw: Draw
    results: tuple[SegmentResult, ...]
    unchecked: tuple[Finding, ...]
    environments: Mapping[str, Any] = field(hash=False)
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """The verdict in one word."""
        found = {result.verdict for result in self.results}
        if self.problems or DIFFERS in found:
            return DIFFERS
        if not any(result.number is not None for result in self.results):
            return NOT_REPLAYED
        return WITHIN if WITHIN in found else BIT_EXACT

    @property
    def is_success(self) -> bool:
        """Whether the run is as it was recorded, as far as it was checked."""
        return self.verdict in (BIT_EXACT, WITHIN)

    @property
    def replayed(self) -> list[SegmentResult]:
        """The results of segments."""
        return [result for result in self.results if result.number is not None]

    @property
    def detection(self) -> list[dict[str, Any]]:
        """The probability that a change in 1, 5 %, 10 % ... of the segments would have been found."""
        n, m = len(self.draw.segments), len(self.replayed)
        extents = sorted({1, *(max(1, round(share * n)) for share in (0.05, 0.1, 0.25, 0.5))}) if n else []
        return [{"changed": k, "of": n, "found": found_probability(n, m, k)} for k in extents]

    def lines(self) -> Iterator[str]:
        """Yield the findings, one fact per line."""
        n, m = len(self.draw.segments), len(self.replayed)
        for problem in self.problems[:_SHOWN]:
            yield f"record: DIFFERS: {problem}"
        if len(self.problems) > _SHOWN:
            yield f"record: {pluralize(len(self.problems) - _SHOWN, 'more problem')}"
        if not self.problems:
            yield f"record: the chain and the files agree with it; head {self.head[:16]}"
        for result in self.results:
            yield result.line()
        for reason in dict.fromkeys(reason for result in self.results for reason in result.reasons):
            yield f"bits need not be equal: {reason}"
        if m:
            seed = "all that can be" if self.draw.seed is None else f"drawn with draw_seed={self.draw.seed}"
            yield f"replayed: {m} of {pluralize(n, 'segment')}, {seed}"
            chances = ", ".join(f"{row['changed']} of {n}: {row['found']:.0%}" for row in self.detection)
            yield f"a change in so many segments would have been found with probability: {chances}"
            needed = needed_draws(n, 1, 0.95)
            if m < n and needed <= sum(one.can_be_replayed for one in self.draw.segments):
                yield f"to find a change in a single segment with 95 %: segments={needed}"
        for finding in self.unchecked:
            yield f"not checked: {finding}"
        yield f"verdict: {self.verdict}{self._because()}"

    def _because(self) -> str:
        if self.verdict == DIFFERS:
            first = self.problems[0] if self.problems else next(r for r in self.results if r.verdict == DIFFERS).first
            return f", first in {first}"
        if self.verdict == NOT_REPLAYED:
            return ", so nothing shows that the record is true"
        exact = sum(result.verdict == BIT_EXACT for result in self.results)
        return f" ({exact} of {len(self.results)} checks have equal bits)" if self.verdict == WITHIN else ""

    def to_dict(self) -> dict[str, Any]:
        """Return the file to publish."""
        content = {
            "format": FORMAT,
            "kind": "verdict of duet verify",
            "verdict": self.verdict,
            "run": self.run,
            "head": self.head,
            "claims": self.claims,
            "record": [asdict(problem) for problem in self.problems],
            "draw": {
                "seed": self.draw.seed,
                "segments": [_segment(one) for one in self.draw.segments],
                "replayed": [result.number for result in self.replayed],
            },
            "results": [_result(result) for result in self.results],
            "detection": self.detection,
            "not_checked": [asdict(finding) for finding in self.unchecked],
            "environments": self.environments,
            "seconds": self.seconds,
        }
        content = plain_data(content)
        return content | {"sha256": hash_entries(content)}


def _segment(segment: Segment) -> dict[str, Any]:
    return {
        "number": segment.number, "from": segment.begin.images_seen, "to": segment.end.images_seen,
        "can_be_replayed": segment.can_be_replayed,
    }  # fmt: skip


def _result(result: SegmentResult) -> dict[str, Any]:
    entries = asdict(result)
    for name in ("worst", "first"):
        difference: Difference | None = getattr(result, name)
        entries[name] = difference and asdict(difference)
    return entries


def worst_of(differences: Sequence[Difference]) -> Difference | None:
    """Return the difference that is nearest to its bound, or furthest above it."""
    return max(differences, key=lambda one: one.ratio, default=None)
