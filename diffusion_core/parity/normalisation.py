"""Rung 5 for parameters that are normalised by force: the rule, Adam and a moving average against NumPy float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from diffusion_core.backend.interface import Backend, TrainerState
from diffusion_core.common.random import Stream
from diffusion_core.networks import Node, Program
from diffusion_core.networks.blocks.magnitude import MPConv, MPSum
from diffusion_core.networks.weights import Weights
from diffusion_core.optim import ema_update
from diffusion_core.optim.adam import Adam, adam_update
from diffusion_core.optim.normalisation import normalise_weights
from diffusion_core.parity import cases

__all__ = ["FORCED", "Formula", "update_errors"]

# Both kinds of normalised weights, with gains, which are not normalised; the large eps shows what is done twice.
FORCED = Program(
    (
        Node("a", MPConv(4, 6, 3, True, 1e-2), ("x",)),
        Node("b", MPConv(6, 4, 1, False, 1e-4), ("a",)),
        Node("c", MPSum(0.3), ("x", "b")),
    )
)

Formula = Callable[[Weights, Mapping[str, float]], Weights]


def update_errors(
    backend: Backend, steps: int = 10, formula: Formula = normalise_weights
) -> list[tuple[str, str, float]]:
    """Return the errors of updates with prescribed gradients, each as (name, kind of tolerance, error).

    Args:
        backend: the backend.
        steps: number of updates.
        formula: gives the weights that an update starts from.
    """
    adam, lr, decay, dtype = Adam(beta2=0.99, clip=None), 1e-2, 0.5, backend.config.host_dtype
    rounded = {name: value.astype(dtype) for name, value in cases.scattered_weights(FORCED).items()}
    trainer = backend.trainer(FORCED, TrainerState.fresh(rounded), adam, "mse")
    state = TrainerState.fresh({name: value.astype(np.float64) for name, value in rounded.items()})
    zeros = {name: np.zeros_like(value) for name, value in state.weights.items()}
    expected, average = (state.weights, zeros, zeros), state.ema
    for step in range(1, steps + 1):
        gradients = {
            p.name: Stream(cases.SEED, f"parity/gradient/{p.name}").normal([0], p.shape, row=step, dtype=dtype)[0]
            for p in FORCED.trained
        }
        trainer.update(gradients, lr, (decay,))
        wide = {name: value.astype(np.float64) for name, value in gradients.items()}
        expected = adam_update(adam, formula(expected[0], FORCED.normalised), *expected[1:], wide, step, lr)
        average = ema_update(average, expected[0], decay)
    got = trainer.state()
    errors = []
    for what, values, wanted in (("weights", got.weights, expected[0]), ("moving average", got.ema, average)):
        error = max(float(np.max(np.abs(values[name] - wanted[name]))) for name in wanted)
        errors.append((f"normalised {what} after {steps} steps", "optimiser, 1000 steps", error / lr))
    trainer.update({name: np.full_like(value, np.inf) for name, value in gradients.items()}, lr, (decay,))
    after = trainer.state().weights
    changed = float(sum(np.count_nonzero(after[name] != value) for name, value in got.weights.items()))
    return [*errors, ("normalised weights changed by an update that is not finite", "bits", changed)]
