"""Lengths that have no effect in a run, or hardly any; each is named in one line at the start.

`TrainingSetup.create` refuses those that can only be an error. Every length is in images seen, except the `start` of an
average, which is in updates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields

import numpy as np

from diffusion_core.backend.interface import average_names
from diffusion_core.optim import initial_weight
from diffusion_core.optim.adam import LearningRate
from experiments.runtime.options import read_option
from experiments.training.setup import TrainingSetup

__all__ = ["describe_lengths"]

_INITIAL_TARGET = 0.1  # of the average that computes targets; more of the initial network spoils them
_MOST_UPDATES = 1000  # that are looked at; decays change slowly
_TINY = 1e-6  # of the peak: below it, a learning rate changes nothing that matters


def describe_lengths(setup: TrainingSetup) -> list[str]:
    """Return one line for each length of a setup that has no effect in its run, or hardly any."""
    kinds = (_of_rate, _of_averages, _of_target_average, _of_intervals, _of_batch, _of_history)
    return [line for kind in kinds for line in kind(setup)]


def _of_rate(setup: TrainingSetup) -> Iterator[str]:
    rate, images = setup.learning_rate, setup.training_config.images
    yield from _of_other_decays(rate)
    if rate.warmup_images > images:
        yield (
            f"lr.warmup_images: the warm-up of {rate.warmup_images:,} images is longer than the run of {images:,}; the "
            f"learning rate rises to {rate(images):.3g} and never reaches lr.peak, {rate.peak:.3g}"
        )
        return
    if rate.is_finite and rate.total_images > images:
        yield (
            f"lr.total_images: the decay ends at {rate.total_images:,} images, after the run of {images:,}; the last "
            f"learning rate is {rate(images):.3g}"
        )
    if rate.decay == "steps" and rate.floor < _TINY * rate.peak:
        steps = math.floor(math.log(_TINY) / math.log(rate.factor)) + 1
        tiny = rate.warmup_images + steps * rate.every_images
    else:
        tiny = images
    if tiny < images:
        yield (
            f"lr.factor: from {tiny:,} images on the learning rate is below {_TINY:g} of lr.peak, so that the rest of "
            f"the run changes next to nothing; give lr.floor, a larger lr.factor or larger lr.every_images"
        )
    begins = {
        "steps": ("lr.every_images", rate.warmup_images + rate.every_images),
        "inverse_sqrt": ("lr.decay_start_images", rate.decay_start_images),
        "edm2": ("lr.decay_start_images", rate.decay_start_images),
    }
    key, begin = begins.get(rate.decay, ("", 0))
    if begin >= images:
        yield (
            f"{key}: the decay begins after {begin:,} images, at the end of the run of {images:,} or later; the "
            f"learning rate does not decay"
        )


def _of_other_decays(rate: LearningRate) -> Iterator[str]:
    """Yield a line for each option that belongs to another decay than the one that was chosen."""
    decays = {
        "total_images": ("linear", "cosine"), "every_images": ("steps",), "factor": ("steps",),
        "decay_start_images": ("inverse_sqrt", "edm2"),
    }  # fmt: skip
    for field in fields(rate):
        own = decays.get(field.name)
        if own and rate.decay not in own and getattr(rate, field.name) != field.default:
            yield (
                f"lr.{field.name}: {getattr(rate, field.name)} has no effect with lr.decay={rate.decay}; it belongs to "
                f"lr.decay={' or '.join(own)}"
            )


def _of_averages(setup: TrainingSetup) -> Iterator[str]:
    config = setup.training_config
    updates = config.images // config.batch
    for name, profile in zip(average_names(len(setup.ema.profiles)), setup.ema.profiles, strict=True):
        start = getattr(profile, "start", 0)
        if start >= updates:
            yield (
                f"ema.start: {name} begins to average after {start:,} updates, and the run has {updates:,}; {name} "
                f"equals the weights"
            )
        elif (initial := initial_weight(profile, updates, config.batch, start)) >= 0.5:
            yield (
                f"ema: at the end of the run {initial:.1%} of {name} is still what it began with; use a shorter "
                f"average, or ema=warmup"
            )


def _of_target_average(setup: TrainingSetup) -> Iterator[str]:
    """Targets by an average that is still what it began with teach that, however good the trained network is."""
    objective, config = setup.objective, setup.training_config
    if not objective.uses_average:
        return
    updates = config.images // config.batch
    at = np.unique(np.linspace(0, updates - 1, min(updates, _MOST_UPDATES)).astype(int))
    decays = [objective.average_decays(int(step) * config.batch, config.batch)[0] for step in at]
    initial = float(np.prod(decays) ** (updates / len(at)))
    if initial >= _INITIAL_TARGET:
        yield (
            f"objective.decay: at the end of the run {initial:.1%} of the average that targets are computed with is "
            f"still what it began with; use a smaller decay, or a longer run"
        )


def _of_intervals(setup: TrainingSetup) -> Iterator[str]:
    config, default = setup.training_config, read_option("trainer", "default")
    names = ("checkpoint_images", "sample_images")
    # A default that is longer than a short run was not meant to have an effect.
    intervals = {f"trainer.{name}": getattr(config, name) for name in names if getattr(config, name) != default[name]}
    intervals["ema.snapshot_images"] = setup.ema.snapshot_images
    late = [f"{key}={interval}" for key, interval in intervals.items() if interval > config.images]
    if late:
        yield f"{', '.join(late)}: longer than the run of {config.images:,} images, so it happens at the end only"


def _of_batch(setup: TrainingSetup) -> Iterator[str]:
    batch, images = setup.training_config.batch, len(setup.loader.dataset)
    if batch > images:
        yield f"trainer.batch: {batch:,} is more than the {images:,} images of the data; every batch repeats images"


def _of_history(setup: TrainingSetup) -> Iterator[str]:
    history, images = setup.objective.timestep_sampler.empty_history(), setup.training_config.images
    if history is not None and history.losses.size > images:
        yield (
            f"process.timestep_sampling: it follows the losses once it has {history.losses.size:,} of them, "
            f"{history.losses.shape[1]} at each timestep; the run has {images:,} images, so it stays uniform"
        )
