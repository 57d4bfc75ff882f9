"""The ladder in bfloat16: its own tolerances, wide enough for eight bits and narrow enough to show a mistake.

A few cases of each rung; `pytest -m gpu` climbs it with all of them on a GPU.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from diffusion_core.backend.interface import Trainer, TrainerState
from diffusion_core.networks import lower
from diffusion_core.networks.weights import Weights
from diffusion_core.optim.adam import Adam
from diffusion_core.parity import cases, rungs, trace
from diffusion_core.parity.ladder import Check, check, l2_of_all

pytestmark = pytest.mark.backend

# One resolution only, since TensorFlow takes seconds to trace each; the blocks include resampling.
TITLE = "time added, one level"
SPEC = replace(cases.NETWORKS[cases.FEW_NETWORKS[0]], channel_multipliers=(1,), attention_resolutions=(8,))
PROGRAM = lower(SPEC)
BATCH = cases.cast(cases.noise_batch(PROGRAM, SPEC.image_shape), np.float32)
# Layers with products, and one with a sum.
SOME = (
    "Conv 3x3", "Conv 3x3 stride 2, padding (1, 1)", "Sinusoid sin first, half - 1; Linear", "GroupNorm of 8 groups",
    "Attention of 4 heads",
)  # fmt: skip
WEIGHTS = cases.scattered_weights(PROGRAM)
BLOCKS = [case for case in cases.BLOCKS if case.name in SOME]


@pytest.fixture(scope="module")
def bf16(open_backend) -> Any:
    return open_backend("bf16")


def climbed(backend: Any, *rungs: Any) -> list[Check]:
    """Return the checks of some rungs."""
    measured = trace.Trace(backend.describe().backend, backend.config.precision)
    for rung in rungs:
        rung(backend, measured)
    return measured.checks


@pytest.fixture(scope="module")
def trainer(bf16) -> Trainer:
    """Return one trainer for all batches."""
    return bf16.trainer(PROGRAM, TrainerState.fresh(WEIGHTS), Adam(), "mse")


@pytest.fixture(scope="module")
def wanted(open_backend) -> Weights:
    """The gradient in float32."""
    return rungs.compute_gradients(open_backend("float32"), PROGRAM, WEIGHTS, BATCH)[1]


def test_the_ladder_holds_in_bfloat16(bf16):
    checks = climbed(
        bf16,
        rungs.forward_noising,
        lambda backend, to: rungs.blocks(backend, to, BLOCKS),
        lambda backend, to: rungs.optimiser(backend, to, steps=5),
        lambda backend, to: to.add_check(3, TITLE, "network", rungs.forward_error(backend, PROGRAM, WEIGHTS, BATCH)),
    )
    assert {one.rung for one in checks} == {1, 2, 3, 5}
    assert not [f"{one.name}: {one.error:.3g} > {one.tolerance:.3g}" for one in checks if not one.passed]
    # Below 1e-4 it would not be bfloat16 at all.
    assert all(one.error > 1e-4 for one in checks if one.name in ("Conv 3x3", "Attention of 4 heads", TITLE))


# torch.compile takes a minute without a cache, XLA some seconds.
@pytest.mark.slow if find_spec("torch") else lambda test: test
def test_the_ladder_holds_in_bfloat16_compiled(open_backend):
    backend, measured = open_backend("bf16", compile=True), trace.Trace("this", "bf16")
    case = next(case for case in BLOCKS if case.name == "Attention of 4 heads")  # with convolutions about it
    weights, batch = cases.scattered_weights(case.program), cases.noise_batch(case.program, case.shape)
    batch = cases.cast(batch, np.float32)
    measured.add_check(2, case.name, "block", rungs.forward_error(backend, case.program, weights, batch))
    for what, error in rungs.training_errors(backend, case.program, weights, batch).items():
        measured.add_check(1, f"{case.name}, {what}", "loss", error)
    assert [one.rung for one in measured.checks] == [2, 1, 1]
    assert not [f"{one.name}: {one.error:.3g} > {one.tolerance:.3g}" for one in measured.checks if not one.passed]
    assert measured.checks[0].error > 1e-4


def test_gradients_match_float32(trainer, wanted):
    error = l2_of_all(trainer.gradients(BATCH)[1], wanted)
    assert error > 1e-4 and check(4, TITLE, "bf16", "", "gradient", error).passed


def test_a_wrong_input_changes_the_gradient_beyond_its_tolerance(trainer, wanted):
    for fault in ({"c_in": BATCH.c_in * 1.2}, {"label": (BATCH.label + 1) % 10}, {"c_noise": 0.5 * BATCH.c_noise}):
        error = l2_of_all(trainer.gradients(replace(BATCH, **fault))[1], wanted)
        assert not check(4, TITLE, "bf16", "", "gradient", error).passed, (list(fault), error)


@pytest.mark.parametrize("fault", ({"norm_groups": 8}, {"heads": 4}))
def test_a_wrong_option_changes_the_output_beyond_its_tolerance(bf16, fault):
    wrong = lower(replace(SPEC, **fault))
    assert [p.shape for p in wrong.parameters] == [
        p.shape for p in PROGRAM.parameters
    ]  # otherwise the weights would be refused
    error = rungs.forward_error(bf16, wrong, WEIGHTS, BATCH, expected=PROGRAM)
    assert not check(3, TITLE, "bf16", "", "network", error).passed
