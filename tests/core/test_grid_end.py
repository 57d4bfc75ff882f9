"""Where sampling starts and ends: lists of sigma/alpha, arrays, and ends at a noisy level, for every sampler."""

from __future__ import annotations

import numpy as np
import pytest
from exact import NORMAL, moments

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import flow, linear, make_schedule
from diffusion_core.sampling import SAMPLERS, make_plan
from diffusion_core.sampling.edit import tail
from diffusion_core.sampling.grid import karras, make_grid

PROCESS = Process(linear(), "v")
PROCESSES = {
    "linear": PROCESS, "flow": Process(flow(), "flow"), "edm": Process(make_schedule("edm"), "edm"),
    "vp_sde": Process(make_schedule("vp_sde"), "vp"),
}  # fmt: skip
# Samplers whose steps lie where they define them, to clean data.
FIXED = ("mean_flow", "rectified_flow", "shortcut", "sit_ode", "sit_sde")
DOWN = sorted(SAMPLERS.keys() - {"ddim_inversion", "next_level", "repaint", *FIXED})
SIGMAS = [50.0, 12.0, 3.0, 0.8, 0.2]


def ratio(plan):
    return plan.sigma / plan.alpha


@pytest.mark.parametrize("name", DOWN)
def test_every_sampler_ends_at_the_level_that_it_is_asked_for(name):
    for key, process in PROCESSES.items():
        least = np.exp(process.schedule.log_ratio_range[0])
        for end, expected in (("sigma_min", least), (0.3, 0.3)):
            options = {"restarts": [{"low": 0.5, "high": 2.0}]} if name == "restart" else {}
            plan = make_plan(process, name, steps=7, spacing="karras", end=end, clip=None, **options)
            assert ratio(plan)[-1] == pytest.approx(expected, rel=1e-9), key
            assert plan.sigma[-1] > 0 and plan.c_skip.shape == plan.t.shape
        assert make_plan(process, name, steps=7, spacing="karras", end=0).sigma[-1] == 0


@pytest.mark.parametrize("name", [name for name in DOWN if name not in ("consistency", "restart", "plms", "pndm")])
def test_samples_at_a_noisy_end_have_the_moments_of_its_level(name):
    """Stochastic samplers add noise in their last row too: 128 steps come close to the normal of the level."""
    plan = make_plan(PROCESS, name, steps=128, spacing="log_snr", end=0.5, clip=None)
    (mean,), (std,), alpha, sigma = NORMAL.means, NORMAL.stds, plan.alpha[-1], plan.sigma[-1]
    found = moments(plan)
    np.testing.assert_allclose(found, [alpha * mean, (alpha * std) ** 2 + sigma**2], rtol=0.03)


def test_a_grid_reaches_its_end_in_as_many_steps():
    plan = make_plan(PROCESS, "heun", steps=6, spacing={"name": "karras", "sigma_max": 50.0}, end=0.1)
    np.testing.assert_allclose(ratio(plan)[[*range(0, 12, 2), -1]], karras(7, 0.1, 50.0), rtol=1e-9)
    own = {"name": "karras", "sigma_max": 50.0, "sigma_min": 0.1}
    np.testing.assert_array_equal(make_plan(PROCESS, "heun", steps=6, spacing=own, end="sigma_min").t, plan.t)
    # With a sigma_min of its own above the end, the end is one more level.
    lower = make_plan(PROCESS, "ddim", steps=6, spacing=own, end=0.02)
    np.testing.assert_allclose(ratio(lower), [*karras(6, 0.1, 50.0), 0.02], rtol=1e-9)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_timesteps_lie_above_the_end(spacing):
    for schedule in (linear(), make_schedule("vp_sde")):
        for end in ("sigma_min", 0.05, 1.3):
            for steps in (1, 3, 20):
                grid = make_grid(schedule, steps, {"name": spacing, "end": end})
                assert len(grid.t) == steps
                assert np.all(np.diff(grid.points) < 0)
                if spacing != "leading":
                    assert grid.t[0] == schedule.span[1]
    assert make_grid(linear(), None, {"end": "sigma_min"}).t.tolist() == list(range(999, 0, -1))


def test_listed_levels_are_kept_and_the_last_may_be_the_end():
    last = make_grid(linear(), None, {"timesteps": [900, 400, 10], "end": float(np.exp(linear().log_ratio[10]))})
    assert last.t.tolist() == [900, 400] and last.end == pytest.approx(10)
    more = make_grid(linear(), None, {"timesteps": [900, 400, 10], "end": "sigma_min"})
    assert more.t.tolist() == [900, 400, 10] and more.end == 0
    assert ratio(make_plan(PROCESS, "ddim", sigmas=SIGMAS, end=0.2)) == pytest.approx(SIGMAS)
    assert ratio(make_plan(PROCESS, "ddim", sigmas=SIGMAS, end=0.1)) == pytest.approx([*SIGMAS, 0.1])


@pytest.mark.parametrize("name", [name for name in DOWN if name != "dpm_fast"])
def test_sigmas_are_where_steps_start_in_place_of_steps_and_spacing(name):
    for process in (PROCESS, PROCESSES["edm"]):
        options = {"between": "visited"} if name == "dpm_solver_singlestep" else {}
        plan = make_plan(process, name, sigmas=SIGMAS, steps=20, spacing="linspace", **options)
        for sigma in SIGMAS:
            assert np.isclose(ratio(plan), sigma, rtol=1e-9).any()
        for other in (np.array(SIGMAS), np.array([*SIGMAS, 0.0]), tuple(SIGMAS), np.array(SIGMAS, np.float32)):
            same = make_plan(process, name, sigmas=other, **options)
            np.testing.assert_allclose(same.denoised, plan.denoised, rtol=1e-4, atol=1e-6)


def test_arrays_and_numbers_of_numpy_are_taken_as_lists_and_numbers():
    listed = make_plan(PROCESS, "ddim", steps=None, spacing=[900, 500, 100])
    for spacing in (np.array([900, 500, 100]), np.array([900.0, 500.0, 100.0])):
        np.testing.assert_array_equal(make_plan(PROCESS, "ddim", steps=None, spacing=spacing).t, listed.t)
    edm = PROCESSES["edm"]
    np.testing.assert_array_equal(make_plan(edm, "heun", steps=None, spacing=np.array([9.0, 1.0])).t[::2], [9.0, 1.0])
    for steps in (np.int64(10), np.int32(10)):
        for spacing in ("linspace", "karras"):
            same = make_plan(PROCESS, "dpm_solver", steps=steps, spacing=spacing, eta=np.float32(0.0))
            np.testing.assert_array_equal(same.t, make_plan(PROCESS, "dpm_solver", steps=10, spacing=spacing).t)


def test_levels_of_float32_may_be_rounded_beyond_the_ends_of_the_schedule():
    edm = PROCESSES["edm"]
    sigmas = np.array([80.0 * (1 + 6e-8), 1.0, 0.002 * (1 - 6e-8)])
    np.testing.assert_allclose(make_plan(edm, "heun", sigmas=sigmas).t[[0, -1]], [80.0, 0.002], rtol=1e-12)
    assert make_plan(edm, "heun", steps=3, end=float(np.float32(0.002))).sigma[-1] == pytest.approx(0.002)
    assert make_plan(edm, "heun", steps=3, end=0.002 * (1 - 6e-8)).sigma[-1] == pytest.approx(0.002, rel=1e-12)


def test_a_tail_keeps_the_end():
    for name in ("dpm_solver", "heun", "plms"):
        full = make_plan(PROCESS, name, steps=8, spacing="karras", end=0.2)

        def make(name=name, **options):
            return make_plan(PROCESS, name, **({"steps": 8, "spacing": "karras", "end": 0.2} | options))

        def without(make=make, **options):
            return make(**({"end": None} if "spacing" in options else {}), **options)

        part = tail(without, 0.5)
        assert ratio(part)[-1] == pytest.approx(0.2, rel=1e-9)
        assert part.rows < full.rows and part.t[-1] == full.t[-1]


@pytest.mark.parametrize("options, message", [
    ({"end": 1e4}, "sampler.end: 10000.0 was given; it must be a sigma/alpha of the schedule, 0.01"),
    ({"end": "zero"}, "sampler.end: 'zero' was given; .* sigma_min .* or null for clean data"),
    ({"end": 0.5, "spacing": {"name": "karras", "end": 0.5}}, "sampler.end: 0.5 was given, and 0.5 in sampler.spacing"),
    ({"end": 5.0, "spacing": [900, 400, 100], "steps": None}, "sampler.end: sigma/alpha 5 was given, but"),
    ({"end": 0.5, "spacing": {"name": "karras", "sigma_min": 0.1}}, "sampler.end: sigma/alpha 0.5 was given, but"),
    ({"end": 60.0, "steps": 400}, "sampler.steps: 400 was given, but only .* of the 1000 timesteps lie above the end"),
    ({"sigmas": [3.0, 5.0]}, "sampler.sigmas: .* it must be a list of decreasing sigma/alpha above 0"),
    ({"sigmas": [3.0, 1e-4]}, "sampler.sigmas: 3 .. 0.0001 was given; the schedule has sigma/alpha"),
    ({"sigmas": [3.0, 0.0], "end": 0.5}, "sampler.end: 0.5 was given with sigmas that end in 0"),
    ({"steps": 4, "spacing": {"sigmas": [3.0, 1.0]}}, "sampler.steps: 4 was given with 2 sigmas"),
    ({"spacing": {"sigmas": [3.0, 1.0], "rho": 7.0}}, "it must have one of name, timesteps and sigmas"),
])  # fmt: skip
def test_levels_that_do_not_fit_are_refused(options, message):
    with pytest.raises(DuetError, match=message):
        make_plan(PROCESS, "ddim", **options)


def test_a_restart_below_the_end_is_refused():
    with pytest.raises(
        DuetError, match=r"sampler.restarts: low 0.06 was given, not above sampler.end, sigma/alpha 0.3"
    ):
        make_plan(PROCESS, "restart", end=0.3)


def test_samplers_without_such_an_end_say_so():
    with pytest.raises(DuetError, match=r"sampler.end: a noisy level was given; this sampler takes none"):
        make_plan(PROCESS, "ddim_inversion", end="sigma_min")
    process = Process(linear(T=10), "next_level")
    levels = np.exp(process.schedule.log_ratio)
    assert make_plan(process, "next_level", end="sigma_min").rows == 9
    plan = make_plan(process, "next_level", end=levels[3])
    assert plan.t.tolist() == [9, 8, 7, 6, 5, 4] and ratio(plan)[-1] == pytest.approx(levels[3])
    with pytest.raises(DuetError, match=r"sampler.end: .* next_level visits the timesteps alone"):
        make_plan(process, "next_level", end=float(np.sqrt(levels[3] * levels[4])))
    with pytest.raises(DuetError, match=r"sampler.sigmas: .* the steps of next_level lie where it defines them"):
        make_plan(process, "next_level", sigmas=[1.0])
    with pytest.raises(DuetError, match=r"sampler.last_t: 1 was given with sampler.end"):
        make_plan(PROCESS, "ddpm", last_t=1, end="sigma_min")


def test_ancestral_sampling_to_a_noisy_end_draws_from_the_posterior():
    plan = make_plan(PROCESS, "ddpm", end="sigma_min", clip=None)
    whole = make_plan(PROCESS, "ddpm", clip=None)
    assert plan.rows == 999 and plan.is_noisy.all()
    for table in ("state", "denoised", "noise"):
        np.testing.assert_array_equal(getattr(plan, table), getattr(whole, table)[:-1])


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("options", [{"sigmas": SIGMAS}, {"end": 0.3}, {"end": "sigma_min"}])
def test_levels_are_refused_by_samplers_whose_steps_are_fixed(name, options):
    with pytest.raises(DuetError, match=rf"sampler.{next(iter(options))}: .* the steps of {name} lie where"):
        make_plan(Process(make_schedule("flow_continuous"), "flow"), name, **options)
