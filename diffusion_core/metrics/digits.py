"""Judging sampled digits: does each show the class it was asked for, and are they spread as real ones are.

A support vector classifier with kernel ``k(x, y) = exp(-gamma |x - y|^2)`` on 8 x 8 pixels in [0, 1]
is fitted to the 1,437 training digits in a few hundredths of a second, anew in each process; its
parameters are fixed (C = 10, gamma = 1 / (64 var)), and it names 99.4 % of the 360 digits held out.

The *digits Fréchet* distance is the Fréchet distance of kernel features: k between a picture and
100 landmarks, the first ten training digits of each class. A Gaussian fitted to pixels has the mean
and covariance of real digits and so is not told from them by pixel features; the kernel tells them
apart. It is a measure for this data set alone and is no FID. Its `floor` is what
real digits score against other real digits.

Larger pictures are first averaged over square blocks to 8 x 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.data.dataset import Dataset
from diffusion_core.data.digits import NATIVE_SIZE, digits
from diffusion_core.errors import DuetError
from diffusion_core.metrics.frechet import frechet_distance
from diffusion_core.random import Stream

if TYPE_CHECKING:
    from sklearn.svm import SVC

__all__ = ["Agreement", "DigitsJudge", "fit_judge"]

_CLASSES = 10
_LANDMARKS_PER_CLASS = 10


@dataclass(frozen=True, eq=False)
class Agreement:
    """How often pictures show the class they were asked for.

    Args:
        confusion: counts with shape (K, K): row is the class asked for, column the class seen.
    """

    confusion: NDArray[np.int64]

    @property
    def rate(self) -> float:
        """The share of pictures that show their class."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def per_class(self) -> NDArray[np.float64]:
        """The share within each class asked for, with shape (K,); NaN where there was no such picture."""
        asked = self.confusion.sum(axis=1)
        share = np.full(len(asked), np.nan)
        return np.divide(np.diagonal(self.confusion), asked, out=share, where=asked > 0)


@dataclass(frozen=True, eq=False)
class DigitsJudge:
    """A fitted classifier of digits and the kernel features that go with it; made by `fit_judge`.

    Args:
        classifier: predicts classes from pixels in [0, 1] with shape (N, 64).
        gamma: the width of the kernel.
        landmarks: pixels in [0, 1] with shape (100, 64).
        accuracy: the agreement on the digits held out.
    """

    classifier: SVC
    gamma: float
    landmarks: NDArray[np.float64]
    accuracy: float

    def predict(self, samples: NDArray[np.uint8]) -> NDArray[np.int32]:
        """The class seen in each picture, with shape (N,).

        Args:
            samples: grey pictures, uint8 with shape (N, S, S, 1), S being a multiple of 8.
        """
        return self.classifier.predict(_pixels(samples)).astype(np.int32)

    def agreement(self, samples: NDArray[np.uint8], labels: ArrayLike) -> Agreement:
        """How often `samples` show their `labels`, class ids 0..9 with shape (N,)."""
        seen, labels = self.predict(samples), np.asarray(labels)
        whole = np.issubdtype(labels.dtype, np.integer) and labels.shape == seen.shape
        if not whole or labels.min() < 0 or labels.max() >= _CLASSES:
            raise DuetError(
                f"digits judge: labels of {labels.dtype} with shape {labels.shape} were given; "
                f"there must be {len(seen)} whole numbers in 0..9"
            )
        confusion = np.zeros((_CLASSES, _CLASSES), np.int64)
        np.add.at(confusion, (labels, seen), 1)
        return Agreement(confusion)

    def features(self, samples: NDArray[np.uint8]) -> NDArray[np.float64]:
        """The kernel between each picture and each landmark, in (0, 1], with shape (N, 100)."""
        x = _pixels(samples)
        squares = np.sum(x**2, axis=1)[:, None] + np.sum(self.landmarks**2, axis=1) - 2.0 * x @ self.landmarks.T
        return np.exp(-self.gamma * np.maximum(squares, 0.0))

    def frechet(self, samples: NDArray[np.uint8]) -> float:
        """The digits Fréchet distance of `samples` to all 1,797 real digits; lower is better, compare with `floor`."""
        return frechet_distance(self.features(samples), self.features(digits().images))

    def floor(self, count: int | None = None, seed: int = 0, repeats: int = 8) -> float:
        """The mean digits Fréchet distance between `count` real digits and all the others.

        Args:
            count: the number of samples to compare with, at most half of the digits, which is the
                default. Fewer samples score higher however good they are.
            seed: the seed of stream ``"metrics/floor"``, which draws the digits.
            repeats: how many draws to average.
        """
        real = digits().images
        half = len(real) // 2
        count = half if count is None else min(count, half)
        if count < 2 or repeats < 1:
            raise DuetError(f"floor: {count} digits and {repeats} repeats were given; at least 2 and 1 are needed")
        features = self.features(real)
        orders = (Stream(seed, "metrics/floor").permutation(len(real), row=k) for k in range(repeats))
        return float(np.mean([frechet_distance(features[o[:count]], features[o[count:]]) for o in orders]))


def fit_judge() -> DigitsJudge:
    """Fit the classifier to the training digits and measure it on those held out."""
    from sklearn.svm import SVC  # slow to import, and only this function needs it

    train, held_out = digits(part="train"), digits(part="held_out")
    x = _pixels(train.images)
    gamma = float(1.0 / (x.shape[1] * x.var()))
    classifier = SVC(C=10.0, kernel="rbf", gamma=gamma).fit(x, train.labels)
    judge = DigitsJudge(classifier, gamma, x[_landmarks(train)], accuracy=float("nan"))
    accuracy = judge.agreement(held_out.images, held_out.labels).rate
    return DigitsJudge(classifier, gamma, judge.landmarks, accuracy)


def _landmarks(train: Dataset) -> NDArray[np.int64]:
    return np.concatenate([np.flatnonzero(train.labels == k)[:_LANDMARKS_PER_CLASS] for k in range(_CLASSES)])


def _pixels(samples: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Block averages in [0, 1] with shape (N, 64)."""
    shape = np.shape(samples)
    fits = isinstance(samples, np.ndarray) and samples.dtype == np.uint8 and len(shape) == 4 and shape[0] > 0
    if not fits or shape[1] != shape[2] or shape[1] < NATIVE_SIZE or shape[1] % NATIVE_SIZE or shape[3] != 1:
        kind = getattr(samples, "dtype", type(samples).__name__)
        raise DuetError(
            f"digits judge: samples of {kind} with shape {shape} were given; "
            f"they must be uint8 with shape (N, S, S, 1), S being a multiple of {NATIVE_SIZE}"
        )
    block = shape[1] // NATIVE_SIZE
    blocks = samples.reshape(len(samples), NATIVE_SIZE, block, NATIVE_SIZE, block)
    return blocks.mean(axis=(2, 4), dtype=np.float64).reshape(len(samples), -1) / 255.0
