"""Data sets read from the files that they are published as, and prepared once for both frameworks.

This file runs in both environments, so a hash that is written here is one on which the two agree.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import archives
import numpy as np
import pytest
from PIL import Image

from diffusion_core.common.errors import DuetError
from diffusion_core.data import load_dataset
from diffusion_core.data.archives import DatasetInfo
from diffusion_core.data.prepare import _existing_card, prepare
from diffusion_core.data.source import Source, split_by_file, split_by_stream
from diffusion_core.data.sources import DATASET_INFO, SOURCES
from diffusion_core.data.store import open_store, read_names, store_parts
from diffusion_core.data.transform import ImageTransform
from experiments.evaluation.context import dataset_reference

PUBLISHED = sorted(archives.WRITERS)
OPTIONS = {"celeba": {"attribute": "Smiling"}}
HASHES = {
    "celeba": "37ddaf8d997d3966d798a3e222acbbdd5f6a317a76df0eb8c410a10ed40eba87",
    "cifar10": "f8125981743ca60629e353bbc4cb7d99434ee32c20026cc26b7588a3aa804d9b",
    "cifar100": "c2dbaa628ef710bc4bb80f8dff9b97adc4e04d2ac318009882423fc66d73b78f",
    "fashion_mnist": "ac45d433b95e0b2e4d53c97cef85c0e566e162589e0e2afeb96b7d9a22b3bb91",
    "flowers102": "c8d27a6ff1b14f9eba5c5a9923748c4f0bba92e39a703f14ec66e5de59f9f8b9",
    "mnist": "1e88ce061a74fb764a3064c206ca83212bea1dd0ab668904a3120b6caad43a9d",
    "stl10": "e7c9b8db03a8811e8291714abf0edc04f8be696f2b02bec73797a03e11a543bc",
    "svhn": "1e24ae3db1414285fc6efc4e37dba925d869f486f46fe73576e9a6e90a77c139",
}


def written(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    archives.WRITERS[name](folder, archives.IMAGES[name])
    return folder


def images(count: int = 12, seed: int = 0, side: int = 8) -> Source:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, side, side, 3), np.uint8)
    return Source(images, np.arange(count) % 3, ("a", "b", "c"), "toy", tuple(f"{k}.png" for k in range(count)))


# Published archives


@pytest.mark.parametrize("name", PUBLISHED)
def test_prepared_data_equal_the_published_files(tmp_path, name):
    where, about = written(tmp_path / "files", name), DATASET_INFO[name]
    assert about.missing(tmp_path) == [] and len(about.missing(tmp_path / "out")) == len(about.archives)
    parts = SOURCES[name](where, **OPTIONS.get(name, {}))
    side = archives.IMAGES[name]["train"][0].shape[1]
    card = prepare(parts, tmp_path / "out", ImageTransform(side, about.channels), about, workers=1)
    assert set(store_parts(tmp_path / "out")) == set(card["parts"]) == set(archives.IMAGES[name])
    for part, (images, labels) in archives.IMAGES[name].items():
        store = open_store(tmp_path / "out", part)
        np.testing.assert_array_equal(store.images, images)
        np.testing.assert_array_equal(store.labels, labels)
        direct = load_dataset(name, path=str(where), part=part, size=side, **OPTIONS.get(name, {}))
        assert direct.sha256 == store.sha256 == card["parts"][part]["sha256"]
    assert card["parts"]["train"]["sha256"] == HASHES[name]


def test_mnist_in_all_its_formats_is_the_same_data(tmp_path):
    hashes = set()
    for form in (archives.mnist, lambda f, p: archives.mnist(f, p, packed=False), archives.mnist_npz):
        folder = tmp_path / str(len(list(tmp_path.iterdir()))) / "MNIST" / "raw"
        folder.mkdir(parents=True)
        form(folder, archives.IMAGES["mnist"])
        assert not DATASET_INFO["mnist"].missing(folder.parents[1])
        hashes.add(load_dataset("mnist", path=str(folder.parents[1]), part="train").sha256)
    assert hashes == {HASHES["mnist"]}


def test_cifar100_coarse_labels_are_the_first_byte(tmp_path):
    where = written(tmp_path, "cifar100")
    fine, coarse = (SOURCES["cifar100"](where, labels=kind)["train"] for kind in ("fine", "coarse"))
    assert (len(fine.class_names), len(coarse.class_names)) == (100, 20)
    np.testing.assert_array_equal(coarse.labels, fine.labels // 5)
    with pytest.raises(DuetError, match="Did you mean 'coarse'"):
        SOURCES["cifar100"](where, labels="corse")


def test_stl10_unlabelled_part_is_optional(tmp_path):
    images = archives.IMAGES["stl10"]["test"][0]
    for part, (pixels, labels) in archives.IMAGES["stl10"].items():
        (tmp_path / f"{part}_X.bin").write_bytes(b"".join(image.transpose(2, 1, 0).tobytes() for image in pixels))
        (tmp_path / f"{part}_y.bin").write_bytes((labels + 1).astype(np.uint8).tobytes())
    (tmp_path / "class_names.txt").write_text("a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n")
    (tmp_path / "unlabeled_X.bin").write_bytes((tmp_path / "test_X.bin").read_bytes())
    assert list(SOURCES["stl10"](tmp_path)) == ["train", "test"]
    found = SOURCES["stl10"](tmp_path, unlabelled=True)["unlabelled"]
    np.testing.assert_array_equal(found.images, images)
    assert found.class_names == ("unlabelled",)


@pytest.mark.parametrize(
    ("name", "corrupt", "message"),
    [
        ("mnist", lambda f: (f / "t10k-labels-idx1-ubyte.gz").unlink(), "has no t10k-labels-idx1-ubyte.gz"),
        ("mnist", lambda f: truncate(f / "train-images-idx3-ubyte.gz"), "train-images.*not a whole file.*download"),
        ("mnist", lambda f: (f / "mnist.npz").write_bytes(b"PK"), "is not Keras's mnist.npz"),
        ("fashion_mnist", lambda f: (f / "train-labels-idx1-ubyte.gz").write_bytes(b"\0\0\x08\x01\0\0\0\x09ab"),
         "not a complete idx file"),
        ("svhn", lambda f: truncate(f / "test_32x32.mat"), "not a MATLAB file with X, y"),
        ("stl10", lambda f: truncate(f / "stl10_binary.tar.gz"), "it is not a whole archive"),
        ("celeba", lambda f: truncate(f / "img_align_celeba.zip"), "cannot be read as a zip archive"),
        ("celeba", lambda f: (f / "list_eval_partition.txt").write_text("000001.jpg 0\n999999.jpg 1\n000002.jpg 2\n"),
         "999999.jpg of part validation is missing"),
        ("flowers102", lambda f: archives.tar(f / "102flowers.tgz", {"jpg/image_00001.jpg": b""}),
         "image_00002.jpg is missing"),
        ("cifar100", lambda f: (f / "cifar-100-binary.tar.gz").unlink(), "has no train.bin"),
    ],
)  # fmt: skip
def test_corrupted_archive_is_refused(tmp_path, name, corrupt, message):
    corrupt(written(tmp_path, name))
    with pytest.raises(DuetError, match=message):
        SOURCES[name](tmp_path)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_unknown_attribute_of_celeba_is_refused(tmp_path):
    with pytest.raises(DuetError, match=r"'Smile' was given; .* Did you mean 'Smiling'"):
        SOURCES["celeba"](written(tmp_path, "celeba"), attribute="Smile")


def test_npz_and_npy_files_are_data_sets(tmp_path):
    source = images(7)
    np.savez(tmp_path / "toy.npz", images=source.images, labels=source.labels)
    np.save(tmp_path / "toy.npy", source.images)
    np.save(tmp_path / "labels.npy", source.labels)
    both = [
        load_dataset("npz", path=str(tmp_path / "toy.npz"), size=8),
        load_dataset("array", path=str(tmp_path / "toy.npy"), labels=str(tmp_path / "labels.npy"), size=8),
    ]
    assert both[0].sha256 == both[1].sha256
    np.testing.assert_array_equal(both[0].images, source.images)
    np.testing.assert_array_equal(both[0].labels, source.labels)
    assert load_dataset("array", path=str(tmp_path / "toy.npy"), size=4, channels=1).images.shape == (7, 4, 4, 1)
    # Their class names differ from those of the network of digits.
    assert not both[0].has_class_names and dataset_reference(both[0], {}).classes == ()
    np.savez(tmp_path / "objects.npz", images=np.array([{}]))
    np.savez(tmp_path / "floats.npz", images=np.zeros((2, 4, 4, 3)))
    for file, message in (("objects.npz", "plain arrays"), ("floats.npz", "values are floats"), ("no.npz", "cannot")):
        with pytest.raises(DuetError, match=message):
            load_dataset("npz", path=str(tmp_path / file))


# Squares


def test_random_crop_moves_along_the_longer_side_only(tmp_path):
    x = np.broadcast_to(np.arange(60, dtype=np.uint8)[None, :, None], (20, 60, 1))
    square = ImageTransform(20, 1, "random", seed=3)
    lefts = []
    for index in range(400):
        made, given, _ = square(np.ascontiguousarray(x), index)
        lefts.append(int(made[0, 0, 0]))
        assert given == "60 x 20"
        np.testing.assert_array_equal(made[..., 0], np.broadcast_to(np.arange(20) + lefts[-1], (20, 20)))
    # All 41 positions are equally likely, and the position is a function of (seed, index).
    assert (min(lefts), max(lefts)) == (0, 40) and abs(np.mean(lefts) - 20) < 5 * np.sqrt((41**2 - 1) / 12 / 400)
    assert [int(square(x, index)[0][0, 0, 0]) for index in (7, 3)] == [lefts[7], lefts[3]]
    assert int(ImageTransform(20, 1)(x)[0][0, 0, 0]) == 20


# Preparing


def folder_of(tmp_path: Path, count: int, broken: tuple[int, ...] = ()) -> Source:
    (tmp_path / "a").mkdir(parents=True)
    for k in range(count):
        file = tmp_path / "a" / f"{k:03d}.png"
        Image.fromarray(np.full((9 + k, 12, 3), k, np.uint8)).save(file)
        if k in broken:
            truncate(file)
    return SOURCES["image_folder"](tmp_path)["all"]


def content(directory: Path) -> dict[str, bytes]:
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def test_any_number_of_processes_writes_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("diffusion_core.data.store._SHARD_IMAGES", 4)
    parts = {"all": folder_of(tmp_path / "files", 11, broken=(2, 9))}
    for workers in (1, 2):
        prepare(
            parts,
            tmp_path / f"out{workers}",
            ImageTransform(8),
            DatasetInfo("toy"),
            workers=workers,
            max_unreadable=0.5,
        )
    assert content(tmp_path / "out1") == content(tmp_path / "out2")
    assert len(list((tmp_path / "out1" / "all").glob("images-*.npy"))) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["files", "out1", "out2"]


def test_unreadable_images_are_skipped_counted_and_listed(tmp_path):
    source = folder_of(tmp_path / "files", 20, broken=(3, 11))
    card = prepare(
        {"all": source}, tmp_path / "out", ImageTransform(8), DatasetInfo("toy"), workers=1, max_unreadable=0.1
    )
    facts = card["parts"]["all"]
    assert (facts["pictures"], facts["unreadable"]["count"]) == (18, 2)
    assert list(facts["unreadable"]["first"]) == ["a/003.png", "a/011.png"]
    store = open_store(tmp_path / "out")
    kept = [k for k in range(20) if k not in (3, 11)]
    np.testing.assert_array_equal(store.images[:, 0, 0, 0], kept)
    assert read_names(tmp_path / "out" / "all", 18) == [f"a/{k:03d}.png" for k in kept]
    assert "`a/011.png`: " in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(DuetError, match=r"2 of 20 images cannot be read, .*0\.09 .*a/003\.png"):
        prepare(
            {"all": source}, tmp_path / "other", ImageTransform(8), DatasetInfo("toy"), workers=1, max_unreadable=0.09
        )
    assert not (tmp_path / "other").exists()


def test_interrupted_preparation_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr("diffusion_core.data.store._SHARD_IMAGES", 5)
    source, made = images(23), []
    real = ImageTransform.__call__

    def watched(self, image, index=0):
        if made[-1:] == [11]:
            raise KeyboardInterrupt
        made.append(index)
        return real(self, image, index)

    monkeypatch.setattr(ImageTransform, "__call__", watched)
    with pytest.raises(KeyboardInterrupt):
        prepare({"all": source}, tmp_path / "out", ImageTransform(8), DatasetInfo("toy"), workers=1)
    assert not (tmp_path / "out").exists()
    made.clear()
    seen = []
    monkeypatch.setattr(
        ImageTransform, "__call__", lambda self, image, index=0: (made.append(index), real(self, image))[1]
    )
    request = {"all": source}, tmp_path / "out", ImageTransform(8), DatasetInfo("toy")
    prepare(*request, workers=1, progress=lambda *now: seen.append(now))
    assert made == list(range(10, 23)) and seen[0] == ("all", 10, 23) and seen[-1] == ("all", 23, 23)
    monkeypatch.undo()
    np.testing.assert_array_equal(open_store(tmp_path / "out").images, source.images)
    assert not list(tmp_path.glob(".*"))


def test_a_preparation_of_other_images_starts_from_the_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr("diffusion_core.data.store._SHARD_IMAGES", 5)

    def stop(part, done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare({"all": images(23)}, tmp_path / "out", ImageTransform(8), DatasetInfo("toy"), workers=1, progress=stop)
    other = images(23, seed=1)
    prepare({"all": other}, tmp_path / "out", ImageTransform(8), DatasetInfo("toy"), workers=1)
    np.testing.assert_array_equal(open_store(tmp_path / "out").images, other.images)


def test_two_processes_can_use_one_directory(tmp_path, monkeypatch):
    request = {"all": images()}, tmp_path / "out", ImageTransform(8), DatasetInfo("toy")
    said, seen, rename = [], [], Path.rename

    def another(part, done, total):
        """Return the error of a second process while this one works."""
        if done:
            with pytest.raises(DuetError) as refused:
                prepare(*request, workers=1)
            said.append(str(refused.value))

    def renamed(self, target):
        made = rename(self, target)
        if target == tmp_path / "out":
            seen.extend(path.name for path in target.iterdir())
        return made

    monkeypatch.setattr(Path, "rename", renamed)
    first = prepare(*request, workers=1, progress=another)
    assert len(said) == 1 and "another process is writing" in said[0]
    assert ".lock" in seen  # held until everything is written
    before = content(tmp_path / "out")
    # A third process looked before the first was done and got the lock afterwards.
    looked = [lambda *given: None, _existing_card]
    monkeypatch.setattr("diffusion_core.data.prepare._existing_card", lambda *given: looked.pop(0)(*given))
    monkeypatch.setattr("diffusion_core.data.prepare._write_part", None)
    assert prepare(*request, workers=1) == json.loads(json.dumps(first))
    assert content(tmp_path / "out") == before and sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_request_does_not_depend_on_the_path_of_the_folder(tmp_path, monkeypatch):
    source = folder_of(tmp_path / "files", 3)
    prepare({"all": source}, tmp_path / "out", ImageTransform(8), DatasetInfo("toy"), workers=1)
    monkeypatch.chdir(tmp_path)
    again = SOURCES["image_folder"](Path("files"))["all"]
    assert (
        prepare({"all": again}, tmp_path / "out", ImageTransform(8), DatasetInfo("toy"), workers=1)["parts"]["all"][
            "pictures"
        ]
        == 3
    )


def test_files_with_other_times_and_the_same_content_are_the_same_files(tmp_path):
    folder = tmp_path / "files"
    folder_of(folder, 5, broken=(2,))

    def again():
        parts = {"all": SOURCES["image_folder"](folder)["all"]}
        options = {"workers": 1, "max_unreadable": 0.5}
        return prepare(parts, tmp_path / "out", ImageTransform(8), DatasetInfo("toy"), **options)

    first = again()
    for file in folder.rglob("*.png"):
        os.utime(file, (1, 1))
    assert again() == json.loads(json.dumps(first))
    file = folder / "a" / "001.png"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # of the same size
    file.write_bytes(content)
    with pytest.raises(DuetError, match="was prepared from other files; choose another directory"):
        again()


def test_existing_directory_is_never_overwritten(tmp_path):
    first = prepare({"all": images()}, tmp_path / "out", ImageTransform(8), DatasetInfo("toy"), workers=1)
    before = content(tmp_path / "out")
    assert prepare({"all": images()}, tmp_path / "out", ImageTransform(8), DatasetInfo("toy"), workers=1) == json.loads(
        json.dumps(first)
    )
    for parts, square in (({"all": images(seed=1)}, ImageTransform(8)), ({"all": images()}, ImageTransform(4))):
        with pytest.raises(
            DuetError, match=r"prepared (from other files|with other options .size 8 instead of 4.); choose"
        ):
            prepare(parts, tmp_path / "out", square, DatasetInfo("toy"), workers=1)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years of work")
    with pytest.raises(DuetError, match="is not a prepared data set"):
        prepare({"all": images()}, tmp_path / "thesis", ImageTransform(8), DatasetInfo("toy"), workers=1)
    assert content(tmp_path / "out") == before
    (tmp_path / "out" / "all" / "images-00000.npy").write_bytes(b"")
    with pytest.raises(DuetError, match="cut short"):
        prepare({"all": images()}, tmp_path / "out", ImageTransform(8), DatasetInfo("toy"), workers=1)


# Splits and classes


def test_split_by_stream_holds_out_a_fraction():
    parts = split_by_stream({"train": images(50), "test": images(5)}, 0.2, seed=1)
    assert {part: len(source) for part, source in parts.items()} == {"train": 40, "test": 5, "held_out": 10}
    assert set(parts["train"].names) | set(parts["held_out"].names) == set(images(50).names)
    again, other = (split_by_stream({"train": images(50)}, 0.2, seed)["held_out"].names for seed in (1, 2))
    assert again == parts["held_out"].names != other
    for fraction in (0, 1, 0.001):
        with pytest.raises(DuetError, match="it must lie between 0 and 1"):
            split_by_stream({"train": images(50)}, fraction, seed=1)


def test_split_by_file_assigns_every_image(tmp_path):
    (tmp_path / "parts.txt").write_text("\n".join(f"{k}.png {'test' if k % 4 == 1 else 'train'}" for k in range(12)))
    parts = split_by_file({"all": images()}, tmp_path / "parts.txt")
    assert list(parts) == ["train", "test"] and parts["test"].names == ("1.png", "5.png", "9.png")
    np.testing.assert_array_equal(parts["test"].images, images().images[[1, 5, 9]])
    np.testing.assert_array_equal(parts["test"].labels, [1, 2, 0])
    whole = (tmp_path / "parts.txt").read_text()
    for text, message in (
        (whole + "\n3.png test", r"3\.png. is listed twice"),
        (whole + "\n77.png test", r"77\.png. is no image of toy"),
        ("0.png train", "has no line for '1.png' and 10 more"),
        ("0.png", "'0.png' is no image of toy"),
        ("0.png ../elsewhere", "0.png is in part '../elsewhere'; the name of a part must be a word"),
        ("0.png all", "0.png is in part 'all'"),
    ):
        (tmp_path / "parts.txt").write_text(text)
        with pytest.raises(DuetError, match=message):
            split_by_file({"all": images()}, tmp_path / "parts.txt")


def test_image_names_in_a_split_file_may_contain_spaces(tmp_path):
    source = Source(np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, np.int32), ("a",), "toy", ("my cat.png", "b.png"))
    (tmp_path / "parts.txt").write_text("my cat.png\ttrain\nb.png   test\n")
    parts = split_by_file({"all": source}, tmp_path / "parts.txt")
    assert {part: found.names for part, found in parts.items()} == {"train": ("my cat.png",), "test": ("b.png",)}


def test_selected_classes_are_the_same_read_directly_and_prepared(tmp_path):
    for name in "ab":
        (tmp_path / "files" / name).mkdir(parents=True)
        for k in range(3):
            image = np.random.default_rng(k).integers(0, 256, (8, 30, 3), np.uint8)
            Image.fromarray(image).save(tmp_path / "files" / name / f"{k}.png")
    truncate(tmp_path / "files" / "a" / "1.png")  # of a class that is not selected
    direct = load_dataset("image_folder", path=str(tmp_path / "files"), size=8, crop="random", classes=["b"])
    parts = {"all": SOURCES["image_folder"](tmp_path / "files")["all"].select_classes(["b"])}
    card = prepare(parts, tmp_path / "out", ImageTransform(8, crop="random"), DatasetInfo("toy"), workers=1)
    assert card["parts"]["all"]["sha256"] == direct.sha256


def test_classes_are_selected_before_images_are_read():
    source = images()
    chosen = source.select_classes(["c", 0])
    assert chosen.class_names == ("c", "a")
    np.testing.assert_array_equal(chosen.labels, [1, 0] * 4)
    np.testing.assert_array_equal(chosen.images, source.images[source.labels != 1])


@pytest.mark.parametrize(
    ("labels", "names", "ids"),
    [
        ([1, 2, 3, 1], ("class 1", "class 2", "class 3"), [0, 1, 2, 0]),
        ([0, 5, 10, 5], ("class 0", "class 5", "class 10"), [0, 1, 2, 1]),
        ([[2], [0], [1], [1]], ("class 0", "class 1", "class 2"), [2, 0, 1, 1]),
        ([1.0, 0.0, 0.0, 1.0], ("class 0", "class 1"), [1, 0, 0, 1]),
        ([True, False, True, True], ("class 0", "class 1"), [1, 0, 1, 1]),
        (["dog", "cat", "img10", "img2"], ("cat", "dog", "img2", "img10"), [1, 0, 3, 2]),
        ([7, 7, 7, 7], ("class 7",), [0, 0, 0, 0]),
    ],
)
def test_labels_never_make_classes_without_images(tmp_path, labels, names, ids):
    array = np.array(labels)
    np.savez(tmp_path / "toy.npz", images=images(4).images, labels=array)
    data = load_dataset("npz", path=str(tmp_path / "toy.npz"), size=8)
    assert data.class_names == names and data.labels.tolist() == ids and data.empty_classes == ()
    mapped = array.dtype.kind in "iu" and sorted(set(array.ravel().tolist())) != list(range(len(names)))
    assert len(data.reading.lines) == mapped
    if mapped:
        assert f"data.options.num_classes={array.max() + 1}" in data.reading.lines[0]
        kept = load_dataset("npz", path=str(tmp_path / "toy.npz"), size=8, num_classes=int(array.max()) + 1)
        np.testing.assert_array_equal(kept.labels, array.ravel())
        assert kept.num_classes == array.max() + 1 and len(kept.empty_classes) == kept.num_classes - len(names)
        with pytest.raises(DuetError, match=rf"num_classes: 1 was given, but .* has label {array.max()}"):
            load_dataset("npz", path=str(tmp_path / "toy.npz"), size=8, num_classes=1)


def test_labels_of_an_array_may_be_a_text_file(tmp_path):
    np.save(tmp_path / "toy.npy", images(3).images)
    for text, names in (
        ("4\n2\n4\n", ("class 2", "class 4")),
        ("file,label\na.png,dog\nb.png,cat\nc.png,dog\n", ("cat", "dog")),
    ):
        (tmp_path / "labels.csv").write_text(text)
        data = load_dataset("array", path=str(tmp_path / "toy.npy"), labels=str(tmp_path / "labels.csv"), size=8)
        assert data.class_names == names and data.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.eye(4)[:2], "one per image"),
        (np.array([-1, 0, 1]), "from -1 to 1; they must be class ids"),
        (np.array([0.5, 0, 1]), "they must be class ids"),
        (np.array([0, 1]), "one per image"),
    ],
)
def test_labels_that_are_no_class_ids_are_refused(tmp_path, labels, message):
    np.savez(tmp_path / "toy.npz", images=images(3).images, labels=labels)
    with pytest.raises(DuetError, match=message):
        load_dataset("npz", path=str(tmp_path / "toy.npz"), size=8)


def test_a_card_states_mean_deviation_and_sigma_data(tmp_path):
    source = images(9)
    card = prepare({"all": source}, tmp_path / "out", ImageTransform(8, 3), DatasetInfo("toy"), workers=1)
    values, statistics = source.images / 255, card["parts"]["all"]["statistics"]
    np.testing.assert_allclose(statistics["mean"], values.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(statistics["std"], values.std(axis=(0, 1, 2)), rtol=1e-9)
    assert statistics["sigma_data"] == pytest.approx(2 * np.sqrt(values.var(axis=(0, 1, 2)).mean()), rel=1e-12)
    assert f"{statistics['sigma_data']:.4f}" in (tmp_path / "out" / "README.md").read_text()
