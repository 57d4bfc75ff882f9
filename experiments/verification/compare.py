"""Two results of one segment: equal bits, or a difference within what rounding does.

Where bits must be equal, every array, every logged number and every option that a checkpoint notes must be equal.

Where they cannot be, as in the other framework, the segment is computed again by the same means from inputs that are
moved by one unit in the last place: the first weights, and the images and the noise of every batch, each number up or
down at random. These *twins* show what rounding alone does to each array and each number. With d the largest difference
of an array over the largest magnitude in it,

    bound = margin * max over twins of d(twin, replay),

at least that of a typical array of its kind (the median over the arrays of the part), since a small array may be spared
in all twins, and at least four units in the last place. A run that was computed as recorded lies within the bound; a
change that is smaller than the bound is not found.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["MARGIN", "Arrays", "Bounds", "Difference", "bit_differences", "distance", "record_differences"]

# Arrays by part (weights, ema, moment1 ...) and name.
Arrays = Mapping[str, Mapping[str, NDArray]]
Records = Sequence[Mapping[str, float]]
MARGIN = 10.0
_ULPS = 4  # the least bound, in units in the last place
# What the core computes in float64, whatever the framework; functions such as exp may differ in the last place.
_EXACT = 1e-12


@dataclass(frozen=True)
class Difference:
    """A quantity that differs from the record.

    Args:
        what: the array or the number, with its moment.
        size: the difference, relative to the largest magnitude; None if it is not a difference of numbers.
        bound: what is allowed; 0 where bits must be equal.
        detail: how it differs.
    """

    what: str
    size: float | None
    bound: float
    detail: str

    @property
    def is_within(self) -> bool:
        """Whether the difference is allowed."""
        return self.size is not None and self.bound > 0.0 and self.size <= self.bound

    @property
    def ratio(self) -> float:
        """The difference over the bound."""
        return math.inf if self.size is None or not self.bound else self.size / self.bound

    def __str__(self) -> str:
        return f"{self.what}: {self.detail}"


@dataclass(frozen=True)
class Bounds:
    """What rounding does to a segment, measured by twins.

    Args:
        arrays: by moment, part and name, the largest relative difference of a twin.
        records: by name of a metric, the same over all steps.
        margin: by which a bound exceeds them.
        twins: their number.
        eps: the unit in the last place of the precision.
    """

    arrays: Mapping[int, Mapping[str, Mapping[str, float]]]
    records: Mapping[str, float]
    margin: float
    twins: int
    eps: float

    @property
    def least(self) -> float:
        """The least bound: units in the last place of the largest number."""
        return _ULPS * self.eps

    def of_array(self, moment: int, part: str, name: str) -> float:
        """Return the bound of an array."""
        own = self.arrays[moment].get(part, {})
        typical = float(np.median(list(own.values()))) if own else 0.0
        return max(self.margin * max(own.get(name, 0.0), typical), self.least)

    def of_record(self, name: str) -> float:
        """Return the bound of a metric."""
        return max(self.margin * self.records.get(name, 0.0), self.least)

    @staticmethod
    def from_twins(
        replay: tuple[Mapping[int, Arrays], Records],
        twins: Sequence[tuple[Mapping[int, Arrays], Records]],
        margin: float,
        eps: float,
    ) -> Bounds:
        """Return the bounds of a segment, from the arrays by moment and the records of its replay and its twins."""
        states, records = replay
        largest = {
            moment: {
                part: {
                    name: max(distance(twin[moment][part][name], value) for twin, _ in twins)
                    for name, value in values.items()
                }
                for part, values in arrays.items()
            }
            for moment, arrays in states.items()
        }
        names = dict.fromkeys(name for record in records for name in record)
        return Bounds(
            largest,
            {name: max(_largest(name, records, other) for _, other in twins) for name in names},
            margin,
            len(twins),
            eps,
        )


def distance(a: NDArray, b: NDArray) -> float:
    """Return the largest difference over the largest magnitude of `b`; infinite for other shapes or lost numbers."""
    if a.shape != b.shape:
        return math.inf
    if np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
        return 0.0
    difference = np.max(np.abs(a.astype(np.float64) - b.astype(np.float64)))
    size = float(np.max(np.abs(b))) or float(np.max(np.abs(a))) or 1.0
    return float(difference) / size if np.isfinite(difference) else math.inf


def _largest(name: str, records: Records, others: Records) -> float:
    """Return the largest relative difference of a metric over all steps."""
    pairs = ((one.get(name), other.get(name)) for one, other in zip(records, others, strict=False))
    return max((_relative(a, b) for a, b in pairs if a is not None and b is not None), default=0.0)


def _relative(a: float, b: float) -> float:
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    size = abs(a - b) / (max(abs(a), abs(b)) or 1.0)
    return size if math.isfinite(size) else math.inf


def bit_differences(found: Arrays, recorded: Arrays, moment: int, bounds: Bounds | None = None) -> Iterator[Difference]:
    """Yield the arrays whose bits differ from those recorded, in the order of the record, with bounds if there are any.

    Args:
        found: in the replay.
        recorded: in the record.
        moment: in images seen.
        bounds: what is allowed; None allows nothing.
    """
    for part, values in recorded.items():
        mine = found.get(part, {})
        for name, value in values.items():
            what = f"{part}, {name}, at {moment:,} images"
            if name not in mine:
                yield Difference(what, None, 0.0, "the replay has no such array")
            elif mine[name].shape != value.shape or mine[name].dtype != value.dtype:
                shapes = f"{value.dtype} {value.shape} recorded, {mine[name].dtype} {mine[name].shape} replayed"
                yield Difference(what, None, 0.0, shapes)
            elif mine[name].tobytes() != value.tobytes():
                size, count = distance(value, mine[name]), _count(mine[name], value)
                bound = 0.0 if bounds is None else bounds.of_array(moment, part, name)
                detail = f"{count:,} of {value.size:,} numbers differ, by {size:.2g} of the largest number at most"
                yield Difference(what, size, bound, detail + (f"; the bound is {bound:.2g}" if bounds else ""))
    for part, values in found.items():
        for name in values.keys() - recorded.get(part, {}).keys():
            yield Difference(f"{part}, {name}, at {moment:,} images", None, 0.0, "the record has no such array")


def _count(a: NDArray, b: NDArray) -> int:
    """Return how many elements of two arrays of one type differ in a bit, as 0.0 and -0.0 do."""
    return int(np.any(_bytes(a) != _bytes(b), axis=-1).sum())


def _bytes(array: NDArray) -> NDArray[np.uint8]:
    return np.frombuffer(array.tobytes(), np.uint8).reshape(array.size, array.itemsize)


def record_differences(found: Records, recorded: Records, bounds: Bounds | None) -> Iterator[Difference]:
    """Yield every logged number that differs from the record; without bounds, every bit counts."""
    moments = [[record["images_seen"] for record in records] for records in (found, recorded)]
    if moments[0] != moments[1]:
        yield Difference("metrics", None, 0.0, _steps(*moments))
        return
    for mine, theirs in zip(found, recorded, strict=True):
        for name in dict.fromkeys((*theirs, *mine)):
            what = f"{name} at {mine['images_seen']:,} images"
            if name not in mine or name not in theirs:
                yield Difference(what, None, 0.0, "it is " + ("not recorded" if name in mine else "not in the replay"))
            elif (size := _relative(mine[name], theirs[name])) > 0.0:
                bound = 0.0 if bounds is None else max(_EXACT, bounds.of_record(name) if _is_rounded(name) else 0.0)
                allowed = f"; it differs by {size:.2g}, the bound is {bound:.2g}" if bounds else ""
                yield Difference(what, size, bound, f"recorded {theirs[name]:.9g}, replayed {mine[name]:.9g}{allowed}")


def _is_rounded(name: str) -> bool:
    """Return whether a framework computes a metric; the others are functions of images seen, in float64."""
    return name in ("loss", "grad_norm") or name.startswith("validation")


def _steps(found: Sequence[float], recorded: Sequence[float]) -> str:
    """Return which steps only one of both has."""
    missing, more = sorted({*found} - {*recorded}), sorted({*recorded} - {*found})
    if missing or more:
        parts = [f"the record lacks the step to {missing[0]:,} images"] if missing else []
        parts += [f"the record has a step to {more[0]:,} images, which the run does not make"] if more else []
        return "; ".join(parts)
    return "the record has steps twice, or in another order"
