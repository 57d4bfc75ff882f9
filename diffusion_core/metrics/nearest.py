"""Is a sample a copy of a training image, and do samples of a class differ as real images do.

A distance is Euclidean over all values of an image on the scale 0..1, that is uint8 / 255.

A sample counts as memorised where it is at most a third as far from its nearest training image as from the second
nearest: relative to the second, since a plain image is close to many. Images that the training set itself holds
twice hide copies of them from this, so copies, at distance 0, are counted by themselves.

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
    """The training image closest to each sample, or the closest few; the first of them where several are.

    Both sets are read in blocks, so `train` may be a memory map of any length, and a copy has distance 0 exactly.

    Args:
        samples: uint8 with shape (N, H, W, C).
        train: uint8 with shape (M, H, W, C).
        count: how many; None is one, without an axis of its own.

    Returns:
        Indices into `train` and distances, both with shape (N,) or (N, count), nearest first.
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
    """The root mean square distance between two different images of a class.

    Over all pairs the mean square distance is twice the summed unbiased variance, so no pair is
    formed. Against the spread of real images, a smaller value shows samples that are too alike.

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
            # In two passes over pieces: a class of a large data set is not cast whole.
            pieces = np.array_split(members, 1 + images[0].size * len(members) // (1 << 22))
            mean = sum(images[piece].sum(axis=0, dtype=np.float64) for piece in pieces) / len(members)
            total = sum(np.sum((images[piece] - mean) ** 2) for piece in pieces)
            result[k] = np.sqrt(2.0 * total / (len(members) - 1)) / 255.0
    return result


def _fit_memorisation(reference: Arrays, seed: int, *, ratio: float = 1 / 3) -> Measure:
    """Look for copies among the training images.

    Args:
        ratio: of the distances to the nearest and the second nearest, at which a sample counts as memorised.
    """
    if not 0 < ratio < 1:
        raise DuetError(f"memorisation.ratio: {ratio} was given; it must lie between 0 and 1")
    train = reference.get("training", reference["images"])
    if len(train) < 2:
        raise NotApplicable("1 training image was given; 2 are needed")

    def measure(samples: Arrays) -> MetricResult:
        images = samples["images"]
        indices, distances = nearest(images, train, 2)
        first, second = distances.T
        memorised = first <= ratio * second
        # A copy of one of two equal images has a ratio of 0 / 0.
        relative = np.divide(first, second, out=np.zeros_like(first), where=second > 0)
        closest = np.argsort(relative, kind="stable")[:_SHOWN]

        def without(some: NDArray[np.int64]) -> dict[str, float]:
            rest, near = np.delete(memorised, some), np.delete(first, some)
            return {"memorised": rest.mean(), "copies": (near == 0).mean(), "distance": np.median(near)}

        return MetricResult(
            without(np.array([], np.int64)),
            arrays={"index": indices, "distance": distances},
            shown=(
                ("most like a\ntraining image", images[closest]),
                ("nearest", train[indices[closest, 0]]),
                ("second nearest", train[indices[closest, 1]]),
            ),
            without=without,
        )

    return measure


def _fit_spread(reference: Arrays, seed: int) -> Measure:
    classes = int(reference["labels"].max()) + 1
    real = spread(reference["images"], reference["labels"], classes)

    def measure(samples: Arrays) -> MetricResult:
        _check("samples", samples["images"])
        found = spread(samples["images"], samples["labels"], classes)
        ratio = np.divide(found, real, out=np.full(classes, np.nan), where=real > 0)
        if np.isnan(ratio).all():
            raise NotApplicable("no class has two samples, and two different images in the reference")
        return MetricResult({"ratio": np.nanmean(ratio)}, arrays={"per_class": ratio})

    return measure


MEMORISATION = Metric(
    _fit_memorisation,
    ("images",),
    ("images",),
    {
        "memorised": NumberInfo("memorised", better="lower", bounds=FRACTION),
        "copies": NumberInfo("copies of training images", better="lower", bounds=FRACTION),
        "distance": NumberInfo("median distance to the nearest training image", bounds=NON_NEGATIVE),
    },
    ("training",),
)
SPREAD = Metric(
    _fit_spread,
    ("images", "labels"),
    ("images", "labels"),
    {"ratio": NumberInfo("spread within a class, as a share of that of the reference", bounds=NON_NEGATIVE)},
)


def _check(what: str, images: NDArray[np.uint8]) -> None:
    # Not by its class: the images of a store are in several files.
    shape, kind = getattr(images, "shape", ()), getattr(images, "dtype", type(images).__name__)
    if kind != np.uint8 or len(shape) != 4 or 0 in shape:
        raise DuetError(f"{what}: {kind} with shape {shape} was given; it must be uint8 with shape (N, H, W, C)")
