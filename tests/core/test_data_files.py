"""Zip archives, files of labels and patterns of names: the same images have one content, however they are packed."""

from __future__ import annotations

import csv
import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_core.common.errors import DuetError
from diffusion_core.data import Loader, load_dataset
from diffusion_core.data.file_labels import match_names
from diffusion_core.data.prepare import prepare
from diffusion_core.data.sources import DATASET_INFO, SOURCES
from diffusion_core.data.transform import ImageTransform

IMAGES = np.random.default_rng(5).integers(0, 256, (12, 6, 9, 3), np.uint8)
CLASSES = ["cat", "dog", "eel"]
# In the order in which class folders are read.
NAMES = [f"{CLASSES[k // 4]}/img{k}.png" for k in range(12)]
LABELS = [name.partition("/")[0] for name in NAMES]
WHOLE = load_dataset(IMAGES, labels=LABELS, name="pets")


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "png")
    return out.getvalue()


def write_folder(root: Path, names: list[str], files: dict[str, bytes]) -> Path:
    for name, content in {**dict(zip(names, map(png, IMAGES), strict=False)), **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_zip(root: Path, names: list[str], files: dict[str, bytes]) -> Path:
    root.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(root.with_suffix(".zip"), "w") as archive:
        for name, content in reversed({**dict(zip(names, map(png, IMAGES), strict=False)), **files}.items()):
            archive.writestr(name, content)
    return root.with_suffix(".zip")


def table(rows: list[list[str]]) -> bytes:
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue().encode()


EDM = [f"{k // 5:05d}/img{k:08d}.png" for k in range(12)]
PAIRS = list(zip(EDM, LABELS, strict=True))
EDM_FILES = {"dataset.json": json.dumps({"labels": PAIRS}).encode()}
FLAT = [f"{label}_{k}.png" for k, label in enumerate(LABELS)]
LINES = "\n".join(json.dumps({"file_name": name, "label": label}) for name, label in PAIRS).encode()
TABLE = table([["label", "file_name", "x"], *([label, name, "1"] for name, label in PAIRS)])
SHORT = table([[name.rpartition("/")[2], label] for name, label in PAIRS])
# By layout: the names of the images, other files, and the options with which they are read.
PACKED = {
    "class folders": (NAMES, {"notes.txt": b"no image"}, {}),
    "class folders in a folder": ([f"pets/{name}" for name in NAMES], {"__MACOSX/x.png": b"system"}, {}),
    "EDM": (EDM, EDM_FILES, {}),
    "EDM in a folder": ([f"pets/{name}" for name in EDM], {f"pets/{k}": v for k, v in EDM_FILES.items()}, {}),
    "a dict of labels": (EDM, {"own.json": json.dumps(dict(PAIRS)).encode()}, {"labels": "own.json"}),
    "a table": (EDM, {"l.csv": TABLE}, {"labels": "l.csv"}),
    "a table of the names alone": (EDM, {"l.csv": SHORT}, {"labels": "l.csv"}),
    "lines of JSON": (EDM, {"m.jsonl": LINES}, {"labels": "m.jsonl"}),
    "a pattern": (FLAT, {}, {"pattern": "{class}_{number}.png"}),
    "a pattern without a suffix": (FLAT, {}, {"pattern": "{class}_{number}"}),
    "a regular expression": (FLAT, {}, {"pattern": r"^(?P<class>[a-z]+)_\d+"}),
    "a pattern of paths": ([f"x/{name}" for name in NAMES], {}, {"pattern": "{any}/{class}/{name}.png"}),
}


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("write", [write_folder, write_zip], ids=["folder", "zip"])
def test_one_content_has_one_hash_and_one_order_however_it_is_packed(tmp_path, packed, write):
    names, files, options = PACKED[packed]
    path = write(tmp_path / "pets", names, files)
    data = load_dataset(path, **({"size": None} if path.is_dir() else {}), **options)
    assert data.sha256 == WHOLE.sha256 and data.name == "pets"
    ours, theirs = (Loader(one, seed=3, flip=True).batch(7, 9) for one in (WHOLE, data))
    np.testing.assert_array_equal(ours.pixels, theirs.pixels)
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert not any("dataset.json" in line and "left out" in line for line in data.reading.lines)
    if "notes.txt" in files:
        assert data.reading.lines == ("left out: files that are no images: 1 (notes.txt)",)


def test_a_zip_archive_is_prepared_as_it_is_read_and_a_copy_is_the_same_request(tmp_path):
    path = write_zip(tmp_path / "pets", *PACKED["EDM"][:2])
    (tmp_path / "copy").mkdir()
    cards = [
        prepare(SOURCES["zip"](file), tmp_path / "out", ImageTransform(None, None), DATASET_INFO["zip"], workers=1)
        for file in (path, Path(shutil.copy(path, tmp_path / "copy" / "pets.zip")))
    ]
    assert cards[0] == cards[1] and cards[0]["parts"]["all"]["sha256"] == WHOLE.sha256
    assert (tmp_path / "out" / "all" / "names.txt").read_text().splitlines() == EDM


def test_labels_of_a_file_may_be_numbers_vectors_or_several(tmp_path):
    def read(labels: list | None, write=write_zip):
        pairs = labels and list(zip(EDM, labels, strict=True))
        path = write(tmp_path / "some", EDM, {"dataset.json": json.dumps({"labels": pairs}).encode()})
        return load_dataset(path, **({"size": None} if path.is_dir() else {}))

    numbers = read([k % 3 for k in range(12)])
    assert numbers.class_names == ("class 0", "class 1", "class 2") and numbers.labels.tolist() == [0, 1, 2] * 4
    vectors = read([[k, 0.5] for k in range(12)])
    np.testing.assert_array_equal(vectors.conditions, [[k, 0.5] for k in range(12)])
    several = read([["a"], ["a", "b"], []] * 4)
    assert several.condition_names == ("a", "b") and several.conditions.sum() == 12
    for write in (write_zip, write_folder):  # without labels, the folders of EDM are no classes
        none = read(None, write)
        assert none.class_names == ("some",) and "says that there are no labels" in none.reading.lines[0]
    classes = load_dataset(tmp_path / "some", size=None, layout="classes")
    assert classes.class_names == ("00000", "00001", "00002")


def test_labels_may_lie_outside_the_folder_and_parts_are_those_of_the_folders(tmp_path):
    names = [f"{'train' if k < 8 else 'test'}/{k}.png" for k in range(12)]
    root = write_folder(tmp_path / "pets", names, {})
    (tmp_path / "labels.csv").write_bytes(table([[f"{k}", label] for k, label in enumerate(LABELS)]))
    options = {"size": None, "labels": str(tmp_path / "labels.csv")}
    train, test = (load_dataset(root, part=part, **options) for part in ("train", "test"))
    np.testing.assert_array_equal(np.concatenate([train.images, test.images]), IMAGES)
    np.testing.assert_array_equal(np.concatenate([train.labels, test.labels]), WHOLE.labels)
    assert train.class_names == test.class_names == tuple(CLASSES)
    pattern = {"size": None, "pattern": "{part}/{number}.png"}
    assert load_dataset(root, part="test", **pattern).labels.tolist() == [0] * 4


def test_what_a_pattern_does_not_match_is_named(tmp_path):
    path = write_folder(tmp_path / "pets", [*FLAT[:10], "README.png", "other.png"], {})
    data = load_dataset(path, size=None, pattern="{class}_{number}.png")
    first, second = data.reading.lines
    assert first == "the pattern {class}_{number}.png finds 3 classes: cat (4), dog (4), eel (2)"
    assert "left out: images whose names do not match data.options.pattern: 2 (README.png, other.png)" in second


@pytest.mark.parametrize(
    ("pattern", "name", "found"),
    [
        ("{class}_{number}.png", "red_cat_12.png", {"class": "red_cat", "number": "12"}),
        ("{number}-{class}", "a/b/12-dog.jpeg", {"class": "dog", "number": "12"}),
        ("{class}/{class}_{number}.JPEG", "n01/n01_7.JPEG", {"class": "n01", "number": "7"}),
        ("{class}/{class}_{number}.JPEG", "n01/n02_7.JPEG", None),
        ("{class}.{index}.jpg", "cat.17.jpg", {"class": "cat", "index": "17"}),
        (r"(?P<class>cat|dog)\d+", "photos/dog12.png", {"class": "dog"}),
    ],
)
def test_patterns_read_the_usual_names(pattern, name, found):
    others = [] if found else ["n/n_1.JPEG"]  # a pattern must match something
    assert match_names(pattern, [name, *others])[0] == found


@pytest.mark.parametrize(
    ("names", "files", "options", "message"),
    [
        (FLAT, {}, {"pattern": "{kind}_{number}.png"}, r"must have the class in it, as \{class\}_\{number\}\.png"),
        (FLAT, {}, {"pattern": "{class}-{number}.png"}, r"none of the 12 images match it, as 'cat_0\.png'"),
        (FLAT, {}, {"pattern": "(?P<class>[a-z"}, "it is not valid"),
        (FLAT, {"l.csv": b"a,b\n"}, {"pattern": "{class}_{number}", "labels": "l.csv"}, "choose one of them"),
        (FLAT, {}, {"labels": "no.csv"}, r"labels: 'no\.csv' was given; it is no file"),
        (EDM, {"dataset.json": json.dumps({"labels": [[EDM[0], 1]]}).encode()}, {},
         r"'dataset\.json' has no label of '00000/img00000001\.png' and 10 more images; its names are as"),
        (EDM, {"dataset.json": b'{"labels": [1, 2]}'}, {}, "cannot be read"),
        (EDM, {"dataset.json": b'{"labels": '}, {}, r"dataset\.json"),
        (EDM, {"l.csv": b"file_name,label\na.png,1\na.png,2\n"}, {"labels": "l.csv"}, r"names 'a\.png' twice"),
        (EDM, {"l.jsonl": b'{"url": "a", "label": 1}'}, {"labels": "l.jsonl"}, "file_name and label are needed"),
        (FLAT, {}, {"layout": "deep"}, "auto, flat, classes, splits"),
        (FLAT, {}, {"order": "random"}, "natural, plain"),
        ([], {"a.txt": b"text"}, {}, r"holds no images; .*files that are no images: 1 \(a\.txt\)"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit_are_refused(tmp_path, names, files, options, message):
    for write in (write_folder, write_zip):
        with pytest.raises(DuetError, match=message):
            load_dataset(write(tmp_path / "pets", names, files), **options)


def test_names_in_the_file_that_are_no_images_are_named(tmp_path):
    path = write_zip(tmp_path / "pets", EDM[:11], EDM_FILES)
    assert any(f"no images here: 1 ({EDM[11]})" in line for line in load_dataset(path).reading.lines)


def test_broken_and_hostile_archives_are_refused_or_named(tmp_path):
    (tmp_path / "no.zip").write_bytes(b"no archive at all")
    with pytest.raises(DuetError, match="it is not a zip archive"):
        load_dataset(tmp_path / "no.zip")
    with pytest.raises(DuetError, match="data=image_folder reads it"):
        load_dataset("zip", path=str(tmp_path))
    with pytest.raises(DuetError, match=r"cannot be read|No such file"):
        load_dataset("zip", path=str(tmp_path / "gone.zip"))
    path = write_zip(tmp_path / "odd", NAMES, {"../evil.png": png(IMAGES[0]), "/etc/evil.png": png(IMAGES[0])})
    data = load_dataset(path)
    assert data.sha256 == WHOLE.sha256
    assert "names that lead out of the archive: 2" in data.reading.lines[0]
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for image in IMAGES[:2]:
            archive.writestr("a.png", png(image))
    with pytest.raises(DuetError, match=r"it holds 'a\.png' twice"):
        load_dataset(tmp_path / "twice.zip")
    broken = write_zip(tmp_path / "broken", [*NAMES[:11], "eel/bad.png"], {"eel/bad.png": png(IMAGES[11])[:40]})
    with pytest.raises(DuetError, match=r"1 of 12 images cannot be read, more than data\.max_unreadable"):
        load_dataset(broken)
    kept = load_dataset(broken, max_unreadable=0.2)
    np.testing.assert_array_equal(kept.images, IMAGES[:11])


def test_a_file_called_dataset_json_of_another_program_is_no_file_of_labels(tmp_path):
    path = write_folder(tmp_path / "pets", NAMES, {"dataset.json": b'{"name": "pets"}'})
    assert load_dataset(path, size=None).sha256 == WHOLE.sha256
