"""A result as a sum of the arguments: the factors of a student beside the right ones.

One step of a sampler, a target or a moving average is ``a x + b eps``, with one factor for each argument, or one for
each argument and image. The factors follow by least squares from the numbers, and show which of them is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["factors_line"]

_EXACT = 1e-5


def factors_line(arguments: Mapping[str, Any], got: NDArray, expected: NDArray, image: int) -> str | None:
    """Return the student's factors and the right ones in a sentence; None if one of the results is no such sum.

    Args:
        arguments: of the case.
        got: a result of the student.
        expected: the right one.
        image: the index of an image with a wrong number; its factors are named if those of the images differ.

    Example:
        >>> x, eps = np.array([1.0, 2.0, 4.0]), np.array([1.0, -1.0, 0.0])
        >>> factors_line({"x": x, "eps": eps, "t": 3}, 0.5 * x - eps, 0.5 * x + 0.25 * eps, 0)
        'As a sum of the arguments it is 0.5 x - 1 eps; it must be 0.5 x + 0.25 eps.'
    """
    given = {
        name: value
        for name, value in arguments.items()
        if isinstance(value, np.ndarray) and value.shape == expected.shape and value.dtype.kind == "f"
    }
    if len(given) < 2 or not np.isfinite(got).all():
        return None
    for where, part in (("", slice(None)), (f" for image {image}", image)):
        columns = {name: value[part] for name, value in given.items()}
        if expected[part].size <= len(columns):
            return None
        pair = [_factors(columns, result[part]) for result in (got, expected)]
        if pair[0] is not None and pair[1] is not None:
            sums = [_as_text(columns, factors) for factors in pair]
            return f"As a sum of the arguments it is{where} {sums[0]}; it must be {sums[1]}."
    return None


def _factors(columns: Mapping[str, NDArray], result: NDArray) -> NDArray | None:
    """Return the factor of each array in a result that is their sum; None if it is not."""
    matrix = np.stack([column.ravel() for column in columns.values()], axis=1)
    target = np.asarray(result, np.float64).ravel()
    factors, *_ = np.linalg.lstsq(matrix, target, rcond=None)
    return factors if np.abs(matrix @ factors - target).max() <= _EXACT * np.abs(target).max(initial=1.0) else None


def _as_text(columns: Mapping[str, NDArray], factors: NDArray) -> str:
    """Return a sum in the words of the exercise, without factors of 0."""
    terms = [(factor, name) for factor, name in zip(factors, columns, strict=True) if abs(factor) > _EXACT]
    text = " ".join(f"{'-' if factor < 0 else '+'} {abs(factor):.4g} {name}" for factor, name in terms)
    return text.removeprefix("+ ").replace("- ", "-", 1) if text.startswith("- ") else text.removeprefix("+ ") or "0"
