"""Fréchet distance, the judge of digits, nearest neighbours and spread."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist, pdist
from sklearn.svm import SVC

from diffusion_core.data.digits import digits
from diffusion_core.errors import DuetError
from diffusion_core.metrics.digits import DigitsJudge, fit_judge
from diffusion_core.metrics.frechet import frechet_distance
from diffusion_core.metrics.nearest import nearest, spread


def whitened(n: int, d: int, seed: int) -> np.ndarray:
    """Features whose mean is exactly 0 and whose covariance is exactly 1."""
    x = np.random.default_rng(seed).standard_normal((n, d))
    x -= x.mean(axis=0)
    return np.linalg.qr(x)[0] * np.sqrt(n - 1)


# Fréchet distance


@given(st.floats(-5, 5), st.floats(0.01, 5), st.floats(0.01, 5))
def test_in_one_dimension_it_is_the_distance_of_mean_and_deviation(mean, deviation_a, deviation_b):
    a, b = whitened(20, 1, 0) * deviation_a + mean, whitened(31, 1, 1) * deviation_b
    expected = mean**2 + (deviation_a - deviation_b) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_with_commuting_covariances_it_is_the_distance_of_deviations():
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    first, second, shift = rng.uniform(0, 3, 6), rng.uniform(0, 3, 6), rng.standard_normal(6)
    a, b = whitened(50, 6, 1) * first @ turn, whitened(70, 6, 2) * second @ turn + shift
    expected = np.sum(shift**2) + np.sum((first - second) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_it_is_the_formula_with_matrix_roots():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((40, 5)) @ rng.standard_normal((5, 5))
    b = rng.standard_normal((60, 5)) @ rng.standard_normal((5, 5)) + rng.standard_normal(5)
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = np.real(sqrtm(cov_a @ cov_b))
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("n", [2, 5, 200])
def test_a_set_is_at_no_distance_from_itself_in_any_order(n):
    a = np.random.default_rng(n).standard_normal((n, 12)) * np.arange(12)
    scale = np.sum(a**2) / n
    assert 0 <= frechet_distance(a, a) < 1e-12 * scale
    assert 0 <= frechet_distance(a, a[::-1]) < 1e-12 * scale


def test_rotation_and_a_common_shift_change_nothing_and_scale_is_squared():
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((30, 7)), rng.standard_normal((25, 7)) * 2 + 1
    turn = np.linalg.qr(rng.standard_normal((7, 7)))[0]
    plain = frechet_distance(a, b)
    assert frechet_distance(a @ turn + 5, b @ turn + 5) == pytest.approx(plain, rel=1e-10)
    assert frechet_distance(3 * a, 3 * b) == pytest.approx(9 * plain, rel=1e-10)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((1, 3)), np.zeros((5, 3)), "features a .* at least 2 samples"),
        (np.zeros((5, 3)), np.zeros(5), "features b"),
        (np.zeros((5, 3)), np.zeros((5, 4)), "3 and 4"),
        (np.full((5, 3), np.nan), np.zeros((5, 3)), "finite"),
    ],
)
def test_features_that_do_not_fit_are_refused(a, b, message):
    with pytest.raises(DuetError, match=message):
        frechet_distance(a, b)


# The judge of digits


@pytest.fixture(scope="module")
def judge() -> DigitsJudge:
    return fit_judge()


def test_the_judge_knows_digits_it_has_not_seen(judge):
    held_out = digits(part="held_out")
    assert judge.accuracy == pytest.approx(358 / 360, abs=1.5 / 360)
    assert judge.agreement(held_out.images, held_out.labels).rate == judge.accuracy
    train = digits(part="train")
    assert judge.gamma == pytest.approx(SVC(gamma="scale").fit(train.images.reshape(-1, 64) / 255, train.labels)._gamma)


def test_agreement_counts_what_was_asked_and_what_was_seen(judge):
    data = digits(part="train")
    wanted = (data.labels + (data.labels == 3)) % 10  # ask for a 4 where a 3 is shown
    agreement = judge.agreement(data.images, wanted)
    counts = np.bincount(data.labels, minlength=10)
    assert agreement.confusion[4, 3] == counts[3] and agreement.confusion.sum() == len(data)
    assert agreement.rate == pytest.approx(1 - counts[3] / len(data))
    assert np.isnan(agreement.per_class[3])
    assert agreement.per_class[4] == pytest.approx(counts[4] / (counts[3] + counts[4]))
    np.testing.assert_array_equal(np.delete(agreement.per_class, [3, 4]), 1)


def test_labels_by_chance_agree_by_chance(judge):
    data = digits()
    shuffled = np.random.default_rng(0).permutation(data.labels)
    assert judge.agreement(data.images, shuffled).rate == pytest.approx(0.1, abs=0.035)  # five deviations


def test_the_size_of_the_digits_does_not_matter(judge):
    small, large = digits().images[:50], digits(size=32).images[:50]
    np.testing.assert_array_equal(judge.features(small), judge.features(large))
    np.testing.assert_array_equal(judge.predict(small), judge.predict(large))


def test_features_are_the_kernel_to_the_landmarks(judge):
    images = digits(part="held_out").images
    distances = cdist(images.reshape(-1, 64) / 255, judge.landmarks)
    np.testing.assert_allclose(judge.features(images), np.exp(-judge.gamma * distances**2), rtol=1e-12)
    train = digits(part="train")
    rows = nearest((judge.landmarks * 255).round().astype(np.uint8).reshape(-1, 8, 8, 1), train.images)
    np.testing.assert_array_equal(rows[1], 0)
    np.testing.assert_array_equal(train.labels[rows[0]], np.repeat(np.arange(10), 10))


def test_the_digits_frechet_tells_real_digits_from_gaussians_of_each_class(judge):
    data = digits()
    assert judge.frechet(data.images) < 1e-9
    rng = np.random.default_rng(0)
    fakes = []
    for k in range(10):
        x = data.images[data.labels == k].reshape(-1, 64)
        fakes.append(rng.multivariate_normal(x.mean(axis=0), np.cov(x.T), 90))
    fakes = np.clip(np.round(np.concatenate(fakes)), 0, 255).astype(np.uint8).reshape(-1, 8, 8, 1)
    floor = judge.floor(900)
    assert 0 < floor < judge.floor(100)
    assert judge.frechet(fakes) > 5 * floor
    assert judge.frechet(data.images[data.labels != 3]) > 2 * floor
    assert judge.floor(seed=1) != floor == judge.floor()


@pytest.mark.parametrize(
    "samples",
    [np.zeros((2, 12, 12, 1), np.uint8), np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 8, 1))],
    ids=["size", "colour", "type"],
)
def test_samples_that_are_no_digits_are_refused(judge, samples):
    with pytest.raises(DuetError, match="multiple of 8"):
        judge.predict(samples)


@pytest.mark.parametrize("labels", [[0, 10], [-1, 0], [0], [0.0, 1.0]])
def test_labels_that_are_no_digits_are_refused(judge, labels):
    with pytest.raises(DuetError, match=r"2 whole numbers in 0\.\.9"):
        judge.agreement(digits().images[:2], labels)


# Nearest neighbours and spread


@pytest.mark.parametrize("block", [1, 3000, 1 << 25])
def test_nearest_is_the_closest_of_all_in_blocks_of_any_size(block, monkeypatch):
    monkeypatch.setattr("diffusion_core.metrics.nearest._BLOCK_BYTES", block)
    rng = np.random.default_rng(0)
    samples, train = rng.integers(0, 256, (9, 3, 3, 2), np.uint8), rng.integers(0, 256, (23, 3, 3, 2), np.uint8)
    samples[4], train[20] = train[7], train[7]
    distances = cdist(samples.reshape(9, -1) / 255, train.reshape(23, -1) / 255)
    indices, values = nearest(samples, train)
    np.testing.assert_array_equal(indices, distances.argmin(axis=1))
    np.testing.assert_allclose(values, distances.min(axis=1), rtol=1e-12)
    assert indices[4] == 7 and values[4] == 0


def test_spread_is_the_root_mean_square_over_all_pairs():
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1), np.uint8)
    labels = np.array([0] * 12 + [1] * 7 + [2])
    result = spread(images, labels, 4)
    for k in (0, 1):
        pairs = pdist(images[labels == k].reshape(-1, 16) / 255)
        assert result[k] == pytest.approx(np.sqrt(np.mean(pairs**2)), rel=1e-12)
    assert np.isnan(result[2:]).all()


def test_pictures_of_two_shapes_are_not_compared():
    with pytest.raises(DuetError, match=r"\(4, 4, 1\) and .*\(5, 5, 1\)"):
        nearest(np.zeros((2, 4, 4, 1), np.uint8), np.zeros((2, 5, 5, 1), np.uint8))
    with pytest.raises(DuetError, match="samples: float64"):
        nearest(np.zeros((2, 4, 4, 1)), np.zeros((2, 4, 4, 1), np.uint8))
    with pytest.raises(DuetError, match="labels"):
        spread(np.zeros((2, 4, 4, 1), np.uint8), [0], 1)
