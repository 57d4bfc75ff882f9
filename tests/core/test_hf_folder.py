"""Folders and files of Hugging Face's datasets: the same images have the content that every other reader finds."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusion_core.common.errors import DuetError
from diffusion_core.data import Loader, load_dataset
from diffusion_core.data.prepare import prepare
from diffusion_core.data.sources import DATASET_INFO, SOURCES
from diffusion_core.data.transform import ImageTransform
from diffusion_core.files import arrow

pa = pytest.importorskip("pyarrow", reason="pyarrow, which reads these files, is not installed")
parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is built without Parquet")

IMAGES = np.random.default_rng(6).integers(0, 256, (12, 6, 9, 3), np.uint8)
NAMES = ("cat", "dog", "eel")
LABELS = np.arange(12) % 3
WHOLE = load_dataset(IMAGES, labels=LABELS, class_names=NAMES)
FEATURES = {"image": {"_type": "Image"}, "label": {"names": list(NAMES), "_type": "ClassLabel"}}


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "png")
    return out.getvalue()


FILES = [{"bytes": png(image), "path": f"img{k}.png"} for k, image in enumerate(IMAGES)]


def table(rows: slice = slice(None), features: dict[str, Any] | None = FEATURES, **columns: Sequence[Any]) -> Any:
    """Return a table with the notes that `datasets` makes of its columns."""
    given = {"image": FILES, "label": LABELS.tolist()} | columns
    made = pa.table({name: pa.array(list(values)[rows]) for name, values in given.items() if values is not None})
    if features is None:
        return made
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write_parquet(path: Path, content: Any, group: int = 5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(content, path, row_group_size=group)


def write_arrow(path: Path, content: Any, stream: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(str(path), content.schema) as out:
        out.write_table(content, max_chunksize=4)


def save_to_disk(folder: Path, content: Any, files: int = 2) -> None:
    """Write what `Dataset.save_to_disk` writes."""
    step, names = -(-len(content) // files), []
    for k in range(files):
        names.append(f"data-{k:05d}-of-{files:05d}.arrow")
        write_arrow(folder / names[-1], content.slice(k * step, step))
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))


def hub(root: Path) -> Path:
    write_parquet(root / "data" / "train-00000-of-00002.parquet", table(slice(7)))
    write_parquet(root / "data" / "train-00001-of-00002.parquet", table(slice(7, 12)))
    write_parquet(root / "data" / ".cache" / "train-00000-of-00001.parquet", table(slice(1)))
    return root


def in_parts(root: Path) -> Path:
    for part, rows in (("train", slice(8)), ("test", slice(8, 12))):
        save_to_disk(root / part, table(rows), 1)
    (root / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    return root


def one(writer: Any, name: str, **options: Any) -> Any:
    def write(root: Path) -> Path:
        writer(root / name, table(), **options)
        return root / name

    return write


def saved(features: dict[str, Any] | None) -> Any:
    def write(root: Path) -> Path:
        save_to_disk(root, table(features=features))
        return root

    return write


LAYOUTS = {
    "a parquet file": one(write_parquet, "pets.parquet"),
    "an arrow stream": one(write_arrow, "pets.arrow"),
    "an arrow file": one(write_arrow, "pets.arrow", stream=False),
    "shards of the hub": hub,
    "save_to_disk": saved(FEATURES),
    "save_to_disk with the notes in dataset_info.json": saved(None),
    "save_to_disk of several parts": in_parts,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_content_has_one_hash_and_one_order_in_every_layout(tmp_path, layout):
    path = LAYOUTS[layout](tmp_path / "pets")
    options = {"part": "all"} if layout == "save_to_disk of several parts" else {}
    data = load_dataset(path, **options)
    assert data.sha256 == WHOLE.sha256 and data.name == "pets" and data.class_names == NAMES
    ours, theirs = (Loader(each, seed=3, flip=True).batch(7, 9) for each in (WHOLE, data))
    np.testing.assert_array_equal(ours.pixels, theirs.pixels)
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    # Prepared by several processes it is the same, and its images have the names that they had.
    parts = SOURCES["hf_folder"](path)
    prepare(parts, tmp_path / "out", ImageTransform(None, None), DATASET_INFO["hf_folder"], workers=1)
    assert load_dataset("store", directory=str(tmp_path / "out"), part="all").sha256 == WHOLE.sha256
    names = "".join((tmp_path / "out" / part / "names.txt").read_text() for part in parts)
    assert names.splitlines() == [file["path"] for file in FILES]


def test_parts_are_those_of_the_splits(tmp_path):
    in_parts(tmp_path / "saved")
    for part, rows in (("train", slice(6)), ("valid", slice(6, 9)), ("test", slice(9, 12)), ("train_extra", slice(2))):
        write_parquet(tmp_path / "hub" / "plain" / f"{part}-00000-of-00001.parquet", table(rows))
    write_parquet(tmp_path / "own" / "my_train.parquet", table(slice(5)))
    write_parquet(tmp_path / "own" / "my_test.parquet", table(slice(5, 12)))
    for k, rows in enumerate((slice(6), slice(6, 12))):
        write_parquet(tmp_path / "default" / "test" / f"000{k}.parquet", table(rows))
    found = {name: list(SOURCES["hf_folder"](tmp_path / name)) for name in ("saved", "hub", "own", "default")}
    assert found == {
        "saved": ["train", "test"], "hub": ["train", "validation", "test", "train_extra"], "own": ["train", "test"],
        "default": ["test"],
    }  # fmt: skip
    np.testing.assert_array_equal(load_dataset(tmp_path / "saved").images, IMAGES[:8])
    np.testing.assert_array_equal(load_dataset(tmp_path / "hub", part="val").images, IMAGES[6:9])
    np.testing.assert_array_equal(load_dataset(tmp_path / "default").images, IMAGES)


COLUMNS = {
    "bytes alone": ({"image": [file["bytes"] for file in FILES]}, {"label": FEATURES["label"]}, {}),
    "texts as labels": ({"label": [NAMES[k] for k in LABELS]}, {"image": FEATURES["image"]}, {}),
    "names that are given": ({}, None, {"class_names": NAMES}),
    "columns by name": (
        {"image": None, "label": None, "photo": FILES, "kind": LABELS.tolist(), "other": LABELS.tolist()},
        None,
        {"image": "photo", "label": "kind", "class_names": NAMES},
    ),
    "nested lists of bytes": (
        {"image": [image.tolist() for image in IMAGES]},
        {"label": FEATURES["label"]},
        {"value_range": (0, 255)},
    ),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_of_every_kind_hold_the_same_data_set(tmp_path, kind):
    columns, features, options = COLUMNS[kind]
    write_parquet(tmp_path / "pets.parquet", table(features=features, **columns))
    data = load_dataset(tmp_path / "pets.parquet", **options)
    np.testing.assert_array_equal(data.images, IMAGES)
    np.testing.assert_array_equal(data.labels, LABELS)
    assert data.class_names == NAMES


def test_arrays_latents_conditions_and_several_labels_are_read(tmp_path):
    latents = np.random.default_rng(0).normal(size=(12, 4, 8, 8)).astype(np.float32)
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(latents.ravel()), 8)
    for size in (8, 4):
        fixed = pa.FixedSizeListArray.from_arrays(fixed, size)
    grey = pa.array(IMAGES[..., 0].tolist(), pa.list_(pa.list_(pa.uint8())))
    whole = pa.table({
        "latents": fixed, "grey": grey, "age": np.arange(12.0), "box": np.arange(24.0).reshape(12, 2).tolist(),
        "tags": [[0, 2], [], [1]] * 4, "vector": [[0.5, 1.5]] * 12,
    })  # fmt: skip
    write_parquet(tmp_path / "x.parquet", whole)
    read = lambda **options: load_dataset(tmp_path / "x.parquet", **{"label": "none"} | options)  # noqa: E731
    data = read(image="latents", conditions=["age", "box"])
    np.testing.assert_array_equal(data.images, np.moveaxis(latents, 1, -1))
    assert data.condition_names == ("age", "box 0", "box 1") and data.images.dtype == np.float32
    np.testing.assert_array_equal(data.conditions[:, 1:], np.arange(24).reshape(12, 2))
    np.testing.assert_array_equal(read(image="grey").images, IMAGES[..., :1])
    tags = read(image="grey", label="tags", class_names=["a", "b", "c"])
    np.testing.assert_array_equal(tags.conditions, [[1, 0, 1], [0, 0, 0], [0, 1, 0]] * 4)
    np.testing.assert_array_equal(read(image="grey", label="vector").conditions, [[0.5, 1.5]] * 12)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"second": FILES}, {}, r"several columns of images \(image, second\); choose .*data\.options\.image=NAME"),
        ({"image": None}, {}, "it has the columns label; choose that of the images"),
        ({"coarse": LABELS.tolist()}, {}, r"several columns of labels \(label, coarse\); .*label=NAME, or none"),
        ({}, {"image": "images"}, "'images' was given; it must be one of image, label. Did you mean 'image'"),
        ({}, {"label": "labels"}, "'labels' was given; it must be one of label, none"),
        ({}, {"conditions": ["age"]}, "data.options.conditions: 'age' was given"),
        ({}, {"value_range": [0, 1]}, "layout and value_range are those of arrays"),
        ({"label": [0, -1, 1] * 4}, {}, "4 of 12 values of the column label are missing or -1 in part all"),
        ({"image": [FILES[0], None] * 6}, {}, "6 of 12 images cannot be read"),
        ({"image": [{"bytes": None, "path": "/etc/hostname"}] * 12}, {}, "it names the file '/etc/hostname', which is"),
        ({"box": [[1.0], [1.0, 2.0]] * 6}, {"conditions": "box"}, "its lists have 1 to 2 values"),
        ({"age": [1.0, None] * 6}, {"conditions": "age"}, "6 of 12 values are missing|values are missing"),
        ({"word": ["a"] * 12}, {"conditions": "word"}, "they must be numbers, or lists of numbers"),
    ],
)  # fmt: skip
def test_columns_with_two_readings_or_none_are_refused(tmp_path, columns, options, message):
    features = FEATURES | ({"coarse": FEATURES["label"]} if "coarse" in columns else {})
    write_parquet(tmp_path / "x.parquet", table(features=features, **columns))
    with pytest.raises(DuetError, match=message):
        load_dataset(tmp_path / "x.parquet", **options)


def test_a_test_part_without_labels_is_of_one_class(tmp_path):
    write_parquet(tmp_path / "x.parquet", table(label=[-1] * 12))
    data = load_dataset(tmp_path / "x.parquet")
    assert data.class_names == ("all",) and "the column label holds no labels" in data.reading.lines[0]


def test_a_test_part_of_a_contest_does_not_hide_the_labels_of_the_training_part(tmp_path):
    write_parquet(tmp_path / "train-00000-of-00001.parquet", table(slice(8)))
    write_parquet(tmp_path / "test-00000-of-00001.parquet", table(slice(8, 12), label=[-1] * 12))
    write_parquet(tmp_path / "validation-00000-of-00001.parquet", table(slice(8, 12), label=None))
    parts = SOURCES["hf_folder"](tmp_path)
    assert {part: source.class_names for part, source in parts.items()} == {
        "train": NAMES, "validation": ("unlabelled",), "test": ("unlabelled",),
    }  # fmt: skip
    np.testing.assert_array_equal(parts["train"].labels, LABELS[:8])
    assert "validation, test has no labels; its one class is called 'unlabelled'" in parts["train"].reading.lines


def test_files_that_a_table_names_are_read_beside_it(tmp_path):
    (tmp_path / "images").mkdir()
    for file in FILES:
        (tmp_path / "images" / file["path"]).write_bytes(file["bytes"])
    named = [{"bytes": None, "path": f"images/{file['path']}"} for file in FILES]
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", table(image=named))
    assert load_dataset("hf_folder", path=str(tmp_path)).sha256 == WHOLE.sha256


def test_folders_and_files_that_are_none_are_refused(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.parquet").write_bytes(b"no table")
    (tmp_path / "y.arrow").write_bytes(b"no table")
    for name, message in (
        ("gone", "does not exist; it must be a folder of Hugging Face"),
        ("empty", r"holds no \.parquet or \.arrow files"),
        ("x.parquet", r"x\.parquet: it is not an Arrow or Parquet file"),
        ("y.arrow", r"y\.arrow: it is not an Arrow or Parquet file"),
    ):
        with pytest.raises(DuetError, match=message):
            load_dataset("hf_folder", path=str(tmp_path / name))
    for folder in ("a", "b"):
        write_parquet(tmp_path / "versions" / folder / "train-00000-of-00001.parquet", table())
    with pytest.raises(DuetError, match=r"part train in several folders \(a, b\), .* give one of them"):
        load_dataset(tmp_path / "versions")
    saved(FEATURES)(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text('{"_data_files": [{"filename": "../x.arrow"}]}')
    with pytest.raises(DuetError, match="names files outside its folder"):
        load_dataset(tmp_path / "saved")
    monkeypatch.setattr(arrow, "find_spec", lambda name: None)
    with pytest.raises(DuetError, match=r"needs pyarrow, which is not installed; .* setup --extra arrow"):
        load_dataset("hf_folder", path=str(tmp_path / "versions" / "a"))


def test_a_part_of_a_large_file_is_read_by_row_groups(tmp_path):
    write_parquet(tmp_path / "x.parquet", table(), group=2)
    read = []
    opened = arrow.open_table(tmp_path / "x.parquet")
    original = opened.source.read_row_group

    class Counting:
        num_row_groups, metadata, schema_arrow = opened.source.num_row_groups, opened.source.metadata, None

        def read_row_group(self, group: int, columns: list[str]) -> Any:
            read.append(group)
            return original(group, columns=columns)

    counted = arrow.ArrowTable(tmp_path / "x.parquet", Counting())
    assert [counted.cell("image", row)["path"] for row in (0, 1, 2, 3, 10)] == [f"img{k}.png" for k in (0, 1, 2, 3, 10)]
    assert read == [0, 1, 5]


def test_pyarrow_is_imported_when_a_file_is_opened_only():
    import subprocess

    words = "import sys, diffusion_core.data, duet; duet.load_dataset; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", words]).returncode == 0
