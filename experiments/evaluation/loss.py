"""The loss of a checkpoint on the images of a data set: the group `loss` of `duet evaluate`.

none          not measured
validation    the validation loss of `training.validation`, over all noise levels and at each of them

The objective and the seed are those of the run of the checkpoint, and imported weights have the default objective. With
the same images and the same `count`, the number equals the validation loss that the run logged. A method whose target
needs a teacher needs it here too, as `loss.teacher=RUN`; its average is that of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diffusion_core.common.errors import DuetError
from diffusion_core.runs.checkpoint import Checkpoint
from diffusion_core.training.objective import OPTIONS, REGRESSION, Objective
from diffusion_core.training.targets import METHODS, TrainedNetwork
from diffusion_core.training.validation import Validation
from experiments.evaluation.context import EvaluationContext, Measure, Measurement
from experiments.runtime.data import check_data
from experiments.runtime.progress import Counter
from experiments.runtime.teacher import load_teacher
from experiments.sampling.conditions import check_class_names

__all__ = ["LOSS_METHODS"]


def _objective(checkpoint: Checkpoint, teacher: str | None, teacher_weights: str | None) -> Objective:
    """Return the objective that a checkpoint was trained for."""
    noted = checkpoint.notes.get("trained_for", {})
    options = {name: noted[f"process.{name}"] for name in OPTIONS if f"process.{name}" in noted}
    method = {"name": REGRESSION} | dict(noted.get("objective", {}))
    sha256 = method.pop("teacher", None)
    taught = _teacher(method["name"], sha256, teacher, teacher_weights)
    return Objective.for_model(checkpoint.model, checkpoint.seed, taught, objective=method, **options)


def _teacher(name: str, sha256: str | None, path: str | None, weights: str | None) -> TrainedNetwork | None:
    """Return the teacher of a target; None for a method whose target needs none.

    Raises:
        DuetError: if it is missing, or its weights are not those that the checkpoint was trained with.
    """
    if name == REGRESSION or not METHODS[name].needs_teacher:
        if path is not None:
            raise DuetError(
                f"loss.teacher: {path} was given, but the target of objective={name} has no teacher; use null"
            )
        return None
    if path is None:
        raise DuetError(
            f"loss.teacher: nothing was given, but the checkpoint was trained with objective={name}; add "
            f"loss.teacher=RUN, the teacher of its run"
        )
    taught = load_teacher(path, weights).network
    if sha256 is not None and taught.sha256 != sha256:
        raise DuetError(
            f"loss.teacher: {path} was given, but the checkpoint was trained with other weights of a teacher (hash "
            f"{sha256[:8]}); give its run, or loss.teacher_weights"
        )
    return taught


def _networks(context: EvaluationContext, objective: Objective) -> Any:
    """Return what `Validation.values` evaluates: the network, or all networks of a target by name."""
    if objective.training_method is None:
        return context.network.forward
    networks, checkpoint, target = {"trained": context.network}, context.checkpoint, objective.loss
    if "average" in target.networks:
        average = checkpoint.state.averages[-1]
        networks["average"] = context.backend.network(checkpoint.model.program, average)
    if target.teacher is not None:
        networks["teacher"] = context.backend.network(target.teacher.program, target.teacher.weights)
    return networks


def _validation(
    context: EvaluationContext,
    *,
    count: int = 512,
    batch: int = 128,
    teacher: str | None = None,
    teacher_weights: str | None = None,
) -> Measure:
    """Measure the validation loss.

    Args:
        context: the checkpoint and the data.
        count: the number of images with their noise; see `training.validation.Validation`.
        batch: images per batch.
        teacher: the run of the teacher, of a method whose target needs it.
        teacher_weights: as `objective.teacher_weights`.
    """
    model, dataset, part = context.checkpoint.model, context.dataset, str(context.data_facts()["split"])
    check_data(dataset, model.spec)
    check_class_names("data", context.checkpoint, dataset.class_names, "use the data set of the run")
    dtype = context.setup.backend.config.host_dtype
    objective = _objective(context.checkpoint, teacher, teacher_weights)
    validation = Validation(model, objective, dataset, part, count, batch, dtype)
    context.plan_calls(count, batch)

    def measure(out: Path) -> Measurement:
        collective = context.backend.collective
        own = collective.group.slice_of(count, batch)
        with Counter("loss", own.stop - own.start, unit="evaluations") as progress:
            values = validation.values(_networks(context, validation.objective), collective, progress)
        images = validation.facts()
        objective = validation.objective.options | {"seed": context.checkpoint.seed}
        protocol = {"metric": "loss", "data": context.data_facts(), "count": count, "objective": objective}
        numbers = []
        for metric, draws in values.items():
            better = "lower" if metric == "loss" else "higher"
            numbers.append(context.mean_number(f"validation {metric}", draws, metric, protocol, better))
            for level, described in enumerate(images["levels"]):
                selected = draws[validation.draw_levels == level]
                key = f"{metric}, level {level + 1}"
                name = f"validation {metric} at {_describe_range(described)}"
                numbers.append(context.mean_number(name, selected, key, protocol, better))
        facts = {"data": context.data_facts(), "validation": images, "objective": objective}
        means = {metric: float(draws.mean()) for metric, draws in values.items()}
        return Measurement(means | facts | context.checkpoint_facts(), tuple(numbers))

    return measure


def _describe_range(level: Mapping[str, Any]) -> str:
    """Return the noise levels of a bin in words."""
    name, key = ("t", "t") if "t" in level else ("sigma/alpha", "sigma_over_alpha")
    first, last = ("infinity" if end is None else f"{end:.4g}" for end in level[key])
    return f"{name} = {first} to {last}"


LOSS_METHODS: Mapping[str, Callable[..., Measure]] = {"validation": _validation}
