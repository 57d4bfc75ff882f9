"""Rung 8 notices mistakes in a hand-over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from planted import CASES

from diffusion_core.backend.interface import TrainerState
from diffusion_core.networks.weights import Weights, initial_weights
from diffusion_core.optim import ema_update
from diffusion_core.optim.adam import Adam
from diffusion_core.parity import cases, rungs
from diffusion_core.parity.compare import differing
from diffusion_core.parity.ladder import Check, check, l2_of_all

# The faults concern comparisons, which both backends share, so one backend is enough.
pytestmark = [pytest.mark.backend, pytest.mark.either]

DECAYS = (0.99, 0.9)


def trained(backend: Any, state: TrainerState, first: int, last: int) -> TrainerState:
    """The state after steps `first` to `last` with prescribed gradients."""
    trainer = backend.trainer(CASES["Modulate"].program, state, Adam(), "mse")
    gradients = rungs.prescribed_gradients(CASES["Modulate"].program)
    for step in range(1, last + 1):
        arrays = {n: v.astype(backend.config.host_dtype) for n, v in next(gradients).items()}
        if step >= first:
            trainer.update(arrays, 1e-3, DECAYS)
    return trainer.state()


def zeros(arrays: Weights) -> Weights:
    return {name: np.zeros_like(value) for name, value in arrays.items()}


def told_slots(state: TrainerState, **slots: Weights) -> TrainerState:
    return replace(state, slots={**state.slots, **slots})


HANDOVER_FAULTS: dict[str, Callable[[TrainerState], TrainerState]] = {
    "moments dropped": lambda s: told_slots(s, moment1=zeros(s.slots["moment1"]), moment2=zeros(s.slots["moment2"])),
    "second moment dropped": lambda s: told_slots(s, moment2=zeros(s.slots["moment2"])),
    "moments swapped": lambda s: told_slots(s, moment1=s.slots["moment2"], moment2=s.slots["moment1"]),
    "updates reset": lambda s: replace(s, updates=0),
    "updates one less": lambda s: replace(s, updates=s.updates - 1),
    "average for weights": lambda s: replace(s, weights=s.ema),
    "a kernel transposed": lambda s: told_slots(
        s, moment1=s.slots["moment1"] | {"block1.weight": s.slots["moment1"]["block1.weight"].T}
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(open_backend) -> Callable[[str], tuple[Any, TrainerState, TrainerState]]:
    """(backend, state after 4 steps, state after 5)."""

    @cache
    def made(precision: str) -> tuple[Any, TrainerState, TrainerState]:
        backend = open_backend(precision)
        weights = initial_weights(CASES["Modulate"].program, cases.SEED, backend.config.host_dtype)
        middle = trained(backend, TrainerState.fresh(weights, len(DECAYS)), 1, 4)
        return backend, middle, trained(backend, middle, 5, 5)

    return made


def handover_checks(runs: Callable, precision: str, fault: Callable[[TrainerState], TrainerState]) -> list[Check]:
    """The bits of the state, and the weights one step later, as `compare_handover` measures them."""
    backend, middle, whole = runs(precision)
    state = fault(middle)
    error = l2_of_all(trained(backend, state, 5, 5).weights, whole.weights)
    bits = differing(*(rungs.state_arrays("", s) for s in (middle, state)))
    return [
        check(8, "state taken over", precision, "this", "bits", bits),
        check(8, "weights one step later", precision, "this", "next step", error),
    ]


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_rung_8_passes_without_a_fault(runs, precision):
    assert all(c.passed for c in handover_checks(runs, precision, lambda state: state))


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("fault", HANDOVER_FAULTS.values(), ids=HANDOVER_FAULTS)
def test_rung_8_notices(runs, fault, precision):
    assert not any(c.passed for c in handover_checks(runs, precision, fault))


AVERAGES_FAULTS: dict[str, Callable[[TrainerState], tuple[Weights, ...]]] = {
    "the first restarted": lambda s: (ema_update(s.ema, s.weights, 0.0), s.averages[1]),
    "the second restarted": lambda s: (s.ema, ema_update(s.ema, s.weights, 0.0)),
    "swapped": lambda s: s.averages[::-1],
    "the second lost": lambda s: s.averages[:1],
    "the first for both": lambda s: (s.ema, s.ema),
}


@pytest.mark.parametrize("fault", AVERAGES_FAULTS.values(), ids=AVERAGES_FAULTS)
def test_changed_averages_of_a_hand_over_are_detected_by_their_bits(runs, fault):
    """After one step the weights do not show them; the state after the hand-over does."""
    _, middle, _ = runs("float64")
    state = replace(middle, averages=fault(middle))
    assert differing(*(rungs.state_arrays("", s) for s in (middle, state))) > 0
