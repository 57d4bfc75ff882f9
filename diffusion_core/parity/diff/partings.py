"""A place where two sides part, and what is between it and the places where they meet again, seen from each side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from diffusion_core.parity.diff.exits import Exit
from diffusion_core.parity.diff.graph import Graph
from diffusion_core.parity.diff.layouts import Lookup
from diffusion_core.parity.diff.reach import needed_by
from diffusion_core.parity.diff.walk import Walk

__all__ = ["ENOUGH", "Parting", "Side"]

# Operations behind the parting in which a cause is sought: where the sides meet again much later, it is not there.
_NEAR = 48
_BEFORE = 3
# A value of fewer numbers may be found on the other side by chance.
ENOUGH = 8


@dataclass(frozen=True)
class Parting:
    """A place where the sides part.

    Attributes:
        walk: B on A's values.
        start: the operation of B; None if B returns an input or a parameter as it is.
        exits: where the sides meet again.
        region, other_region: operations of B and of A between what is found and the exits.
    """

    walk: Walk
    start: int | None
    exits: tuple[Exit, ...]
    region: tuple[int, ...]
    other_region: tuple[int, ...]

    @cached_property
    def sides(self) -> tuple[Side, Side]:
        """The parting seen from A, and from B."""
        return Side(self, False), Side(self, True)


@dataclass(frozen=True)
class Side:
    """A parting seen from one side."""

    parting: Parting
    of_b: bool

    @property
    def graph(self) -> Graph:
        """The operations of this side."""
        return self.parting.walk.b if self.of_b else self.parting.walk.a

    @property
    def values(self) -> Mapping[int, NDArray]:
        """The values of this side: A's own, and B's on A's values."""
        return self.parting.walk.values if self.of_b else self.parting.walk.a.values

    @property
    def other(self) -> Side:
        """The other side."""
        return self.parting.sides[not self.of_b]

    @cached_property
    def reach(self) -> dict[tuple[str, frozenset[int]], Any]:
        """What follows from some operations, kept by `attempts`: many changes are of the same few."""
        return {}

    @cached_property
    def region(self) -> frozenset[int]:
        """The operations between the parting and the exits."""
        return frozenset(self.parting.region if self.of_b else self.parting.other_region)

    @cached_property
    def ends(self) -> dict[int, Exit]:
        """The exits in order, by the value number of this side."""
        return {(exit_.b if self.of_b else exit_.a): exit_ for exit_ in self.parting.exits}

    @cached_property
    def needs(self) -> dict[int, frozenset[int]]:
        """The operations of the region that each exit needs, in the order of the exits."""
        graph, region = self.graph, self.region
        return {
            end: frozenset(needed_by(graph, [end], lambda n: graph.producer.get(n) in region) & region)
            for end in self.ends
        }

    @cached_property
    def near(self) -> tuple[int, ...]:
        """The operations in which a cause is sought: those that the first exits need.

        One side may compute in another order, so what comes first there may belong to another branch.
        """
        found: dict[int, None] = {}
        for needed in self.needs.values():
            found.update(dict.fromkeys(sorted(needed)))
            if len(found) >= _NEAR:
                break
        return tuple(sorted(list(found or dict.fromkeys(sorted(self.region)))[:_NEAR]))

    @cached_property
    def open_values(self) -> Lookup:
        """The values of these operations, none of which is found on the other side."""
        lookup = Lookup()
        found = self.parting.walk.found if self.of_b else self.parting.walk.found_there
        for i in self.near:
            for number in self.graph.operations[i].outputs:
                array = None if found(number) else self.values.get(number)
                if array is not None and array.size >= ENOUGH and array.dtype.kind == "f":
                    lookup.add(number, array)
        return lookup

    @cached_property
    def parts_before(self) -> tuple[int, ...]:
        """The operations between these and the split of an array that they read; each part of it is on both sides."""
        kept: set[int] = set()
        for index in self.near:
            for number in self.graph.operations[index].inputs:
                kept.update(_back_to_a_split(self.graph, number))
        return tuple(sorted(kept.difference(self.near)))


def _back_to_a_split(graph: Graph, number: int) -> Sequence[int]:
    """Return the operations that lead from a part of an array to a value, if there are a few of one input each."""
    chain: list[int] = []
    while number in graph.producer and len(chain) < _BEFORE:
        chain.append(graph.producer[number])
        operation = graph.operations[chain[-1]]
        if operation.kind in ("split", "slice", "unstack"):
            return chain
        if len(operation.inputs) != 1:
            break
        number = operation.inputs[0]
    return ()
