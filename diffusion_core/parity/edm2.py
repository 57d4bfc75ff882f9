"""Rungs 7 and 8 for a small EDM2: forced normalisation, learned weighting and its learning rate over ten steps.

The run that the other framework continues at `HANDOVER` is recorded with the state that it hands over.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.interface import Backend, TrainerState
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import EDM2Spec
from diffusion_core.networks.weights import initial_weights
from diffusion_core.optim import Power
from diffusion_core.optim.adam import Adam, LearningRate
from diffusion_core.parity import cases
from diffusion_core.training.objective import Objective

__all__ = ["HANDOVER", "MODEL", "PARTS", "STEPS", "continue_training", "record_training"]

Arrays = dict[str, NDArray]

STEPS, HANDOVER, BATCH = 10, 5, 4
# What is recorded of the last state.
PARTS = ("weights", "moving average")
MODEL = DiffusionModel(
    EDM2Spec(
        4, 2, 2, num_classes=3, channels=8, channel_multipliers=(1,), blocks_per_resolution=1,
        attention_resolutions=(), head_channels=4, logvar_channels=8,
    ),
    "edm", "edm", sigma_data=0.6,
)  # fmt: skip
# The first step has rate 0 and decay 0; the rate then rises for three steps and falls.
_ADAM, _RATE, _PROFILE = Adam(beta2=0.99, clip=None), LearningRate(1e-2, 12, "edm2", decay_start_images=16), Power(0.1)
_OBJECTIVE = Objective.for_model(
    MODEL, cases.SEED, label_dropout=0.2, timestep_sampling={"name": "log_normal", "mean": -0.4, "std": 1.0},
    weighting={"name": "edm"},
)  # fmt: skip


def _train(backend: Backend, state: TrainerState) -> tuple[NDArray, dict[int, TrainerState]]:
    """Train to the last step; return the losses, and the first, the handed over and the last state by their updates."""
    trainer = backend.trainer(MODEL.program, state, _ADAM, "mse")
    images = cases.noise_batch(MODEL.program, MODEL.spec.image_shape, STEPS * BATCH).images
    losses, states = [], {state.updates: trainer.state()}
    for step in range(state.updates + 1, STEPS + 1):
        index = np.arange((step - 1) * BATCH, step * BATCH)
        batch = _OBJECTIVE.batch(images[index], index % MODEL.spec.num_classes, index, np.float64)
        lr, decay = _RATE(step * BATCH, BATCH), float(_PROFILE(step, step * BATCH, BATCH))
        losses.append(float(trainer.step(cases.cast(batch, backend.config.host_dtype), lr, (decay,)).loss))
        if step in (HANDOVER, STEPS):
            states[step] = trainer.state()
    return np.array(losses), states


def record_training(backend: Backend) -> Arrays:
    """Return the losses, the last weights and average, and the state that is handed over, under names for a record."""
    weights = initial_weights(MODEL.program, cases.SEED, backend.config.host_dtype)
    losses, states = _train(backend, TrainerState.fresh(weights))
    arrays = {"7/EDM2 losses": losses} | _state_arrays("8/EDM2 handed over", states[HANDOVER])
    return arrays | _last_arrays("7/EDM2 ", states[STEPS])


def continue_training(backend: Backend, record: Mapping[str, NDArray]) -> Arrays:
    """Continue from the state that another framework's record hands over."""
    prefix = "8/EDM2 handed over/"
    handed = {name.removeprefix(prefix): array for name, array in record.items() if name.startswith(prefix)}
    updates, parts = int(handed.pop("updates")), {}
    for name, array in handed.items():
        part, _, parameter = name.partition("/")
        parts.setdefault(part, {})[parameter] = array
    losses, states = _train(backend, TrainerState.from_parts(parts, updates))
    arrays = {"8/EDM2 losses": losses} | _state_arrays("8/EDM2 taken over", states[HANDOVER])
    return arrays | _last_arrays("8/EDM2 final ", states[STEPS])


def _last_arrays(prefix: str, state: TrainerState) -> Arrays:
    values = zip(PARTS, (state.weights, state.ema), strict=True)
    return {f"{prefix}{part}/{name}": array for part, arrays in values for name, array in arrays.items()}


def _state_arrays(prefix: str, state: TrainerState) -> Arrays:
    arrays: Arrays = {f"{prefix}/updates": np.int64(state.updates)}
    for part, values in state.parts.items():
        arrays |= {f"{prefix}/{part}/{name}": value for name, value in values.items()}
    return arrays
