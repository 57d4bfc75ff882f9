"""Rungs 7 and 8: training in lock step, and a hand-over to the other framework."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.interface import Backend, Trainer, TrainerState
from diffusion_core.networks.weights import initial_weights
from diffusion_core.optim import Ema, Power, Warmup
from diffusion_core.optim.adam import Adam, LearningRate
from diffusion_core.parity import cases, edm2
from diffusion_core.parity.trace import Arrays, Trace

__all__ = [
    "AVERAGES",
    "BATCH",
    "HANDOVER_STEP",
    "STEPS",
    "continue_training",
    "edm2_training",
    "state_arrays",
    "training",
    "training_step",
    "validation_losses",
]


STEPS, HANDOVER_STEP, BATCH = 100, 50, 16


_MARKS = (1, 10, STEPS)


# The averages of the parity training: their names in the record, and their profiles.
AVERAGES = {"average": Warmup(0.99), "second average": Power(0.1)}
_LR = LearningRate(1e-3)


def training(backend: Backend, trace: Trace) -> None:
    """Rung 7: lock-step training of the parity network; losses and weights are recorded, states are kept for rung 8."""
    weights = initial_weights(cases.PARITY.program, cases.SEED, backend.config.host_dtype)
    trainer = backend.trainer(cases.PARITY.program, TrainerState.fresh(weights, len(AVERAGES)), Adam(), "mse")
    losses = []
    for step in range(1, STEPS + 1):
        losses.append(training_step(backend, trainer, step))
        if step in (*_MARKS, HANDOVER_STEP, HANDOVER_STEP + 1):
            trace.states[step] = trainer.state()
    trace.arrays["7/losses"] = np.array(losses)
    for step in _MARKS:
        trace.arrays[f"7/validation {step}"] = validation_losses(backend, trace.states[step])
    for step in _MARKS:
        for name, value in trace.states[step].weights.items():
            trace.arrays[f"7/weights {step}/{name}"] = value
        for title, average in zip(AVERAGES, trace.states[step].averages, strict=True):
            trace.arrays |= {f"7/{title} {step}/{name}": value for name, value in average.items()}
    for name, value in trace.states[HANDOVER_STEP + 1].weights.items():
        trace.arrays[f"8/uninterrupted/{name}"] = value
    trace.arrays |= state_arrays("8/handed over", trace.states[HANDOVER_STEP])


def edm2_training(backend: Backend, trace: Trace) -> None:
    """Rung 7: lock-step training of a small EDM2; its losses, its last weights and a state for rung 8 are recorded."""
    trace.arrays |= edm2.record_training(backend)


def validation_losses(backend: Backend, state: TrainerState) -> NDArray[np.float64]:
    """Return the validation losses of the weights and of each average, over all noise levels and at each of them."""
    validation = cases.validation(backend.config.host_dtype)
    network, numbers = backend.network(cases.PARITY.program, state.weights), []
    for weights in (state.weights, *state.averages):
        network.load(weights)
        numbers += validation.measure(network.forward).values()
    return np.array(numbers)


def training_step(backend: Backend, trainer: Trainer, step: int) -> float:
    """Run step 1, 2, ... of the parity training."""
    batch = cases.cast(cases.digits_batch((step - 1) * BATCH, BATCH), backend.config.host_dtype)
    decays = Ema(tuple(AVERAGES.values())).decays(step, step * BATCH, BATCH)
    return float(trainer.step(batch, _LR(step * BATCH), decays).loss)


def continue_training(backend: Backend, state: TrainerState) -> Arrays:
    """Rung 8: continue from the other framework's state at the hand-over to the end.

    Returns:
        the arrays to record: the state after the hand-over, the weights after one step, and the final weights.
    """
    trainer = backend.trainer(cases.PARITY.program, state, Adam(), "mse")
    arrays = state_arrays("8/taken over", trainer.state())
    losses = []
    for step in range(HANDOVER_STEP + 1, STEPS + 1):
        losses.append(training_step(backend, trainer, step))
        if step == HANDOVER_STEP + 1:
            arrays |= {f"8/next step/{name}": value for name, value in trainer.state().weights.items()}
    arrays["8/losses"] = np.array(losses)
    final = trainer.state()
    arrays |= {f"8/final weights/{name}": value for name, value in final.weights.items()}
    for title, average in zip(AVERAGES, final.averages, strict=True):
        arrays |= {f"8/final {title}/{name}": value for name, value in average.items()}
    return arrays


def state_arrays(prefix: str, state: TrainerState) -> Arrays:
    """Return the arrays of a state under the names of a record."""
    arrays = {f"{prefix}/updates": np.int64(state.updates)}
    for part, values in state.parts.items():
        arrays |= {f"{prefix}/{part}/{name}": value for name, value in values.items()}
    return arrays
