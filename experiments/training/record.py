"""The record of what gives the weights of a run their meaning, which every checkpoint of the run holds."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np

from diffusion_core.optim import optimiser_options, profile_options
from diffusion_core.runs.checkpoint import Checkpoint
from diffusion_core.runs.training_record import DataRecord, TrainingRecord
from experiments.training.setup import TrainingSetup

__all__ = ["data_record", "fresh_record", "record_at"]


def data_record(setup: TrainingSetup) -> DataRecord:
    """Return the record of the data of a setup; the first call for a data set reads all of it for the hash."""
    loader, options = setup.loader, dict(setup.data_options)
    dataset = loader.dataset
    return DataRecord(
        name=dataset.name,
        sha256=dataset.sha256,
        images=len(dataset),
        class_names=dataset.class_names,
        class_images=tuple(np.bincount(dataset.labels, minlength=dataset.num_classes).tolist()),
        part=options.get("part"),
        options=options,
        flip=loader.flip,
        augment=loader.augment,
        dtype=dataset.images.dtype.name,
        condition_names=dataset.condition_names,
        latents={} if dataset.latents is None else dataset.latents.to_dict(),
    )


def fresh_record(setup: TrainingSetup) -> TrainingRecord:
    """Return the record of a run that has seen no image."""
    objective = setup.objective.options
    return TrainingRecord(
        data=data_record(setup),
        process=_process_options(setup) | objective,
        label_dropout=setup.objective.label_dropout,
        dropped_labels=0,
        batch=setup.training_config.batch,
        optimiser=optimiser_options(setup.optimiser),
        learning_rate=asdict(setup.learning_rate),
        averages=tuple(profile_options(profile) for profile in setup.ema.profiles),
        sampler=dict(setup.sampler),
        sample=asdict(setup.sample),
        init=getattr(setup.model.spec, "init", None),
    )


def record_at(setup: TrainingSetup, start: Checkpoint, images_seen: int) -> TrainingRecord:
    """Return the record of a run after `images_seen` images, which began at the checkpoint `start`.

    The images without a class are counted by their probability; what the weights of `start` were trained with before
    counts too.
    """
    record, before = fresh_record(setup), start.training
    dropped = _dropped_before(start)
    if dropped is not None:
        dropped += round(record.label_dropout * (images_seen - start.images_seen))
    earlier: tuple[DataRecord, ...] = ()
    if before is not None:
        is_other = start.images_seen > 0 and before.data.sha256 != record.data.sha256
        earlier = before.earlier_data + ((before.data,) if is_other else ())
    return replace(record, dropped_labels=dropped, earlier_data=earlier)


def _dropped_before(start: Checkpoint) -> int | None:
    """Return how many images the weights of a checkpoint were trained on without their class; None if unknown."""
    if start.training is not None:
        return start.training.dropped_labels
    # An earlier version noted the rate of the last part of the training only.
    rate = start.notes.get("trained_for", {}).get("process.label_dropout", 0.0)
    return round(rate * start.images_seen) if rate else None


def _process_options(setup: TrainingSetup) -> dict[str, Any]:
    options = setup.model.to_dict()
    return {name: value for name, value in options.items() if name not in ("architecture", "spec")}
