"""The exact data that solvers are compared with: closed forms, samples, and a method of known order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from exact import NORMAL, POINTS, TWO_NORMALS, Mixture, error, exactly, execute, fitted_order, moments

from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import flow, linear
from diffusion_core.sampling.ddim import ddim
from diffusion_core.sampling.ddpm import ddpm

GRID = {"name": "log_snr", "sigma_min": 0.05, "sigma_max": 20.0}
PROCESS = Process(linear(), "v")
TIMESTEP_SAMPLERS = [(0.1, 2.0), (0.0, 1.0), (0.9, 0.4), (1.0, 0.05)]


@pytest.mark.parametrize("level", TIMESTEP_SAMPLERS)
def test_the_estimate_is_the_posterior_mean(level):
    alpha, sigma = level
    x0 = np.linspace(-6, 6, 40001)
    for data in (NORMAL, TWO_NORMALS):
        density = sum(
            w / s * np.exp(-0.5 * ((x0 - m) / s) ** 2)
            for m, s, w in zip(data.means, data.stds, data.weights, strict=True)
        )
        for x in POINTS:
            posterior = density * np.exp(-0.5 * ((x - alpha * x0) / sigma) ** 2)
            assert data.denoised(np.array(x), alpha, sigma) == pytest.approx(
                np.sum(posterior * x0) / np.sum(posterior), abs=1e-9
            )


def test_the_flow_of_one_normal_has_its_closed_form():
    (mean,), (std,) = NORMAL.means, NORMAL.stds
    for start in TIMESTEP_SAMPLERS:
        for end in TIMESTEP_SAMPLERS:
            wide = [np.hypot(alpha * std, sigma) for alpha, sigma in (start, end)]
            expected = end[0] * mean + wide[1] / wide[0] * (POINTS - start[0] * mean)
            np.testing.assert_allclose(NORMAL.follow(POINTS, start, end), expected, rtol=0, atol=1e-10)


def test_the_flow_preserves_quantiles():
    """The flow of one pixel is monotone, so each point remains the same quantile."""
    from scipy.stats import norm

    def below(x, level):
        alpha, sigma = level
        parts = zip(TWO_NORMALS.means, TWO_NORMALS.stds, TWO_NORMALS.weights, strict=True)
        return sum(w * norm.cdf((x - alpha * m) / np.hypot(alpha * s, sigma)) for m, s, w in parts)

    for end in TIMESTEP_SAMPLERS[1:]:
        moved = TWO_NORMALS.follow(POINTS, TIMESTEP_SAMPLERS[0], end)
        np.testing.assert_allclose(below(moved, end), below(POINTS, TIMESTEP_SAMPLERS[0]), rtol=0, atol=1e-10)


def test_ddim_has_fitted_order_one():
    assert fitted_order(lambda n: ddim(PROCESS, n, spacing=GRID, clip=None), [32, 64, 128]) == pytest.approx(1, abs=0.1)


def test_a_wrong_coefficient_destroys_the_order():
    def wrong(steps):
        plan = ddim(PROCESS, steps, spacing=GRID, clip=None)
        return replace(plan, denoised=1.01 * plan.denoised, preserves="nothing")

    assert fitted_order(wrong, [128, 256, 512]) < 0.8
    assert error(wrong(512)) > 2 * error(ddim(PROCESS, 512, spacing=GRID, clip=None))


def test_moments_are_those_of_samples():
    plan = ddpm(Process(flow(), "v"), 6, spacing="linspace", clip=None)
    rng, count = np.random.default_rng(0), 200_000
    x = NORMAL.means[0] * plan.alpha[0] + rng.standard_normal(count) * np.hypot(0.5 * plan.alpha[0], plan.sigma[0])
    drawn = execute(plan, x, exactly(plan, NORMAL), noise=lambda row: rng.standard_normal(count))
    mean, variance = moments(plan)
    assert drawn.mean() == pytest.approx(mean, abs=5 * np.sqrt(variance / count))
    assert drawn.var() == pytest.approx(variance, rel=5 * np.sqrt(2 / count))
    assert abs(variance - 0.25) > 20 * variance * np.sqrt(2 / count)


def test_the_order_does_not_depend_on_the_data():
    narrow = Mixture((0.0, 0.5), (0.2, 0.4), (0.5, 0.5))
    for data in (NORMAL, narrow):
        order = fitted_order(lambda n: ddim(PROCESS, n, spacing=GRID, clip=None), [64, 128, 256], data)
        assert order == pytest.approx(1, abs=0.1)
