"""Which parameter of one side is which of the other, and how each is written in terms of the other.

Values say it where both sides have the same weights: two arrays of the same numbers, in whatever layout, are partners.
What shares no values is aligned by the graph (`places`), and a user's map wins over both. The steps, in order:

    1. the user's map                                     2. the same numbers in a layout, or flipped, or permuted
    3. parts of a fused matrix (q, k, v; gates)            4. sums (two biases of an LSTM against one)
    5. a BatchNorm folded into the convolution before it   6. the place in the graph
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.parity.diff.alignment import Alignment, Derived, Pair, State, copy
from diffusion_core.parity.diff.layouts import Layout, Lookup, close, typical_size
from diffusion_core.parity.diff.places import layout_by_place, match_by_place
from diffusion_core.parity.diff.recording import Pass
from diffusion_core.parity.diff.relations import Part, Relation, Whole, relate, reorder
from diffusion_core.parity.diff.uses import Entry, entries, layout_by_roles, prefix

__all__ = ["Alignment", "Derived", "Pair", "align", "copy"]

# Weights are compared as they were stored: exactly, and then with a few roundings of float32 or of half precision.
_EXACT, _ROUNDED = 1e-12, 4e-7
_NEAR = 0.1


def align(a: Pass, b: Pass, user_map: Mapping[str, str] | None = None) -> Alignment:
    """Return which parameters and buffers of two recorded passes belong together.

    Args:
        a, b: passes of the two sides.
        user_map: names of A to names of B, which win over everything else.
    """
    return _Aligner(entries(a), entries(b), a, b).run(user_map or {})


class _Aligner:
    """The steps of `align`: each takes entries that have no partner yet."""

    def __init__(self, a: Sequence[Entry], b: Sequence[Entry], a_pass: Pass, b_pass: Pass) -> None:
        counters_a, counters_b = ([x for x in side if _counts(x)] for side in (a, b))
        self.counters = tuple(x.name for x in counters_a), tuple(x.name for x in counters_b)
        self.a = [x for x in a if not _counts(x)]
        self.b = [y for y in b if not _counts(y)]
        self.passes = a_pass, b_pass
        self.whole: list[tuple[Entry, Entry]] = []
        self.pairs: list[Pair] = []
        self.derived: list[Derived] = []
        self.mapped: set[str] = set()
        self.sorted: dict[int, Whole] = {}
        self.done_a: set[str] = set()
        self.done_b: set[str] = set()

    def run(self, user_map: Mapping[str, str]) -> Alignment:
        self.by_map(user_map)
        self.by_value(_EXACT, relate, "equal")
        self.tied()
        self.by_value(_ROUNDED, relate, "equal up to rounding")
        self.by_value(_EXACT, reorder, "permuted")
        self.parts(_EXACT)
        self.by_value(_ROUNDED, reorder, "permuted")
        self.parts(_ROUNDED)
        self.sums()
        self.folded()
        self.by_place()
        self.parts_like_neighbours()
        order = {x.name: x.order for x in self.a}
        return Alignment(
            tuple(sorted(self.pairs, key=lambda pair: order[pair.a_name])),
            tuple(self.derived),
            tuple(x.name for x in self.a if x.name not in self.done_a),
            tuple(y.name for y in self.b if y.name not in self.done_b),
            *self.counters,
            {x.name: x.array.shape for x in self.a},
            {y.name: y.array.shape for y in self.b},
        )

    def open(self) -> tuple[list[Entry], list[Entry]]:
        """Return the entries of both sides that have no partner."""
        return [x for x in self.a if x.name not in self.done_a], [y for y in self.b if y.name not in self.done_b]

    def pair(self, x: Entry, y: Entry, way: Relation, status: str, words: str = "", difference: float = 0) -> None:
        plain = None
        if way.a_part is None and way.b_part is None:
            self.whole.append((x, y))
            plain = (layout_by_place(x, y) or way.layout) if way.permuted else None
        self.done_a.add(x.name)
        self.done_b.add(y.name)
        words = words or way.describe()
        self.pairs.append(Pair(x.name, y.name, way, status, words, difference, x.array, y.array, plain))

    def by_map(self, user_map: Mapping[str, str]) -> None:
        self.mapped.update(user_map)
        names_a, names_b = {x.name: x for x in self.a}, {y.name: y for y in self.b}
        for name, partner in user_map.items():
            check_choice("--weights, a parameter of the first side", name, names_a)
            check_choice("--weights, a parameter of the second side", partner, names_b)
            x, y = names_a[name], names_b[partner]
            relation = relate(x.array, y.array, _EXACT)
            if relation is None and x.array.size == y.array.size and not x.constant:
                relation = reorder(x.array, y.array, _EXACT)
            if relation is not None:
                relation = _as_used(x, y, relation, _EXACT)
                self.pair(x, y, relation, "permuted" if relation.permuted else "equal")
            elif not self.place(x, y):
                raise DuetError(
                    f"--weights: {name} has the shape {x.array.shape} and {partner} {y.array.shape}: no order of axes "
                    "leads from one to the other; name parameters of the same size"
                )

    def by_value(
        self, tolerance: float, find: Callable[[NDArray, NDArray, float], Relation | None], status: str
    ) -> None:
        """Pair entries of the same numbers; where several have them, the graph decides which is which."""
        left_a, left_b = self.open()
        lookup = Lookup()
        for y in left_b:
            if not y.constant:
                lookup.add(y, y.array)
        fits: dict[tuple[str, str], tuple[Entry, Entry, Relation]] = {}
        for x in left_a:
            for y in [] if x.constant else lookup.find(x.array, tolerance):
                relation = find(x.array, y.array, tolerance) if x.array.size == y.array.size else None
                if relation is not None:
                    fits[x.name, y.name] = (x, y, _as_used(x, y, relation, tolerance))
        of_a, of_b = Counter(name for name, _ in fits), Counter(name for _, name in fits)
        for (first, second), (x, y, relation) in fits.items():
            if of_a[first] == 1 and of_b[second] == 1:
                self.pair(x, y, relation, status, difference=_difference(relation.to_b(x.array), y.array))
        several = [item for key, item in fits.items() if of_a[key[0]] > 1 or of_b[key[1]] > 1]
        if several:
            twins_a = list({x.name: x for x, _, _ in several}.values())
            twins_b = list({y.name: y for _, y, _ in several}.values())
            for x, y in match_by_place(*self._with_pairs(twins_a, twins_b), self.whole, tolerance):
                if (x.name, y.name) in fits:
                    self.pair(x, y, fits[x.name, y.name][2], status)
            for x, y, relation in several:
                if x.name not in self.done_a and y.name not in self.done_b:
                    self.pair(x, y, relation, status)

    def _with_pairs(self, a: Iterable[Entry], b: Iterable[Entry]) -> tuple[list[Entry], list[Entry]]:
        """Return entries together with those that are paired, in order."""
        names_a = {x.name for x in a} | {x.name for x, _ in self.whole}
        names_b = {y.name for y in b} | {y.name for _, y in self.whole}
        return [x for x in self.a if x.name in names_a], [y for y in self.b if y.name in names_b]

    def tied(self) -> None:
        """Pair an entry with one that has a partner already: tied weights on one side, two copies on the other."""
        left_a, left_b = self.open()
        known = [(x, y) for x, y in self.whole if x.name not in self.mapped]
        for x in left_a:
            for y in [] if x.constant else [y for _, y in known if y.array.size == x.array.size]:
                relation = relate(x.array, y.array, _EXACT)
                if relation is not None:
                    relation = _as_used(x, y, relation, _EXACT)
                    self.pair(x, y, relation, "equal", f"{relation.describe()}, tied in B")
                    break
        for y in left_b:
            for x in [] if y.constant else [x for x, _ in known if x.array.size == y.array.size]:
                relation = relate(x.array, y.array, _EXACT)
                if relation is not None:
                    relation = _as_used(x, y, relation, _EXACT)
                    self.pair(x, y, relation, "equal", f"{relation.describe()}, tied in A")
                    break

    def parts(self, tolerance: float) -> None:
        """Find entries of one side inside larger ones of the other."""
        status = "equal" if tolerance == _EXACT else "equal up to rounding"
        left_a, left_b = self.open()
        for wholes, smaller, a_is_whole in ((left_b, left_a, False), (left_a, left_b, True)):
            for whole in wholes:
                fits = [y for y in smaller if y.array.size < whole.array.size and whole.array.size % y.array.size == 0]
                fits = [
                    y for y in fits if not y.constant and y.name not in (self.done_b if a_is_whole else self.done_a)
                ]
                fits = fits or [y for y in smaller if 2 < y.array.size < whole.array.size and not y.constant]
                if whole.constant or not fits:
                    continue
                if id(whole) not in self.sorted:
                    self.sorted[id(whole)] = Whole(whole.array)
                numbers = self.sorted[id(whole)]
                for y in fits:
                    found = numbers.part(y.array, tolerance)
                    if found is None:
                        continue
                    part, bare = found
                    kind = "permuted" if bare.permuted else status
                    if a_is_whole:
                        self.pair(whole, y, Relation(bare.layout, bare.orders, bare.elements, part), kind)
                    else:
                        back = bare.reverse
                        self.pair(y, whole, Relation(back.layout, back.orders, back.elements, None, part), kind)

    def parts_like_neighbours(self) -> None:
        """Pair parts of constant or different entries as the parts of the same layer's kernel are paired."""
        left_a, left_b = self.open()
        for pair in list(self.pairs):
            in_a = pair.way.a_part is not None
            part = pair.way.a_part if in_a else pair.way.b_part
            if part is None:
                continue
            cut = [(i, index) for i, index in enumerate(part.index) if len(index) < part.shape[i]]
            if len(cut) != 1:
                continue
            axis, index = cut[0]
            wholes, smaller = (left_a, left_b) if in_a else (left_b, left_a)
            whole_name, small_name = (pair.a_name, pair.b_name) if in_a else (pair.b_name, pair.a_name)
            for whole in wholes:
                if prefix(whole.name) != prefix(whole_name) or whole.array.shape != (part.shape[axis],):
                    continue
                for y in smaller:
                    done = self.done_b if in_a else self.done_a
                    if prefix(y.name) == prefix(small_name) and y.name not in done and y.array.size == len(index):
                        piece = Part(whole.array.shape, (index,))
                        layout = Layout((len(index),), y.array.shape, (len(index),), (0,))
                        if in_a:
                            relation = Relation(layout, a_part=piece)
                            apart = _difference(relation.to_b(whole.array), y.array)
                            self.pair(whole, y, relation, _status(apart), difference=apart)
                        else:
                            relation = Relation(layout.reverse, b_part=piece)
                            apart = _difference(y.array.reshape(-1), piece.take(whole.array))
                            self.pair(y, whole, relation, _status(apart), difference=apart)

    def sums(self) -> None:
        """Find biases that are the sum of two of the other side's layer: torch's LSTM has two, Keras's one."""
        left_a, left_b = self.open()
        for side, many, single in (("b", left_a, left_b), ("a", left_b, left_a)):
            groups: dict[tuple[str, tuple[int, ...]], list[Entry]] = {}
            for x in many:
                groups.setdefault((prefix(x.name), x.array.shape), []).append(x)
            for y in single:
                for group in groups.values():
                    for first, second in [(p, q) for i, p in enumerate(group) for q in group[i + 1 :]]:
                        if first.array.size != y.array.size or y.constant:
                            continue
                        total = first.array + second.array
                        relation = relate(total, y.array, _ROUNDED) or reorder(total, y.array, _ROUNDED)
                        if relation is not None:
                            self._derive_sum(side, y, first, second, relation)

    def _derive_sum(self, side: str, y: Entry, first: Entry, second: Entry, relation: Relation) -> None:
        one, two = first.name, second.name
        words = f"{one} + {two}" + (
            "" if relation.layout.identity and not relation.permuted else f", {relation.describe()}"
        )
        self.derived.append(
            Derived(
                side,
                y.name,
                (one, two),
                words,
                lambda state: relation.to_b(state[one] + state[two]),
                lambda state: relation.to_b(state[one]),
            )
        )
        done, other = (self.done_a, self.done_b) if side == "b" else (self.done_b, self.done_a)
        done.update((one, two))
        other.add(y.name)

    def folded(self) -> None:
        """Find convolutions whose kernel has the BatchNorm behind it multiplied in."""
        for side in ("b", "a"):
            left_a, left_b = self.open()
            source, target = (left_a, left_b) if side == "b" else (left_b, left_a)
            record = self.passes[0 if side == "b" else 1]
            norms = _norms(self.a if side == "b" else self.b, record)
            # Zeros and ones have no norm in them that could be seen.
            kernels = [x for x in source if x.array.ndim >= 2 and not x.constant]
            for kernel in kernels:
                for norm in norms:
                    self._fold(side, kernel, norm, source, target)

    def _fold(
        self, side: str, kernel: Entry, norm: Mapping[str, Entry], source: Sequence[Entry], target: Sequence[Entry]
    ) -> None:
        done, other = (self.done_a, self.done_b) if side == "b" else (self.done_b, self.done_a)
        channels = norm["variance"].array.size
        if kernel.name in done or any(x.name in done for x in norm.values()):
            return
        biases = [x for x in source if prefix(x.name) == prefix(kernel.name) and x.array.shape == (channels,)]
        for axis in [i for i, n in enumerate(kernel.array.shape) if n == channels]:
            shape = tuple(channels if i == axis else 1 for i in range(kernel.array.ndim))
            for epsilon in (1e-5, 1e-3, 1e-6, 1e-4, 1e-8, 1e-12, 0.0):

                def factor(state: State, epsilon: float = epsilon) -> NDArray:
                    scale = state[norm["scale"].name] if "scale" in norm else 1.0
                    return scale / np.sqrt(state[norm["variance"].name] + epsilon)

                def fold(state: State, shape: tuple[int, ...] = shape, factor: Callable = factor) -> NDArray:
                    return state[kernel.name] * factor(state).reshape(shape)

                def shift(state: State, factor: Callable = factor) -> NDArray:
                    mean = state[norm["mean"].name] - (state[biases[0].name] if biases else 0)
                    return (state[norm["shift"].name] if "shift" in norm else 0) - mean * factor(state)

                state = {x.name: x.array for x in (kernel, *norm.values(), *biases[:1])}
                made = fold(state)
                found = [(y, relate(made, y.array, 4 * _ROUNDED)) for y in target if y.array.size == made.size]
                found = [(y, relation) for y, relation in found if relation is not None and y.name not in other]
                if not found:
                    continue
                y, relation = found[0]
                layer = prefix(norm["variance"].name) or "its BatchNorm"
                words = f"{kernel.name} with {layer} folded in (epsilon {epsilon:g})"
                sources = tuple(state)
                self.derived.append(Derived(side, y.name, sources, words, _after(relation, fold)))
                other.add(y.name)
                bias = shift(state)
                for z in target:
                    if z.array.shape == bias.shape and z.name not in other and _difference(bias, z.array) < 1e-4:
                        self.derived.append(Derived(side, z.name, sources, words, shift))
                        other.add(z.name)
                        break
                done.update(sources)
                return

    def by_place(self) -> None:
        """Pair what is left by the graphs."""
        known = [
            order
            for order, _ in Counter(
                pair.way.layout.permutation
                for pair in self.pairs
                if pair.status == "equal" and pair.way.layout.permutation and not pair.way.permuted
            ).most_common()
            if order is not None
        ]
        left_a, left_b = self.open()
        for x, y in match_by_place(*self._with_pairs(left_a, left_b), self.whole, _EXACT):
            if x.name not in self.done_a and y.name not in self.done_b:
                self.place(x, y, known)

    def place(self, x: Entry, y: Entry, known: Iterable[tuple[int, ...]] = ()) -> bool:
        """Pair two entries by what their axes mean; their values may differ."""
        layout = layout_by_place(x, y, known)
        if layout is None:
            return False
        relation = Relation(layout)
        apart = _difference(relation.to_b(x.array), y.array)
        status = _status(apart)
        words = relation.describe()
        if status == "differs":
            words += f"; values differ by {apart:.1e}"
        elif status == "by place only":
            words += "; the values have nothing in common"
        self.pair(x, y, relation, status, words, apart)
        return True


def _after(relation: Relation, compute: Callable[[State], NDArray]) -> Callable[[State], NDArray]:
    return lambda state: relation.to_b(compute(state))


def _as_used(x: Entry, y: Entry, relation: Relation, tolerance: float) -> Relation:
    """Return the layout in which both sides use the axes, if it fits too: of a symmetric matrix several layouts do."""
    layout = None if relation.permuted else layout_by_roles(x, y)
    if layout is None or not close(layout.to_b(x.array), y.array, tolerance):
        return relation
    return Relation(layout)


def _counts(entry: Entry) -> bool:
    """Return whether an entry counts something, so that it is no weight."""
    return entry.array.dtype.kind in "iub" and (entry.buffer or entry.array.size < 3)


def _difference(a: NDArray, b: NDArray) -> float:
    """Return the largest difference of two arrays, relative to the typical size of their numbers."""
    size = max(typical_size(a), typical_size(b))
    if not a.size or not size:
        return 0.0
    return float(np.max(np.abs(a.astype(np.float64) - b.astype(np.float64)))) / size


def _status(difference: float) -> str:
    """Return how two arrays that stand at the same place compare."""
    if difference <= _EXACT:
        return "equal"
    if difference <= _ROUNDED:
        return "equal up to rounding"
    return "differs" if difference <= _NEAR else "by place only"


def _norms(side: Sequence[Entry], record: Pass) -> list[dict[str, Entry]]:
    """Return the entries of each BatchNorm of a side by purpose: a layer with a mean and a variance."""
    layers: dict[str, dict[str, Entry]] = {}
    for x in side:
        if x.purpose in ("scale", "shift", "mean", "variance"):
            layers.setdefault(prefix(x.name), {})[x.purpose] = x
    return [layer for layer in layers.values() if "mean" in layer and "variance" in layer]
