"""Confidence intervals of measured numbers, and what they are for.

**Over draws of the samples.** The samples are cut into S sets. With v the number of all samples and v_k that of all
samples without set k, the pseudo-values ``S v - (S - 1) v_k`` vary like S independent measurements; for a mean they
are the means of the sets. Their `bootstrap_interval`, moved from their mean to v, is the interval of v. It holds the
value that is expected from this number of samples and for this reference. It does not hold the value of infinitely
many samples: the bias of a Fréchet distance is a property of the number of samples, and of 500 samples of 64 features
it is ten times the width of the interval.

**A fraction of independent samples**, such as class agreement, has Wilson's interval. The jackknife of 499 successes
of 500 has width zero as soon as no set holds two failures, and covers a true fraction of 0.998 in half of the cases.

**Over draws of the samples and of the reference.** The same jackknife over sets of the reference gives its variance;
with those of both, a = s_a^2/S and b = s_b^2/R, the interval is ``v +- t sqrt(a + b)``, with Welch's degrees of
freedom ``(a + b)^2 / (a^2/(S - 1) + b^2/(R - 1))``.

**Without the bias.** The mean of the pseudo-values is v without its bias of first order in 1/n. What remains of a
Fréchet distance between D features is of the order ``(D/n)^2 tr(S)``; a metric estimates it, and the corrected value
exists only where that is smaller than the standard error of v.

**The difference of two models** measured by one protocol is that of their pseudo-values set by set: if both sets of
samples come from the same noise, what they have in common cancels, and so does the draw of the reference.

References:
    Bias and confidence in not quite large samples (Tukey, 1958), https://doi.org/10.1214/aoms/1177706647
    The jackknife estimate of variance (Efron and Stein, 1981), https://doi.org/10.1214/aos/1176345462
    The generalization of Student's problem when several different population variances are involved (Welch, 1947),
    https://doi.org/10.2307/2332510
    The delete-a-group jackknife (Kott, 2001), Journal of Official Statistics 17, 521-526
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from diffusion_core.statistics.bootstrap import MIN_VALUES, Interval, bootstrap_interval

__all__ = ["corrected_value", "difference_interval", "jackknife_interval", "pseudo_values", "two_sample_interval"]


def pseudo_values(value: float, without: Sequence[float]) -> NDArray[np.float64] | None:
    """Return the pseudo-value of each set; None if a value is not finite, or there are too few sets.

    Args:
        value: the number of all samples.
        without: the number of all samples except set k, for each k.
    """
    count, rest = len(without), np.asarray(without, np.float64)
    if count < MIN_VALUES or not np.isfinite([value, *rest]).all():
        return None
    return count * value - (count - 1) * rest


def jackknife_interval(value: float, without: Sequence[float], confidence: float) -> Interval | None:
    """Return the interval of a number over draws of the samples.

    Args:
        value: the number of all samples.
        without: the number of all samples except set k, for each k.
        confidence: the confidence of the interval.

    Returns:
        None if a value is not finite, or there are too few sets.
    """
    values = pseudo_values(value, without)
    if values is None:
        return None
    return bootstrap_interval(values, confidence=confidence).around(float(values.mean()), value)


def two_sample_interval(
    value: float, without: Sequence[float], without_reference: Sequence[float], confidence: float
) -> Interval | None:
    """Return the interval of a number over draws of the samples and of the reference.

    Args:
        value: the number.
        without: the number without each set of samples.
        without_reference: the number without each set of the reference.
        confidence: the confidence of the interval.

    Returns:
        None if one of the jackknives is missing.
    """
    sides = [pseudo_values(value, values) for values in (without, without_reference)]
    return None if sides[0] is None or sides[1] is None else _welch(value, sides[0], sides[1], confidence)


def difference_interval(
    values: tuple[float, float], without: tuple[Sequence[float], Sequence[float]], confidence: float,
    without_reference: tuple[Sequence[float], Sequence[float]] = ((), ()),
) -> tuple[Interval | None, Interval | None]:  # fmt: skip
    """Return the intervals of the second number minus the first: over samples, and over samples and reference.

    Args:
        values: both numbers.
        without: both numbers without each set of samples, with sets in the same order.
        confidence: the confidence of the intervals.
        without_reference: both numbers without each set of the reference.
    """
    difference = values[1] - values[0]
    # Subtracting first makes the difference of two equal models exactly zero.
    samples, reference = (
        pseudo_values(difference, np.subtract(second, first)) if len(first) == len(second) else None
        for first, second in (without, without_reference)
    )
    if samples is None:
        return None, None
    own = bootstrap_interval(samples, confidence=confidence).around(float(samples.mean()), difference)
    return own, None if reference is None else _welch(difference, samples, reference, confidence)


def corrected_value(value: float, without: Sequence[float], remaining: float) -> float | None:
    """Return the number without its bias of first order; None if the bias that remains is not negligible.

    Args:
        value: the number.
        without: the number without each set of samples.
        remaining: the size of the bias of higher order, in the unit of the number.
    """
    values = pseudo_values(value, without)
    if values is None or not remaining <= values.std(ddof=1) / math.sqrt(len(values)):
        return None
    return float(values.mean())


def _welch(
    value: float, samples: NDArray[np.float64], reference: NDArray[np.float64], confidence: float
) -> Interval | None:
    a, b = (float(side.var(ddof=1)) / len(side) for side in (samples, reference))
    if a + b == 0:
        return None
    freedom = (a + b) ** 2 / (a**2 / (len(samples) - 1) + b**2 / (len(reference) - 1))
    half = float(stdtrit(freedom, 0.5 + confidence / 2)) * math.sqrt(a + b)
    return Interval(value - half, value + half, confidence)
