"""One-step methods, LMS, DDPM and DDIM compared with the schedulers of diffusers: same grid, noise and network.

Every state is compared, relative to the largest number of its row. The float32 tables of diffusers are overwritten with
the float64 levels of the plan, so that only the arithmetic is compared. Schedulers that convert the state to float32 at
every step agree to 1e-5, the others to 1e-10. The last tests show errors of diffusers.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from exact import execute

from diffusion_core.diffusion.continuous import edm
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import flow, linear
from diffusion_core.sampling import SamplerPlan
from diffusion_core.sampling.adams_bashforth import lms
from diffusion_core.sampling.ddim import ddim
from diffusion_core.sampling.ddpm import ddpm
from diffusion_core.sampling.dpm2 import dpm2, dpm2_ancestral
from diffusion_core.sampling.euler import euler, euler_ancestral, flow_euler
from diffusion_core.sampling.heun import flow_heun, heun
from diffusion_core.sampling.inversion import ddim_inversion

LINEAR, FLOW, EDM = Process(linear(), "eps"), Process(flow(), "flow"), Process(edm(), "edm", sigma_data=0.5)
BETAS = {"beta_start": 1e-4, "beta_end": 0.02}
GRID = {"name": "karras", "sigma_max": 100.0}
# The sigmas of diffusers are tensors, also as arguments of NumPy functions.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
SHAPE = (2, 3, 4, 4)
IN_FLOAT32, IN_FLOAT64 = 1e-5, 1e-10
RNG = np.random.default_rng(0)
START, NOISE = RNG.standard_normal(SHAPE), RNG.standard_normal((64, *SHAPE))


def network(x: np.ndarray, t: float) -> np.ndarray:
    """Return a smooth function of both arguments."""
    return np.sin(1.3 * x + t / 500.0)


def by_ratio(scheduler: Any, plan: SamplerPlan) -> None:
    """Overwrite a table with one sigma per row, also for a second evaluation, and 0 at the end."""
    import torch

    scheduler.sigmas = torch.from_numpy(plan.sigma / plan.alpha)


def in_pairs(scheduler: Any, plan: SamplerPlan) -> None:
    """Overwrite the tables of DPM2, entry 0 once and the others twice: levels, halfway levels, ancestral noise."""
    import torch

    def twice(table: Any) -> Any:
        return torch.cat([table[:1], table[1:].repeat_interleave(2)])

    r = torch.from_numpy(plan.sigma / plan.alpha)
    levels, halfway = torch.cat([r[:-1:2], r[-1:]]), torch.cat([r[1:-1:2], r[-1:]])
    scheduler.sigmas = twice(levels)
    if hasattr(scheduler, "sigmas_up"):
        up = levels[1:] * (1 - (levels[1:] / levels[:-1]) ** 2).sqrt()
        scheduler.sigmas_up, scheduler.sigmas_down = twice(up), twice((levels[1:] ** 2 - up**2).sqrt())
        scheduler.sigmas_interpol = twice(halfway)
    else:
        # The deterministic one pairs each level with the one before, and the first with none.
        scheduler.sigmas_interpol = twice(torch.cat([r[:1], halfway]))


def by_alphas_cumprod(scheduler: Any, plan: SamplerPlan) -> None:
    import torch

    scheduler.alphas_cumprod = torch.from_numpy(linear().alpha ** 2)


def by_sigma(scheduler: Any, plan: SamplerPlan) -> None:
    """Overwrite the table of flow matching, which must equal the plan up to rounding before."""
    import torch

    np.testing.assert_allclose(scheduler.sigmas.numpy(), plan.sigma, rtol=0, atol=1e-6)
    scheduler.sigmas = torch.from_numpy(plan.sigma.copy())


@dataclass(frozen=True)
class Case:
    """One comparison: the plan, the scheduler of diffusers, and the unit of its state."""

    plan: SamplerPlan
    scheduler: str
    options: Mapping[str, Any] = field(default_factory=dict)
    levels: Callable[[Any, SamplerPlan], None] = by_ratio
    set: Mapping[str, Any] = field(default_factory=dict)
    step: Mapping[str, Any] = field(default_factory=dict)
    within: float = IN_FLOAT64
    of_signal: bool = True


def cases() -> dict[str, Case]:
    """Return the comparisons by name; any grid will do, as all tables are overwritten."""
    plain = {"levels": by_alphas_cumprod, "of_signal": False}
    unclipped = BETAS | {"clip_sample": False}
    found = {
        "Euler": Case(euler(LINEAR, 12, GRID, None), "EulerDiscrete", BETAS, within=IN_FLOAT32),
        "Euler ancestral": Case(
            euler_ancestral(LINEAR, 12, spacing=GRID, clip=None), "EulerAncestralDiscrete", BETAS, within=IN_FLOAT32
        ),
        "Heun": Case(heun(LINEAR, 12, GRID), "HeunDiscrete", BETAS),
        "DPM2": Case(dpm2(LINEAR, 12, GRID), "KDPM2Discrete", BETAS, in_pairs),
        "DPM2 ancestral": Case(dpm2_ancestral(LINEAR, 12, spacing=GRID), "KDPM2AncestralDiscrete", BETAS, in_pairs),
        "EDM Euler": Case(euler(EDM, 12, "karras", None), "EDMEuler", within=IN_FLOAT32),
        "DDIM": Case(ddim(LINEAR, 10, clip=None), "DDIM", unclipped, **plain),
        "DDIM, eta 0.5": Case(ddim(LINEAR, 10, 0.5, clip=None), "DDIM", unclipped, step={"eta": 0.5}, **plain),
        "DDIM inversion": Case(ddim_inversion(LINEAR, 10), "DDIMInverse", unclipped, **plain),
        "DDPM, fixed_small": Case(ddpm(LINEAR, 10, clip=None), "DDPM", unclipped, **plain),
        "DDPM, fixed_large": Case(
            ddpm(LINEAR, 10, "fixed_large", clip=None), "DDPM", unclipped | {"variance_type": "fixed_large"}, **plain
        ),
    }
    for order in (1, 2, 3, 4):
        found[f"LMS-{order}"] = Case(lms(LINEAR, 12, order, GRID), "LMSDiscrete", BETAS, step={"order": order})
    for shift in (1.0, 3.0):
        name, times = f", shift {shift:g}", flow_euler(FLOW, 10, spacing="trailing").sigma[:-1]
        flowing = {"options": {"shift": shift}, "levels": by_sigma, "within": IN_FLOAT32, "of_signal": False}
        found["Flow Euler" + name] = Case(
            flow_euler(FLOW, 10, shift, "trailing"), "FlowMatchEulerDiscrete", set={"sigmas": times}, **flowing
        )
    found["Flow Heun"] = Case(
        flow_heun(FLOW, 10, spacing=[999, 888, 777, 666, 555, 444, 333, 222, 111, 0]), "FlowMatchHeunDiscrete",
        levels=by_sigma, within=IN_FLOAT32, of_signal=False,
    )  # fmt: skip
    return found


CASES = cases()


def largest_difference(case: Case, monkeypatch: pytest.MonkeyPatch) -> float:
    """Return the largest difference of any row, relative to the largest number in it."""
    import diffusers
    import torch

    plan = case.plan
    scheduler = getattr(diffusers, case.scheduler + "Scheduler")(**case.options)
    scheduler.set_timesteps(**(case.set or {"num_inference_steps": -(-plan.rows // scheduler.order)}))
    case.levels(scheduler, plan)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    draws: list[np.ndarray] = []
    module = sys.modules[type(scheduler).__module__]
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: torch.from_numpy(draws[-1]), raising=False)

    def estimate(row: int, x: np.ndarray) -> np.ndarray:
        return plan.c_skip[row] * x + plan.c_out[row] * network(plan.c_in[row] * x, plan.c_noise[row])

    units = plan.alpha if case.of_signal else np.ones(plan.rows + 1)
    start = START * (plan.sigma[0] or 1.0)
    y, largest = torch.from_numpy(start / units[0]), 0.0
    for row in range(plan.rows):
        draws.append(NOISE[row])
        t = scheduler.timesteps[row]
        seen = scheduler.scale_model_input(y, t) if hasattr(scheduler, "scale_model_input") else y
        output = torch.from_numpy(network(seen.numpy().astype(np.float64), plan.c_noise[row]))
        y = scheduler.step(output, t, y, **case.step).prev_sample
        ours = execute(plan, start, estimate, row + 1, lambda i: NOISE[i])
        largest = max(largest, float(np.abs(ours - units[row + 1] * y.numpy()).max() / np.abs(ours).max()))
    return largest


@pytest.mark.parametrize("name", CASES)
def test_states_equal_those_of_diffusers(name, monkeypatch):
    case = CASES[name]
    assert largest_difference(case, monkeypatch) <= case.within


def test_the_comparison_detects_a_wrong_number(monkeypatch):
    case = CASES["Heun"]
    c_out = case.plan.c_out.copy()
    c_out[5] *= 1 + 1e-6
    assert largest_difference(replace(case, plan=replace(case.plan, c_out=c_out)), monkeypatch) > 10 * case.within


def of_one_picture(plan: SamplerPlan, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image x_0 and its x at a level, alpha x_0 + sigma eps."""
    x0, eps = 0.4 * START[:1], START[1:]
    return x0, plan.alpha[rows] * x0 + plan.sigma[rows] * eps


def test_ddim_of_diffusers_ignores_unequal_spacing():
    """diffusers goes to t - T // N, whatever the next timestep is."""
    import torch
    from diffusers import DDIMScheduler

    plan = ddim(LINEAR, 7, spacing="linspace", clip=None)
    scheduler = DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="linspace")
    scheduler.set_timesteps(7)
    np.testing.assert_array_equal(scheduler.timesteps, plan.t)
    by_alphas_cumprod(scheduler, plan)
    (x0, before), eps = of_one_picture(plan, 2), START[1:]
    theirs = scheduler.step(torch.from_numpy(eps), scheduler.timesteps[2], torch.from_numpy(before)).prev_sample.numpy()
    ours = execute(plan, of_one_picture(plan, 0)[1], lambda row, x: x0, 3)
    np.testing.assert_allclose(ours, of_one_picture(plan, 3)[1], rtol=0, atol=1e-12)
    alpha, sigma = linear()(plan.t[2] - 1000 // 7)
    np.testing.assert_allclose(theirs, alpha * x0 + sigma * eps, rtol=0, atol=1e-12)
    assert np.abs(theirs - ours).max() > 0.02


def test_ddpm_of_diffusers_ends_noisy_with_trailing_spacing():
    """diffusers adds noise wherever t > 0, and the last t of trailing spacing is above 0."""
    import torch
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(**BETAS, clip_sample=False, timestep_spacing="trailing", variance_type="fixed_large")
    scheduler.set_timesteps(10)
    plan = ddpm(LINEAR, 10, "fixed_large", "trailing", clip=None)
    np.testing.assert_array_equal(scheduler.timesteps, plan.t)
    x, eps = torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 64, 64)
    final = scheduler.step(eps, scheduler.timesteps[-1], x, generator=torch.Generator().manual_seed(0)).prev_sample
    assert final.std() == pytest.approx(plan.sigma[-2], rel=0.05) and plan.sigma[-2] > 0.3
    assert not plan.is_noisy[-1]


def test_churn_of_diffusers_raises_the_level_after_its_evaluation():
    """diffusers evaluates the network at sigma, then adds noise, and uses the output as if it were that at the raised
    sigma, so that the exact eps no longer leads to the image. Duet evaluates at the raised level.
    """
    import torch
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(**BETAS)
    scheduler.set_timesteps(10)
    x0, eps, sigma = 0.4 * torch.ones(1, 1, 64, 64), torch.randn(1, 1, 64, 64), scheduler.sigmas[0]
    x = scheduler.scale_model_input(x0 + sigma * eps, scheduler.timesteps[0]) * (sigma**2 + 1) ** 0.5
    calm, churned = (
        scheduler.step(eps, scheduler.timesteps[0], x, s_churn=churn).pred_original_sample
        for churn in (0.0, 4.0)
    )  # fmt: skip
    assert (calm - x0).abs().max() < 1e-3
    assert (churned - x0).std() > 0.1 * sigma
    plan = euler(LINEAR, 10, GRID, None, s_churn=4.0)
    one, start = of_one_picture(plan, 0)
    np.testing.assert_allclose(execute(plan, start, lambda row, x: one, noise=lambda row: NOISE[row][:1]), one)


@pytest.mark.parametrize("scheduler", ["HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete"])
def test_some_schedulers_of_diffusers_have_other_betas(scheduler):
    """Exchanging schedulers changes the schedule: the betas of some are latent diffusion's, on a line."""
    import diffusers

    options = inspect.signature(getattr(diffusers, scheduler + "Scheduler").__init__).parameters
    found = [options[name].default for name in ("beta_start", "beta_end", "beta_schedule")]
    assert found == [0.00085, 0.012, "linear"]
    options = inspect.signature(diffusers.EulerDiscreteScheduler.__init__).parameters
    assert [options[name].default for name in ("beta_start", "beta_end", "beta_schedule")] == [1e-4, 0.02, "linear"]
