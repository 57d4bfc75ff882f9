"""Comparing the records of two frameworks, which need not be installed where this runs.

A record lies in a directory::

    float64.json, float32.json      checks against the reference
    float64.npz, float32.npz        arrays, see `trace`
    float64/checkpoints/, ...       the state at the hand-over
    handover/float64.npz, ...       what it did with the other framework's state
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.files.safe_read import file_errors, open_npz, read_json
from diffusion_core.parity import cases
from diffusion_core.parity.ladder import Check, check, l2_of_all, relative, worst
from diffusion_core.parity.trace import AVERAGES, HANDOVER_STEP, STEPS

__all__ = ["PRECISIONS", "compare_records", "load_arrays", "load_checks", "own_checks", "pixels_apart"]

PRECISIONS = ("float64", "float32")
Arrays = Mapping[str, NDArray]


def load_arrays(path: Path) -> dict[str, NDArray]:
    """The arrays of one file of a record.

    Raises:
        DuetError: if it is missing or corrupt.
    """
    if not Path(path).is_file():
        raise DuetError(
            f"{path}: there is no such record; write it with experiments.trace (handover/ with handover=...)"
        )
    with open_npz(path, "a record of experiments.trace") as file:
        return dict(file)


def own_checks(directory: Path) -> list[Check]:
    """The checks that one framework did against the reference, of all precisions."""
    return [c for precision in PRECISIONS for c in load_checks(Path(directory) / f"{precision}.json")]


def load_checks(path: Path) -> list[Check]:
    """The checks in one file of a record.

    Raises:
        DuetError: if it is missing or corrupt.
    """
    names = ("rung", "name", "precision", "backend", "error", "tolerance", "unit")
    with file_errors(path, "it holds no checks of experiments.trace"):
        loaded = read_json(path)
        checks = [Check(**{name: entry[name] for name in names}) for entry in loaded["checks"]]
        # JSON has no infinity: an error that was not a finite number comes back as null, and must still fail.
        return [
            replace(c, error=float("inf" if c.error is None else c.error), tolerance=float(c.tolerance)) for c in checks
        ]


def under(arrays: Arrays, prefix: str) -> dict[str, NDArray]:
    """The arrays below a name, by the rest of their names."""
    return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}


def differing(a: Arrays, b: Arrays) -> float:
    """How many values are not equal bits; infinite where names, shapes or types differ."""
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
        whole = [load_arrays(Path(path) / f"{precision}.npz") for path in paths]
        for a, b in itertools.combinations(range(len(paths)), 2):
            checks += compare_arrays(whole[a], whole[b], precision, f"{names[a]}–{names[b]}")
        for taker in reversed(range(len(paths))):
            taken = load_arrays(Path(paths[taker]) / "handover" / f"{precision}.npz")
            state = under(taken, "8/taken over/")
            others = [k for k in range(len(paths)) if k != taker]
            source = min(others, key=lambda k: differing(under(whole[k], "8/handed over/"), state))
            checks += compare_handover(whole[source], taken, precision, f"{names[source]}–{names[taker]}")
    return checks


def pixels_apart(a: NDArray, b: NDArray) -> float:
    """The share of uint8 values that differ; infinite where one differs by more than 1, which no rounding does."""
    if a.shape != b.shape or not a.size or np.abs(a.astype(int) - b.astype(int)).max() > 1:
        return float("inf")
    return float(np.mean(a != b))


def compare_arrays(a: Arrays, b: Arrays, precision: str, pair: str) -> list[Check]:
    """Rungs 0, 2, 4 and 7 of two records, and likelihoods of rung 6."""
    checks: list[Check] = []

    def judge(rung: int, name: str, kind: str, error: float) -> None:
        checks.append(check(rung, name, precision, pair, kind, error))

    for group in ("schedule", "process", "plan", "batch", "weights", "data order", "decays"):
        judge(0, group, "bits", differing(under(a, f"0/{group}"), under(b, f"0/{group}")))
    for case in cases.BLOCKS:
        error = _both(a, b, f"2/{case.name}/", l2_of_all)
        judge(2, f"{case.name}, gradient", f"block gradient{case.kind}", error)
    # Those that either record has: the short ladder has only some, and one that only one side has must not pass.
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
        kind = f"training weights, {max(step, 10)} steps"
        judge(7, f"weights after {step} steps", kind, _both(a, b, f"7/weights {step}/", l2_of_all))
        for title in AVERAGES:
            judge(7, f"{title} after {step} steps", kind, _both(a, b, f"7/{title} {step}/", l2_of_all))
    return checks


def _measured(names: Iterable[str]) -> list[str]:
    """The networks and losses that have any array under these names."""
    known = (*cases.NETWORKS, *(case.name for case in cases.LOSSES))
    found = {name.removeprefix("4/").removesuffix(", loss").split("/")[0] for name in names if name.startswith("4/")}
    return [title for title in known if title in found]


def _sampled(names: Iterable[str]) -> list[str]:
    """The plans that have any array under these names, and those that every record has."""
    found = {name.split("/")[1] for name in names if name.startswith("6/")}
    return [plan for plan in cases.PLANS if plan in found or plan in cases.FEW_PLANS]


def compare_handover(whole: Arrays, taken: Arrays, precision: str, pair: str) -> list[Check]:
    """Rungs 6 and 8: what one framework did alone, and what the other did with its weights and its state."""
    checks: list[Check] = []

    def judge(rung: int, name: str, kind: str, error: float) -> None:
        checks.append(check(rung, name, precision, pair, kind, error))

    # As with the networks: those that either record has, and at least those of the short ladder.
    for plan in _sampled(whole.keys() | taken.keys()):
        images = [under(record, f"6/{plan}/").get("images", np.full(1, np.nan)) for record in (whole, taken)]
        pixels = [under(record, f"6/{plan}/").get("pixels", np.zeros(0)) for record in (whole, taken)]
        judge(6, f"{plan}, images", "sampling", _apart(*images))
        judge(6, f"{plan}, uint8", "pixels", pixels_apart(*pixels))
    paths = [under(record, "6/DDIM-50/trajectory").get("", np.full(1, np.nan)) for record in (whole, taken)]
    judge(6, "DDIM-50, every state", "sampling", _apart(*paths))
    judge(8, "state taken over", "bits", differing(under(whole, "8/handed over/"), under(taken, "8/taken over/")))
    error = l2_of_all(under(taken, "8/next step/"), under(whole, "8/uninterrupted/"))
    judge(8, "weights one step later", "next step", error)
    alone = under(whole, "7/losses").get("", np.full(STEPS, np.nan))[HANDOVER_STEP:]
    after = under(taken, "8/losses").get("", np.full(STEPS - HANDOVER_STEP, np.nan))
    judge(8, f"loss of every step up to {STEPS}", f"training loss, {STEPS} steps", _worst_step(after, alone))
    for part in ("weights", *AVERAGES):
        error = l2_of_all(under(taken, f"8/final {part}/"), under(whole, f"7/{part} {STEPS}/"))
        judge(8, f"{part} after {STEPS} steps", f"training weights, {STEPS} steps", error)
    return checks


def _worst_step(a: NDArray, b: NDArray) -> float:
    """The largest relative difference of a number per step; infinite where the steps are not as many."""
    return max(map(relative, a, b)) if a.shape == b.shape and a.size else float("inf")


def _apart(a: NDArray, b: NDArray) -> float:
    """The largest difference; infinite where the shapes differ."""
    return float(np.abs(a - b).max()) if a.shape == b.shape else float("inf")


def _both(a: Arrays, b: Arrays, prefix: str, measure: Callable[[Arrays, Arrays], float]) -> float:
    """A measure of what lies under a name in both records."""
    return measure(under(a, prefix), under(b, prefix))
