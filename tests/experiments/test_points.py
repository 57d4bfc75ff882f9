"""Runs, galleries, comparisons and pages of data sets show points of the plane as points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from commands import call
from PIL import Image

from diffusion_core.data import load_dataset
from diffusion_core.images.points import point_coordinates
from diffusion_core.runs.run_directory import read_samples
from duet.api.images import save_grid
from experiments.comparison.build import _sample_images

CPU = ("backend.device=cpu", "backend.threads=1")
TOY = (
    "experiment=toy", "model.channels=8", "trainer.images=64", "trainer.batch=16", "trainer.log_images=32",
    "lr.warmup_images=0", "lr.decay=constant", "validation.part=none", "sample.count=40", "sample.batch=40",
    "sampler.steps=6",
)  # fmt: skip


def done(module: str, *words: str) -> str:
    code, out, err = call(module, *words)
    assert code == 0, err
    return out


@pytest.fixture(scope="module")
def run(backend_name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on points."""
    done("train", f"backend={backend_name}", f"hydra.run.dir={(path := tmp_path_factory.mktemp('toy') / 'run')}",
         *TOY, *CPU)  # fmt: skip
    return path


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


@pytest.mark.backend
@pytest.mark.either
def test_a_run_draws_points_paths_flow_and_an_animation(run):
    samples = run / "samples"
    for name in ("samples", "denoising", "trajectories", "flow", "noising"):
        width, height = size(samples / f"{name}.png")
        assert min(width, height) > 150, name  # no squares of one pixel
    with Image.open(samples / "generation.gif") as animation:
        assert animation.n_frames == 6 and animation.size == (320, 320)
    with np.load(samples / "trajectory.npz") as states:
        # The last states are the samples.
        points, pixels = states["points"], read_samples(samples / "samples.npz")[0]
        assert points.shape == (6, 40, 2)
        inside = np.all(np.abs(points[-1]) < 1, axis=1)
        np.testing.assert_allclose(points[-1][inside], point_coordinates(pixels)[inside], atol=0.51 / 127.5)


@pytest.mark.backend
@pytest.mark.either
def test_a_gallery_has_a_plot_in_each_cell(run, backend_name, tmp_path):
    words = ("methods=[DDIM]", "budgets=[2,4]", "reference_steps=8", "sample.count=20")
    done("gallery", f"backend={backend_name}", f"checkpoint={run}", f"out={tmp_path}", *words, *CPU)
    width, height = size(tmp_path / "gallery.png")
    assert width > 2 * 140 and height > 140


def test_a_comparison_shows_how_far_points_are_apart():
    images = load_dataset("toy", count=30).images
    labels = np.arange(30) % 8
    drawn = _sample_images("k", images, images[::-1].copy(), labels)
    assert set(drawn) == {"k-left", "k-right", "k-difference"} and drawn["k-left"] != drawn["k-right"]
    assert _sample_images("k", images, images, labels)["k-difference"] != drawn["k-difference"]


def test_a_grid_of_points_is_a_scatter_plot(tmp_path):
    assert size(save_grid(tmp_path / "points.png", np.asarray(load_dataset("toy", count=5).images))) == (420, 420)
