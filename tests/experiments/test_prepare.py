"""The commands `prepare` and `inspect`, and training data read from what they prepared.

No framework is loaded.
"""

from __future__ import annotations

import functools
import json
import re
from typing import Any

import archives
import numpy as np
import pytest
from commands import call, composed
from omegaconf import DictConfig
from PIL import Image

from diffusion_core.common.errors import DuetError
from diffusion_core.data import Dataset
from diffusion_core.data.toys import are_points as is_planar
from diffusion_core.data.toys import toy_mixture
from diffusion_core.images.points import point_coordinates
from experiments.config.build import data_source


@functools.cache
def configured(*words: str) -> DictConfig:
    """Return the group `data` of a training configuration."""
    return composed("train", *words).data


def loaded(*words: str, **options: Any) -> Dataset:
    """Return the data set that a training would read, with these data.options."""
    data = configured(*words).copy()
    data.options.update(options)
    return data_source(data).load()


def test_archive_on_disk_is_prepared_without_a_network_and_trained_on(tmp_path, monkeypatch):
    monkeypatch.setenv("DUET_DATA", str(tmp_path))
    (tmp_path / "archives" / "cifar10").mkdir(parents=True)
    archives.cifar10(tmp_path / "archives" / "cifar10", archives.IMAGES["cifar10"])
    with pytest.raises(DuetError, match=r"cifar10-32 holds no store.*prepare data=cifar10.*data\.use_fallback=true"):
        loaded("data=cifar10")
    assert loaded("data=cifar10", "data.use_fallback=true").name == "shapes, in place of cifar10"
    code, out, err = call("prepare", "data=cifar10", "workers=1")
    assert (code, err) == (0, "") and f"prepared: {tmp_path / 'cifar10-32'}" in out
    train, test = (loaded("data=cifar10", part=part) for part in ("train", "test"))
    np.testing.assert_array_equal(train.images, archives.IMAGES["cifar10"]["train"][0])
    np.testing.assert_array_equal(test.labels, archives.IMAGES["cifar10"]["test"][1])
    assert train.name == "cifar10" and train.sha256 in out
    both = loaded("data=cifar10", part="all")
    np.testing.assert_array_equal(both.images, np.concatenate([train.images, test.images]))
    np.testing.assert_array_equal(both.labels, np.concatenate([train.labels, test.labels]))
    direct = loaded("data=store", directory=str(tmp_path / "cifar10-32"), part="train")
    assert direct.sha256 == train.sha256
    exists = re.escape(str(tmp_path / "cifar10-32"))
    with pytest.raises(DuetError, match=rf"cifar-32' was given, which is no store; these exist: {exists}$"):
        loaded("data=store", directory=str(tmp_path / "cifar-32"))
    with pytest.raises(DuetError, match=rf"cifar100-32 holds no store.*the stores that exist .*: {exists}$"):
        loaded("data=cifar100")
    wanted = [train.class_names[k] for k in np.unique(train.labels)[:2]]
    chosen = loaded("data=cifar10", classes=wanted)
    assert chosen.class_names == tuple(wanted)
    assert len(chosen) == np.isin(train.labels, np.unique(train.labels)[:2]).sum()
    with pytest.raises(DuetError, match=r"data\.options\.channels: 1 was given, but .* was prepared with 3"):
        loaded("data=cifar10", channels=1)


def test_part_without_the_selected_classes_is_skipped(tmp_path):
    published = archives.IMAGES["mnist"]
    test = (published["test"][0], 0 * published["test"][1])
    (tmp_path / "files").mkdir()
    archives.mnist(tmp_path / "files", published | {"test": test})
    files, some = f"data.options.path={tmp_path / 'files'}", int(published["train"][1].max())
    assert some > 0
    words = ("data=mnist", files, f"data.options.classes=[{some}]", "workers=1", f"out={tmp_path / 'out'}")
    code, out, err = call("prepare", *words)
    assert (code, err) == (0, "") and "test: skipped, it has no image of these classes" in out
    direct = loaded("data=mnist", files, part="all", classes=[some])
    assert loaded("data=store", directory=str(tmp_path / "out"), part="all").sha256 == direct.sha256
    assert call("prepare", "data=mnist", files, "data.options.classes=[]", f"out={tmp_path / 'no'}").code == 2


def test_image_folder_is_split_and_trained_on(tmp_path):
    (tmp_path / "pictures" / "a").mkdir(parents=True)
    for k in range(10):
        Image.fromarray(np.full((9, 12), k, np.uint8)).save(tmp_path / "pictures" / "a" / f"{k}.png")
    where = f"data.store={tmp_path / 'store'}"
    words = ["data=image_folder", "data.options.size=8", "data.options.channels=1", where]
    code, _, err = call("prepare", *words, f"data.options.path={tmp_path / 'pictures'}", "workers=1", "split=stream")
    assert (code, err) == (0, "")
    parts = [loaded(*words, part=part) for part in ("train", "held_out")]
    assert [len(part) for part in parts] == [9, 1]
    assert sorted(int(image.mean()) for part in parts for image in part.images) == list(range(10))
    assert loaded(*words).sha256 == parts[0].sha256  # the held-out image is never trained on by default
    with pytest.raises(DuetError, match=r"data\.options\.crop: random was given, but .* was prepared with centre"):
        loaded(*words, crop="random")


def test_page_shows_every_part_and_near_duplicates(tmp_path):
    train, test = np.random.default_rng(0).integers(0, 256, (2, 20, 8, 8, 3), np.uint8)
    test[7], train[13], test[9] = train[3], train[5] ^ 1, test[8]
    for part, images in (("train", train), ("test", test)):
        (tmp_path / "files" / part).mkdir(parents=True)
        for k, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / "files" / part / f"{k:02d}.png")
    lines = [f"{part}/{k:02d}.png {part}" for part in ("train", "test") for k in range(20)]
    (tmp_path / "parts.txt").write_text("\n".join(lines))
    words = ["data=image_folder", f"data.store={tmp_path / 'store'}", "data.options.size=8"]
    files = [f"data.options.path={tmp_path / 'files'}", "split=file", f"split.path={tmp_path / 'parts.txt'}"]
    files.append("data.options.layout=classes")
    assert call("prepare", *words, *files, "workers=1")[0] == 0
    code, out, err = call("inspect", *words, f"out={tmp_path / 'page'}")
    assert (code, err) == (0, "") and f"page: {tmp_path / 'page' / 'report.html'}" in out
    report = json.loads((tmp_path / "page" / "report.json").read_text())
    assert {part: facts["pictures"] for part, facts in report["parts"].items()} == {"train": 20, "test": 20}
    assert report["parts"]["test"]["classes"] == {"test": 20, "train": 0}
    np.testing.assert_allclose(report["parts"]["train"]["mean"], train.mean(axis=(0, 1, 2)) / 255)
    found = {
        (tuple(near["parts"]), pair["first"], pair["second"], pair["same"])
        for near in report["near"]["pairs"]
        for pair in near["nearest"]
    }
    assert found == {
        (("train", "train"), "train/05.png", "train/13.png", False),
        (("train", "test"), "train/03.png", "test/07.png", True),
        (("test", "test"), "test/08.png", "test/09.png", True),
    }
    page = (tmp_path / "page" / "report.html").read_text()
    assert "train/03.png" in page and "8 x 8 (20)" in page and "http" not in page.split("<main", 1)[1].split("<svg")[0]
    code, _, err = call("inspect", *words, f"out={tmp_path / 'page'}")
    assert code == 2 and "already contains a report" in err
    # Images from elsewhere have neither the card nor the names of the store.
    path = f"data.options.path={tmp_path / 'files' / 'test'}"
    assert call("inspect", *words, path, f"out={tmp_path / 'other'}", "samples=0").code == 0
    report = json.loads((tmp_path / "other" / "report.json").read_text())
    assert report["card"] is None and report["near"]["pairs"][0]["nearest"][0]["first"] == "image 8"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["data=digits"], ["data to prepare", "digits", "cifar10"]),
        (["data=mnist", "download=false"], ["has no train-images-idx3-ubyte.gz", "copy it there", "path=FOLDER"]),
        (["data=celeba"], ["img_align_celeba.zip", "only on request", "mmlab", "path=FOLDER"]),
        (["data=image_folder"], ["data.options.path", "no value was given"]),
        (["data=mnist", "data.options.path=nowhere"], ["nowhere", "has no train-images-idx3-ubyte.gz"]),
        (["data=mnist", "data.options.crop=center"], ["crop", "center", "Did you mean 'centre'"]),
        (["data=mnist", "data.options.sise=3"], ["data.options.sise", "data.options.size"]),
        (["data=mnist", "split=strem"], ["strem", "Did you mean 'stream'"]),
        (["data=mnist", "out="], ["out: nothing was given"]),
        (["data=mnist", "workers=0", "data.options.path=FILES"], ["workers: 0"]),
        (["data=mnist", "max_unreadable=1", "data.options.path=FILES"], ["max_unreadable: 1"]),
        (["data=mnist", "split=stream", "split.fraction=2", "data.options.path=FILES"], ["split", "between 0 and 1"]),
        (["data=mnist", "split=file", "split.path=x", "data.options.path=FILES"], ["split", "have no names"]),
        (["data=mnist", "data.options.classes=[12]", "data.options.path=FILES"], ["class 12", "0..9"]),
    ],
)
def test_invalid_requests_are_refused_before_anything_is_written(tmp_path, monkeypatch, words, named):
    monkeypatch.setenv("DUET_DATA", str(tmp_path / "data"))
    (tmp_path / "files").mkdir()
    archives.mnist(tmp_path / "files", archives.IMAGES["mnist"])
    code, out, err = call("prepare", *[word.replace("FILES", str(tmp_path / "files")) for word in words])
    assert (code, out) == (2, "") and len(err.strip().splitlines()) == 1
    assert all(name in err for name in named), err
    assert not (tmp_path / "data").exists()


def folder_with_faults(root):
    """Write a folder of splits with one file that cannot be read and one that is no image."""
    for split in ("Training Data", "Testing Data"):
        for name in ("Coast", "Forest"):
            (root / split / name).mkdir(parents=True)
            for k in range(6):
                Image.fromarray(np.full((9, 12), k, np.uint8)).save(root / split / name / f"img{k}.png")
    (root / "Training Data" / "Coast" / "img3.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (root / "Training Data" / "Coast" / "notes.txt").write_text("notes")
    return root


def test_training_preparing_and_inspecting_read_a_folder_alike(tmp_path, capsys):
    folder = folder_with_faults(tmp_path / "archive")
    words = ["data=image_folder", "data.options.size=8", "data.options.channels=1", "data.max_unreadable=0.1"]
    path = f"data.options.path={folder}"
    train = loaded(*words, path)
    assert (train.reading.part, train.class_names, len(train)) == ("train", ("Coast", "Forest"), 11)
    said = capsys.readouterr().out
    assert "part train is used, of train, test" in said
    assert "left out: unreadable images: 1 (Training Data/Coast/img3.png: " in said
    assert "left out: files that are no images: 1 (Training Data/Coast/notes.txt)" in said
    # A part goes by any of its names, and the held-out part is another one.
    (folder / "Testing Data" / "Coast" / "img9.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    source = data_source(configured(*words, path, "data.options.part=Training Data"))
    assert source.load(announce=False).sha256 == train.sha256 and source.load_held_out().part == "test"
    held_out = capsys.readouterr().out
    assert "data image_folder, test: left out: unreadable images: 1 (Testing Data/Coast/img9.png" in held_out
    (folder / "Testing Data" / "Coast" / "img9.png").unlink()
    code, out, err = call("prepare", *words, path, "workers=1", f"data.store={tmp_path / 'store'}")
    assert (code, err) == (0, "")
    assert "'Testing Data' is test (12 images)" in out and "left out: files that are no images: 1" in out
    assert "process.sigma_data=" in out and "1 unreadable image skipped" in out
    prepared = loaded(*words, f"data.store={tmp_path / 'store'}")
    assert prepared.sha256 == train.sha256
    for words_, part in ((path, "direct"), (f"data.store={tmp_path / 'store'}", "stored")):
        code, out, err = call("inspect", *words, words_, f"out={tmp_path / part}")
        assert (code, err) == (0, "")
        report = json.loads((tmp_path / part / "report.json").read_text())
        assert {name: facts["pictures"] for name, facts in report["parts"].items()} == {"train": 11, "test": 12}
        page = (tmp_path / part / "report.html").read_text()
        assert "notes.txt" in page and "img3.png" in page
    with pytest.raises(DuetError, match=r"1 of 12 images cannot be read, more than data\.max_unreadable=0\.01"):
        loaded(*words[:3], path)


def test_missing_files_are_never_replaced_in_silence(tmp_path, capsys):
    store = f"data.store={tmp_path / 'none'}"
    for command in ("inspect", "train"):
        words = [f"out={tmp_path / 'page'}"] if command == "inspect" else [f"hydra.run.dir={tmp_path / 'run'}"]
        code, _, err = call(command, "data=cifar10", store, *words)
        assert code == 2 and "data.use_fallback=true" in err and "prepare data=cifar10" in err
    loaded("experiment=landscape", store, "data.fallback.count=20", "data.fallback.size=8")
    assert "data image_folder: NOT FOUND; 15 images of the data set shapes are used in its place" in (
        capsys.readouterr().out
    )


def test_points_of_the_plane_are_drawn_as_points(tmp_path):
    for name, words, are_points in (
        ("toy", ["data=toy", "data.options.count=40"], True),
        ("mixture", ["data=gaussian_mixture", "data.options.count=40"], False),
    ):
        code, _, err = call("inspect", *words, f"out={tmp_path / name}")
        assert (code, err) == (0, "")
        report = json.loads((tmp_path / name / "report.json").read_text())
        page = (tmp_path / name / "report.html").read_text()
        assert report["points"] == are_points and ("40 points of the plane" in page) == are_points
        assert ("near-duplicate" in page) != are_points
        assert (tmp_path / name / "means-all.png").exists() != are_points
        drawn = np.asarray(Image.open(tmp_path / name / "samples-all.png"))
        assert (drawn.shape[0] > 400) == are_points
    data = loaded("data=toy")
    assert is_planar(data) and not is_planar(loaded("data=digits"))
    np.testing.assert_allclose(
        point_coordinates(data.images), toy_mixture("ring").draw(len(data), 0)[0].clip(-1, 1), atol=1 / 254
    )


def test_statistics_of_features_are_written_and_used_as_a_reference(tmp_path):
    words = ["data=npz", f"data.options.path={tmp_path / 'toy.npz'}", "data.options.size=8", "data.options.channels=1"]
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "toy.npz", images=images[:30])
    np.savez(tmp_path / "fake.npz", images=images[20:])
    prepare = ["prepare", *words, "features=digits", f"out={tmp_path / 'store'}", "workers=1"]
    code, out, err = call(*prepare)
    file = tmp_path / "store" / "statistics" / "all-digits.npz"
    assert (code, err) == (0, "") and f"all: mean and covariance of the features: {file}" in out and file.exists()
    before = file.stat().st_mtime_ns
    assert call(*prepare).code == 0 and file.stat().st_mtime_ns == before
    values = {}
    for name, reference in (("data", words), ("file", [f"reference={file}"])):
        code, out, err = call(
            "evaluate", f"samples={tmp_path / 'fake.npz'}", *reference, "features=digits", "sets=3",
            "metrics=[frechet,spatial,kernel]", f"out={tmp_path / name}",
        )  # fmt: skip
        assert (code, err) == (0, "")
        assert ("skipped: kernel: " in out) == (name == "file")
        numbers = json.loads((tmp_path / name / "evaluation.json").read_text())["numbers"]
        values[name] = [numbers[metric]["distance"]["value"] for metric in ("frechet", "spatial")]
    assert values["file"] == pytest.approx(values["data"], rel=1e-6)
    np.savez(tmp_path / "wide.npz", mu=np.zeros(7), sigma=np.eye(7))
    refused = ["evaluate", f"samples={tmp_path / 'fake.npz'}", "features=digits", f"out={tmp_path / 'no'}"]
    code, _, err = call(*refused, f"reference={tmp_path / 'wide.npz'}")
    assert code == 2 and "has the statistics of 7 features, and the samples have 64" in err
    code, _, err = call(refused[0], f"samples={file}", *words, *refused[2:])
    assert code == 2 and "holds mean and covariance alone; give it as reference=FILE" in err
