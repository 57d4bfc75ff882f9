"""What a cause proposes: one operation of one side, computed in another way.

@cause("norm_epsilon", "the epsilon of a normalisation", "eps= in PyTorch, epsilon= in Keras")
def epsilon(suspect):
    for i in suspect.region:
        operation = suspect.graph.operations[i]
        if operation.role == "epsilon":
            for value in suspect.numbers("epsilon", (1e-3, 1e-5, 1e-6, 1e-8, 1e-12)):
                yield Change(
                    "norm_epsilon", i, lambda read, v=value: (read(operation.inputs[0]) + v,),
                    here=f"epsilon is {operation.attributes['scalar']:g}", there=f"epsilon is {value:g}",
                )
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

__all__ = ["CAUSES", "Change", "Read", "Suspect", "cause"]

Read = Callable[[int], NDArray]


@dataclass(frozen=True)
class Change:
    """One operation computed in another way.

    Attributes:
        kind: the name of the cause, such as "norm_epsilon"; a key of `CAUSES`.
        operation: index of the operation in the graph of the suspect.
        compute: from a function that reads values, the new outputs of the operation. Values come from this side, run on
            the other side's values: those upstream of the operation, its old outputs, and nothing downstream.
        here: what this side does, a sentence with a subject, as "epsilon is 0.001".
        there: what makes both sides agree, likewise, as "epsilon is 1e-05".
        cost: changes of a lower cost are tried first: 0 for a number that the other side has, 1 for a number or form
            from the catalogue, 2 for a search.
        parameter: the name of the parameter that is at fault, if it is one.
    """

    kind: str
    operation: int
    compute: Callable[[Read], Sequence[NDArray]]
    here: str
    there: str
    cost: float = 1
    parameter: str = ""


@dataclass(frozen=True)
class Suspect:
    """A place where one side differs, seen from that side.

    Attributes:
        graph: this side, a `graph.Graph`.
        region: indices of operations whose results are not found on the other side although what they need is, and of
            those behind them up to where the sides could meet again; in order.
        other: the other side.
        other_region: the same there. It may be empty, or of quite another form.
        read: values of this side, run on the other side's values.
        read_other: recorded values of the other side.
        match: for a value number of this side: (value number of the other side, how to write that in this side's
            layout), or None.
        weight: for the number of a parameter of this side: the other side's parameter of the same meaning, in this
            side's layout; None if they are equal or there is none.
    """

    graph: Any
    region: tuple[int, ...]
    other: Any
    other_region: tuple[int, ...]
    read: Read
    read_other: Read
    match: Callable[[int], tuple[int, Callable[[NDArray], NDArray]] | None]
    weight: Callable[[int], NDArray | None] = lambda number: None
    before: tuple[int, ...] = ()

    def numbers(self, role: str, usual: Sequence[float] = ()) -> list[float]:
        """Return numbers that an operation of a role could have: those of the other side's region, then usual ones."""
        there = [
            self.other.operations[i].attributes["scalar"]
            for i in self.other_region
            if self.other.operations[i].role == role and "scalar" in self.other.operations[i].attributes
        ]
        return list(dict.fromkeys([*there, *usual]))


CAUSES: dict[str, tuple[str, str, Callable[[Suspect], Iterator[Change]]]] = {}
"""By kind: a title ("the epsilon of a normalisation"), what to do about it in each framework, and the function."""


def cause(kind: str, title: str, advice: str) -> Callable:
    """Register a function as the cause of that kind.

    Args:
        kind: a short name, as in "norm_epsilon".
        title: what people call it, as in "the epsilon of a normalisation".
        advice: how each framework writes it, as in "eps= in PyTorch, epsilon= in Keras".

    Raises:
        ValueError: another function is the cause of that kind; one of the two would never be asked.
    """

    def register(function: Callable[[Suspect], Iterator[Change]]) -> Callable[[Suspect], Iterator[Change]]:
        if kind in CAUSES:
            raise ValueError(
                f"the cause {kind} is registered twice: {CAUSES[kind][2].__name__} and {function.__name__}"
            )
        CAUSES[kind] = (title, advice, function)
        return function

    return register
