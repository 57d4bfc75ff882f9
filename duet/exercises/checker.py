"""`duet.check` and `duet.exercise`: is a student's function right, and if not, why.

The function is called with every case of the exercise, twice. Right means: the numbers are those of Duet's core, the
laws hold, the arguments are unchanged, and both calls agree. An error is relative to the size of the right number, or
to a hundredth of the mean size if that is larger. Two tolerances are stated: below 1e-9 the numbers are right in
float64; below 5e-5 they are right to the rounding of float32, which the answer says.
"""

from __future__ import annotations

import os
import textwrap
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.common.text import pluralize
from duet.exercises.calls import Caller, bracketed, first_index
from duet.exercises.definition import EXERCISES, Exercise, errors
from duet.exercises.diagnose import Diagnosis, Outcome, diagnose, solve
from duet.exercises.fit import factors_line
from duet.exercises.frameworks import find_frameworks, named_framework

__all__ = ["FLOAT32_TOLERANCE", "TOLERANCE", "Exercises", "Result", "WrongNumber", "check", "exercise"]

TOLERANCE = 1e-9
FLOAT32_TOLERANCE = 5e-5
# A law may call a function several times, and subtract the results.
LAW_TOLERANCE = 1e-3
_LAYOUTS = ("channels_last", "channels_first")
_DTYPES = ("float64", "float32")
_WIDTH = 100


@dataclass(frozen=True)
class WrongNumber:
    """The first number of a result that is wrong.

    Args:
        case: the words that describe the case.
        output: which of several results, from 0.
        index: of the number in the array.
        got: the student's number.
        expected: the right one.
    """

    case: str
    output: int
    index: tuple[int, ...]
    got: float
    expected: float


@dataclass(frozen=True, repr=False)
class Result:
    """The answer of `check`. It is true if the function is right, and its representation is the explanation.

    Args:
        exercise: its name.
        right: whether the function is right.
        largest_error: the largest relative error; inf if the results cannot be compared.
        mistakes: the names of the recognised mistakes; empty if none is recognised.
        broken_laws: how far the function is from every law that it breaks, by sentence.
        first_wrong: the first wrong number; None if there is none.
        problem: ``"signature"``, ``"exception"``, ``"nothing"`` (None was returned), ``"results"`` (their number),
            ``"shape"``, ``"dtype"``, ``"nan"``, ``"numbers"``, ``"law"``, ``"changed"`` (arguments changed in place) or
            ``"random"`` (two calls differ); None if the function is right.
        error: the exception that the function raised, with its traceback; None if it raised none.
        text: the explanation.
    """

    exercise: str
    right: bool
    largest_error: float
    text: str
    mistakes: tuple[str, ...] = ()
    broken_laws: Mapping[str, float] | None = None
    first_wrong: WrongNumber | None = None
    problem: str | None = None
    error: Exception | None = None

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return self.text


class Exercises(dict):
    """The exercises by name; the representation lists them."""

    def __repr__(self) -> str:
        width = max(map(len, self))
        lines = "\n".join(f"  {name:<{width}}  {exercise.title}" for name, exercise in self.items())
        return (
            f"{pluralize(len(self), 'exercise')}. Read one with duet.exercise(NAME), and check your function with "
            f"duet.check(NAME, function).\n\n{lines}"
        )


def exercise(name: str | None = None) -> Exercise | Exercises:
    """Return an exercise, whose representation is its statement; without a name, all of them.

    In a script, print it.

    Args:
        name: of the exercise.

    Raises:
        DuetError: for an unknown name.

    Example:
        >>> print(exercise("ema_update"))  # doctest: +ELLIPSIS
        ema_update: The moving average of the weights
        <BLANKLINE>
        Write  ema_update(average, weights, decay)
        ...
    """
    if name is None:
        return Exercises(EXERCISES)
    if not isinstance(name, str) or name not in EXERCISES:
        raise one_of("exercise", name, EXERCISES)
    return EXERCISES[name]


def check(
    name: str | None = None,
    function: Callable[..., Any] | None = None,
    *,
    framework: str | None = None,
    layout: str | None = None,
    dtype: str | None = None,
) -> Result | Exercises:
    """Check a student's function: right, or which law it breaks, the first wrong number, and the usual mistake in it.

    In a script, print the result. Without arguments, all exercises are returned.

    Args:
        name: of the exercise, see `exercise`.
        function: the student's, or any other callable.
        framework: ``"numpy"``, ``"torch"`` or ``"tf"``, whose arrays the function is called with. By default that
            is the framework that its code names, and otherwise NumPy.
        layout: ``"channels_first"`` or ``"channels_last"``, of images; the default is that of the framework.
        dtype: ``"float64"`` or ``"float32"``, of the arrays. By default float64, and float32 if the function fails with
            it.

    Raises:
        DuetError: for an unknown exercise, framework, layout or dtype, or something that cannot be called.

    Example:
        >>> def ema_update(average, weights, decay):
        ...     return (1 - decay) * average + decay * weights
        >>> result = check("ema_update", ema_update)
        >>> bool(result), result.mistakes
        (False, ('decay_exchanged',))
        >>> check("ema_update", lambda e, w, decay: decay * e + (1 - decay) * w)  # doctest: +ELLIPSIS
        ema_update: right. 3 cases and 3 laws hold; ...
    """
    if name is None and function is None:
        return Exercises(EXERCISES)
    if callable(name):
        raise DuetError('check: a function was given first; write duet.check("ddim_step", ddim_step), the name first')
    chosen = exercise(name if name is not None else "")
    if function is None:
        raise DuetError(
            f'check: no function was given; write duet.check("{name}", {name}), or read duet.exercise("{name}")'
        )
    if not callable(function):
        raise DuetError(
            f"check: {type(function).__name__} was given as the function; give the function itself, {name}, not the "
            f"result of a call"
        )
    if layout is not None and layout not in _LAYOUTS:
        raise one_of("layout", layout, _LAYOUTS, {"nhwc": "channels_last", "nchw": "channels_first"})
    if dtype is not None and dtype not in _DTYPES:
        raise one_of("dtype", dtype, _DTYPES)
    frameworks = [named_framework(framework)] if framework else find_frameworks(function)
    callers = [
        Caller(
            chosen,
            function,
            one,
            precision,
            one.channels_first if layout is None else layout == "channels_first",
        )
        for one in frameworks
        for precision in ([dtype] if dtype else _DTYPES)
    ]
    if why := callers[0].signature_problem():
        return _failure(callers[0], "signature", [why[0].upper() + why[1:] + "."])
    return _judge(_fewest_failures(callers))


def _fewest_failures(callers: list[Caller]) -> Caller:
    """Return the first way to call a function that fails in no case, or else in the fewest."""
    failures = []
    for caller in callers:
        failures.append(sum(_try(caller, arguments).error is not None for arguments in caller.exercise.cases.values()))
        if not failures[-1]:
            break
    return callers[int(np.argmin(failures))]


def _try(caller: Caller, arguments: Mapping[str, Any]) -> Outcome:
    try:
        return Outcome(tuple(caller.arrays(caller.raw(arguments))))
    except Exception as error:  # of the student's function; it is shown
        return Outcome(error=error)


def _judge(caller: Caller) -> Result:
    """Call the function with every case, and return the answer."""
    chosen = caller.exercise
    caller.changed.clear()
    right = {case: solve(chosen.reference, arguments, caller) for case, arguments in chosen.cases.items()}
    outcomes = {case: _try(caller, arguments) for case, arguments in chosen.cases.items()}
    again = {case: _try(caller, arguments) for case, arguments in chosen.cases.items()}
    unequal = [case for case in outcomes if not outcomes[case].agrees(again[case], FLOAT32_TOLERANCE)]
    if unequal:
        return _random(caller, unequal[0], outcomes, again)
    largest, problem, first, lines = 0.0, None, None, []
    for case, outcome in outcomes.items():
        found = _compare(caller, case, outcome, right[case])
        largest = max(largest, found.largest)
        if problem is None and found.problem:
            problem, first, lines = found.problem, found.first, list(found.lines)
    error = next((outcome.error for outcome in outcomes.values() if outcome.error), None)
    if problem is None:
        return _lawful(caller, largest)
    if problem == "numbers" and first and first.index:
        arguments, output = chosen.cases[first.case], first.output
        pair = (outcomes[first.case].arrays[output], right[first.case].arrays[output])
        lines += filter(None, [factors_line(arguments, *pair, first.index[0])])
    diagnosis = diagnose(caller, outcomes, right, FLOAT32_TOLERANCE)
    if problem != "exception" and error:
        case = next(case for case, outcome in outcomes.items() if outcome.error)
        lines += ["", *_exception_lines(caller, case, error)]
    broken = _broken_laws(caller) if problem in ("numbers", "nan") else {}
    return _failure(caller, problem, lines, diagnosis, broken, largest_error=largest, first_wrong=first, error=error)


@dataclass(frozen=True)
class _Comparison:
    largest: float
    problem: str | None = None
    first: WrongNumber | None = None
    lines: tuple[str, ...] = ()


def _compare(caller: Caller, case: str, outcome: Outcome, right: Outcome) -> _Comparison:
    """Return how a result differs from the right one: the first problem, in words."""
    where = f"In the case: {case}."
    if outcome.error:
        return _Comparison(np.inf, "exception", None, tuple(_exception_lines(caller, case, outcome.error)))
    got, wanted = outcome.arrays, right.arrays
    if len(got) == 1 and got[0].dtype == object and got[0].ndim == 0:
        what = "None; is a return statement missing?" if got[0].item() is None else f"{type(got[0].item()).__name__}."
        return _Comparison(np.inf, "nothing" if got[0].item() is None else "dtype", None, (f"It returns {what}", where))
    if len(got) != len(wanted):
        text = f"It returns {pluralize(len(got), 'result')}; it must return {len(wanted)}."
        return _Comparison(np.inf, "results", None, (text, where))
    for output, (g, w) in enumerate(zip(got, wanted, strict=True)):
        of = f"Result {output + 1}" if len(wanted) > 1 else "The result"
        if g.shape != w.shape:
            text = f"{of} has shape {g.shape}; it must be {w.shape}."
            return _Comparison(np.inf, "shape", None, (text, where))
        kinds = "iu" if w.dtype.kind in "iu" else "f"
        if g.dtype.kind not in kinds or g.dtype.itemsize < 4:
            must = "whole numbers" if kinds == "iu" else "float64 or float32"
            return _Comparison(np.inf, "dtype", None, (f"{of} has dtype {g.dtype}; it must be {must}.", where))
    return _numbers(case, got, wanted)


def _numbers(case: str, got: tuple[NDArray, ...], wanted: tuple[NDArray, ...]) -> _Comparison:
    """Compare results of the right shapes and types."""
    found = [np.where(np.isfinite(g), errors(g, w), np.inf) for g, w in zip(got, wanted, strict=True)]
    largest = max(float(error.max(initial=0.0)) for error in found)
    if largest <= FLOAT32_TOLERANCE:
        return _Comparison(largest)
    output = next(i for i, error in enumerate(found) if np.any(error > FLOAT32_TOLERANCE))
    where = found[output] > FLOAT32_TOLERANCE
    index = first_index(where)
    g, w = got[output][index], wanted[output][index]
    first = WrongNumber(case, output, index, float(g), float(w))
    result = f"result[{output}]" if len(wanted) > 1 else "result"
    wrong, total = sum(int((error > FLOAT32_TOLERANCE).sum()) for error in found), sum(error.size for error in found)
    number = f"{int(g)}; it must be {int(w)}" if w.dtype.kind in "iu" else f"{g:.7g}; it must be {w:.7g}"
    lines = [f"The first wrong number: {result}{bracketed(index)} is {number}.", f"In the case: {case}."]
    if np.isnan(g) or np.isinf(g):
        bad = sum(int((~np.isfinite(array)).sum()) for array in got)
        lines.append(f"{bad} of {pluralize(total, 'number')} {'is' if bad == 1 else 'are'} NaN or infinite.")
        return _Comparison(largest, "nan", first, tuple(lines))
    if total > 1:
        worst = max(float(np.abs(g - w).max(initial=0.0)) for g, w in zip(got, wanted, strict=True))
        lines.append(f"{wrong} of {total} numbers are wrong there, by at most {worst:.3g}.")
    return _Comparison(largest, "numbers", first, tuple(lines))


def _lawful(caller: Caller, largest: float) -> Result:
    """Return the answer for a function whose numbers are right in every case: laws and arguments remain."""
    chosen = caller.exercise
    broken = _broken_laws(caller)
    if broken:
        lines = ["The numbers of every case are right, but not those of every law."]
        return _failure(caller, "law", lines, broken=broken, largest_error=largest)
    if caller.changed:
        name, change = next(iter(caller.changed.items()))
        lines = [
            f"The numbers are right, but your function changes its argument {name} in place: {change}.",
            "The caller may need it again. Avoid += and assignments to x[...], or work on a copy.",
        ]
        return _failure(caller, "changed", lines, largest_error=largest)
    text = (
        f"{chosen.name}: right. {pluralize(len(chosen.cases), 'case')} and {pluralize(len(chosen.laws), 'law')} hold; "
        f"the largest error is {largest:.1e} ({_called(caller)})."
    )
    if largest > TOLERANCE and caller.dtype == "float64":
        text += (
            f"\n  This is the rounding of float32, which is accepted (tolerance {FLOAT32_TOLERANCE:g}); somewhere a "
            "number is float32 or has few digits."
        )
    return Result(chosen.name, True, largest, text, broken_laws={})


def _random(caller: Caller, case: str, outcomes: Mapping[str, Outcome], again: Mapping[str, Outcome]) -> Result:
    lines = ["Two calls with the same arguments give different results."]
    error = outcomes[case].error or again[case].error
    if error:
        lines = ["Of two calls with the same arguments only one succeeds.", *_exception_lines(caller, case, error)]
    lines += [
        f"In the case: {case}.",
        "Does it draw random numbers or keep something between calls? All noise is an argument.",
    ]
    return _failure(caller, "random", lines, error=error)


def _broken_laws(caller: Caller) -> dict[str, float]:
    """Return the deviation from every law that the function breaks; inf where it fails."""
    broken = {}
    for law in caller.exercise.laws:
        try:
            with np.errstate(all="ignore"):
                deviation = float(law.deviation(caller))
        except Exception:  # a function that fails or returns other shapes breaks the law; its cases show why
            deviation = np.inf
        if not deviation <= LAW_TOLERANCE:
            broken[law.sentence] = np.inf if np.isnan(deviation) else deviation
    return broken


def _called(caller: Caller) -> str:
    return f"called with {caller.framework.title} in {caller.dtype}"


def _exception_lines(caller: Caller, case: str, error: Exception) -> list[str]:
    """Return an exception with the line of the student's code that raised it."""
    message = str(error).strip().splitlines()[:3]
    lines = [
        f"It raises {type(error).__name__}{': ' + message[0] if message else ''}",
        *(f"    {line}" for line in message[1:]),
    ]
    here = os.path.dirname(os.path.abspath(__file__))
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if os.path.dirname(os.path.abspath(frame.filename)) != here]
    if own:
        # The outermost line that is not ours is the student's; the rest may be inside a library.
        lines.append(f"    line {own[0].lineno}, in {own[0].name}: {own[0].line or '(source not available)'}")
    return [*lines, f"In the case: {case}; {_called(caller)}."]


def _failure(
    caller: Caller,
    problem: str,
    lines: list[str],
    diagnosis: Diagnosis | None = None,
    broken: Mapping[str, float] | None = None,
    **found: Any,
) -> Result:
    """Return the answer for a function that is not right."""
    chosen, broken = caller.exercise, dict(broken or {})
    diagnosis = diagnosis or Diagnosis((), ())
    text = [f"{chosen.name}: not right yet.", ""]
    text += [_wrap(line, "  ") for line in lines]
    if diagnosis.names:
        title = "A usual mistake" if len(diagnosis.names) == 1 else "Usual mistakes"
        text += ["", f"  {title}: {', '.join(diagnosis.names)}"]
        text += [_wrap(line, "      ") for line in diagnosis.lines]
    elif problem in ("numbers", "nan"):
        text += ["", "  No usual mistake gives these numbers."]
    if broken:
        text += [
            "",
            f"  {pluralize(len(broken), 'law')} of {len(chosen.laws)} {'is' if len(broken) == 1 else 'are'} broken:",
        ]
        for sentence, deviation in broken.items():
            by = f"off by {deviation:.3g}" if np.isfinite(deviation) else "the function fails or gives NaN there"
            text.append(_wrap(f"{sentence} ({by})", "      ", "    - "))
    text += ["", f'  The statement: duet.exercise("{chosen.name}")']
    whole = "\n".join(text)
    result = Result(chosen.name, False, np.inf, whole, diagnosis.names, broken, problem=problem)
    return replace(result, **found)


def _wrap(line: str, indent: str, first: str | None = None) -> str:
    """Return a line within the width; a line that is indented already is code and stays whole."""
    if line.startswith("    "):
        return indent + line
    return textwrap.fill(line, _WIDTH, initial_indent=first or indent, subsequent_indent=indent)
