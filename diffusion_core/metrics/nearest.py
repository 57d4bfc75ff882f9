"""Memorisation and diversity: copies of training images, and distances between samples of a class.

A distance is Euclidean over all values of an image on the scale 0..1, that is uint8 / 255.

A sample counts as memorised if its distance to the nearest training image is at most a third of the distance to the
second nearest. The ratio is relative because a plain image is close to many. Images that occur twice in the training
set hide their copies from this criterion, so exact copies, at distance 0, are counted separately.

References:
    Diffusion probabilistic models generalize when they fail to memorize (Yoon et al., 2023),
    https://openreview.net/forum?id=shciCbSk9h
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.metrics.blocks import neighbours
from diffusion_core.metrics.metric import (
    FRACTION,
    NON_NEGATIVE,
    Arrays,
    Measure,
    Metric,
    MetricResult,
    NotApplicable,
    NumberInfo,
)

__all__ = ["MEMORISATION", "SPREAD", "nearest", "spread"]

_SHOWN = 10


def nearest(
    samples: NDArray[np.uint8], train: NDArray[np.uint8], count: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Find the training image nearest to each sample, or the nearest few; among equally near ones, the first.

    Both sets are read in blocks, so `train` may be a memory map of any length; a copy has distance exactly 0.

    Args:
        samples: uint8 with shape (N, H, W, C).
        train: uint8 with shape (M, H, W, C).
        count: the number of neighbours; None means one, without an axis for it.

    Returns:
        Indices into `train` and distances, both with shape (N,) or (N, count), nearest first.

    Raises:
        DuetError: the images are not uint8, or their shapes differ.

    Example:
        >>> train = np.array([0, 100, 255], np.uint8).reshape(3, 1, 1, 1)
        >>> nearest(train[1:2], train)
        (array([1]), array([0.]))
    """
    _check("samples", samples)
    _check("training images", train)
    if samples.shape[1:] != train.shape[1:]:
        raise DuetError(
            f"nearest: samples of {samples.shape[1:]} and training images of {train.shape[1:]} were given; "
            f"they must have one shape"
        )
    indices, squares = neighbours(samples, train, count or 1)
    distances = np.sqrt(squares) / 255.0
    return (indices[:, 0], distances[:, 0]) if count is None else (indices, distances)


def spread(images: NDArray[np.uint8], labels: ArrayLike, num_classes: int) -> NDArray[np.float64]:
    """Return the root mean square distance between two different images of a class.

    The mean square distance over all pairs is twice the summed unbiased variance, so no pairs are formed. A value below
    that of real images shows that samples are too alike.

    Args:
        images: uint8 with shape (N, H, W, C).
        labels: class ids with shape (N,).
        num_classes: K.

    Returns:
        With shape (K,); NaN for a class with fewer than two images.
    """
    _check("images", images)
    labels = np.asarray(labels)
    if labels.shape != (len(images),):
        raise DuetError(f"spread: labels with shape {labels.shape} were given; the shape must be ({len(images)},)")
    result = np.full(num_classes, np.nan)
    for k in range(num_classes):
        members = np.flatnonzero(labels == k)
        if len(members) > 1:
            # Two passes over chunks, so that a class of a large data set is never converted at once.
            chunks = np.array_split(members, 1 + images[0].size * len(members) // (1 << 22))
            mean = sum(images[chunk].sum(axis=0, dtype=np.float64) for chunk in chunks) / len(members)
            total = sum(np.sum((images[chunk] - mean) ** 2) for chunk in chunks)
            result[k] = np.sqrt(2.0 * total / (len(members) - 1)) / 255.0
    return result


def _fit_memorisation(reference: Arrays, seed: int, *, ratio: float = 1 / 3) -> Measure:
    """Look for copies among the training images.

    Args:
        ratio: a sample counts as memorised if its nearest distance is at most `ratio` times its second nearest.
    """
    if not 0 < ratio < 1:
        raise DuetError(f"memorisation.ratio: {ratio} was given; it must lie between 0 and 1")
    train = reference.get("training", reference["images"])
    if len(train) < 2:
        raise NotApplicable("there is 1 training image; at least 2 are needed")

    def measure(samples: Arrays) -> MetricResult:
        images = samples["images"]
        indices, distances = nearest(images, train, 2)
        first, second = distances.T
        memorised = first <= ratio * second
        # A copy of an image that occurs twice has the ratio 0 / 0, which counts as 0.
        relative = np.divide(first, second, out=np.zeros_like(first), where=second > 0)
        most_similar = np.argsort(relative, kind="stable")[:_SHOWN]

        def without(removed: NDArray[np.int64]) -> dict[str, float]:
            rest, near = np.delete(memorised, removed), np.delete(first, removed)
            return {"memorised": rest.mean(), "copies": (near == 0).mean(), "distance": np.median(near)}

        return MetricResult(
            without(np.array([], np.int64)),
            arrays={"index": indices, "distance": distances},
            image_rows=(
                ("most like a\ntraining image", images[most_similar]),
                ("nearest", train[indices[most_similar, 0]]),
                ("second nearest", train[indices[most_similar, 1]]),
            ),
            without=without,
            trials={"memorised": len(images), "copies": len(images)},
        )

    return measure


def _fit_spread(reference: Arrays, seed: int) -> Measure:
    classes = int(reference["labels"].max()) + 1
    real = spread(reference["images"], reference["labels"], classes)

    def measure(samples: Arrays) -> MetricResult:
        _check("samples", samples["images"])
        fake = spread(samples["images"], samples["labels"], classes)
        ratio = np.divide(fake, real, out=np.full(classes, np.nan), where=real > 0)
        if np.isnan(ratio).all():
            raise NotApplicable("no class has both two samples and two different images in the reference")
        return MetricResult({"ratio": np.nanmean(ratio)}, arrays={"per_class": ratio})

    return measure


MEMORISATION = Metric(
    _fit_memorisation,
    ("images",),
    ("images",),
    {
        "memorised": NumberInfo("memorised fraction", better="lower", bounds=FRACTION),
        "copies": NumberInfo("copies of training images", better="lower", bounds=FRACTION),
        "distance": NumberInfo("median distance to the nearest training image", bounds=NON_NEGATIVE),
    },
    ("training",),
)
SPREAD = Metric(
    _fit_spread,
    ("images", "labels"),
    ("images", "labels"),
    {"ratio": NumberInfo("spread within a class, relative to the reference", bounds=NON_NEGATIVE)},
)


def _check(what: str, images: NDArray[np.uint8]) -> None:
    # Do not require np.ndarray: the images of a store may be `Shards`.
    shape, kind = getattr(images, "shape", ()), getattr(images, "dtype", type(images).__name__)
    if kind != np.uint8 or len(shape) != 4 or 0 in shape:
        raise DuetError(f"{what}: {kind} with shape {shape} was given; it must be uint8 with shape (N, H, W, C)")
