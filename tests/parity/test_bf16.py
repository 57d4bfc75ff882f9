"""The ladder in bfloat16: its own tolerances, wide enough for eight bits and narrow enough to show a mistake.

A few cases of each rung; `pytest -m gpu` climbs it with all of them on a GPU.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from diffusion_core.backend import Trainer, TrainerState
from diffusion_core.optimiser import Adam
from diffusion_core.parity import cases, trace
from diffusion_core.parity.ladder import Check, check, l2_of_all
from diffusion_core.unet import lower
from diffusion_core.weights import Weights

pytestmark = pytest.mark.backend

TITLE = cases.FEW_NETWORKS[0]
# Layers that multiply, and one that adds up.
SOME = ("Conv 3x3", "Sinusoid sin first, half - 1; Linear", "GroupNorm of 8 groups", "Attention of 4 heads")
BLOCKS = [case for case in cases.BLOCKS if case.name in SOME]


@pytest.fixture(scope="module")
def bf16(open_backend) -> Any:
    return open_backend("bf16")


def climbed(backend: Any, *rungs: Any) -> list[Check]:
    """The checks of some rungs."""
    measured = trace.Trace(backend.describe().backend, backend.settings.precision)
    for rung in rungs:
        rung(backend, measured)
    return measured.checks


PROGRAM = lower(cases.NETWORKS[TITLE])
BATCH = cases.cast(cases.noise_batch(PROGRAM, cases.NETWORKS[TITLE].image_shape), np.float32)


@pytest.fixture(scope="module")
def trainer(bf16) -> Trainer:
    """One for all batches, as tracing takes TensorFlow seconds."""
    return bf16.trainer(PROGRAM, TrainerState.fresh(cases.scattered_weights(PROGRAM)), Adam(), "mse")


@pytest.fixture(scope="module")
def wanted(open_backend) -> Weights:
    """The gradient in float32."""
    return trace.gradients_of(open_backend("float32"), PROGRAM, cases.scattered_weights(PROGRAM), BATCH)[1]


def test_the_ladder_holds_in_bfloat16(bf16):
    checks = climbed(
        bf16,
        trace.forward_noising,
        lambda backend, to: trace.blocks(backend, to, BLOCKS),
        lambda backend, to: trace.optimiser(backend, to, steps=5),
        lambda backend, to: trace.in_use(backend, to, TITLE),
    )
    assert {one.rung for one in checks} == {1, 2, 3, 5}
    assert not [f"{one.name}: {one.error:.3g} > {one.tolerance:.3g}" for one in checks if not one.passed]
    # Below 1e-4 it would not be bfloat16 at all.
    assert all(one.error > 1e-4 for one in checks if one.name in ("Conv 3x3", "Attention of 4 heads", TITLE))


def test_gradients_are_those_of_float32(trainer, wanted):
    error = l2_of_all(trainer.gradients(BATCH)[1], wanted)
    assert error > 1e-4 and check(4, TITLE, "bf16", "", "gradient", error).passed


def test_a_mistake_shows_in_a_gradient(trainer, wanted):
    for fault in ({"c_in": BATCH.c_in * 1.2}, {"label": (BATCH.label + 1) % 10}, {"c_noise": 0.5 * BATCH.c_noise}):
        error = l2_of_all(trainer.gradients(replace(BATCH, **fault))[1], wanted)
        assert not check(4, TITLE, "bf16", "", "gradient", error).passed, (list(fault), error)


@pytest.mark.parametrize("fault", ({"norm_groups": 8}, {"heads": 4}))
def test_a_mistake_shows_in_a_network(bf16, fault):
    wrong = lower(replace(cases.NETWORKS[TITLE], **fault))
    assert [p.shape for p in wrong.parameters] == [p.shape for p in PROGRAM.parameters]  # else it would be refused
    error = trace.forward_error(bf16, wrong, cases.scattered_weights(PROGRAM), BATCH, expected=PROGRAM)
    assert not check(3, TITLE, "bf16", "", "network", error).passed
