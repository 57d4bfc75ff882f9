"""The probability that checking a part of something finds a fault.

Of n segments, k are changed. Whoever checks m of them, drawn at random without replacement, misses every change with
the hypergeometric probability

    P(missed) = C(n - k, m) / C(n, m),        P(found) = 1 - P(missed),

if the check of a changed segment finds the change.
"""

from __future__ import annotations

from math import comb

from diffusion_core.common.errors import DuetError

__all__ = ["found_probability", "needed_draws"]


def found_probability(segments: int, checked: int, changed: int) -> float:
    """Return the probability that at least one of `changed` segments is among `checked` of all `segments`.

    Example:
        >>> found_probability(10, 3, 1), found_probability(10, 3, 5), found_probability(10, 10, 1)
        (0.3, 0.9166666666666666, 1.0)
    """
    if not 0 <= checked <= segments or not 0 <= changed <= segments:
        raise DuetError(
            f"segments: {checked} checked and {changed} changed of {segments}; both must be in 0..{segments}"
        )
    return (comb(segments, checked) - comb(segments - changed, checked)) / comb(segments, checked)


def needed_draws(segments: int, changed: int, probability: float) -> int:
    """Return how many segments must be drawn to find a change of `changed` segments with at least this probability.

    Example:
        >>> needed_draws(20, 1, 0.95), needed_draws(20, 4, 0.95)
        (19, 10)
    """
    return next(m for m in range(segments + 1) if found_probability(segments, m, changed) >= probability - 1e-12)
