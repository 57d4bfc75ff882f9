"""The experiments of the source systems, small: they train, sample, draw their pictures and resume, in each backend."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from diffusion_core.checkpoint import load_checkpoint
from diffusion_core.run import read_metrics, read_samples
from diffusion_core.weights import count
from experiments.schema import register
from experiments.train import Experiment

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted(path.stem for path in (ROOT / "configs/experiment").glob("*.yaml"))

SMALL = (
    "trainer.images=120 trainer.batch=10 trainer.log_images=10 trainer.checkpoint_images=60 trainer.sample_images=60 "
    "trainer.keep_checkpoints=null sample.count=10 sample.batch=10 backend.threads=1 backend.device=cpu"
)
# As much noise in six levels as there is in a thousand.
FEW = "process.schedule.T=6 +process.schedule.beta_start=0.05 +process.schedule.beta_end=0.6"
SYSTEMS = {
    "landscape": f"model.image_size=16 model.channels=4 model.multipliers=[1,2] model.embedding=8 model.heads=2 "
    f"data.stand_in.size=16 data.stand_in.count=40 ema.start=3 lr.peak=0.003 {FEW}",
    "simple": f"model.image_size=8 model.channels=[4,8,8] model.embedding=8 data.stand_in.size=8 "
    f"data.stand_in.count=40 lr.peak=0.01 {FEW}",
    "sixteen_step": "model.image_size=8 model.channels=8 model.levels=2 model.embedding=8 model.bottleneck=16 "
    "data.stand_in.size=8 data.stand_in.count=100 lr.every_images=60 lr.peak=0.003",
    "denoising_autoencoder": "model.image_size=8 model.channels=[4,8] model.bottleneck=16 data.stand_in.size=8 "
    "data.stand_in.count=40 lr.peak=0.003",
    "double_conv_attention": f"model.image_size=16 model.channels=4 model.multipliers=[1,2] model.embedding=8 "
    f"model.heads=2 data.stand_in.size=16 data.stand_in.count=40 ema.start=3 lr.peak=0.003 {FEW}",
    "plain": f"model.image_size=8 model.channels=[4,8] model.bottleneck=16 data.options.size=8 data.options.count=40 "
    f"lr.peak=0.01 {FEW}",
}


def run(name: str, backend: str, directory: Path, *words: str) -> str:
    """Train in this process; gives what was printed."""
    main = importlib.import_module("experiments.train").main
    given = [f"backend={backend}", f"experiment={name}", f"hydra.run.dir={directory}"]
    given += [*SMALL.split(), *SYSTEMS[name].split(), *words]
    out = io.StringIO()
    GlobalHydra.instance().clear()
    with (
        mock.patch.object(sys, "argv", ["experiments.train", *given]),
        mock.patch.dict(os.environ),
        contextlib.redirect_stdout(out),
    ):
        main()
    return out.getvalue()


@pytest.fixture(scope="module", params=SYSTEMS)
def finished(request: pytest.FixtureRequest, backend_name: str, tmp_path_factory: pytest.TempPathFactory):
    """A finished run of each system: (name, directory, what it printed)."""
    directory = tmp_path_factory.mktemp(request.param) / "run"
    return request.param, directory, run(request.param, backend_name, directory)


@pytest.mark.backend
def test_the_loss_falls(finished):
    _, directory, _ = finished
    losses = [entry["loss"] for entry in read_metrics(directory / "metrics.jsonl")]
    assert len(losses) == 12
    assert np.mean(losses[-3:]) < 0.95 * np.mean(losses[:2])


@pytest.mark.backend
def test_the_run_says_which_data_it_used(finished):
    name, directory, printed = finished
    used = json.loads((directory / "environment.json").read_text())["data"]["name"]
    assert used == "shapes" if name == "plain" else used.startswith("shapes, in place of ")
    assert f"data: {used}" in printed


@pytest.mark.backend
def test_the_pictures_of_the_original_are_drawn(finished):
    _, directory, _ = finished
    samples = directory / "samples"
    half = f"{60:012d}"
    # Forward noising; samples and their way from noise, in the middle of training and at its end.
    names = ["noising.png", f"samples-{half}.png", f"denoising-{half}.png", f"generation-{half}.gif"]
    names += ["samples.png", "denoising.png", "generation.gif"]
    for name in names:
        with Image.open(samples / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 5, name
            assert getattr(picture, "n_frames", 1) > 1 or not name.endswith("gif")


@pytest.mark.backend
def test_samples_are_of_the_classes_that_there_are(finished):
    name, directory, _ = finished
    images, labels, _ = read_samples(directory / "samples" / "samples.npz")
    assert len(images) == 10
    assert set(labels) == ({1, 2, 3, 4, 5} if name == "landscape" else {0})


@pytest.mark.backend
def test_resumed_equals_uninterrupted(finished, backend_name, tmp_path):
    name, directory, _ = finished
    run(name, backend_name, tmp_path / "run", f"resume={directory / 'checkpoints' / f'{60:012d}'}",
        "trainer.sample_images=0")  # fmt: skip
    whole, resumed = load_checkpoint(directory), load_checkpoint(tmp_path / "run")
    assert whole.images_seen == resumed.images_seen == 120
    for part in ("weights", "ema", "moment1", "moment2"):
        arrays = getattr(whole.state, part)
        for key, value in getattr(resumed.state, part).items():
            np.testing.assert_array_equal(value, arrays[key], err_msg=f"{part} {key}")
    one, other = (read_samples(path / "samples" / "samples.npz")[0] for path in (directory, tmp_path / "run"))
    np.testing.assert_array_equal(one, other)


@pytest.mark.backend
def test_the_main_weights_draw_other_samples(finished):
    name, directory, _ = finished
    state = load_checkpoint(directory).state
    assert any(not np.array_equal(state.weights[key], state.ema[key]) for key in state.weights), name


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_fits_together_at_full_size(name):
    """Network, process, sampler, data and course of the file as it is, without a backend."""
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        experiment = Experiment.of(compose("train", [f"experiment={name}"]))
    assert count(experiment.problem.program) > 100_000
    batch = experiment.loader.batch(0, 2)
    assert batch.pixels.shape[1:] == experiment.problem.spec.image_shape
    low, high = experiment.problem.value_range
    assert low <= batch.pixels.min() < batch.pixels.max() <= high
