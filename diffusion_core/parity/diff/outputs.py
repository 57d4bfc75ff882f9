"""The recorded outputs of both sides beside each other: how far they are apart in each pass, and notes on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff.alignment import Alignment
from diffusion_core.parity.diff.exits import likely_layout
from diffusion_core.parity.diff.graph import relative
from diffusion_core.parity.diff.recording import Pass, Recording

__all__ = ["RecordedOutputs", "apart_by_chance", "notes_of", "recorded_outputs", "shared_weights"]

_PASSES = ("float64", "float32", "train64", "train32")
# A float32 pass that is so many times further from its float64 pass than the other side's, and so far at all, has parts
# in a lower precision.
_TIMES, _LOWER = 50.0, 1e-4


@dataclass(frozen=True)
class RecordedOutputs:
    """What the recorded outputs are.

    Attributes:
        errors: of each pair of outputs, by A's name: the relative difference by pass name.
        histograms: both outputs, of the first pass that both sides have.
        notes: in words.
    """

    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    histograms: dict[str, tuple[NDArray, NDArray]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def recorded_outputs(
    a: Mapping[str, Pass], b: Mapping[str, Pass], pairs: Sequence[tuple[str, str]] | None
) -> RecordedOutputs:
    """Compare the recorded outputs of two sides.

    Args:
        a, b: the passes by name.
        pairs: names of the outputs that belong together; None pairs them in order.
    """
    found, notes = RecordedOutputs(), []
    for name in [each for each in _PASSES if each in a and each in b]:
        one, other = a[name], b[name]
        if apart_by_chance(one, other):
            continue
        for there, here in zip(one.outputs, other.outputs, strict=False) if pairs is None else pairs:
            if there not in one.outputs or here not in other.outputs:
                continue
            x, y = np.asarray(one.values[one.outputs[there]]), np.asarray(other.values[other.outputs[here]])
            found.errors.setdefault(there or "output", {})[name] = _apart(x, y)
            found.histograms.setdefault(there or "output", (x, y))
            missing = [float(np.mean(~np.isfinite(array))) if array.dtype.kind in "fc" else 0.0 for array in (x, y)]
            if any(missing) and name in ("float64", "float32"):
                shares = " and ".join(f"{share:.0%} in {side}" for side, share in zip("AB", missing, strict=True))
                notes.append(f"numbers of the output {there!r} are NaN or infinite: {shares}")
    return RecordedOutputs(found.errors, found.histograms, tuple(dict.fromkeys([*notes, *_lower(a, b)])))


def _apart(x: NDArray, y: NDArray) -> float:
    return relative(y, likely_layout(x, y)(x) if x.size == y.size else x)


def _lower(a: Mapping[str, Pass], b: Mapping[str, Pass]) -> list[str]:
    """Say that a side computes in less than float32, which its float64 pass does not show."""
    if not all({"float64", "float32"} <= set(side) for side in (a, b)):
        return []
    far = []
    for side in (a, b):
        wide, narrow = side["float64"], side["float32"]
        pairs = [
            (wide.values[n], narrow.values[narrow.outputs[k]]) for k, n in wide.outputs.items() if k in narrow.outputs
        ]
        far.append(max((relative(y.astype(x.dtype), x) for x, y in pairs if x.shape == y.shape), default=0.0))
    for label, mine, others in (("A", *far), ("B", *far[::-1])):
        if np.isfinite(mine) and mine > _LOWER and mine > _TIMES * max(others, 2.0**-23):
            return [
                f"{label} computes parts in less than float32: its float32 pass is {mine:.1e} from its float64 pass, "
                f"that of the other side {others:.1e}"
            ]
    return []


def apart_by_chance(a: Pass, b: Pass) -> bool:
    """Return whether both passes drew random numbers, and not the same."""
    sides = [[o.outputs[0] for o in each.operations if o.kind == "random"] for each in (a, b)]
    if not all(sides):
        return False
    drawn = [
        [np.asarray(each.values[n]) for n in found if n in each.values]
        for each, found in zip((a, b), sides, strict=True)
    ]
    return len(drawn[0]) != len(drawn[1]) or any(
        x.shape != y.shape or not np.array_equal(x, y) for x, y in zip(*drawn, strict=True)
    )


def shared_weights(alignment: Alignment, many: bool) -> list[str]:
    """Say that two sides with different outputs have no weights in common.

    Args:
        alignment: of the parameters.
        many: whether differences were found.
    """
    kernels = [pair for pair in alignment.pairs if pair.b_array.ndim >= 2 and np.ptp(pair.b_array) > 0]
    shared = [pair for pair in kernels if pair.status != "by place only"]
    if not many or shared or alignment.derived or not kernels:
        return []
    return ["the two sides have no weights in common; --copy-weights a-to-b (copy_weights=) writes A's into B first"]


def notes_of(a: Recording, b: Recording) -> list[str]:
    """Return the notes of both recordings, each with the side that it is about."""
    sides = {note: [] for note in (*a.notes, *b.notes)}
    for label, side in (("A", a), ("B", b)):
        for note in dict.fromkeys(side.notes):
            sides[note].append(label)
    return [f"{' and '.join(labels)}: {note}" for note, labels in sides.items()]
