"""Paired statistics: closed forms against scipy.stats, simulated coverage and error rates, and degenerate cases."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import stdtr, stdtrit

from diffusion_core.common.errors import DuetError
from diffusion_core.statistics.paired import Paired, compare, equivalence_power, holm, pairs_needed, upper_std
from diffusion_core.statistics.proportion import unseen_fraction
from diffusion_core.statistics.sign_flip import sign_flip_floor, sign_flip_p_value

A = np.array([0.91, 1.40, 0.72, 1.13, 1.05, 0.88])
B = np.array([0.99, 1.37, 0.85, 1.20, 1.01, 0.97])


def test_difference_test_equals_scipy():
    paired, expected = compare(A, B), stats.ttest_rel(B, A)
    assert paired.p_value() == pytest.approx(expected.pvalue, rel=1e-12)
    assert paired.mean / paired.standard_error == pytest.approx(expected.statistic, rel=1e-12)
    for confidence in (0.9, 0.95, 0.99):
        interval, scipys = paired.interval(confidence), expected.confidence_interval(confidence)
        assert (interval.low, interval.high) == pytest.approx((scipys.low, scipys.high), rel=1e-12)


@pytest.mark.parametrize("margin", [0.01, 0.05, 0.1, 0.4])
def test_equivalence_is_two_one_sided_tests(margin):
    paired = compare(A, B)
    above = stats.ttest_1samp(B - A, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(B - A, margin, alternative="less").pvalue
    found = paired.equivalence(margin)
    assert found.p == pytest.approx(max(above, below), rel=1e-12)
    inside = -margin < found.interval.low and found.interval.high < margin
    assert found.holds == inside
    assert found.interval.confidence == pytest.approx(0.9)


def test_excluded_margin_is_where_the_equivalence_verdict_changes():
    paired = compare(A, B)
    edge = paired.excluded()
    assert paired.equivalence(edge).p == pytest.approx(0.05, rel=1e-9)
    assert paired.equivalence(edge * 1.001).holds
    assert not paired.equivalence(edge * 0.999).holds


def test_ratio_is_a_difference_of_logarithms():
    assert compare(A, B, "ratio").differences == pytest.approx(np.log(B) - np.log(A), rel=1e-12)
    assert compare(A, 1.1 * A, "ratio").mean == pytest.approx(math.log(1.1), rel=1e-12)
    with pytest.raises(DuetError, match=r"scale ratio: -1\.0 was given"):
        compare([1.0, 2.0], [-1.0, 1.0], "ratio")


def test_exchanging_the_arms_changes_only_the_sign():
    forth, back = compare(A, B), compare(B, A)
    assert back.mean == -forth.mean and back.effect == -forth.effect
    assert back.p_value() == forth.p_value()
    assert back.equivalence(0.1).p == pytest.approx(forth.equivalence(0.1).p, rel=1e-12)


def _draws(n: int, times: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(times, n))


def test_unbiased_effect_is_unbiased():
    """E d_z = delta/J for normal differences, so g_z is unbiased and d_z is not."""
    delta, n = 0.8, 5
    pairs = [Paired(row + delta) for row in _draws(n, 4000)]
    unbiased, plain = (np.array([getattr(p, name) for p in pairs]) for name in ("effect_unbiased", "effect"))
    error = unbiased.std() / math.sqrt(len(unbiased))
    assert abs(unbiased.mean() - delta) < 4 * error
    assert abs(plain.mean() - delta) > 8 * error
    assert pairs[0].effect_unbiased / pairs[0].effect == pytest.approx(1 - 3 / (4 * (n - 1) - 1), rel=0.01)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_interval_covers_the_mean_with_its_confidence(n):
    times = 2000
    covered = 0
    for row in _draws(n, times, seed=n) * 0.3 + 1.7:
        interval = Paired(row).interval(0.9)
        covered += interval.low <= 1.7 <= interval.high
    assert abs(covered / times - 0.9) < 4 * math.sqrt(0.9 * 0.1 / times)


def test_equivalence_is_accepted_at_the_margin_with_probability_at_most_alpha():
    times, margin = 2000, 1.0
    granted = sum(Paired(row * 0.2 + margin).equivalence(margin).holds for row in _draws(5, times))
    assert abs(granted / times - 0.05) < 4 * math.sqrt(0.05 * 0.95 / times)


@pytest.mark.parametrize(("n", "margin", "difference"), [(3, 1.0, 0.0), (5, 1.0, 0.3), (12, 0.6, 0.0)])
def test_power_equals_a_simulation(n, margin, difference):
    rows = _draws(n, 20000, seed=7) + difference
    half = stdtrit(n - 1, 0.95) * rows.std(axis=1, ddof=1) / math.sqrt(n)
    found = np.mean(np.abs(rows.mean(axis=1)) + half < margin)
    power = equivalence_power(margin, 1.0, n, difference)
    assert abs(found - power) < 4 * math.sqrt(power * (1 - power) / len(rows)) + 1e-4


def test_pairs_needed_is_the_smallest_number():
    n = pairs_needed(0.5, 1.0)
    assert n is not None
    assert equivalence_power(0.5, 1.0, n) >= 0.8 > equivalence_power(0.5, 1.0, n - 1)
    assert pairs_needed(1e-6, 1.0) is None
    assert pairs_needed(0.5, 0.0) == 2


def test_holm_equals_the_step_down_procedure_of_the_paper():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    with_gap = holm([0.01, math.nan, 0.02])
    assert with_gap[0] == 0.02 and math.isnan(with_gap[1]) and with_gap[2] == 0.02
    assert holm([]) == []


@pytest.mark.parametrize("difference", [0.0, 0.1])  # a summed mean of five times 0.1 differs from 0.1
def test_equal_differences_allow_no_test(difference):
    paired = Paired(np.full(5, difference))
    assert paired.mean == difference and paired.std == 0 and paired.identical == (difference == 0)
    assert math.isnan(paired.p_value()) and math.isnan(paired.sign_flip()) and math.isnan(paired.sign_flip(1.0))
    assert not paired.equivalence(1.0).holds and math.isnan(paired.equivalence(1.0).p)
    assert (paired.interval().low, paired.interval().high) == (-math.inf, math.inf) and paired.excluded() == math.inf


def test_almost_equal_differences_are_tested():
    near = Paired(0.1 + 1e-9 * np.arange(5))
    assert near.p_value() < 1e-20 and near.equivalence(0.05).p == pytest.approx(1)
    assert near.equivalence(0.2).p < 1e-20


def test_rare_differences_just_at_the_margin_are_not_called_equivalent():
    """One seed in ten makes a difference of 1, so five equal seeds are common; no study may exclude the mean 0.1."""
    drawn = (np.random.default_rng(0).random((2000, 5)) < 0.1).astype(float)
    identical = np.mean([Paired(row).identical for row in drawn])
    assert abs(identical - 0.59) < 0.04
    assert np.mean([Paired(row).equivalence(0.1).holds for row in drawn]) <= 0.05
    assert unseen_fraction(5) == pytest.approx(1 - 0.05 ** (1 / 5)) and 0.9**5 > 0.05  # 10 % is not excluded


def test_advice_from_the_upper_limit_of_the_spread_has_the_power_that_it_states():
    n, margin = 5, 1.0
    stds = np.sqrt(np.random.default_rng(0).chisquare(n - 1, 100) / (n - 1))
    upper = [pairs_needed(margin, upper_std(std, n)) for std in stds]
    plain = [pairs_needed(margin, std) for std in stds]
    powers = {pairs: equivalence_power(margin, 1.0, pairs) for pairs in {*upper, *plain}}
    assert np.mean([powers[pairs] >= 0.8 for pairs in upper]) > 0.68  # 0.8, less three standard errors
    assert np.mean([powers[pairs] >= 0.8 for pairs in plain]) < 0.58


def test_sign_flip_tests_enumerate_all_assignments():
    d = B - A
    signs = np.array(list(itertools.product((-1, 1), repeat=len(d))))
    assert Paired(d).sign_flip() == np.mean(np.abs(signs @ d) >= abs(d.sum()) - 1e-12)
    above, below = (np.mean(signs @ side >= side.sum() - 1e-12) for side in (0.1 - d, 0.1 + d))
    assert Paired(d).sign_flip(0.1) == max(above, below)
    assert Paired(np.array([1.0, 2.0, 3.0, 4.0, 5.0])).sign_flip() == sign_flip_floor(5) == 2 / 32
    assert Paired(np.array([0.1, 0.2, 0.0, 0.1, 0.2])).sign_flip(1.0) == sign_flip_floor(5, sides=1) == 1 / 32
    many = np.random.default_rng(0).normal(size=40)
    assert abs(Paired(many).sign_flip() - Paired(many).p_value()) < 0.02
    assert sign_flip_floor(40) < 1e-4


def test_sign_flip_holds_its_level_for_exchangeable_arms_of_any_distribution():
    rng = np.random.default_rng(0)
    d = np.exp(1.5 * rng.normal(size=(1500, 8))) - np.exp(1.5 * rng.normal(size=(1500, 8)))
    found = np.mean([sign_flip_p_value(row) <= 0.05 for row in d])
    assert abs(found - 12 / 256) < 4 * math.sqrt(0.05 * 0.95 / len(d))  # the largest level that 2^8 assignments have


def test_one_pair_has_no_std():
    for difference in (0.0, 0.3):
        paired = Paired(np.array([difference]))
        assert paired.mean == difference and math.isnan(paired.std) and math.isnan(paired.p_value())
        assert (paired.interval().low, paired.interval().high) == (-math.inf, math.inf)
        assert not paired.equivalence(10.0).holds and paired.excluded() == math.inf
    assert math.isnan(Paired(np.array([0.0, 1.0])).effect_unbiased)


def test_two_pairs_follow_the_cauchy_distribution():
    paired = Paired(np.array([0.0, 1.0]))  # mean 1/2, standard error 1/2
    assert paired.p_value() == pytest.approx(0.5, rel=1e-12)
    assert paired.equivalence(1.0).p == pytest.approx(float(stdtr(1, -1.0)), rel=1e-12)


def test_invalid_values_and_options_are_refused():
    with pytest.raises(DuetError, match="one value per seed"):
        compare([1.0], [1.0, 2.0])
    with pytest.raises(DuetError, match="finite numbers, at least one"):
        compare([], [])
    with pytest.raises(DuetError, match="finite"):
        compare([1.0], [math.nan])
    with pytest.raises(DuetError, match="margin: 0 was given"):
        compare(A, B).equivalence(0)
    with pytest.raises(DuetError, match=r"alpha: 0\.6 was given"):
        compare(A, B).equivalence(1, 0.6)
    with pytest.raises(DuetError, match="scale: 'log' was given"):
        compare(A, B, "log")
