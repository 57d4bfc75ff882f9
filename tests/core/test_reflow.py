"""Stored pairs of noise and image, and the times and the sampler of rectified flow, against its formulas."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from exact import execute

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.data import Dataset, Loader, load_dataset
from diffusion_core.data.prefetch import Prefetch
from diffusion_core.data.store import save_store
from diffusion_core.diffusion.continuous import flow_continuous, vp_sde
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import cosine, linear
from diffusion_core.diffusion.timestep_sampling import make_timestep_sampler
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import PlainSpec
from diffusion_core.sampling import make_plan
from diffusion_core.training.loop import make_batch
from diffusion_core.training.objective import Objective
from diffusion_core.training.validation import Validation

REFLOW = Process(flow_continuous(1e-12, 0.999), "velocity_to_data", time_scale=-999.0, time_offset=999.0)
MANY = np.arange(4000)


def pairs(n: int = 24, dtype=np.float32) -> Dataset:
    images = Stream(0, "images").normal(np.arange(n), (4, 4, 1), dtype=dtype)
    noise = Stream(0, "noise").normal(np.arange(n), (4, 4, 1), dtype=dtype)
    return Dataset(images, np.arange(n) % 3, ("a", "b", "c"), "pairs", value_range=(-1.0, 1.0), noise=noise)


def test_a_store_keeps_the_bits_of_pairs_and_how_they_were_made(tmp_path, monkeypatch):
    monkeypatch.setattr("diffusion_core.data.store.shard_length", lambda size: 10)  # three files
    for dtype in (np.float32, np.float64):
        made = pairs(dtype=dtype)
        path = save_store(made, tmp_path / np.dtype(dtype).name, {"teacher": {"weights_sha256": "abc"}})
        read = load_dataset("store", directory=str(path))
        np.testing.assert_array_equal(np.asarray(read.noise[np.arange(24)]), made.noise)
        np.testing.assert_array_equal(np.asarray(read.images[np.arange(24)]), made.images)
        assert read.sha256 == made.sha256 and read.noise.dtype == dtype
        assert json.loads((path / "data.json").read_text())["made"]["teacher"]["weights_sha256"] == "abc"
        assert load_dataset("store", directory=str(path), pairs=False).noise is None
    assert replace(pairs(), noise=None).sha256 != pairs().sha256
    (tmp_path / "float32" / "noise-00001.npy").unlink()
    with pytest.raises(DuetError, match=r"noise-00001.npy"):
        load_dataset("store", directory=str(tmp_path / "float32"))


def test_changed_noise_is_noticed(tmp_path):
    path = save_store(pairs(), tmp_path / "store")
    noise = np.load(path / "noise-00000.npy")
    np.save(path / "noise-00000.npy", np.flip(noise, 0))
    with pytest.raises(DuetError, match=r"it was changed after it was written"):
        load_dataset("store", directory=str(path))


def test_a_batch_of_pairs_holds_the_noise_of_its_images(tmp_path):
    stored = load_dataset("store", directory=str(save_store(pairs(), tmp_path / "store")))
    objective = Objective(REFLOW, 5, null_label=3, label_dropout=0.2, timestep_sampling="uniform")
    for data in (stored, pairs(), stored.select(np.arange(24)).select_classes(["c", "a"])):
        loader = Loader(data, seed=5)
        batch, drawn = make_batch(loader, objective, 16, 20), loader.batch(16, 20)
        np.testing.assert_array_equal(batch.images, np.asarray(data.images[drawn.indices]))
        np.testing.assert_array_equal(batch.noise, np.asarray(data.noise[drawn.indices]))
    with Prefetch(Loader(stored, seed=5), 1) as loader:  # a process reopens the files
        np.testing.assert_array_equal(make_batch(loader, objective, 16, 20).noise, batch_of(stored, objective).noise)


def batch_of(data, objective):
    return make_batch(Loader(data, seed=5), objective, 16, 20)


def test_the_loss_is_that_of_reflow():
    """x = tau data + (1 - tau) z, target data - z, network time 999 tau, for the images of stored pairs."""
    objective = Objective(REFLOW, 5, timestep_sampling={"name": "evenly_spaced", "count": 4})
    batch = make_batch(Loader(pairs(dtype=np.float64), seed=5, dtype=np.float64), objective, 0, 24)
    tau = batch.c_noise / 999
    grid = 1e-3 + np.arange(4) * 0.999 / 4
    np.testing.assert_allclose(np.unique(tau.round(9)), grid.round(9))
    np.testing.assert_allclose(batch.alpha, tau, atol=1e-12)
    np.testing.assert_allclose(batch.sigma, 1 - tau, atol=1e-12)
    np.testing.assert_allclose([batch.target_x0, -batch.target_eps], np.ones((2, 24)), atol=1e-12)
    np.testing.assert_array_equal(batch.weight, 1)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"name": "evenly_spaced", "count": 1}, [1e-3]),  # t0
        ({"name": "constant", "at": 1.0}, [1e-3]),
        ({"name": "constant", "at": 0.0}, [1.0]),  # t1
        ({"name": "evenly_spaced", "count": 3}, [1e-3, 1e-3 + 0.333, 1e-3 + 0.666]),
    ],
)
def test_the_times_of_reflow(options, expected):
    tau = 1 - make_timestep_sampler(REFLOW.schedule, **options).draw(2, MANY)
    found, counts = np.unique(tau.round(10), return_counts=True)
    np.testing.assert_allclose(found, expected, atol=1e-10)
    assert counts.min() > 0.9 * len(MANY) / len(expected)


def test_single_timesteps_of_a_table():
    for schedule, first_t in ((linear(), 0), (cosine(100), 1)):
        T = schedule.steps
        spaced = make_timestep_sampler(schedule, first_t, "evenly_spaced", count=5)
        assert np.unique(spaced.draw(0, MANY)).tolist() == [T - 1 - k * (T - first_t) // 5 for k in range(5)][::-1]
        np.testing.assert_allclose(spaced.probability[spaced.probability > 0], 0.2)
        for at, t in ((0.0, first_t), (1.0, T - 1)):
            assert set(make_timestep_sampler(schedule, first_t, "constant", at=at).draw(0, MANY)) == {t}
    for options, key in (({"name": "constant", "at": 1.5}, "at"), ({"name": "evenly_spaced", "count": 0}, "count"),
                         ({"name": "evenly_spaced", "count": 2000}, "count")):  # fmt: skip
        with pytest.raises(DuetError, match=rf"process.timestep_sampling.{key}: "):
            make_timestep_sampler(linear(), **options)


@pytest.mark.parametrize("noise", [0.0, 0.6])
@pytest.mark.parametrize("steps", [1, 7])
def test_the_sampler_takes_the_steps_of_rectified_flow(steps, noise):
    def velocity(x, tau):
        return np.sin(3 * x) * tau - 0.4 * x + 0.1

    init, draws = np.random.default_rng(0).normal(size=5), np.random.default_rng(1).normal(size=(steps, 5))
    x, h = init, 1 / steps
    for i in range(steps):
        tau = i / steps * (1 - 1e-3) + 1e-3
        sigma, v = (1 - tau) * noise, velocity(x, tau)
        v = v + sigma**2 / (2 * (1 - tau) ** 2) * (0.5 * tau * (1 - tau) * v - 0.5 * (2 - tau) * x)
        x = x + h * v + sigma * np.sqrt(h) * draws[i]
    for prediction, sign in (("velocity_to_data", 1.0), ("velocity", -1.0), ("flow", -1.0)):
        process = Process(REFLOW.schedule, prediction, time_scale=-999.0, time_offset=999.0)
        plan = make_plan(process, "rectified_flow", steps=steps, noise=noise)
        np.testing.assert_allclose(plan.c_noise, 999 * (np.arange(steps) / steps * (1 - 1e-3) + 1e-3), rtol=1e-12)

        def estimate(row, y, plan=plan, sign=sign):
            return plan.c_skip[row] * y + plan.c_out[row] * sign * velocity(y, plan.c_noise[row] / 999)

        np.testing.assert_allclose(execute(plan, init, estimate, noise=lambda row: draws[row]), x, rtol=0, atol=1e-12)


def test_one_step_leads_from_noise_to_the_image_of_an_exact_student():
    """The velocity that distillation trains, data - z, is exact in one step, whatever the network's time."""
    z, data = np.random.default_rng(0).normal(size=(2, 6))
    plan = make_plan(REFLOW, "rectified_flow", steps=1)
    np.testing.assert_allclose(execute(plan, z, lambda row, x: plan.c_out[row] * (data - z)), data, rtol=1e-14)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: Loader(pairs(), 0, flip=True),
            r"data.flip: true was given, but data pairs are pairs of noise and image",
        ),
        (lambda: Loader(pairs(), 0, augment=0.1), r"data.augment: 0.1 was given, but data pairs are pairs"),
        (
            lambda: batch_of(pairs(), Objective(REFLOW, 0, coupling="optimal_transport")),
            r"process.coupling: .*options.pairs=false",
        ),
        (lambda: batch_of(pairs(), Objective(REFLOW, 0, offset_noise=0.1)), r"process.offset_noise: 0.1 was given"),
        (lambda: replace(pairs(), noise=pairs().noise[:, :2]), r"noise of float32 with shape \(24, 2, 4, 1\)"),
        (lambda: make_plan(Process(vp_sde(), "eps"), "rectified_flow"), r"sampler rectified_flow: prediction eps"),
        (lambda: make_plan(Process(linear(), "flow"), "rectified_flow"), r"sampler rectified_flow: prediction flow"),
        (lambda: make_plan(REFLOW, "rectified_flow", steps=0), r"sampler.steps: 0 was given"),
        (lambda: make_plan(REFLOW, "rectified_flow", eps=1.0), r"sampler.eps: 1.0 was given"),
        (lambda: make_plan(REFLOW, "rectified_flow", noise=-1.0), r"sampler.noise: -1.0 was given"),
    ],
)
def test_what_has_no_meaning_for_pairs_is_refused(make, message):
    with pytest.raises(DuetError, match=message):
        make()


def test_arrays_with_noise_are_pairs_in_either_layout():
    made = pairs()
    first = load_dataset(np.moveaxis(made.images, 3, 1), noise=np.moveaxis(made.noise, 3, 1), value_range=(-1, 1))
    np.testing.assert_array_equal(first.noise, made.noise)
    assert "with their noise" in repr(first)


def test_the_validation_loss_takes_the_noise_of_pairs():
    spec = PlainSpec(image_size=4, in_channels=1, out_channels=1, channels=(4,), bottleneck=4)
    model = DiffusionModel(spec, {"name": "flow_continuous"}, prediction="velocity")
    validation = Validation(model, Objective.for_model(model), pairs(), count=40, batch=16)
    batch = validation._batch(16)
    np.testing.assert_array_equal(batch.noise, pairs().noise[validation.indices[16:32]])
