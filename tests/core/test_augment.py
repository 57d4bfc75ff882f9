"""The augmentation of EDM, local batches, and prefetching."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from diffusion_core.common.errors import DuetError
from diffusion_core.data import Dataset, ImageBatch, Loader
from diffusion_core.data.augment import augment, changes, warp
from diffusion_core.data.grain import Grain
from diffusion_core.data.prefetch import Prefetch
from diffusion_core.data.shapes import shapes
from diffusion_core.data.store import open_store, save_store
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import make_schedule
from diffusion_core.training.objective import Objective


def matrix(a: float, b: float, c: float, d: float, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    return np.array([[a, b, x], [c, d, y], [0.0, 0.0, 1.0]])


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(12, 12, 3))


def test_shifts_by_whole_pixels_are_exact(image):
    np.testing.assert_allclose(warp(image, np.eye(3)), image, atol=1e-14)
    np.testing.assert_allclose(warp(image, matrix(-1, 0, 0, 1)), image[:, ::-1], atol=1e-14)
    np.testing.assert_allclose(warp(image, matrix(1, 0, 0, -1)), image[::-1], atol=1e-14)
    # With y down, a rotation by +90 degrees moves the right side to the bottom.
    np.testing.assert_allclose(warp(image, matrix(0, -1, 1, 0)), np.rot90(image, -1), atol=1e-12)
    # By three pixels to the right and two up; the gap is filled by reflection without repeating the border.
    moved = warp(image, matrix(1, 0, 0, 1, 3 / 12, -2 / 12))
    padded = np.pad(image, ((2, 2), (3, 3), (0, 0)), mode="reflect")
    np.testing.assert_allclose(moved, padded[4:, :12], atol=1e-12)


def test_warping_equals_sampling_the_moved_coordinates():
    def scene(x, y):
        return np.stack([np.cos(5 * x + 2 * y), np.sin(3 * x - 4 * y)], axis=-1)

    axis = (np.arange(48) + 0.5) / 48 - 0.5
    x, y = np.meshgrid(axis, axis)
    rotation = matrix(np.cos(0.7), -np.sin(0.7), np.sin(0.7), np.cos(0.7))
    for move in (rotation, matrix(1.2, 0.1, -0.1, 1.1, 0.03, 0.05), matrix(0.9, 0, 0, 0.95)):
        old = np.linalg.inv(move) @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
        inside = (np.abs(old[:2]).max(axis=0) < 0.4).reshape(48, 48)
        expected = scene(*old[:2].reshape(2, 48, 48))
        np.testing.assert_allclose(warp(scene(x, y), move)[inside], expected[inside], atol=5e-3)


def test_shrinking_averages_and_keeps_a_constant_image(image):
    board = (np.indices((32, 32)).sum(axis=0) % 2 * 2.0 - 1.0)[..., None]
    assert np.abs(warp(board, matrix(0.5, 0, 0, 0.5))).max() < 0.15
    np.testing.assert_allclose(warp(np.full_like(image, 0.3), matrix(0.7, 0.2, -0.1, 1.3, 0.1, 0.2)), 0.3, atol=1e-12)


def test_label_describes_the_augmentation():
    matrices, labels = changes(np.arange(4000), 7, 0.3)
    larger, shift = 2.0 ** (0.2 * labels[:, 2]), labels[:, 7:] / 8
    np.testing.assert_allclose(matrices[:, :2, 2], shift, atol=1e-12)
    np.testing.assert_allclose(
        np.linalg.det(matrices), larger**2 * (1 - 2 * labels[:, 0]) * (1 - 2 * labels[:, 1]), rtol=1e-9
    )
    # Without anisotropic scaling and flips, the rest is a rotation by the label's angle and a scaling.
    plain = (labels[:, :2].sum(axis=1) == 0) & (np.abs(labels[:, 5:7]).sum(axis=1) == 0)
    assert 300 < plain.sum() < 3000
    cosine, sine = labels[plain, 3] + 1, labels[plain, 4]
    np.testing.assert_allclose(matrices[plain, 0, 0], larger[plain] * cosine, atol=1e-12)
    np.testing.assert_allclose(matrices[plain, 1, 0], -larger[plain] * sine, atol=1e-12)
    # Anisotropic scaling has the label's axis, with the factor b^a along it and b^-a across.
    only = (np.abs(labels[:, 5:7]).sum(axis=1) > 0) & (np.abs(labels[:, [0, 1, 2, 3, 4, 7, 8]]).sum(axis=1) == 0)
    amount = np.hypot(*labels[only, 5:7].T)
    along = labels[only, 5:7] / amount[:, None]
    values = np.einsum("ni, nij, nj -> n", along, matrices[only, :2, :2], along)
    np.testing.assert_allclose(np.abs(np.log2(values)) / 0.2, amount, rtol=1e-9)
    nothing = np.all(labels == 0, axis=1)
    assert np.all(matrices[nothing] == np.eye(3)) and nothing.sum() > 100


def test_each_change_has_its_probability():
    _, labels = changes(np.arange(20_000), 1, 0.12)
    changed = np.stack([labels[:, [k]].any(axis=1) for k in (0, 1, 2, 3, 5, 7)], axis=1).mean(axis=0)
    expected = np.array([0.5, 0.06, 0.12, 0.12, 0.12, 0.12])
    assert np.all(np.abs(changed - expected) < 5 * np.sqrt(expected * (1 - expected) / 20_000))
    for place in (2, 7, 8):
        drawn = labels[labels[:, place] != 0, place]
        assert abs(drawn.mean()) < 5 / np.sqrt(len(drawn)) and abs(drawn.std() - 1) < 5 / np.sqrt(2 * len(drawn))
    assert np.all(changes(np.arange(50), 1, 0.0)[1] == 0)


def assert_same(one: ImageBatch, other: ImageBatch) -> None:
    for name in ("pixels", "labels", "indices", "epochs", "counters", "features"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_array_equal(a, b)


def test_augmentation_is_a_function_of_the_position(image):
    loader = Loader(shapes(20, 16), seed=3, augment=0.5)
    batch = loader.batch(0, 30)
    assert batch.features.shape == (30, 9) and batch.features.dtype == batch.pixels.dtype == np.float32
    expected, labels = augment(Loader(shapes(20, 16), 3, dtype=np.float64).batch(0, 30).pixels, np.arange(30), 3, 0.5)
    np.testing.assert_array_equal(batch.pixels, expected.astype(np.float32))
    np.testing.assert_array_equal(batch.features, labels.astype(np.float32))
    assert_same(
        loader.batch(17, 5), ImageBatch(*(values[17:22] for values in vars(batch).values() if values is not None))
    )
    # Item 0 is augmented differently in the second epoch.
    again = np.flatnonzero(batch.indices == batch.indices[0])[1]
    assert np.any(batch.features[again] != batch.features[0])
    for value in (-0.1, 1.5):
        with pytest.raises(DuetError, match=r"data\.augment: .* must be a probability"):
            Loader(shapes(20, 16), 3, augment=value)


@pytest.mark.parametrize("group", [1, 2, 3, 7])
def test_local_batches_of_all_processes_form_the_batch(group):
    loader = Loader(shapes(13, 8), seed=0, flip=True, augment=0.2)
    whole = loader.batch(9, 10)
    parts = [loader.local_batch(9, 10, rank, group) for rank in range(group)]
    assert max(len(s.labels) for s in parts) - min(len(s.labels) for s in parts) <= 1
    assert_same(
        whole,
        ImageBatch(*(np.concatenate([vars(s)[f] for s in parts]) for f, v in vars(whole).items() if v is not None)),
    )
    for rank, processes in ((-1, 2), (2, 2), (0, 11), (0, 0)):
        with pytest.raises(DuetError, match="local batch: process"):
            loader.local_batch(9, 10, rank, processes)


def test_prefetching_processes_make_the_same_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("diffusion_core.data.store._SHARD_IMAGES", 5)
    store = open_store(save_store(shapes(12, 8), tmp_path / "store"))
    loader = Loader(store, seed=1, flip=True, augment=0.3)
    with Prefetch(loader, 1) as ahead:
        assert ahead.dtype == loader.dtype
        # In order, from the start again, and with another size, as after a resume.
        for seen, size in ((0, 4), (4, 4), (8, 4), (0, 4), (12, 3)):
            assert_same(ahead.batch(seen, size), loader.batch(seen, size))
            assert list(ahead._pending) == [(seen + size, size)]  # nothing else is pending
    with pytest.raises(DuetError, match=r"data\.workers: 0"):
        Prefetch(loader, 0)


def test_grain_makes_the_same_batches_or_is_refused():
    loader = Loader(shapes(12, 8), seed=1, flip=True, augment=0.3)
    if find_spec("grain") is None:  # it is optional
        with pytest.raises(DuetError, match=r"data\.loader: grain was given but is not installed"):
            Grain(loader, 0)
        return
    with Grain(loader, 2) as ahead:
        for seen, size in ((0, 4), (4, 4), (8, 4), (0, 4), (12, 3)):
            assert_same(ahead.batch(seen, size), loader.batch(seen, size))
            assert list(ahead._pending) == [(seen + size, size)]  # nothing else is pending


def test_worker_process_reopens_a_store_by_name(tmp_path, monkeypatch):
    import pickle  # as multiprocessing does; Duet stores nothing in pickles

    monkeypatch.setattr("diffusion_core.data.store._SHARD_IMAGES", 100)
    store = open_store(save_store(shapes(500, 32), tmp_path / "store"))
    sent = pickle.dumps(store)
    assert len(sent) < store.images.shape[0] * 32 * 32 * 3 / 100
    back = pickle.loads(sent)
    assert isinstance(back, Dataset) and all(isinstance(part, np.memmap) for part in back.images.parts)
    np.testing.assert_array_equal(back.images, store.images)


def test_training_batch_holds_the_augmentation_labels():
    process = Process(make_schedule("linear", T=10), "eps")
    objective = Objective(process, 0, features=9)
    images = Loader(shapes(20, 8), seed=0, augment=0.5).batch(0, 6)
    batch = objective.batch(images.pixels, images.labels, images.counters, features=images.features)
    np.testing.assert_array_equal(batch.features, images.features)
    assert batch.features.any()
    assert not objective.batch(images.pixels, images.labels, images.counters).features.any()
    with pytest.raises(DuetError, match=r"features: an array with shape \(6, 9\) was given for 6 images"):
        Objective(process, 0).batch(images.pixels, images.labels, images.counters, features=images.features)


# Rectangles

WIDE = np.random.default_rng(8).normal(size=(6, 10, 2))


def test_a_rectangle_is_turned_about_its_centre_and_moved_by_fractions_of_its_own_sides():
    turn, mirror, shift = np.diag([-1.0, -1.0, 1.0]), np.diag([-1.0, 1.0, 1.0]), np.eye(3)
    shift[:2, 2] = [2 / 10, -1 / 6]  # two columns to the right, one row up
    np.testing.assert_allclose(warp(WIDE, np.eye(3)), WIDE, atol=1e-12)
    np.testing.assert_allclose(warp(WIDE, mirror), WIDE[:, ::-1], atol=1e-12)
    np.testing.assert_allclose(warp(WIDE, turn), WIDE[::-1, ::-1], atol=1e-12)
    np.testing.assert_allclose(warp(WIDE, shift)[:-1, 2:], WIDE[1:, :-2], atol=1e-12)


def test_a_rectangle_is_turned_without_a_change_of_its_shape():
    # A line at 30 degrees, turned by -30 degrees, is horizontal: angles are those of pixels, whatever the sides.
    y, x = np.mgrid[:40, :80] - np.array([19.5, 39.5])[:, None, None]
    angle = np.pi / 6
    line = np.exp(-0.5 * ((y * np.cos(angle) - x * np.sin(angle)) / 2) ** 2)[..., None]
    back = np.array([[np.cos(-angle), -np.sin(-angle), 0], [np.sin(-angle), np.cos(-angle), 0], [0, 0, 1.0]])
    turned = warp(line, back)[:, 25:55, 0]
    np.testing.assert_allclose(turned.argmax(axis=0), 19.5, atol=0.5)
    np.testing.assert_allclose(turned, turned[:, :1].repeat(30, axis=1), atol=0.02)


def test_a_long_image_is_turned_as_a_wide_one_lying_on_its_side():
    matrices, _ = changes(np.arange(12), 0, 0.9)
    swap = np.array([[0, 1.0, 0], [1.0, 0, 0], [0, 0, 1.0]])
    for matrix in matrices:
        there = warp(WIDE, matrix)
        back = warp(WIDE.transpose(1, 0, 2), swap @ matrix @ swap).transpose(1, 0, 2)
        np.testing.assert_allclose(there, back, atol=1e-10)
