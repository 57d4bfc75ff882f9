"""Shapes, folders of images and stores."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_core.common.errors import DuetError
from diffusion_core.data import Dataset, load_dataset
from diffusion_core.data.shapes import KINDS, render_scenes, sample_scenes, shapes
from diffusion_core.data.store import open_store, save_store
from diffusion_core.data.transform import read_image

# Shapes


AREAS = {  # of a shape that fits in radius 1
    "circle": np.pi,
    "square": 2.0,
    "triangle": 0.75 * np.sqrt(3),
    "cross": 4 * 0.25 * np.sqrt(15 / 16) * 2 - 0.25,
    "ring": 0.75 * np.pi,
    "diamond": 1.0,
}


def test_each_shape_covers_its_area_and_is_brighter_than_the_background():
    what = sample_scenes(120, seed=1)
    grey = render_scenes(what, 64, 1)[..., 0] / 255.0
    ground, ink = (np.round(255 * level) / 255 for level in (what.backgrounds, what.colours[:, 2]))
    covered = ((grey - ground[:, None, None]) / (ink - ground)[:, None, None]).mean(axis=(1, 2))
    areas = np.array([AREAS[kind] for kind in KINDS])[what.kinds] * what.radii**2
    assert set(what.kinds) == set(range(len(KINDS)))
    # As a fraction of the image. Antialiasing blunts the corners by a fraction of one pixel, which is 1 / 4096.
    np.testing.assert_allclose(covered, areas, atol=0.0005)


def test_scenes_follow_their_distribution():
    what = sample_scenes(4000, seed=0)
    counts = np.bincount(what.kinds, minlength=6)
    assert np.abs(counts - 4000 / 6).max() < 5 * np.sqrt(4000 * 5 / 36)
    assert what.radii.min() > 0.20 and what.radii.max() < 0.38
    assert what.radii.mean() == pytest.approx(0.29, abs=5 * 0.18 / np.sqrt(12 * 4000))
    gaps = np.minimum(what.centres, 1 - what.centres) - what.radii[:, None]
    assert gaps.min() > 0.04 - 1e-12
    assert what.centres.mean() == pytest.approx(0.5, abs=0.01)
    assert (what.colours.min(axis=0) > [0, 0.55, 0.75]).all() and (what.colours < 1).all()
    numbers = np.column_stack([what.kinds, what.radii, what.colours, what.backgrounds])
    # The quantities are independent: no correlation beyond five standard deviations.
    assert np.abs(np.corrcoef(numbers.T) - np.eye(6)).max() < 5 / np.sqrt(4000)


def test_larger_set_of_shapes_begins_with_the_smaller_one(monkeypatch):
    long, short = shapes(50, 12, 3, seed=4), shapes(20, 12, 3, seed=4)
    np.testing.assert_array_equal(long.images[:20], short.images)
    np.testing.assert_array_equal(long.labels[:20], short.labels)
    assert shapes(20, 12, 3, seed=5).sha256 != short.sha256
    monkeypatch.setattr("diffusion_core.data.shapes._CHUNK", 7)
    assert shapes(50, 12, 3, seed=4).sha256 == long.sha256


def test_scene_does_not_depend_on_the_size():
    large, small = shapes(60, 64, 3, seed=2), shapes(60, 16, 3, seed=2)
    averaged = large.images.reshape(60, 16, 4, 16, 4, 3).mean(axis=(2, 4))
    assert np.abs(averaged - small.images).mean() < 2


def test_image_has_the_colours_of_its_scene():
    import colorsys

    what = sample_scenes(200, seed=3)
    solid = np.flatnonzero(np.isin(what.kinds, [0, 1]))  # kinds that cover their centre
    images = render_scenes(what, 33, 3)
    for i in solid[:20]:
        x, y = (what.centres[i] * 33).astype(int)
        np.testing.assert_allclose(images[i, y, x], 255 * np.array(colorsys.hsv_to_rgb(*what.colours[i])), atol=0.51)
        np.testing.assert_allclose(images[i, 0, 0], 255 * what.backgrounds[i], atol=0.51)


@pytest.mark.parametrize("options", [{"count": 0}, {"size": 7}, {"channels": 2}])
def test_invalid_options_of_shapes_are_refused(options):
    with pytest.raises(DuetError, match="at least 8"):
        load_dataset("shapes", **options)


# Folders


def image_folder(path: Path, size: int, channels: int = 3) -> Dataset:
    return load_dataset("image_folder", path=str(path), size=size, channels=channels)


def colours(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_each_folder_is_a_class_in_sorted_order(tmp_path):
    images = [colours(6, 6, seed) for seed in range(5)]
    places = ["b/2.png", "a/x/deep.PNG", "b/1.bmp", "a/1.png", "c/0.tiff"]
    for image, place in zip(images, places, strict=True):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / place)
    (tmp_path / "b/notes.txt").write_text("no image")
    (tmp_path / "b/.hidden.png").write_text("no image")
    (tmp_path / ".cache").mkdir()
    data = load_dataset("image_folder", path=str(tmp_path), size=6)
    assert data.class_names == ("a", "b", "c") and data.name == tmp_path.name
    np.testing.assert_array_equal(data.labels, [0, 0, 1, 1, 2])
    np.testing.assert_array_equal(data.images, np.stack([images[i] for i in (3, 1, 2, 0, 4)]))
    one = image_folder(tmp_path / "b", 6)
    assert one.class_names == ("b",)
    np.testing.assert_array_equal(one.images, data.images[2:4])


@pytest.mark.parametrize(("height", "width"), [(30, 50), (50, 30), (31, 50), (30, 30)])
def test_image_is_cropped_at_the_centre_and_keeps_its_aspect_ratio(tmp_path, height, width):
    # A ramp in both directions: its slope per pixel shows the scale, its mean the position.
    y, x = np.mgrid[:height, :width]
    image = np.stack([4 * y, 4 * x, 0 * x], axis=-1).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    small = read_image(tmp_path / "a.png", 10, 3).astype(float)
    scale = min(height, width) / 10
    for axis, extent in ((0, height), (1, width)):
        ramp = small[..., axis].mean(axis=1 - axis)
        np.testing.assert_allclose(np.diff(ramp[2:-2]), 4 * scale, atol=1)
        assert ramp.mean() == pytest.approx(4 * (extent - 1) / 2, abs=2.5)


def test_image_of_the_right_size_is_unchanged(tmp_path):
    image = colours(8, 14)
    Image.fromarray(image).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 8, 3), image[:, 3:11])


def test_shrinking_averages_instead_of_skipping(tmp_path):
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "a.png")
    assert np.abs(read_image(tmp_path / "a.png", 8, 1) - 127.5).max() < 8


def transparent(path):
    alpha = np.full((4, 4, 4), (200, 0, 0, 0), np.uint8)
    alpha[:, 2:, 3] = 255
    Image.fromarray(alpha).save(path)


def grey_alpha(path):
    grey = np.zeros((4, 4, 2), np.uint8)
    grey[:, 2:] = (60, 255)
    Image.fromarray(grey, "LA").save(path)


def palette(path):
    image = Image.fromarray(np.repeat([[0, 0, 1, 1]], 4, axis=0).astype(np.uint8), "P")
    image.putpalette([10, 20, 30, 250, 240, 230])
    image.save(path)


def clear_palette(path):
    image = Image.fromarray(np.repeat([[0, 0, 1, 1]], 4, axis=0).astype(np.uint8), "P")
    image.putpalette([10, 20, 30, 250, 240, 230])
    image.save(path, transparency=0)


def sixteen_bit(path):
    Image.fromarray(np.repeat([[0, 0, 257 * 250, 257 * 250]], 4, axis=0).astype(np.uint16)).save(path)


def two_tone(path):
    Image.fromarray(np.repeat([[False, False, True, True]], 4, axis=0)).save(path)


def inks(path):
    Image.fromarray(np.full((4, 4, 4), (255, 0, 0, 0), np.uint8), "CMYK").save(path)


def turned(path):
    image = Image.fromarray(np.repeat([[[9] * 3], [[9] * 3], [[200] * 3], [[200] * 3]], 4, axis=1).astype(np.uint8))
    exif = image.getexif()
    exif[0x0112] = 8  # upright after a quarter turn to the left
    image.save(path, exif=exif)


@pytest.mark.parametrize(
    ("write", "suffix", "left", "right"),
    [
        (transparent, "png", (255, 255, 255), (200, 0, 0)),
        (grey_alpha, "png", (255, 255, 255), (60, 60, 60)),
        (palette, "png", (10, 20, 30), (250, 240, 230)),
        (palette, "gif", (10, 20, 30), (250, 240, 230)),
        (clear_palette, "png", (255, 255, 255), (250, 240, 230)),
        (sixteen_bit, "png", (0, 0, 0), (250, 250, 250)),
        (sixteen_bit, "tiff", (0, 0, 0), (250, 250, 250)),
        (sixteen_bit, "pgm", (0, 0, 0), (250, 250, 250)),
        (two_tone, "png", (0, 0, 0), (255, 255, 255)),
        (inks, "tiff", (0, 255, 255), (0, 255, 255)),
        (turned, "png", (9, 9, 9), (200, 200, 200)),
    ],
)
def test_every_kind_of_file_is_converted_to_what_a_viewer_shows(tmp_path, write, suffix, left, right):
    write(tmp_path / f"a.{suffix}")
    image = image_folder(tmp_path, 4, 3).images[0]
    np.testing.assert_array_equal(image[:, :2], np.broadcast_to(left, (4, 2, 3)))
    np.testing.assert_array_equal(image[:, 2:], np.broadcast_to(right, (4, 2, 3)))
    if left[0] == left[1] == left[2] and right[0] == right[1] == right[2]:
        grey = image_folder(tmp_path, 4, 1).images[0]
        np.testing.assert_array_equal(grey, image[..., :1])


def sixteen_bit_colour(pixels: np.ndarray) -> bytes:
    """A PNG of pixels (H, W, 3), which Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def test_sixteen_bit_grey_is_rounded_and_sixteen_bit_colour_truncated(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (8, 8, 3)).astype(np.uint16)
    (tmp_path / "colour.png").write_bytes(sixteen_bit_colour(values))
    Image.fromarray(values[..., 0]).save(tmp_path / "grey.png")
    colour, grey = (read_image(tmp_path / f"{name}.png", 8, c) for name, c in (("colour", 3), ("grey", 1)))
    np.testing.assert_array_equal(colour, values >> 8)
    np.testing.assert_array_equal(grey[..., 0], np.round(values[..., 0] / 257))
    apart = grey[..., 0].astype(int) - colour[..., 0]
    assert set(np.unique(apart)) == {-1, 0, 1}


def test_invalid_folder_is_refused(tmp_path):
    with pytest.raises(DuetError, match=r"missing' does not exist; it must hold images .*per class"):
        image_folder(tmp_path / "missing", 8)
    with pytest.raises(DuetError, match="holds no images"):
        image_folder(tmp_path, 8)
    for name in ("full", "empty"):
        (tmp_path / name).mkdir()
    Image.fromarray(colours(4, 4)).save(tmp_path / "full" / "a.png")
    assert image_folder(tmp_path, 8).class_names == ("full",)
    Image.fromarray(colours(4, 4)).save(tmp_path / "loose.png")
    with pytest.raises(DuetError, match=r"holds 'loose\.png' and the folder 'full'"):
        image_folder(tmp_path, 8)
    with pytest.raises(DuetError, match="it must be 1 or 3"):
        image_folder(tmp_path / "full", 8, 4)
    with pytest.raises(DuetError, match="no path was given"):
        load_dataset("image_folder", size=8)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp", "tiff", "ppm"])
def test_error_names_the_unreadable_image(tmp_path, suffix):
    good, cut, text = (tmp_path / f"{name}.{suffix}" for name in ("good", "cut", "text"))
    Image.fromarray(colours(64, 64)).save(good)
    read_image(good, 8, 3)
    cut.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    text.write_text("not an image")
    for file in (cut, text):
        with pytest.raises(DuetError, match=f"{file.name}' cannot be read"):
            read_image(file, 8, 3)


@pytest.mark.parametrize("kind", [np.float32, np.int32])  # however small their values
def test_image_whose_white_is_undefined_is_refused(tmp_path, kind):
    Image.fromarray(np.ones((4, 4), kind)).save(tmp_path / "a.tiff")
    with pytest.raises(DuetError, match=r"a\.tiff'.*define white"):
        read_image(tmp_path / "a.tiff", 4, 1)


# Stores


@pytest.fixture
def data() -> Dataset:
    return shapes(12, 8, 3, seed=0)


def test_store_returns_the_data_set_as_memory_maps(tmp_path, data):
    save_store(data, tmp_path / "deep" / "store")
    opened = load_dataset("store", directory=tmp_path / "deep" / "store")
    assert isinstance(opened.images, np.memmap) and not opened.images.flags.writeable
    assert (opened.name, opened.class_names, opened.sha256) == (data.name, data.class_names, data.sha256)
    np.testing.assert_array_equal(opened.images, data.images)
    np.testing.assert_array_equal(opened.labels, data.labels)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["store"]
    # A store written from a store is equal to it.
    assert open_store(save_store(opened, tmp_path / "copy")).sha256 == data.sha256


def test_store_is_written_once_and_never_overwritten(tmp_path, data):
    save_store(data, tmp_path / "store")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "store").iterdir()}
    save_store(data, tmp_path / "store")
    with pytest.raises(DuetError, match="holds another data set, 'shapes'"):
        save_store(data.select([0, 1]), tmp_path / "store")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "store").iterdir()} == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(DuetError, match="is left as it is"):
        save_store(data, tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    assert open_store(save_store(data, tmp_path / "empty")).sha256 == data.sha256


def test_failed_write_leaves_no_files(tmp_path, data, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("diffusion_core.data.store.json.dump", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_store(data, tmp_path / "store")
    assert not list(tmp_path.iterdir())


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-5])


def flip_last_bit(path):
    content = bytearray(path.read_bytes())
    content[-1 if path.name == "images-00000.npy" else -4] ^= 1
    path.write_bytes(content)


def change_header(path):
    header = json.loads(path.read_text())
    path.write_text(json.dumps({**header, "shape": [12, 8, 8, 1]}))


def drop_key(path):
    header = json.loads(path.read_text())
    del header["sha256"]
    path.write_text(json.dumps(header))


def elsewhere(path):
    header = json.loads(path.read_text())
    path.write_text(json.dumps({**header, "images": [{"file": "images-/../../secret.npy", "length": 12}]}))


def newer(path):
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 3}))


@pytest.mark.parametrize(
    ("file", "corrupt", "message"),
    [
        ("images-00000.npy", cut_short, "images-00000.npy: .* cut short"),
        ("labels.npy", cut_short, "labels.npy: .* cut short"),
        ("data.json", cut_short, "data.json: it is not JSON"),
        ("images-00000.npy", lambda path: path.unlink(), "images-00000.npy: it cannot be read"),
        ("labels.npy", lambda path: path.write_bytes(b""), "labels.npy: .* cut short"),
        ("data.json", lambda path: path.unlink(), "has no data.json"),
        ("images-00000.npy", flip_last_bit, "it was changed after"),
        ("labels.npy", flip_last_bit, "it was changed after"),
        ("data.json", change_header, r"\(12, 8, 8, 3\), data.json says \(12, 8, 8, 1\)"),
        ("data.json", drop_key, "no valid 'sha256'"),
        ("data.json", lambda path: path.write_text("[]"), "no valid 'format'"),
        ("data.json", newer, "format is 3"),
        ("images-00000.npy", lambda path: np.save(path, np.array([{}]), allow_pickle=True), "it holds objects"),
        ("labels.npy", lambda path: np.save(path, np.zeros(3, np.int32)), r"store .*\(3,\)"),
        (
            "images-00000.npy",
            lambda path: np.save(path, np.zeros((3, 8, 8, 3), np.uint8)),
            r"has shape \(3, 8, 8, 3\), .* says 12",
        ),
        ("data.json", elsewhere, "no valid 'images'"),
    ],
)
def test_corrupted_store_is_refused(tmp_path, data, file, corrupt, message):
    store = save_store(data, tmp_path / "store")
    corrupt(store / file)
    with pytest.raises(DuetError, match=message):
        open_store(store)


def test_verify_false_checks_shapes_only(tmp_path, data):
    store = save_store(data, tmp_path / "store")
    flip_last_bit(store / "images-00000.npy")
    assert open_store(store, verify=False).sha256 != data.sha256


def test_several_files_read_as_one_array(tmp_path, data, monkeypatch):
    monkeypatch.setattr("diffusion_core.data.store._SHARD_IMAGES", 5)
    opened = open_store(save_store(data, tmp_path / "store"))
    assert len(list((tmp_path / "store").glob("images-*.npy"))) == 3
    assert opened.sha256 == data.sha256 and opened.images.shape == data.images.shape
    rng = np.random.default_rng(0)
    keys = [0, -1, 7, slice(None), slice(3, 11), slice(10, 2, -3), [11, 0, 5, 5, -2], data.labels == data.labels[0]]
    for key in [*keys, rng.permutation(12), rng.integers(0, 12, (2, 3)), np.zeros(0, int)]:
        np.testing.assert_array_equal(opened.images[key], data.images[key])
    np.testing.assert_array_equal(np.asarray(opened.images), data.images)
    for key in (12, -13, [0, 12]):
        with pytest.raises(IndexError, match=r"outside 0\.\.11"):
            opened.images[key]
    assert opened.select([4, 9]).sha256 == data.select([4, 9]).sha256
    assert [part.sha256 for part in opened.split(0.5, 1)] == [part.sha256 for part in data.split(0.5, 1)]
