"""A classifier two-sample test: how often a classifier that was trained to do so tells samples from real images.

As many samples as reference images are drawn. A classifier is trained on one half of both and applied to the other
half. Its accuracy there is 0.5 if samples and reference come from one distribution, which is ideal, and 1 if they can
always be told apart. Unlike a distance of features, it looks for whatever tells them apart, and its scale does not
depend on the features.

The classifier is kernel ridge regression of y = -1 (real) and +1 (sample), with K_ij = exp(-|x_i - x_j|^2 / (2 w^2 d))
and d the median squared distance::

    f(x) = sum_i a_i k(x, x_i),     (K + l I) a = y,     class = sign f(x)

Width w and ridge l minimise the squared error of leaving out one training image, y_i - f_{-i}(x_i) = a_i / (C^-1)_ii
with C = K + l I, which one eigendecomposition gives for every l. So there is nothing to tune and nothing random but
the draw.

The interval is Wilson's, and it is that of the accuracy of this classifier: given the training half, each test image is
recognised or not, independently. (With five folds in place of halves, the classifiers share most of their images: the
accuracy of equal distributions varies 1.4 times as much as that of independent images, and the interval covers it in
82 % of cases.) Against a reference that a model has memorised the accuracy is 0.5 too; use images that it was not
trained on.

References:
    Revisiting classifier two-sample tests (Lopez-Paz and Oquab, 2017), https://arxiv.org/abs/1610.06545
    Least squares support vector machine classifiers (Suykens and Vandewalle, 1999),
    https://doi.org/10.1023/A:1018628609742
    Efficient leave-one-out cross-validation of kernel Fisher discriminant classifiers (Cawley and Talbot, 2003),
    https://doi.org/10.1016/S0031-3203(03)00136-5
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.metrics.blocks import check_finite, rows, squared_distances
from diffusion_core.metrics.metric import FRACTION, Arrays, Measure, Metric, MetricResult, NotApplicable, NumberInfo

__all__ = ["CLASSIFIER", "PIXEL_CLASSIFIER", "told_apart"]

_WIDTHS = (0.35, 0.7, 1.4)
_RIDGES = 10.0 ** np.arange(-4, 3)
_FEWEST = 10  # images of each kind in each half


def told_apart(samples: NDArray, real: NDArray) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return for the second half of samples and of real images whether the classifier recognises their kind.

    Args:
        samples: with shape (N, ...), in random order; the first half trains.
        real: with shape (N, ...), in random order.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(2, 100, 3))
        >>> float(np.mean(told_apart(x[0] + 5.0, x[1])))
        1.0
    """
    n, half = len(samples), len(samples) // 2
    points = np.concatenate([rows(x, slice(0, n)) for x in (real, samples)])
    points -= points.mean(axis=0)
    squares = np.zeros((2 * n, 2 * n))
    for here, there, part in squared_distances(points, points):
        squares[here, there] = part
    squares /= np.median(squares[np.triu_indices(2 * n, 1)]) or 1.0
    target = np.repeat([-1.0, 1.0], n)
    trains = np.tile(np.arange(n) < half, 2)
    train, test = np.flatnonzero(trains), np.flatnonzero(~trains)
    correct = target[test] * _predict(squares, train, test, target[train]) > 0
    return correct[n - half :], correct[: n - half]


def _predict(
    squares: NDArray[np.float64], train: NDArray[np.int64], test: NDArray[np.int64], target: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return f of the test images, with the width and the ridge of the smallest leave-one-out error."""
    best, prediction = np.inf, np.zeros(len(test))
    for width in _WIDTHS:
        scale = -0.5 / width**2
        values, vectors = np.linalg.eigh(np.exp(scale * squares[np.ix_(train, train)]))
        turned, across = vectors.T @ target, None
        for ridge in _RIDGES:
            inverse = 1.0 / (np.maximum(values, 0.0) + ridge)
            weights = vectors @ (inverse * turned)
            error = float(np.mean((weights / (vectors**2 @ inverse)) ** 2))
            if error < best:
                across = np.exp(scale * squares[np.ix_(test, train)]) if across is None else across
                best, prediction = error, across @ weights
    return prediction


def _fit(name: str, reference: Arrays, seed: int, most: int) -> Measure:
    if most < 2 * _FEWEST:
        raise DuetError(f"classifier: most {most} was given; it must be at least {2 * _FEWEST} images of each kind")
    stream = Stream(seed, "metrics/classifier")

    def measure(samples: Arrays) -> MetricResult:
        sides = [samples[name], reference[name]]
        if sides[0].shape[1:] != sides[1].shape[1:]:
            raise DuetError(
                f"classifier: {name} with shapes {sides[0].shape[1:]} and {sides[1].shape[1:]} were given; they must "
                f"be equal"
            )
        count = min(most, *map(len, sides))
        if count < 2 * _FEWEST:
            raise NotApplicable(f"{count} images of one kind were given; training and testing need {2 * _FEWEST}")
        drawn = [stream.permutation(len(side), k)[:count] for k, side in enumerate(sides)]
        chosen = [np.asarray(side[indices]) for side, indices in zip(sides, drawn, strict=True)]
        for side, what in zip(chosen, ("samples", "reference"), strict=True):
            if np.issubdtype(side.dtype, np.floating):
                check_finite(side, f"classifier: {name} of the {what}")
        correct, tested = told_apart(*chosen), [indices[count // 2 :] for indices in drawn]

        def without(side: int) -> Any:
            def rest(removed: NDArray[np.int64]) -> dict[str, float]:
                kept = correct[side][~np.isin(tested[side], removed)]
                return {"accuracy": float(np.mean(np.concatenate([kept, correct[1 - side]])))}

            return rest

        return MetricResult(
            {"accuracy": float(np.mean(correct))}, arrays={"index": tested[0], "recognised": correct[0]},
            without=without(0), without_reference=without(1), trials={"accuracy": sum(map(len, correct))},
        )  # fmt: skip

    return measure


def _fit_features(reference: Arrays, seed: int, *, most: int = 1000) -> Measure:
    """Tell samples from reference by their features.

    Args:
        most: the largest number of images of each kind; one half trains and one half tests.
    """
    return _fit("features", reference, seed, most)


def _fit_images(reference: Arrays, seed: int, *, most: int = 1000) -> Measure:
    """Tell samples from reference by their pixels; the option is that of features."""
    return _fit("images", reference, seed, most)


_TITLE = "told from the reference by a classifier (0.5 is ideal)"

CLASSIFIER = Metric(
    _fit_features,
    ("features",),
    ("features",),
    {"accuracy": NumberInfo(f"features {_TITLE}", better="lower", bounds=FRACTION)},
)
PIXEL_CLASSIFIER = Metric(
    _fit_images,
    ("images",),
    ("images",),
    {"accuracy": NumberInfo(f"pixels {_TITLE}", better="lower", bounds=FRACTION)},
)
