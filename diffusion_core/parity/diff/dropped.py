"""Which dropouts of two models are the same, and what follows from those that are not.

`draws` puts A's random numbers into B where both write them in the same way. Dropouts are also the same if they drop
some of the same numbers; then A's result is put in, however each side computes it. Rates and the like are compared
elsewhere (`causes.training`); so are dropouts that one side does not have, but what follows from those is put in as
well, since the pass in training mode shall tell what else differs.
"""

from __future__ import annotations

from collections.abc import Iterator

from diffusion_core.parity.diff.causes.dropouts import Dropout, dropouts, same_dropouts
from diffusion_core.parity.diff.exits import Exit
from diffusion_core.parity.diff.walk import Walk

__all__ = ["Dropped"]


class Dropped:
    """The dropouts of both sides in one pass."""

    def __init__(self, walk: Walk, training: bool) -> None:
        """Find the dropouts of both sides; `training`: what differs in them is told elsewhere."""
        self.walk, self.training = walk, training
        self.a, self.b = dropouts(walk.a.record), dropouts(walk.b.record)
        self.done_a: set[int] = set()
        self._pairs: list[tuple[Dropout | None, Dropout | None]] = []

    def give(self) -> None:
        """Put A's numbers in wherever the walk has arrived at a dropout, again and again."""
        if not (self.a or self.b):
            return
        while exit_ := next(self._exits(), None):
            self.walk.give([exit_])

    @property
    def pairs(self) -> tuple[tuple[Dropout | None, Dropout | None], ...]:
        """Dropouts that belong together: of the same numbers, and in order where the walk has not arrived."""
        done_a, done_b = ({d.made for pair in self._pairs if (d := pair[i]) is not None} for i in (0, 1))
        rest = [d for d in self.a if d.made not in done_a], [d for d in self.b if d.made not in done_b]
        return (*self._pairs, *same_dropouts(*rest))

    def _exits(self) -> Iterator[Exit]:
        walk = self.walk
        done = {mine.made for _, mine in self._pairs if mine is not None}
        for mine in self.b:
            if mine.made in done or mine.made not in walk.b.producer or not self._found(mine.read):
                continue
            same = dict(walk.same_there(mine.read))
            theirs = next((d for d in self.a if d.made not in self.done_a and d.read in same), None)
            if theirs is not None and (self.training or _rule(theirs) == _rule(mine)):
                self.done_a.add(theirs.made)
                self._pairs.append((theirs, mine))
                yield Exit(theirs.made, mine.made, same[theirs.read].to_b)
            elif theirs is None and self.training:
                there = walk.meetings[mine.read]
                self._pairs.append((None, mine))
                yield Exit(there.a, mine.made, there.layout.to_b)
        if self.training:
            yield from self._missing()

    def _found(self, number: int) -> bool:
        return number in self.walk.meetings

    def _missing(self) -> Iterator[Exit]:
        """Yield exits for dropouts of A that B does not have, where A goes on from what is dropped only."""
        walk = self.walk
        reading = {d.read for d in self.b}
        for theirs in self.a:
            if theirs.made in self.done_a or len(walk.a.consumers.get(theirs.read, ())) != 1:
                continue
            here = [n for n, meeting in walk.meetings.items() if meeting.a == theirs.read and n in walk.b.producer]
            if here and not reading & set(here) and here[-1] not in walk.given:
                self.done_a.add(theirs.made)
                self._pairs.append((theirs, None))
                yield Exit(theirs.made, here[-1], walk.meetings[here[-1]].layout.to_b)


def _rule(dropout: Dropout) -> tuple:
    return round(dropout.rate, 6), dropout.channels, dropout.scaled
