"""The experiments of the source projects, reduced: they train, sample, write figures and resume in each backend."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import call, composed
from PIL import Image

from diffusion_core.data import to_uint8
from diffusion_core.model.generate import generate
from diffusion_core.networks.weights import parameter_count
from diffusion_core.runs.checkpoint import load_checkpoint
from diffusion_core.runs.run_directory import read_metrics, read_samples
from duet.cli.backends import backends
from experiments.config import build
from experiments.training.setup import TrainingSetup

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted(path.stem for path in (ROOT / "configs/experiment").glob("*.yaml"))

CPU = ("backend.threads=1", "backend.device=cpu")
SMALL = (
    "trainer.images=120 trainer.batch=10 trainer.log_images=10 trainer.checkpoint_images=60 trainer.sample_images=60 "
    "trainer.keep_checkpoints=null sample.count=10 sample.batch=10"
)
# As much noise in six timesteps as there is in a thousand.
FEW = "process.schedule.T=6 +process.schedule.beta_start=0.05 +process.schedule.beta_end=0.6"
SYSTEMS = {
    "landscape": f"model.image_size=16 model.channels=4 model.channel_multipliers=[1,2] model.embedding=8 "
    f"model.heads=2 data.fallback.size=16 data.fallback.count=40 ema.start=3 lr.peak=0.003 {FEW}",
    "simple": f"model.image_size=8 model.channels=[4,8,8] model.embedding=8 data.fallback.size=8 "
    f"data.fallback.count=40 lr.peak=0.01 {FEW}",
    "sixteen_step": "model.image_size=8 model.channels=8 model.levels=2 model.embedding=8 model.bottleneck=16 "
    "data.fallback.size=8 data.fallback.count=100 lr.every_images=60 lr.peak=0.003",
    "denoising_autoencoder": "model.image_size=8 model.channels=[4,8] model.bottleneck=16 data.fallback.size=8 "
    "data.fallback.count=40 lr.peak=0.003",
    "double_conv_attention": f"model.image_size=16 model.channels=4 model.channel_multipliers=[1,2] model.embedding=8 "
    f"model.heads=2 data.fallback.size=16 data.fallback.count=40 ema.start=3 lr.peak=0.003 {FEW}",
    "plain": f"model.image_size=8 model.channels=[4,8] model.bottleneck=16 data.options.size=8 data.options.count=40 "
    f"lr.peak=0.01 {FEW}",
}


# The first backend runs all systems, the others these: the ladder compares the networks of all, and what else differs
# between the systems is decided by the core.
IN_EVERY_BACKEND = ("landscape", "sixteen_step", "denoising_autoencoder")


def run(name: str, backend: str, directory: Path, *words: str) -> str:
    """Train in this process; return what was printed."""
    given = [f"backend={backend}", f"experiment={name}", f"hydra.run.dir={directory}", *CPU]
    return start("train", *given, *SMALL.split(), *SYSTEMS[name].split(), *words)


def start(module: str, *given: str) -> str:
    """Run a command; return what was printed."""
    code, out, err = call(module, *given)
    assert code == 0, err
    return out


@pytest.fixture(scope="module", params=SYSTEMS)
def finished(request: pytest.FixtureRequest, backend_name: str, tmp_path_factory: pytest.TempPathFactory):
    """A complete run of each system: (name, directory, printed text)."""
    if request.param not in IN_EVERY_BACKEND and backend_name != next(iter(backends())):
        pytest.skip("the first backend runs this system")
    directory = tmp_path_factory.mktemp(request.param) / "run"
    return request.param, directory, run(request.param, backend_name, directory)


@pytest.mark.backend
def test_the_loss_falls(finished):
    _, directory, _ = finished
    losses = [entry["loss"] for entry in read_metrics(directory / "metrics.jsonl")]
    assert len(losses) == 12
    assert np.mean(losses[-3:]) < 0.95 * np.mean(losses[:2])


@pytest.mark.backend
def test_the_run_names_the_data_it_used(finished):
    name, directory, printed = finished
    used = json.loads((directory / "environment.json").read_text())["data"]["name"]
    assert used == "shapes" if name == "plain" else used.startswith("shapes, in place of ")
    assert f"data: {used}" in printed


@pytest.mark.backend
def test_a_run_that_cannot_evaluate_its_samples_gives_the_reason(finished):
    name, directory, printed = finished
    result = json.loads((directory / "result.json").read_text())
    if name != "double_conv_attention":
        assert "evaluation" not in result
        return
    assert result["evaluation"]["numbers"] == {} and "no weights were given" in result["evaluation"]["reason"]
    assert printed.count("the samples are not evaluated: inception: no weights were given") == 2
    assert "FID" not in printed


@pytest.mark.backend
def test_the_figures_of_the_original_are_written(finished):
    _, directory, _ = finished
    samples = directory / "samples"
    half = f"{60:012d}"
    # The forward process; samples and their trajectories, in the middle of training and at its end.
    names = ["noising.png", f"samples-{half}.png", f"denoising-{half}.png", f"generation-{half}.gif"]
    names += ["samples.png", "denoising.png", "generation.gif"]
    for name in names:
        with Image.open(samples / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 5, name
            assert getattr(picture, "n_frames", 1) > 1 or not name.endswith("gif")


@pytest.mark.backend
def test_samples_have_the_classes_of_the_data(finished):
    name, directory, _ = finished
    images, labels, _ = read_samples(directory / "samples" / "samples.npz")
    assert len(images) == 10
    assert set(labels) == ({1, 2, 3, 4, 5} if name == "landscape" else {0})


@pytest.mark.backend
def test_a_resumed_run_equals_an_uninterrupted_one(finished, backend_name, tmp_path):
    name, directory, _ = finished
    run(name, backend_name, tmp_path / "run", f"resume={directory / 'checkpoints' / f'{60:012d}'}",
        "trainer.sample_images=0")  # fmt: skip
    whole, resumed = load_checkpoint(directory), load_checkpoint(tmp_path / "run")
    assert whole.images_seen == resumed.images_seen == 120
    for part, arrays in whole.state.parts.items():
        for key, value in resumed.state.parts[part].items():
            np.testing.assert_array_equal(value, arrays[key], err_msg=f"{part} {key}")
    one, other = (read_samples(path / "samples" / "samples.npz")[0] for path in (directory, tmp_path / "run"))
    np.testing.assert_array_equal(one, other)


@pytest.mark.backend
def test_samples_are_drawn_with_the_selected_weights(finished, open_backend, backend_name):
    """The average or the last weights, as `use_main` of the original selects them."""
    name, directory, _ = finished
    if name != "landscape":
        return
    found, backend = load_checkpoint(directory), open_backend("float32")
    plan = found.model.plan("ddpm", variance="fixed_large", last_t=1, clip=None, guidance_scale=3.0)
    drawn = {}
    for which in ("weights", "ema"):
        out = directory.parent / which
        start("sample", f"backend={backend_name}", f"checkpoint={directory}", f"out={out}", f"sample.weights={which}",
              "sampler=ddpm_tutorial", "sampler.guidance_scale=3", "sample.count=5",
              "save_images=false", *CPU)  # fmt: skip
        network = backend.network(found.model.program, getattr(found.state, which))
        images = generate(backend, network, plan, found.model.spec.image_shape, [1, 2, 3, 4, 5], seed=0)
        drawn[which] = read_samples(out / "samples.npz")[0]
        np.testing.assert_array_equal(drawn[which], to_uint8(images, found.model.value_range))
    assert not np.array_equal(drawn["weights"], drawn["ema"])


def configured(name: str):
    """Return the configuration and the objects of an experiment; where its data are the user's, with other data."""
    other = {"images32": ["data=shapes"], "improved_32": ["data.use_fallback=true"]}.get(name, [])
    cfg = composed("train", f"experiment={name}", *other)
    return cfg, build.training_setup(cfg)


# What the code of each original project says.
STATED = {
    "landscape": {
        "image_shape": (64, 64, 3), "classes": 5, "null_label": 0, "value_range": (0.0, 1.0),
        "schedule": ("linear", 1000), "prediction": "eps", "distance": "mse", "guidance": 3.0,
        "t of the rows": [*range(999, 0, -1)], "noise": "beta", "clip": None,
        "lr": {10: 1e-4, 5_000_000: 1e-4}, "batch": 10, "weight_decay": 0.0,
        "ema": {3000: 0.0, 3001: 0.995}, "sampled with": "ema",
    },
    "simple": {
        "image_shape": (28, 28, 3), "classes": 0, "null_label": None, "value_range": (-1.0, 1.0),
        "schedule": ("linear", 300), "prediction": "eps", "distance": "l1", "flip": True,
        "t of the rows": [*range(299, -1, -1)], "noise": "posterior",
        "lr": {128: 1e-3, 6_000_000: 1e-3}, "batch": 128, "images": 6_000_000, "sample_images": 300_000,
        "data": {"name": "cifar10", "part": "all", "size": 28}, "weight_decay": 0.0, "sampled with": "weights",
    },
    "sixteen_step": {
        "image_shape": (32, 32, 3), "classes": 0, "schedule": ("flow", 16), "prediction": "next_level",
        "distance": "l1", "t of the rows": [*range(15, -1, -1)], "noise": "none",
        "lr": {128: 8e-4, 640_000: 8e-4, 640_128: 7.2e-4, 50_000_000: 1e-6}, "batch": 128,
        "data": {"name": "cifar10", "classes": [1]}, "weight_decay": 0.0, "sampled with": "weights",
    },
    "denoising_autoencoder": {
        "image_shape": (128, 128, 3), "prediction": "x0", "distance": "mse", "value_range": (0.0, 1.0),
        "sampled with": "weights",
    },
    "double_conv_attention": {
        "image_shape": (64, 64, 1), "classes": 0, "schedule": ("linear", 1000), "prediction": "eps", "distance": "mse",
        "first_t": 1, "t of the rows": [*range(999, 0, -1)], "noise": "beta", "weight_decay": 0.01,
    },
    "plain": {
        "image_shape": (64, 64, 3), "schedule": ("linear", 1000), "prediction": "eps", "batch": 32,
        "lr": {32: 1e-4}, "t of the rows": [*range(999, -1, -1)], "epochs": 10, "weight_decay": 0.0,
        "sampled with": "weights",
    },
}  # fmt: skip


def said(cfg, experiment: TrainingSetup) -> dict:
    """Return the same facts of an experiment of ours."""
    model, plan, schedule = experiment.model, experiment.plan, experiment.model.process.schedule
    betas = 1.0 - (schedule.alpha / np.append(1.0, schedule.alpha[:-1])) ** 2
    noise, batch = plan.noise[:, 0], experiment.training_config.batch
    kinds = {
        "beta": np.append(np.sqrt(betas[plan.t[:-1]]), 0.0),
        "posterior": np.sqrt(np.append(0.0, betas[1:] * (schedule.sigma[:-1] / schedule.sigma[1:]) ** 2))[plan.t],
        "none": np.zeros(plan.rows),
    }
    return {
        "image_shape": model.spec.image_shape, "classes": model.program.classes,
        "null_label": model.program.null_label, "value_range": model.value_range,
        "schedule": (schedule.name, schedule.steps), "prediction": model.process.prediction,
        "distance": experiment.objective.distance, "first_t": experiment.objective.first_t,
        "guidance": plan.guidance_scale[0], "t of the rows": plan.t.tolist(), "clip": plan.clip,
        "noise": next((k for k, v in kinds.items() if v.shape == noise.shape and np.allclose(v, noise)), "other"),
        "lr": experiment.learning_rate, "batch": batch,
        "ema": lambda update: experiment.ema.decays(update, update * batch, batch)[0],
        "images": experiment.training_config.images, "sample_images": experiment.training_config.sample_images,
        "flip": experiment.loader.flip, "weight_decay": experiment.optimiser.weight_decay,
        "epochs": experiment.training_config.images / len(experiment.loader.dataset),
        "data": {"name": cfg.data.name, **cfg.data.options}, "sampled with": cfg.sample.weights,
    }  # fmt: skip


@pytest.mark.parametrize("name", STATED)
def test_an_experiment_has_the_settings_of_its_original(name):
    got = said(*configured(name))
    for key, wanted in STATED[name].items():
        if key in ("lr", "ema"):
            assert {at: pytest.approx(got[key](at)) for at in wanted} == wanted, key
        elif key == "data":
            assert {k: got[key][k] for k in wanted} == wanted
        else:
            assert got[key] == wanted, key


def test_the_schedule_in_the_text_of_plain_is_available():
    cfg = composed("train", "experiment=plain", "process.schedule.name=plain_as_written")
    schedule = build.training_setup(cfg).model.process.schedule
    np.testing.assert_allclose(schedule.alpha**2, np.linspace(0.02, 1e-4, 1000), rtol=1e-12)


# They need the run of a teacher; test_objectives trains small ones.
STUDENTS = {"consistency_digits", "continuous_consistency_digits", "progressive_digits"}


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in STUDENTS])
def test_every_experiment_fits_together_at_full_size(name):
    """Network, process, sampler, data and length of the unreduced configuration, without a backend."""
    _, experiment = configured(name)
    assert parameter_count(experiment.model.program) > 100_000
    batch = experiment.loader.batch(0, 2)
    assert batch.pixels.shape[1:] == experiment.model.spec.image_shape
    low, high = experiment.model.value_range
    assert low <= batch.pixels.min() < batch.pixels.max() <= high
