"""How often a classifier is right at each level of noise: the group `accuracy` of `experiments.evaluate`.

none      not measured
levels    at levels of equal distance, from the cleanest to the noisiest
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from diffusion_core.common.errors import DuetError
from diffusion_core.metrics.accuracy import correct_predictions
from experiments.evaluation.context import EvaluationContext, Measure, Measurement, mean_number
from experiments.runtime.data import check_data
from experiments.runtime.progress import Counter

__all__ = ["METHODS"]


def _levels(given: EvaluationContext, *, count: int = 10, batch: int = 256) -> Measure:
    """The accuracy at so many levels, on every image of the data set.

    Args:
        given: the checkpoint and the data.
        count: of levels, at least 2.
        batch: images at once.
    """
    model, dataset = given.checkpoint.model, given.dataset
    if not model.classifies:
        raise DuetError("accuracy: the checkpoint is of a network that is no classifier")
    check_data(dataset, model.spec)
    for name, value, least in (("count", count, 2), ("batch", batch, 1)):
        if value < least:
            raise DuetError(f"accuracy.{name}: {value} was given; it must be at least {least}")
    span = model.process.schedule.span
    levels = np.linspace(*span, count)
    levels = levels.round() if model.process.schedule.is_table else levels
    given.asks(len(dataset) * count, batch)

    def measure(out: Path) -> Measurement:
        collective = given.backend.collective
        mine = collective.group.slice_of(len(dataset), batch)
        with Counter("accuracy", count * (mine.stop - mine.start), unit="evaluations") as progress:
            part = correct_predictions(
                given.network.forward, model.process, dataset.images, dataset.labels, levels, given.seed, batch,
                progress, dtype=given.backend.config.host_dtype, value_range=model.value_range, subset=mine,
            )  # fmt: skip
        found = collective.gather(part.T, len(dataset), batch).T
        facts = {"seed": given.seed, "data": given.data_facts()}
        numbers = (
            mean_number(given, f"accuracy at t = {t:g}", right, f"t = {t:g}", {"metric": "accuracy", **facts}, "higher")
            for t, right in zip(levels, found, strict=True)
        )
        shares = {"levels": levels.tolist(), "accuracy": found.mean(axis=1).tolist()}
        return Measurement(shares | facts | given.checkpoint_facts(), tuple(numbers))

    return measure


METHODS: Mapping[str, Callable[..., Measure]] = {"levels": _levels}
