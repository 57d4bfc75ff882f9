"""The statistics of a data set equal those that NumPy computes from all of it at once."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_core.common.errors import DuetError
from diffusion_core.data import Dataset
from diffusion_core.data.shapes import shapes
from diffusion_core.data.survey import find_near_pairs, survey
from diffusion_core.images.resize import resize


@pytest.fixture
def data() -> Dataset:
    return shapes(60, 16, 3, seed=0)


def test_statistics_equal_those_of_all_images_at_once(data, monkeypatch):
    monkeypatch.setattr("diffusion_core.data.survey._BLOCK_BYTES", 5000)
    found = survey(data)
    x = data.images.astype(np.float64)
    np.testing.assert_allclose(found.mean, x.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.std, x.std(axis=(0, 1, 2)), rtol=1e-9)
    np.testing.assert_array_equal(found.counts, np.bincount(data.labels, minlength=6))
    for c in range(3):
        np.testing.assert_array_equal(found.histograms[c], np.bincount(data.images[..., c].ravel(), minlength=256))
    for k in range(6):
        np.testing.assert_allclose(found.class_means[k], x[data.labels == k].mean(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(found.thumbnails, resize(data.images, 8).reshape(60, -1))


def test_a_class_without_images_has_no_mean(data):
    found = survey(Dataset(data.images, np.zeros(60, int), ("a", "b"), "toy"), max_classes=2)
    assert found.counts.tolist() == [60, 0]
    assert np.isnan(found.class_means[1]).all() and np.isfinite(found.class_means[0]).all()
    assert len(survey(data, max_classes=2).class_means) == 2


def brute_force(first, second, max_distance):
    """Return every pair and its distance, one by one."""
    pairs = []
    for i, a in enumerate(first):
        for j, b in enumerate(first if second is None else second):
            distance = np.sqrt(np.mean((a.astype(float) - b) ** 2))
            if distance <= max_distance and (second is not None or i < j):
                pairs.append((distance, i, j))
    return sorted(pairs)


@pytest.mark.parametrize("max_distance", [0.0, 3.0, 40.0])
@pytest.mark.parametrize("between", [False, True])
def test_near_pairs_equal_a_brute_force_search(monkeypatch, max_distance, between):
    monkeypatch.setattr("diffusion_core.data.survey._BLOCK_ROWS", 7)
    rng = np.random.default_rng(0)
    first = rng.integers(100, 156, (30, 48), np.uint8)
    first[20] = first[3]
    first[21] = first[4] + 2
    second = rng.integers(100, 156, (17, 48), np.uint8) if between else None
    if between:
        second[[2, 9]] = first[[5, 6]]
        second[11] = first[8] + 3
    expected = brute_force(first, second, max_distance)
    assert len(expected) > 0
    for max_pairs in (1000, 3):
        found = find_near_pairs(first, second, max_distance, max_pairs)
        assert found.count == len(expected)
        np.testing.assert_allclose(found.distances, [d for d, _, _ in expected[:max_pairs]], atol=1e-9)
        np.testing.assert_array_equal(found.indices, [[i, j] for _, i, j in expected[:max_pairs]])


def test_brightened_and_resized_copies_are_near(data):
    lighter = np.clip(data.images[:5].astype(int) + 2, 0, 255).astype(np.uint8)
    large = shapes(60, 32, 3, seed=0)
    first = survey(data).thumbnails
    for copy in (resize(lighter, 8).reshape(5, -1), survey(large).thumbnails[:5]):
        found = find_near_pairs(first, copy, 4.0)
        assert {(k, k) for k in range(5)} <= set(map(tuple, found.indices.tolist()))


def test_thumbnails_of_different_shapes_are_refused():
    with pytest.raises(DuetError, match=r"\(2, 64\) and \(2, 192\)"):
        find_near_pairs(np.zeros((2, 64), np.uint8), np.zeros((2, 192), np.uint8), 1.0)
