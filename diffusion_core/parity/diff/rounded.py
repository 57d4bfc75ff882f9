"""Weights that follow from others, and were rounded to float32 after that.

A folded BatchNorm, a weight norm that was removed, or a constant of the code that another side keeps as a weight is the
same model, but its weights are float32 numbers: they agree with what they follow from to float32 only, also in the
float64 pass. How far that moves a result is estimated by random errors of one unit of float32 in the weights that have
no equal on the other side; a difference of this size is a property of the files, not of the models.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff import operations as rules
from diffusion_core.parity.diff.exits import Exit, likely_layout
from diffusion_core.parity.diff.explain import counterpart
from diffusion_core.parity.diff.findings import Finding
from diffusion_core.parity.diff.graph import Graph, relative
from diffusion_core.parity.diff.partings import Parting
from diffusion_core.parity.diff.walk import Walk

__all__ = ["KIND", "as_a_whole", "nearly_agree", "rounded_weights", "rounding_of_weights"]

KIND = "float32_weights"
_UNIT = 2.0**-23
# Folding takes a few operations in float32, and the largest of two random results is below the largest possible.
_TIMES, _DRAWS = 8.0, 2
_NEAR = 1e-4
_TITLE = "weights that follow from others, rounded to float32"


def rounding_of_weights(parting: Parting, equal_a: Collection[int], equal_b: Collection[int]) -> float:
    """Return how far apart float32 weights that are equal in theory can put the exits of a parting, relative.

    Args:
        parting: where.
        equal_a, equal_b: the parameters that have an equal on the other side.
    """
    walk = parting.walk
    if not parting.exits or any(exit_.b not in walk.values for exit_ in parting.exits):
        return 0.0
    sides = (
        (walk.a, parting.other_region, walk.a.values.__getitem__, equal_a, [exit_.a for exit_ in parting.exits]),
        (walk.b, parting.region, walk.values.__getitem__, equal_b, [exit_.b for exit_ in parting.exits]),
    )
    return _TIMES * max(max(one, other) for one, other in zip(*(_effect(*side) for side in sides), strict=True))


def nearly_agree(walk: Walk, outputs: Sequence[tuple[int, int]]) -> bool:
    """Return whether the outputs are as near as float32 weights could leave them at all."""
    pairs = [(walk.a.values[there], walk.b.values[here]) for there, here in outputs]
    return bool(pairs) and all(
        x.size == y.size and relative(y, likely_layout(x, y)(x).astype(y.dtype)) < _NEAR for x, y in pairs
    )


def as_a_whole(walk: Walk, outputs: Sequence[tuple[int, int]]) -> Parting:
    """Return the whole way from the inputs to the outputs as one parting.

    Weights may have another scale that a later operation takes back, so that the sides meet at the end only.
    """
    exits = [
        Exit(there, here, likely_layout(walk.a.values[there], walk.b.values[here]))
        for there, here in outputs
        if walk.a.values[there].size == walk.b.values[here].size and walk.b.values[here].dtype.kind == "f"
    ]
    start = next((i for i, operation in enumerate(walk.b.operations) if operation.inputs), None)
    regions = (tuple(range(len(graph.operations))) for graph in (walk.b, walk.a))
    return Parting(walk, start, tuple(exits) if len(exits) == len(outputs) else (), *regions)


def rounded_weights(parting: Parting, mode: str, rounding: float) -> Finding | None:
    """Return a benign finding if float32 weights explain where the sides part, or None.

    Args:
        parting: where.
        mode: "forward" or "training".
        rounding: from `rounding_of_weights`.
    """
    walk = parting.walk
    if not rounding:
        return None
    errors = [relative(walk.values[exit_.b], exit_.to_b(walk.a.values[exit_.a])) for exit_ in parting.exits]
    if max(errors) > rounding:
        return None
    here = None if parting.start is None else walk.b.place(parting.start)
    there = counterpart(parting, parting.start, True)
    error = max(errors)
    advice = "nothing to mend; compute with the same weights on both sides to see smaller differences"
    return Finding(mode, KIND, "verified", _TITLE, there, here, "", "", error, 0.0, advice, benign=True)


def _effect(
    graph: Graph,
    region: Iterable[int],
    read: Callable[[int], NDArray],
    equal: Collection[int],
    exits: Iterable[int],
) -> list[float]:
    """Return how far random errors of one unit of float32 in some weights move each exit, relative."""
    exits, region, most = list(exits), sorted(region), [0.0] * len(list(exits))
    rng = np.random.default_rng(0)
    used = {n for i in region for n in graph.operations[i].inputs}
    weights = [n for n in graph.names if n in used and n not in equal and _is_narrow(graph.values[n])]
    for _ in range(_DRAWS if weights else 0):
        made = {n: rules.perturbed(np.asarray(read(n)), _UNIT, rng) for n in weights}
        for i in region:
            operation = graph.operations[i]
            if i in graph.opaque or not any(n in made for n in operation.inputs):
                continue
            try:
                outputs = graph.evaluate(i, [made[n] if n in made else read(n) for n in operation.inputs])
            except (KeyError, rules.Unsupported):
                continue
            made.update(zip(operation.outputs, outputs, strict=False))
        most = [
            max(worst, relative(made[n], read(n)) if n in made else 0.0) for worst, n in zip(most, exits, strict=True)
        ]
    return most


def _is_narrow(array: NDArray) -> bool:
    """Return whether an array holds float32 numbers."""
    return array.dtype.kind == "f" and bool(np.array_equal(array.astype(np.float32), array, equal_nan=True))
