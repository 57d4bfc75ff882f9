"""Samplers of k-diffusion and of the DPM-Solver paper, written again from their formulas and followed in float64.

k-diffusion works in y = x/alpha with sigma = sigma/alpha, so its formulas hold for every schedule. Here they are
written as printed in the papers and their code, on plain arrays of sigma, with the noise that the plan draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
from exact import NORMAL, POINTS, TWO_NORMALS, exactly, execute, fitted_order, moments

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import flow, linear, make_schedule
from diffusion_core.sampling import SamplerPlan, make_plan

PROCESSES = {
    "linear": Process(linear(), "v"),
    "edm": Process(make_schedule("edm"), "edm"),
    "flow": Process(flow(), "v"),
}
NOISE = np.random.default_rng(0).standard_normal((80, len(POINTS)))
LEVELS = np.array([60.0, 22.0, 9.0, 3.5, 1.2, 0.5, 0.18, 0.06])
KARRAS = {"name": "karras", "sigma_min": 0.03, "sigma_max": 60.0}
Array = np.ndarray
Model = Callable[[Array, float], Array]


def model(y: Array, sigma: float) -> Array:
    """Return the exact estimate at the level sigma/alpha."""
    return TWO_NORMALS.denoised(y, 1.0, sigma)


def ours(plan: SamplerPlan, draws: Callable[[int], Array | float] = lambda row: 0.0) -> Array:
    """Return the plan's result as y, from y = sigma_max POINTS."""
    start = POINTS * plan.sigma[0]
    got = execute(plan, start, exactly(plan, TWO_NORMALS), noise=draws)
    return got / plan.alpha[-1]


def assert_equal(plan: SamplerPlan, sigmas: Array, expected: Array, draws=lambda row: 0.0) -> None:
    assert plan.sigma[0] / plan.alpha[0] == pytest.approx(sigmas[0], rel=1e-12)
    got = ours(plan, draws)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


def split(start: float, end: float, eta: float) -> tuple[float, float]:
    """Return sigma_down and sigma_up of ancestral sampling."""
    up = min(end, eta * np.sqrt(end**2 * (start**2 - end**2) / start**2))
    return np.sqrt(end**2 - up**2), up


# The samplers, on y and sigmas with a last 0 or a noisy end; z yields one draw for each noise.


def multistep_sde(sigmas: Array, order: int, kind: str, eta: float, s_noise: float, z: Iterator[Array]) -> Array:
    y, past, steps = POINTS * sigmas[0], [], []
    for sigma, after in pairwise(sigmas):
        D = model(y, sigma)
        if after == 0:
            return D
        h = np.log(sigma / after)
        K = h * (1 + eta)
        y = after / sigma * np.exp(-eta * h) * y - np.expm1(-K) * D
        phi = np.expm1(-K) / K + 1
        if order == 3 and len(past) > 1:
            r0, r1 = steps[-1] / h, steps[-2] / h
            a, b = (D - past[-1]) / r0, (past[-1] - past[-2]) / r1
            y = y + phi * (a + (a - b) * r0 / (r0 + r1)) - (phi / K - 0.5) * (a - b) / (r0 + r1)
        elif past and order > 1:
            y = y + (phi if kind == "heun" else -np.expm1(-K) / 2) * (D - past[-1]) * h / steps[-1]
        y = y + next(z) * after * np.sqrt(-np.expm1(-2 * eta * h)) * s_noise
        past, steps = [*past, D], [*steps, h]
    return y


def two_s_ancestral(sigmas: Array, eta: float, s_noise: float, z: Iterator[Array]) -> Array:
    y = POINTS * sigmas[0]
    for sigma, after in pairwise(sigmas):
        D = model(y, sigma)
        down, up = split(sigma, after, eta)
        if down == 0:
            return D
        middle = np.sqrt(sigma * down)
        D = model(middle / sigma * y + (1 - middle / sigma) * D, middle)
        y = down / sigma * y + (1 - down / sigma) * D + s_noise * up * next(z)
    return y


def sde(sigmas: Array, eta: float, s_noise: float, r: float, z: Iterator[Array]) -> Array:
    y = POINTS * sigmas[0]
    for sigma, after in pairwise(sigmas):
        D = model(y, sigma)
        if after == 0:
            return D
        middle = sigma ** (1 - r) * after**r
        first, second = next(z), next(z)
        down, up = split(sigma, middle, eta)
        D2 = model(down / sigma * y + (1 - down / sigma) * D + s_noise * up * first, middle)
        known = (sigma - middle) / (sigma - after)
        down, up = split(sigma, after, eta)
        D = (1 - 0.5 / r) * D + 0.5 / r * D2
        whole = np.sqrt(known) * first + np.sqrt(1 - known) * second
        y = down / sigma * y + (1 - down / sigma) * D + s_noise * up * whole
    return y


def dpm_step(y: Array, start: float, end: float, order: int, middle: str = "exact") -> Array:
    """Take a step of DPM-Solver in t = -log sigma."""
    t, s = -np.log(start), -np.log(end)
    h, eps = s - t, (y - model(y, start)) / start
    if order == 1:
        return y - end * np.expm1(h) * eps

    def evaluate(part: float, u: Array) -> Array:
        sigma = np.exp(-(t + part * h))
        return (u - model(u, sigma)) / sigma

    if order == 2:
        first = evaluate(1 / 2, y - np.exp(-(t + h / 2)) * np.expm1(h / 2) * eps)
        return y - end * np.expm1(h) * (eps + (first - eps))
    first = evaluate(1 / 3, y - np.exp(-(t + h / 3)) * np.expm1(h / 3) * eps)
    k = 2 * h / 3
    slope = np.expm1(k) / k - 1 if middle == "exact" else np.expm1(k) / 2
    second = evaluate(2 / 3, y - np.exp(-(t + k)) * (np.expm1(k) * eps + 2 * slope * (first - eps)))
    return y - end * np.expm1(h) * eps - end * 3 / 2 * (np.expm1(h) / h - 1) * (second - eps)


def fast_orders(evaluations: int) -> list[int]:
    """Return the orders of DPM-Solver-fast."""
    K, rest = evaluations // 3 + 1, evaluations % 3
    return [3] * (K - 2) + [2, 1] if rest == 0 else [3] * (K - 1) + [rest]


def fast(most: float, least: float, evaluations: int, eta: float, s_noise: float, z: Iterator[Array]) -> Array:
    orders = fast_orders(evaluations)
    # The last one exactly: the difference of two squares would turn a rounding error into noise.
    sigmas = np.append(np.exp(np.linspace(np.log(most), np.log(least), len(orders) + 1))[:-1], least)
    y = POINTS * most
    for sigma, after, order in zip(sigmas, sigmas[1:], orders, strict=False):
        down = max(split(sigma, after, eta)[0], least) if eta else after
        y = dpm_step(y, sigma, down, order) + s_noise * np.sqrt(max(after**2 - down**2, 0.0)) * next(z)
    return y


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("eta, s_noise", [(0.0, 1.0), (0.4, 1.0), (1.0, 1.03), (0.7, 0.9)])
@pytest.mark.parametrize("order, kind", [(1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "heun")])
def test_multistep_sdes_equal_those_of_k_diffusion(order, kind, eta, s_noise, process):
    options = {"order": order, "sde": True, "solver_type": kind, "eta": eta, "s_noise": s_noise, "clip": None}
    for sigmas in (np.append(LEVELS, 0.0), LEVELS):
        last = {"end": LEVELS[-1]} if sigmas[-1] else {}
        plan = make_plan(PROCESSES[process], "dpm_solver", sigmas=sigmas, lower_order_final=False, **last, **options)
        expected = multistep_sde(sigmas, order, kind, eta, s_noise, iter(NOISE))
        assert_equal(plan, sigmas, expected, lambda row: NOISE[row])


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("eta, s_noise", [(0.0, 1.0), (0.6, 1.0), (1.0, 1.03)])
def test_second_order_ancestral_samplers_equal_those_of_k_diffusion(eta, s_noise, process):
    options = {"eta": eta, "s_noise": s_noise, "clip": None}
    for sigmas in (np.append(LEVELS, 0.0), LEVELS):
        last = {"end": LEVELS[-1]} if sigmas[-1] else {}
        plan = make_plan(PROCESSES[process], "dpmpp_2s_ancestral", sigmas=sigmas, **last, **options)
        expected = two_s_ancestral(sigmas, eta, s_noise, iter(NOISE[1::2]))
        assert_equal(plan, sigmas, expected, lambda row: NOISE[row])
        for r in (0.5, 0.3, 1.0):
            plan = make_plan(PROCESSES[process], "dpmpp_sde", sigmas=sigmas, r=r, **last, **options)
            assert_equal(plan, sigmas, sde(sigmas, eta, s_noise, r, iter(NOISE)), lambda row: NOISE[row])


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("evaluations", [1, 2, 3, 4, 8, 12])
def test_dpm_fast_equals_that_of_k_diffusion(evaluations, process):
    grid = {"name": "log_snr", "sigma_max": 60.0, "sigma_min": 0.05, "end": "sigma_min"}
    ends = np.cumsum(fast_orders(evaluations)) - 1
    for eta, s_noise in ((0.0, 1.0), (0.5, 1.0), (1.0, 1.05)):
        plan = make_plan(PROCESSES[process], "dpm_fast", steps=evaluations, spacing=grid, eta=eta, s_noise=s_noise)
        assert plan.rows == evaluations
        expected = fast(60.0, 0.05, evaluations, eta, s_noise, iter(NOISE[ends]))
        assert_equal(plan, np.array([60.0]), expected, lambda row: NOISE[row])
        # To clean data one more evaluation follows.
        clean = make_plan(
            PROCESSES[process], "dpm_fast", steps=evaluations + 1, spacing={**grid, "end": None}, eta=eta,
            s_noise=s_noise,
        )  # fmt: skip
        assert_equal(clean, np.array([60.0]), model(expected, 0.05), lambda row: NOISE[row])


@pytest.mark.parametrize("middle", ["exact", "same"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_singlestep_solvers_without_lower_orders_take_whole_steps(order, middle):
    """With the integral in the middle row as in the paper, or the weight of a step of second order as in diffusers."""
    sigmas = np.exp(np.linspace(np.log(60.0), np.log(0.05), 5))
    spacing = {"name": "log_snr", "sigma_max": 60.0, "sigma_min": 0.05, "end": "sigma_min"}
    for spaced in ("rows", "steps"):
        plan = make_plan(
            PROCESSES["linear"], "dpm_solver_singlestep", steps=4 * order, order=order, predict="eps", clip=None,
            middle=middle, lower_order_final=False, spacing=spacing, spaced=spaced,
        )  # fmt: skip
        y = POINTS * sigmas[0]
        for sigma, after in pairwise(sigmas):
            y = dpm_step(y, sigma, after, order, middle)
        assert_equal(plan, sigmas, y)


def test_rows_that_are_no_whole_steps_are_refused_without_lower_orders():
    make = {"order": 3, "lower_order_final": False}
    with pytest.raises(DuetError, match=r"sampler.steps: 12 was given .* to clean data take 10 or 13"):
        make_plan(PROCESSES["linear"], "dpm_solver_singlestep", steps=12, **make)
    with pytest.raises(DuetError, match=r"sampler.steps: 13 was given .* alone take 12 or 15"):
        make_plan(PROCESSES["linear"], "dpm_solver_singlestep", steps=13, end="sigma_min", **make)


def test_listed_levels_do_not_say_how_many_rows_their_steps_have():
    for name, options in (("dpm_fast", {}), ("dpm_solver_singlestep", {"spaced": "steps"})):
        with pytest.raises(DuetError, match=r"sampler.spacing: .* use sampler.steps with a spacing or a grid by name"):
            make_plan(PROCESSES["linear"], name, sigmas=[50.0, 5.0, 0.5], **options)


def test_an_eta_without_noise_is_refused():
    for name in ("dpm_solver", "dpm_solver_singlestep"):
        with pytest.raises(DuetError, match=r"sampler.eta: 0.5 was given with sde false"):
            make_plan(PROCESSES["linear"], name, eta=0.5)
        zero = make_plan(PROCESSES["linear"], name, sde=True, eta=0.0)
        np.testing.assert_array_equal(zero.denoised, make_plan(PROCESSES["linear"], name).denoised)


GRID = {"name": "log_snr", "sigma_min": 0.2, "sigma_max": 150.0}


@pytest.mark.parametrize("predict", ["x0", "eps"])
@pytest.mark.parametrize("spaced", ["rows", "steps"])
def test_the_weight_of_the_paper_in_the_middle_row_has_third_order_too(predict, spaced):
    def make(steps: int) -> SamplerPlan:
        options = {"predict": predict, "middle": "exact", "spaced": spaced, "clip": None}
        return make_plan(PROCESSES["linear"], "dpm_solver_singlestep", steps=steps, order=3, spacing=GRID, **options)

    assert 2.8 < fitted_order(make, [127, 256, 511]) < 3.4


@pytest.mark.parametrize("name, options", [
    ("dpm_solver", {"sde": True, "eta": 0.4, "solver_type": "heun"}), ("dpmpp_sde", {"r": 0.3}),
    ("dpmpp_sde", {"r": 0.8}),
])  # fmt: skip
def test_samplers_between_ode_and_sde_converge_with_second_order(name, options):
    """Their means and variances, as those of the declared methods in test_methods.py."""
    (mean,), (std,), wrong = NORMAL.means, NORMAL.stds, []
    for steps in (63, 127, 255):
        plan = make_plan(PROCESSES["linear"], name, steps=steps, spacing=GRID, end="sigma_min", clip=None, **options)
        alpha, sigma = plan.alpha[-1], plan.sigma[-1]
        wrong.append(np.abs(np.array(moments(plan)) - [alpha * mean, (alpha * std) ** 2 + sigma**2]).max())
    assert -np.polyfit(np.log([63, 127, 255]), np.log(wrong), 1)[0] > 1.85
