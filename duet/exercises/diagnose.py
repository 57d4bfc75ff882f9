"""What a wrong result is: whose wrong numbers it has, or how it differs from the right ones.

A mistake of the catalogue is named if one of its wrong solutions gives the student's numbers in every case, and fails
where the student's function fails. If none does, the cases are taken one by one. Patterns of any exercise come last:
two arguments exchanged, a constant factor, axes in another order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from duet.exercises.calls import Caller
from duet.exercises.definition import Exercise, errors

__all__ = ["Diagnosis", "Outcome", "diagnose", "solve"]


_NUMBERS = "fiub"


@dataclass(frozen=True)
class Outcome:
    """What a solution gave in one case: arrays, or the exception that it raised."""

    arrays: tuple[NDArray, ...] = ()
    error: Exception | None = None

    def agrees(self, other: Outcome, tolerance: float) -> bool:
        """Return whether both raised, or both have the same numbers, NaN where the other is NaN."""
        if self.error or other.error or len(self.arrays) != len(other.arrays):
            return bool(self.error and other.error)
        return all(_same(a, b, tolerance) for a, b in zip(self.arrays, other.arrays, strict=True))


def _same(got: NDArray, expected: NDArray, tolerance: float) -> bool:
    if got.shape != expected.shape:
        return False
    if got.dtype.kind not in _NUMBERS or expected.dtype.kind not in _NUMBERS:
        return got.dtype == expected.dtype  # such as None twice: objects are compared by type
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(got)):
        return False
    return not finite.any() or bool(np.all(errors(got[finite], expected[finite]) <= tolerance))


@dataclass(frozen=True)
class Diagnosis:
    """The recognised mistakes by name, and what to tell the student about them."""

    names: tuple[str, ...]
    lines: tuple[str, ...]


def solve(solution: Callable[..., Any], arguments: Mapping[str, Any], caller: Caller) -> Outcome:
    """Return what a right solution gives in one case, in the layout of the student."""
    with np.errstate(all="ignore"):
        result = solution(*arguments.values())
    return Outcome(tuple(caller.expected(array) for array in caller.arrays(result)))


def _solve_wrongly(solution: Callable[..., Any], arguments: Mapping[str, Any], caller: Caller) -> Outcome:
    """Return what a wrong solution gives, which may fail where the student's does."""
    try:
        return solve(solution, arguments, caller)
    except Exception as error:
        return Outcome(error=error)


def diagnose(
    caller: Caller, outcomes: Mapping[str, Outcome], right: Mapping[str, Outcome], tolerance: float
) -> Diagnosis:
    """Return the mistakes that explain the outcomes of a student's function.

    Args:
        caller: of the function.
        outcomes: of the function, by case.
        right: those of the reference.
        tolerance: of the errors.
    """
    exercise = caller.exercise
    wrong_cases = {case for case in outcomes if not outcomes[case].agrees(right[case], tolerance)}
    explained: dict[str, set[str]] = {}
    for mistake in exercise.mistakes:
        for solution in mistake.solutions:
            solved = {case: _solve_wrongly(solution, arguments, caller) for case, arguments in exercise.cases.items()}
            matched = {case for case in outcomes if outcomes[case].agrees(solved[case], tolerance)}
            if matched == set(outcomes) and not all(outcomes[case].error for case in outcomes):
                return Diagnosis((mistake.name,), (mistake.sentence,))
            # A failure alone says nothing: functions fail for many reasons.
            here = {case for case in matched & wrong_cases if not outcomes[case].error}
            explained[mistake.name] = max(explained.get(mistake.name, set()), here, key=len)
    if general := _general(caller, outcomes, right, tolerance):
        return general
    return _case_by_case(exercise, explained, wrong_cases)


def _case_by_case(exercise: Exercise, explained: Mapping[str, set[str]], wrong_cases: set[str]) -> Diagnosis:
    """Return the fewest mistakes that explain the most of the wrong cases, each with the cases that it explains."""
    names, lines, left = [], [], set(wrong_cases)
    while explained and left:
        name = max(explained, key=lambda name: len(explained[name] & left))
        if not (cases := explained[name] & left):
            break
        shown = "; ".join(case for case in exercise.cases if case in cases)
        names.append(name)
        lines.append(f"In this case ({shown}): {exercise.mistake(name).sentence}")
        left -= cases
    return Diagnosis(tuple(names), tuple(lines))


def _general(
    caller: Caller, outcomes: Mapping[str, Outcome], right: Mapping[str, Outcome], tolerance: float
) -> Diagnosis | None:
    """Return a pattern of any exercise that explains every case; None if there is none."""
    if any(outcome.error for outcome in outcomes.values()):
        return None
    exercise = caller.exercise
    for a, b in _exchangeable(exercise):
        exchanged = {
            case: _solve_wrongly(exercise.reference, _exchange(arguments, a, b), caller)
            for case, arguments in exercise.cases.items()
        }
        if all(outcomes[case].agrees(exchanged[case], tolerance) for case in outcomes):
            return Diagnosis(
                ("arguments_exchanged",),
                (f"The arguments {a} and {b} are exchanged; the exercise calls {exercise.signature}.",),
            )
    if returned := _unchanged(exercise, outcomes, caller, tolerance):
        return returned
    pairs = [(outcomes[case].arrays, right[case].arrays) for case in outcomes]
    if any(len(got) != len(wanted) for got, wanted in pairs):
        return None
    if len(pairs[0][0]) > 1 and (order := _output_order(pairs, tolerance)):
        return Diagnosis(("results_exchanged",), (f"The results are right, but their order must be {order}.",))
    flat = [(g, w) for got, wanted in pairs for g, w in zip(got, wanted, strict=True)]
    if reordered := _axes(flat, tolerance):
        return reordered
    if any(g.shape != w.shape or g.dtype.kind not in "fiu" for g, w in flat):
        return None
    return _factor(flat, tolerance)


def _unchanged(
    exercise: Exercise, outcomes: Mapping[str, Outcome], caller: Caller, tolerance: float
) -> Diagnosis | None:
    """Recognise a result of zeros, or one that is an argument."""
    arrays = [array for outcome in outcomes.values() for array in outcome.arrays]
    if all(array.size and array.dtype.kind in _NUMBERS and not np.any(array) for array in arrays):
        return Diagnosis(("zeros",), ("Every number is 0.",))
    for name in exercise.parameters:
        given = {case: arguments[name] for case, arguments in exercise.cases.items()}
        if all(isinstance(value, np.ndarray) for value in given.values()) and all(
            outcomes[case].agrees(Outcome((caller.expected(given[case]),)), tolerance) for case in outcomes
        ):
            return Diagnosis(("argument_returned",), (f"The result is the argument {name} itself.",))
    return None


def _exchangeable(exercise: Exercise) -> list[tuple[str, str]]:
    """Return the pairs of arguments that are of the same kind in every case."""

    def kind(value: Any) -> Any:
        return (value.shape, value.dtype.kind) if isinstance(value, np.ndarray) else type(value)

    pairs = itertools.combinations(exercise.parameters, 2)
    return [(a, b) for a, b in pairs if all(kind(case[a]) == kind(case[b]) for case in exercise.cases.values())]


def _exchange(arguments: Mapping[str, Any], a: str, b: str) -> dict[str, Any]:
    return {**arguments, a: arguments[b], b: arguments[a]}


def _output_order(pairs: Sequence[tuple[Any, Any]], tolerance: float) -> str | None:
    """Return how to order the student's results, if another order makes all of them right."""
    for order in itertools.permutations(range(len(pairs[0][0]))):
        if all(
            Outcome(tuple(got[i] for i in order)).agrees(Outcome(tuple(wanted)), tolerance) for got, wanted in pairs
        ):
            return ", ".join(f"your {i + 1}." for i in order)
    return None


def _axes(flat: Sequence[tuple[NDArray, NDArray]], tolerance: float) -> Diagnosis | None:
    """Recognise right numbers whose axes have another order, another direction or another shape."""
    if all(_same(g, w, tolerance) for g, w in flat):
        return None
    for order in itertools.permutations(range(flat[0][1].ndim)):
        if all(w.ndim == len(order) and _same(g, w.transpose(order), tolerance) for g, w in flat):
            return Diagnosis(("axes_exchanged",), (f"The numbers are right, but the axes have the order {order}.",))
    for axis in range(flat[0][1].ndim):
        if all(w.ndim > axis and _same(g, np.flip(w, axis), tolerance) for g, w in flat):
            return Diagnosis(("reversed",), (f"The numbers are right, but axis {axis} runs backwards.",))
    if all(g.size == w.size and _same(g.reshape(w.shape), w, tolerance) for g, w in flat):
        return Diagnosis(("shape",), ("The numbers are right; only the shape is another one.",))
    return None


def _factor(flat: Sequence[tuple[NDArray, NDArray]], tolerance: float) -> Diagnosis | None:
    """Recognise a constant factor or summand, for all cases or one for each."""
    if not any(np.any(w) for _, w in flat):
        return None
    factors = [float(np.vdot(w, g) / np.vdot(w, w)) for g, w in flat if np.any(w)]
    fits = all(_same(g, factor * w, tolerance) for (g, w), factor in zip(_nonzero(flat), factors, strict=True))
    zeros = all(_same(g, w, tolerance) for g, w in flat if not np.any(w))
    if not (fits and zeros) or not np.all(np.isfinite(factors)) or 0 in np.round(factors, 12):
        return None
    # A result of one number has some factor by chance.
    if np.allclose(factors, factors[0], rtol=max(tolerance, 1e-9), atol=0) and sum(w.size for _, w in flat) > 1:
        if abs(factors[0] - 1) < tolerance:
            return None
        if abs(factors[0] + 1) < tolerance:
            return Diagnosis(("sign",), ("Every number has the wrong sign.",))
        return Diagnosis(("factor",), (f"Every number is {factors[0]:.6g} times the right one.",))
    return None


def _nonzero(flat: Sequence[tuple[NDArray, NDArray]]) -> list[tuple[NDArray, NDArray]]:
    return [(g, w) for g, w in flat if np.any(w)]
