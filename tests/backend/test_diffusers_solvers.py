"""Exponential and pseudo numerical solvers compared with the schedulers of diffusers, row by row in float64.

The schedulers receive Duet's levels and noise, and their casts to float32 are replaced by casts to float64, so that
only the formulas are compared. Numbers then agree up to rounding, 1e-10 of their size; where diffusers has another
formula, or none, a test shows it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import Schedule, linear
from diffusion_core.sampling import SamplerPlan, make_plan
from diffusion_core.sampling.grid import karras

SHAPE = (2, 3, 4, 4)
TOLERANCE = 1e-10
RNG = np.random.default_rng(0)
START, NOISE = RNG.standard_normal(SHAPE), RNG.standard_normal((70, *SHAPE))
PROCESS = Process(linear(), "eps")
BETAS = {"beta_start": 1e-4, "beta_end": 0.02}
# diffusers warns that these formulas are old, and NumPy about how diffusers calls it.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "FutureWarning")]


def network(x: np.ndarray, c_noise: float) -> np.ndarray:
    """Return a smooth function of both arguments."""
    return np.sin(1.3 * x + c_noise / 500.0)


def ours(plan: SamplerPlan, start: np.ndarray) -> Iterator[np.ndarray]:
    """Return register 0 after each row."""
    X, D = np.zeros((plan.registers, *SHAPE)), np.zeros((plan.history, *SHAPE))
    X[0] = start
    for i in range(plan.rows):
        estimate = plan.c_skip[i] * X[0] + plan.c_out[i] * network(plan.c_in[i] * X[0], plan.c_noise[i])
        D = np.concatenate([estimate[None], D[:-1]])
        fresh = np.multiply.outer(plan.noise[i], NOISE[i])
        X = np.tensordot(plan.state[i], X, 1) + np.tensordot(plan.denoised[i], D, 1) + fresh
        yield X[0]


class _InFloat64:
    """PyTorch with float64 in place of float32."""

    def __getattr__(self, name: str) -> Any:
        import torch

        return torch.float64 if name == "float32" else getattr(torch, name)


def theirs(
    name: str, plan: SamplerPlan, start: np.ndarray, monkeypatch: pytest.MonkeyPatch, rows: int, **options: Any
) -> list[np.ndarray]:
    """Return the states of a scheduler after each of the first rows of the plan, at the plan's levels."""
    import diffusers
    import torch

    made = getattr(diffusers, name)
    module = import_module(made.__module__)
    monkeypatch.setattr(module, "torch", _InFloat64())
    drawn = iter(torch.from_numpy(z) for z in NOISE)
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(drawn))
    scheduler = made(**options)
    scheduler.set_timesteps(plan.rows)
    if hasattr(scheduler, "alphas_cumprod"):
        scheduler.alphas_cumprod = torch.from_numpy(PROCESS.schedule.alpha**2)
    scheduler.timesteps = torch.from_numpy(plan.t.copy())
    scheduler.sigmas = torch.from_numpy(plan.sigma / plan.alpha)  # 0 at clean data
    scheduler.num_inference_steps = plan.rows
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    x, states = torch.from_numpy(start), []
    for i in range(rows):
        scaled = (plan.c_in[i] * x).numpy()
        x = scheduler.step(torch.from_numpy(network(scaled, plan.c_noise[i])), scheduler.timesteps[i], x).prev_sample
        states.append(x.numpy().copy())
    return states


def difference(
    name: str,
    plan: SamplerPlan,
    monkeypatch: pytest.MonkeyPatch,
    last: bool = True,
    steps: Callable[..., list[np.ndarray]] = theirs,
    **options: Any,
) -> float:
    """Return the largest relative difference after any row; without the last row if diffusers has none."""
    rows = plan.rows if last else plan.rows - 1
    start = plan.start_scale * START
    pairs = list(zip(ours(plan, start), steps(name, plan, start, monkeypatch, rows, **options), strict=False))
    assert len(pairs) == rows and all(np.isfinite(b).all() for _, b in pairs)
    worst = max(np.abs(a - b).max() / np.abs(b).max() for a, b in pairs)
    print(f"{name} {plan.name} {options}: {worst:.1e}")
    return float(worst)


def sampled(sampler: str, steps: int, **options: Any) -> SamplerPlan:
    return make_plan(PROCESS, sampler, steps=steps, clip=None, **options)


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("kind", ["midpoint", "heun"])
@pytest.mark.parametrize("predict, sde, order", [
    ("x0", False, 1), ("x0", False, 2), ("x0", False, 3), ("x0", True, 1), ("x0", True, 2),
    ("eps", False, 1), ("eps", False, 2), ("eps", False, 3), ("eps", True, 1), ("eps", True, 2),
])  # fmt: skip
def test_multistep_dpm_solvers_equal_those_of_diffusers(predict, sde, order, kind, steps, monkeypatch):
    plan = sampled("dpm_solver", steps, order=order, sde=sde, solver_type=kind, predict=predict)
    algorithm = f"{'sde-' if sde else ''}dpmsolver{'++' if predict == 'x0' else ''}"
    # The eps forms of diffusers have no step to clean data: sigma_s e^h is 0 times infinity.
    end = {"final_sigmas_type": "zero"} if predict == "x0" else {"final_sigmas_type": "sigma_min"}
    assert difference(
        "DPMSolverMultistepScheduler", plan, monkeypatch, last=predict == "x0", algorithm_type=algorithm,
        solver_order=order, solver_type=kind, **end, **BETAS,
    ) < TOLERANCE  # fmt: skip


def test_the_third_order_sde_of_diffusers_has_another_sign(monkeypatch):
    """The weight of the second difference in diffusers is -(k - 1 + e^-k)/k^2 - 1/2 with k = 2h. The integral of the
    parabola, as in its own deterministic form, gives 1/2 - (k - 1 + e^-k)/k^2; with that sign of 1/2 it agrees.
    """
    plan = sampled("dpm_solver", 20, order=3, sde=True)
    options = {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, **BETAS}
    assert difference("DPMSolverMultistepScheduler", plan, monkeypatch, **options) > 0.05
    denoised = plan.denoised.copy()
    half = np.log(plan.alpha[:-1] / plan.sigma[:-1])
    for i in range(2, plan.rows - 1):
        h, h0, h1 = half[i + 1] - half[i], half[i] - half[i - 1], half[i - 1] - half[i - 2]
        first, second = np.array([1, -1, 0]) * h / h0, np.array([0, 1, -1]) * h / h1
        denoised[i, 0] -= plan.alpha[i + 1] * (first - second) / ((h0 + h1) / h)
    theirs_too = SamplerPlan(**{**vars(plan), "denoised": denoised})
    assert difference("DPMSolverMultistepScheduler", theirs_too, monkeypatch, **options) < TOLERANCE


@pytest.mark.parametrize("kind", ["midpoint", "heun"])
@pytest.mark.parametrize("predict, sde, order, steps", [
    ("x0", False, 1, 7), ("x0", False, 2, 9), ("x0", False, 2, 10), ("x0", False, 3, 9), ("x0", False, 3, 22),
    ("x0", True, 1, 7), ("x0", True, 2, 9), ("x0", True, 2, 10),
    ("eps", False, 1, 7), ("eps", False, 2, 9), ("eps", False, 2, 10), ("eps", False, 3, 9), ("eps", False, 3, 22),
])  # fmt: skip
def test_singlestep_dpm_solvers_equal_those_of_diffusers(predict, sde, order, steps, kind, monkeypatch):
    """If the number of rows is a multiple of 3 plus 2, diffusers takes two steps of first order at the end; Duet
    takes two of second order, one row earlier.
    """
    options = {"order": order, "sde": sde, "solver_type": kind, "predict": predict}
    plan = sampled("dpm_solver_singlestep", steps, between="visited", **options)
    algorithm = f"{'sde-' if sde else ''}dpmsolver{'++' if predict == 'x0' else ''}"
    assert difference(
        "DPMSolverSinglestepScheduler", plan, monkeypatch, last=predict == "x0", algorithm_type=algorithm,
        solver_order=order, solver_type=kind, lower_order_final=True,
        final_sigmas_type="zero" if predict == "x0" else "sigma_min", **BETAS,
    ) < TOLERANCE  # fmt: skip


@pytest.mark.parametrize("steps", [3, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_equals_that_of_diffusers(order, steps, monkeypatch):
    """diffusers has no step to clean data: its integrals contain log(0)."""
    plan = sampled("deis", steps, order=order)
    assert difference("DEISMultistepScheduler", plan, monkeypatch, last=False, solver_order=order, **BETAS) < TOLERANCE


@pytest.mark.parametrize("steps", [3, 20])
@pytest.mark.parametrize("predict", ["x0", "eps"])
@pytest.mark.parametrize("kind", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_equals_that_of_diffusers(order, kind, predict, steps, monkeypatch):
    """diffusers has a step to clean data for bh2 and x0 only: B(h) of bh1 and e^h are infinite there."""
    plan = sampled("unipc", steps, order=order, solver_type=kind, predict=predict)
    assert difference(
        "UniPCMultistepScheduler", plan, monkeypatch, last=(kind, predict) == ("bh2", "x0"), solver_order=order,
        solver_type=kind, predict_x0=predict == "x0", final_sigmas_type="zero", **BETAS,
    ) < TOLERANCE  # fmt: skip


def test_unipc_without_first_correctors_equals_that_of_diffusers(monkeypatch):
    plan = sampled("unipc", 8, order=2, correct_from=3)
    assert difference(
        "UniPCMultistepScheduler", plan, monkeypatch, solver_order=2, disable_corrector=[0, 1],
        final_sigmas_type="zero", **BETAS,
    ) < TOLERANCE  # fmt: skip


def test_unipc_bh1_of_diffusers_ends_in_nan(monkeypatch):
    plan = sampled("unipc", 5, solver_type="bh1")
    options = {"solver_type": "bh1", "final_sigmas_type": "zero", **BETAS}
    assert np.isnan(theirs("UniPCMultistepScheduler", plan, START, monkeypatch, 5, **options)[-1]).all()
    assert np.isfinite(list(ours(plan, START))[-1]).all()


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("predict", ["x0", "eps"])
@pytest.mark.parametrize("predictor, corrector", [(1, 1), (1, 2), (2, 2), (3, 3), (3, 4), (2, 1)])
def test_sa_solver_equals_that_of_diffusers(predictor, corrector, predict, steps, monkeypatch):
    """In diffusers tau is a function of t, 1 in 200 .. 800, and the last level is noisy."""
    ratio = PROCESS.schedule.sigma / PROCESS.schedule.alpha
    middle = [float(ratio[200]) * (1 - 1e-9), float(ratio[800]) * (1 + 1e-9)]
    plan = sampled("sa_solver", steps, predictor=predictor, corrector=corrector, noisy=middle, predict=predict)
    assert plan.is_noisy.any()
    algorithm = {"x0": "data_prediction", "eps": "noise_prediction"}[predict]
    assert difference(
        "SASolverScheduler", plan, monkeypatch, last=False, predictor_order=predictor, corrector_order=corrector,
        algorithm_type=algorithm, tau_func=_tau, **BETAS,
    ) < TOLERANCE  # fmt: skip


def _tau(t: Any) -> Any:
    import torch

    return torch.tensor(1.0 if 200 <= t <= 800 else 0.0, dtype=torch.float64)


@pytest.mark.parametrize("name, skip", [("plms", True), ("pndm", False)])
@pytest.mark.parametrize("steps", [10, 20])
def test_pndm_and_plms_equal_those_of_diffusers(name, skip, steps, monkeypatch):
    plan = sampled(name, steps, spacing="leading")
    assert difference("PNDMScheduler", plan, monkeypatch, steps=_pseudo, skip_prk_steps=skip, visits=steps) < TOLERANCE


def _pseudo(
    name: str, plan: SamplerPlan, start: np.ndarray, monkeypatch: pytest.MonkeyPatch, rows: int, **options: Any
) -> list[np.ndarray]:
    """Run PNDM's scheduler, whose own timesteps must equal those of the plan."""
    import diffusers
    import torch

    scheduler = getattr(diffusers, name)(skip_prk_steps=options["skip_prk_steps"], set_alpha_to_one=True, **BETAS)
    scheduler.alphas_cumprod = torch.from_numpy(PROCESS.schedule.alpha**2)
    scheduler.set_timesteps(options["visits"])
    np.testing.assert_array_equal(scheduler.timesteps.numpy(), plan.t)
    x, states = torch.from_numpy(start), []
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(torch.from_numpy(network(x.numpy(), plan.c_noise[i])), int(t), x).prev_sample
        states.append(x.numpy().copy())
    return states


@pytest.mark.parametrize("steps", [4, 12])
def test_dpmpp_sde_equals_that_of_diffusers(steps, monkeypatch):
    plan = sampled("dpmpp_sde", steps, spacing="linspace")
    assert difference("DPMSolverSDEScheduler", plan, monkeypatch, steps=_of_k_diffusion) < TOLERANCE


def _of_k_diffusion(
    name: str, plan: SamplerPlan, start: np.ndarray, monkeypatch: pytest.MonkeyPatch, rows: int
) -> list[np.ndarray]:
    """Run DPMSolverSDEScheduler, whose states are x/alpha, with a Brownian path over sigma/alpha made of Duet's noise.

    torchsde, which would draw the path, is therefore not needed.
    """
    import diffusers.utils  # noqa: F401  which asks what there is
    import torch

    monkeypatch.setitem(sys.modules, "torchsde", ModuleType("torchsde"))
    scheduler = getattr(import_module("diffusers.schedulers.scheduling_dpmsolver_sde"), name)(**BETAS)
    scheduler.set_timesteps((plan.rows + 1) // 2)
    ratio = plan.sigma[:-1] / plan.alpha[:-1]
    scheduler.sigmas = torch.from_numpy(np.append(np.append(ratio[0], np.repeat(ratio[2::2], 2)), 0.0))
    scheduler.timesteps = torch.from_numpy(plan.t.copy())
    scheduler.set_begin_index(0)
    row = iter(range(rows))

    def drawn(first: Any, last: Any) -> Any:
        i = next(row)
        if i % 2 == 0:
            return torch.from_numpy(NOISE[i])
        known = (ratio[i - 1] - ratio[i]) / (ratio[i - 1] - ratio[i + 1])
        return torch.from_numpy(np.sqrt(known) * NOISE[i - 1] + np.sqrt(1 - known) * NOISE[i])

    scheduler.noise_sampler = drawn
    y, states = torch.from_numpy(start / plan.alpha[0]), []
    for i in range(rows):
        scaled = scheduler.scale_model_input(y, scheduler.timesteps[i]).numpy()
        y = scheduler.step(torch.from_numpy(network(scaled, plan.c_noise[i])), scheduler.timesteps[i], y).prev_sample
        states.append(plan.alpha[i + 1] * y.numpy())
    return states


@pytest.mark.parametrize("kind", ["midpoint", "heun"])
@pytest.mark.parametrize("order, sde", [(1, False), (2, False), (3, False), (1, True), (2, True)])
def test_dpm_solvers_on_edm_equal_those_of_diffusers(order, sde, kind, monkeypatch):
    """With the preconditioning of EDM on its grid alpha is 1."""
    ratios = karras(12, 0.002, 80.0)[::-1].copy()
    process = Process(Schedule("karras", np.ones(12), ratios), "edm")
    plan = make_plan(process, "dpm_solver", steps=None, order=order, sde=sde, solver_type=kind, clip=None)
    assert difference(
        "EDMDPMSolverMultistepScheduler", plan, monkeypatch, algorithm_type="sde-dpmsolver++" if sde else "dpmsolver++",
        solver_order=order, solver_type=kind, sigma_data=process.sigma_data,
    ) < TOLERANCE  # fmt: skip


NOISY = {"final_sigmas_type": "sigma_min"}


@pytest.mark.parametrize("steps", [6, 18])
@pytest.mark.parametrize("sampler, scheduler, options, same", [
    ("dpm_solver", "DPMSolverMultistepScheduler", {"order": 3}, {"solver_order": 3, **NOISY}),
    ("dpm_solver", "DPMSolverMultistepScheduler", {"sde": True}, {"algorithm_type": "sde-dpmsolver++", **NOISY}),
    ("dpm_solver", "DPMSolverMultistepScheduler", {"predict": "eps"}, {"algorithm_type": "dpmsolver", **NOISY}),
    ("deis", "DEISMultistepScheduler", {}, {"solver_order": 3}),
    ("unipc", "UniPCMultistepScheduler", {"order": 3, "lower_order_final": True}, {"solver_order": 3, **NOISY}),
    ("unipc", "UniPCMultistepScheduler", {"predict": "eps", "solver_type": "bh1"},
     {"predict_x0": False, "solver_type": "bh1", **NOISY}),
    ("sa_solver", "SASolverScheduler", {"tau": 0.0}, {"tau_func": lambda t: _tau(0)}),
])  # fmt: skip
def test_multistep_solvers_that_end_at_noise_equal_those_of_diffusers(
    sampler, scheduler, options, same, steps, monkeypatch
):
    for spacing in ("linspace", "leading", "trailing"):
        plan = sampled(sampler, steps, spacing=spacing, end="sigma_min", **options)
        assert difference(scheduler, plan, monkeypatch, **same, **BETAS) < TOLERANCE


@pytest.mark.parametrize("kind", ["midpoint", "heun"])
@pytest.mark.parametrize("predict, order, steps, lower", [
    ("x0", 1, 6, False), ("x0", 2, 6, False), ("x0", 3, 6, False), ("eps", 2, 6, False), ("eps", 3, 9, False),
    ("x0", 2, 6, True), ("x0", 2, 7, True), ("x0", 3, 6, True), ("eps", 3, 7, True), ("eps", 3, 8, True),
])  # fmt: skip
def test_singlestep_solvers_that_end_at_noise_equal_those_of_diffusers(predict, order, steps, lower, kind, monkeypatch):
    options = {"order": order, "solver_type": kind, "predict": predict, "lower_order_final": lower}
    plan = sampled("dpm_solver_singlestep", steps, between="visited", end="sigma_min", **options)
    assert difference(
        "DPMSolverSinglestepScheduler", plan, monkeypatch, solver_order=order, solver_type=kind,
        lower_order_final=lower, algorithm_type=f"dpmsolver{'++' if predict == 'x0' else ''}", **NOISY, **BETAS,
    ) < TOLERANCE  # fmt: skip


@pytest.mark.parametrize("steps", [1, 7, 10, 50])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_steps_to_the_least_noisy_level_start_where_those_of_diffusers_do(spacing, steps):
    import diffusers

    scheduler = diffusers.DPMSolverMultistepScheduler(timestep_spacing=spacing, **NOISY, **BETAS)
    scheduler.set_timesteps(steps)
    plan = sampled("dpm_solver", steps, spacing=spacing, end="sigma_min")
    np.testing.assert_array_equal(plan.t, scheduler.timesteps.numpy())
    # diffusers takes 1 - alpha^2 in float32.
    np.testing.assert_allclose(plan.sigma / plan.alpha, scheduler.sigmas.numpy(), rtol=1e-4)


@pytest.mark.parametrize("sampler, scheduler, options, same", [
    ("dpm_solver", "DPMSolverMultistepScheduler", {}, {}),
    ("dpm_solver_singlestep", "DPMSolverSinglestepScheduler", {"between": "visited"}, {"lower_order_final": True}),
    ("unipc", "UniPCMultistepScheduler", {}, {"final_sigmas_type": "zero"}),
])  # fmt: skip
def test_the_comparison_detects_a_wrong_coefficient(sampler, scheduler, options, same, monkeypatch):
    plan = sampled(sampler, 9, **options)
    assert difference(scheduler, plan, monkeypatch, **same, **BETAS) < TOLERANCE
    for table in ("state", "denoised"):
        wrong = getattr(plan, table).copy()
        wrong[4] *= 1 + 1e-9
        assert difference(scheduler, SamplerPlan(**{**vars(plan), table: wrong}), monkeypatch, **same, **BETAS) > 1e-10
