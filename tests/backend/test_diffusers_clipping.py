"""Clipping and dynamic thresholding in DDIM and its inversion, compared with diffusers and with guided-diffusion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from exact import execute

from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import linear
from diffusion_core.sampling import SamplerPlan, make_plan

LINEAR = Process(linear(), "eps")
BETAS = {"beta_start": 1e-4, "beta_end": 0.02}
SHAPE = (2, 3, 4, 4)
RNG = np.random.default_rng(0)
START, NOISE = 1.5 * RNG.standard_normal(SHAPE), RNG.standard_normal((10, *SHAPE))


def network(x: np.ndarray, t: float) -> np.ndarray:
    """Return an eps whose estimates exceed the range of images at many timesteps."""
    return np.sin(1.3 * x + t / 500.0)


def states(plan: SamplerPlan) -> list[np.ndarray]:
    """Return the state after each row of a plan, estimates clipped."""

    def estimate(row: int, x: np.ndarray) -> np.ndarray:
        return plan.c_skip[row] * x + plan.c_out[row] * network(x, plan.c_noise[row])

    return [execute(plan, START, estimate, n + 1, lambda i: NOISE[i], clip=True) for n in range(plan.rows)]


def states_of_diffusers(plan: SamplerPlan, name: str, options: dict[str, Any], step: dict[str, Any]) -> list:
    import diffusers
    import torch

    scheduler = getattr(diffusers, name)(**BETAS, **options)
    scheduler.set_timesteps(plan.rows)
    scheduler.alphas_cumprod = torch.from_numpy(linear().alpha ** 2)
    x, found = torch.from_numpy(START), []
    for row, t in enumerate(scheduler.timesteps):
        assert t == plan.t[row]
        noise = {"variance_noise": torch.from_numpy(NOISE[row])} if step.get("eta") else {}
        x = scheduler.step(torch.from_numpy(network(x.numpy(), float(t))), t, x, **step, **noise).prev_sample
        found.append(x.numpy())
    return found


CASES = {
    "eps of the network": ({"clip": 1.0, "use_clipped_model_output": False}, {}, {}),
    "eps of the clipped estimate": ({"clip": 1.0}, {}, {"use_clipped_model_output": True}),
    "another range, with noise": (
        {"clip": 0.7, "use_clipped_model_output": False, "eta": 0.5}, {"clip_sample_range": 0.7}, {"eta": 0.5},
    ),
    "dynamic threshold with an upper limit": (
        {"clip": 1.0, "threshold": 0.6, "threshold_max": 1.3},
        {"thresholding": True, "dynamic_thresholding_ratio": 0.6, "sample_max_value": 1.3},
        {"use_clipped_model_output": True},
    ),
    "dynamic threshold, eps of the network": (
        {"clip": 1.0, "threshold": 0.6, "threshold_max": 1.3, "use_clipped_model_output": False},
        {"thresholding": True, "dynamic_thresholding_ratio": 0.6, "sample_max_value": 1.3},
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_ddim_with_a_clip_equals_diffusers(case):
    ours, options, step = CASES[case]
    plan = make_plan(LINEAR, "ddim", steps=10, **ours)
    wanted = states_of_diffusers(plan, "DDIMScheduler", options, step)
    np.testing.assert_allclose(states(plan), wanted, rtol=0, atol=1e-10)
    # The comparison would not notice a clip that nothing reaches.
    without = make_plan(LINEAR, "ddim", steps=10, eta=ours.get("eta", 0.0), clip=None)
    assert np.abs(np.subtract(states(without), wanted)).max() > 0.01


def test_inversion_with_a_clip_equals_diffusers():
    plan = make_plan(LINEAR, "ddim_inversion", steps=10, clip=1.0, use_clipped_model_output=False)
    wanted = states_of_diffusers(plan, "DDIMInverseScheduler", {"clip_sample": True}, {})
    np.testing.assert_allclose(states(plan), wanted, rtol=0, atol=1e-10)
    assert np.abs(np.subtract(states(make_plan(LINEAR, "ddim_inversion", steps=10)), wanted)).max() > 0.01


def test_inversion_with_a_clip_equals_guided_diffusion():
    """ddim_reverse_sample: eps of the clipped estimate at the level of x_t, which then leads one level up."""
    plan = make_plan(LINEAR, "ddim_inversion", steps=10, ask="current", clip=1.0)
    bar, x, wanted = linear().alphas_cumprod[np.arange(0, 1000, 100)], START, []
    for row in range(9):
        now, after = bar[row], bar[row + 1]
        x0 = np.clip(np.sqrt(1 / now) * x - np.sqrt(1 / now - 1) * network(x, 100 * row), -1, 1)
        eps = (np.sqrt(1 / now) * x - x0) / np.sqrt(1 / now - 1)
        x = x0 * np.sqrt(after) + np.sqrt(1 - after) * eps
        wanted.append(x)
    np.testing.assert_allclose(states(plan), wanted, rtol=1e-10, atol=1e-10)
