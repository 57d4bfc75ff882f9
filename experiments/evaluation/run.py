"""Evaluate saved samples and checkpoints, and write the result into a directory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from diffusion_core.common.errors import DuetError
from diffusion_core.common.registry import build
from diffusion_core.files.atomic import write_atomically
from diffusion_core.metrics.protocol import Number, nested
from diffusion_core.runs.run_directory import describe_environment, write_json
from experiments.evaluation.accuracy import ACCURACY_METHODS
from experiments.evaluation.context import EvaluationContext, Measure
from experiments.evaluation.likelihood import LIKELIHOOD_METHODS
from experiments.evaluation.loss import LOSS_METHODS
from experiments.evaluation.samples import measure_samples
from experiments.evaluation.setup import EvaluationSetup

__all__ = ["CHECKPOINT_METHODS", "EvaluationResult", "evaluate"]

# The methods that evaluate a checkpoint, by configuration group and name.
CHECKPOINT_METHODS: Mapping[str, Mapping[str, Callable[..., Measure]]] = {
    "likelihood": LIKELIHOOD_METHODS,
    "accuracy": ACCURACY_METHODS,
    "loss": LOSS_METHODS,
}


@dataclass(frozen=True)
class EvaluationResult:
    """The numbers of an evaluation.

    Args:
        numbers: each with its protocol and interval.
        skipped: the reason by name, for each metric that could not be computed.
    """

    numbers: tuple[Number, ...]
    skipped: Mapping[str, str]


def evaluate(
    setup: EvaluationSetup, out: str | Path, config: Callable[[str | None], str] | None = None
) -> EvaluationResult | None:
    """Check everything that is requested, measure it, and write it into the directory `out`.

    Args:
        setup: what to evaluate.
        out: gets evaluation.json, environment.json and the files of the measurements.
        config: returns the configuration as YAML for config.yaml; it takes the name of the chosen weights, or None.

    Returns:
        The numbers; None in a process that only helps the main process to compute.

    Raises:
        DuetError: nothing is requested, or an input or an option is invalid.
    """
    context, out = EvaluationContext(setup), Path(out)
    measures = _prepare(context)
    for note in context.notes:
        print(note, flush=True)
    if not setup.backend.group.is_main_process:
        with tempfile.TemporaryDirectory() as discarded:
            for group, measure in measures.items():
                if group != "samples":
                    measure(Path(discarded))
        return None
    # Samples need no backend, so that they can be evaluated in an environment without one.
    needs_backend = bool(set(measures) - {"samples"})
    environment = describe_environment(context.backend.describe() if needs_backend else None)
    results = {group: measure(out) for group, measure in measures.items()}
    numbers = tuple(number for result in results.values() for number in result.numbers)
    if config is not None:
        write_atomically(out / "config.yaml", config(context.weights if needs_backend else None).encode())
    write_json(out / "environment.json", environment)
    facts = {group: result.facts for group, result in results.items()}
    write_json(out / "evaluation.json", {"numbers": nested(numbers), **facts})
    return EvaluationResult(numbers, facts["samples"]["left_out"] if "samples" in facts else {})


def _prepare(context: EvaluationContext) -> dict[str, Measure]:
    """Return the requested measurements by group, checked and ready to run."""
    measures = {}
    for group, methods in CHECKPOINT_METHODS.items():
        options = dict(getattr(context.setup, group))
        name = options.pop("name", "none")
        if name != "none":
            measures[group] = build(group, methods, name, options, context)
    if context.setup.samples:
        measures["samples"] = measure_samples(context)
    if not measures:
        choices = ", ".join(f"{group}={name}" for group, methods in CHECKPOINT_METHODS.items() for name in methods)
        raise DuetError(f"evaluate: nothing was requested; add samples=RUN, or checkpoint=RUN with one of {choices}")
    return measures
