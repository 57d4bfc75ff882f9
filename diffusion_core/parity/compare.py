"""Comparison of the records of two frameworks; neither needs to be installed here.

A record is a directory::

    float64.json, float32.json      checks against the reference
    float64.npz, float32.npz        arrays, see `trace`
    float64/checkpoints/, ...       the state at the hand-over
    handover/float64.npz, ...       the results from the other framework's state
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.files.safe_read import file_errors, open_npz, read_json
from diffusion_core.parity import cases, edm2, target_cases
from diffusion_core.parity.ladder import TOLERANCES, Check, check, l2_of_all, relative, worst
from diffusion_core.parity.rungs import AVERAGES, HANDOVER_STEP, STEPS

__all__ = ["PRECISIONS", "compare_records", "load_arrays", "load_checks", "own_checks", "pixel_difference"]

PRECISIONS = ("float64", "float32")
Arrays = Mapping[str, NDArray]


def load_arrays(path: Path) -> dict[str, NDArray]:
    """Return the arrays of one file of a record.

    Raises:
        DuetError: if the file is missing or corrupted.
    """
    if not Path(path).is_file():
        raise DuetError(
            f"{path}: there is no such record; write it with experiments.trace (handover/ with handover=...)"
        )
    with open_npz(path, "a record of experiments.trace") as file:
        return dict(file)


def own_checks(directory: Path) -> list[Check]:
    """Return the checks of one framework against the reference, in all precisions."""
    return [c for precision in PRECISIONS for c in load_checks(Path(directory) / f"{precision}.json")]


def load_checks(path: Path) -> list[Check]:
    """Return the checks in one file of a record.

    Raises:
        DuetError: if the file is missing or corrupted.
    """
    names = ("rung", "name", "precision", "backend", "error", "tolerance", "unit")
    with file_errors(path, "it holds no checks of experiments.trace"):
        loaded = read_json(path)
        checks = [Check(**{name: entry[name] for name in names}) for entry in loaded["checks"]]
        # JSON has no infinity: an error that is not finite is stored as null and must still fail.
        return [
            replace(c, error=float("inf" if c.error is None else c.error), tolerance=float(c.tolerance)) for c in checks
        ]


def under(arrays: Arrays, prefix: str) -> dict[str, NDArray]:
    """Return the arrays whose names start with a prefix, by the rest of their names."""
    return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}


def differing(a: Arrays, b: Arrays) -> float:
    """Return the number of values whose bits differ; infinite if names, shapes or types differ."""
    if a.keys() != b.keys() or not a:
        return float("inf")
    total = 0
    for name in a:
        if np.shape(a[name]) != np.shape(b[name]) or a[name].dtype != b[name].dtype:
            return float("inf")
        x, y = np.ascontiguousarray(a[name]), np.ascontiguousarray(b[name])
        bits = f"u{x.dtype.itemsize}"
        total += int(np.count_nonzero(x.reshape(-1).view(bits) != y.reshape(-1).view(bits)))
    return total


def compare_records(paths: Sequence[Path], names: Sequence[str]) -> list[Check]:
    """Return all checks of every pair of records, and of every hand-over.

    A record holds one hand-over. With more than two records, it is compared with the record whose state it took over:
    the one whose bits match.
    """
    checks: list[Check] = []
    for precision in PRECISIONS:
        records = [load_arrays(Path(path) / f"{precision}.npz") for path in paths]
        for a, b in itertools.combinations(range(len(paths)), 2):
            checks += compare_arrays(records[a], records[b], precision, f"{names[a]}–{names[b]}")
        for taker in reversed(range(len(paths))):
            taken = load_arrays(Path(paths[taker]) / "handover" / f"{precision}.npz")
            state = under(taken, "8/taken over/")
            others = [k for k in range(len(paths)) if k != taker]
            source = min(others, key=lambda k: differing(under(records[k], "8/handed over/"), state))
            checks += compare_handover(records[source], taken, precision, f"{names[source]}–{names[taker]}")
    return checks


def pixel_difference(a: NDArray, b: NDArray, images: Sequence[NDArray] = (), allowed: float = 0.0) -> float:
    """Return the fraction of uint8 values that differ; infinite if one differs by more than 1, unlike rounding.

    A value such as 219.4999 in one framework and 219.5 in the other rounds to 219 and 220. Whether that happens depends
    on the processor and says nothing about the frameworks, so such a pair is not counted where the values before
    rounding are known: both must lie at the border of the two pixels, as near as the tolerance of images allows.

    Args:
        a: uint8 values.
        b: uint8 values of the same shape.
        images: the values in [-1, 1] that a and b were rounded from; none counts every difference.
        allowed: the tolerance of these values.

    Example:
        >>> low, high = np.array([219], np.uint8), np.array([220], np.uint8)
        >>> pixel_difference(low, high), pixel_difference(low, high, [np.array([219.4999 / 127.5 - 1])] * 2, 1e-4)
        (1.0, 0.0)
    """
    if a.shape != b.shape or not a.size or np.abs(a.astype(int) - b.astype(int)).max() > 1:
        return float("inf")
    differs = a != b
    if images:
        border = np.maximum(a, b) - 0.5
        differs &= ~np.all([np.abs(127.5 * (x + 1.0) - border) <= 127.5 * allowed for x in images], axis=0)
    return float(np.mean(differs))


def _add_check(checks: list[Check], precision: str, pair: str, rung: int, name: str, kind: str, error: float) -> None:
    checks.append(check(rung, name, precision, pair, kind, error))


def compare_arrays(a: Arrays, b: Arrays, precision: str, pair: str) -> list[Check]:
    """Return the checks of rungs 0, 2, 4 and 7, and of the likelihoods of rung 6, for two records."""
    checks: list[Check] = []
    judge = partial(_add_check, checks, precision, pair)
    for group in ("schedule", "process", "plan", "batch", "weights", "data order", "decays"):
        judge(0, group, "bits", differing(under(a, f"0/{group}"), under(b, f"0/{group}")))
    for case in cases.BLOCKS:
        error = _both(a, b, f"2/{case.name}/", l2_of_all)
        judge(2, f"{case.name}, gradient", f"block gradient{case.kind}", error)
    # All that either record has: a quick climb has only some, and a network that only one record has must fail.
    for title in _measured(a.keys() | b.keys()):
        judge(4, f"{title}, loss", "loss", _both(a, b, f"4/{title}, loss", worst))
        judge(4, title, "gradient", _both(a, b, f"4/{title}/", l2_of_all))
        judge(4, f"{title}, worst tensor", "gradient, worst tensor", _both(a, b, f"4/{title}/", worst))
    judge(4, "pullback", "gradient", _both(a, b, "4/pullback/", worst))
    for name, title in (("bound", "bound, every term"), ("density", "density of the flow")):
        judge(6, title, "likelihood", _both(a, b, f"6/likelihood/{name}", worst))
    for count in (10, STEPS):
        losses = [under(record, "7/losses").get("", np.full(STEPS, np.nan))[:count] for record in (a, b)]
        judge(7, f"loss of every step up to {count}", f"training loss, {count} steps", _worst_step(*losses))
    for step in (1, 10, STEPS):
        kind = f"training loss, {max(step, 10)} steps"
        if any(f"7/validation {step}" in record for record in (a, b)):  # records of earlier versions have none
            judge(7, f"validation loss after {step} steps", kind, _validation_difference(a, b, step))
        kind = f"training weights, {max(step, 10)} steps"
        judge(7, f"weights after {step} steps", kind, _both(a, b, f"7/weights {step}/", l2_of_all))
        for title in AVERAGES:
            judge(7, f"{title} after {step} steps", kind, _both(a, b, f"7/{title} {step}/", l2_of_all))
    if _has_edm2(a, b):  # records of earlier versions have none
        missing = np.full(edm2.STEPS, np.nan)
        losses = [record.get("7/EDM2 losses", missing) for record in (a, b)]
        judge(7, "EDM2, loss of every step", "training loss, 10 steps", _worst_step(*losses))
        for part in edm2.PARTS:
            error = _both(a, b, f"7/EDM2 {part}/", l2_of_all)
            judge(7, f"EDM2, {part} after 10 steps", "training weights, 10 steps", error)
    return checks


def _measured(names: Iterable[str]) -> list[str]:
    """Return the networks and losses that have an array among these names."""
    targets = [f"target {name}" for name in ("every kind of step", *target_cases.TRAINED)]
    known = (*cases.NETWORKS, *(case.name for case in cases.LOSSES), *targets)
    present = {name.removeprefix("4/").removesuffix(", loss").split("/")[0] for name in names if name.startswith("4/")}
    return [title for title in known if title in present]


def _sampled(names: Iterable[str]) -> list[str]:
    """Return the plans that have an array among these names, and the plans of a quick climb."""
    present = {name.split("/")[1] for name in names if name.startswith("6/")}
    return [plan for plan in cases.PLANS if plan in present or plan in cases.FEW_PLANS]


def compare_handover(uninterrupted: Arrays, taken: Arrays, precision: str, pair: str) -> list[Check]:
    """Return the checks of rungs 6 and 8: an uninterrupted run, and the other framework's run from its state."""
    checks: list[Check] = []
    judge = partial(_add_check, checks, precision, pair)
    # All that either record has, and at least those of a quick climb.
    for plan in _sampled(uninterrupted.keys() | taken.keys()):
        images = [under(record, f"6/{plan}/").get("images", np.full(1, np.nan)) for record in (uninterrupted, taken)]
        pixels = [under(record, f"6/{plan}/").get("pixels", np.zeros(0)) for record in (uninterrupted, taken)]
        judge(6, f"{plan}, images", "sampling", _largest_difference(*images))
        unrounded = images if all(x.shape == pixels[0].shape for x in images) else ()
        allowed = TOLERANCES["sampling"].allowed(precision) or 0.0
        judge(6, f"{plan}, uint8", "pixels", pixel_difference(*pixels, unrounded, allowed))
    paths = [under(record, "6/DDIM-50/trajectory").get("", np.full(1, np.nan)) for record in (uninterrupted, taken)]
    judge(6, "DDIM-50, every state", "sampling", _largest_difference(*paths))
    judge(
        8, "state taken over", "bits", differing(under(uninterrupted, "8/handed over/"), under(taken, "8/taken over/"))
    )
    error = l2_of_all(under(taken, "8/next step/"), under(uninterrupted, "8/uninterrupted/"))
    judge(8, "weights one step later", "next step", error)
    alone = under(uninterrupted, "7/losses").get("", np.full(STEPS, np.nan))[HANDOVER_STEP:]
    after = under(taken, "8/losses").get("", np.full(STEPS - HANDOVER_STEP, np.nan))
    judge(8, f"loss of every step up to {STEPS}", f"training loss, {STEPS} steps", _worst_step(after, alone))
    for part in ("weights", *AVERAGES):
        error = l2_of_all(under(taken, f"8/final {part}/"), under(uninterrupted, f"7/{part} {STEPS}/"))
        judge(8, f"{part} after {STEPS} steps", f"training weights, {STEPS} steps", error)
    if _has_edm2(uninterrupted, taken):
        error = differing(under(uninterrupted, "8/EDM2 handed over/"), under(taken, "8/EDM2 taken over/"))
        judge(8, "EDM2, state taken over", "bits", error)
        alone = uninterrupted.get("7/EDM2 losses", np.full(edm2.STEPS, np.nan))[edm2.HANDOVER :]
        after = taken.get("8/EDM2 losses", np.full(edm2.STEPS - edm2.HANDOVER, np.nan))
        judge(8, "EDM2, loss of every step", "training loss, 10 steps", _worst_step(after, alone))
        for part in edm2.PARTS:
            error = l2_of_all(under(taken, f"8/EDM2 final {part}/"), under(uninterrupted, f"7/EDM2 {part}/"))
            judge(8, f"EDM2, {part} after 10 steps", "training weights, 10 steps", error)
    return checks


def _has_edm2(*records: Arrays) -> bool:
    return any(name[2:].startswith("EDM2 ") for record in records for name in record)


def _validation_difference(a: Arrays, b: Arrays, step: int) -> float:
    """Return the largest relative difference of a validation loss; infinite if one record has none."""
    missing = np.full(1, np.nan)
    return _worst_step(*(under(record, f"7/validation {step}").get("", missing) for record in (a, b)))


def _worst_step(a: NDArray, b: NDArray) -> float:
    """Return the largest relative difference of one number per step; infinite if the numbers of steps differ."""
    return max(map(relative, a, b)) if a.shape == b.shape and a.size else float("inf")


def _largest_difference(a: NDArray, b: NDArray) -> float:
    """Return the largest difference; infinite if the shapes differ."""
    return float(np.abs(a - b).max()) if a.shape == b.shape else float("inf")


def _both(a: Arrays, b: Arrays, prefix: str, measure: Callable[[Arrays, Arrays], float]) -> float:
    """Apply a measure to the arrays under a prefix in both records."""
    return measure(under(a, prefix), under(b, prefix))
