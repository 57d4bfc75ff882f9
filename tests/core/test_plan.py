"""Plans: a wrong coefficient, level or option is an error."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import flow, linear
from diffusion_core.sampling import SamplerPlan, make_plan
from diffusion_core.sampling.ddim import ddim
from diffusion_core.sampling.ddpm import ddpm
from diffusion_core.sampling.plan import plan_levels

PROCESS = Process(linear(), "eps")


def plan() -> SamplerPlan:
    return ddim(PROCESS, 5, eta=0.5)


def changed(table: str, row: int, by: float) -> dict[str, np.ndarray]:
    values = getattr(plan(), table).copy()
    values[row] += by
    return {table: values}


@pytest.mark.parametrize("row", [0, 2, 4])
@pytest.mark.parametrize("table", ["state", "denoised", "noise"])
def test_a_wrong_coefficient_is_an_error(table, row):
    with pytest.raises(DuetError, match=rf"plan ddim-5: row {row} \(t = {plan().t[row]}\) does not lead from level"):
        replace(plan(), **changed(table, row, 1e-6))


@pytest.mark.parametrize("table", ["alpha", "sigma"])
@pytest.mark.parametrize("level", range(6))
def test_a_wrong_level_is_an_error(table, level):
    with pytest.raises(DuetError, match=f"row {max(level - 1, 0)} "):
        replace(plan(), **changed(table, level, 1e-6))


def test_a_larger_variance_must_be_declared():
    large = ddpm(PROCESS, 5, variance="fixed_large")
    with pytest.raises(DuetError, match="does not lead from level"):
        replace(large, preserves="marginals")


def test_a_missing_row_is_an_error():
    tables = plan().tables()
    shorter = {name: np.delete(table, 1, axis=0) for name, table in tables.items()}
    with pytest.raises(DuetError, match="row 0"):
        SamplerPlan(name="cut", **shorter)


@pytest.mark.parametrize("table", [n for n in plan().tables() if n != "t"])
def test_nonfinite_tables_are_errors(table):
    for bad in (np.nan, np.inf):
        with pytest.raises(DuetError, match=rf"plan ddim-5: {table} is not finite at row \[3"):
            replace(plan(), **changed(table, 3, bad))


@pytest.mark.parametrize("table", plan().tables())
def test_inconsistent_shapes_are_errors(table):
    shorter = getattr(plan(), table)[:-1]
    with pytest.raises(DuetError, match=r"plan ddim-5: .* has shape .*; it must be"):
        replace(plan(), **{table: shorter})


def test_a_plan_without_rows_is_an_error():
    with pytest.raises(DuetError, match="no rows"):
        replace(plan(), denoised=np.zeros((0, 1, 1)))


def test_the_tables_of_a_plan_are_read_only():
    for table in plan().tables().values():
        with pytest.raises(ValueError, match="read-only"):
            table[...] = 0


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan")])
def test_an_invalid_clip_is_an_error(clip):
    with pytest.raises(DuetError, match="clip must be positive or null"):
        ddim(PROCESS, 5, clip=clip)


def test_guidance_is_one_number_or_one_per_row():
    assert not plan().is_guided.any()
    everywhere = plan().with_guidance(2.5)
    np.testing.assert_array_equal(everywhere.guidance_scale, np.full(5, 2.5))
    assert everywhere.is_guided.all() and everywhere.guidance_scale.flags.writeable is False
    some = plan().with_guidance([1, 1, 3, 0, 1])
    np.testing.assert_array_equal(some.is_guided, [False, False, True, True, False])
    np.testing.assert_array_equal(some.with_guidance(1).guidance_scale, plan().guidance_scale)
    for name, table in plan().tables().items():
        if name != "guidance_scale":
            np.testing.assert_array_equal(getattr(some, name), table)


@pytest.mark.parametrize("weight", [[1.0, 2.0], [[1.0] * 5] * 2, "strong", None])
def test_guidance_with_another_shape_is_an_error(weight):
    with pytest.raises(DuetError, match="guidance"):
        plan().with_guidance(weight)


def test_nonfinite_guidance_is_an_error():
    with pytest.raises(DuetError, match="guidance_scale: nan was given; it must be a finite number"):
        plan().with_guidance(float("nan"))


def test_plan_levels_end_in_clean_data_and_have_the_columns():
    t = np.array([900, 10])
    levels = plan_levels(PROCESS, t)
    columns = PROCESS.columns(t)
    for name in ("c_skip", "c_out", "c_in", "c_noise"):
        np.testing.assert_array_equal(levels[name], getattr(columns, name))
    np.testing.assert_array_equal(levels["alpha"], [*linear().alpha[t], 1])
    np.testing.assert_array_equal(levels["sigma"], [*linear().sigma[t], 0])
    assert levels["start_scale"] == 1.0


def test_plan_levels_can_end_at_a_noisy_level():
    t = np.array([900, 10])
    levels, clean = plan_levels(PROCESS, t, end=3), plan_levels(PROCESS, t)
    assert (levels["alpha"][-1], levels["sigma"][-1]) == (linear().alpha[3], linear().sigma[3])
    for name in ("alpha", "sigma"):
        np.testing.assert_array_equal(levels[name][:-1], clean[name][:-1])
    with pytest.raises(DuetError, match=r"t must be in 0\.\.999"):
        plan_levels(PROCESS, t, end=-1)


def test_the_start_scale_is_that_of_the_first_level():
    # The noisiest level of a variance-preserving schedule is close to N(0, 1); others start with the scale sigma.
    assert ddim(Process(linear(), "v"), 10).start_scale == 1.0
    assert ddim(Process(flow(), "v"), 10, spacing="trailing").start_scale == 1.0
    assert ddim(Process(flow(), "v"), 10, spacing="leading").start_scale == pytest.approx(0.901)


def test_samplers_are_made_by_name():
    by_name = make_plan(PROCESS, "ddim", guidance_scale=2.0, steps=5, eta=0.5)
    for name, table in plan().with_guidance(2.0).tables().items():
        np.testing.assert_array_equal(getattr(by_name, name), table)
    assert make_plan(PROCESS, "ddpm").rows == 1000


@pytest.mark.parametrize("name, options, message", [
    ("dimm", {}, "sampler.name: 'dimm' was given; .* Did you mean 'ddim'"),
    ("ddim", {"step": 5}, "Did you mean 'steps'"),
    ("ddim", {"steps": 5.0}, "sampler.steps: 5.0 was given; it must be a whole number"),
    ("ddim", {"steps": "many"}, "sampler.steps: 'many' was given; it must be a whole number"),
    ("ddim", {"eta": 1.5}, "sampler.eta: 1.5 was given"),
    ("ddim", {"eta": -0.1}, "sampler.eta: -0.1 was given"),
    ("ddim", {"eta": float("nan")}, "sampler.eta: nan was given"),
    ("ddim", {"eta": "all"}, "sampler.eta: 'all' was given; it must be a number"),
    ("ddim", {"use_clipped_model_output": "no"}, "sampler.use_clipped_model_output: 'no' was given"),
    ("ddim", {"threshold_max": 2.0}, r"sampler.threshold_max: 2.0 was given with .* threshold None; .* needs a"),
    ("ddim", {"threshold": 0.9, "threshold_max": 0.5}, "sampler.threshold_max: 0.5 was given with .* at least clip"),
    ("ddim", {"threshold": 0.9, "threshold_max": float("nan")}, "sampler.threshold_max: nan was given"),
    ("ddpm", {"variance": "fixedlarge"}, "sampler.variance: .* Did you mean 'fixed_large'"),
    ("ddpm", {"steps": 0}, "sampler.steps: 0 was given"),
    ("ddpm", {"steps": 1001}, "1 to 1000 steps"),
    ("ddpm", {"guidance": [1.0, 2.0, 3.0], "steps": 2}, "guidance"),
    ("ddpm", {"last_t": 1, "steps": 10}, "sampler.last_t: 1 was given with 10 steps; use steps=null"),
    ("ddpm", {"last_t": 1000}, r"sampler.last_t: 1000 was given; it must be a timestep, 0\.\.999"),
    ("ddpm", {"last_t": -1}, "sampler.last_t: -1 was given"),
    ("next_level", {}, "next_level was given for a network with prediction eps; use ddim or ddpm"),
    ("next_level", {"steps": 5}, "option of sampler 'next_level'"),
])  # fmt: skip
def test_invalid_sampler_options_are_errors(name, options, message):
    with pytest.raises(DuetError, match=message):
        make_plan(PROCESS, name, **options)
