"""Simulations of the statistics of studies: error rates of tests, of repeated looks, and power of the advice.

    python -m benchmarks.study_statistics              # 20,000 studies per cell: a minute
    python -m benchmarks.study_statistics 2000

Every line states what is true in the simulated studies, and how often a study says otherwise.
"""

from __future__ import annotations

import math
import sys

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from diffusion_core.statistics import (
    equivalence_power,
    look_levels,
    pairs_needed,
    sign_flip_p_value,
    unseen_fraction,
    upper_std,
)

ALPHA = 0.05


def t_values(d: NDArray[np.float64], shift: float = 0.0) -> NDArray[np.float64]:
    """Return the t statistic of each row, for an expected difference of `shift`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return (d.mean(axis=1) - shift) / (d.std(axis=1, ddof=1) / math.sqrt(d.shape[1]))


def differs(d: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return whether the two-sided t test of each row finds a difference."""
    return 2 * stdtr(d.shape[1] - 1, -np.abs(t_values(d))) < ALPHA


def is_equivalent(d: NDArray[np.float64], margin: float) -> NDArray[np.bool_]:
    """Return whether both one-sided t tests of each row accept the margin; rows without spread are not tested."""
    k = d.shape[1] - 1
    both = (stdtr(k, t_values(d, margin)) < ALPHA) & (stdtr(k, -t_values(d, -margin)) < ALPHA)
    return both & (d.std(axis=1) > 0)


def skewed(studies: int) -> None:
    """Print the rates of tests of skewed differences whose mean is 0, or the margin."""
    print("lognormal differences of mean 0: a difference is found by the t test, and by the sign-flip test;")
    print("mean at the margin, long tail outwards: the margin is accepted")
    for n in (5, 8, 10):
        for sigma in (0.5, 1.0, 1.5):
            raw = np.exp(sigma * np.random.default_rng(n).normal(size=(studies, n)))
            d = raw - math.exp(sigma**2 / 2)
            flips = np.mean([sign_flip_p_value(row) <= ALPHA for row in d[:2000]])
            wide = 100 * d.std()
            accepted = is_equivalent(d + wide, wide).mean()
            print(f"  n {n:2}, sigma {sigma}: {differs(d).mean():.3f}, {flips:.3f}; {accepted:.3f}")


def rare(studies: int) -> None:
    """Print how often rare differences are called equivalent within a margin that they reach."""
    print("a fraction q of seeds differs by 1, margin q: identical in all, equivalent by TOST")
    for n in (5, 10, 20):
        for q in (0.02, 0.1, 0.3):
            d = (np.random.default_rng(n).random((studies, n)) < q).astype(float)
            same = (d.max(axis=1) == 0).mean()
            print(f"  n {n:2}, q {q}: {same:.3f}, {is_equivalent(d, q).mean():.3f}; bound {unseen_fraction(n):.3f}")


def looks(studies: int) -> None:
    """Print the rate of false findings over all looks, with and without spending."""
    print("equal arms, several looks: a difference is found with spent levels (pocock, obrien_fleming), and without")
    for counts in ((5, 10), (5, 10, 15, 20), tuple(range(5, 21)), (3, 6, 9)):
        x = np.random.default_rng(0).normal(size=(studies, counts[-1]))
        p = [2 * stdtr(n - 1, -np.abs(t_values(x[:, :n]))) for n in counts]
        levels = [look_levels(counts, counts[-1], ALPHA, name, sides=2) for name in ("pocock", "obrien_fleming")]
        rates = [
            np.any([one < level for one, level in zip(p, own, strict=True)], axis=0).mean()
            for own in (*levels, (ALPHA,) * len(counts))
        ]
        print(f"  looks at {counts[0]} .. {counts[-1]} ({len(counts)}): " + ", ".join(f"{r:.3f}" for r in rates))


def advice(studies: int) -> None:
    """Print the power of the advised number of seeds, from the observed standard deviation and its upper limit."""
    print("advised seeds: mean power and fraction of studies with at least 0.8; observed spread, then upper limit")
    for n in (3, 5, 8):
        for margin in (0.6, 1.0, 1.5):
            stds = np.sqrt(np.random.default_rng(n).chisquare(n - 1, min(studies, 1000)) / (n - 1))
            cells = []
            for limit in (lambda std, pairs: std, upper_std):
                advised = [pairs_needed(margin, limit(std, n)) or 1000 for std in stds]
                powers = {pairs: equivalence_power(margin, 1.0, pairs) for pairs in set(advised)}
                own = np.array([powers[pairs] for pairs in advised])
                cells.append(f"{own.mean():.3f}, {(own >= 0.8).mean():.3f}")
            print(f"  n {n}, margin {margin} standard deviations: {'; '.join(cells)}")


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    for simulate in (skewed, rare, looks, advice):
        simulate(count)
