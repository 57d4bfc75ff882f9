"""An exercise: what to write, the cases it is checked on, the laws it must obey, and the usual mistakes.

The right numbers of every case are computed by Duet's core, from the function that states the exercise. A usual mistake
is a whole wrong solution. `check` compares a student's numbers with those of every wrong solution, so it names a
mistake only where the student's numbers are exactly the wrong ones.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream

__all__ = ["EXERCISES", "Exercise", "Law", "Mistake", "Network", "add", "distance", "normal", "per_image"]

Array = NDArray[np.float64]
# A solution: it takes the arguments of the exercise, and returns an array or a tuple of arrays.
Solution = Callable[..., Any]


@dataclass(frozen=True)
class Mistake:
    """A usual mistake.

    Args:
        name: what `Result.mistakes` contains.
        sentence: what is wrong, and what is right.
        solutions: wrong solutions; each takes the arguments of the exercise.
    """

    name: str
    sentence: str
    solutions: tuple[Solution, ...]


@dataclass(frozen=True)
class Law:
    """A property of every right solution.

    Args:
        sentence: the property.
        deviation: how far a solution is from it; 0 if it holds.
    """

    sentence: str
    deviation: Callable[[Solution], float]


class Network:
    """A network that an exercise passes to a function: the formula takes x, and its second argument shaped like x.

    It may be called with one number for the batch or with one for each image.
    """

    def __init__(self, formula: Callable[[Any, Any], Any]) -> None:
        self.formula = formula

    def __call__(self, x: Any, level: Any, like: Callable[[Any, Any], Any] | None = None) -> Any:
        """Return the output; `like` casts the level to the type of x."""
        level = like(level, x) if like else level
        if len(getattr(level, "shape", ())) == 1:
            level = level[(slice(None),) + (None,) * (len(x.shape) - 1)]
        return self.formula(x, level)

    def __repr__(self) -> str:
        return "a function"


@dataclass(frozen=True, eq=False)
class Exercise:
    """A function to write. Its representation is the statement; `add` makes one.

    Args:
        name: of the exercise and of the function.
        title: one line.
        statement: what to write, with formula, shapes and conventions.
        source: the paper or code of the convention.
        reference: a right solution.
        cases: the arguments of every case, by a few words that describe the case.
        laws: what holds for every right solution.
        mistakes: the usual ones.
        images: the arguments that are images; if there are any, the result is one too.
    """

    name: str
    title: str
    statement: str
    source: str
    reference: Solution
    cases: Mapping[str, Mapping[str, Any]]
    laws: tuple[Law, ...]
    mistakes: tuple[Mistake, ...]
    images: tuple[str, ...] = ()

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the arguments."""
        return tuple(inspect.signature(self.reference).parameters)

    @cached_property
    def results(self) -> int:
        """The number of arrays that a solution returns."""
        result = self.reference(*next(iter(self.cases.values())).values())
        return len(result) if isinstance(result, tuple) else 1

    @property
    def signature(self) -> str:
        """The call, as text."""
        return f"{self.name}({', '.join(self.parameters)})"

    def mistake(self, name: str) -> Mistake:
        """Return one of the mistakes."""
        return next(mistake for mistake in self.mistakes if mistake.name == name)

    def __repr__(self) -> str:
        images = (
            "Images are b h w c, for PyTorch b c h w; check(..., layout=...) changes this.\n\n" if self.images else ""
        )
        laws = "\n".join(
            textwrap.fill(law.sentence, 98, initial_indent="  - ", subsequent_indent="    ") for law in self.laws
        )
        return (
            f"{self.name}: {self.title}\n\nWrite  {self.signature}\n\n{self.statement}\n\n{images}"
            f"Every right solution obeys:\n{laws}\n\nSource: {self.source}\n"
            f'Check yours with  duet.check("{self.name}", {self.name})'
        )


EXERCISES: dict[str, Exercise] = {}


def add(
    reference: Solution,
    title: str,
    source: str,
    cases: Mapping[str, Mapping[str, Any]],
    laws: Mapping[str, Callable[[Solution], float]],
    mistakes: Mapping[str, tuple[Any, ...]],
    images: Iterable[str] = (),
) -> Exercise:
    """Add an exercise to those that `check` knows, and return it.

    Args:
        reference: a right solution for NumPy arrays in float64, images as b h w c. Its name is that of the exercise,
            the names of its arguments are those to write, and its docstring is the statement.
        title: one line.
        source: the paper or code of the convention.
        cases: the arguments of every case; the keys describe the cases. Give numbers, arrays, dicts of arrays or a
            `Network`.
        laws: functions that take a solution and return how far it is from the law, by the sentence of the law.
        mistakes: a sentence and one or more wrong solutions, by the name of the mistake.
        images: the arguments that are images.

    Raises:
        DuetError: if a case has other arguments than the reference.

    Example:
        >>> def double(x):
        ...     '''Return 2 x.'''
        ...     return 2 * x
        >>> exercise = add(
        ...     double, "Twice a number", "-", {"a vector": {"x": np.ones(3)}},
        ...     laws={"Twice nothing is nothing.": lambda f: distance(f(np.zeros(2)), 0)},
        ...     mistakes={"squared": ("x is squared; it must be doubled.", lambda x: x**2)},
        ... )
        >>> EXERCISES.pop("double").signature
        'double(x)'
    """
    exercise = Exercise(
        name=reference.__name__,
        title=title,
        statement=inspect.cleandoc(reference.__doc__ or ""),
        source=source,
        reference=reference,
        cases=cases,
        laws=tuple(Law(sentence, deviation) for sentence, deviation in laws.items()),
        mistakes=tuple(Mistake(name, sentence, tuple(wrong)) for name, (sentence, *wrong) in mistakes.items()),
        images=tuple(images),
    )
    for case, arguments in cases.items():
        if tuple(arguments) != exercise.parameters:
            raise DuetError(
                f"exercise {exercise.name}: the case {case!r} has the arguments {', '.join(arguments)}; they must be "
                f"{', '.join(exercise.parameters)}"
            )
    EXERCISES[exercise.name] = exercise
    return exercise


def errors(got: Any, expected: Any) -> Array:
    """Return the error of each number relative to its size, or to a hundredth of the mean size if that is larger."""
    expected = np.asarray(expected, np.float64)
    size = np.abs(expected)
    floor = 0.01 * size.mean() if size.size and size.any() else 1.0
    return np.abs(np.asarray(got, np.float64) - expected) / np.maximum(size, floor)


def distance(got: Any, expected: Any) -> float:
    """Return the largest of the `errors`; inf if the shapes do not fit or a number is NaN.

    Example:
        >>> distance([1.0, 2.2], [1.0, 2.0])
        0.10000000000000009
    """
    try:
        error = errors(got, np.broadcast_to(expected, np.shape(got)))
    except (TypeError, ValueError):
        return np.inf
    return float(np.where(np.isnan(error), np.inf, error).max(initial=0.0))


def normal(name: str, *shape: int) -> Array:
    """Return fixed normal numbers for a case."""
    return Stream(0, f"exercises/{name}").normal([0], shape)[0]


def per_image(column: NDArray, like: NDArray) -> NDArray:
    """Return a column with shape (B,) in a shape that broadcasts over arrays with shape (B, ...)."""
    return np.reshape(column, np.shape(column) + (1,) * (np.ndim(like) - np.ndim(column)))
