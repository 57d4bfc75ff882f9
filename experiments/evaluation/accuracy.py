"""The accuracy of a classifier at each noise level: the group `accuracy` of `duet evaluate`.

none      not measured
levels    at equally spaced noise levels, from the cleanest to the noisiest
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from diffusion_core.common.errors import DuetError
from diffusion_core.metrics.accuracy import correct_predictions
from experiments.evaluation.context import EvaluationContext, Measure, Measurement
from experiments.runtime.data import check_data
from experiments.runtime.progress import Counter
from experiments.sampling.conditions import check_class_names

__all__ = ["ACCURACY_METHODS"]


def _levels(context: EvaluationContext, *, count: int = 10, batch: int = 256) -> Measure:
    """Measure the accuracy at equally spaced noise levels, on every image of the data set.

    Args:
        context: the checkpoint and the data.
        count: the number of levels, at least 2.
        batch: images per batch.
    """
    model, dataset = context.checkpoint.model, context.dataset
    if not model.classifies:
        raise DuetError("accuracy: this checkpoint is not a classifier; use a checkpoint of a classifier")
    check_data(dataset, model.spec)
    check_class_names("data", context.checkpoint, dataset.class_names, "use the data set of the run")
    for name, value, least in (("count", count, 2), ("batch", batch, 1)):
        if value < least:
            raise DuetError(f"accuracy.{name}: {value} was given; it must be at least {least}")
    levels = np.linspace(*model.process.schedule.span, count)
    levels = levels.round() if model.process.schedule.is_table else levels
    context.plan_calls(len(dataset) * count, batch)

    def measure(out: Path) -> Measurement:
        collective = context.backend.collective
        own = collective.group.slice_of(len(dataset), batch)
        with Counter("accuracy", count * (own.stop - own.start), unit="evaluations") as progress:
            own_correct = correct_predictions(
                context.network.forward, model.process, dataset.images, dataset.labels, levels, context.seed, batch,
                progress, dtype=context.backend.config.host_dtype, value_range=model.value_range, subset=own,
                stored_range=dataset.value_range,
            )  # fmt: skip
        correct = collective.gather(own_correct.T, len(dataset), batch).T
        facts = {"seed": context.seed, "data": context.data_facts()}
        protocol = {"metric": "accuracy", **facts}
        numbers = (
            context.mean_number(f"accuracy at t = {t:g}", values, f"t = {t:g}", protocol, "higher")
            for t, values in zip(levels, correct, strict=True)
        )
        accuracy = {"levels": levels.tolist(), "accuracy": correct.mean(axis=1).tolist()}
        return Measurement(accuracy | facts | context.checkpoint_facts(), tuple(numbers))

    return measure


ACCURACY_METHODS: Mapping[str, Callable[..., Measure]] = {"levels": _levels}
