"""Duet's schedules compared with those of diffusers, which is installed with PyTorch.

Their tables are float32, with alphas_cumprod as a plain product; numbers agree to 1e-6.
"""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_core.diffusion.schedule import Schedule, make_schedule

# Duet's name and options, and those of diffusers.
NAMES = {
    "linear": ({}, {"beta_schedule": "linear"}),
    "scaled_linear": ({}, {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
    "cosine": ({}, {"beta_schedule": "squaredcos_cap_v2"}),
    "sigmoid_betas": ({}, {"beta_schedule": "sigmoid"}),
    "laplace": ({}, {"beta_schedule": "laplace"}),
}


def betas_of(schedule: Schedule) -> np.ndarray:
    """Return the betas of a variance-preserving schedule."""
    signal = schedule.alpha**2
    return 1 - signal / np.append(1.0, signal[:-1])


@pytest.mark.parametrize("T", [2, 50, 1000])
@pytest.mark.parametrize("name", NAMES)
def test_schedules_equal_those_of_diffusers(name: str, T: int) -> None:
    from diffusers import DDPMScheduler

    ours, theirs = NAMES[name]
    schedule, scheduler = make_schedule(name, T=T, **ours), DDPMScheduler(T, **theirs)
    np.testing.assert_allclose(betas_of(schedule), scheduler.betas.numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(schedule.alpha**2, scheduler.alphas_cumprod.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("T", [2, 50, 1000])
@pytest.mark.parametrize("name, theirs", [("cosine", "cosine"), ("laplace", "laplace"), ("exponential", "exp")])
def test_betas_for_alpha_bar_equal_those_of_diffusers(name: str, theirs: str, T: int) -> None:
    from diffusers.schedulers.scheduling_ddpm import betas_for_alpha_bar

    expected = betas_for_alpha_bar(T, alpha_transform_type=theirs).numpy()
    np.testing.assert_allclose(betas_of(make_schedule(name, T=T)), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_zero_terminal_snr_equals_that_of_diffusers(name: str) -> None:
    from diffusers import DDPMScheduler

    ours, theirs = NAMES[name]
    schedule = make_schedule(name, **ours, zero_terminal_snr=True)
    scheduler = DDPMScheduler(**theirs, rescale_betas_zero_snr=True)
    np.testing.assert_allclose(schedule.alpha**2, scheduler.alphas_cumprod.numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(betas_of(schedule)[-1], scheduler.betas.numpy()[-1], rtol=0, atol=0)
    # The option changes far more than the tolerance.
    assert np.abs(make_schedule(name, **ours).alpha ** 2 - schedule.alpha**2).max() > 1e-5


def test_the_flow_shift_equals_that_of_diffusers() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    schedule = make_schedule("flow", T=1000, shift_from=64, shift_to=192)
    scheduler = FlowMatchEulerDiscreteScheduler(1000, shift=3.0)
    np.testing.assert_allclose(schedule.sigma[::-1], scheduler.sigmas.numpy(), rtol=0, atol=1e-6)
