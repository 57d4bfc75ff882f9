"""A scheduler of diffusers and the sampler that an import makes of it give the same samples.

The scheduler runs with its own timesteps and levels, in float32 as it is, so they agree to some 1e-4. Those with noise
are compared by their timesteps; their formulas are in test_diffusers_solvers.py and test_diffusers_steps.py.
"""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_core.convert.diffusers_sampler import read_sampler
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import linear
from diffusion_core.sampling import SamplerPlan, make_plan

STEPS = 10  # where no timestep of linspace needs rounding
PROCESS = Process(linear(), "eps")
X = np.random.default_rng(0).standard_normal((2, 3, 4, 4))
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "FutureWarning")]

DETERMINISTIC = [
    ("DDIMScheduler", {"clip_sample": False}),
    ("DDIMScheduler", {"timestep_spacing": "trailing", "clip_sample": False}),
    ("DDIMScheduler", {}),
    ("PNDMScheduler", {"set_alpha_to_one": True}),
    ("PNDMScheduler", {"set_alpha_to_one": True, "skip_prk_steps": True}),
    ("DEISMultistepScheduler", {}), ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3, "solver_type": "heun"}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    ("DPMSolverSinglestepScheduler", {"lower_order_final": True}), ("UniPCMultistepScheduler", {}),
    ("UniPCMultistepScheduler", {"solver_order": 3, "disable_corrector": [0, 1]}),
    ("EulerDiscreteScheduler", {}), ("LMSDiscreteScheduler", {}), ("HeunDiscreteScheduler", {}),
    ("KDPM2DiscreteScheduler", {}),
]  # fmt: skip
NOISY = [
    ("DDPMScheduler", {}), ("DDPMScheduler", {"variance_type": "fixed_large"}), ("SASolverScheduler", {}),
    ("EulerAncestralDiscreteScheduler", {}), ("KDPM2AncestralDiscreteScheduler", {}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
]  # fmt: skip


def network(x: np.ndarray, t: float) -> np.ndarray:
    """Return a smooth function of both arguments."""
    return np.sin(1.3 * x + t / 500.0)


def scheduler_and_plan(kind: str, options: dict) -> tuple[object, SamplerPlan]:
    """Return a scheduler of diffusers and the plan of its sampler."""
    import diffusers

    scheduler = getattr(diffusers, kind)(beta_start=1e-4, beta_end=0.02, **options)
    max_ratio = float(np.exp(PROCESS.schedule.log_ratio_range[1]))
    sampler, _ = read_sampler(dict(scheduler.config) | {"_class_name": kind}, max_ratio)
    scheduler.set_timesteps(STEPS)
    return scheduler, make_plan(PROCESS, sampler.pop("name"), **sampler | {"steps": STEPS})


def largest_difference(scheduler: object, plan: SamplerPlan, rows: int) -> float:
    """Return the largest difference of the last common state, relative to its size."""
    import torch

    X0, D = np.zeros((plan.registers, *X.shape)), np.zeros((plan.history, *X.shape))
    X0[0] = plan.start_scale * X
    # Some schedulers work on x / alpha.
    scaled = abs(float(getattr(scheduler, "init_noise_sigma", 1.0)) - 1) > 1e-6
    theirs = torch.from_numpy(X0[0] / (plan.alpha[0] if scaled else 1.0))
    for i in range(rows):
        estimate = plan.c_skip[i] * X0[0] + plan.c_out[i] * network(plan.c_in[i] * X0[0], plan.c_noise[i])
        kept = 0.0 if plan.unclipped is None else plan.unclipped[i, 0] * estimate
        if plan.clipped is not None:
            estimate = plan.clipped[i, 0] * X0[0] + plan.clipped[i, 1] * estimate
        estimate = estimate if plan.clip is None else np.clip(estimate, -plan.clip, plan.clip)
        D = np.concatenate([estimate[None], D[:-1]])
        X0 = np.tensordot(plan.state[i], X0, 1) + np.tensordot(plan.denoised[i], D, 1) + kept
        t = scheduler.timesteps[i]
        given = scheduler.scale_model_input(theirs, t) if scaled else theirs
        theirs = scheduler.step(torch.from_numpy(network(given.numpy(), float(t))), t, theirs).prev_sample.double()
    ours = X0[0] / (plan.alpha[rows] if scaled else 1.0)
    return float(np.abs(ours - theirs.numpy()).max() / np.abs(ours).max())


@pytest.mark.parametrize("kind, options", DETERMINISTIC)
def test_a_scheduler_and_its_sampler_give_the_same_samples(kind, options):
    scheduler, plan = scheduler_and_plan(kind, options)
    np.testing.assert_allclose(
        scheduler.timesteps.numpy(), plan.t, atol=0.6 if "use_karras_sigmas" in options else 1e-3
    )
    assert largest_difference(scheduler, plan, plan.rows) < 2e-3


@pytest.mark.parametrize("kind, options", NOISY)
def test_a_scheduler_with_noise_and_its_sampler_have_the_same_timesteps(kind, options):
    scheduler, plan = scheduler_and_plan(kind, options)
    np.testing.assert_allclose(scheduler.timesteps.numpy(), plan.t, atol=1e-3)


def test_the_comparison_detects_another_order():
    scheduler, _ = scheduler_and_plan("DPMSolverMultistepScheduler", {})
    plan = make_plan(PROCESS, "dpm_solver", steps=STEPS, order=3, spacing="half_open", clip=None)
    assert largest_difference(scheduler, plan, plan.rows) > 0.02
