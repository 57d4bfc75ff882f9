"""Which parameters of two sides stand at the same place, where their values do not say it.

Freshly initialised models share no values, and zeros and ones are alike everywhere. Then a parameter's partner is the
one that its graph uses alike: the two lists, in the order in which operations read them, are aligned as sequences
(Needleman & Wunsch, "A general method applicable to the search for similarities in the amino acid sequence of two
proteins", 1970), with scores from shapes, purposes, gradients, neighbours that have been paired, and names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff.layouts import Layout, find_layout, fingerprint, natural_orders, without_ones
from diffusion_core.parity.diff.uses import Entry, layout_by_roles, prefix

__all__ = ["layout_by_place", "match_by_place"]

_NEVER = -1e9
_ENOUGH = 2.5


def layout_by_place(a: Entry, b: Entry, known: Iterable[tuple[int, ...]] = ()) -> Layout | None:
    """Return the layout that b has of a, from what its axes mean, or from the layouts of other parameters.

    Args:
        a, b: the two parameters.
        known: permutations of axes that were found by value on other parameters, the most frequent first.
    """
    if a.array.size != b.array.size:
        return None
    by_roles = layout_by_roles(a, b)
    if by_roles is not None:
        return by_roles
    short_a, short_b = without_ones(a.array.shape), without_ones(b.array.shape)
    orders = natural_orders(short_a, short_b)
    if not orders:
        # A bias of all heads together, and one with an axis of heads.
        in_order = 1 in (len(short_a), len(short_b)) and b.purpose == a.purpose == "shift"
        longer = max(short_a, short_b, key=len)
        return Layout(a.array.shape, b.array.shape, longer, tuple(range(len(longer)))) if in_order else None
    chosen = next((order for order in known if order in orders), orders[0])
    return Layout(a.array.shape, b.array.shape, short_a, chosen)


def match_by_place(
    a: Sequence[Entry], b: Sequence[Entry], paired: Sequence[tuple[Entry, Entry]], tolerance: float
) -> list[tuple[Entry, Entry]]:
    """Return pairs of the entries that have none, by the graphs of both sides.

    Args:
        a, b: all entries of each side, in the order in which operations read them.
        paired: the pairs that are known.
        tolerance: for the equality of constants, which counts in favour of a pair.
    """
    taken_a, taken_b = {id(x) for x, _ in paired}, {id(y) for _, y in paired}
    left_a, left_b = [x for x in a if id(x) not in taken_a], [y for y in b if id(y) not in taken_b]
    if not (left_a and left_b):
        return []
    base = _scores(left_a, left_b, len(a), len(b), tolerance)
    base += 2.0 * _sequence_bonus(a, b, paired, left_a, left_b, base)
    found: list[tuple[Entry, Entry]] = []
    open_a, open_b = set(range(len(left_a))), set(range(len(left_b)))
    while open_a and open_b:
        score = base + _neighbour_bonus(left_a, left_b, [*paired, *found])
        score[[i for i in range(len(left_a)) if i not in open_a]] = _NEVER
        score[:, [j for j in range(len(left_b)) if j not in open_b]] = _NEVER
        best_b, best_a = score.argmax(axis=1), score.argmax(axis=0)
        mutual = [(i, int(best_b[i])) for i in open_a if best_a[best_b[i]] == i and score[i, best_b[i]] > _ENOUGH]
        if not mutual:
            break
        # The surest half first: neighbours of those help the others.
        mutual.sort(key=lambda pair: -score[pair])
        for i, j in mutual[: max(1, len(mutual) // 2)]:
            found.append((left_a[i], left_b[j]))
            open_a.discard(i)
            open_b.discard(j)
    return found


def _scores(a: Sequence[Entry], b: Sequence[Entry], count_a: int, count_b: int, tolerance: float) -> NDArray:
    """Return how well each entry of A fits each entry of B, by everything but their neighbours."""
    scores = np.full((len(a), len(b)), _NEVER)
    prints_a = [None if x.gradient is None else fingerprint(x.gradient) for x in a]
    prints_b = [None if y.gradient is None else fingerprint(y.gradient) for y in b]
    shapes_a, shapes_b = ([tuple(sorted(without_ones(x.array.shape))) for x in side] for side in (a, b))
    # A word that every name has says nothing; a rare one much.
    counts = Counter(word for x in (*a, *b) for word in x.words)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            if x.array.size != y.array.size:
                continue
            score = 2.0 if shapes_a[i] == shapes_b[j] else 0.0 if layout_by_place(x, y) else _NEVER
            if score == _NEVER:
                continue
            if x.purpose and y.purpose:
                score += 3 if x.purpose == y.purpose else -3
            score += 0 if x.buffer == y.buffer else -3
            if x.constant and y.constant and find_layout(x.array, y.array, tolerance):
                score += 2
            first, second = prints_a[i], prints_b[j]
            if first is not None and second is not None and first.typical > 0 and first.near(second, 1e-7):
                score += 4
            common = sum(1.0 / counts[w] for w in x.words & y.words)
            every = sum(1.0 / counts[w] for w in x.words | y.words)
            score += 1.5 * common / every if every else 0
            score -= abs(x.order / count_a - y.order / count_b)
            scores[i, j] = score
    return scores


def _sequence_bonus(
    a: Sequence[Entry],
    b: Sequence[Entry],
    paired: Sequence[tuple[Entry, Entry]],
    left_a: Sequence[Entry],
    left_b: Sequence[Entry],
    base: NDArray,
) -> NDArray:
    """Return 1 where the alignment of the two sequences has a pair, and 0 elsewhere."""
    n, m = len(a), len(b)
    bonus = np.zeros_like(base)
    if n * m > 4_000_000:
        return bonus
    rows, columns = {id(x): i for i, x in enumerate(left_a)}, {id(y): j for j, y in enumerate(left_b)}
    at_a, at_b = {id(x): i for i, x in enumerate(a)}, {id(y): j for j, y in enumerate(b)}
    gain = np.full((n, m), _NEVER)
    index_a = [at_a[id(x)] for x in left_a]
    index_b = [at_b[id(y)] for y in left_b]
    gain[np.ix_(index_a, index_b)] = np.where(base > 0, base, _NEVER)
    for x, y in paired:
        gain[at_a[id(x)], at_b[id(y)]] = 20.0
    # best[i, j]: the best score of the first i and j entries. Cells of one antidiagonal need only earlier ones.
    best = np.zeros((n + 1, m + 1))
    for total in range(2, n + m + 1):
        i = np.arange(max(1, total - m), min(n, total - 1) + 1)
        j = total - i
        best[i, j] = np.maximum(np.maximum(best[i - 1, j], best[i, j - 1]), best[i - 1, j - 1] + gain[i - 1, j - 1])
    i, j = n, m
    while i and j:
        if best[i, j] == best[i - 1, j - 1] + gain[i - 1, j - 1]:
            i, j = i - 1, j - 1
            if id(a[i]) in rows and id(b[j]) in columns:
                bonus[rows[id(a[i])], columns[id(b[j])]] = 1.0
        elif best[i, j] == best[i - 1, j]:
            i -= 1
        else:
            j -= 1
    return bonus


def _neighbour_bonus(a: Sequence[Entry], b: Sequence[Entry], paired: Sequence[tuple[Entry, Entry]]) -> NDArray:
    """Return a bonus for layers of which other entries are paired, and a malus where both are paired elsewhere."""
    together = Counter((prefix(x.name), prefix(y.name)) for x, y in paired)
    alone_a, alone_b = Counter(prefix(x.name) for x, _ in paired), Counter(prefix(y.name) for _, y in paired)
    bonus = np.zeros((len(a), len(b)))
    names_a, names_b = [prefix(x.name) for x in a], [prefix(y.name) for y in b]
    for i, first in enumerate(names_a):
        for j, second in enumerate(names_b):
            if together[first, second]:
                bonus[i, j] = 4.0
            elif alone_a[first] and alone_b[second]:
                bonus[i, j] = -1.0
    return bonus
