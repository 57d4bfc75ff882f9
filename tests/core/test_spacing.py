"""Which levels are visited."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_core.errors import DuetError
from diffusion_core.sampling.spacing import SPACINGS, spaced

EXPECTED = {
    (1000, 10, "leading"): [900, 800, 700, 600, 500, 400, 300, 200, 100, 0],
    (1000, 10, "linspace"): [999, 888, 777, 666, 555, 444, 333, 222, 111, 0],
    (1000, 10, "trailing"): [999, 899, 799, 699, 599, 499, 399, 299, 199, 99],
    (1000, 7, "leading"): [852, 710, 568, 426, 284, 142, 0],
    (1000, 7, "linspace"): [999, 832, 666, 500, 333, 166, 0],  # 499.5 and 832.5, 166.5 to the even number
    (1000, 7, "trailing"): [999, 856, 713, 570, 428, 285, 142],
    (10, 3, "leading"): [6, 3, 0],
    (10, 3, "linspace"): [9, 4, 0],
    (10, 3, "trailing"): [9, 6, 2],
    (1000, 1, "leading"): [0],
    (1000, 1, "linspace"): [999],
    (1000, 1, "trailing"): [999],
}


@pytest.mark.parametrize("case", EXPECTED, ids=str)
def test_levels_are_the_published_ones(case):
    assert spaced(*case).tolist() == EXPECTED[case]


@pytest.mark.parametrize("spacing", SPACINGS)
@given(st.integers(1, 2000).flatmap(lambda T: st.tuples(st.just(T), st.integers(1, T))))
def test_levels_fall_within_the_table(spacing, case):
    T, steps = case
    t = spaced(T, steps, spacing)
    assert t.dtype == np.int64 and t.shape == (steps,)
    assert t[0] <= T - 1 and t[-1] >= 0 and np.all(np.diff(t) < 0)
    if spacing in ("linspace", "trailing"):
        assert t[0] == T - 1
    if spacing == "leading" or (spacing == "linspace" and steps > 1):
        assert t[-1] == 0
    if steps == T:
        assert t.tolist() == list(range(T))[::-1]


@pytest.mark.parametrize("T, steps, spacing, words", [
    (1000, 0, "leading", "sampler.steps: 0 was given; a schedule of 1000 levels has 1 to 1000 steps"),
    (1000, 1001, "trailing", "1001 was given"),
    (1000, -5, "linspace", "-5 was given"),
    (1000, 10, "traling", "Did you mean 'trailing'"),
])  # fmt: skip
def test_other_requests_are_refused(T, steps, spacing, words):
    with pytest.raises(DuetError, match=words):
        spaced(T, steps, spacing)
