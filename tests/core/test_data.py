"""Pixels, data sets and the order of the data."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.data import Dataset, Loader, from_uint8, load_dataset, to_uint8
from diffusion_core.data.store import open_store, save_store


def toy(n: int = 13, size: int = 4, channels: int = 3) -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (n, size, size, channels), np.uint8)
    return Dataset(images, np.arange(n) % 3, ("a", "b", "c"), "toy")


# Pixels


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_round_trip_restores_every_pixel(dtype):
    u8 = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    x = from_uint8(u8, dtype)
    assert x.dtype == dtype and x.shape == u8.shape
    np.testing.assert_array_equal(to_uint8(x), u8)


def test_ends_of_the_range_are_exact():
    np.testing.assert_array_equal(from_uint8(np.array([0, 255], np.uint8)), [-1.0, 1.0])


@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 1.0), [0, 1], (0, 255), (-0.5, 0.5)])
@given(st.floats(-3, 3))
def test_to_uint8_is_the_nearest_pixel(value_range, x):
    low, high = value_range
    pixel = int(to_uint8(np.array(x), value_range))
    distance = np.abs((min(max(x, low), high) - low) / (high - low) * 255 - np.arange(256))
    assert distance[pixel] <= distance.min() + 1e-12


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_round_trip_in_zero_to_one_restores_every_pixel(dtype):
    u8 = np.arange(256, dtype=np.uint8)
    x = from_uint8(u8, dtype, (0.0, 1.0))
    assert x.dtype == dtype and (x[0], x[255]) == (0, 1)
    np.testing.assert_array_equal(x, (u8 / 255).astype(dtype))
    np.testing.assert_array_equal(to_uint8(x, (0.0, 1.0)), u8)
    # Both directions need the same range: another range gives other images.
    assert not np.array_equal(to_uint8(x), u8)


def test_default_range_equals_the_formula_bit_for_bit():
    u8 = np.arange(256, dtype=np.uint8)
    for dtype in (np.float64, np.float32, np.float16):
        np.testing.assert_array_equal(from_uint8(u8, dtype), (np.arange(256) / 127.5 - 1.0).astype(dtype))
    x = np.random.default_rng(0).uniform(-1.1, 1.1, 10_000)
    np.testing.assert_array_equal(to_uint8(x), np.clip(np.floor((x + 1.0) * 127.5 + 0.5), 0, 255).astype(np.uint8))


@pytest.mark.parametrize("value_range", [(1.0, -1.0), (0, 0), (0, 1, 2), 1.0, None, (0, np.inf), (np.nan, 1), "01x"])
def test_invalid_value_range_is_refused(value_range):
    for use in (
        lambda: from_uint8(np.zeros(1, np.uint8), value_range=value_range),
        lambda: to_uint8(np.zeros(1), value_range),
        lambda: Loader(toy(), seed=0, value_range=value_range),
    ):
        with pytest.raises(DuetError, match=r"process.value_range: .* was given; it must be two numbers, low and high"):
            use()


def test_half_is_rounded_up_and_values_outside_are_clipped():
    # The one value in [-1, 1] that lies exactly between two pixels is 0, at 127.5.
    x = np.array([0.0, -(2.0**-50), -np.inf, np.inf, -1.01, 1.01])
    np.testing.assert_array_equal(to_uint8(x), [128, 127, 0, 255, 0, 255])


def test_invalid_pixels_are_refused():
    with pytest.raises(DuetError, match="1 of 2 values are NaN"):
        to_uint8(np.array([0.0, np.nan]))
    with pytest.raises(DuetError, match=r"must be numbers in \[0, 1\]"):
        to_uint8(np.array([0.0, np.nan]), (0, 1))
    with pytest.raises(DuetError, match="float64"):
        from_uint8(np.zeros(3))


# Data sets


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((13, 4, 4, 3), np.int64)}, "uint8, float32 or float64"),
        ({"images": np.zeros(13, np.uint8)}, r"shape \(13,\)"),
        ({"value_range": (0, 1)}, "bytes are 0 to 255"),
        ({"images": np.zeros((13, 4)), "value_range": (1, 0)}, "data.options.value_range: "),
        ({"conditions": np.zeros((12, 2))}, r"\(13, D\)"),
        ({"conditions": np.full((13, 2), np.nan)}, "NaN"),
        ({"conditions": np.zeros((13, 2)), "condition_names": ("a", "a")}, "all different"),
        ({"condition_names": ("a",)}, "without conditions"),
        ({"images": np.zeros((0, 4, 4, 1), np.uint8), "labels": np.zeros(0, int)}, "at least 1"),
        ({"labels": np.zeros(12, int)}, r"\(13,\)"),
        ({"labels": np.zeros(13)}, "integers"),
        ({"labels": np.full(13, 3)}, r"0\.\.2"),
        ({"labels": np.full(13, -1)}, r"0\.\.2"),
        ({"class_names": ("a", "b", "a")}, "all different"),
    ],
)
def test_invalid_data_set_is_refused(change, message):
    good = {"images": toy().images, "labels": toy().labels, "class_names": ("a", "b", "c"), "name": "toy"}
    Dataset(**good)
    with pytest.raises(DuetError, match=message):
        Dataset(**{**good, **change})


def test_hash_depends_on_the_content_alone():
    data = toy()
    same = Dataset(np.asfortranarray(data.images), data.labels.astype(np.int64), ["a", "b", "c"], "other name")
    assert data.sha256 == same.sha256
    pixels, labels = data.images.copy(), data.labels.copy()
    pixels[-1, -1, -1, -1] ^= 1
    labels[-1] = (labels[-1] + 1) % 3
    others = [
        Dataset(pixels, data.labels, data.class_names, "toy"),
        Dataset(data.images, labels, data.class_names, "toy"),
        Dataset(data.images, data.labels, ("a", "b", "d"), "toy"),
        Dataset(data.images.reshape(52, 2, 2, 3)[:13], data.labels, data.class_names, "toy"),
    ]
    assert len({data.sha256, *(other.sha256 for other in others)}) == 5


def test_hash_does_not_depend_on_the_block_size(monkeypatch):
    whole = toy().sha256
    monkeypatch.setattr("diffusion_core.data.dataset._HASH_BYTES", 100)
    assert toy().sha256 == whole


@given(st.floats(0.05, 0.95), st.integers(0, 1000))
def test_a_split_is_a_partition(fraction, seed):
    data = Dataset(np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1), np.arange(40) % 4, tuple("abcd"), "count")
    first, second = data.split(fraction, seed)
    assert len(first) == round(40 * fraction)
    values = np.concatenate([first.images.ravel(), second.images.ravel()])
    np.testing.assert_array_equal(np.sort(values), np.arange(40))
    for part in (first, second):
        np.testing.assert_array_equal(part.labels, part.images.ravel() % 4)


def test_split_depends_on_its_seed():
    splits = [toy(40).split(0.5, seed)[0].sha256 for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 2.0, 0.01, float("nan")])
def test_a_split_with_an_empty_part_is_refused(fraction):
    with pytest.raises(DuetError, match="fraction"):
        toy().split(fraction, 0)


@pytest.mark.parametrize("indices", [[], [13], [-1], [0.5], [[0]]])
def test_indices_outside_the_data_set_are_refused(indices):
    with pytest.raises(DuetError, match=r"0\.\.12"):
        toy().select(indices)


@pytest.mark.parametrize("classes", [[2, 0], ["c", "a"], ["c", 0], np.array([2, 0])])
def test_selected_classes_are_renumbered(classes):
    data = toy()
    part = data.select_classes(classes)
    kept = np.flatnonzero(data.labels != 1)
    assert (part.class_names, part.name) == (("c", "a"), "toy")
    np.testing.assert_array_equal(part.images, data.images[kept])
    # Each image has the class name that it had.
    assert [part.class_names[k] for k in part.labels] == [data.class_names[k] for k in data.labels[kept]]


def test_selecting_all_classes_in_order_changes_nothing():
    assert toy().select_classes([0, 1, 2]).sha256 == toy().select_classes(["a", "b", "c"]).sha256 == toy().sha256


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "must be a list of ids or names"),
        ("a", "'a' was given; it must be a list"),
        (1, "1 was given; it must be a list"),
        (["d"], r"class of data set 'toy': 'd' was given; it must be one of a, b, c"),
        ([3], r"class 3 was given; the class ids are 0\.\.2"),
        ([-1], "class -1 was given"),
        ([1.0], r"class 1\.0 was given"),
        ([True], "class True was given"),
        ([0, 1, "a"], r"class 'a' was given twice, among \[0, 1, 'a'\]"),
    ],
)
def test_invalid_classes_are_refused(classes, message):
    with pytest.raises(DuetError, match=message):
        toy().select_classes(classes)


def test_selecting_only_empty_classes_is_refused():
    data = Dataset(toy().images, np.zeros(13, int), ("a", "b"), "toy")
    with pytest.raises(DuetError, match="no image of class b"):
        data.select_classes(["b"])
    assert data.select_classes(["b", "a"]).labels.tolist() == [1] * 13


# The order


@pytest.mark.parametrize("flip", [False, True])
@given(start=st.integers(0, 60), size=st.integers(1, 40))
def test_any_batch_is_a_slice_of_the_sequence(flip, start, size):
    loader = Loader(toy(), seed=3, flip=flip)
    run, part = loader.batch(0, 100), loader.batch(start, size)
    for field in ("pixels", "labels", "indices", "epochs", "counters"):
        np.testing.assert_array_equal(getattr(part, field), getattr(run, field)[start : start + size])


@pytest.mark.parametrize("size", [7, 20])
def test_the_batch_size_does_not_change_the_sequence(size):
    loader = Loader(toy(), seed=5, flip=True)
    batches = [loader.batch(seen, size) for seen in range(0, 140, size)]
    run = loader.batch(0, 140)
    np.testing.assert_array_equal(np.concatenate([b.pixels for b in batches]), run.pixels)
    np.testing.assert_array_equal(np.concatenate([b.indices for b in batches]), run.indices)


def test_each_epoch_shows_every_item_once_in_a_new_order():
    run = Loader(toy(), seed=1).batch(0, 13 * 5)
    epochs = run.indices.reshape(5, 13)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(13), (5, 1)))
    np.testing.assert_array_equal(run.epochs, np.repeat(np.arange(5), 13))
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert not np.array_equal(run.indices, Loader(toy(), seed=2).batch(0, 13 * 5).indices)


def test_batch_holds_the_items_of_its_indices():
    data = toy()
    run = Loader(data, seed=1, dtype=np.float64).batch(4, 30)
    assert run.pixels.dtype == np.float64 and run.labels.dtype == np.int32
    np.testing.assert_array_equal(to_uint8(run.pixels), data.images[run.indices])
    np.testing.assert_array_equal(run.labels, data.labels[run.indices])


def test_items_with_a_deviation_are_drawn_anew_at_each_position(tmp_path):
    draw = np.random.default_rng(0)
    mean, std = draw.normal(size=(5, 2, 2, 3)).astype(np.float32), draw.uniform(0.1, 1, (5, 2, 2, 3)).astype(np.float32)
    data = Dataset(mean, np.zeros(5, int), ("a",), "latents", std=std)
    opened = open_store(save_store(data, tmp_path / "store"))
    assert opened.sha256 == data.sha256 != Dataset(mean, np.zeros(5, int), ("a",), "latents").sha256
    np.testing.assert_array_equal(opened.select([3, 1]).std, std[[3, 1]])
    batch = Loader(opened, seed=7, dtype=np.float64).batch(0, 10)
    eps = Stream(7, "data/posterior").normal(np.arange(10), (2, 2, 3))
    np.testing.assert_allclose(batch.pixels, mean[batch.indices] + std[batch.indices] * eps, rtol=1e-12)
    flipped = Loader(opened, seed=7, dtype=np.float64, flip=True).batch(0, 10).pixels
    mirrored = (mean[:, :, ::-1])[batch.indices] + (std[:, :, ::-1])[batch.indices] * eps
    is_mirrored = np.isclose(flipped, mirrored).all(axis=(1, 2, 3))
    np.testing.assert_allclose(flipped[~is_mirrored], batch.pixels[~is_mirrored])
    assert 0 < is_mirrored.sum() < 10
    for wrong, message in (({"std": std[:, :1]}, "std of float32 with shape"), ({"noise": std}, "pairs of noise")):
        with pytest.raises(DuetError, match=message):
            replace(data, **wrong)


def test_value_range_changes_only_the_values():
    plain = Loader(toy(), seed=1, flip=True, dtype=np.float64).batch(4, 30)
    other = Loader(toy(), seed=1, flip=True, dtype=np.float64, value_range=[0, 1]).batch(4, 30)
    np.testing.assert_allclose(other.pixels, (plain.pixels + 1) / 2, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(to_uint8(other.pixels, (0, 1)), to_uint8(plain.pixels))
    np.testing.assert_array_equal(other.indices, plain.indices)


def test_flips_mirror_about_half_of_the_images_drawn_again_in_each_epoch():
    plain = Loader(toy(), seed=1).batch(0, 1300).pixels
    flipped = Loader(toy(), seed=1, flip=True).batch(0, 1300)
    same = (flipped.pixels == plain).all(axis=(1, 2, 3))
    mirrored = (flipped.pixels == plain[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert 560 < mirrored.sum() < 740  # five standard deviations of 1300 fair coins
    for item in range(13):
        assert 0 < mirrored[flipped.indices == item].sum() < 100


@pytest.mark.parametrize(("seen", "size"), [(-1, 4), (0, 0)])
def test_invalid_batch_is_refused(seen, size):
    with pytest.raises(DuetError, match="at least"):
        Loader(toy(), seed=0).batch(seen, size)


# The digits and the registry


def test_digits_equal_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    data = load_dataset("digits")
    assert data.images.shape == (1797, 8, 8, 1) and data.class_names == tuple("0123456789")
    np.testing.assert_array_equal(np.round(data.images[..., 0] / 255 * 16), load_digits().images)
    np.testing.assert_array_equal(data.labels, load_digits().target)
    assert data.images.min() == 0 and data.images.max() == 255


def test_larger_digits_average_to_the_small_ones():
    small, large = load_dataset("digits"), load_dataset("digits", size=24)
    blocks = large.images.reshape(1797, 8, 3, 8, 3, 1)
    np.testing.assert_array_equal(blocks.mean(axis=(2, 4)), small.images)


def test_parts_of_the_digits_are_disjoint():
    parts = [load_dataset("digits", part=part) for part in ("train", "held_out", "all")]
    assert [len(part) for part in parts] == [1437, 360, 1797]
    rows = [sorted(map(bytes, part.images.reshape(len(part), 64))) for part in parts]
    assert sorted(rows[0] + rows[1]) == rows[2]
    assert all((np.bincount(part.labels) > 20).all() for part in parts)
    large = load_dataset("digits", size=16, part="held_out")
    np.testing.assert_array_equal(large.images[:, ::2, ::2], parts[1].images)


def test_load_dataset_selects_classes():
    ones = load_dataset("digits", classes=[1, "7"])
    whole = load_dataset("digits")
    np.testing.assert_array_equal(ones.images, whole.images[np.isin(whole.labels, [1, 7])])
    assert ones.class_names == ("1", "7") and set(ones.labels) == {0, 1}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digits", {"classes": ["ten"]}, "class of data set 'digits': 'ten' was given"),
        ("digit", {}, "Did you mean 'digits'"),
        ("digits", {"sise": 8}, "Did you mean 'size'"),
        ("digits", {"size": 12}, "multiple of 8"),
        ("digits", {"part": "test"}, "held_out"),
    ],
)
def test_an_unknown_data_set_or_option_is_refused(name, options, message):
    with pytest.raises(DuetError, match=message):
        load_dataset(name, **options)
