"""Rung 5 for every optimiser: updates with prescribed gradients, against the formula in NumPy float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from diffusion_core.backend.interface import Backend, TrainerState
from diffusion_core.common.random import Stream
from diffusion_core.networks import Node, Program
from diffusion_core.networks.blocks import Add, Conv, Embedding, Linear
from diffusion_core.networks.weights import Weights
from diffusion_core.optim import Optimiser, ema_update, optimiser_update, role_of, start_slots
from diffusion_core.optim.adafactor import Adafactor
from diffusion_core.optim.adam import Adam
from diffusion_core.optim.adam_variants import NAdam, RAdam
from diffusion_core.optim.momentum import SGD, Lion
from diffusion_core.optim.muon import Muon
from diffusion_core.optim.schedule_free import ScheduleFree
from diffusion_core.optim.soap import SOAP
from diffusion_core.parity import cases

__all__ = ["OPTIMISERS", "SMALL", "optimiser_errors"]

# A parameter of each role: kernels, a matrix, a table and a bias.
SMALL = Program(
    (
        Node("kernel", Conv(2, 3, 3, 1, (1, 1, 1, 1), False, 1.0), ("x",)),
        Node("table", Embedding(4, 5), ("label",)),
        Node("matrix", Linear(5, 3, True, 1.0), ("table",)),
        Node("sum", Add(1.0), ("kernel", "matrix")),
        Node("point", Conv(3, 2, 1, 1, (0, 0, 0, 0), False, 1.0), ("sum",)),
    ),
    null_label=3,
    classes=3,
)

# Numbers with which every line of a formula acts within a few steps.
OPTIMISERS: Mapping[str, Optimiser] = {
    "adam": Adam(epsilon="keras", amsgrad="torch", decay="l2", beta2=0.9, weight_decay=0.1, eps=1e-3),
    "sgd": SGD(nesterov=True, weight_decay=0.1),
    "lion": Lion(weight_decay=0.1),
    "adafactor": Adafactor(weight_decay=0.1, eps1=1e-4, beta1=0.9),
    "radam": RAdam(beta2=0.9, weight_decay=0.1, eps=1e-3),
    "nadam": NAdam(momentum_decay=0.1, weight_decay=0.1, eps=1e-3),
    "muon": Muon(weight_decay=0.1, adam_lr_ratio=0.5, adam_for=("point.*",)),
    "soap": SOAP(frequency=4, weight_decay=0.1, eps=1e-3),
    "schedule_free": ScheduleFree(r=1.0, weight_decay=0.1, eps=1e-3),
}


def optimiser_errors(
    backend: Backend, title: str, steps: int = 10, formula: Callable = optimiser_update
) -> list[tuple[str, str, float]]:
    """Return the errors of the updates of an optimiser, each as (name, kind of tolerance, error).

    Args:
        backend: the backend.
        title: of one of `OPTIMISERS`.
        steps: number of updates.
        formula: the reference.
    """
    optimiser, lr, decay, dtype = OPTIMISERS[title], 1e-2, 0.5, backend.config.host_dtype
    rounded = {name: (0.3 * v).astype(dtype) for name, v in cases.scattered_weights(SMALL).items()}
    trainer = backend.trainer(SMALL, TrainerState.fresh(rounded), optimiser, "mse")
    roles = {p.name: role_of(p) for p in SMALL.parameters}
    weights: Weights = {name: value.astype(np.float64) for name, value in rounded.items()}
    slots, average = start_slots(optimiser, roles, weights, {}), weights
    for step in range(1, steps + 1):
        gradients = {
            p.name: Stream(cases.SEED, f"parity/gradient/{p.name}").normal([0], p.shape, row=step, dtype=dtype)[0]
            for p in SMALL.trained
        }
        rate = lr * min(1.0, step / 5)
        trainer.update(gradients, rate, (decay,))
        wide = {name: value.astype(np.float64) for name, value in gradients.items()}
        weights, slots = formula(optimiser, roles, weights, slots, wide, step, rate)
        average = ema_update(average, weights, decay)
    got, errors = trainer.state(), []
    for what, values, wanted in (("weights", got.weights, weights), ("moving average", got.ema, average)):
        error = max(float(np.max(np.abs(values[name] - wanted[name]))) for name in wanted)
        errors.append((f"{title}, {what} after {steps} steps", "optimiser, 1000 steps", error / lr))
    trainer.update({name: np.full_like(value, np.nan) for name, value in gradients.items()}, lr, (decay,))
    after = trainer.state()
    pairs = [(after.parts[part][name], value) for part, table in got.parts.items() for name, value in table.items()]
    changed = float(sum(np.count_nonzero(one != other) for one, other in pairs))
    return [*errors, (f"{title}, changed by an update that is not finite", "bits", changed)]
