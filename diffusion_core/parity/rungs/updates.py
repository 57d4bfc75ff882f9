"""Rung 5: optimiser, clip, averages and forced normalisation, with prescribed gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.interface import Backend, TrainerState
from diffusion_core.common.random import Stream
from diffusion_core.networks import Node, Program
from diffusion_core.networks.blocks import Conv
from diffusion_core.networks.weights import Weights
from diffusion_core.optim import ema_update
from diffusion_core.optim.adam import Adam, adam_update, clip_factor, global_norm
from diffusion_core.optim.normalisation import normalise_weights
from diffusion_core.parity import cases
from diffusion_core.parity.ladder import relative
from diffusion_core.parity.normalisation import Formula, update_errors
from diffusion_core.parity.optimisers import OPTIMISERS, optimiser_errors
from diffusion_core.parity.trace import Trace

__all__ = [
    "forced_normalisation",
    "optimiser",
    "optimisers",
    "prescribed_gradients",
]


def prescribed_gradients(program: Program) -> Iterator[Weights]:
    """Yield one set of gradients per step, of sizes 1 to 1e-7 per parameter, equal in both frameworks."""
    sizes = dict(zip((p.name for p in program.parameters), np.logspace(0, -7, len(program.parameters)), strict=True))
    step = 0
    while True:
        yield {
            p.name: sizes[p.name] * Stream(cases.SEED, f"parity/gradient/{p.name}").normal([0], p.shape, row=step)[0]
            for p in program.parameters
        }
        step += 1


_OPTIMISER = Program(
    (
        Node("a", Conv(4, 4, 3, 1, (1, 1, 1, 1), True, 1.0), ("x",)),
        Node("b", Conv(4, 4, 3, 1, (1, 1, 1, 1), True, 1.0), ("a",)),
    )
)


def optimiser(backend: Backend, trace: Trace, steps: int = 1000, formula: Callable = adam_update) -> None:
    """Rung 5: clip, AdamW and two averages with prescribed gradients, against `formula` in NumPy float64."""
    # The norms are about 12, so that the clip acts in some steps, including the first, but not in all.
    adam, lr, decays = Adam(weight_decay=0.01, clip=11.6), 1e-3, {"moving average": 0.9, "second average": 0.99}
    weights = {name: 0.1 * value for name, value in cases.scattered_weights(_OPTIMISER).items()}
    rounded = {name: value.astype(backend.config.host_dtype) for name, value in weights.items()}
    trainer = backend.trainer(_OPTIMISER, TrainerState.fresh(rounded, len(decays)), adam, "mse")
    state = TrainerState.fresh({name: value.astype(np.float64) for name, value in rounded.items()})
    zeros = {name: np.zeros_like(value) for name, value in state.weights.items()}
    expected, averages = (state.weights, zeros, zeros), [state.ema for _ in decays]
    decaying = frozenset(p.name for p in _OPTIMISER.parameters if p.decay)
    for step, exact in zip(range(1, steps + 1), prescribed_gradients(_OPTIMISER), strict=False):
        gradients = {name: value.astype(backend.config.host_dtype) for name, value in exact.items()}
        norm = trainer.update(gradients, lr, tuple(decays.values()))
        wide = {name: value.astype(np.float64) for name, value in gradients.items()}
        expected = formula(adam, *expected, wide, step, lr, decaying)
        averages = [ema_update(average, expected[0], d) for average, d in zip(averages, decays.values(), strict=True)]
        if step in (1, steps):
            got, kind = trainer.state(), "optimiser, 1 step" if step == 1 else "optimiser, 1000 steps"
            plural = "" if step == 1 else "s"
            trace.add_check(
                5, f"weights after {step} step{plural}", kind, _largest_difference(got.weights, expected[0]) / lr
            )
            for name, average, wanted in zip(decays, got.averages, averages, strict=True):
                trace.add_check(5, f"{name} after {step} step{plural}", kind, _largest_difference(average, wanted) / lr)
            if step == 1:
                wanted = global_norm(wide)
                trace.add_check(5, "global norm", "loss", relative(norm, wanted))
                clipped = clip_factor(wanted, adam.clip)
                moment = {name: (1 - adam.beta1) * clipped * value for name, value in wide.items()}
                error = max(relative(got.slots["moment1"][name], moment[name]) for name in moment)
                trace.add_check(5, "clipped first moment", "loss", error)
    before, bad = trainer.state(), {name: value.copy() for name, value in gradients.items()}
    bad["a.bias"][0] = np.nan
    for update in (bad, gradients):  # the second is finite, but must have no effect before `clear_non_finite`
        trainer.update(update, lr, tuple(decays.values()))
    trace.add_check(5, "changed by updates that are not finite", "bits", _changed(before, trainer.state()))
    trainer.clear_non_finite()
    trainer.update(gradients, lr, tuple(decays.values()))
    expected = formula(adam, *expected, wide, steps + 3, lr, decaying)
    trace.add_check(
        5,
        "weights after the next",
        "optimiser, 1000 steps",
        _largest_difference(trainer.state().weights, expected[0]) / lr,
    )


def optimisers(backend: Backend, trace: Trace, titles: Iterable[str] = tuple(OPTIMISERS)) -> None:
    """Rung 5: updates of every optimiser, against its formula in NumPy float64."""
    for title in titles:
        for name, kind, error in optimiser_errors(backend, title):
            trace.add_check(5, name, kind, error)


def forced_normalisation(backend: Backend, trace: Trace, formula: Formula = normalise_weights) -> None:
    """Rung 5: updates of parameters that are normalised by force, against `formula` and Adam in NumPy float64."""
    for name, kind, error in update_errors(backend, formula=formula):
        trace.add_check(5, name, kind, error)


def _changed(a: TrainerState, b: TrainerState) -> float:
    """Return the number of values that differ between two states."""
    pairs = [(a.parts[part][name], b.parts[part][name]) for part in a.parts for name in a.parts[part]]
    return float(sum(np.count_nonzero(one != other) for one, other in pairs))


def _largest_difference(a: Mapping[str, NDArray], b: Mapping[str, NDArray]) -> float:
    return max(float(np.max(np.abs(a[name] - b[name]))) for name in b)
