"""CIFAR-10 in its original binary format, with a few records per file."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_core.common.errors import DuetError
from diffusion_core.data import Dataset, load_dataset
from diffusion_core.data.sources.cifar import CLASS_NAMES

COUNTS = {**{f"data_batch_{k}.bin": k for k in range(1, 6)}, "test_batch.bin": 4}
RNG = np.random.default_rng(0)
LABELS = {name: RNG.integers(0, 10, count) for name, count in COUNTS.items()}
IMAGES = {name: RNG.integers(0, 256, (count, 32, 32, 3), np.uint8) for name, count in COUNTS.items()}


def cifar10(path: Path, part: str = "all", size: int = 32) -> Dataset:
    return load_dataset("cifar10", path=str(path), part=part, size=size)


def record(label: int, image: np.ndarray) -> bytes:
    """Return a record, written plane by plane and row by row."""
    planes = (bytes(int(image[y, x, c]) for y in range(32) for x in range(32)) for c in range(3))
    return bytes([label]) + b"".join(planes)


FILES = {
    "batches.meta.txt": ("\n".join(CLASS_NAMES) + "\n\n").encode(),
    **{name: b"".join(map(record, LABELS[name], IMAGES[name])) for name in COUNTS},
    "readme.html": b"<html></html>",
}


def pack(
    path: Path, files: Mapping[str, bytes] = FILES, folder: str = "cifar-10-batches-bin", mode: str = "w:gz"
) -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def unpack(folder: Path, files: Mapping[str, bytes] = FILES) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("part", "names"),
    [("train", list(COUNTS)[:5]), ("test", ["test_batch.bin"]), ("all", list(COUNTS))],
)
def test_images_and_labels_equal_the_files_in_order(tmp_path, part, names):
    archive = pack(tmp_path / "cifar-10-binary.tar.gz", dict(reversed(FILES.items())))
    data = load_dataset("cifar10", path=str(archive), part=part)
    np.testing.assert_array_equal(data.images, np.concatenate([IMAGES[name] for name in names]))
    np.testing.assert_array_equal(data.labels, np.concatenate([LABELS[name] for name in names]))
    assert (data.name, data.class_names) == ("cifar10", CLASS_NAMES)
    assert [path.name for path in tmp_path.iterdir()] == [archive.name], "nothing is unpacked to disk"


def test_archive_and_folder_hold_the_same_data(tmp_path):
    archive = cifar10(pack(tmp_path / "a.tar.gz"))
    plain = cifar10(pack(tmp_path / "a.tar", mode="w"))
    inside = unpack(tmp_path / "out" / "cifar-10-batches-bin")
    assert archive.sha256 == plain.sha256 == cifar10(inside).sha256 == cifar10(inside.parent).sha256


def test_class_names_come_from_the_archive_or_are_the_standard_ten(tmp_path):
    without = {name: content for name, content in FILES.items() if name != "batches.meta.txt"}
    assert cifar10(pack(tmp_path / "a.tar.gz", without)).class_names == CLASS_NAMES
    other = {**FILES, "batches.meta.txt": "\r\n".join("ABCDEFGHIJ").encode()}
    assert cifar10(pack(tmp_path / "b.tar.gz", other)).class_names == tuple("ABCDEFGHIJ")


def test_class_is_selected_by_id_or_name(tmp_path):
    archive = pack(tmp_path / "a.tar.gz")
    whole = cifar10(archive)
    present = int(whole.labels[0])
    one = load_dataset("cifar10", path=str(archive), part="all", classes=[present])
    np.testing.assert_array_equal(one.images, whole.images[whole.labels == present])
    assert one.sha256 == load_dataset("cifar10", path=str(archive), part="all", classes=[CLASS_NAMES[present]]).sha256


@pytest.mark.parametrize("size", [28, 64])
def test_other_sizes_are_resized_by_pillow(tmp_path, size):
    data = cifar10(unpack(tmp_path / "bin"), "test", size)
    for image, original in zip(data.images, IMAGES["test_batch.bin"], strict=True):
        expected = Image.fromarray(original).resize((size, size), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(image, np.asarray(expected))


def test_shrinking_averages_instead_of_skipping(tmp_path):
    board = np.repeat(np.indices((32, 32)).sum(axis=0)[..., None] % 2 * 255, 3, axis=2).astype(np.uint8)
    folder = unpack(tmp_path / "bin", {**FILES, "test_batch.bin": record(0, board)})
    assert np.abs(cifar10(folder, "test", 8).images[0].astype(float) - 127.5).max() < 16


@pytest.mark.parametrize("make", [pack, unpack])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_batch_3.bin": None}, "has no data_batch_3.bin; it must be cifar-10-binary.tar.gz"),
        ({"test_batch.bin": None}, "has no test_batch.bin"),
        ({"data_batch_2.bin": FILES["data_batch_2.bin"][:-1]}, "data_batch_2.bin of .* has 6145 bytes; .* 3073 bytes"),
        ({"data_batch_2.bin": b""}, "has 0 bytes; .* at least one"),
        ({"test_batch.bin": record(1, IMAGES["test_batch.bin"][0]) + record(10, IMAGES["test_batch.bin"][1])},
         r"record 1 of test_batch.bin of .* has label 10; the labels are 0\.\.9"),
        ({"batches.meta.txt": b"one two three"}, "names 3 classes; there must be 10"),
        ({name: None for name in COUNTS} | {name.removesuffix(".bin"): b"\x80" for name in COUNTS},
         "is the python version, which consists of pickles and is not opened; it must be cifar-10-binary.tar.gz"),
    ],
)  # fmt: skip
def test_other_versions_and_corrupted_files_are_refused(tmp_path, make, change, message):
    files = {name: content for name, content in {**FILES, **change}.items() if content is not None}
    with pytest.raises(DuetError, match=message):
        cifar10(make(tmp_path / "cifar", files))


def test_links_in_an_archive_are_not_followed(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(FILES["test_batch.bin"])
    pack(tmp_path / "a.tar", {name: data for name, data in FILES.items() if name != "test_batch.bin"}, mode="w")
    with tarfile.open(tmp_path / "a.tar", "a") as archive:
        member = tarfile.TarInfo("test_batch.bin")
        member.type, member.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(member)
    with pytest.raises(DuetError, match=r"has no test_batch\.bin"):
        cifar10(tmp_path / "a.tar")


def test_file_that_is_not_an_archive_is_refused(tmp_path):
    whole = pack(tmp_path / "a.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "harmed.tar.gz").write_bytes(whole[:5000] + bytes(100) + whole[5100:])
    (tmp_path / "text.tar.gz").write_text("<html>not found</html>")
    (tmp_path / "empty.tar.gz").write_bytes(b"")
    for name in ("cut", "harmed", "text", "empty"):
        with pytest.raises(DuetError, match=rf"{name}\.tar\.gz: it is not a whole archive"):
            cifar10(tmp_path / f"{name}.tar.gz")
    with pytest.raises(DuetError, match=r"missing' is not a file or a folder; it must be cifar-10-binary\.tar\.gz"):
        cifar10(tmp_path / "missing")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": "trian"}, "part: 'trian' was given; .* Did you mean 'train'"),
        ({"size": 0}, r"options\.size: 0 was given; it must be a whole number"),
        ({"size": 28.0}, "data.options.size: 28.0 was given; it must be a whole number"),
        ({"channels": 2}, "it must be 1 or 3"),
        ({"crop": "middle"}, "crop: 'middle' was given; it must be one of centre, random"),
        ({"crops": "centre"}, "option of data 'cifar10': 'crops' was given; .* Did you mean 'crop'"),
    ],
)
def test_invalid_option_is_refused(tmp_path, options, message):
    archive = pack(tmp_path / "a.tar.gz")
    with pytest.raises(DuetError, match=message):
        load_dataset("cifar10", path=str(archive), **options)
    with pytest.raises(DuetError, match="no path was given"):
        load_dataset("cifar10")
