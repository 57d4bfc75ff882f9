"""DPM-Solver++ on data whose exact denoiser is known, and its agreement with simpler samplers where they coincide.

For x_0 ~ N(m, s^2) the estimate is D(x) = m + alpha s^2 (x - alpha m) / (alpha^2 s^2 + sigma^2), and the flow keeps
(x - alpha m) / sqrt(alpha^2 s^2 + sigma^2).
"""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import SCHEDULES, Schedule, flow, linear, make_schedule
from diffusion_core.sampling import SamplerPlan
from diffusion_core.sampling.ddim import ddim
from diffusion_core.sampling.dpm_solver import dpm_solver

M, S = 0.3, 0.5


def marginal_std(alpha, sigma):
    return np.hypot(alpha * S, sigma)


def denoised(x, alpha, sigma):
    return M + alpha * S**2 / marginal_std(alpha, sigma) ** 2 * (x - alpha * M)


def run(plan: SamplerPlan, x: np.ndarray, rows: int, noise=lambda row: 0.0, network=denoised) -> np.ndarray:
    """Run the first rows of a plan, with the exact estimate by default."""
    history = [np.zeros_like(x)] * plan.history
    for i in range(rows):
        history = [network(x, plan.alpha[i], plan.sigma[i]), *history[:-1]]
        x = plan.state[i, 0, 0] * x + plan.noise[i, 0] * noise(i)
        x = x + sum(plan.denoised[i, 0, k] * history[k] for k in range(plan.history))
    return x


def uniform_log_snr(T: int) -> Schedule:
    """Return a process with equal steps of log-SNR, for which the error has a clean order."""
    half = np.linspace(4, -5, T)
    return Schedule("uniform", 1 / np.sqrt(1 + np.exp(-2 * half)), 1 / np.sqrt(1 + np.exp(2 * half)))


# Order 3 as published weights the second difference by half of the parabola's integral, so it is of second order.
# The exact one shows a fourth order here, as the estimate is nearly linear during the rows of lower order.
@pytest.mark.parametrize("order, kind, low, high", [
    (1, "midpoint", 0.9, 1.1), (2, "midpoint", 1.9, 2.1), (2, "heun", 1.9, 2.1), (2, "exact", 1.9, 2.1),
    (3, "midpoint", 1.9, 2.3), (3, "exact", 2.9, 4.1),
])  # fmt: skip
def test_the_error_falls_with_the_order(order, kind, low, high):
    process, counts, errors = Process(uniform_log_snr(4097), "v"), [33, 65, 129, 257], []
    start = np.array([-2.0, 0.1, 1.5])
    for steps in counts:
        plan = dpm_solver(process, steps, order, solver_type=kind, lower_order_final=False, clip=None)
        # The last row goes to clean data in one step, with an error of no order.
        alpha, sigma = plan.alpha[-2], plan.sigma[-2]
        exact = alpha * M + marginal_std(alpha, sigma) / marginal_std(plan.alpha[0], plan.sigma[0]) * (
            start - plan.alpha[0] * M
        )
        errors.append(np.abs(run(plan, start, steps - 1) - exact).max())
    assert low < -np.polyfit(np.log(counts), np.log(errors), 1)[0] < high


def test_a_row_of_order_three_integrates_a_parabola_exactly():
    """With an estimate that is a parabola in the half log-SNR, rows after the start are exact, at any step sizes."""
    plan = dpm_solver(Process(linear(), "v"), 12, 3, solver_type="exact", lower_order_final=False, clip=None)
    half = np.log(plan.alpha[:-1] / plan.sigma[:-1])
    parabola = np.polynomial.Polynomial([0.7, -0.4, 0.3])
    for i in range(3, 11):
        nodes, weights = np.polynomial.legendre.leggauss(40)
        middle, width = (half[i] + half[i + 1]) / 2, (half[i + 1] - half[i]) / 2
        at = middle + width * nodes
        expected = plan.sigma[i + 1] * np.sum(width * weights * np.exp(at) * parabola(at))
        got = sum(plan.denoised[i, 0, k] * parabola(half[i - k]) for k in range(3))
        assert got == pytest.approx(expected, rel=1e-12)
        assert plan.state[i, 0, 0] == pytest.approx(plan.sigma[i + 1] / plan.sigma[i], rel=1e-14)


def test_the_sde_of_order_three_integrates_a_parabola_exactly():
    """The variation of constants of the SDE has e^(2 lambda) under the integral."""
    plan = dpm_solver(Process(linear(), "v"), 12, 3, sde=True, solver_type="exact", lower_order_final=False, clip=None)
    half = np.log(plan.alpha[:-1] / plan.sigma[:-1])
    parabola = np.polynomial.Polynomial([0.7, -0.4, 0.3])
    for i in range(3, 11):
        nodes, weights = np.polynomial.legendre.leggauss(40)
        middle, width = (half[i] + half[i + 1]) / 2, (half[i + 1] - half[i]) / 2
        at = middle + width * nodes
        kernel = 2 * plan.alpha[i + 1] * np.exp(-2 * (half[i + 1] - at))
        got = sum(plan.denoised[i, 0, k] * parabola(half[i - k]) for k in range(3))
        assert got == pytest.approx(np.sum(width * weights * kernel * parabola(at)), rel=1e-12)


@pytest.mark.parametrize("name", sorted(SCHEDULES.keys() - {"flow"}))
def test_order_one_equals_ddim(name):
    process = Process(make_schedule(name), "v")
    if process.schedule.alpha[-1] == 0:
        return
    one, other = dpm_solver(process, 20, 1), ddim(process, 20, spacing="linspace")
    np.testing.assert_allclose(one.state, other.state, rtol=1e-9)
    np.testing.assert_allclose(one.denoised, other.denoised, rtol=1e-9, atol=1e-12)


def test_the_sde_has_the_mean_and_variance_of_the_data():
    """Moments carried exactly through the linear recurrence of (x, D, D_-1), from the exact ones at its first level."""
    plan = dpm_solver(Process(uniform_log_snr(4097), "v"), 257, 2, sde=True, clip=None)
    alpha, sigma = plan.alpha, plan.sigma
    x_mean, cov = alpha[0] * M, np.zeros((2, 2))
    cov[0, 0] = marginal_std(alpha[0], sigma[0]) ** 2
    last = 0.0
    for i in range(plan.rows):
        slope = alpha[i] * S**2 / marginal_std(alpha[i], sigma[i]) ** 2
        a, (b, c) = plan.state[i, 0, 0], plan.denoised[i, 0]
        now = denoised(x_mean, alpha[i], sigma[i])
        # The vector (x, D of the row before) to (x', D of this row).
        step = np.array([[a + b * slope, c], [slope, 0.0]])
        x_mean, last = a * x_mean + b * now + c * last, now
        cov = step @ cov @ step.T
        cov[0, 0] += plan.noise[i, 0] ** 2
    assert x_mean == pytest.approx(M, abs=1e-3)
    assert cov[0, 0] == pytest.approx(S**2, rel=5e-3)


def test_invalid_options_are_errors():
    process = Process(linear(), "eps")
    for options, message in (
        ({"order": 4}, "sampler.order: 4 was given; it must be 1, 2 or 3"),
        ({"solver_type": "euler"}, "sampler.solver_type: 'euler'"),
        ({"steps": 0}, "sampler.steps: 0"),
    ):
        with pytest.raises(DuetError, match=message):
            dpm_solver(process, **options)
    with pytest.raises(DuetError, match="its first level has no signal"):
        dpm_solver(Process(flow(), "v"))
