"""Rung 5 notices mistakes in the optimiser, the clip and the averages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from planted import assert_noticed, climbed

from diffusion_core.networks.weights import Weights
from diffusion_core.optim.adam import Adam, adam_update, clip_factor, global_norm
from diffusion_core.parity import rungs

# The faults concern comparisons, which both backends share, so one backend is enough.
pytestmark = [pytest.mark.backend, pytest.mark.either]


def adam_like(
    adam: Adam, weights: Weights, moment1: Weights, moment2: Weights, gradients: Weights, update: int, lr: float,
    decays: frozenset[str], *, eps_inside: bool = False, coupled: bool = False, decay_last: bool = False,
    clip: str = "torch", corrected: bool = True,
) -> tuple[Weights, Weights, Weights]:  # fmt: skip
    """Adam as other code writes it."""
    norm = global_norm(gradients)
    factor = {"torch": clip_factor(norm, adam.clip), "none": 1.0, "tensorflow": min(1.0, adam.clip / norm),
              "value": None}[clip]  # fmt: skip
    correction1, correction2 = adam.bias_corrections(update) if corrected else (1.0, 1.0)
    results: tuple[Weights, Weights, Weights] = {}, {}, {}
    for name, gradient in gradients.items():
        g = np.clip(gradient, -adam.clip, adam.clip) if factor is None else gradient * factor
        p, rate = weights[name], lr * adam.weight_decay * (name in decays)
        if coupled:
            g = g + rate / lr * p
        elif not decay_last:
            p = p * (1 - rate)
        m = adam.beta1 * moment1[name] + (1 - adam.beta1) * g
        v = adam.beta2 * moment2[name] + (1 - adam.beta2) * g * g
        if eps_inside:
            p = p - lr * correction2 / correction1 * m / (np.sqrt(v) + adam.eps)
        else:
            p = p - lr / correction1 * m / (np.sqrt(v) / correction2 + adam.eps)
        for result, value in zip(results, (p * (1 - rate) if decay_last else p, m, v), strict=True):
            result[name] = value
    return results


def other_adam(**changes: Any) -> Callable:
    """The reference with other settings."""
    return lambda adam, *rest: adam_update(replace(adam, **changes), *rest)


def every_parameter_decays(adam, weights, m, v, gradients, update, lr, decays):
    return adam_update(adam, weights, m, v, gradients, update, lr, frozenset(weights))


def update_counted_from_0(adam, weights, m, v, gradients, update, lr, decays):
    return adam_update(adam, weights, m, v, gradients, update + 1, lr, decays)


WEIGHTS, AVERAGE, SECOND = (f"{what} after 3 steps" for what in ("weights", "moving average", "second average"))
OPTIMISER_FAULTS: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "eps inside the correction, as in Keras": (partial(adam_like, eps_inside=True), (WEIGHTS, AVERAGE)),
    "eps 1e-7, the default of Keras": (other_adam(eps=1e-7), (WEIGHTS, AVERAGE)),
    "weight decay in the gradient": (partial(adam_like, coupled=True), (WEIGHTS,)),
    "weight decay after the step": (partial(adam_like, decay_last=True), (WEIGHTS,)),
    "weight decay 0.004": (other_adam(weight_decay=0.004), (WEIGHTS,)),
    "weight decay of biases too": (every_parameter_decays, (WEIGHTS,)),
    "no clip": (partial(adam_like, clip="none"), ("clipped first moment", WEIGHTS)),
    "clip without 1e-6": (partial(adam_like, clip="tensorflow"), (WEIGHTS,)),
    "clip by value": (partial(adam_like, clip="value"), (WEIGHTS,)),
    "no correction of the bias": (partial(adam_like, corrected=False), (WEIGHTS,)),
    "updates counted from 0": (update_counted_from_0, (WEIGHTS,)),
    "beta2 0.99": (other_adam(beta2=0.99), (WEIGHTS,)),
    "beta2 through float32": (other_adam(beta2=float(np.float32(0.999))), (WEIGHTS,)),
}


def test_what_others_write_is_the_reference_where_nothing_is_changed(exact):
    assert all(c.passed for c in climbed(rungs.optimiser, exact, {}, steps=3, formula=adam_like).values())


@pytest.mark.parametrize("formula, names", OPTIMISER_FAULTS.values(), ids=OPTIMISER_FAULTS)
def test_rung_5_notices_another_formula(exact, formula, names):
    checks = climbed(rungs.optimiser, exact, {}, steps=3, formula=formula)
    # The clip alone is measured against its own formula, not against the optimiser's.
    assert_noticed(checks, *(name for name in names if name != "clipped first moment"))


UPDATE_FAULTS: dict[str, tuple[dict[str, Callable], tuple[str, ...]]] = {
    "decays of the averages off by 1e-6": (
        {"trainer.update": lambda g, lr, decays: (g, lr, [d + 1e-6 for d in decays])}, (AVERAGE, SECOND)
    ),
    "the first average copies the weights": ({"trainer.update": lambda g, lr, d: (g, lr, (0.0, d[1]))}, (AVERAGE,)),
    "both averages have the decay of the first": (
        {"trainer.update": lambda g, lr, d: (g, lr, (d[0], d[0]))}, (SECOND,)
    ),
    "averages swapped": ({"trainer.update": lambda g, lr, d: (g, lr, d[::-1])}, (AVERAGE, SECOND)),
    "learning rate through float32": (
        {"trainer.update": lambda g, lr, decay: (g, float(np.float32(lr)), decay)}, (WEIGHTS, AVERAGE)
    ),
    "no clip": ({"trainer": lambda p, s, adam, d: (p, s, replace(adam, clip=None), d)}, ("clipped first moment",)),
    "clip at 0.999": ({"trainer": lambda p, s, adam, d: (p, s, replace(adam, clip=0.999), d)},
                      ("clipped first moment",)),
    "gradients of one parameter left out of the norm": (
        {"trainer.update": lambda g, lr, decay: (g | {"a.bias": np.zeros_like(g["a.bias"])}, lr, decay)},
        ("global norm", "clipped first moment", WEIGHTS),
    ),
    "a gradient of zeros for one that is not finite": (
        {"trainer.update": lambda g, lr, decay: ({n: np.nan_to_num(x) for n, x in g.items()}, lr, decay)},
        ("changed by updates that are not finite",),
    ),
    "one gradient transposed": (
        {"trainer.update": lambda g, lr, decay: (g | {"a.weight": g["a.weight"].swapaxes(2, 3)}, lr, decay)},
        ("clipped first moment", WEIGHTS),
    ),
}  # fmt: skip


@pytest.mark.parametrize("faults, names", UPDATE_FAULTS.values(), ids=UPDATE_FAULTS)
def test_rung_5_notices(exact, faults, names):
    assert_noticed(climbed(rungs.optimiser, exact, faults, steps=3), *names)
