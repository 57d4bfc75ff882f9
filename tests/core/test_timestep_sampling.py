"""Timestep sampling: functions of the position alone, with the declared distribution."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.diffusion.continuous import CONTINUOUS
from diffusion_core.diffusion.schedule import Schedule, cosine, flow, linear, make_schedule
from diffusion_core.diffusion.timestep_sampling import TIMESTEP_SAMPLERS, make_timestep_sampler

DISTRIBUTIONS = [
    {"name": "uniform"}, {"name": "low_discrepancy", "strata": 64}, {"name": "log_normal"},
    {"name": "log_normal", "mean": 0.5, "std": 0.4, "strata": 10}, {"name": "logit_normal"},
    {"name": "logit_normal", "mean": -0.8, "std": 1.5, "strata": 7}, {"name": "loss_second_moment"},
]  # fmt: skip
EACH = pytest.mark.parametrize("options", DISTRIBUTIONS, ids=lambda options: " ".join(map(str, options.values())))
MANY = np.arange(40_000)


def normal_below(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


def assert_distributed(t: np.ndarray, cumulative: np.ndarray) -> None:
    """Check the chi square of about 20 bins of timesteps, with a false alarm rate of one in a thousand."""
    cuts = np.unique(np.append(np.searchsorted(cumulative, np.arange(1, 20) / 20), len(cumulative) - 1))
    fraction = np.diff(cumulative[cuts], prepend=0.0)
    counts = np.bincount(np.searchsorted(cuts, t), minlength=len(cuts))
    held = fraction * len(t) > 5
    assert counts[~held].sum() <= 40
    assert np.sum((counts - fraction * len(t))[held] ** 2 / (fraction * len(t))[held]) < 43.8


def test_every_distribution_is_tested():
    # evenly_spaced and constant, single timesteps, are in test_reflow.py.
    assert {options["name"] for options in DISTRIBUTIONS} == TIMESTEP_SAMPLERS.keys() - {"evenly_spaced", "constant"}


@pytest.mark.parametrize("steps, first_t", [(2, 0), (3, 0), (1000, 0), (1000, 1), (1000, 999), (4000, 7)])
def test_uniform_timesteps_are_integers_of_the_stream(steps, first_t):
    """Equal bit by bit to integers of the stream, also for words next to the boundary of two timesteps."""
    sampler = make_timestep_sampler(linear(steps), first_t)
    n = steps - first_t
    np.testing.assert_array_equal(sampler.draw(3, MANY), first_t + Stream(3, "train/t").integers(MANY, n))
    borders = np.arange(n + 1, dtype=np.uint64) * 2**32 // n
    near_borders = (borders[:, None] + np.arange(3, dtype=np.uint64) - 1).ravel()[1:-2]
    np.testing.assert_array_equal(
        sampler.quantile(near_borders * 2.0**-32), first_t + (near_borders * np.uint64(n) >> np.uint64(32)).astype(int)
    )


@EACH
@pytest.mark.parametrize("schedule", [linear(), cosine(500), flow(300)], ids=lambda s: s.name)
def test_timesteps_have_their_distribution(schedule, options):
    sampler = make_timestep_sampler(schedule, **options)
    assert sampler.cumulative[-1] == 1.0 and np.all(sampler.probability >= 0)
    assert_distributed(sampler.draw(11, MANY), sampler.cumulative)


@pytest.mark.parametrize("schedule", [linear(), cosine(500), flow(300)], ids=lambda s: s.name)
def test_log_normal_rounds_to_the_nearest_timestep(schedule):
    """Compared with log-normal noise and a search for the nearest timestep."""
    noise = -1.2 + 1.2 * Stream(0, "noise").normal(np.arange(8000), ())
    with np.errstate(divide="ignore"):
        levels = np.log(schedule.sigma) - np.log(schedule.alpha)
    t = np.argmin(np.abs(noise[:, None] - levels), axis=1)
    assert_distributed(t, make_timestep_sampler(schedule, name="log_normal").cumulative)


def test_log_normal_has_its_closed_form():
    """For log(sigma/alpha) = -2, 0, 1 and no signal the boundaries are -1 and 1/2, and the last is never drawn."""
    alpha, sigma = np.array([1.0, 1.0, 1.0, 0.0]), np.exp([-2.0, 0.0, 1.0, 0.0])
    sampler = make_timestep_sampler(Schedule("given", alpha, sigma), name="log_normal", mean=0.2, std=0.7)
    first, second = normal_below((-1 - 0.2) / 0.7), normal_below((0.5 - 0.2) / 0.7)
    np.testing.assert_allclose(sampler.probability, [first, second - first, 1 - second, 0], rtol=1e-12)
    assert set(sampler.draw(0, MANY)) == {0, 1, 2}


def test_logit_normal_has_its_closed_form():
    sampler = make_timestep_sampler(flow(4), name="logit_normal", mean=0.3, std=0.9)
    below = [normal_below((math.log(u / (1 - u)) - 0.3) / 0.9) for u in (0.25, 0.5, 0.75)]
    np.testing.assert_allclose(sampler.cumulative, [*below, 1.0], rtol=1e-12)


def test_logit_normal_time_has_the_published_density():
    """Esser et al. (2024), eq. 19, up to the resolution of 4000 timesteps."""
    u = (np.arange(4000) + 0.5) / 4000
    z = (np.log(u / (1 - u)) + 0.5) / 1.3
    density = np.exp(-0.5 * z * z) / (1.3 * math.sqrt(2 * math.pi) * u * (1 - u))
    got = make_timestep_sampler(flow(4000), name="logit_normal", mean=-0.5, std=1.3).probability * 4000
    np.testing.assert_allclose(got[50:-50], density[50:-50], rtol=1e-3)


@EACH
@pytest.mark.parametrize("first_t", [1, 60])
def test_first_t_conditions_the_distribution(first_t, options):
    schedule = cosine(100)
    whole, rest = (
        make_timestep_sampler(schedule, **options).probability,
        make_timestep_sampler(schedule, first_t, **options),
    )
    np.testing.assert_array_equal(rest.probability[:first_t], 0)
    np.testing.assert_allclose(rest.probability[first_t:], whole[first_t:] / whole[first_t:].sum(), atol=1e-14)
    assert rest.draw(2, MANY[:5000]).min() >= first_t


@EACH
@given(first=st.integers(0, 10**10), size=st.integers(1, 40), data=st.data())
def test_timesteps_do_not_depend_on_the_batch(options, first, size, data):
    cut = data.draw(st.integers(0, size))
    sampler, positions = make_timestep_sampler(linear(), **options), np.arange(first, first + size)
    whole = sampler.draw(5, positions)
    np.testing.assert_array_equal(whole, np.append(sampler.draw(5, positions[:cut]), sampler.draw(5, positions[cut:])))
    order = np.random.default_rng(cut).permutation(size)
    np.testing.assert_array_equal(whole[order], sampler.draw(5, positions[order]))


@pytest.mark.parametrize("strata", [2, 7, 128])
@pytest.mark.parametrize("block", [0, 3, 10**8])
def test_every_stratum_has_exactly_one_image_of_a_block(strata, block):
    positions = np.arange(block * strata, (block + 1) * strata)
    sampler = make_timestep_sampler(linear(), name="low_discrepancy", strata=strata)
    u = sampler.uniform(1, positions)
    np.testing.assert_array_equal(np.sort(np.floor(u * strata)), np.arange(strata))
    # With as many timesteps as strata, each appears once.
    once = make_timestep_sampler(linear(strata), name="low_discrepancy", strata=strata).draw(1, positions)
    np.testing.assert_array_equal(np.sort(once), np.arange(strata))


def test_strata_are_permuted_within_a_block():
    u = (
        make_timestep_sampler(linear(), name="low_discrepancy", strata=8)
        .uniform(1, np.arange(8 * 2000))
        .reshape(2000, 8)
    )
    for place in u.T:
        counts = np.bincount(np.floor(place * 8).astype(int), minlength=8)
        assert (
            np.sum((counts - 250) ** 2 / 250) < 27.9
        )  # chi square with 7 degrees of freedom, exceeded once in 4000; there are 8 places
    # Neighbouring images lie at independent places within their strata.
    inside = u * 8 % 1
    assert abs(np.corrcoef(inside[:, 0], inside[:, 1])[0, 1]) < 4 / math.sqrt(2000)


def test_strata_reduce_the_variance_of_a_batch():
    """The variance of a mean of n is 1/(12 n) for independent draws and 1/(12 n^3) in strata."""
    means = [
        make_timestep_sampler(linear(), **options).uniform(4, np.arange(3200)).reshape(200, 16).mean(axis=1)
        for options in ({"name": "uniform"}, {"name": "low_discrepancy", "strata": 16})
    ]
    for mean, expected in zip(means, (1 / (12 * 16), 1 / (12 * 16**3)), strict=True):
        assert mean.var() == pytest.approx(expected, rel=0.4)  # four standard errors of a variance from 200 values
        assert abs(mean.mean() - 0.5) < 4 * math.sqrt(expected / 200)


def test_seeds_and_names_give_different_timesteps():
    sampler = make_timestep_sampler(linear(), name="low_discrepancy", strata=16)
    one, other = (sampler.uniform(seed, MANY[:1600]) for seed in (0, 1))
    assert abs(np.corrcoef(one, other)[0, 1]) < 4 / 40
    plain = make_timestep_sampler(linear()).uniform(0, MANY[:1600])
    # With strata, the word of "train/t" is the place within a stratum.
    np.testing.assert_allclose(one * 16 % 1, plain, atol=1e-12)


# Continuous time

TIMES = [
    (name, options) for name in CONTINUOUS for options in DISTRIBUTIONS if options["name"] != "loss_second_moment"
]  # on tables only


def distribution(schedule, options: dict) -> Callable[[np.ndarray], np.ndarray]:
    """Return P(t <= ...) by the definition of each distribution."""
    low, high = schedule.span
    below = np.vectorize(lambda v, mean, std: normal_below((v - mean) / std))
    if options["name"] == "log_normal":

        def noise(t: np.ndarray) -> np.ndarray:
            alpha, sigma = schedule(t)
            return below(np.log(sigma / alpha), options.get("mean", -1.2), options.get("std", 1.2))

        return noise
    if options["name"] == "logit_normal":

        def fraction(t: np.ndarray) -> np.ndarray:
            s = (t - low) / (high - low)
            return below(np.log(s / (1 - s)), options.get("mean", 0.0), options.get("std", 1.0))

        return fraction
    return lambda t: (t - low) / (high - low)


@pytest.mark.parametrize(
    "name, options", TIMES, ids=lambda v: v if isinstance(v, str) else " ".join(map(str, v.values()))
)
def test_times_have_their_distribution(name, options):
    """Kolmogorov-Smirnov with a false alarm rate of one in a thousand; values beyond the ends lie at the ends."""
    schedule = make_schedule(name)
    t = make_timestep_sampler(schedule, **options).draw(11, MANY[:20_000])
    assert t.dtype == np.float64 and t.shape == (20_000,)
    low, high = schedule.span
    assert low <= t.min() and t.max() <= high
    inner = np.sort(t[(t > low) & (t < high)])
    expected = distribution(schedule, options)(inner)
    rank = np.sum(t <= low) + np.arange(len(inner) + 1)
    apart = max(np.max(rank[1:] / len(t) - expected), np.max(expected - rank[:-1] / len(t)))
    assert apart < 1.95 / math.sqrt(len(t))
    if "strata" not in options:  # with strata the distance is smaller than for independent draws
        assert apart > 0.2 / math.sqrt(len(t))


def test_the_training_noise_of_edm_is_log_normal():
    # Karras et al., table 1: ln sigma ~ N(P_mean, P_std^2).
    log_sigma = np.log(make_timestep_sampler(make_schedule("edm"), name="log_normal").draw(0, MANY))
    assert log_sigma.mean() == pytest.approx(-1.2, abs=4 * 1.2 / 200)
    assert log_sigma.std() == pytest.approx(1.2, rel=4 / math.sqrt(2 * 40_000))


def test_a_fine_table_has_the_distribution_of_continuous_time():
    """The same word gives a time, and the timestep nearest to it on a fine table."""
    options = {"name": "log_normal", "mean": -0.5, "std": 0.8}
    schedule = make_schedule("vp_sde")
    t = make_timestep_sampler(schedule, **options).draw(2, MANY[:2000])
    grid = np.linspace(*schedule.span, 20_001)
    levels = make_timestep_sampler(Schedule("given", *schedule(grid)), **options).draw(2, MANY[:2000])
    assert np.max(np.abs(grid[levels] - t)) <= 0.51 * (grid[1] - grid[0])


def test_strata_divide_continuous_time():
    sampler = make_timestep_sampler(make_schedule("flow_continuous", t_min=1e-9), name="low_discrepancy", strata=16)
    t = sampler.draw(5, np.arange(160)).reshape(10, 16)
    np.testing.assert_array_equal(np.sort(np.floor(t * 16), axis=1), np.tile(np.arange(16), (10, 1)))
    np.testing.assert_array_equal(sampler.draw(5, [37, 4]), t.ravel()[[37, 4]])


@pytest.mark.parametrize("options, message", [
    ({"name": "uniform", "first_t": 1}, "process.first_t: 1 was given; the time of edm is continuous"),
    ({"name": "low_discrepancy", "strata": 0}, "process.timestep_sampling.strata: 0 was given"),
    ({"name": "log_normal", "std": -1.0}, "process.timestep_sampling.std: -1.0 was given"),
    ({"name": "logit_normal", "mean": float("inf")}, "process.timestep_sampling.mean: inf was given"),
])  # fmt: skip
def test_invalid_options_in_continuous_time_are_errors(options, message):
    with pytest.raises(DuetError, match=message):
        make_timestep_sampler(make_schedule("edm"), **options)


@pytest.mark.parametrize("options, message", [
    ({"name": "lognormal"}, "process.timestep_sampling.name: 'lognormal' .* Did you mean 'log_normal'"),
    ({"name": "uniform", "strata": 4}, "option of process.timestep_sampling 'uniform': 'strata'"),
    ({"name": "low_discrepancy"}, "process.timestep_sampling 'low_discrepancy': no strata was given"),
    ({"name": "low_discrepancy", "strata": 0}, "process.timestep_sampling.strata: 0 was given; it must be at least 1"),
    ({"name": "low_discrepancy", "strata": 2.5}, "timestep_sampling.strata: 2.5 was given; it must be a whole number"),
    ({"name": "log_normal", "std": 0.0}, "process.timestep_sampling.std: 0.0 was given; it must be a positive number"),
    ({"name": "logit_normal", "mean": float("nan")}, "process.timestep_sampling.mean: nan was given"),
    ({"name": "log_normal", "mean": -8.0, "std": 0.1, "first_t": 900}, "almost no probability from t = 900"),
    ({"name": "uniform", "first_t": 1000}, r"process.first_t: 1000 was given; it must be a timestep, 0\.\.999"),
])  # fmt: skip
def test_invalid_options_are_errors(options, message):
    with pytest.raises(DuetError, match=message):
        make_timestep_sampler(linear(), **options)
