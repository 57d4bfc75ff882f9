"""The bootstrap interval has the coverage that it states."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from diffusion_core.common.errors import DuetError
from diffusion_core.statistics import Interval, bootstrap_interval


@pytest.mark.parametrize("n", [3, 6])
def test_interval_covers_the_mean_with_its_confidence(n):
    rng, trials = np.random.default_rng(n), 300
    found = [bootstrap_interval(rng.normal(2.0, 3.0, n), replicates=400) for _ in range(trials)]
    held = np.mean([i.low <= 2.0 <= i.high for i in found])
    assert held == pytest.approx(0.945, abs=0.04)  # three standard deviations of a fraction of 300
    # The plain percentile interval of the same draws does not.
    wider = np.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1) / stats.norm.ppf(0.975)
    middles = [(i.low + i.high) / 2 for i in found]
    plain = np.mean([abs(m - 2.0) <= (i.high - i.low) / 2 / wider for m, i in zip(middles, found, strict=True)])
    assert plain < 0.9


def test_interval_of_many_values_equals_the_normal_interval():
    x = np.random.default_rng(0).exponential(2.0, 300)
    found, half = bootstrap_interval(x, confidence=0.9), stats.norm.ppf(0.95) * x.std() / np.sqrt(300)
    assert found.low == pytest.approx(x.mean() - half, abs=0.08 * half)
    assert found.high == pytest.approx(x.mean() + half, abs=0.08 * half)


def test_interval_moves_and_scales_with_its_values_and_is_reproducible():
    x = np.random.default_rng(0).exponential(size=9)
    a, b = bootstrap_interval(x), bootstrap_interval(3 * x - 1)
    assert (b.low, b.high) == pytest.approx((3 * a.low - 1, 3 * a.high - 1))
    assert a == bootstrap_interval(x) != bootstrap_interval(x, seed=1)
    assert bootstrap_interval(np.full(3, 0.3)) == Interval(pytest.approx(0.3), pytest.approx(0.3), 0.95)
    assert a.around(3.5, 0.5).high == pytest.approx(a.high - 3.0)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([1.0, 2.0], {}, r"shape \(2,\)"),
        ([1.0, 2.0, np.nan], {}, "2 of them finite"),
        ([[1.0, 2.0, 3.0]], {}, "at least 3 finite values"),
        ([1.0, 2.0, 3.0], {"confidence": 95}, "confidence 95"),
        ([1.0, 2.0, 3.0], {"replicates": 0}, "0 replicates"),
    ],
)
def test_invalid_values_and_options_are_refused(values, options, message):
    with pytest.raises(DuetError, match=message):
        bootstrap_interval(values, **options)
