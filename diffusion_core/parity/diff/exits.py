"""Where two sides meet again: values that are the same quantity, since the same parameter is applied to both."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff.graph import Graph
from diffusion_core.parity.diff.reach import of_parameters, uses
from diffusion_core.parity.diff.recording import Operation

__all__ = ["Exit", "Partners", "exits_of", "likely_layout", "match_by_use"]


@dataclass(frozen=True)
class Exit:
    """A value of B and one of A that are the same quantity although their numbers differ.

    Attributes:
        a, b: the values.
        to_b: how to write A's value in B's layout.
        at: the operations of A and B that show it, since they apply the same parameter; None for outputs.
    """

    a: int
    b: int
    to_b: Callable[[NDArray], NDArray]
    at: tuple[int, int] | None = None


Partners = dict[int, tuple[int, tuple[int, int] | None]]


def match_by_use(
    a: Graph,
    b: Graph,
    pairs: Iterable[tuple[int, int]],
    outputs: Iterable[tuple[int, int]],
    permuted: Mapping[int, Collection[int]] = MappingProxyType({}),
) -> Partners:
    """Return which value of A is the same quantity as a value of B, since the same parameter is applied to both.

    What an operation makes from the parameter and what it reads besides it are paired where their sizes fit, and the
    outputs of the models. With each pair come the two operations.

    Args:
        a, b: the graphs.
        pairs: value numbers of parameters: of A, of B.
        outputs: value numbers of outputs that belong together, likewise.
        permuted: for parameters of B whose entries stand in another order, the lengths of those axes: values that have
            such an axis stand in another order too, such as the gates of a recurrent layer.
    """
    partner: Partners = {}
    for there, here in pairs:
        mine, theirs = uses(b, here), uses(a, there)
        if len(mine) != len(theirs):
            continue
        turned = set(permuted.get(here, ()))
        for (i, value_b), (j, value_a) in zip(mine, theirs, strict=True):
            one, other = b.operations[i], a.operations[j]
            data_b = [n for n in one.inputs if n != value_b and not of_parameters(b, n)]
            data_a = [n for n in other.inputs if n != value_a and not of_parameters(a, n)]
            if not alike(a, other, data_a, b, one, data_b):
                continue
            if len(one.outputs) == len(other.outputs) == 1 and not turned & set(b.values[one.outputs[0]].shape):
                offer(partner, a, b, other.outputs[0], one.outputs[0], (j, i))
            if len(data_a) == len(data_b) == 1 and not turned & set(b.values[data_b[0]].shape):
                offer(partner, a, b, data_a[0], data_b[0], (j, i))
    for there, here in outputs:
        offer(partner, a, b, there, here, None)
    return partner


_USES = {"bias_add": "add", **dict.fromkeys(("conv", "conv_transpose", "einsum", "gather", "embedding"), "matmul")}


def alike(a: Graph, there: Operation, data_a: Sequence[int], b: Graph, here: Operation, data_b: Sequence[int]) -> bool:
    """Return whether two operations apply a parameter to the same quantity, as far as their form tells.

    A layer norm may be written as ``gamma * (x - mean) / std`` or as ``x * (gamma / std) + ...``: there gamma is
    multiplied with something else.
    """
    if _USES.get(there.kind, there.kind) != _USES.get(here.kind, here.kind):
        return False
    if there.kind != here.kind and _USES.get(there.kind) == "matmul":
        return True
    return sorted(np.size(a.values[n]) for n in data_a) == sorted(np.size(b.values[n]) for n in data_b)


def offer(partner: Partners, a: Graph, b: Graph, there: int, here: int, at: tuple[int, int] | None) -> None:
    """Pair two values that have the same number of elements, of which B's is made by an operation."""
    if here in b.producer and np.size(a.values[there]) == np.size(b.values[here]):
        partner.setdefault(here, (there, at))


def exits_of(
    a: Graph, b: Graph, values: Mapping[int, NDArray], partner: Partners, start: int, still: set[int]
) -> list[Exit]:
    """Return the exits behind an operation of B: the first values on every way that have a partner.

    Args:
        a, b: the graphs.
        values: B's values, run on A's.
        partner: pairs of values, from `match_by_use`.
        start: the operation where the sides part.
        still: the open values of B.
    """
    found, todo, seen = {}, [start], set()
    while todo:
        i = todo.pop()
        if i in seen:
            continue
        seen.add(i)
        for number in b.operations[i].outputs:
            if number not in still:
                continue
            if number in partner:
                there, at = partner[number]
                mine = values.get(number, b.values[number])
                found[number] = Exit(there, number, likely_layout(a.values[there], mine), at)
            else:
                todo.extend(b.consumers.get(number, ()))
    return [found[number] for number in sorted(found, key=lambda n: b.producer[n])]


def likely_layout(theirs: NDArray, mine: NDArray) -> Callable[[NDArray], NDArray]:
    """Return how B's layout most likely follows from A's for values that differ: the order in which they differ least.

    Axes of one element are left out. Among orders that fit equally well, the one that keeps the batch first and moves
    one axis is taken.
    """
    shape = [n for n in theirs.shape if n != 1]
    target = mine.shape
    flat = theirs.reshape(shape)
    best, chosen = float("inf"), tuple(range(len(shape)))
    orders = sorted(itertools.permutations(range(len(shape))), key=lambda order: unusual(order, shape, target))
    kind = np.result_type(theirs, mine, np.float64)
    for order in orders if len(shape) <= 5 else [chosen]:
        if not fits([shape[axis] for axis in order], [n for n in target if n != 1]):
            continue
        candidate = flat.transpose(order).reshape(target)
        with np.errstate(all="ignore"):
            error = float(np.mean(np.abs(np.nan_to_num(np.subtract(candidate, mine, dtype=kind)))))
        if error < 0.9 * best:
            best, chosen = error, order

    def to_b(array: NDArray) -> NDArray:
        return array.reshape(shape).transpose(chosen).reshape(target)

    return to_b


def unusual(order: Sequence[int], shape: Sequence[int], target: Sequence[int]) -> tuple[bool, int]:
    """Rank an order of axes: those that keep the batch first and move as few axes as possible come first."""
    identity = list(range(len(order)))
    last = [0, *range(2, len(order)), 1] if len(order) > 2 else identity
    first = [0, len(order) - 1, *range(1, len(order) - 1)] if len(order) > 2 else identity
    known = list(order) in (identity, last, first)
    return (not known, sum(a != b for a, b in zip(order, identity, strict=True)))


def fits(shape: Sequence[int], target: Sequence[int]) -> bool:
    """Return whether one shape becomes another by merging or splitting neighbouring axes."""
    ends = set(np.cumprod(shape)) if shape else {1}
    others = set(np.cumprod(target)) if target else {1}
    return ends <= others or others <= ends
