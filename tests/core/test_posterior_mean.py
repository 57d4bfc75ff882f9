"""Prediction of the posterior mean: sampling, training and likelihood against formulas written from the papers."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.diffusion.process import Process, add_noise
from diffusion_core.diffusion.schedule import cosine, flow, linear
from diffusion_core.diffusion.variational import bound_columns
from diffusion_core.likelihood.bound import variational_bound
from diffusion_core.sampling import make_plan

SHAPE = (4, 4, 2)
ZEROS = np.zeros(3, np.int32)


def network(x: np.ndarray, c_noise: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return some smooth eps."""
    return 0.8 * np.tanh(x) + 0.1 * np.sin(c_noise)[:, None, None, None]


def mean_network(process: Process):
    """Return the network that predicts the posterior mean at the x_0 of `network`, by Ho et al., eqs. 7 and 15."""
    bar = process.schedule.alphas_cumprod
    before = np.append(1.0, bar[:-1])
    betas = 1 - bar / before

    def forward(x: np.ndarray, c_noise: np.ndarray, label: np.ndarray) -> np.ndarray:
        t = c_noise.astype(int)
        a, b, beta = (column[t][:, None, None, None] for column in (bar, before, betas))
        x0 = (x - np.sqrt(1 - a) * network(x, c_noise, label)) / np.sqrt(a)
        return (np.sqrt(b) * beta * x0 + np.sqrt(1 - beta) * (1 - b) * x) / (1 - a)

    return forward


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("schedule", [linear(30, 1e-3, 0.3), cosine(12), flow(8)], ids=repr)
def test_each_ancestral_row_is_the_output_plus_noise(schedule, variance):
    plan = make_plan(Process(schedule, "posterior_mean"), "ddpm", variance=variance, clip=None)
    from_d = plan.denoised[:, 0, 0]
    np.testing.assert_allclose(plan.state[:, 0, 0] + from_d * plan.c_skip, 0, atol=1e-12)
    np.testing.assert_allclose(from_d * plan.c_out, 1, rtol=1e-12)


@pytest.mark.parametrize(
    ("sampler", "options"),
    [("ddpm", {}), ("ddim", {"steps": 7, "eta": 0.3}), ("dpm_solver", {"steps": 6}), ("euler", {"steps": 5})],
)
def test_samplers_agree_with_the_eps_of_the_same_estimate(sampler, options):
    schedule = linear(30, 1e-3, 0.3)
    start, states = Stream(1, "start").normal(np.arange(3), SHAPE), []
    for prediction, forward in (("eps", network), ("posterior_mean", mean_network(Process(schedule, "eps")))):
        plan = make_plan(Process(schedule, prediction), sampler, clip=1.0, **options)
        x, history = start, [np.zeros(start.shape)] * plan.history
        for row in range(plan.rows):
            f = forward(plan.c_in[row] * x, np.full(3, plan.c_noise[row]), ZEROS)
            history = [np.clip(plan.c_skip[row] * x + plan.c_out[row] * f, -1, 1), *history[:-1]]
            z = Stream(1, "noise").normal(np.arange(3), SHAPE, row)
            x = plan.state[row, 0, 0] * x + np.tensordot(plan.denoised[row, 0], history, 1) + plan.noise[row, 0] * z
        states.append(x)
    np.testing.assert_allclose(states[1], states[0], atol=1e-10)


def test_the_bound_agrees_with_the_eps_of_the_same_estimate():
    schedule = linear(12, 1e-2, 0.4)
    u8 = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), np.uint8)
    terms = [
        variational_bound(
            forward, Process(schedule, prediction), u8, ZEROS, np.arange(3), 0, variance="fixed_large"
        ).terms
        for prediction, forward in (("eps", network), ("posterior_mean", mean_network(Process(schedule, "eps"))))
    ]
    np.testing.assert_allclose(terms[1], terms[0], rtol=1e-10)


def test_the_bound_measures_the_output_in_standard_deviations_of_the_posterior():
    process = Process(cosine(10), "posterior_mean")
    columns = bound_columns(process, "learned_range", "vlb")
    small = np.square(np.sqrt(make_plan(process, "ddpm", clip=None).noise[::-1, 0] ** 2))
    np.testing.assert_allclose(columns[1:, 2], 1 / np.sqrt(small[1:]), rtol=1e-10)


def test_the_target_is_the_mean_of_the_next_level():
    schedule = cosine(10)
    columns, t = Process(schedule, "posterior_mean").columns(np.arange(10)), np.arange(10)
    x0, eps = np.full(10, 0.3), np.full(10, -0.7)
    target = columns.target_x0 * x0 + columns.target_eps * eps
    np.testing.assert_allclose(columns.target_x0, np.append(1.0, schedule.alpha[:-1]))
    x = add_noise(x0, eps, schedule.alpha, schedule.sigma)
    np.testing.assert_allclose(columns.c_skip * x + columns.c_out * target, x0, rtol=1e-12)
    assert target[0] == 0.3 and list(t[:1]) == [0]


@pytest.mark.parametrize("name", ["previous_x", "PREVIOUS_X"])
def test_the_name_in_other_code_is_named(name):
    with pytest.raises(DuetError, match=f"process.prediction: '{name}' was given; Duet calls it 'posterior_mean'"):
        Process(linear(), name)


def test_timesteps_between_two_levels_are_refused():
    with pytest.raises(DuetError, match="posterior_mean: it is defined at whole timesteps only"):
        make_plan(Process(linear(), "posterior_mean"), "ddim", steps=5, spacing="karras")
