"""The Fréchet distance of samples to a data set: group `frechet` of `experiments.evaluate`, and the end of a training.

The name of the group is that of the features (`features.FEATURES`), and only what `Features.score` calls FID is one.

Samples are the uint8 pictures that were saved; the reference is every picture of the data set as it is stored, never
mirrored, of the same size. The distance rises as either set gets smaller, so it stands with both numbers, and two of
them compare only where all else in the protocol is the same too.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.data import Dataset
from diffusion_core.errors import DuetError
from diffusion_core.metrics.frechet import frechet_distance
from experiments.evaluation.given import Given, Measure, Measured, Row
from experiments.progress import Counter
from features import FEATURES, Features, extract

__all__ = ["METHODS", "check", "distance"]

BATCH = 50  # pictures of 299 x 299 at once


def check(features: Features, shape: tuple[int, ...], dataset: Dataset) -> None:
    """Refuse samples of a shape (N, H, W, C) that cannot be compared with the data by these features."""
    if shape[0] < 2:
        raise DuetError(
            f"frechet: {shape[0]} samples were given; a Fréchet distance needs 2, and means little below 1,000"
        )
    if shape[1:] != dataset.images.shape[1:]:
        raise DuetError(
            f"frechet: the samples are {shape[1:]} (h, w, c) and the pictures of {dataset.name} "
            f"{dataset.images.shape[1:]}; bring the data to the size of the samples with data.options"
        )
    features.of(np.ascontiguousarray(dataset.images[:1]))


def distance(features: Features, images: NDArray[np.uint8], dataset: Dataset) -> dict[str, Any]:
    """The distance of samples to a data set, with its protocol, as plain data."""
    found = []
    for title, pictures in (("samples", images), ("data", dataset.images)):
        with Counter(f"features of the {title}", len(pictures)) as progress:
            found.append(extract(features, pictures, BATCH, progress))
    return {
        "score": features.score,
        "value": frechet_distance(*found),
        "samples": len(images),
        "references": len(dataset),
        "quantised": "uint8",
        **features.facts,
    }


def describe(facts: Mapping[str, Any]) -> str:
    """The number for people, which is never without the number of samples."""
    return f"{facts['score']} ({facts['samples']:,} samples, {facts['references']:,} references)"


def _method(kind: Callable[..., Features]) -> Callable[..., Measure]:
    """The metric on one kind of features; its options are those of the features."""

    @functools.wraps(kind)
    def method(given: Given, **options: Any) -> Measure:
        features = kind(**options)
        images, _ = given.samples
        check(features, images.shape, given.dataset)

        def measure(out: Path) -> Measured:
            facts = distance(features, images, given.dataset)
            row = Row(describe(facts), facts["value"])
            return Measured(facts | {"samples": given.sample_facts(), "references": given.data_facts()}, (row,))

        return measure

    own = inspect.signature(kind)
    first = inspect.Parameter("given", inspect.Parameter.POSITIONAL_ONLY)
    method.__signature__ = own.replace(parameters=[first, *own.parameters.values()])
    return method


METHODS: Mapping[str, Callable[..., Measure]] = {name: _method(kind) for name, kind in FEATURES.items()}
