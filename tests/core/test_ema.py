"""The moving average: decays, closed form and fixed point."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_core.ema import Ema, ema_update
from diffusion_core.errors import DuetError


def test_warm_up_follows_its_formula_until_the_final_decay():
    ema = Ema(0.9999)
    assert [ema(1), ema(2), ema(8)] == [2 / 11, 3 / 12, 9 / 18]
    assert ema(10**9) == 0.9999
    decays = [ema(k) for k in range(1, 2000)]
    assert decays == sorted(decays) and max(decays) <= 0.9999


def test_without_warm_up_the_decay_is_constant():
    assert {Ema(0.5, warmup=False)(k) for k in (1, 2, 1000)} == {0.5}


@pytest.mark.parametrize("warmup", [True, False])
def test_an_average_that_starts_later_follows_the_weights_until_then(warmup):
    late, soon = Ema(0.99, warmup, start=5), Ema(0.99, warmup)
    assert [late(k) for k in range(1, 6)] == [0.0] * 5
    assert [late(k) for k in range(6, 3000)] == [soon(k) for k in range(1, 2995)]
    # So after the last of them it is the weights, whatever it was before.
    rng = np.random.default_rng(0)
    average = {"w": rng.normal(size=3)}
    for k in range(1, 6):
        weights = {"w": rng.normal(size=3)}
        average = ema_update(average, weights, late(k))
    np.testing.assert_allclose(average["w"], weights["w"], rtol=0, atol=1e-15)


def test_a_start_before_the_run_is_refused():
    with pytest.raises(DuetError, match=r"ema\.start: -1 was given; it is a number of updates"):
        Ema(start=-1)


def test_a_low_decay_ends_its_warm_up_early():
    assert Ema(0.1)(1) == 0.1


@given(st.floats(0, 0.9999), st.floats(-5, 5), st.floats(-5, 5), st.integers(1, 30))
def test_constant_weights_are_approached_geometrically(decay, start, goal, steps):
    ema = {"w": np.array([start])}
    for _ in range(steps):
        ema = ema_update(ema, {"w": np.array([goal])}, decay)
    assert ema["w"][0] == pytest.approx(goal + decay**steps * (start - goal), abs=1e-12)


def test_the_weights_themselves_are_a_fixed_point():
    weights = {"a": np.array([0.1, -3.7]), "b": np.array([[1e-30]])}
    for decay in (0.0, 0.3, 0.9999):
        after = ema_update(weights, weights, decay)
        assert all(np.array_equal(after[name], weights[name]) for name in weights)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(DuetError, match=r"ema.decay: .* must be in \[0, 1\)"):
        Ema(decay)
