"""Whether the weights were trained for what they are asked: a class, no class, guidance, an average.

Classifier-free guidance leads away from the output without a class. If no image was ever trained without its class,
this output comes from weights that are still random, and so does a sample without a class.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from diffusion_core.backend.interface import average_names
from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import pluralize
from diffusion_core.optim import initial_weight, make_profile
from diffusion_core.runs.checkpoint import Checkpoint
from diffusion_core.sampling import SamplerPlan

__all__ = ["check_class_names", "check_guided", "check_labels_trained", "describe_weights"]

_MOSTLY_INITIAL = 0.99
_ADVICE = (
    "train with process.label_dropout=0.1, or continue these weights with it: from=RUN resume=RUN hydra.run.dir=NEW "
    "process.label_dropout=0.1 change_objective=true trainer.images=MORE"
)


def check_guided(checkpoint: Checkpoint, plan: SamplerPlan, has_guide: bool = False) -> list[str]:
    """Refuse guidance away from an output that was never trained; a guide replaces that output.

    Returns:
        Lines to print where the training is not fully known.

    Raises:
        DuetError: if no image was ever trained without its class.
    """
    if checkpoint.model.program.null_label is None or has_guide or not np.any(plan.is_guided):
        return []
    scale = np.asarray(plan.guidance_scale)
    what = f"sampler.guidance_scale: {scale[np.argmax(np.abs(scale - 1))]:g} was given"
    return _check_null_class(
        checkpoint, what, "guidance leads away from the output without a class; use sampler.guidance_scale=1, or"
    )


def check_labels_trained(
    checkpoint: Checkpoint, labels: ArrayLike, key: str = "sample.labels", no_class: str | None = None
) -> list[str]:
    """Refuse samples of a class, or without a class, that no image was trained with.

    Args:
        checkpoint: the weights with the record of their training.
        labels: of the samples.
        key: the configuration key of the labels, for errors.
        no_class: what asked for samples without a class, for errors; None is that label itself.

    Returns:
        Lines to print where the training is not fully known, or a class has no image in the data.

    Raises:
        DuetError: if all images were trained without their class, or none.
    """
    program, record, labels = checkpoint.model.program, checkpoint.training, np.unique(np.asarray(labels))
    if not program.classes or not labels.size:
        return []
    lines = []
    null_label = program.null_label
    if null_label is not None and null_label in labels:
        what = f"{key}: {no_class or f'{null_label}, no class, was given'}"
        lines += _check_null_class(checkpoint, what, "the output without a class is random; give a class, or")
    classes = labels[labels != null_label] if null_label is not None else labels
    if record is None or not classes.size:
        return lines
    if record.dropped_labels is not None and record.dropped_labels >= checkpoint.images_seen > 0:
        raise DuetError(
            f"{key}: {classes[0]} was given, but every image was trained without its class (process.label_dropout was "
            f"1); use {key}={null_label}, no class, or train with process.label_dropout=0.1"
        )
    names, earlier = record.class_names, record.earlier_data
    missing = [names[k] for k in record.data.empty_class_ids if program.labels[0] + k in classes]
    if missing and not earlier:
        lines.append(f"{key}: the training data had no image of {', '.join(missing[:5])}; these samples mean nothing")
    return lines


def _check_null_class(checkpoint: Checkpoint, what: str, why: str) -> list[str]:
    record = checkpoint.training
    if record is not None and record.dropped_labels == 0 and checkpoint.images_seen > 0:
        raise DuetError(
            f"{what}, but no image was ever trained without its class (process.label_dropout was 0), and {why} "
            f"{_ADVICE}"
        )
    # A checkpoint of an earlier version knows only the last part of its training.
    if record is None and checkpoint.notes.get("trained_for", {}).get("process.label_dropout") == 0:
        return [
            f"{what}, but this run trained no image without its class (process.label_dropout 0), and {why} {_ADVICE}"
        ]
    return []


def check_class_names(what: str, checkpoint: Checkpoint, names: Sequence[str], remedy: str) -> None:
    """Refuse classes whose names differ from those that a checkpoint was trained with, if it knows them.

    Args:
        what: the configuration key of the other names, for the error.
        checkpoint: of a network with as many classes.
        names: the other names, in order.
        remedy: what to do instead, for the error.
    """
    known = checkpoint.training.class_names if checkpoint.training else ()
    if not checkpoint.model.program.classes or len(known) != len(names) or not _are_own(known) or not _are_own(names):
        return
    differing = [k for k, (one, other) in enumerate(zip(known, names, strict=True)) if one != other]
    if differing:
        k = differing[0]
        raise DuetError(
            f"{what}: its class {k} is {names[k]!r}, but the network was trained with {known[k]!r} as class {k}"
            f"{f' (and {len(differing) - 1} more differ)' if len(differing) > 1 else ''}; {remedy}"
        )


def _are_own(names: Sequence[str]) -> bool:
    """Return whether names say what the classes are, unlike "class 0" or "0"."""
    return any(name != f"class {k}" and name != str(k) for k, name in enumerate(names))


def describe_weights(checkpoint: Checkpoint, name: str) -> list[str]:
    """Return lines that say if the weights with this name have hardly been trained.

    Args:
        checkpoint: what holds them.
        name: ``"weights"``, or that of an average.
    """
    if checkpoint.images_seen == 0 and not checkpoint.notes.get("source"):
        return ["weights: the checkpoint has seen 0 images; its network is untrained"]
    if name == "weights":
        return []
    initial = _initial_weight(checkpoint, name)
    if initial < _MOSTLY_INITIAL:
        return []
    updates = pluralize(checkpoint.state.updates, "update")
    return [
        f"weights: {name} is still {100 * initial:.4g} % of what it began with, after {updates}; "
        f"train longer, use a shorter average (ema=warmup), or sample.weights=weights for the network itself"
    ]


def _initial_weight(checkpoint: Checkpoint, name: str) -> float:
    """Return the weight of the initial value in an average of a checkpoint, as far as its notes say."""
    notes, updates = checkpoint.notes, checkpoint.state.updates
    if "initial_weight" in notes:  # a reconstructed average
        return float(notes["initial_weight"])
    options = dict(zip(average_names(len(checkpoint.state.averages)), notes.get("averages") or (), strict=False)).get(
        name
    )
    if not options or not updates:
        return 0.0
    profile = make_profile(**options)
    since = getattr(profile, "start", 0)
    return initial_weight(profile, updates, checkpoint.images_seen // updates, since) if updates > since else 0.0
