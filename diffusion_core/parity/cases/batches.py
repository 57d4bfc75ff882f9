"""Weights and training batches, the same in both frameworks."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import DTypeLike

from diffusion_core.backend.interface import TrainBatch
from diffusion_core.common.random import Stream
from diffusion_core.data import Dataset, Loader, load_dataset
from diffusion_core.networks import Program
from diffusion_core.networks.weights import Weights, initial_weights
from diffusion_core.parity.cases.networks import PARITY
from diffusion_core.parity.cases.processes import EDM, PROCESS, SEED
from diffusion_core.training.loop import make_batch
from diffusion_core.training.objective import Objective
from diffusion_core.training.validation import Validation

__all__ = [
    "cast",
    "digits_batch",
    "edm_batch",
    "noise_batch",
    "scattered_weights",
    "validation",
]


def scattered_weights(
    program: Program, gain: float = 1.0, scatter: float = 0.2, dtype: DTypeLike = np.float64
) -> Weights:
    """Return initial weights with random offsets on all constants (zero biases, unit norms)."""
    weights = initial_weights(program, SEED, dtype)
    for p in program.parameters:
        if p.init[0] == "constant":
            offset = scatter * Stream(SEED, f"parity/{p.name}").normal([0], p.shape)[0]
            weights[p.name] = (p.init[1] + offset).astype(dtype)
    return {name: gain * value for name, value in weights.items()}


def noise_batch(program: Program, shape: tuple[int, int, int], size: int = 4) -> TrainBatch:
    """Return a float64 training batch of smooth noise for any network; its labels include the null label.

    The processes here have c_in = 1 and weight = 1; the batch has other values, so that a backend cannot ignore them.

    Args:
        program: the network.
        shape: of one image.
        size: number of images.
    """
    index = np.arange(size)
    images = np.tanh(Stream(SEED, "parity/images").normal(index, shape))
    labels = Stream(SEED, "parity/label").integers(index, max(program.classes, 1))
    objective = Objective(
        PROCESS, SEED, null_label=program.null_label, label_dropout=0.0 if program.null_label is None else 0.3,
        classes=program.classes,
    )  # fmt: skip
    c_in, weight = Stream(SEED, "parity/columns").uniform(index, 2).T + 0.5
    features = Stream(SEED, "parity/features").normal(index, (program.features,))
    return replace(objective.batch(images, labels, index, np.float64), c_in=c_in, weight=weight, features=features)


def edm_batch(program: Program, shape: tuple[int, int, int], size: int = 4) -> TrainBatch:
    """Return the same batch in continuous time, with noise of any scale and all columns varying."""
    batch, index = noise_batch(program, shape, size), np.arange(size)
    levels, weighting = {"name": "log_normal", "mean": 0.5, "std": 2.0}, {"name": "snr"}
    other = Objective(EDM, SEED, timestep_sampling=levels, weighting=weighting).batch(
        batch.images, index, index, np.float64
    )
    names = ("alpha", "sigma", "c_in", "c_noise", "target_x0", "target_eps", "weight")
    return replace(batch, **{name: getattr(other, name) for name in names})


def digits_batch(images_seen: int, size: int) -> TrainBatch:
    """Return the float64 batch of a step of the parity training."""
    loader = Loader(_digits(), SEED, dtype=np.float64)
    objective = Objective(PARITY.process, SEED, null_label=PARITY.program.null_label, label_dropout=0.1)
    return make_batch(loader, objective, images_seen, size)


@cache
def validation(dtype: type) -> Validation:
    """Return the validation of the parity training, on the digits that are held out."""
    objective = Objective(PARITY.process, SEED, null_label=PARITY.program.null_label, label_dropout=0.1)
    return Validation(PARITY, objective, load_dataset("digits", part="held_out"), count=64, batch=32, dtype=dtype)


def cast(batch: TrainBatch, dtype: type) -> TrainBatch:
    """Return a float64 batch in another dtype; c_noise stays float64."""
    unchanged = ("c_noise", "label", "positions", "dropout_key")
    fields = {name: value for name, value in batch.arrays.items() if name not in unchanged}
    return replace(batch, **{name: value.astype(dtype) for name, value in fields.items()})


@cache
def _digits() -> Dataset:
    return load_dataset("digits", part="train")
