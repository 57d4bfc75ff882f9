"""Random numbers of two models: which draws are the same, so that one side can be run with the other's numbers.

Generators of different frameworks never agree. A draw of B (noise, or what dropout keeps) belongs to a draw of A of the
same distribution, rate and size: to the one that meets the same value, or else to the next one in order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff.graph import Graph
from diffusion_core.parity.diff.layouts import Layout, natural_orders, without_ones
from diffusion_core.parity.diff.vocabulary import BINARY, UNARY

__all__ = ["Draw", "choose_draw", "draws_of", "layout_of_draw"]

_JOINING = ("multiply", "divide", "where", "add", "subtract")
# Operations on a draw by itself: scaling it, comparing it with a rate, giving it another type or shape.
_ALONE = frozenset(UNARY) | frozenset(BINARY) | {"cast", "identity", "reshape", "expand", "transpose", "clip"}


@dataclass(frozen=True)
class Draw:
    """Random numbers that were drawn.

    Attributes:
        number: their value number.
        kind: distribution.
        rate: the fraction of zeros, for a mask.
        beside: the value that they are joined with, before it is scaled; None if there is none.
    """

    number: int
    kind: str
    rate: float | None
    beside: int | None

    def fits(self, other: Draw, graph: Graph, theirs: Graph) -> bool:
        """Return whether two draws may be the same."""
        rates = (self.rate is None) == (other.rate is None)
        rates = rates and (self.rate is None or math.isclose(self.rate, other.rate or 0.0, abs_tol=1e-6))
        sizes = np.size(graph.values[self.number]) == np.size(theirs.values[other.number])
        return self.kind == other.kind and rates and sizes


def draws_of(graph: Graph) -> dict[int, Draw]:
    """Return the draws of a graph in order, by value number."""
    found = {}
    for operation in graph.operations:
        if operation.kind == "random" and len(operation.outputs) == 1:
            (number,) = operation.outputs
            kind, rate = operation.attributes.get("distribution", ""), operation.attributes.get("rate")
            found[number] = Draw(number, str(kind), rate, _beside(graph, number))
    return found


def _beside(graph: Graph, number: int) -> int | None:
    """Return the value that a draw is joined with."""
    current = number
    for _ in range(12):
        readers = graph.consumers.get(current, ())
        if len(readers) != 1:
            return None
        operation = graph.operations[readers[0]]
        others = [n for n in operation.inputs if n != current]
        if operation.kind in _JOINING and others:
            return _unscaled(graph, max(others, key=lambda n: np.size(graph.values[n])))
        if others or operation.kind not in _ALONE:
            return None
        current = operation.outputs[0]
    return None


def _unscaled(graph: Graph, number: int) -> int:
    """Return the value that was multiplied by a number to give this one."""
    operation = graph.operations[graph.producer[number]] if number in graph.producer else None
    is_scaled = operation is not None and operation.kind in ("multiply", "divide") and len(operation.inputs) == 1
    return operation.inputs[0] if operation is not None and is_scaled else number


def choose_draw(mine: Draw, open_draws: Mapping[int, Draw], a: Graph, b: Graph, same: set[int]) -> Draw | None:
    """Return the draw of A that a draw of B is, or None.

    Args:
        mine: the draw of B.
        open_draws: those of A that are not taken.
        a, b: the graphs.
        same: values of A that are equal to what B's draw is joined with.
    """
    fitting = [each for each in open_draws.values() if mine.fits(each, b, a)]
    return next((each for each in fitting if each.beside in same), fitting[0] if fitting else None)


def layout_of_draw(theirs: NDArray, mine: NDArray, beside: Layout | None) -> Layout | None:
    """Return how B's draw is laid out: as what it is joined with, or else with the fewest axes moved."""
    if beside is not None and (beside.a_shape, beside.b_shape) == (theirs.shape, mine.shape):
        return beside
    one, other = without_ones(theirs.shape), without_ones(mine.shape)
    orders = natural_orders(one, other)
    if orders:
        return Layout(theirs.shape, mine.shape, one, orders[0])
    return None
