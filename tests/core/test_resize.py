"""Resizing with antialiasing: closed forms, and Pillow's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diffusion_core.common.errors import DuetError
from diffusion_core.images.resize import resize, resize_matrix

SIZES = [(8, 299), (64, 299), (299, 299), (640, 299), (7, 3), (5, 12), (1, 4), (4, 1)]


def noise(size: int, channels: int = 3, count: int = 2) -> np.ndarray:
    return np.random.default_rng(size).integers(0, 256, (count, size, size, channels)).astype(np.uint8)


@given(st.integers(0, 255), st.integers(1, 40), st.integers(1, 40))
def test_constant_image_stays_constant(value, old, new):
    found = resize(np.full((1, old, old, 1), value, np.uint8), new)
    assert found.shape == (1, new, new, 1) and (found == value).all()


@pytest.mark.parametrize("size", [1, 8, 299])
def test_resizing_to_the_same_size_changes_nothing(size):
    images = noise(size)
    np.testing.assert_array_equal(resize(images, size), images)
    np.testing.assert_array_equal(resize_matrix(size, size), np.eye(size))


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_ramp_stays_a_ramp_inside_the_border(factor):
    # The centre of new pixel i is (i + 1/2) / factor - 1/2 in numbers of old pixels.
    ramp = resize_matrix(20, 20 * factor) @ np.arange(20.0)
    inner = slice(factor, -factor)
    expected = (np.arange(20 * factor) + 0.5) / factor - 0.5
    np.testing.assert_allclose(ramp[inner], expected[inner], atol=1e-12)
    # Smaller images are means with triangular weights two new pixels wide, symmetric about their centres.
    ramp = resize_matrix(20 * factor, 20) @ np.arange(20.0 * factor)
    np.testing.assert_allclose(ramp[1:-1], (np.arange(20) + 0.5)[1:-1] * factor - 0.5, atol=1e-12)


def test_finest_pattern_is_averaged_away_when_shrinking():
    stripes = np.zeros((1, 64, 64, 1), np.uint8)
    stripes[:, :, ::2] = 200
    small = resize(stripes, 16)[0, :, 1:-1, 0]
    assert np.ptp(small.astype(int)) == 0 and abs(int(small[0, 0]) - 100) <= 1


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_resize_equals_bilinear_resize_of_pillow(old, new):
    images = noise(old)
    found = resize(images, new).astype(int)
    for image, ours in zip(images, found, strict=True):
        theirs = np.asarray(Image.fromarray(image).resize((new, new), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(ours - theirs).max() <= 1  # Pillow rounds after each of its two passes
    # float32 images are not rounded; Pillow supports single channels only.
    one = images[0, :, :, 0].astype(np.float32)
    theirs = np.asarray(Image.fromarray(one).resize((new, new), Image.Resampling.BILINEAR))
    matrix = resize_matrix(old, new)
    np.testing.assert_allclose(matrix @ one @ matrix.T, theirs, atol=1e-3)


def test_height_and_width_are_not_exchanged():
    image = np.zeros((1, 4, 6, 1), np.uint8)
    image[0, :2] = 90
    found = resize(image, 12)[0, :, :, 0]
    assert (found[:4] == 90).all() and (found[-4:] == 0).all()
    assert (found == found[:, :1]).all()


@pytest.mark.parametrize(
    ("images", "size", "message"),
    [
        (np.zeros((2, 4, 4, 1)), 8, "float64"),
        (np.zeros((4, 4, 1), np.uint8), 8, r"\(4, 4, 1\)"),
        (np.zeros((2, 4, 4, 1), np.uint8), 0, "from 4 to 0"),
    ],
)
def test_invalid_images_and_sizes_are_refused(images, size, message):
    with pytest.raises(DuetError, match=message):
        resize(images, size)
