"""Intervals of fractions: closed forms against SciPy, and coverage close to 0 and 1."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from diffusion_core.common.errors import DuetError
from diffusion_core.statistics.proportion import (
    discordant_p_value,
    exact_interval,
    unseen_fraction,
    wilson_interval,
)


@pytest.mark.parametrize("successes", [0, 1, 7, 19, 20])
def test_intervals_equal_scipys(successes):
    for function, method in ((wilson_interval, "wilson"), (exact_interval, "exact")):
        found = function(successes, 20, 0.9)
        expected = stats.binomtest(successes, 20).proportion_ci(0.9, method)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilsons_interval_covers_a_fraction_close_to_one():
    """The interval f +- q s/sqrt(n) of 500 samples at 0.998 covers it in 63 % of cases, since many have no failure."""
    k = np.random.default_rng(0).binomial(500, 0.998, 4000)
    ends = {value: wilson_interval(int(value), 500) for value in np.unique(k)}
    covered = np.mean([ends[value].low <= 0.998 <= ends[value].high for value in k])
    half = 1.96 * np.sqrt(k / 500 * (1 - k / 500) / 500)
    assert covered > 0.9 > np.mean(np.abs(k / 500 - 0.998) <= half) + 0.2


def test_equal_outcomes_leave_a_fraction_unseen():
    assert unseen_fraction(5) == pytest.approx(0.4507, abs=1e-4)
    assert unseen_fraction(5) == pytest.approx(exact_interval(0, 5, 0.9).high)  # the one-sided bound


def test_discordant_pairs_are_tested_by_mcnemar():
    assert discordant_p_value(5, 0) == discordant_p_value(0, 5) == 2 / 32 and discordant_p_value(0, 0) == 1
    assert discordant_p_value(2, 9) == pytest.approx(stats.binomtest(2, 11).pvalue)


def test_impossible_fractions_are_refused():
    for call in (lambda: wilson_interval(6, 5), lambda: exact_interval(0, 0), lambda: unseen_fraction(5, 1.5)):
        with pytest.raises(DuetError, match="fraction: "):
            call()
