"""The NumPy reference of training targets that need the network; see `target`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["derivative"]

Array = NDArray[np.float64]

# Central differences of order 8: the coefficient of f(x + k h) - f(x - k h), by k.
_STEP, _DIFFERENCES = 5e-3, {1: 4 / 5, 2: -1 / 5, 3: 4 / 105, 4: -1 / 280}


def derivative(function: Callable[..., Array], at: Sequence[NDArray], direction: Sequence[NDArray]) -> Array:
    """Return the derivative of a function of several arrays along a direction, by differences of order 8.

    Example:
        >>> derivative(lambda x: x**3, [np.array([2.0])], [np.array([0.5])]).round(9)
        array([6.])
    """
    at, direction = ([np.asarray(a, np.float64) for a in arrays] for arrays in (at, direction))

    def moved(step: float) -> Array:
        return function(*(a + step * d for a, d in zip(at, direction, strict=True)))

    return sum(c * (moved(k * _STEP) - moved(-k * _STEP)) for k, c in _DIFFERENCES.items()) / _STEP
