"""Folders of images: which files are images, in which order, and which folders are parts and classes."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_core.common.errors import DuetError
from diffusion_core.data import load_dataset
from diffusion_core.data.layout import split_name
from diffusion_core.data.prepare import prepare
from diffusion_core.data.reading import BY_CONTENT, METADATA, UNREADABLE
from diffusion_core.data.source import Source, only_classes
from diffusion_core.data.sources import DATASET_INFO, SOURCES
from diffusion_core.data.transform import ImageTransform
from diffusion_core.images import files
from diffusion_core.images.decode import decode
from diffusion_core.images.files import natural_order, readable_suffixes, scan

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)


def png(path: Path) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS).save(path)
    return path.read_bytes()


def fill(root: Path, *names: str) -> Path:
    """Write a small image under each name; a name that ends with a slash is an empty folder."""
    content = png(root.parent / "image.png")
    for name in names:
        file = root / name
        (file if name.endswith("/") else file.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            file.write_bytes(content)
    return root


def parts(root: Path, **options: str) -> dict[str, Source]:
    return SOURCES["image_folder"](root, **options)


def described(root: Path, **options: str) -> dict[str, dict[str, int]]:
    """Return the number of images of each class, by part."""
    return {
        part: dict(zip(source.class_names, np.bincount(source.labels, minlength=len(source.class_names)), strict=True))
        for part, source in parts(root, **options).items()
    }


def said(root: Path, **options: str) -> str:
    return "\n".join(next(iter(parts(root, **options).values())).reading.lines)


# Layouts


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("train", "train"), ("Training Data", "train"), ("TRAIN", "train"), ("train_images", "train"),
        ("seg_train", "train"), ("trainset", "train"), ("TrainingData", "train"), ("train2017", "train"),
        ("val", "validation"), ("Valid", "validation"), ("validation-data", "validation"), ("dev", "validation"),
        ("test", "test"), ("Testing_Data", "test"), ("test set", "test"), ("hold-out", "held_out"),
        ("Held_Out", "held_out"), ("unlabeled", "unlabelled"), ("seg_pred", "unlabelled"),
        ("Coast", None), ("trains", None), ("testament", None), ("train_test_split", None), ("valley", None),
    ],
)  # fmt: skip
def test_splits_are_recognised_by_name(name: str, kind: str | None) -> None:
    found = split_name(name)
    assert found == (None if kind is None else (kind, ()))


@pytest.mark.parametrize("around", ["", "archive/", "a/b/"])
@pytest.mark.parametrize(
    "names",
    [
        ("Training Data", "Validation Data", "Testing Data"),
        ("train", "val", "test"),
        ("TRAIN", "Valid", "TEST"),
        ("scenes_train", "scenes_dev", "scenes_test"),
    ],
)
def test_splits_become_parts_with_the_same_classes(tmp_path: Path, names: tuple[str, ...], around: str) -> None:
    wanted = [f"{around}{split}/{name}/{k}.png" for split in names for name in ("Coast", "Forest") for k in range(2)]
    root = fill(tmp_path / "files", *wanted)
    assert described(root) == {part: {"Coast": 2, "Forest": 2} for part in ("train", "validation", "test")}
    assert all(f"{name!r} is" in said(root) for name in names)
    data = load_dataset("image_folder", path=str(root), size=4)
    assert (data.reading.part, len(data)) == ("train", 4)
    assert len(load_dataset("image_folder", path=str(root), size=4, part="all")) == 12
    for part in ("val", "Validation", "validation"):
        assert load_dataset("image_folder", path=str(root), size=4, part=part).reading.part == "validation"
    with pytest.raises(DuetError, match=r"data\.options\.part: 'holdout' was given"):
        load_dataset("image_folder", path=str(root), size=4, part="holdout")
    assert described(root / around / names[0]) == {"all": {"Coast": 2, "Forest": 2}}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["train/a/1.png", "train/b/1.png", "test/b/1.png"], {"train": {"a": 1, "b": 1}, "test": {"a": 0, "b": 1}}),
        (["train/a/1.png", "test/A/1.png"], {"train": {"a": 1}, "test": {"a": 1}}),
        (["train/1.png", "test/1.png", "test/2.png"], {"train": {"files": 1}, "test": {"files": 2}}),
        (["train/a/1.png", "train/b/1.png", "test/1.png"], {"train": {"a": 1, "b": 1}, "test": {"unlabelled": 1}}),
        (["train/a/1.png", "train/b/1.png"], {"train": {"a": 1, "b": 1}}),
        (["images/train/1.png", "images/val/1.png"], {"train": {"files": 1}, "validation": {"files": 1}}),
        (["train/images/1.png", "val/images/1.png"], {"train": {"files": 1}, "validation": {"files": 1}}),
        (
            ["seg_train/seg_train/a/1.png", "seg_train/seg_train/b/1.png", "seg_test/seg_test/a/1.png",
             "seg_pred/seg_pred/1.png"],
            {"train": {"a": 1, "b": 1}, "test": {"a": 1, "b": 0}, "unlabelled": {"unlabelled": 1}},
        ),
        (
            ["a/train/1.png", "a/test/1.png", "b/train/1.png", "b/test/1.png", "b/test/2.png"],
            {"train": {"a": 1, "b": 1}, "test": {"a": 1, "b": 2}},
        ),
        (["car/1.png", "bus/1.png", "train/1.png"], {"all": {"bus": 1, "car": 1, "train": 1}}),
        (["a/images/1.png", "b/images/1.png"], {"all": {"a": 1, "b": 1}}),
        (["a/1.png", "a/x/2.png", "b/1.png"], {"all": {"a": 2, "b": 1}}),
        (["wrap/a/1.png", "wrap/b/1.png"], {"all": {"a": 1, "b": 1}}),
        (["bars/1.png", "test pattern/1.png"], {"all": {"bars": 1, "test pattern": 1}}),
        (["train/cat.1.png", "test1/1.png"], {"train": {"files": 1}, "test": {"files": 1}}),
        (
            ["Data/CLS-LOC/train/n01/images/1.png", "Data/CLS-LOC/train/n02/images/1.png",
             "Data/CLS-LOC/val/images/1.png", "Annotations/"],
            {"train": {"n01": 1, "n02": 1}, "validation": {"unlabelled": 1}},
        ),
        (["only/1.png", "only/2.png"], {"all": {"only": 2}}),
        (["1.png", "2.png", "empty/"], {"all": {"files": 2}}),
        (["a/1.png", "b/1.png", "empty/"], {"all": {"a": 1, "b": 1}}),
        (["cat/1.png", "Cat/1.png"], {"all": {"Cat": 1, "cat": 1}}),
        (["1/a.png", "2/a.png", "10/a.png"], {"all": {"1": 1, "2": 1, "10": 1}}),
    ],
)  # fmt: skip
def test_layouts_that_have_one_reading(tmp_path: Path, files: list[str], expected: dict) -> None:
    root = fill(tmp_path / "files", *files)
    assert described(root) == expected
    assert list(described(root)) == list(expected)
    for part in expected:
        assert list(described(root)[part]) == list(expected[part])


def test_remarks_name_what_cannot_be_seen_from_the_numbers(tmp_path: Path) -> None:
    root = fill(tmp_path / "files", "train/a/1.png", "train/b/1.png", "test/b/1.png", "train/none/", "labels/")
    assert "test has no image of a" in said(root)
    assert "folders without images: 2 (labels, none)" in said(root)
    wrapped = fill(tmp_path / "wrapped", "inner/1/x.png", "inner/2/x.png", "inner/10/x.png")
    assert "the folder 'inner'" in said(wrapped) and "natural order" in said(wrapped)
    assert list(described(wrapped, order="plain")["all"]) == ["1", "10", "2"]


@pytest.mark.parametrize(
    ("files", "readings"),
    [
        (["x/a/1.png", "x/b/1.png", "y/a/1.png", "y/b/1.png"], ["layout=classes", "x, y", "layout=splits", "a, b"]),
        (["fold1/a/1.png", "fold2/a/1.png"], ["layout=classes", "layout=splits", "fold1, fold2"]),
        (["train/a/1.png", "train/b/1.png", "query/a/1.png", "query/b/1.png"], ["layout=splits: the parts are query"]),
        (["train/1.png", "test/1.png", "cat/1.png"], ["layout=classes", "layout=splits"]),
        (["train/a/1.png", "cat/1.png"], ["layout=classes", "layout=splits"]),
        (["val/a/1.png", "validation/a/1.png"], ["layout=classes", "layout=splits: the parts are val, validation"]),
        (["a/train/1.png", "a/test/1.png", "b/1.png"], ["layout=classes", "layout=splits"]),
        (["1.png", "a/1.png"], ["holds '1.png' and the folder 'a'", "layout=flat", "layout=classes"]),
        (["1.png", "train/1.png", "test/1.png"], ["layout=flat", "layout=splits: the parts are test, train"]),
        (["trainA/1.png", "trainB/1.png", "testA/1.png"], ["layout=classes", "layout=splits"]),
        (["train/1.png", "train_extra/1.png"], ["layout=classes", "layout=splits"]),
        (["train/1.png", "train/a/1.png", "test/a/1.png"], ["holds '1.png' and the folder 'a'", "layout=flat"]),
    ],
)
def test_layouts_with_two_readings_are_refused_with_both(tmp_path: Path, files: list[str], readings: list[str]) -> None:
    with pytest.raises(DuetError) as error:
        parts(fill(tmp_path / "files", *files))
    assert all(reading in str(error.value) for reading in [*readings, "data.options.path"])


def test_a_chosen_layout_is_followed(tmp_path: Path) -> None:
    root = fill(tmp_path / "files", "x/a/1.png", "x/b/1.png", "y/a/1.png")
    assert described(root, layout="classes") == {"all": {"x": 2, "y": 1}}
    assert described(root, layout="splits") == {"x": {"a": 1, "b": 1}, "y": {"a": 1, "b": 0}}
    assert described(root, layout="flat") == {"all": {"files": 3}}
    fill(root, "loose.png")
    assert described(root, layout="classes") == {"all": {"x": 2, "y": 1}}
    assert "images beside the folders that are read: 1 (loose.png)" in said(root, layout="classes")
    assert described(root, layout="splits") == {"x": {"a": 1, "b": 1}, "y": {"a": 1, "b": 0}}
    assert "images beside the folders that are read: 1 (loose.png)" in said(root, layout="splits")
    with pytest.raises(DuetError, match=r"data\.options\.layout: splits was given, but .* holds no folders of images"):
        parts(root / "x" / "a", layout="splits")
    with pytest.raises(DuetError, match=r"data\.options\.layout: 'clases' was given.*Did you mean 'classes'"):
        parts(root, layout="clases")
    with pytest.raises(DuetError, match=r"data\.options\.order: 'size'"):
        parts(root, order="size")


# Files


def test_numbers_in_names_are_sorted_by_value_and_padded_names_as_before(tmp_path: Path) -> None:
    names = ["img10.png", "img2.png", "img.png", "img1a.png", "img1.png", "a.png", "b0.png"]
    assert sorted(names, key=natural_order) == [
        "a.png", "b0.png", "img.png", "img1.png", "img1a.png", "img2.png", "img10.png",
    ]  # fmt: skip
    padded = [f"{kind}_{k:03d}.png" for kind in ("x", "x1", "Y") for k in (1, 20, 100)]
    assert sorted(padded, key=natural_order) == sorted(padded)
    root = fill(tmp_path / "files", *(f"{k}.png" for k in (1, 2, 10)))
    assert parts(root)["all"].names == ("1.png", "2.png", "10.png")
    assert parts(root, order="plain")["all"].names == ("1.png", "10.png", "2.png")


FORMATS = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jfif": "JPEG", ".jpe": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP",
    ".gif": "GIF", ".tif": "TIFF", ".tiff": "TIFF", ".avif": "AVIF", ".jp2": "JPEG2000", ".ppm": "PPM", ".tga": "TGA",
}  # fmt: skip


@pytest.mark.parametrize("suffix", [*FORMATS, *(s.upper() for s in FORMATS)])
def test_every_suffix_that_pillow_reads_counts_in_any_case(tmp_path: Path, suffix: str) -> None:
    if suffix.lower() not in readable_suffixes():
        pytest.skip(f"Pillow here does not read {suffix}")
    (tmp_path / "files").mkdir()
    Image.fromarray(PIXELS).save(tmp_path / "files" / f"a{suffix}", format=FORMATS[suffix.lower()])
    data = load_dataset("image_folder", path=str(tmp_path / "files"), size=4)
    assert len(data) == 1 and np.abs(data.images[0].astype(int).mean() - PIXELS.mean()) < 12
    assert data.reading.lines == ()


def test_what_is_left_out_is_counted_by_kind_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fill(tmp_path / "pets", *(f"{kind}/{k}.png" for kind in ("cat", "dog") for k in range(3)))
    content = png(tmp_path / "one.png")
    for name in ("cat/none", "cat/odd.dat", "cat/copy.png~", "cat/part.jpg.part"):
        (root / name).write_bytes(content)
    for name in ("cat/notes.txt", "cat/raw.HEIC", "dog/empty", "dog/Thumbs.db", "dog/.hidden.png", "dog/desktop.ini"):
        (root / name).write_bytes(b"" if name == "dog/empty" else b"text")
    fill(root, "__MACOSX/cat/._1.png", ".cache/1.png", "cat/@eaDir/1.png")
    elsewhere = fill(tmp_path / "elsewhere", *(f"{k}.png" for k in range(6)))
    (root / "cat/more").symlink_to(elsewhere)
    (root / "cat/again").symlink_to(root / "dog")
    (root / "dog/again").symlink_to(elsewhere)
    (root / "dog/up").symlink_to(tmp_path)
    (root / "dog/one.png").symlink_to(tmp_path / "one.png")
    (root / "cat/broken.png").symlink_to("nowhere.png")
    os.mkfifo(root / "dog/pipe.png")
    source = parts(root)["all"]
    assert np.bincount(source.labels).tolist() == [3 + 2 + 6, 3 + 1]
    assert {kind: set(names) for kind, names in source.reading.left_out.items()} == {
        files.OTHER_FORMATS: {"cat/raw.HEIC"},
        files.OTHER_FILES: {"cat/notes.txt", "dog/empty"},
        files.COPIES: {"cat/copy.png~", "cat/part.jpg.part"},
        files.READ_ALREADY: {"cat/again", "dog/again"},
        files.CIRCLES: {"dog/up"},
        files.BROKEN: {"cat/broken.png"},
        files.NOT_FILES: {"dog/pipe.png"},
        BY_CONTENT: {"cat/none", "cat/odd.dat"},
    }
    # A format that Pillow was built without is named, not dropped.
    monkeypatch.setattr(files, "readable_suffixes", lambda: frozenset({".jpg"}))
    tree, left_out = scan(root / "dog")
    assert tree.count == 0 and "0.png" in left_out.names[files.OTHER_FORMATS]


def test_names_that_are_not_utf8_are_read_listed_and_prepared(tmp_path: Path) -> None:
    root = tmp_path / "files"
    content = png(tmp_path / "one.png")
    folder = os.fsencode(root) + b"/caf\xe9"
    try:
        os.makedirs(folder)
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    for name in (b"a\xff.png", b"b.png", b"c\nd.png", b"\xfe.txt"):
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(content if name.endswith(b"png") else b"text")
    sources = parts(root)
    assert sources["all"].class_names == ("caf\\xe9",)
    assert sources["all"].names == ("caf\\xe9/a\\xff.png", "caf\\xe9/b.png", "caf\\xe9/c d.png")
    assert "caf\\xe9/\\xfe.txt" in said(root)
    made = prepare(sources, tmp_path / "out", ImageTransform(4), DATASET_INFO["image_folder"], workers=1)
    assert json.loads((tmp_path / "out" / "card.json").read_text("utf-8"))["parts"] == made["parts"]
    assert "caf\\xe9" in (tmp_path / "out" / "README.md").read_text("utf-8")
    direct = load_dataset("image_folder", path=str(root), size=4)
    assert direct.sha256 == made["parts"]["all"]["sha256"]


# Images with damaged metadata

# A ramp of 40 x 30 pixels, which every format keeps to a few grey values.
RAMP = np.stack([np.mgrid[:30, :40][1] * 6, np.mgrid[:30, :40][0] * 8, np.full((30, 40), 90)], -1).astype(np.uint8)
TURNED = (0x112, 3, 1, struct.pack("<I", 6))


def exif(*entries: tuple[int, int, int, bytes | None], extra: bytes = b"") -> bytes:
    body = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    where = struct.pack("<I", len(body) + 12 * len(entries) + 4)
    for tag, kind, count, value in entries:
        body += struct.pack("<HHI", tag, kind, count) + (value or where).ljust(4, b"\0")
    return b"Exif\0\0" + body + bytes(4) + extra


def jpeg_with(block: bytes, marker: int = 0xE1) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        Image.fromarray(RAMP).save(path, "JPEG", quality=95)
        plain = path.read_bytes()
        path.write_bytes(plain[:2] + struct.pack(">BBH", 0xFF, marker, len(block) + 2) + block + plain[2:])

    return write


def png_with(name: bytes, data: bytes, checksum: int | None = None) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        Image.fromarray(RAMP).save(path, "PNG")
        plain, code = path.read_bytes(), zlib.crc32(name + data) if checksum is None else checksum
        path.write_bytes(plain[:33] + struct.pack(">I", len(data)) + name + data + struct.pack(">I", code) + plain[33:])

    return write


def webp_with_bad_exif(path: Path) -> None:
    Image.fromarray(RAMP).save(path, "WEBP", lossless=True, exif=b"Exif\0\0not at all")


def tiff_with_bad_entry(path: Path) -> None:
    Image.fromarray(RAMP).save(path, "TIFF", tiffinfo={0x112: 6, 0x128: 2})
    content = path.read_bytes()
    at = content.index(struct.pack("<H", 0x128))
    path.write_bytes(content[: at + 2] + struct.pack("<HI", 2, 1) + b"x\0\0\0" + content[at + 12 :])


def tiff_that_reaches_beyond_its_end(path: Path) -> None:
    Image.fromarray(RAMP).save(path, "TIFF", tiffinfo={0x112: 6, 0x10F: "maker"})
    content = path.read_bytes()
    at = content.index(struct.pack("<HH", 0x10F, 2))
    path.write_bytes(content[: at + 4] + struct.pack("<II", 1 << 30, 1 << 30) + content[at + 12 :])


@pytest.mark.parametrize(
    ("write", "is_turned"),
    [
        (jpeg_with(exif(TURNED)), True),
        (jpeg_with(exif(TURNED, (0x128, 2, 1, b"x"))), True),
        (jpeg_with(exif(TURNED, (0x11A, 2, 4, b"72\0\0"))), True),
        (jpeg_with(exif(TURNED, (0x11A, 12, 1, None), extra=struct.pack("<d", float("nan")))), True),
        (jpeg_with(exif(TURNED, (0x11A, 10, 1, None), extra=struct.pack("<ii", -1, 0))), True),
        (jpeg_with(exif((0x112, 2, 1, b"x"))), False),
        (jpeg_with(exif((0x112, 3, 1, struct.pack("<I", 77)))), False),
        (jpeg_with(b"Exif\0\0nonsense"), False),
        (jpeg_with(b"Exif\0\0"), False),
        (jpeg_with(b"ICC_PROFILE\0\1\1" + b"x" * 30, 0xE2), False),
        (jpeg_with(b"http://ns.adobe.com/xap/1.0/\0<x", 0xE1), False),
        (png_with(b"iCCP", b"x\0\0broken"), False),
        (png_with(b"iCCP", b"x\0\0" + zlib.compress(bytes(3_000_000))), False),
        (png_with(b"zTXt", b"note\0\0" + zlib.compress(bytes(3_000_000))), False),
        (png_with(b"tEXt", b"note\0text", checksum=7), False),
        (png_with(b"eXIf", exif(TURNED)[6:]), True),
        (png_with(b"eXIf", b"nonsense"), False),
        (webp_with_bad_exif, False),
        (tiff_with_bad_entry, True),
        (tiff_that_reaches_beyond_its_end, True),
    ],
)
def test_damaged_metadata_never_cost_a_sound_image(tmp_path: Path, write: Callable, is_turned: bool) -> None:
    write(tmp_path / "a.image")
    decoded = decode(tmp_path / "a.image")
    expected = np.rot90(RAMP, -1) if is_turned else RAMP
    assert np.asarray(decoded.image).shape == expected.shape
    assert np.abs(np.asarray(decoded.image).astype(int) - expected).mean() < 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_random_damage_to_exif_data_never_costs_an_image(kind: str) -> None:
    rng, image = np.random.default_rng(0), Image.fromarray(RAMP)
    sound = exif(TURNED, (0x10F, 2, 4, b"abc\0"), (0x11A, 5, 1, None), extra=struct.pack("<II", 72, 1))
    for _ in range(40):
        buffer, block = io.BytesIO(), bytearray(sound)
        for at in rng.integers(6, len(block), rng.integers(1, 12)):
            block[at] = rng.integers(256)
        options = {"lossless": True} if kind == "WEBP" else {}
        if kind == "TIFF":
            image.save(buffer, kind, tiffinfo={0x112: 6, 0x10F: "maker", 0x132: "2020:01:01", 34675: b"icc"})
            content = bytearray(buffer.getvalue())
            for tag in (0x112, 0x10F, 0x132, 34675):
                at = content.index(struct.pack("<H", tag), 8)
                content[at + rng.integers(2, 12)] = rng.integers(256)
        else:
            image.save(buffer, kind, exif=bytes(block), **options)
            content = buffer.getvalue()
        assert sorted(decode(bytes(content)).image.size) == [30, 40]


def test_a_remark_says_that_metadata_were_damaged(tmp_path: Path) -> None:
    root = fill(tmp_path / "files", "a.png")
    png_with(b"tEXt", b"note\0text", checksum=7)(root / "b.png")
    data = load_dataset("image_folder", path=str(root), size=4)
    (named,) = data.reading.left_out[METADATA]
    assert named.startswith("b.png: its metadata are damaged") and len(data) == 2
    card = prepare(parts(root), tmp_path / "out", ImageTransform(4), DATASET_INFO["image_folder"], workers=1)
    assert card["parts"]["all"]["damaged_metadata"] == {"count": 1, "first": [named]}
    assert "b.png: its metadata are damaged" in (tmp_path / "out" / "README.md").read_text()


# Unreadable images


def test_reading_tolerates_as_many_unreadable_images_as_preparing(tmp_path: Path) -> None:
    root = fill(tmp_path / "files", *(f"{kind}/{k}.png" for kind in "ab" for k in range(10)))
    (root / "a/3.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    data = load_dataset("image_folder", path=str(root), size=4, max_unreadable=0.05)
    assert data.class_counts.tolist() == [9, 10]
    (named,) = data.reading.left_out[UNREADABLE]
    assert named == "a/3.png: Pillow does not recognise its format" and any(
        "a/3.png" in line for line in data.reading.lines
    )
    card = prepare(
        parts(root), tmp_path / "out", ImageTransform(4), DATASET_INFO["image_folder"], workers=1, max_unreadable=0.05
    )
    assert card["parts"]["all"]["sha256"] == data.sha256
    with pytest.raises(
        DuetError, match=r"1 of 20 images cannot be read, more than data\.max_unreadable=0\.04.*a/3\.png"
    ):
        load_dataset("image_folder", path=str(root), size=4, max_unreadable=0.04)


def test_a_class_is_not_lost_because_none_of_its_images_can_be_read(tmp_path: Path) -> None:
    root = fill(tmp_path / "files", *(f"a/{k}.png" for k in range(20)), "b/1.png")
    (root / "b/1.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(DuetError, match="none of the images of class b can be read"):
        load_dataset("image_folder", path=str(root), size=4, max_unreadable=0.5)
    with pytest.raises(DuetError, match="none of the images of class b can be read"):
        prepare(
            parts(root), tmp_path / "out", ImageTransform(4), DATASET_INFO["image_folder"], workers=1,
            max_unreadable=0.5,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_parts_with_different_classes_are_not_joined(tmp_path: Path) -> None:
    root = fill(tmp_path / "files", "train/a/1.png", "train/b/1.png", "test/1.png")
    with pytest.raises(DuetError, match="parts of files have different classes; choose one of train, test"):
        load_dataset("image_folder", path=str(root), size=4, part="all")
    assert load_dataset("image_folder", path=str(root), size=4, part="test").class_names == ("unlabelled",)


def test_classes_are_selected_in_the_parts_that_have_them(tmp_path: Path) -> None:
    root = fill(tmp_path / "files", "train/a/1.png", "train/b/1.png", "val/a/1.png", "test/1.png")
    chosen = only_classes(parts(root), ["b", "a"])
    assert {part: source.class_names for part, source in chosen.items()} == {
        "train": ("b", "a"),
        "validation": ("b", "a"),
    }
    assert list(only_classes(parts(root), [1])) == ["train"]


def test_a_prepared_data_set_is_no_folder_of_images(tmp_path: Path) -> None:
    root = fill(tmp_path / "files", "a/1.png")
    prepare(parts(root), tmp_path / "out", ImageTransform(4), DATASET_INFO["image_folder"], workers=1)
    with pytest.raises(DuetError, match=r"is a prepared data set, which data=store data\.options\.directory="):
        parts(tmp_path / "out")
    with pytest.raises(DuetError, match=r"data\.max_unreadable: 2 was given"):
        load_dataset("image_folder", path=str(root), size=4, max_unreadable=2)
    (tmp_path / "pets.zip").write_bytes(b"PK")
    with pytest.raises(DuetError, match=r"pets\.zip' is not a folder; data=zip reads it"):
        parts(tmp_path / "pets.zip")


def test_a_reading_keeps_few_of_many_names_and_counts_all(tmp_path: Path) -> None:
    root = fill(tmp_path / "files", "a/1.png")
    for k in range(250):
        (root / "a" / f"{k}.xml").touch()
    data = load_dataset("image_folder", path=str(root), size=4)
    (kind,) = data.reading.left_out
    assert (data.reading.counts[kind], len(data.reading.left_out[kind])) == (250, 100)
    assert data.reading.lines == (f"left out: {kind}: 250 (a/0.xml, a/1.xml, a/2.xml, and 247 more)",)
    more = data.reading.with_left_out(kind, ["b.xml"])
    assert more.counts[kind] == 251 and more.plain["left_out"][kind]["count"] == 251
    assert data.select_classes(["a"]).reading == data.reading
