"""Samples as image files, folders of images to judge, class ids of two sets, and published statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_core.common.errors import DuetError
from diffusion_core.metrics.evaluate import evaluate, random_sets
from diffusion_core.metrics.files import align_labels, join, read_sample_set, write_statistics
from diffusion_core.metrics.frechet import frechet_distance
from diffusion_core.metrics.image_files import check_image_files, read_image_files, write_image_files
from diffusion_core.metrics.metric import FeatureKind, SampleSet

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 6, 6, 3), np.uint8)
NAMES = ("T-shirt/top", "50% off", "..", "a b.", "caf\u00e9 ~", "")


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_are_read_back_from_their_files_with_their_classes(tmp_path: Path, channels: int) -> None:
    images, labels = IMAGES[..., :channels], np.arange(12) % 5
    write_image_files(tmp_path / "samples", images, labels, dict(enumerate(NAMES)))
    assert (tmp_path / "samples" / "T-shirt%2Ftop" / "00005.png").is_file()
    found = read_sample_set(tmp_path / "samples")
    assert set(found.classes) == set(NAMES) - {""} and found.remarks == ()
    order = np.lexsort((np.arange(12), [found.classes.index(NAMES[k]) for k in labels]))
    np.testing.assert_array_equal(found.arrays["images"], images[order])
    assert [found.classes[k] for k in found.arrays["labels"]] == [NAMES[k] for k in labels[order]]
    aligned, remark = align_labels(found, SampleSet({"labels": labels}, {}, classes=NAMES))
    assert remark is None
    np.testing.assert_array_equal(aligned.arrays["labels"], labels[order])


def test_samples_without_classes_are_files_in_their_order(tmp_path: Path) -> None:
    write_image_files(tmp_path / "samples", IMAGES, np.zeros(12, int))
    assert sorted(file.name for file in (tmp_path / "samples").iterdir()) == [f"{k:05d}.png" for k in range(12)]
    found = read_sample_set(tmp_path / "samples")
    np.testing.assert_array_equal(found.arrays["images"], IMAGES)
    assert "labels" not in found.arrays


def test_other_files_are_never_overwritten(tmp_path: Path) -> None:
    write_image_files(tmp_path / "samples", IMAGES, np.zeros(12, int))
    write_image_files(tmp_path / "samples", IMAGES[:3], np.zeros(3, int))  # drawn again after an interruption
    assert len(read_sample_set(tmp_path / "samples")) == 3
    (tmp_path / "samples" / "notes.txt").write_text("mine")
    for call in (
        lambda: write_image_files(tmp_path / "samples", IMAGES, np.zeros(12, int)),
        lambda: check_image_files(tmp_path / "samples"),
    ):
        with pytest.raises(DuetError, match="exists already and is left as it is"):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["samples"]
    check_image_files(tmp_path / "new")


def test_the_number_judged_is_the_number_in_the_folder_or_the_reading_says_why(tmp_path: Path) -> None:
    for k, suffix in enumerate((".png", ".JPG", ".jfif", ".webp", "", ".bmp", ".gif", ".tif")):
        formats = {"": "PNG", ".JPG": "JPEG", ".jfif": "JPEG"}
        Image.fromarray(IMAGES[k]).save(tmp_path / f"{k}{suffix}", format=formats.get(suffix))
    Image.fromarray(IMAGES[8, ..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(IMAGES[9]).convert("RGBA").save(tmp_path / "clear.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "Thumbs.db").write_text("ignored")
    found = read_image_files(tmp_path)
    assert found.images.shape == (10, 6, 6, 3) and found.labels is None
    np.testing.assert_array_equal(found.images[0], IMAGES[0])
    grey = np.repeat(IMAGES[8][..., :1], 3, axis=2)
    assert any(np.array_equal(image, grey) for image in found.images)
    assert any("notes.txt" in line for line in found.reading.lines) and len(found.reading.lines) == 2
    (tmp_path / "10.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DuetError, match=r"1 of 11 images cannot be read.*10\.png"):
        read_image_files(tmp_path)
    tolerated = read_sample_set(tmp_path, max_unreadable=0.1)
    assert len(tolerated) == 10 and any("10.png" in line for line in tolerated.remarks)
    assert tolerated.facts["left_out"] == {"unreadable images": 1}


def test_parts_are_refused_and_unclear_folders_are_judged_without_labels(tmp_path: Path) -> None:
    for folder in ("split/train/a", "split/train/b", "split/test/a", "unclear/x/a", "unclear/y/a"):
        (tmp_path / folder).mkdir(parents=True)
        Image.fromarray(IMAGES[0]).save(tmp_path / folder / "0.png")
    with pytest.raises(DuetError, match=r"holds the parts train, test; .*data\.options\.part=PART"):
        read_sample_set(tmp_path / "split")
    unclear = read_sample_set(tmp_path / "unclear")
    assert len(unclear) == 2 and "labels" not in unclear.arrays and "without labels" in unclear.remarks[0]


# Class ids


def labelled(labels: list[int], *classes: str) -> SampleSet:
    return SampleSet({"labels": np.array(labels)}, {"count": len(labels)}, classes=classes)


@pytest.mark.parametrize(
    ("samples", "reference", "expected"),
    [
        (labelled([1, 2], "", "cat", "dog"), labelled([0, 1], "cat", "dog"), [0, 1]),  # label 0 is "no class"
        (labelled([0, 1], "dog", "cat"), labelled([0, 1, 2], "cat", "cow", "dog"), [2, 0]),
        (labelled([0, 1], "class 3", "class 10"), labelled([3, 10]), [3, 10]),
        (labelled([1, 2], "no class", "class 0", "class 1"), labelled([0, 1], "cat", "dog"), [0, 1]),
        (labelled([0, 1], "class 0", "class 7"), labelled([0, 1], "cat", "dog"), None),
        (labelled([0, 1], "cat", "dog"), labelled([0, 1]), [0, 1]),
        (labelled([0, 1]), labelled([0, 1], "cat", "dog"), [0, 1]),
        (labelled([0, 1], "cat", "bird"), labelled([0, 1], "cat", "dog"), None),
    ],
)
def test_class_ids_are_aligned_by_name(samples: SampleSet, reference: SampleSet, expected: list[int] | None) -> None:
    aligned, remark = align_labels(samples, reference)
    if expected is None:
        assert "labels" not in aligned.arrays and ("'bird'" in remark or "'class 7'" in remark)
    else:
        assert aligned.arrays["labels"].tolist() == expected and remark is None


def test_joined_sets_agree_about_their_classes() -> None:
    joined = join([labelled([0, 1], "cat", "dog"), labelled([0, 1], "ant", "dog")])
    assert joined.classes == ("ant", "cat", "dog") and joined.arrays["labels"].tolist() == [1, 2, 0, 2]
    assert join([labelled([0], "cat"), labelled([0])]).classes == ()


def test_agreement_counts_the_classes_of_a_part_that_lacks_the_last_one() -> None:
    labels, probabilities = np.array([0, 1, 2, 0, 1, 2]), np.eye(3)[[0, 1, 2, 0, 1, 1]]
    reference = SampleSet({"labels": np.array([0, 1]), "class_count": np.array(3)}, {"name": "part"})
    samples = SampleSet({"labels": labels, "probabilities": probabilities}, {}, FeatureKind("my", {}))
    result = evaluate({"agreement": {}}, samples, random_sets(6, 3, 0), reference)
    assert result.numbers[0].value == pytest.approx(5 / 6)


# Published statistics

FEATURES = RNG.normal(size=(200, 5)) @ RNG.normal(size=(5, 5))
FAKE = RNG.normal(size=(60, 5))


def test_the_distance_to_statistics_is_that_to_the_features(tmp_path: Path) -> None:
    write_statistics(tmp_path / "stats.npz", {"features": FEATURES})
    reference, kind = read_sample_set(tmp_path / "stats.npz"), FeatureKind("my", {}, is_published=True)
    assert "mean and covariance of 5 features" in reference.remarks[0]
    samples = SampleSet({"features": FAKE, "images": RNG.integers(0, 256, (60, 4, 4, 1), np.uint8)}, {}, kind)
    result = evaluate({"frechet": {}, "kernel": {}, "colour": {}}, samples, random_sets(60, 3, 0), reference)
    (number,) = result.numbers
    assert number.name == "FID"
    assert number.value == pytest.approx(frechet_distance(FAKE, FEATURES), rel=1e-9)
    assert set(result.skipped) == {"kernel", "colour"}
    assert all("of the reference" in reason or "features" in reason for reason in result.skipped.values())


def test_statistics_remember_their_feature_network(tmp_path: Path) -> None:
    kind, other = FeatureKind("my", {"layer": 1}), FeatureKind("my", {"layer": 2})
    source = {"name": "birds", "count": 200, "sha256": "0" * 64}
    write_statistics(tmp_path / "stats.npz", {"features": FEATURES, "spatial": FAKE}, kind, source)
    reference = read_sample_set(tmp_path / "stats.npz")
    assert reference.kind == kind and reference.facts == source | {"statistics": {"mu": 5, "mu_s": 5}}
    sets = random_sets(60, 3, 0)
    same, different = (SampleSet({"features": FAKE, "spatial": FAKE}, {}, one) for one in (kind, other))
    numbers = evaluate({"frechet": {}, "spatial": {}}, same, sets, reference).numbers
    assert numbers[1].value == pytest.approx(0, abs=1e-9)
    with pytest.raises(DuetError, match="they must be the same"):
        evaluate({"frechet": {}}, different, sets, reference)


@pytest.mark.parametrize(
    ("mu", "sigma", "message"),
    [
        (np.zeros(3), np.eye(4), "shapes"),
        (np.zeros((3, 3)), np.eye(3), "shapes"),
        (np.array([0, np.nan, 0]), np.eye(3), "not finite"),
        (np.zeros(3), np.full((3, 3), np.inf), "not finite"),
        (np.zeros(3), np.triu(np.ones((3, 3))), "not symmetric"),
        (np.zeros(3), np.diag([1.0, 1.0, -1.0]), "eigenvalue"),
        (np.zeros(3), None, "belong together"),
    ],
)
def test_invalid_statistics_are_refused(tmp_path: Path, mu: np.ndarray, sigma: np.ndarray, message: str) -> None:
    np.savez(tmp_path / "stats.npz", mu=mu, **({} if sigma is None else {"sigma": sigma}))
    with pytest.raises(DuetError, match=message):
        read_sample_set(tmp_path / "stats.npz")


def test_statistics_beside_images_are_named_as_unused(tmp_path: Path) -> None:
    np.savez(tmp_path / "reference.npz", arr_0=IMAGES, mu=np.zeros(3), sigma=np.eye(3))
    found = read_sample_set(tmp_path / "reference.npz")
    assert set(found.arrays) == {"images"} and "its images are used, and not its mu and sigma" in found.remarks[0]
