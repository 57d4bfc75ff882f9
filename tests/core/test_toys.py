"""Mixtures of normal distributions: their score, their posterior mean, and the data sets drawn from them."""

from __future__ import annotations

import exact
import numpy as np
import pytest

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.data import from_uint8, load_dataset
from diffusion_core.data.toys import TOYS, Mixture, image_mixture, toy_mixture

TIMESTEP_SAMPLERS = [(1.0, 0.05), (0.8, 0.6), (0.1, 0.995), (1.0, 20.0)]


@pytest.mark.parametrize("kind", TOYS)
@pytest.mark.parametrize(("alpha", "sigma"), TIMESTEP_SAMPLERS)
def test_score_is_the_gradient_of_the_log_density_and_agrees_with_the_posterior_mean(kind, alpha, sigma):
    mixture = toy_mixture(kind)
    x = alpha * mixture.draw(30, 1)[0] + sigma * Stream(0, "test").normal(np.arange(30), (2,))
    score, h = mixture.score(x, alpha, sigma), 1e-5 * np.hypot(alpha * 0.05, sigma)
    for axis in range(2):
        step = h * np.eye(2)[axis]
        slope = (mixture.log_density(x + step, alpha, sigma) - mixture.log_density(x - step, alpha, sigma)) / (2 * h)
        np.testing.assert_allclose(score[:, axis], slope, atol=1e-5 * np.abs(score).max())
    # Tweedie: E[x_0 | x] = (x + sigma^2 score) / alpha.
    np.testing.assert_allclose(mixture.denoised(x, alpha, sigma), (x + sigma**2 * score) / alpha, atol=1e-9 / alpha)


def test_density_integrates_to_one():
    axis = np.linspace(-2, 2, 401)
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    total = np.exp(toy_mixture("moons").log_density(points, 0.9, 0.2)).sum() * (axis[1] - axis[0]) ** 2
    assert total == pytest.approx(1, abs=1e-6)


def test_mixture_in_one_dimension_equals_that_of_the_solver_tests():
    mine = Mixture(np.array([[-0.4], [0.7]]), np.array([0.1, 0.3]), np.array([0, 1], np.int32))
    theirs = exact.Mixture((-0.4, 0.7), (0.1, 0.3), (0.5, 0.5))
    x = np.linspace(-2, 2, 50)[:, None]
    for alpha, sigma in TIMESTEP_SAMPLERS:
        np.testing.assert_allclose(mine.denoised(x, alpha, sigma), theirs.denoised(x, alpha, sigma), atol=1e-12)


def test_posterior_mean_equals_a_weighted_monte_carlo_mean():
    mixture = toy_mixture("ring")
    points, _ = mixture.draw(200_000, 0)
    x, alpha, sigma = np.array([[0.3, 0.35]]), 0.8, 0.6
    weight = np.exp(-0.5 * ((x - alpha * points) ** 2).sum(axis=1) / sigma**2)
    mean = (weight[:, None] * points).sum(axis=0) / weight.sum()
    error = np.sqrt((weight**2).sum()) / weight.sum()
    assert np.abs(mixture.denoised(x, alpha, sigma)[0] - mean).max() < 5 * error


@pytest.mark.parametrize("kind", TOYS)
def test_toy_is_drawn_from_its_distribution(kind):
    mixture, data = toy_mixture(kind), load_dataset("toy", kind=kind, count=4000)
    assert data.images.shape == (4000, 1, 1, 3) and np.all(data.images[..., 2] == 128)
    points, classes = mixture.draw(4000, 0)
    np.testing.assert_array_equal(data.labels, classes)
    outside = np.abs(points).max(axis=1) > 1
    assert outside.mean() < 0.005
    seen = from_uint8(data.images, np.float64)[:, 0, 0, :2]
    assert np.abs(seen - points)[~outside].max() <= 1 / 255 + 1e-12
    spread = np.sqrt((mixture.means**2).mean(axis=0) + (mixture.stds**2).mean())
    np.testing.assert_allclose(points.mean(axis=0), mixture.means.mean(axis=0), atol=5 * spread.max() / np.sqrt(4000))
    np.testing.assert_allclose((points**2).mean(axis=0), spread**2, atol=5 * spread.max() ** 2 * np.sqrt(2 / 4000))
    counts, parts = np.bincount(classes), np.bincount(mixture.classes) / len(mixture.classes)
    assert np.all(np.abs(counts - 4000 * parts) < 5 * np.sqrt(4000 * parts))
    assert data.select(range(100)).sha256 == load_dataset("toy", kind=kind, count=100).sha256


def test_gaussian_mixture_is_drawn_from_its_distribution():
    mixture, data = image_mixture(8, 3, 5), load_dataset("gaussian_mixture", count=600, size=8, channels=3, modes=5)
    x = from_uint8(data.images, np.float64).reshape(600, -1)
    away = x - mixture.means[data.labels]
    assert away.std() == pytest.approx(0.08, abs=5 * 0.08 / np.sqrt(2 * away.size))
    # The modes are waves of different vectors, so no two are alike, and an image is nearest to its own.
    between = np.sqrt(((mixture.means[:, None] - mixture.means) ** 2).mean(axis=2))
    assert np.all(between[~np.eye(5, dtype=bool)] > 0.5)
    nearest = ((x[:, None] - mixture.means) ** 2).sum(axis=2).argmin(axis=1)
    np.testing.assert_array_equal(nearest, data.labels)
    # With images as they are, (B, H, W, C), the estimate has their shape; with hardly any noise it is the image.
    images = x.reshape(600, 8, 8, 3)
    np.testing.assert_allclose(mixture.denoised(images, 1.0, 1e-4), images, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("toy", {"kind": "rings"}, "kind of toy: 'rings' .* Did you mean 'ring'"),
        ("toy", {"count": 0}, "at least 1"),
        ("gaussian_mixture", {"size": 3}, "size 3"),
        ("gaussian_mixture", {"modes": 16}, r"modes 1\.\.15"),
        ("gaussian_mixture", {"spread": 0.0}, "spread in"),
        ("gaussian_mixture", {"count": 0}, "at least 1"),
    ],
)
def test_invalid_options_of_toys_are_refused(name, options, message):
    with pytest.raises(DuetError, match=message):
        load_dataset(name, **options)
