"""Noise strips: images look the same at the same sigma/alpha, and levels lie where changes are visible."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_core.diffusion.process import Process, add_noise
from diffusion_core.diffusion.schedule import make_schedule
from diffusion_core.model.noise_strip import to_visible, visible_rows, visible_timesteps
from diffusion_core.sampling import make_plan

NAMES = ["linear", "cosine", "flow", "plain_as_written", "vp_sde", "ve_sde", "edm", "flow_continuous"]


@pytest.mark.parametrize("name", NAMES)
def test_levels_have_equal_distances_in_log_snr(name):
    schedule = make_schedule(name)
    alpha, sigma = schedule(visible_timesteps(schedule, 9))
    low, high = np.clip([0.05, 10.0], *np.exp(schedule.log_ratio_range))
    np.testing.assert_allclose(sigma / alpha, np.geomspace(low, high, 9), rtol=1e-9)


def test_all_processes_look_the_same_at_the_same_noise_level():
    rng = np.random.default_rng(0)
    x0, eps = rng.uniform(-1, 1, (4, 8, 8, 1)), rng.normal(size=(4, 8, 8, 1))
    for ratio in (0.0, 0.3, 7.0):
        expected = to_visible(x0 + ratio * eps, 1.0, ratio)
        for alpha in (0.02, 1 / np.hypot(1, ratio), 1 / (1 + ratio)):
            np.testing.assert_array_equal(
                to_visible(add_noise(x0, eps, alpha, alpha * ratio), alpha, alpha * ratio), expected
            )
        # The same images in another value range.
        x, sigma = add_noise((x0 + 1) / 2, eps, 0.5, 0.25 * ratio), 0.25 * ratio
        np.testing.assert_array_equal(to_visible(x, 0.5, sigma, (0.0, 1.0)), expected)


def test_one_standard_deviation_of_noise_fills_the_range():
    eps = np.random.default_rng(0).normal(size=(100, 100, 1))
    for alpha, sigma in ((0.0, 1.0), (1.0, 80.0)):
        out = np.isin(to_visible(sigma * eps, alpha, sigma), (0, 255)).mean()
        assert out == pytest.approx(0.317, abs=0.01)


@pytest.mark.parametrize("name, sampler, options", [
    ("edm", "ddim", {"steps": 60, "spacing": "karras"}), ("edm", "ddim", {"steps": 1000}),
    ("linear", "ddpm", {"steps": None}), ("flow", "flow_euler", {"steps": 200}),
])  # fmt: skip
def test_visible_rows_cover_the_visible_levels(name, sampler, options):
    plan = make_plan(Process(make_schedule(name), "v" if name != "edm" else "edm"), sampler, **options)
    rows = visible_rows(plan, 10)
    assert len(rows) == 10 and rows[-1] == plan.rows - 1 and np.all(np.diff(rows) > 0)
    logs = np.clip(np.log(plan.sigma[1:-1] / plan.alpha[1:-1]), np.log(0.05), np.log(10.0))
    expected = np.linspace(logs.max(), logs.min(), 9)
    # At most half of the plan's own step away.
    steps = np.abs(np.diff(logs)).max()
    assert np.abs(logs[rows[:-1]] - expected).max() <= steps / 2 + 1e-12


def test_a_plan_with_few_rows_is_shown_completely():
    plan = make_plan(Process(make_schedule("linear"), "eps"), "ddim", steps=3, spacing="linspace")
    assert visible_rows(plan, 10).tolist() == [0, 1, 2]
    plan = make_plan(Process(make_schedule("linear"), "eps"), "ddim", steps=1)
    assert visible_rows(plan, 10).tolist() == [0]
