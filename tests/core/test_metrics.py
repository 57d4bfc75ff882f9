"""Every metric against closed forms, definitions and hand-made sets; the bundled digits network."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist, pdist
from scipy.stats import norm, wasserstein_distance

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.data.digits import digits
from diffusion_core.metrics.agreement import agreement
from diffusion_core.metrics.blocks import neighbours
from diffusion_core.metrics.classifier import told_apart
from diffusion_core.metrics.digits import SHA256, WEIGHTS, layers
from diffusion_core.metrics.digits_network import SHAPES, backward, forward
from diffusion_core.metrics.evaluate import METRICS
from diffusion_core.metrics.frechet import fit_gaussian, frechet_distance
from diffusion_core.metrics.kernel import kernel_distance
from diffusion_core.metrics.metric import Arrays, MetricResult, NotApplicable
from diffusion_core.metrics.nearest import nearest, spread
from diffusion_core.metrics.score import score
from diffusion_core.statistics.proportion import wilson_interval


def measured(metric: str, samples: Arrays, reference: Arrays, **options: Any) -> MetricResult:
    return METRICS[metric].fit(reference, 0, **options)(samples)


def whitened(n: int, d: int, seed: int) -> np.ndarray:
    """Return features whose mean is exactly 0 and whose covariance is exactly 1."""
    x = np.random.default_rng(seed).standard_normal((n, d))
    x -= x.mean(axis=0)
    return np.linalg.qr(x)[0] * np.sqrt(n - 1)


# Features that no metric can measure


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["samples", "reference"])
@pytest.mark.parametrize(
    ("metric", "array"),
    [
        ("frechet", "features"), ("spatial", "spatial"), ("kernel", "features"), ("manifold", "features"),
        ("score", "probabilities"), ("agreement", "probabilities"), ("classifier", "features"), ("cmmd", "features"),
        ("frechet_infinity", "features"),
    ],
)  # fmt: skip
def test_values_that_are_not_finite_are_refused(metric, array, side, bad):
    arrays = {"features": whitened(40, 3, 0), "spatial": whitened(40, 3, 1), "probabilities": np.full((40, 4), 0.25)}
    arrays["labels"] = np.arange(40) % 4
    broken = arrays | {array: arrays[array].copy()}
    broken[array][7, 1] = bad
    if array not in (METRICS[metric].samples if side == "samples" else METRICS[metric].reference):
        return
    sides = (broken, arrays) if side == "samples" else (arrays, broken)
    with pytest.raises(DuetError, match="not finite"):
        measured(metric, *sides)


def test_a_frechet_distance_that_overflows_is_not_a_perfect_zero():
    large = 1e200 * whitened(20, 3, 0)
    with pytest.raises(DuetError, match="too large to be squared"):
        frechet_distance(large, large)


@pytest.mark.parametrize("offset", [1e8, -1e6, 3e4])
def test_precision_and_recall_do_not_depend_on_an_offset(offset):
    rng = np.random.default_rng(0)
    samples, real = (np.round(64 * rng.normal(m, 1, (150, 8))) / 64 for m in (0.4, 0))  # exact with the offset
    expected = measured("manifold", {"features": samples}, {"features": real}).numbers
    shifted = measured("manifold", {"features": samples + offset}, {"features": real + offset}).numbers
    assert shifted == expected and 0 < expected["precision"] < 1


def test_a_kernel_distance_that_rounding_decides_is_refused():
    x, y = whitened(60, 4, 0), whitened(60, 4, 1)
    with pytest.raises(DuetError, match="subtract the mean of the reference"):
        kernel_distance(x + 1e8, y + 1e8)
    assert np.isfinite(kernel_distance(x + 1e3, y + 1e3))


def test_logits_are_no_probabilities():
    logits = np.random.default_rng(0).normal(size=(30, 4))
    with pytest.raises(DuetError, match="probabilities are at least 0 and sum to 1"):
        measured("score", {"probabilities": logits}, {})


# Fréchet distance


@given(st.floats(-5, 5), st.floats(0.01, 5), st.floats(0.01, 5))
def test_frechet_distance_in_one_dimension_is_that_of_mean_and_std(mean, deviation_a, deviation_b):
    a, b = whitened(20, 1, 0) * deviation_a + mean, whitened(31, 1, 1) * deviation_b
    expected = mean**2 + (deviation_a - deviation_b) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_frechet_distance_with_commuting_covariances_is_that_of_the_stds():
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    first, second, shift = rng.uniform(0, 3, 6), rng.uniform(0, 3, 6), rng.standard_normal(6)
    a, b = whitened(50, 6, 1) * first @ turn, whitened(70, 6, 2) * second @ turn + shift
    expected = np.sum(shift**2) + np.sum((first - second) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_equals_the_formula_with_matrix_roots():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((40, 5)) @ rng.standard_normal((5, 5))
    b = rng.standard_normal((60, 5)) @ rng.standard_normal((5, 5)) + rng.standard_normal(5)
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = np.real(sqrtm(cov_a @ cov_b))
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("n", [2, 5, 200])
def test_frechet_distance_of_a_set_to_itself_is_zero_in_any_order(n):
    a = np.random.default_rng(n).standard_normal((n, 12)) * np.arange(12)
    scale = np.sum(a**2) / n
    assert 0 <= frechet_distance(a, a) < 1e-12 * scale
    assert 0 <= frechet_distance(a, a[::-1]) < 1e-12 * scale


def test_frechet_distance_is_invariant_to_rotation_and_shift_and_quadratic_in_scale():
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
def test_invalid_features_are_refused(a, b, message):
    with pytest.raises(DuetError, match=message):
        frechet_distance(a, b)


@pytest.mark.parametrize("block", [300, 1 << 25])
def test_gaussian_does_not_depend_on_the_block_size(block, monkeypatch):
    monkeypatch.setattr("diffusion_core.metrics.blocks._BLOCK_BYTES", block)
    x = (np.random.default_rng(0).standard_normal((2500, 5)) * np.arange(1, 6) + 30).astype(np.float32)
    found = fit_gaussian(x)
    np.testing.assert_allclose(found.mean, x.mean(axis=0, dtype=np.float64), rtol=1e-13)
    np.testing.assert_allclose(found.factor.T @ found.factor, np.cov(x.T.astype(np.float64)), rtol=1e-12, atol=1e-12)


# Kernel distance


def cubic(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3


@pytest.mark.parametrize("block", [300, 1 << 25])
def test_kernel_distance_is_the_mean_over_pairs_of_different_members(block, monkeypatch):
    monkeypatch.setattr("diffusion_core.metrics.blocks._BLOCK_BYTES", block)
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((13, 4)), rng.standard_normal((17, 4)) + 0.5
    own = [np.mean(cubic(x, x)[~np.eye(len(x), dtype=bool)]) for x in (a, b)]
    assert kernel_distance(a, b) == pytest.approx(sum(own) - 2 * cubic(a, b).mean(), rel=1e-12)


def test_kernel_distance_is_unbiased_at_any_size():
    """The mean over all draws from a population is the value of the population, unlike that of the biased estimate."""
    rng = np.random.default_rng(1)
    real, fake = rng.standard_normal((60, 3)), rng.standard_normal((60, 3)) * 1.3 + 0.2
    truth, own = kernel_distance(fake, real), []
    for _ in range(1500):
        own.append(kernel_distance(rng.permutation(fake)[:5], rng.permutation(real)[:7]))
    error = np.std(own) / np.sqrt(len(own))
    assert np.mean(own) == pytest.approx(truth, abs=3.5 * error)
    diagonal = np.mean(np.diag(cubic(fake, fake)) - np.mean(cubic(fake, fake))) / 5
    assert diagonal > 10 * error  # what a mean over all pairs of five, with themselves, would add


def test_kernel_metric_averages_subsets_and_reports_their_std():
    rng = np.random.default_rng(0)
    real, fake = rng.standard_normal((50, 3)), rng.standard_normal((40, 3)) + 1
    whole = kernel_distance(fake, real)
    found = measured("kernel", {"features": fake}, {"features": real}, subsets=300, size=20)
    assert found.numbers["distance"] == pytest.approx(whole, abs=4 * found.errors["distance"] / np.sqrt(300))
    assert (
        found.errors["distance"] == pytest.approx(found.arrays["subsets"].std()) and len(found.arrays["subsets"]) == 300
    )
    assert measured("kernel", {"features": real}, {"features": real}).numbers["distance"] == kernel_distance(real, real)


# Precision, recall, density and coverage


def test_precision_recall_density_and_coverage_of_points_on_a_line():
    """With k = 1, balls of 0 1 10 12 reach 1 1 2 2; of 0.5 2.5 30, 2 2 27.5."""
    real, fake = np.array([[0.0], [1], [10], [12]]), np.array([[0.5], [2.5], [30]])
    found = measured("manifold", {"features": fake}, {"features": real}, nearest=1, nearest_density=1, most=3 + 1)
    # 0.5 lies in the balls of 0 and 1, 2.5 in none, 30 in none.
    assert found.numbers["precision"] == pytest.approx(1 / 3)
    assert found.numbers["density"] == pytest.approx(2 / 3)
    # 0 and 1 lie in the ball of 0.5, 10 and 12 in that of 30.
    assert found.numbers["recall"] == 1
    # The balls of 0 and 1 hold 0.5, those of 10 and 12 hold nothing.
    assert found.numbers["coverage"] == 0.5


def brute(fake: np.ndarray, real: np.ndarray, k: int, k_density: int) -> dict[str, float]:
    """Compute the metrics by their definitions."""
    own = [np.sort(cdist(x, x), axis=1) for x in (fake, real)]
    between = cdist(fake, real)
    in_real = between <= own[1][None, :, k]
    in_dense = between <= own[1][None, :, k_density]
    return {
        "precision": in_real.any(axis=1).mean(),
        "recall": (between <= own[0][:, None, k]).any(axis=0).mean(),
        "density": in_dense.sum() / k_density / len(fake),
        "coverage": in_dense.any(axis=0).mean(),
    }


@pytest.mark.parametrize("block", [300, 1 << 25])
def test_manifold_metric_equals_its_definitions(block, monkeypatch):
    monkeypatch.setattr("diffusion_core.metrics.blocks._BLOCK_BYTES", block)
    rng = np.random.default_rng(2)
    real, fake = rng.standard_normal((50, 3)), rng.standard_normal((31, 3)) * 1.2 + 0.8
    found = measured("manifold", {"features": fake}, {"features": real})
    assert found.numbers == pytest.approx(brute(fake, real, 3, 5))
    assert found.numbers != pytest.approx(brute(fake, real, 4, 5))
    alike = measured("manifold", {"features": real}, {"features": real})
    assert alike.numbers == pytest.approx(brute(real, real, 3, 5)) and alike.numbers["coverage"] == 1


def test_manifold_metric_draws_points_of_large_sets():
    rng = np.random.default_rng(3)
    real, fake = rng.standard_normal((90, 2)), rng.standard_normal((70, 2)) + 1
    stream = Stream(4, "metrics/manifold")
    chosen = [x[np.sort(stream.permutation(len(x), row)[:40])] for row, x in enumerate((real, fake))]
    found = METRICS["manifold"].fit({"features": real}, 4, most=40)({"features": fake})
    assert found.numbers == pytest.approx(brute(chosen[1], chosen[0], 3, 5))


# Class score and agreement


def test_kernel_distance_of_all_pairs_needs_no_second_pass_without_some_rows():
    a, b = np.random.default_rng(0).normal(0.2, 1, (30, 3)), np.random.default_rng(1).normal(size=(40, 3))
    result = measured("kernel", {"features": a}, {"features": b}, subsets=0)
    assert result.numbers["distance"] == pytest.approx(kernel_distance(a, b), rel=1e-12) and not result.errors
    removed = np.array([2, 7, 8])
    rest = [np.delete(x, removed, axis=0) for x in (a, b)]
    assert result.without(removed)["distance"] == pytest.approx(kernel_distance(rest[0], b), rel=1e-10)
    assert result.without_reference(removed)["distance"] == pytest.approx(kernel_distance(a, rest[1]), rel=1e-10)


def test_gaussian_kernel_distance_is_the_mean_over_all_pairs_with_any_offset():
    a, b = np.random.default_rng(0).normal(0.2, 1, (30, 3)), np.random.default_rng(1).normal(size=(40, 3))

    def direct(x: np.ndarray, y: np.ndarray) -> float:
        k = [np.exp(-cdist(p, q, "sqeuclidean") / (2 * 1.5**2)).mean() for p, q in ((x, x), (y, y), (x, y))]
        return 7.0 * (k[0] + k[1] - 2 * k[2])

    for offset in (0.0, 2.0**20):
        result = measured("cmmd", {"features": a + offset}, {"features": b + offset}, sigma=1.5, scale=7.0)
        assert result.numbers["distance"] == pytest.approx(direct(a, b), rel=1e-7)
    removed = np.array([0, 5])
    rest = [np.delete(x, removed, axis=0) for x in (a, b)]
    result = measured("cmmd", {"features": a}, {"features": b}, sigma=1.5, scale=7.0)
    assert result.without(removed)["distance"] == pytest.approx(direct(rest[0], b), rel=1e-10)
    assert result.without_reference(removed)["distance"] == pytest.approx(direct(a, rest[1]), rel=1e-10)


def test_extrapolated_frechet_distance_has_no_bias_of_first_order():
    rng, d, values, plain = np.random.default_rng(0), 6, [], []
    reference = {"mu": np.zeros(d), "sigma": np.eye(d)}
    for _ in range(40):
        samples = {"features": rng.normal(0.2, 1, (120, d))}
        result = measured("frechet_infinity", samples, reference)
        values.append(result.numbers["distance"])
        plain.append(measured("frechet", samples, reference).numbers["distance"])
    error = np.std(values) / np.sqrt(len(values))
    truth = d * 0.2**2
    assert abs(np.mean(values) - truth) < 3 * error + 0.01 and np.mean(plain) > truth + 0.08
    line = np.polyfit(1 / result.arrays["sizes"], result.arrays["distances"], 1)
    assert values[-1] == pytest.approx(line[1])
    with pytest.raises(NotApplicable, match="need more than 5 per feature"):
        measured("frechet_infinity", {"features": rng.normal(size=(59, d))}, reference)


# Classifier two-sample test


def test_a_classifier_tells_distributions_apart_as_well_as_they_can_be():
    """Two normal distributions at distance s are told apart by the best classifier in Phi(s/2) of cases."""
    rng = np.random.default_rng(0)
    for apart in (0.0, 2.0, 4.0):
        x, y = rng.normal(size=(2, 400, 2)) + np.array([[[apart, 0.0]], [[0.0, 0.0]]])
        result = measured("classifier", {"features": x}, {"features": y})
        best = norm.cdf(apart / 2)
        assert result.trials["accuracy"] == 400
        assert abs(result.numbers["accuracy"] - best) < 0.025 + 3 * np.sqrt(best * (1 - best) / 400)


def test_its_interval_covers_one_half_for_equal_distributions():
    rng, held = np.random.default_rng(0), []
    for _ in range(150):
        correct = np.concatenate(told_apart(*rng.normal(size=(2, 60, 3))))
        interval = wilson_interval(int(correct.sum()), len(correct))
        held.append(interval.low <= 0.5 <= interval.high)
    assert 0.89 < np.mean(held) <= 1.0


def test_it_sees_what_features_do_not_and_reads_pixels():
    real = digits(part="train").images
    real = real[np.random.default_rng(1).permutation(len(real))]  # their writers follow each other
    noisy = np.clip(real[:300].astype(int) + np.random.default_rng(0).integers(-20, 21, real[:300].shape), 0, 255)
    by_pixels = measured("pixel_classifier", {"images": noisy.astype(np.uint8)}, {"images": real[300:]})
    sides = ({"features": layers(x)["features"]} for x in (noisy.astype(np.uint8), real[300:]))
    assert by_pixels.numbers["accuracy"] > 0.8 > 0.65 > measured("classifier", *sides).numbers["accuracy"]
    rest = by_pixels.without(by_pixels.arrays["index"][:10])["accuracy"]
    count = by_pixels.trials["accuracy"]
    left = by_pixels.numbers["accuracy"] * count - by_pixels.arrays["recognised"][:10].sum()
    assert rest == pytest.approx(left / (count - 10))


def test_few_images_are_no_classifier_test():
    with pytest.raises(NotApplicable, match="training and testing need 20"):
        measured("classifier", {"features": whitened(19, 2, 0)}, {"features": whitened(50, 2, 1)})
    with pytest.raises(DuetError, match="most 5 was given"):
        measured("classifier", {"features": whitened(50, 2, 0)}, {"features": whitened(50, 2, 1)}, most=5)


def test_score_is_the_number_of_classes_if_certain_and_balanced_and_1_if_uncertain():
    sure = np.eye(4)[np.arange(40) % 4]
    assert score(sure) == pytest.approx(4, rel=1e-12)
    assert score(sure[:, :2][np.arange(40) % 4 < 2]) == pytest.approx(2, rel=1e-12)
    assert score(np.full((40, 4), 0.25)) == pytest.approx(1, rel=1e-12)
    assert score(np.eye(4)[np.zeros(40, int)]) == pytest.approx(1, rel=1e-12)
    mixed = 0.7 * sure + 0.3 / 4
    p = mixed[0]
    assert score(mixed) == pytest.approx(np.exp(np.sum(p * np.log(4 * p))), rel=1e-12)
    found = measured("score", {"probabilities": mixed}, {}, splits=1)
    assert found.numbers["score"] == pytest.approx(score(mixed)) and not found.errors


def test_agreement_counts_requested_and_recognised_classes():
    seen = np.array([0, 1, 2, 2, 1, 0])
    found = agreement(seen, [0, 1, 1, 2, 1, 0], 4)
    assert found.confusion[1, 2] == 1 and found.confusion.sum() == 6 and found.rate == pytest.approx(5 / 6)
    np.testing.assert_allclose(found.per_class, [1, 2 / 3, 1, np.nan])
    reference = {"labels": np.arange(4)}
    samples = {"probabilities": np.eye(4)[seen], "labels": np.array([0, 1, 1, 2, 1, 0])}
    assert measured("agreement", samples, reference).numbers["rate"] == found.rate
    with pytest.raises(NotApplicable, match="have 3 classes and the reference has 4"):
        measured("agreement", samples | {"probabilities": np.eye(3)[seen]}, reference)


@pytest.mark.parametrize("labels", [[0, 10], [-1, 0], [0], [0.0, 1.0]])
def test_invalid_labels_are_refused(labels):
    with pytest.raises(DuetError, match=r"2 integers in 0\.\.9"):
        agreement(np.zeros(2, int), labels, 10)


# The network of digits


def test_bundled_network_recognises_held_out_digits():
    held_out = digits(part="held_out")
    seen = layers(held_out.images)["probabilities"].argmax(axis=1)
    assert agreement(seen, held_out.labels, 10).rate == pytest.approx(357 / 360)
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() == SHA256
    assert len(WEIGHTS.read_bytes()) < 300_000


def test_gradient_of_the_digits_network_equals_finite_differences():
    data = digits(part="train")
    x, labels = data.images[:6, ..., 0] / 255.0, data.labels[:6]
    rng = np.random.default_rng(0)
    weights = {name: 0.3 * rng.standard_normal(shape) for name, shape in SHAPES.items()}
    along = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    _, gradients = backward(forward(weights, x), labels)
    ahead, behind = (
        backward(forward({name: w + step * along[name] for name, w in weights.items()}, x), labels)[0]
        for step in (1e-6, -1e-6)
    )
    slope = sum(np.sum(gradients[name] * along[name]) for name in SHAPES)
    assert (ahead - behind) / 2e-6 == pytest.approx(slope, rel=1e-6)


def test_features_do_not_depend_on_the_size_of_the_digits():
    small, large = layers(digits().images[:50]), layers(digits(size=32).images[:50])
    for part in small:
        np.testing.assert_array_equal(small[part], large[part])


def test_digits_frechet_distance_separates_real_digits_from_gaussians():
    data = digits()
    real = layers(data.images)["features"]
    rng = np.random.default_rng(0)
    fakes = []
    for k in range(10):
        x = data.images[data.labels == k].reshape(-1, 64)
        fakes.append(rng.multivariate_normal(x.mean(axis=0), np.cov(x.T), 90))
    fakes = np.clip(np.round(np.concatenate(fakes)), 0, 255).astype(np.uint8).reshape(-1, 8, 8, 1)
    order = rng.permutation(len(data))
    floor = frechet_distance(real[order[:898]], real[order[898:]])
    assert frechet_distance(real, real) < 1e-9 * np.sum(real**2) / len(real)
    assert frechet_distance(layers(fakes)["features"], real) > 4 * floor > 0
    assert frechet_distance(real[data.labels != 3], real) > 2 * floor


@pytest.mark.parametrize(
    "samples",
    [np.zeros((2, 12, 12, 1), np.uint8), np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 8, 1))],
    ids=["size", "colour", "type"],
)
def test_samples_of_the_wrong_shape_for_the_digits_network_are_refused(samples):
    with pytest.raises(DuetError, match="multiple of 8"):
        layers(samples)


# Colours


def test_colour_distance_is_the_wasserstein_distance():
    rng = np.random.default_rng(0)
    real = rng.integers(20, 200, (6, 5, 5, 3)).astype(np.uint8)
    shifted = real.copy()
    shifted[..., 1] += 12
    found = measured("colour", {"images": shifted}, {"images": real}).numbers
    assert found["distance"] == pytest.approx(4) and found["brightness"] == pytest.approx(4)
    assert found["contrast"] == pytest.approx(1) and found["clipped"] == 0
    expected = np.mean([wasserstein_distance(real[..., c].ravel(), real[:3, ..., c].ravel()) for c in range(3)])
    assert measured("colour", {"images": real[:3]}, {"images": real}).numbers["distance"] == pytest.approx(expected)
    flat = (real.astype(int) - 110) // 2 + 110
    assert measured("colour", {"images": flat.astype(np.uint8)}, {"images": real}).numbers["contrast"] < 0.52
    white = real.copy()
    white[:3] = 255
    assert measured("colour", {"images": white}, {"images": real}).numbers["clipped"] == pytest.approx(0.5)


# Nearest neighbours and spread


@pytest.mark.parametrize("block", [1, 3000, 1 << 25])
def test_nearest_equals_a_brute_force_search_for_any_block_size(block, monkeypatch):
    monkeypatch.setattr("diffusion_core.metrics.blocks._BLOCK_BYTES", block)
    rng = np.random.default_rng(0)
    samples, train = rng.integers(0, 256, (9, 3, 3, 2), np.uint8), rng.integers(0, 256, (23, 3, 3, 2), np.uint8)
    samples[4], train[20] = train[7], train[7]
    distances = cdist(samples.reshape(9, -1) / 255, train.reshape(23, -1) / 255)
    indices, values = nearest(samples, train)
    np.testing.assert_array_equal(indices, distances.argmin(axis=1))
    np.testing.assert_allclose(values, distances.min(axis=1), rtol=1e-12)
    assert indices[4] == 7 and values[4] == 0
    few, apart = nearest(samples, train, 3)
    np.testing.assert_array_equal(few, np.argsort(distances, axis=1, kind="stable")[:, :3])
    np.testing.assert_allclose(apart, np.sort(distances, axis=1)[:, :3], rtol=1e-12)
    own = neighbours(train, train, 2, is_same=True)[0]
    between = cdist(*2 * (train.reshape(23, -1).astype(float),)) + np.where(np.eye(23), np.inf, 0)
    np.testing.assert_array_equal(own, np.argsort(between, axis=1, kind="stable")[:, :2])


def test_memorisation_separates_copies_from_new_images():
    rng = np.random.default_rng(0)
    train = rng.integers(0, 256, (30, 4, 4, 1)).astype(np.uint8)
    samples = rng.integers(0, 256, (10, 4, 4, 1)).astype(np.uint8)
    samples[2], samples[5] = train[17], train[8]
    samples[5, 0, 0] ^= 4
    data = {"images": rng.integers(0, 256, (5, 4, 4, 1)).astype(np.uint8)}
    found = measured("memorisation", {"images": samples}, data | {"training": train})
    assert found.numbers["memorised"] == 0.2 and found.numbers["copies"] == 0.1
    assert found.arrays["index"][2, 0] == 17 and found.arrays["distance"][5, 0] == pytest.approx(4 / 255)
    assert found.numbers["distance"] == np.median(nearest(samples, train)[1])
    (_, shown), (_, first), _ = found.image_rows
    np.testing.assert_array_equal(shown[:2], samples[[2, 5]])
    np.testing.assert_array_equal(first[:2], train[[17, 8]])
    assert measured("memorisation", {"images": samples}, data).numbers["memorised"] == 0
    # The numbers without some samples equal those of measuring the rest.
    some = np.array([0, 3, 8])
    anew = measured("memorisation", {"images": np.delete(samples, some, axis=0)}, data | {"training": train})
    assert found.without(some) == anew.numbers != found.numbers


def test_spread_is_the_root_mean_square_over_all_pairs():
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1), np.uint8)
    labels = np.array([0] * 12 + [1] * 7 + [2])
    result = spread(images, labels, 4)
    for k in (0, 1):
        pairs = pdist(images[labels == k].reshape(-1, 16) / 255)
        assert result[k] == pytest.approx(np.sqrt(np.mean(pairs**2)), rel=1e-12)
    assert np.isnan(result[2:]).all()
    given = {"images": images, "labels": labels}
    half = given | {"images": images // 2 * 0 + 7}
    assert measured("spread", given, given).numbers["ratio"] == 1
    assert measured("spread", half, given).numbers["ratio"] == 0


def test_images_of_different_shapes_are_refused():
    with pytest.raises(DuetError, match=r"\(4, 4, 1\) and .*\(5, 5, 1\)"):
        nearest(np.zeros((2, 4, 4, 1), np.uint8), np.zeros((2, 5, 5, 1), np.uint8))
    with pytest.raises(DuetError, match="samples: float64"):
        nearest(np.zeros((2, 4, 4, 1)), np.zeros((2, 4, 4, 1), np.uint8))
    with pytest.raises(DuetError, match="labels"):
        spread(np.zeros((2, 4, 4, 1), np.uint8), [0], 1)


def test_the_digits_network_names_the_key_and_what_to_use_for_other_images():
    with pytest.raises(
        DuetError, match=r"features: digits was given.* with shape \(16, 16, 3\); use features=inception"
    ):
        layers(np.zeros((1, 16, 16, 3), np.uint8))
