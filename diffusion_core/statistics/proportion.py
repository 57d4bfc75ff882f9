"""Intervals of a fraction: k of n independent trials succeeded.

With q the two-sided normal quantile of the confidence, and k/n = f::

    Wilson    (f + q^2/2n +- q sqrt(f(1 - f)/n + q^2/4n^2)) / (1 + q^2/n)
    exact     the fractions for which k or fewer, and k or more, are not too improbable: quantiles of Beta(k, n - k + 1)
              and Beta(k + 1, n - k)

An interval of the form f +- q s/sqrt(n) has width zero if all trials, or none, succeeded. Zero spread is not certainty:
after n equal outcomes a fraction of up to ``1 - alpha^(1/n)`` of all trials could still turn out otherwise, at level
alpha. Five of five leave 45 %.

Wilson's interval covers about its confidence on average over f; the exact interval of Clopper and Pearson covers at
least its confidence for every f, and is wider.

References:
    Probable inference, the law of succession, and statistical inference (Wilson, 1927), https://doi.org/10.2307/2276774
    The use of confidence or fiducial limits illustrated in the case of the binomial (Clopper and Pearson, 1934),
    https://doi.org/10.1093/biomet/26.4.404
    Interval estimation for a binomial proportion (Brown, Cai and DasGupta, 2001), https://doi.org/10.1214/ss/1009213286
"""

from __future__ import annotations

import math

from scipy.special import bdtr, betaincinv, ndtri

from diffusion_core.common.errors import DuetError
from diffusion_core.statistics.bootstrap import Interval

__all__ = ["discordant_p_value", "exact_interval", "unseen_fraction", "wilson_interval"]


def wilson_interval(successes: float, trials: int, confidence: float = 0.95) -> Interval:
    """Return Wilson's interval of a fraction.

    Args:
        successes: k, from 0 to n; it need not be an integer.
        trials: n, at least 1.
        confidence: in (0, 1).

    Example:
        >>> interval = wilson_interval(500, 500)
        >>> round(interval.low, 4), interval.high
        (0.9924, 1.0)
    """
    _check(successes, trials, confidence)
    q2, fraction = float(ndtri(0.5 + confidence / 2)) ** 2, successes / trials
    middle = fraction + q2 / (2 * trials)
    half = math.sqrt(q2 * (fraction * (1 - fraction) / trials + q2 / (4 * trials**2)))
    low, high = (middle - half) / (1 + q2 / trials), (middle + half) / (1 + q2 / trials)
    # Rounding must not move the ends that are exact.
    return Interval(0.0 if successes == 0 else low, 1.0 if successes == trials else high, confidence)


def exact_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Return the interval of Clopper and Pearson, with at least the confidence for every fraction.

    Example:
        >>> interval = exact_interval(0, 5)
        >>> interval.low, round(interval.high, 3)
        (0.0, 0.522)
    """
    _check(successes, trials, confidence)
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, trials - successes + 1, tail))
    high = 1.0 if successes == trials else float(betaincinv(successes + 1, trials - successes, 1 - tail))
    return Interval(low, high, confidence)


def unseen_fraction(trials: int, alpha: float = 0.05) -> float:
    """Return the fraction of trials that could differ although the first n, which are given, all agreed.

    Example:
        >>> round(unseen_fraction(5), 3)
        0.451
    """
    _check(0, trials, 1 - alpha)
    return 1.0 - alpha ** (1.0 / trials)


def discordant_p_value(first: int, second: int) -> float:
    """Return the two-sided p value of McNemar's exact test, from the pairs in which one arm alone had an event.

    Args:
        first: the number of pairs in which the first arm alone had it.
        second: the same of the second arm.

    Returns:
        1 if there is no such pair.

    References:
        Note on the sampling error of the difference between correlated proportions or percentages (McNemar, 1947),
        https://doi.org/10.1007/BF02295996
    """
    return min(1.0, 2.0 * float(bdtr(min(first, second), first + second, 0.5)))


def _check(successes: float, trials: int, confidence: float) -> None:
    if trials < 1 or not 0 <= successes <= trials or not 0 < confidence < 1:
        raise DuetError(
            f"fraction: {successes} of {trials} and confidence {confidence} were given; there must be at least one "
            f"trial, no more successes than trials, and a confidence between 0 and 1"
        )
