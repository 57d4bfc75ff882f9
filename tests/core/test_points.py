"""Points of the plane: where they are drawn, and the velocity of the probability flow at them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from diffusion_core.common.errors import DuetError
from diffusion_core.data import load_dataset, to_uint8
from diffusion_core.data.toys import toy_mixture
from diffusion_core.images.points import (
    Plane,
    class_colours,
    is_point,
    panels,
    point_coordinates,
    scatter,
    shifts,
)
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.model.flow_field import flow_velocity, to_plane
from diffusion_core.networks import UNetSpec

SPEC = UNetSpec(1, 3, 3, channels=4, channel_multipliers=(1,), norm_groups=4)
MIXTURE = toy_mixture("moons")
POINTS = np.random.default_rng(0).uniform(-1.0, 1.0, (9, 2))


def test_a_toy_is_recognised_and_an_image_is_not():
    assert is_point(load_dataset("toy", count=3).images.shape)
    assert not is_point((8, 8, 3)) and not is_point((1, 1, 1))


def test_coordinates_are_those_that_the_data_set_stores():
    images = np.full((len(POINTS), 1, 1, 3), 128, np.uint8)
    images[:, 0, 0, :2] = to_uint8(POINTS)
    np.testing.assert_allclose(point_coordinates(images), POINTS, atol=0.5 / 127.5 + 1e-9)


def drawn_at(picture: np.ndarray, empty: np.ndarray, limit: float) -> np.ndarray:
    """Return the coordinates of the centre of what was drawn."""
    rows, columns = np.nonzero(np.any(picture != empty, axis=2))
    size = len(picture)
    return np.array([(columns.mean() + 0.5) / size * 2 - 1, 1 - (rows.mean() + 0.5) / size * 2]) * limit


@pytest.mark.parametrize("point", [(0.0, 0.0), (0.5, -0.75), (-0.9, 0.3)])
def test_a_dot_lies_where_its_point_is(point):
    empty = Plane(200, 1.25).pixels()
    dot = Plane(200, 1.25).dots([point], (200, 0, 0), radius=4, opacity=1.0).pixels()
    np.testing.assert_allclose(drawn_at(dot, empty, 1.25), point, atol=0.02)


def test_a_path_leads_from_its_first_to_its_last_point():
    empty = Plane(200, 1.0).pixels()
    path = Plane(200, 1.0).paths([[[-0.5, -0.5]], [[0.5, 0.7]]], width=2).pixels()
    np.testing.assert_allclose(drawn_at(path, empty, 1.0), [0.0, 0.1], atol=0.02)


def test_an_arrow_is_thicker_at_its_tip():
    empty = Plane(200, 1.0).pixels()
    right, left = (Plane(200, 1.0).arrows([[0, 0]], [[way, 0]], width=2).pixels() for way in (1.0, -1.0))
    assert drawn_at(right, empty, 1.0)[0] > 0.02 and drawn_at(left, empty, 1.0)[0] < -0.02


def test_points_that_are_outside_or_not_finite_are_left_out():
    empty = Plane(100, 1.0).pixels()
    np.testing.assert_array_equal(Plane(100, 1.0).dots([[1.5, 0], [np.nan, 0]]).pixels(), empty)


def test_every_class_of_a_scatter_plot_has_its_colour_and_its_name():
    points, labels = [[-0.5, 0.0], [0.5, 0.0]], [0, 1]
    plain, named = scatter(points, labels, size=200, legend=False), scatter(points, labels, {0: "sea", 1: "sky"}, 200)
    assert plain.shape == (200, 200, 3) and named.shape[1] > 200
    first, second = (plain[100, round(100 + 200 * x / 2.5)] for x in (-0.5, 0.5))
    assert first[2] > first[0] and second[0] > second[2]  # blue and orange
    assert scatter(points, size=200).shape == (200, 200, 3)  # one class needs no name


def test_colours_differ_for_many_classes():
    for count in (1, 2, 10, 25):
        assert len(set(class_colours(count))) == count


def test_panels_and_shifts_of_points():
    images = np.array([[[[255, 128, 128]]], [[[0, 128, 128]]]], np.uint8)
    assert panels(images, 64).shape == (2, 64, 64, 3)
    same, moved = shifts(images, images, 64, 100), shifts(images, images[::-1], 1, 100)
    assert np.any(same != moved)
    with pytest.raises(DuetError, match="give one for each"):
        Plane(64).dots([[0, 0], [1, 1]], [(1, 2, 3)])


class Exact:
    """The posterior mean of the moons as a network that predicts x_0, for a range of values."""

    def __init__(self, schedule, low: float, high: float) -> None:
        self.schedule, self.middle, self.half = schedule, (low + high) / 2, (high - low) / 2

    def forward(self, x, c_noise, label):
        (alpha,), (sigma,) = self.schedule(c_noise[:1])
        points = (np.asarray(x, np.float64) - alpha * self.middle)[:, 0, 0, :2] / self.half
        out = np.zeros_like(x)
        out[:, 0, 0, :2] = MIXTURE.denoised(points, alpha, sigma / self.half)
        return self.middle + self.half * out


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_velocity_is_that_of_the_probability_flow(t):
    """dx/dt = f x - g^2 score / 2 on alpha = cos(pi t / 2), sigma = sin(pi t / 2), where y is x itself."""
    model = DiffusionModel(SPEC, {"name": "cosine_continuous"}, "x0")
    schedule = model.process.schedule
    (alpha,), (sigma,) = schedule(np.array([t]))
    found = flow_velocity(model, Exact(schedule, -1.0, 1.0), POINTS, t, 0)
    h = 1e-6
    (a0, a1), (s0, s1) = schedule(np.array([t - h, t + h]))
    d_alpha, d_log_s = (a1 - a0) / (2 * h), (math.log(s1 / a1) - math.log(s0 / a0)) / (2 * h)
    drift = d_alpha / alpha
    g2 = (s1**2 - s0**2) / (2 * h) - 2 * drift * sigma**2
    dx = drift * POINTS - 0.5 * g2 * MIXTURE.score(POINTS, alpha, sigma)
    np.testing.assert_allclose(found, -dx / d_log_s, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("schedule", [{"name": "linear"}, {"name": "edm"}, {"name": "cosine"}])
def test_the_velocity_does_not_depend_on_the_range_of_the_values(schedule):
    one, other = (DiffusionModel(SPEC, schedule, "x0", value_range=values) for values in ((-1.0, 1.0), (0.0, 1.0)))
    process = one.process.schedule
    t = np.mean(process.span) if schedule["name"] == "edm" else 300
    # The same points at the same sigma/alpha: half the range needs half the noise.
    (alpha,), (sigma,) = process(np.array([t]))
    found = flow_velocity(other, Exact(process, 0.0, 1.0), POINTS, t, 0)
    a = alpha / math.hypot(alpha, 2 * sigma)
    expected = a * (MIXTURE.denoised(POINTS * math.hypot(alpha, 2 * sigma), alpha, 2 * sigma) - a * POINTS)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert flow_velocity(one, Exact(process, -1.0, 1.0), POINTS, t, 0).shape == POINTS.shape


def test_states_are_shown_where_data_lie_and_noise_has_unit_variance():
    eps = np.random.default_rng(1).standard_normal((4000, 1, 1, 3))
    for low, high in ((-1.0, 1.0), (0.0, 1.0)):
        half, middle = (high - low) / 2, (high + low) / 2
        points = np.full((1, 1, 1, 3), middle + half * 0.5)
        np.testing.assert_allclose(to_plane(points, 1.0, 0.0, (low, high)), [[0.5, 0.5]])
        noise = to_plane(0.0 * middle + 30.0 * eps, 0.0, 30.0, (low, high))
        assert abs(noise.std() - 1.0) < 0.05
