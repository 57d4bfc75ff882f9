"""Parameters of two sides that belong together, and one side's weights written as the other's.

A parameter may have several partners (the parts of a fused projection; tied weights), and a partner may be computed
(sums, folded norms). `Alignment.to_b` and `to_a` put them together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff.layouts import Layout
from diffusion_core.parity.diff.relations import Part, Relation
from diffusion_core.parity.diff.uses import prefix

__all__ = ["Alignment", "Copied", "Derived", "Pair", "State", "copy"]

State = Mapping[str, NDArray]


@dataclass(frozen=True, eq=False)
class Pair:
    """A parameter of A and its partner in B, or parts of the two.

    Attributes:
        a_name, b_name: their names.
        way: how B's array, or a part of it, is A's, or a part of it.
        status: "equal", "equal up to rounding", "permuted", "differs", or "by place only" if the values have nothing in
            common.
        relation: the way in words.
        difference: the largest difference, relative to the typical size of the numbers.
        a_array, b_array: the recorded arrays.
        plain: the layout in which the two would be used alike; for permuted ones it is not `way`.
    """

    a_name: str
    b_name: str
    way: Relation
    status: str
    relation: str
    difference: float
    a_array: NDArray
    b_array: NDArray
    plain: Layout | None = None

    def to_b(self, a: NDArray) -> NDArray:
        """Return B's array with A's numbers; where B has more than A, the rest is B's own."""
        return _overlay(self.b_array, self.way.b_part, self.way.to_b(a))

    def to_a(self, b: NDArray) -> NDArray:
        """Return A's array with B's numbers; where A has more than B, the rest is A's own."""
        return _overlay(self.a_array, self.way.a_part, self.way.to_a(b))

    def plain_to_b(self, a: NDArray) -> NDArray:
        """Return A's array in B's layout without the permutation: what B would have if it followed A."""
        return self.to_b(a) if self.plain is None else self.plain.to_b(a)

    def plain_to_a(self, b: NDArray) -> NDArray:
        """Return B's array in A's layout without the permutation."""
        return self.to_a(b) if self.plain is None else self.plain.to_a(b)


def _overlay(whole: NDArray, part: Part | None, values: NDArray) -> NDArray:
    if part is None:
        return values
    result = whole.astype(values.dtype)
    part.put(result, values)
    return result


@dataclass(frozen=True)
class Derived:
    """A parameter that is computed from several of the other side.

    Attributes:
        side: the side that has the computed one, "a" or "b".
        name: its name.
        sources: names on the other side.
        words: how, in words.
        compute: the array from the other side's state.
        gradient: its gradient from gradients of the other side's state; None if that cannot be said.
    """

    side: str
    name: str
    sources: tuple[str, ...]
    words: str
    compute: Callable[[State], NDArray]
    gradient: Callable[[State], NDArray] | None = None


@dataclass(frozen=True, eq=False)
class Alignment:
    """Which parameters and buffers of two sides belong together.

    Attributes:
        pairs: in the order of A.
        derived: computed entries.
        unmatched_a, unmatched_b: names without a partner.
        a_counters, b_counters: names of integers that count (batches seen, states of random generators): not compared.
    """

    pairs: tuple[Pair, ...]
    derived: tuple[Derived, ...] = ()
    unmatched_a: tuple[str, ...] = ()
    unmatched_b: tuple[str, ...] = ()
    a_counters: tuple[str, ...] = ()
    b_counters: tuple[str, ...] = ()
    a_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    b_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def of_a(self, name: str) -> tuple[Pair, ...]:
        """Return the pairs of a name of A."""
        return tuple(pair for pair in self.pairs if pair.a_name == name)

    def of_b(self, name: str) -> tuple[Pair, ...]:
        """Return the pairs of a name of B."""
        return tuple(pair for pair in self.pairs if pair.b_name == name)

    def to_b(self, name: str, a: State, gradients: bool = False) -> NDArray | None:
        """Return B's array of this name in terms of A's arrays; None if A has not all of it.

        Args:
            name: a name of B.
            a: arrays of A by name.
            gradients: whether the arrays are gradients; a gradient of a computed parameter is known for sums only.
        """
        return self._write("b", name, a, gradients, self.of_b(name), self.b_shapes.get(name))

    def to_a(self, name: str, b: State, gradients: bool = False) -> NDArray | None:
        """Return A's array of this name in terms of B's arrays; None if B has not all of it."""
        return self._write("a", name, b, gradients, self.of_a(name), self.a_shapes.get(name))

    def _write(
        self,
        side: str,
        name: str,
        state: State,
        gradients: bool,
        pairs: Sequence[Pair],
        shape: tuple[int, ...] | None,
    ) -> NDArray | None:
        for item in self.derived:
            if item.side == side and item.name == name and all(source in state for source in item.sources):
                compute = item.gradient if gradients else item.compute
                return None if compute is None else compute(state)
        result, filled = None, None
        for pair in pairs:
            source = pair.a_name if side == "b" else pair.b_name
            if source not in state:
                continue
            values = pair.way.to_b(state[source]) if side == "b" else pair.way.to_a(state[source])
            part = pair.way.b_part if side == "b" else pair.way.a_part
            if part is None:
                # Tied weights: each copy has the whole value, and its own share of the gradient.
                if not gradients:
                    return values
                result = values if result is None else result + values
                filled = np.ones(values.shape, bool)
                continue
            if result is None:
                result = np.zeros(part.shape, values.dtype)
                filled = np.zeros(part.shape, bool)
            part.put(result, values)
            part.put(filled, np.ones(values.shape, bool))
        if result is None or filled is None or not filled.all():
            return None
        return result


@dataclass(frozen=True)
class Copied:
    """The state of B written from A's, and what could not be.

    Attributes:
        state: B's arrays by name.
        missing: for each name of B without a value, the reason.
        unused: names of A of which B took nothing.
    """

    state: dict[str, NDArray]
    missing: dict[str, str]
    unused: tuple[str, ...]


def with_sums(alignment: Alignment) -> Alignment:
    """Return an alignment that also writes a bias held as a sum of two, where no value says so.

    A recurrent layer of one framework has two biases that are added, that of another has one, which stands at the place
    of the first. Their sum is written into the one; the one is written into the first, and zeros into the second.
    """
    sides = (
        ("a", alignment.unmatched_a, alignment.a_shapes, alignment.b_shapes, lambda pair: (pair.a_name, pair.b_name)),
        ("b", alignment.unmatched_b, alignment.b_shapes, alignment.a_shapes, lambda pair: (pair.b_name, pair.a_name)),
    )
    derived: list[Derived] = []
    for side, unmatched, shapes, others, names in sides:
        for second in unmatched:
            beside = [pair for pair in alignment.pairs if prefix(names(pair)[0]) == prefix(second)]
            fitting = [names(p) for p in beside if shapes[names(p)[0]] == shapes[second] == others[names(p)[1]]]
            fitting = [(first, single) for first, single in fitting if _is_bias(first)]
            if len(shapes[second]) != 1 or len(fitting) != 1 or not _is_bias(second):
                continue
            first, single = fitting[0]

            def add(state: State, first: str = first, second: str = second) -> NDArray:
                return state[first] + state[second]

            def zeros(state: State, single: str = single) -> NDArray:
                return np.zeros_like(state[single])

            other = "b" if side == "a" else "a"
            derived.append(Derived(other, single, (first, second), f"{first} + {second}", add))
            derived.append(Derived(side, second, (single,), "zeros", zeros))
    return replace(alignment, derived=(*derived, *alignment.derived)) if derived else alignment


def _is_bias(name: str) -> bool:
    return "bias" in name.rpartition(".")[2].rpartition("/")[2]


def copy(alignment: Alignment, a_state: State, b_state: State) -> Copied:
    """Return B's state with A's weights.

    Args:
        alignment: from `align`, which may have been made before the two sides shared any value.
        a_state: arrays of A by name.
        b_state: arrays of B by name: what A has nothing for keeps its value.
    """
    alignment = with_sums(alignment)
    state, missing = {}, {}
    for name, old in b_state.items():
        new = alignment.to_b(name, a_state)
        if new is not None and new.shape == old.shape:
            state[name] = new.astype(old.dtype, copy=False)
            continue
        state[name] = old
        if name in alignment.b_counters:
            continue
        partners = [pair.a_name for pair in alignment.of_b(name)]
        if new is not None:
            missing[name] = f"its shape is {old.shape}, and that of {', '.join(partners)} gives {new.shape}"
        elif partners:
            missing[name] = f"the other side has only a part of it: {', '.join(partners)}"
        else:
            missing[name] = f"nothing on the other side corresponds to it (shape {old.shape})"
    used = {pair.a_name for pair in alignment.pairs} | {
        s for d in alignment.derived if d.side == "b" for s in d.sources
    }
    counters = set(alignment.a_counters)
    return Copied(state, missing, tuple(name for name in a_state if name not in used and name not in counters))
