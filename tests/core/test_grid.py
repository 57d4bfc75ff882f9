"""Grids of noise levels: closed forms, ends, and their timesteps."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import cosine, flow, linear, make_schedule
from diffusion_core.sampling.ddim import ddim
from diffusion_core.sampling.grid import GRIDS, make_timesteps
from diffusion_core.sampling.spacing import SPACINGS, table_timesteps


def ratios(spacing, steps=9, schedule=None):
    """Return sigma/alpha at the timesteps."""
    schedule = schedule or linear()
    alpha, sigma = schedule(make_timesteps(schedule, steps, spacing))
    return sigma / alpha


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("schedule", [linear(), cosine()], ids=lambda s: s.name)
def test_grids_fall_from_the_noisiest_to_the_least_noisy_level(name, schedule):
    r = ratios(name, 12, schedule)
    assert np.all(np.diff(r) < 0)
    # Both tables end above r = 100, where grids start by default.
    np.testing.assert_allclose(r[[0, -1]], [100.0, np.exp(schedule.log_ratio[0])], rtol=1e-9)
    assert make_timesteps(schedule, 1, name) == pytest.approx(schedule.t_at_log_ratio([np.log(100.0)]))


def test_each_grid_has_equal_steps_in_its_own_variable():
    np.testing.assert_allclose(np.diff(ratios("karras") ** (1 / 7), 2), 0, atol=1e-9)
    np.testing.assert_allclose(np.diff(ratios({"name": "karras", "rho": 3.0}) ** (1 / 3), 2), 0, atol=1e-9)
    for name in ("exponential", "log_snr", "polyexponential"):
        np.testing.assert_allclose(np.diff(np.log(ratios(name)), 2), 0, atol=1e-9)
    fraction = (np.log(ratios({"name": "polyexponential", "rho": 2.0})) - linear().log_ratio[0]) / np.ptp(
        linear().log_ratio
    )
    np.testing.assert_allclose(np.diff(np.sqrt(np.maximum(fraction, 0)), 2), 0, atol=1e-7)
    # Beta(1, 1) is uniform.
    np.testing.assert_allclose(np.diff(ratios({"name": "beta", "a": 1.0, "b": 1.0}), 2), 0, atol=1e-9)


def test_the_karras_grid_has_its_published_values():
    # Karras et al., eq. 5, with sigma 80 .. 0.002 and rho 7, computed by hand for N = 3.
    middle = ((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7
    got = ratios({"name": "karras", "sigma_min": 0.02, "sigma_max": 80.0}, 3)
    np.testing.assert_allclose(got, [80, ((80 ** (1 / 7) + 0.02 ** (1 / 7)) / 2) ** 7, 0.02], rtol=1e-9)
    assert middle == pytest.approx(2.5152, abs=1e-4)


def test_spacings_without_grid_use_the_table():
    for spacing in [*SPACINGS, [900, 40, 3], None]:
        np.testing.assert_array_equal(
            make_timesteps(linear(), 3 if spacing else None, spacing),
            table_timesteps(1000, 3 if spacing else None, spacing),
        )
    np.testing.assert_array_equal(
        make_timesteps(linear(), 7, {"name": "trailing"}), table_timesteps(1000, 7, "trailing")
    )


def test_a_plan_on_a_grid_evaluates_at_fractional_t():
    plan = ddim(Process(linear(), "v"), 6, spacing="karras", clip=None)
    np.testing.assert_allclose(plan.sigma[:-1] / plan.alpha[:-1], ratios("karras", 6), rtol=1e-12)
    assert np.any(plan.t != np.floor(plan.t))
    np.testing.assert_array_equal(plan.c_noise, plan.t)
    np.testing.assert_allclose(np.hypot(plan.alpha, plan.sigma), 1, atol=1e-13)


@pytest.mark.parametrize("steps, spacing, message", [
    (5, "carras", "sampler.spacing: 'carras' was given; it must be one of leading, linspace, half_open, trailing"),
    (5, {"name": "carras"}, "must be one of leading"),
    (5, {"rho": 7.0}, "must be one of leading"),
    (5, {"name": "leading", "rho": 7.0}, "must be one of leading"),
    (5, {"name": "karras", "roh": 7.0}, "option of sampler.spacing 'karras'"),
    (5, {"name": "karras", "rho": 0.0}, "sampler.spacing.rho: 0.0 was given"),
    (5, {"name": "beta", "a": -1.0}, "sampler.spacing.a"),
    (5, {"name": "karras", "sigma_max": 1000.0}, "was given; the schedule has"),
    (5, {"name": "karras", "sigma_min": 3.0, "sigma_max": 2.0}, "from sigma_max 2 to sigma_min 3"),
    (0, "karras", "sampler.steps: 0 was given"),
    (None, "karras", "sampler.steps: None was given"),
])  # fmt: skip
def test_invalid_grids_are_errors(steps, spacing, message):
    with pytest.raises(DuetError, match=message):
        make_timesteps(linear(), steps, spacing)


def test_schedules_that_end_without_signal_have_grids():
    assert ratios("karras", 5, flow())[0] == pytest.approx(100)
    r = ratios({"name": "karras", "sigma_max": 50.0}, 5, flow())
    assert r[0] == pytest.approx(50)
    # An explicit sigma_max may exceed 100.
    assert ratios({"name": "karras", "sigma_max": 150.0}, 5)[0] == pytest.approx(150)
    assert ratios("karras", 5, make_schedule("edm"))[0] == pytest.approx(80)
