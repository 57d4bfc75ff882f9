"""Respaced processes: training, sampling and likelihood on some of the timesteps, as in guided-diffusion."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.convert import diffusers_export, guided_diffusion
from diffusion_core.data import from_uint8
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.respacing import kept_timesteps
from diffusion_core.diffusion.schedule import linear, make_schedule, same_levels, with_respacing
from diffusion_core.likelihood.bound import variational_bound
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import make_spec
from diffusion_core.sampling import make_plan
from diffusion_core.training.objective import Objective

FORMS = {"10": 10, "text": "10", "sections": [4, 3, 3], "sections as text": "4,3,3", "stride": "ddim10"}
RESPACED = Process(make_schedule("linear", T=100, beta_start=1e-3, beta_end=0.2, respacing="ddim10"), "eps")
WHOLE = Process(make_schedule("linear", T=100, beta_start=1e-3, beta_end=0.2), "eps")
SHAPE = (4, 4, 1)


def spaced_betas(betas: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return the betas of SpacedDiffusion: 1 - alphas_cumprod_t / alphas_cumprod of the last timestep that was kept."""
    last, new = 1.0, []
    for t, value in enumerate(np.cumprod(1 - betas)):
        if t in kept:
            new.append(1 - value / last)
            last = value
    return np.array(new)


@pytest.mark.parametrize("form", FORMS)
def test_the_betas_are_those_of_the_published_code(form):
    schedule, kept = with_respacing(linear(), FORMS[form]), kept_timesteps(1000, FORMS[form], "schedule.respacing")
    betas = spaced_betas(np.linspace(1e-4, 0.02, 1000), kept)
    np.testing.assert_allclose(schedule.alphas_cumprod, np.cumprod(1 - betas), rtol=1e-10)
    np.testing.assert_array_equal(schedule.timesteps, kept)
    assert schedule.steps == 10


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "iddpm"])
def test_sampling_a_respaced_process_is_sampling_some_of_the_timesteps(prediction, variance):
    """SpacedDiffusion samples every timestep of its own; the network receives those of the whole table."""
    whole = Process(make_schedule("linear"), prediction, time_scale=0.25)
    respaced = Process(make_schedule("linear", respacing="4,3,3"), prediction, time_scale=0.25)
    some, every = (
        make_plan(process, "ddpm", steps=steps, variance=variance)
        for process, steps in ((whole, [4, 3, 3]), (respaced, None))
    )
    for name, table in some.tables().items():
        if name != "t":
            np.testing.assert_allclose(every.tables()[name], table, rtol=1e-12, atol=1e-15, err_msg=name)
    assert every.t.tolist() == list(range(9, -1, -1))


def test_training_draws_the_levels_that_are_kept():
    positions = np.arange(200)
    batch = Objective(RESPACED, 0).batch(np.zeros((200, *SHAPE)), np.zeros(200, int), positions, np.float64)
    assert set(batch.c_noise) == set(range(0, 100, 10))
    alpha, sigma = WHOLE.schedule(batch.c_noise.astype(int))
    np.testing.assert_array_equal([batch.alpha, batch.sigma], [alpha, sigma])
    vlb = Objective(RESPACED, 0, variance="fixed_large", bound="vlb").variational
    assert len(vlb) == 10
    np.testing.assert_allclose(vlb[:, -1], 10 / math.log(2))


def test_predictions_of_the_level_below_mean_the_level_below_that_is_kept():
    columns = Process(RESPACED.schedule, "posterior_mean").columns(np.arange(10))
    kept = WHOLE.schedule.alpha[np.arange(0, 100, 10)]
    np.testing.assert_allclose(columns.target_x0, np.append(1.0, kept[:-1]))


def test_between_two_levels_the_network_receives_a_timestep_between():
    assert RESPACED.columns([0, 0.5, 8.25]).c_noise.tolist() == [0, 5, 82.5]
    whole = Process(make_schedule("linear"), "eps").columns([0.5])
    assert whole.c_noise.tolist() == [0.5]


def network(x: np.ndarray, c_noise: np.ndarray, label: np.ndarray, shift: float = 0.02) -> np.ndarray:
    """Return (eps, the fraction of a learned range)."""
    eps = 0.8 * np.tanh(x) + shift * c_noise[:, None, None, None] / 100
    return np.concatenate([eps, 0.5 * np.sin(x)], axis=-1)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_the_bound_of_a_respaced_process_is_that_of_its_betas(variance):
    """One term per level that is kept, with the betas and the posterior of SpacedDiffusion; the timestep is the old."""
    kept, u8 = np.arange(0, 100, 10), np.random.default_rng(0).integers(0, 256, (3, *SHAPE)).astype(np.uint8)
    index = np.arange(3)
    found = variational_bound(
        network, WHOLE, u8, np.zeros(3, np.int32), index, 7, variance=variance, respacing="ddim10", clip=False
    )
    assert found.levels.shape == (3, 10) and found.levels.max() == 9
    betas = spaced_betas(np.linspace(1e-3, 0.2, 100), kept)
    bar = np.cumprod(1 - betas)
    before = np.append(1.0, bar[:-1])
    small = np.log((betas * (1 - before) / (1 - bar))[1:])
    small = np.append(small[0], small)
    x0 = from_uint8(u8, np.float64)
    for k in range(1, 10):
        eps = Stream(7, "likelihood/noise").normal(index, SHAPE, np.full(3, kept[k]))
        x = np.sqrt(bar[k]) * x0 + np.sqrt(1 - bar[k]) * eps
        output = network(x, np.full(3, float(kept[k])), index)
        estimate = (x - np.sqrt(1 - bar[k]) * output[..., :1]) / np.sqrt(bar[k])
        fraction = (output[..., 1:] + 1) / 2
        log_var = {
            "fixed_small": small[k],
            "fixed_large": np.log(betas[k]),
            "learned_range": fraction * np.log(betas[k]) + (1 - fraction) * small[k],
        }[variance]
        gap = np.sqrt(before[k]) * betas[k] / (1 - bar[k]) * (x0 - estimate)
        kl = 0.5 * (-1 + log_var - small[k] + np.exp(small[k] - log_var) + gap**2 * np.exp(-log_var))
        got = found.terms[found.levels == k]
        np.testing.assert_allclose(got, kl.mean(axis=(1, 2, 3)) / math.log(2), rtol=1e-10)


def test_the_bound_of_a_network_that_was_trained_on_all_timesteps_uses_its_own_columns():
    """A posterior mean of neighbours stays one, however long the evaluated steps are."""
    u8, label = np.zeros((2, *SHAPE), np.uint8) + 40, np.zeros(2, np.int32)
    small = {"variance": "fixed_small", "respacing": 5, "clip": False}
    process = Process(WHOLE.schedule, "posterior_mean")
    columns = process.columns(np.arange(100))

    def mean(x, c_noise, label):
        t = c_noise.astype(int)
        x0 = x - WHOLE.schedule.sigma[t][:, None, None, None] * network(x, c_noise, label)[..., :1]
        x0 = x0 / WHOLE.schedule.alpha[t][:, None, None, None]
        return (x0 - columns.c_skip[t][:, None, None, None] * x) / columns.c_out[t][:, None, None, None]

    terms = [
        variational_bound(forward, made, u8, label, np.arange(2), 0, **small).terms
        for forward, made in ((network, WHOLE), (mean, process))
    ]
    np.testing.assert_allclose(terms[1], terms[0], rtol=1e-9)


def test_a_respaced_model_survives_a_checkpoint():
    spec = make_spec("plain", image_size=8, in_channels=1, out_channels=1, channels=(4,), bottleneck=4)
    model = DiffusionModel(spec, {"name": "cosine", "T": 100, "respacing": [5, 5]}, "v")
    again = DiffusionModel.from_dict(model.to_dict())
    assert same_levels(again.process.schedule, model.process.schedule)
    assert model.plan("ddim", steps=None).c_noise.tolist() == [99, 87, 74, 62, 50, 49, 37, 24, 12, 0]


def test_the_same_levels_with_other_timesteps_are_another_schedule():
    schedule = RESPACED.schedule
    plain = type(schedule)(schedule.name, schedule.alpha, schedule.sigma)
    assert same_levels(plain, plain) and not same_levels(plain, schedule)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(make_schedule, "vp_sde", respacing=10), "respacing: 10 was given; .* time of vp_sde is continuous"),
        (partial(make_schedule, "linear", T=10, respacing=11), "respacing: 11 was given for section 1 of 1; it has 10"),
        (partial(make_schedule, "linear", respacing=1), "respacing: 1 was given; a process needs at least 2 timesteps"),
        (partial(make_schedule, "linear", respacing="fast"), "schedule.respacing: 'fast' was given; it must be a"),
        (partial(make_schedule, "linear", respacing="ddim600"), "schedule.respacing: ddim600 was given; no integer"),
        (partial(make_schedule, "linear", respacing=2.5), "schedule.respacing: 2.5 was given; it must be"),
        (partial(make_schedule, "linear", respacing=True), "schedule.respacing: True was given; it must be"),
        (
            lambda: variational_bound(
                network, WHOLE, np.zeros((1, *SHAPE), np.uint8), np.zeros(1, np.int32), [0], 0, respacing="7,x"
            ),
            "likelihood.respacing: '7,x' was given; it must be",
        ),
    ],
)  # fmt: skip
def test_impossible_respacings_are_errors(make, message):
    with pytest.raises(DuetError, match=message):
        make()


def test_other_formats_see_the_whole_table_or_refuse():
    """guided-diffusion counts the timesteps of the whole table; a diffusers pipeline reads every one of its own."""
    spec = make_spec("plain", image_size=8, in_channels=1, out_channels=1, channels=(4,), bottleneck=4)
    model = DiffusionModel(spec, {"name": "cosine", "T": 100, "respacing": [5, 5]}, "eps")
    assert guided_diffusion._whole_table(model) == 100
    with pytest.raises(
        DuetError, match=r"process.schedule.respacing: \[5, 5\] was given; the network of a DDPMPipeline"
    ):
        diffusers_export._make_scheduler(model, "fixed_small", None)
