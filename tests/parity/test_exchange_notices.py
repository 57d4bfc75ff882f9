"""No array of a record can be wrong without a check of its rung that fails.

Each test spoils one array at a time: the comparison is fed with nothing but the group that the array belongs to.
The checks that pass then are those of the group, and one of them must fail once the array is spoilt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial

import numpy as np
import pytest

from diffusion_core.parity import cases, edm2
from diffusion_core.parity.compare import PRECISIONS, compare_arrays, compare_handover, under
from diffusion_core.parity.ladder import Check
from diffusion_core.parity.rungs import AVERAGES, STEPS

pytestmark = pytest.mark.exchange

# Names of the same array in a record and in the hand-over of the other framework.
TAKEN = {
    "8/handed over/": "8/taken over/",
    "8/uninterrupted/": "8/next step/",
    f"7/weights {STEPS}/": "8/final weights/",
    **{f"7/{title} {STEPS}/": f"8/final {title}/" for title in AVERAGES},
    "7/losses": "8/losses",
    "8/EDM2 handed over/": "8/EDM2 taken over/",
    **{f"7/EDM2 {part}/": f"8/EDM2 final {part}/" for part in edm2.PARTS},
    "7/EDM2 losses": "8/EDM2 losses",
} | {f"6/{plan}/": f"6/{plan}/" for plan in cases.PLANS}


@dataclass(frozen=True)
class Pair:
    """The arrays of one group in two records."""

    group: str
    one: dict[str, np.ndarray]
    two: dict[str, np.ndarray]
    judge: Callable[[dict, dict], list[Check]]

    def passing(self, two: dict[str, np.ndarray]) -> list[Check]:
        """The checks that pass of the first record and another one."""
        with np.errstate(all="ignore"):
            return [c for c in self.judge(self.one, two) if c.passed]

    @cached_property
    def whole(self) -> list[Check]:
        """The checks that pass of the records as they are."""
        return self.passing(self.two)


def group_of(name: str) -> str:
    """The part of an array's name that says what it is compared with."""
    rung, rest = name.split("/", 1)
    if rung == "0" or "/" not in rest:
        return name
    return f"{rung}/{rest.split('/')[0]}/"


@cache
def pairs(exchange, precision: str) -> tuple[Pair, ...]:
    """Every group of the records, once from lock step and once, where it is part of it, from the hand-over."""
    torch, tf = exchange.arrays[f"torch/{precision}"], exchange.arrays[f"tf/{precision}"]
    taken = exchange.arrays[f"tf/handover/{precision}"]

    def group(record: dict, prefix: str) -> dict:
        return {prefix + rest: array for rest, array in under(record, prefix).items()}

    def judged_by(compare: Callable, name: str, one: dict, other: str, two: dict) -> Pair:
        judge = partial(compare, precision=precision, pair="torch–tf")
        return Pair(other, group(one, name), group(two, other), judge)

    names = [name for name in dict.fromkeys(map(group_of, torch)) if name[0] in "0247" or name == "6/likelihood/"]
    return (
        *(judged_by(compare_arrays, name, torch, name, tf) for name in names),
        *(judged_by(compare_handover, name, torch, other, taken) for name, other in TAKEN.items()),
    )


def some(arrays: dict[str, np.ndarray]) -> list[str]:
    """At most twelve names, evenly spread, the first and the last among them."""
    names = list(arrays)
    return [names[i] for i in sorted(set(np.linspace(0, len(names) - 1, 12).astype(int)))]


def one_value(array: np.ndarray, size: float) -> np.ndarray:
    """Return the array with its middle value raised by `size`; a pixel by 128, since 255 more is 1 less."""
    spoilt = array.copy()
    flat = spoilt.reshape(-1)
    flat[flat.size // 2] += np.asarray(128 if array.dtype == np.uint8 else max(size, 1)).astype(array.dtype)
    return spoilt


def not_a_number(array: np.ndarray, size: float) -> np.ndarray:
    """Return the array with one NaN; integers, which have none, are changed instead."""
    if array.dtype.kind != "f":
        return one_value(array, size)
    spoilt = array.copy()
    spoilt.reshape(-1)[-1] = np.nan
    return spoilt


SPOILT = {
    "one value": one_value,
    "not a number": not_a_number,
    "one value less": lambda array, size: array.reshape(-1)[:-1],
    "another type": lambda array, size: (array.astype(np.float64) + 0.5).astype(np.float16),
}


# Which arrays are looked at does not depend on the precision; how large a difference is noticed does.
@pytest.mark.parametrize(
    ("fault", "precision"),
    [*(("one value", precision) for precision in PRECISIONS), *((fault, "float32") for fault in list(SPOILT)[1:])],
)
def test_no_group_of_arrays_is_left_out(exchange, fault, precision):
    unseen = []
    for pair in pairs(exchange, precision):
        size = max(float(np.abs(array.astype(np.float64)).max()) for array in pair.two.values())
        for name in some(pair.two):
            spoilt = SPOILT[fault](pair.two[name], size)
            if len(pair.passing(pair.two | {name: spoilt})) >= len(pair.whole):
                unseen.append(name)
    assert not unseen


@pytest.mark.parametrize("precision", ["float32"])
def test_a_missing_or_renamed_array_is_detected(exchange, precision):
    unseen = []
    for pair in pairs(exchange, precision):
        for name in (next(iter(pair.two)), list(pair.two)[-1]):
            without = {other: array for other, array in pair.two.items() if other != name}
            for spoilt in (without, without | {f"{name} ": pair.two[name]}):
                if len(pair.passing(spoilt)) >= len(pair.whole):
                    unseen.append(name)
    assert not unseen


@pytest.mark.parametrize("precision", PRECISIONS)
def test_transposed_axes_and_swapped_names_are_detected(exchange, precision):
    transposed = swapped = 0
    unseen = []
    for pair in pairs(exchange, precision):
        names = some({name: array for name, array in pair.two.items() if array.ndim > 1} or pair.two)
        for name in names:
            array = pair.two[name]
            turned = array.swapaxes(-1, -2) if array.ndim > 1 else array
            if turned.shape == array.shape and not np.array_equal(turned, array):
                transposed += 1
                if len(pair.passing(pair.two | {name: turned})) >= len(pair.whole):
                    unseen.append(f"{name}, transposed")
            for other in names:
                if other > name and pair.two[other].shape == array.shape and not np.array_equal(pair.two[other], array):
                    swapped += 1
                    if len(pair.passing(pair.two | {name: pair.two[other], other: array})) >= len(pair.whole):
                        unseen.append(f"{name} for {other}")
                    break
    assert not unseen
    assert transposed > 50 and swapped > 20


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_array_belongs_to_a_check_of_its_own_rung(exchange, precision):
    seen: set[str] = set()
    for pair in pairs(exchange, precision):
        checks = pair.whole
        assert checks, f"nothing looks at {pair.group}"
        assert {c.rung for c in checks} == {int(pair.group[0])}, pair.group
        seen |= pair.one.keys() | pair.two.keys()
    recorded = exchange.arrays[f"torch/{precision}"].keys() | exchange.arrays[f"tf/handover/{precision}"].keys()
    assert seen == recorded
