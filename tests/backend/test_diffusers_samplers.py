"""Our plans against the schedulers of diffusers, which is there wherever PyTorch is: same levels, noise and network.

Their tables are float32, so numbers agree to about 1e-6 of their size.
"""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_core.process import Process
from diffusion_core.sampling import dpm_solver
from diffusion_core.schedule import linear

SHAPE = (2, 3, 4, 4)


def network(x: np.ndarray, t: int) -> np.ndarray:
    """Any smooth function of both."""
    return np.sin(1.3 * x + t / 500.0)


def trajectories(order: int, sde: bool, kind: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The final images of both, the states in float64."""
    import torch
    from diffusers import DPMSolverMultistepScheduler

    plan = dpm_solver(Process(linear(), "eps"), steps, order, sde, kind, clip=None)
    theirs = DPMSolverMultistepScheduler(
        beta_start=1e-4, beta_end=0.02, algorithm_type="sde-dpmsolver++" if sde else "dpmsolver++",
        solver_order=order, solver_type=kind, final_sigmas_type="zero",
    )  # fmt: skip
    theirs.set_timesteps(timesteps=plan.t.tolist())
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal(SHAPE), rng.standard_normal((steps, *SHAPE))
    y, history = torch.from_numpy(x), [np.zeros(SHAPE)] * plan.history
    for i in range(steps):
        estimate = plan.c_skip[i] * x + plan.c_out[i] * network(x, plan.t[i])
        history = [estimate, *history[:-1]]
        x = plan.state[i, 0, 0] * x + plan.noise[i, 0] * noise[i]
        x = x + sum(plan.denoised[i, 0, k] * history[k] for k in range(plan.history))
        output, z = torch.from_numpy(network(y.numpy(), plan.t[i])), torch.from_numpy(noise[i])
        y = theirs.step(output, theirs.timesteps[i], y, variance_noise=z).prev_sample
    return x, y.numpy()


@pytest.mark.parametrize("steps", [5, 10, 20])
@pytest.mark.parametrize("kind", ["midpoint", "heun"])
@pytest.mark.parametrize("order, sde", [(1, False), (2, False), (3, False), (1, True), (2, True)])
def test_dpm_solver_is_that_of_diffusers(order, sde, kind, steps):
    ours, theirs = trajectories(order, sde, kind, steps)
    # Their weights of a difference of two estimates are float32, and estimates at t = 999 are 157 times the network's.
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_the_stochastic_third_order_of_diffusers_has_a_sign_of_its_own():
    """Its weight of the second difference is -(k - 1 + e^-k)/k^2 - 1/2 with k = 2h, where the integral of the
    parabola, as in its own deterministic form, gives 1/2 - (k - 1 + e^-k)/k^2; see test_dpm_solver.py.
    """
    ours, theirs = trajectories(3, True, "midpoint", 20)
    assert np.abs(ours - theirs).max() > 0.05 * np.abs(theirs).max()
