"""Grids, captions, differences and the files that hold them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageSequence

from diffusion_core.common.errors import DuetError
from diffusion_core.images.render import (
    BACKGROUND,
    difference,
    grid,
    labelled_rows,
    png_bytes,
    save_gif,
    save_png,
    strip,
)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("n", "columns", "scale", "pad"), [(7, 3, 1, 0), (7, 3, 4, 3), (2, 5, 2, 1), (6, 6, 1, 2)])
def test_grid_holds_every_image_on_background(n, columns, scale, pad, channels):
    images = noise(n, 5, 4, channels)
    sheet = grid(images, columns, scale, pad)
    rows = -(-n // columns)
    height, width = 5 * scale, 4 * scale
    assert sheet.shape == (rows * (height + pad) + pad, columns * (width + pad) + pad, channels)
    rest = np.ones(sheet.shape, bool)
    for k, image in enumerate(images):
        top = pad + k // columns * (height + pad)
        left = pad + k % columns * (width + pad)
        here = (slice(top, top + height), slice(left, left + width))
        np.testing.assert_array_equal(sheet[here], np.kron(image, np.ones((scale, scale, 1), np.uint8)))
        rest[here] = False
    assert (sheet[rest] == BACKGROUND).all()


def test_strip_is_a_grid_with_one_row():
    images = noise(5, 4, 4, 3)
    np.testing.assert_array_equal(strip(images, 2, 3), grid(images, 5, 2, 3))


def test_labelled_rows_show_captions_to_the_left_of_the_images():
    first, second = noise(4, 16, 16, 1), noise(2, 16, 16, 3, seed=1)
    sheet = labelled_rows([("first", first), ("second", second)], scale=2, pad=4)
    plain = labelled_rows([("", first), ("", second)], scale=2, pad=4)
    wide, narrow = strip(first, 2, 4), strip(second, 2, 4)
    assert sheet.shape[2] == 3
    assert sheet.shape[0] == plain.shape[0] == 2 * wide.shape[0] - 4
    left = sheet.shape[1] - wide.shape[1]
    np.testing.assert_array_equal(sheet[:40, left:], wide.repeat(3, axis=2))
    np.testing.assert_array_equal(sheet[36:, left : left + narrow.shape[1]], narrow)
    # Each caption leaves ink in its own row, to the left of the images; without one there is none.
    for half in (sheet[:38, :left], sheet[38:, :left]):
        assert (half < 128).any()
    assert (plain[:, : plain.shape[1] - wide.shape[1]] == BACKGROUND).all()


def test_tall_caption_makes_its_row_taller():
    sheet = labelled_rows([("one\ntwo\nthree\nfour", noise(2, 4, 4, 1))], scale=1, pad=2, text_size=14)
    ink = np.flatnonzero((sheet[:, :-14, 0] < 128).any(axis=1))
    assert ink[0] >= 2 and ink[-1] < sheet.shape[0] - 2
    assert ink[-1] - ink[0] > 3 * 14


def test_heads_are_centred_above_their_images():
    images = noise(4, 16, 16, 1)
    plain = labelled_rows([("row", images)], scale=3, pad=4)
    sheet = labelled_rows([("row", images)], scale=3, pad=4, heads=[("a", 1), ("", 1), ("two", 2)])
    line = sheet.shape[0] - plain.shape[0]
    np.testing.assert_array_equal(sheet[line:], plain)
    ink = np.flatnonzero((sheet[:line] < 128).any(axis=(0, 2))) - (sheet.shape[1] - strip(images, 3, 4).shape[1])
    first, second = ink[ink < 52], ink[ink >= 52]
    assert abs(first.mean() - 26) < 4 and abs(second.mean() - 156) < 4 and second[0] > 104
    wide = labelled_rows([("", images)], heads=[("", 4)], corner="a long name of all heads")
    assert (wide[:, : wide.shape[1] - strip(images, 1, 4).shape[1]] < 128).any()


def test_difference_is_black_only_where_two_images_agree():
    a, b = noise(2, 6, 6, 3), noise(2, 6, 6, 3, seed=1)
    np.testing.assert_array_equal(difference(a, a, 1000), np.zeros_like(a))
    np.testing.assert_array_equal(difference(a, b), np.abs(a.astype(int) - b))
    np.testing.assert_array_equal(difference(a, b, 8), difference(b, a, 8))
    np.testing.assert_array_equal(difference(a, b, 8), np.minimum(8 * np.abs(a.astype(int) - b), 255))
    np.testing.assert_array_equal(difference(a, b, 0.001) > 0, a != b)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_file_holds_the_pixels(tmp_path, channels):
    image = noise(9, 7, channels)
    save_png(tmp_path / "new" / "image.png", image)
    save_png(tmp_path / "new" / "image.png", image)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["image.png"]
    assert (tmp_path / "new" / "image.png").read_bytes() == png_bytes(image)
    read = np.asarray(Image.open(io.BytesIO(png_bytes(image))))
    np.testing.assert_array_equal(read.reshape(image.shape), image)


def few_colours(t: int) -> np.ndarray:
    # At most 216 colours, neighbours one level apart, which a palette shared carelessly would merge.
    return (100 + noise(t, 8, 8, 3) % 6).astype(np.uint8)


@pytest.mark.parametrize("frames", [noise(5, 8, 8, 1), few_colours(5)], ids=["grey", "few colours"])
def test_animation_keeps_its_frames_and_durations(tmp_path, frames):
    save_gif(tmp_path / "a.gif", frames, fps=10, hold_last=2)
    with Image.open(tmp_path / "a.gif") as file:
        assert file.info["loop"] == 0
        read, times = [], []
        for frame in ImageSequence.Iterator(file):
            times.append(frame.info["duration"])
            read.append(np.asarray(frame.convert("RGB")))
    assert times == [100] * 4 + [2000]
    np.testing.assert_array_equal(np.stack(read), np.broadcast_to(frames, (5, 8, 8, 3)))


def test_animation_with_many_colours_is_close_and_does_not_flicker(tmp_path):
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    frames = np.empty((3, 64, 64, 3), np.uint8)
    frames[..., 0], frames[..., 1] = ramp[:, None], ramp[None, :]
    frames[..., 2] = np.array([0, 128, 255], np.uint8)[:, None, None]
    frames[:, :8] = frames[0, :8]
    save_gif(tmp_path / "a.gif", frames)
    with Image.open(tmp_path / "a.gif") as file:
        read = np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(file)]).astype(int)
    assert np.abs(read - frames).mean() < 16
    np.testing.assert_array_equal(read[1:, :8], np.broadcast_to(read[0, :8], (2, 8, 64, 3)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grid(noise(2, 4, 4, 2), 2), r"\(2, 4, 4, 2\)"),
        (lambda: grid(np.zeros((2, 4, 4, 1)), 2), "float64"),
        (lambda: grid(noise(2, 4, 4, 1), 0), "columns"),
        (lambda: grid(noise(2, 4, 4, 1), 2, scale=0), "scale"),
        (lambda: grid(noise(2, 4, 4, 1), 2, pad=-1), "pad"),
        (lambda: strip(noise(4, 4, 1)), r"\(4, 4, 1\)"),
        (lambda: labelled_rows([]), "at least one"),
        (lambda: labelled_rows([("", noise(3, 4, 4, 1))], heads=[("a", 2)]), r"heads of \[2\] images"),
        (lambda: difference(noise(4, 4, 1), noise(4, 4, 3)), "one shape"),
        (lambda: difference(noise(4, 4, 1), noise(4, 4, 1), 0), "positive"),
        (lambda: png_bytes(noise(4, 4)), r"\(4, 4\)"),
        (lambda: save_gif("unused.gif", []), "at least one"),
        (lambda: save_gif("unused.gif", [noise(4, 4, 1), noise(4, 5, 1)]), "one shape"),
        (lambda: save_gif("unused.gif", noise(2, 4, 4, 1), fps=0), "frames per second"),
        (lambda: save_gif("unused.gif", [noise(4, 4)]), r"\(4, 4\)"),
    ],
)
def test_invalid_images_and_options_are_refused(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DuetError, match=message):
        call()
    assert not list(tmp_path.iterdir())
