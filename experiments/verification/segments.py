"""The segments of a run, each of which can be computed again on its own, and the draw of some of them.

A segment leads from a state that is available to the next one. Where checkpoints between were deleted, it leads across
them. It may cross a resume, where the configuration changes: it then has several legs.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from experiments.verification.recorded import Moment, RecordedRun

__all__ = ["ALL", "Draw", "Leg", "Segment", "draw_segments", "find_segments"]

ALL = "all"


@dataclass(frozen=True)
class Leg:
    """A stretch of training with one configuration: from one moment over others to a last one."""

    part: int
    begin: Moment
    moments: tuple[Moment, ...]

    @property
    def end(self) -> Moment:
        """The last moment."""
        return self.moments[-1]


@dataclass(frozen=True)
class Segment:
    """From a state to the next available one.

    Args:
        number: 1, 2, 3 ...
        legs: at least one.
        begins_resume: whether its first state is that of a resume, whose part continues it.
    """

    number: int
    legs: tuple[Leg, ...]

    @property
    def begin(self) -> Moment:
        """The first moment."""
        return self.legs[0].begin

    @property
    def end(self) -> Moment:
        """The last moment."""
        return self.legs[-1].end

    @property
    def can_be_replayed(self) -> bool:
        """Whether its first state is available."""
        return self.begin.is_available

    @property
    def name(self) -> str:
        """The segment as text."""
        return f"segment {self.number}, {self.begin.images_seen:,} to {self.end.images_seen:,} images"


@dataclass(frozen=True)
class Draw:
    """The draw of some segments.

    Args:
        segments: all of them.
        drawn: those to compute again.
        seed: of the draw; None if all were asked for.
    """

    segments: tuple[Segment, ...]
    drawn: tuple[Segment, ...]
    seed: int | None = field(default=None)


def find_segments(run: RecordedRun) -> tuple[Segment, ...]:
    """Return the segments of a run in order."""
    moments = run.moments()
    segments: list[Segment] = []
    legs: list[Leg] = []
    for begin, end in pairwise(moments):
        if legs and begin.is_available:
            segments.append(Segment(len(segments) + 1, tuple(legs)))
            legs = []
        if legs and legs[-1].part == end.part:
            legs[-1] = Leg(end.part, legs[-1].begin, (*legs[-1].moments, end))
        else:
            legs.append(Leg(end.part, begin, (end,)))
    return (*segments, Segment(len(segments) + 1, tuple(legs))) if legs else tuple(segments)


def draw_segments(segments: Sequence[Segment], count: int | str, seed: int | None = None) -> Draw:
    """Draw some segments at random, without replacement.

    Args:
        segments: of the run; those that cannot be computed again are not drawn.
        count: how many, or ``"all"``.
        seed: of the draw; None takes a fresh one, which whoever made the run could not know.

    Raises:
        DuetError: for a count below 1, or a seed below 0.
    """
    possible = [one for one in segments if one.can_be_replayed]
    if count == ALL:
        return Draw(tuple(segments), tuple(possible))
    if type(count) is not int or count < 1:
        raise DuetError(f"segments: {count} was given; it must be a number of segments of at least 1, or {ALL}")
    if seed is not None and seed < 0:
        raise DuetError(f"draw_seed: {seed} was given; it must be at least 0, or null for a fresh one")
    seed = secrets.randbits(32) if seed is None else seed
    order = Stream(seed, "verify/segments").permutation(len(possible))[:count]
    return Draw(tuple(segments), tuple(possible[k] for k in sorted(order)), seed)
