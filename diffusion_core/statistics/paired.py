"""Paired comparison of two arms over seeds: difference, effect size, and equivalence within a margin.

Both arms are run with the same n seeds, so seed i gives one difference ``d_i = b_i - a_i``, or ``ln(b_i / a_i)`` where
ratios matter. With mean m, standard deviation s (over n - 1) and standard error ``e = s/sqrt(n)``::

    interval             m +- t(1 - alpha/2; n - 1) e
    difference test      t = m/e                                         H0: the expected difference is 0
    effect size          d_z = m/s,   g_z = J(n - 1) d_z,   J(k) = Gamma(k/2) / (sqrt(k/2) Gamma((k - 1)/2))
    equivalence (TOST)   p = max(P(T > (m + margin)/e), P(T < (m - margin)/e))     H0: |expected difference| >= margin

where T has Student's t distribution with n - 1 degrees of freedom. TOST rejects at level alpha exactly if the interval
of confidence 1 - 2 alpha lies within (-margin, margin). So the data exclude every difference beyond the end of that
interval that is farther from zero. This is `Paired.excluded`, the smallest margin that the test would have accepted.
A margin must be chosen before the data are seen; `excluded` describes the data and must not serve as a margin.

The distributions assume differences that are independent between seeds and approximately normal. Without spread
nothing is known about either: for one pair, and for differences that are all equal, as those of two bit-identical arms
or of two equal success counts, the interval is the whole line and p is NaN. The limit p -> 0 for s -> 0 would be wrong:
if one seed in ten makes a difference of 1, five seeds show none in 59 % of studies. What n equal pairs do say is in
`proportion.unseen_fraction`: at level alpha, up to ``1 - alpha^(1/n)`` of the seeds could still differ.

Skewed differences break the t tests: with lognormal ones of mean 0 (sigma 0.5 to 1.5 of the logarithm, 5 pairs) the
test finds a difference in 8 to 31 % of studies at level 0.05, and one side of TOST accepts a margin that does not hold
in 12 to 37 %. No test of a mean is exact then. `Paired.sign_flip` is exact for arms that are exchangeable, whatever the
distribution, and `Paired.within` counts the pairs within a margin: n of n allow the statement that at least
``alpha^(1/n)`` of all seeds lie within it.

References:
    A comparison of the two one-sided tests procedure and the power approach for assessing the equivalence of average
    bioavailability (Schuirmann, 1987), https://doi.org/10.1007/BF01068419
    Distribution theory for Glass's estimator of effect size and related estimators (Hedges, 1981),
    https://doi.org/10.3102/10769986006002107
    A simple sequentially rejective multiple test procedure (Holm, 1979), https://www.jstor.org/stable/4615733
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaincinv, gammaln, ndtr, stdtr, stdtrit

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.statistics.bootstrap import Interval
from diffusion_core.statistics.sign_flip import sign_flip_equivalence, sign_flip_p_value

__all__ = ["SCALES", "Equivalence", "Paired", "compare", "equivalence_power", "holm", "pairs_needed", "upper_std"]

SCALES = ("difference", "ratio")


@dataclass(frozen=True)
class Equivalence:
    """The result of two one-sided t tests of a margin.

    Args:
        margin: the largest difference that would not matter, in the unit of the differences.
        alpha: the level of the test.
        p: the larger of the two p values; NaN without spread.
        interval: of confidence ``1 - 2 alpha``.
    """

    margin: float
    alpha: float
    p: float
    interval: Interval

    @property
    def holds(self) -> bool:
        """Whether a difference of the margin or more is excluded."""
        return self.p < self.alpha


@dataclass(frozen=True, eq=False)
class Paired:
    """The differences of two arms, one per seed.

    Args:
        differences: finite float64 numbers with shape (n,), n at least 1.

    Example:
        >>> result = compare([1.0, 2.0, 3.0], [1.1, 2.3, 3.2])
        >>> round(result.mean, 3), round(result.p_value(), 3)
        (0.2, 0.074)
    """

    differences: NDArray[np.float64]

    def __post_init__(self) -> None:
        values = np.asarray(self.differences, np.float64)
        if values.ndim != 1 or len(values) < 1 or not np.all(np.isfinite(values)):
            raise DuetError(f"differences: {values.tolist()} were given; they must be finite numbers, at least one")
        object.__setattr__(self, "differences", values)

    def __repr__(self) -> str:
        return f"Paired({self.count} pairs, mean difference {self.mean:.4g})"

    @property
    def count(self) -> int:
        """The number of pairs n."""
        return len(self.differences)

    @property
    def identical(self) -> bool:
        """Whether every difference is exactly zero."""
        return not np.any(self.differences)

    @property
    def has_spread(self) -> bool:
        """Whether there are two pairs, and not all differences are equal."""
        return self.count > 1 and self.std > 0

    @property
    def mean(self) -> float:
        """The mean difference; exactly the common value if all are equal."""
        first = float(self.differences[0])
        return first if np.all(self.differences == first) else float(self.differences.mean())

    @property
    def std(self) -> float:
        """The standard deviation, with n - 1 in its denominator; NaN for one pair."""
        if self.count < 2:
            return math.nan
        return 0.0 if np.all(self.differences == self.differences[0]) else float(self.differences.std(ddof=1))

    @property
    def standard_error(self) -> float:
        """The standard error of the mean; NaN for one pair, 0 if all differences are equal."""
        return self.std / math.sqrt(self.count)

    @property
    def effect(self) -> float:
        """Cohen's d_z, the mean in standard deviations; 0/0 is 0, infinite for equal differences; NaN for one pair."""
        if self.std == 0:
            return math.copysign(math.inf, self.mean) if self.mean else 0.0
        return self.mean / self.std

    @property
    def effect_unbiased(self) -> float:
        """Hedges's g_z, d_z without its bias; NaN below three pairs, for which the factor does not exist."""
        k = self.count - 1
        if k < 2:
            return math.nan
        return self.effect * math.exp(gammaln(k / 2) - gammaln((k - 1) / 2)) / math.sqrt(k / 2)

    def interval(self, confidence: float = 0.95) -> Interval:
        """Return Student's interval; the whole line without spread."""
        if not 0 < confidence < 1:
            raise DuetError(f"confidence: {confidence} was given; it must lie between 0 and 1")
        if not self.has_spread:
            return Interval(-math.inf, math.inf, confidence)
        half = float(stdtrit(self.count - 1, 0.5 + confidence / 2)) * self.standard_error
        return Interval(self.mean - half, self.mean + half, confidence)

    def p_value(self) -> float:
        """Return the two-sided p value of an expected difference of 0; NaN without spread."""
        return 2 * self._tail(abs(self.mean))

    def sign_flip(self, margin: float | None = None) -> float:
        """Return the p value of the sign-flip test of no difference, or of the two one-sided ones of a margin.

        NaN without spread. See `sign_flip_floor` for the smallest value that it can have.
        """
        if not self.has_spread:
            return math.nan
        if margin is None:
            return sign_flip_p_value(self.differences)
        return sign_flip_equivalence(self.differences, margin)

    def within(self, margin: float) -> int:
        """Return the number of pairs whose difference is smaller than the margin."""
        return int(np.count_nonzero(np.abs(self.differences) < margin))

    def equivalence(self, margin: float, alpha: float = 0.05) -> Equivalence:
        """Test equivalence within a margin by two one-sided tests.

        Args:
            margin: above 0, in the unit of the differences, chosen before the data are seen.
            alpha: the level, above 0 and below 0.5.

        Raises:
            DuetError: the margin or the level is out of range.
        """
        if not (0 < margin < math.inf):
            raise DuetError(f"margin: {margin} was given; it must be a number above 0")
        if not 0 < alpha < 0.5:
            raise DuetError(f"alpha: {alpha} was given; it must lie between 0 and 0.5")
        p = self._tail(margin - abs(self.mean))  # of the nearer bound
        return Equivalence(margin, alpha, p, self.interval(1 - 2 * alpha))

    def excluded(self, alpha: float = 0.05) -> float:
        """Return the smallest margin that the data support: larger ones are excluded; infinite without spread."""
        interval = self.interval(1 - 2 * alpha)
        return max(abs(interval.low), abs(interval.high))

    def _tail(self, distance: float) -> float:
        """Return P(T > distance/e); NaN without spread."""
        if not self.has_spread:
            return math.nan
        return float(stdtr(self.count - 1, -distance / self.standard_error))


def compare(baseline: ArrayLike, values: ArrayLike, scale: str = "difference") -> Paired:
    """Return the paired differences of an arm from a baseline.

    Args:
        baseline: a, with shape (n,), in the order of the seeds.
        values: b, with shape (n,), in the same order.
        scale: "difference" for ``b - a``, "ratio" for ``ln(b/a)``, which needs positive values.

    Raises:
        DuetError: the shapes differ, a value is not finite, or a ratio does not exist.
    """
    a, b = np.asarray(baseline, np.float64), np.asarray(values, np.float64)
    check_choice("scale", scale, SCALES)
    if a.shape != b.shape:
        raise DuetError(
            f"paired comparison: {a.shape} and {b.shape} values were given; there must be one value per seed in both"
        )
    if scale == "difference":
        return Paired(b - a)
    if np.any(a <= 0) or np.any(b <= 0):
        raise DuetError(f"scale ratio: {min(a.min(), b.min())} was given; values must be positive, or use difference")
    return Paired(np.log(b / a))


def equivalence_power(margin: float, std: float, pairs: int, difference: float = 0.0, alpha: float = 0.05) -> float:
    """Return the probability that TOST accepts a margin.

    The mean M is normal and independent of the estimate S of the standard deviation. The test accepts if
    ``|M| < margin - t(1 - alpha; n - 1) S/sqrt(n)``; the mean over S is taken along the quantiles of its distribution.

    Args:
        margin: the margin of the test.
        std: the true standard deviation of the differences, above 0.
        pairs: n, at least 2.
        difference: the true expected difference.
        alpha: the level.
    """
    if pairs < 2 or std <= 0:
        raise DuetError(f"power: {pairs} pairs and std {std} were given; at least 2 and a number above 0 are needed")
    nodes, weights = _quadrature()
    stds = std * np.sqrt(2 * gammaincinv((pairs - 1) / 2, (nodes + 1) / 2) / (pairs - 1))
    error = std / math.sqrt(pairs)
    room = margin - stdtrit(pairs - 1, 1 - alpha) * stds / math.sqrt(pairs)
    accepted = np.where(room > 0, ndtr((room - difference) / error) - ndtr((-room - difference) / error), 0.0)
    return float(weights @ accepted / 2)


@functools.cache
def _quadrature() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.polynomial.legendre.leggauss(128)


def pairs_needed(
    margin: float, std: float, power: float = 0.8, alpha: float = 0.05, max_pairs: int = 1000
) -> int | None:
    """Return the smallest n with which TOST accepts the margin for equal arms with that power; None above `max_pairs`.

    `std` is the true standard deviation. An estimate from a few pairs in its place gives too small an n as often as
    not, and a mean power of 0.55 to 0.77 in place of 0.8; give its `upper_std`.
    """
    if std == 0:
        return 2
    low, high = 1, max_pairs
    if equivalence_power(margin, std, max_pairs, alpha=alpha) < power:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if equivalence_power(margin, std, middle, alpha=alpha) >= power else (middle, high)
    return high


def upper_std(std: float, pairs: int, assurance: float = 0.8) -> float:
    """Return the upper confidence limit of a standard deviation that was estimated from n pairs.

    ``(n - 1) s^2 / sigma^2`` has the chi^2 distribution with n - 1 degrees of freedom. A number of pairs that is
    planned with this limit has at least the wanted power in a fraction `assurance` of all studies.

    References:
        On the use of a pilot sample for sample size determination (Browne, 1995),
        https://doi.org/10.1002/sim.4780141709

    Example:
        >>> round(upper_std(1.0, pairs=5), 3)
        1.558
    """
    if pairs < 2 or not 0 < assurance < 1:
        raise DuetError(
            f"std: {pairs} pairs and assurance {assurance} were given; at least 2 and one in (0, 1) are needed"
        )
    return std * math.sqrt((pairs - 1) / (2 * float(gammaincinv((pairs - 1) / 2, 1 - assurance))))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p values, which bound the probability of any false finding; NaN stays and is ignored."""
    p = np.asarray(p_values, np.float64)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted = p.copy()
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * factors))
    return adjusted.tolist()
