"""Images of any aspect ratio, floats and arrays of any shape: read, stored and described without a change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_core.common.errors import DuetError
from diffusion_core.data import load_dataset
from diffusion_core.data.archives import DatasetInfo
from diffusion_core.data.card import card_text, channel_statistics, part_lines
from diffusion_core.data.prepare import prepare
from diffusion_core.data.shards import Shards
from diffusion_core.data.sources import SOURCES
from diffusion_core.data.store import open_store, save_store
from diffusion_core.data.transform import ImageTransform, fit_image

RNG = np.random.default_rng(4)
WIDE = RNG.integers(0, 256, (6, 12, 20, 3), np.uint8)
LATENTS = RNG.normal(size=(6, 8, 8, 4)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def folder(root: Path, images: np.ndarray) -> Path:
    for k, image in enumerate(images):
        (root / "abc"[k % 3]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / "abc"[k % 3] / f"{k}.png")
    return root


@pytest.mark.parametrize("size", [None, [12, 20]])
def test_rectangular_images_stay_as_they_are(tmp_path, size):
    data = load_dataset("image_folder", path=str(folder(tmp_path, WIDE)), size=size)
    np.testing.assert_array_equal(data.images, WIDE[[0, 3, 1, 4, 2, 5]])
    assert data.shape == (12, 20, 3) and data.image_size == (12, 20)


@pytest.mark.parametrize("size", [(10, 30), (30, 10), (12, 16), (7, 7), (24, 40)])
def test_a_rectangle_is_cut_with_its_aspect_ratio_from_the_centre(size):
    # A ramp in both directions: its slope per pixel shows the scale, its mean the position.
    y, x = np.mgrid[:36, :60]
    ramp = Image.fromarray(np.stack([4 * y, 4 * x, 0 * x], axis=-1).astype(np.uint8))
    small = fit_image(ramp, size).astype(float)
    assert small.shape == (*size, 3)
    scale = min(36 / size[0], 60 / size[1])
    for axis, extent in ((0, 36), (1, 60)):
        line = small[..., axis].mean(axis=1 - axis)
        np.testing.assert_allclose(np.diff(line)[2:-2], 4 * scale, atol=1)
        assert line.mean() == pytest.approx(4 * (extent - 1) / 2, abs=2.5)


def test_a_square_is_one_request_however_it_is_written():
    assert ImageTransform([8, 8]) == ImageTransform(8) == ImageTransform((8, 8))
    image = Image.fromarray(WIDE[0])
    np.testing.assert_array_equal(fit_image(image, 5), fit_image(image, (5, 5)))


def test_random_crops_of_rectangles_depend_on_the_index_and_stay_inside():
    transform = ImageTransform((12, 10), crop="random", seed=3)
    crops = [transform(WIDE[0], index).pixels for index in range(30)]
    offsets = {next(k for k in range(11) if np.array_equal(crop, WIDE[0][:, k : k + 10])) for crop in crops}
    assert len(offsets) > 5
    np.testing.assert_array_equal(transform(WIDE[0], 7).pixels, crops[7])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": None}, r"b/1\.png.*12 x 20 pixels \(width x height\), others have 20 x 12; .*data\.options\.size="),
        ({"size": 12, "crop": "none"}, "others have 12 x 12"),
        ({"size": [12, 0]}, r"\(12, 0\) was given; it must be a whole number"),
        ({"size": [1, 2, 3]}, r"for squares, or \[HEIGHT,WIDTH\]"),
        ({"size": "32x48"}, "'32x48' was given"),
        ({"size": 8, "crop": "middle"}, "centre, random, none"),
    ],
)
def test_images_without_one_shape_are_refused(tmp_path, options, message):
    Image.fromarray(WIDE[1].transpose(1, 0, 2)).save(folder(tmp_path, WIDE) / "b" / "1.png")
    with pytest.raises(DuetError, match=message):
        load_dataset("image_folder", path=str(tmp_path), **options)


def test_channels_of_the_first_image_are_those_of_all(tmp_path):
    np.savez(tmp_path / "grey.npz", images=WIDE[..., 0], labels=LABELS)
    grey = load_dataset("arrays", path=str(tmp_path / "grey.npz"))
    np.testing.assert_array_equal(grey.images, WIDE[..., :1])
    assert load_dataset("arrays", path=str(tmp_path / "grey.npz"), channels=3).shape == (12, 20, 3)


ARRAYS = {
    "latents": (LATENTS, {}),
    "latents with the channels first": (LATENTS.transpose(0, 3, 1, 2), {}),
    "pixels as floats": (WIDE.astype(np.float64) / 255, {"value_range": [0, 1]}),
    "vectors": (LATENTS.reshape(6, -1), {}),
    "sequences": (LATENTS.reshape(6, 64, 4), {"layout": "channels_last"}),
    "volumes": (LATENTS.reshape(6, 4, 4, 4, 4)[..., :2], {}),
    "16 bits": (RNG.integers(0, 65536, (6, 5, 7, 1)).astype(np.uint16), {"value_range": [0, 65535]}),
    "bytes of five channels": (RNG.integers(0, 256, (6, 9, 9, 5), np.uint8), {}),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_pass_through_files_stores_and_memory_without_a_change(tmp_path, kind):
    values, options = ARRAYS[kind]
    vectors = np.arange(12.0).reshape(6, 2)
    np.savez(tmp_path / "all.npz", x=values, y=LABELS, conditions=vectors)
    np.save(tmp_path / "x.npy", values)
    np.save(tmp_path / "v.npy", vectors)
    (tmp_path / "y.csv").write_text("".join(f"{k}\n" for k in LABELS))
    memory = load_dataset(values, labels=LABELS, conditions=vectors, **options)
    files = {"labels": str(tmp_path / "y.csv"), "conditions": str(tmp_path / "v.npy")}
    read = [
        load_dataset("arrays", path=str(tmp_path / "all.npz"), **options),
        load_dataset(tmp_path / "x.npy", **files, **options),
    ]
    parts = SOURCES["arrays"](tmp_path / "all.npz", **options)
    for _ in range(2):  # the second call finds the same request
        card = prepare(parts, tmp_path / "store", ImageTransform(None, None), DatasetInfo("toy"), workers=1)
    read += [open_store(tmp_path / "store"), open_store(save_store(memory, tmp_path / "copy"))]
    read.append(load_dataset("store", directory=str(tmp_path / "store"), part="all"))
    for data in read:
        assert data.sha256 == memory.sha256 == card["parts"]["all"]["sha256"]
        np.testing.assert_array_equal(data.images, memory.images)
        np.testing.assert_array_equal(data.conditions, vectors)
        assert data.images.dtype == memory.images.dtype and data.value_range == memory.value_range
    text = (tmp_path / "store" / "README.md").read_text()
    assert text == card_text(card) and "## Conditions" in text and memory.images.dtype.name in text
    with pytest.raises(DuetError, match="from other files"):
        others = SOURCES["arrays"](tmp_path / "all.npz", **options, condition_names=["a", "b"])
        prepare(others, tmp_path / "store", ImageTransform(None, None), DatasetInfo("toy"), workers=1)


def test_a_changed_condition_is_found_when_a_store_is_opened(tmp_path):
    save_store(load_dataset(LATENTS, conditions=np.arange(6.0)), tmp_path / "store")
    np.save(tmp_path / "store" / "conditions.npy", np.ones((6, 1), np.float32))
    with pytest.raises(DuetError, match="it was changed after it was written"):
        open_store(tmp_path / "store")
    header = json.loads((tmp_path / "store" / "data.json").read_text())
    assert header["condition_names"] == ["condition 0"] and "value_range" not in header
    (tmp_path / "store" / "conditions.npy").unlink()
    with pytest.raises(DuetError, match=r"conditions\.npy"):
        open_store(tmp_path / "store")


def test_statistics_of_floats_do_not_depend_on_blocks_and_follow_the_range(monkeypatch):
    values = 1000 + RNG.normal(size=(50, 3, 4, 2))
    expected = values.reshape(-1, 2)
    whole = channel_statistics(values)
    monkeypatch.setattr("diffusion_core.data.card._BLOCK_BYTES", 1000)
    for found in (whole, channel_statistics(values), channel_statistics(Shards([values[:20], values[20:]]))):
        np.testing.assert_allclose(found["mean"], expected.mean(axis=0), rtol=1e-13)
        np.testing.assert_allclose(found["std"], expected.std(axis=0), rtol=1e-9)
        assert (found["low"], found["high"]) == (pytest.approx(values.min()), pytest.approx(values.max()))
        assert found["sigma_data"] == pytest.approx(np.sqrt(expected.var(axis=0).mean()), rel=1e-9)
    assert channel_statistics(values, (0, 4))["sigma_data"] == pytest.approx(whole["sigma_data"] / 2)
    # The same pixels as bytes and as floats in 0..1 have one sigma_data.
    ours, theirs = channel_statistics(WIDE), channel_statistics(WIDE / 255, (0, 1))
    for key in ("mean", "std", "sigma_data"):
        np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-12)
    (line,) = part_lines({"classes": {"all": 6}, "statistics": channel_statistics(LATENTS)})
    assert line.startswith("values from -") and "process.sigma_data=" in line


def test_arrays_are_found_by_their_usual_names_and_training_and_test_are_parts(tmp_path):
    np.savez(tmp_path / "keras.npz", x_train=WIDE[:4], y_train=LABELS[:4], x_test=WIDE[4:], y_test=LABELS[4:])
    with pytest.raises(DuetError, match=r"different classes \(train: 3, test: 2\); set data\.options\.num_classes=3"):
        load_dataset(tmp_path / "keras.npz")
    train = load_dataset(tmp_path / "keras.npz", num_classes=3)
    test = load_dataset(tmp_path / "keras.npz", num_classes=3, part="test")
    np.testing.assert_array_equal(np.concatenate([train.images, test.images]), WIDE)
    np.testing.assert_array_equal(np.concatenate([train.labels, test.labels]), LABELS)
    np.savez(tmp_path / "own.npz", pets=WIDE, kind=LABELS, weight=LABELS * 1.0)
    with pytest.raises(DuetError, match=r"has the arrays pets, kind, weight; choose .*data\.options\.images=NAME"):
        load_dataset(tmp_path / "own.npz")
    with pytest.raises(
        DuetError, match=r"'kinds' was given; it must be one of pets, kind, weight\. Did you mean 'kind'"
    ):
        load_dataset(tmp_path / "own.npz", images="pets", labels="kinds")
    own = load_dataset(tmp_path / "own.npz", images="pets", labels="kind", class_names=["a", "b", "c"])
    assert own.class_names == ("a", "b", "c") and not own.reading.lines
    assert (
        "name it with data.options.labels, of kind, weight"
        in load_dataset(tmp_path / "own.npz", images="pets").reading.lines[0]
    )
    tags = np.array([[1, 1], [0, 1], [0, 0]] * 2)
    np.savez(tmp_path / "tags.npz", images=WIDE, labels=tags)
    np.testing.assert_array_equal(load_dataset(tmp_path / "tags.npz").conditions, tags)


def write_items(root: Path, names: list[str], as_zip: bool, **files: bytes) -> Path:
    """Write an .npy file for each latent, channels first, into a folder or a zip archive."""
    for name, latent in zip(names, LATENTS.transpose(0, 3, 1, 2), strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(root / name, latent)
    for name, content in files.items():
        (root / f"{name}.json").write_bytes(content)
    return Path(shutil.make_archive(str(root), "zip", root)) if as_zip else root


@pytest.mark.parametrize("as_zip", [False, True], ids=["folder", "zip"])
def test_a_file_for_each_item_is_an_item(tmp_path, as_zip):
    folders = [f"{'abc'[k // 2]}/{k}.npy" for k in range(6)]
    whole = load_dataset(LATENTS, labels=[name[0] for name in folders])
    path = write_items(tmp_path / "classes", folders, as_zip)
    options = {} if not as_zip else {"path": str(path)}
    data = load_dataset("arrays" if as_zip else path, **options)
    assert data.sha256 == whole.sha256 and "the folders are the classes" in data.reading.lines
    flat = [f"img{k}.npy" for k in range(6)]
    labels = json.dumps({"labels": [[name, folder[0]] for name, folder in zip(flat, folders, strict=True)]}).encode()
    edm = load_dataset("arrays", path=str(write_items(tmp_path / "edm", flat, as_zip, dataset=labels)))
    assert edm.sha256 == whole.sha256 and "the labels are those of dataset.json" in edm.reading.lines
    (tmp_path / "own.csv").write_text("".join(f"img{k},{folders[k][0]}\n" for k in range(6)))
    plain = write_items(tmp_path / "plain", flat, as_zip)
    assert load_dataset("arrays", path=str(plain), labels=str(tmp_path / "own.csv")).sha256 == whole.sha256
    one = load_dataset("arrays", path=str(plain))
    assert one.num_classes == 1 and "all items are of one class" in one.reading.lines


def test_files_of_other_shapes_or_none_are_refused(tmp_path):
    root = write_items(tmp_path / "items", [f"{k}.npy" for k in range(6)], False)
    with pytest.raises(DuetError, match="data=arrays reads"):
        load_dataset(shutil.make_archive(str(root), "zip", root))
    with pytest.raises(DuetError, match=r"labels: 'no\.csv' was given; it is no file"):
        load_dataset("arrays", path=str(root), labels="no.csv")
    np.save(root / "3.npy", LATENTS[0, :3])
    with pytest.raises(DuetError, match=r"'3\.npy' is float32 \(3, 8, 4\), '0\.npy' is float32 \(4, 8, 8\)"):
        load_dataset(root)
    np.save(root / "3.npy", np.array([{}]))
    for path in (root, Path(shutil.make_archive(str(root), "zip", root))):
        with pytest.raises(DuetError, match=r"3\.npy: it is not an \.npy file of plain numbers|pickle|objects"):
            load_dataset("arrays", path=str(path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DuetError, match=r"holds no \.npy files"):
        load_dataset("arrays", path=str(tmp_path / "empty"))
