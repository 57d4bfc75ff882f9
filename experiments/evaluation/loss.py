"""The loss of a checkpoint on the images of a data set: the group `loss` of `duet evaluate`.

none          not measured
validation    the validation loss of `training.validation`, over all noise levels and at each of them

The objective and the seed are those of the run of the checkpoint, and imported weights have the default objective. With
the same images and the same `count`, the number equals the validation loss that the run logged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from diffusion_core.common.errors import DuetError
from diffusion_core.runs.checkpoint import Checkpoint
from diffusion_core.training.objective import OPTIONS, REGRESSION, Objective
from diffusion_core.training.validation import Validation
from experiments.evaluation.context import EvaluationContext, Measure, Measurement
from experiments.runtime.data import check_data
from experiments.runtime.progress import Counter
from experiments.sampling.conditions import check_class_names

__all__ = ["LOSS_METHODS"]


def _objective(checkpoint: Checkpoint) -> Objective:
    """Return the objective that a checkpoint was trained for."""
    noted = checkpoint.notes.get("trained_for", {})
    if (name := noted.get("objective", {}).get("name", REGRESSION)) != REGRESSION:
        raise DuetError(
            f"loss: validation was given, but the checkpoint was trained with objective={name}, whose targets need the "
            f"trainer; measure its samples instead"
        )
    options = {name: noted[f"process.{name}"] for name in OPTIONS if f"process.{name}" in noted}
    return Objective.for_model(checkpoint.model, checkpoint.seed, **options)


def _validation(context: EvaluationContext, *, count: int = 512, batch: int = 128) -> Measure:
    """Measure the validation loss.

    Args:
        context: the checkpoint and the data.
        count: the number of images with their noise; see `training.validation.Validation`.
        batch: images per batch.
    """
    model, dataset, part = context.checkpoint.model, context.dataset, str(context.data_facts()["split"])
    check_data(dataset, model.spec)
    check_class_names("data", context.checkpoint, dataset.class_names, "use the data set of the run")
    dtype = context.setup.backend.config.host_dtype
    validation = Validation(model, _objective(context.checkpoint), dataset, part, count, batch, dtype)
    context.plan_calls(count, batch)

    def measure(out: Path) -> Measurement:
        collective = context.backend.collective
        own = collective.group.slice_of(count, batch)
        with Counter("loss", own.stop - own.start, unit="evaluations") as progress:
            values = validation.values(context.network.forward, collective, progress)
        images = validation.facts()
        objective = validation.objective.options | {"seed": context.checkpoint.seed}
        protocol = {"metric": "loss", "data": context.data_facts(), "count": count, "objective": objective}
        numbers = []
        for metric, draws in values.items():
            better = "lower" if metric == "loss" else "higher"
            numbers.append(context.mean_number(f"validation {metric}", draws, metric, protocol, better))
            for level, described in enumerate(images["levels"]):
                first, last = described["t"]
                selected = draws[validation.draw_levels == level]
                key = f"{metric}, level {level + 1}"
                name = f"validation {metric} at t = {first:.4g} to {last:.4g}"
                numbers.append(context.mean_number(name, selected, key, protocol, better))
        facts = {"data": context.data_facts(), "validation": images, "objective": objective}
        means = {metric: float(draws.mean()) for metric, draws in values.items()}
        return Measurement(means | facts | context.checkpoint_facts(), tuple(numbers))

    return measure


LOSS_METHODS: Mapping[str, Callable[..., Measure]] = {"validation": _validation}
