"""Restarts: their levels, what they preserve, and that they reduce errors."""

from __future__ import annotations

import numpy as np
import pytest
from exact import NORMAL, moments

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import flow, linear
from diffusion_core.sampling.euler import euler
from diffusion_core.sampling.heun import heun
from diffusion_core.sampling.restart import restart

LINEAR = Process(linear(), "v")
GRID = {"name": "karras", "sigma_min": 0.02, "sigma_max": 80.0}


def ratios(plan):
    return plan.sigma[:-1] / plan.alpha[:-1]


@pytest.mark.parametrize("order, method", [(1, euler), (2, heun)])
def test_without_restarts_it_equals_heun_or_euler(order, method):
    one, other = restart(LINEAR, 9, [], order, spacing=GRID), method(LINEAR, 9, GRID, None)
    for name, table in one.tables().items():
        np.testing.assert_array_equal(table, getattr(other, name), err_msg=name)


def test_the_default_has_the_evaluations_of_the_paper():
    """N_restart = 3 levels, K = 2, from 0.06 to 0.30: 35 + 8 evaluations, and noise twice."""
    plan = restart(LINEAR, spacing=GRID)
    assert plan.rows == 18 * 2 - 1 + 2 * 2 * 2
    (jumps,) = np.nonzero(plan.is_noisy)
    r = ratios(plan)
    assert len(jumps) == 2
    plain = ratios(heun(LINEAR, 18, GRID))[::2]
    low = plain[np.argmin(np.abs(np.log(plain / 0.06)))]
    for row in jumps:
        # Down to the low level and up; then one level between in r^(1/7), each with two rows of Heun.
        between = ((0.3 ** (1 / 7) + low ** (1 / 7)) / 2) ** 7
        np.testing.assert_allclose(r[row + 1 : row + 5], [0.3, between, between, low], rtol=1e-9)
        assert plan.noise[row, 0] / plan.alpha[row + 1] == pytest.approx(np.sqrt(0.3**2 - low**2), rel=1e-9)
    np.testing.assert_allclose(r[jumps[-1] + 5], low, rtol=1e-12)


def test_steps_null_uses_as_many_steps_as_the_run():
    plan = restart(LINEAR, 40, [{"low": 0.06, "high": 0.3}], 1, spacing=GRID)
    r = ratios(plan)
    (jump,) = np.nonzero(plan.is_noisy)[0]
    run = ratios(euler(LINEAR, 40, GRID))
    inside = np.count_nonzero((run <= 0.3) & (run > run[np.argmin(np.abs(np.log(run / 0.06)))]))
    assert plan.rows == 40 + inside and inside > 2
    assert r[jump + 1] == pytest.approx(0.3)


def test_a_missing_low_level_is_added():
    plan = restart(LINEAR, 1, [{"low": 0.06, "high": 0.3, "steps": 2}], 1, spacing="linspace")
    np.testing.assert_allclose(ratios(plan)[1:3], [0.3, ((0.3 ** (1 / 7) + 0.06 ** (1 / 7)) / 2) ** 7], rtol=1e-9)
    assert ratios(plan)[3] == pytest.approx(0.06) and plan.rows == 4


def test_restarts_reduce_errors():
    """For samples that start with a wrong mean, each restart contracts the error."""
    run = {"order": 2, "spacing": {"name": "karras", "sigma_min": 0.02, "sigma_max": 2.0}}

    def wrong(times):
        restarts = [{"low": 0.06, "high": 1.5, "times": times}] if times else []
        return abs(moments(restart(LINEAR, 40, restarts, **run), shift=0.5)[0] - NORMAL.means[0])

    once, twice, never = wrong(1), wrong(2), wrong(0)
    assert never > 0.05
    assert once < 0.5 * never and twice < 0.5 * once


@pytest.mark.parametrize("restarts, message", [
    ([{"low": 0.3, "high": 0.06}], "low 0.3 was given with high 0.06; they must be two rising"),
    ([{"low": 0.0, "high": 0.06}], "low 0.0 was given"),
    ([{"low": 0.1, "high": 0.5, "times": 0}], "0 times of None steps"),
    ([{"low": 0.1, "high": 0.5, "steps": 0}], "1 times of 0 steps"),
    ([{"low": 0.1, "hihg": 0.5}], "Did you mean 'high'"),
    ([{"low": 0.1}], "no high was given"),
    ([{"low": 0.1, "high": 1e6}], "1e.06 was given; the schedule has"),
    ("0.1", "sampler.restarts: '0.1' was given; it must be a list"),
    ([0.1, 0.5], "it must be a list"),
])  # fmt: skip
def test_invalid_restarts_are_errors(restarts, message):
    with pytest.raises(DuetError, match=message):
        restart(LINEAR, 9, restarts, spacing=GRID)


def test_an_invalid_order_or_missing_signal_is_an_error():
    with pytest.raises(DuetError, match="order: 3 was given"):
        restart(LINEAR, 9, order=3)
    with pytest.raises(DuetError, match="its first level has no signal"):
        restart(Process(flow(), "v"), 9, spacing="linspace")
    assert restart(Process(flow(), "v"), 9, order=1, spacing="linspace").rows == 13
