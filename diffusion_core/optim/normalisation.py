r"""Forced weight normalisation: a rule of the optimiser step for parameters that the manifest calls `normalised`.

With the rows w of such a parameter (all weights of one output), n their length and eps the number of the manifest::

    w1 = w / (eps + |w| / sqrt(n))                                        (Karras et al., 2024, eq. 66)

One step of training then is

    g  = d loss / d w  at w1               in the training pass, which leaves w as it is
    w <- w1                                at the start of the update
    w <- optimiser(w, g)

so the rows have size 1 whenever a gradient is taken, and every update turns them by an angle that depends on the
learning rate alone. The moving averages follow the weights after the update, which are not of size 1. The rule is
applied once per update: not by a pass that ran out of memory or was not finite, and not on resuming. It is no
projection: twice gives another result than once, by about eps.

A block with such a parameter also divides it by its size whenever it is used; see `networks/blocks/magnitude.py`.

References:
    Analyzing and Improving the Training Dynamics of Diffusion Models (Karras et al., 2024),
    https://arxiv.org/abs/2312.02696
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.optim.optimiser import Optimiser

__all__ = ["MIN_SQUARE", "check_optimiser", "normalise", "normalise_weights"]

# Lower bound of a mean square under a root, where the root has no finite derivative.
MIN_SQUARE = 1e-30


def normalise(x: NDArray, axes: tuple[int, ...], eps: float) -> NDArray:
    """Return x / (eps + rms(x)), with the root mean square over some axes.

    Example:
        >>> normalise(np.array([[3.0, 4.0], [0.0, 0.0]]), (1,), eps=0.0)[0] * np.sqrt(12.5)
        array([3., 4.])
    """
    square = np.square(x).mean(axis=axes, keepdims=True)
    return x / (eps + np.sqrt(np.maximum(square, MIN_SQUARE)))


def normalise_weights(weights: Mapping[str, NDArray], rules: Mapping[str, float]) -> dict[str, NDArray]:
    """Return weights with w1 in place of w for each parameter that has a rule.

    Args:
        weights: by full name.
        rules: the eps by full name, as `Program.normalised`.
    """
    return {
        name: normalise(w, tuple(range(1, np.ndim(w))), rules[name]) if name in rules else w
        for name, w in weights.items()
    }


def check_optimiser(rules: Mapping[str, float], optimiser: Optimiser) -> None:
    """Raise a `DuetError` for an optimiser whose gradients are not taken at its weights, if any weight has a rule."""
    if rules and optimiser.moves_point:
        raise DuetError(
            f"optimiser.name: {type(optimiser).__name__} was given, which takes gradients beside the weights, but the "
            f"network normalises its weights by force at every step; use another optimiser, such as adam"
        )
