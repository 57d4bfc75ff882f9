"""The ladder up to where the other framework is needed: a backend against the NumPy reference, in both precisions.

For whoever works on one backend. `duet test` leaves these out: it climbs with `experiments.trace`, whose records
hold the same checks, and `test_exchange` asks for every one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import pytest

from diffusion_core.backend.interface import DISTANCES
from diffusion_core.parity import cases, rungs, trace
from diffusion_core.parity.ladder import Check

pytestmark = [pytest.mark.backend, pytest.mark.recorded]

BOTH = pytest.mark.parametrize("precision", ["float64", "float32"])
SHORT_PLANS = [name for name, plan in cases.PLANS.items() if plan.rows <= 20]
BATCHES = [
    f"{name}{title}"
    for name in ("x_t", "target", *(f"loss {distance}" for distance in DISTANCES))
    for title in ("", ", EDM")
]
IN_TRAINING = ("loss in training", "loss of each image")
LOSSES = [
    f"{case.name}, {what}" for case in cases.LOSSES for what in (*IN_TRAINING, "running mean", "running variance")
]
LOSSES += [f"{case.name}, validation loss" for case in cases.LOSSES]
LOSSES += [
    f"{case.name}, {what}"
    for case in cases.LOSSES
    if case.program.self_conditioned
    for what in ("given an estimate", "DDPM-4")
]
BLOCKS = [case.name for case in cases.BLOCKS]
BLOCKS += [f"{case.name}, {what}" for case in cases.BLOCKS if case.has_training_mode for what in IN_TRAINING]
BLOCKS += [
    f"{case.name}, running {what}"
    for case in cases.BLOCKS
    if any(node.kind == "BatchNorm" for node in case.nodes)
    for what in ("mean", "variance")
]
OPTIMISER = [
    "global norm", "clipped first moment", "changed by updates that are not finite", "weights after the next",
    *(f"{what} after {steps}" for what in ("weights", "moving average", "second average")
      for steps in ("1 step", "1000 steps")),
]  # fmt: skip
NORMALISED = [
    "normalised weights after 10 steps", "normalised moving average after 10 steps",
    "normalised weights changed by an update that is not finite",
]  # fmt: skip
PIECES = ["gradients in pieces", *(f"in pieces, {what}" for what in IN_TRAINING)]
LIKELIHOODS = ["pullback, output", "pullback", "bound, every term", "bound of a respaced process"]


@pytest.fixture(scope="module")
def measure(kept) -> Callable[[Callable, str], trace.Trace]:
    """Return the measurements of a rung, cached per precision."""

    @cache
    def measured(rung: Callable, precision: str) -> trace.Trace:
        backend = kept(precision)
        result = trace.Trace(backend.describe().backend, precision)
        rung(backend, result)
        return result

    return measured


@pytest.fixture(scope="module")
def climb(measure) -> Callable[[Callable, str], Mapping[str, Check]]:
    """Return the checks of a rung by name."""
    return lambda rung, precision: {c.name: c for c in measure(rung, precision).checks}


def assert_passed(one: Check) -> None:
    assert one.passed, f"rung {one.rung}, {one.name}, {one.precision}: {one.error:.3g} > {one.tolerance:.3g}"


@BOTH
@pytest.mark.parametrize("name", BATCHES)
def test_rung_1_noising_target_and_loss(climb, precision, name):
    assert_passed(climb(rungs.forward_noising, precision)[name])


@BOTH
@pytest.mark.parametrize("name", LOSSES)
def test_rungs_1_3_and_6_every_loss(climb, precision, name):
    assert_passed(climb(rungs.losses, precision)[name])


@BOTH
@pytest.mark.parametrize("name", BLOCKS)
def test_rung_2_every_block(climb, precision, name):
    assert_passed(climb(rungs.blocks, precision)[name])


@BOTH
@pytest.mark.parametrize("title", cases.NETWORKS)
def test_rungs_3_and_6_whole_networks(kept, precision, title):
    # Not `rungs.networks`, which takes three times as long for gradients that only the exchange compares.
    climbed = trace.Trace("this", precision)
    rungs.forward_and_sample(kept(precision), climbed, title)
    learned = cases.NETWORKS[title].out_channels > cases.NETWORKS[title].in_channels
    assert [c.rung for c in climbed.checks] == [3, 6] + [6] * learned
    for one in climbed.checks:
        assert_passed(one)


@BOTH
@pytest.mark.parametrize("name", PIECES)
def test_rungs_1_and_4_micro_batches(climb, precision, name):
    assert_passed(climb(rungs.micro_batches, precision)[name])


@BOTH
@pytest.mark.parametrize("name", OPTIMISER)
def test_rung_5_optimiser_clip_and_average(climb, precision, name):
    assert_passed(climb(rungs.optimiser, precision)[name])


@BOTH
@pytest.mark.parametrize("name", NORMALISED)
def test_rung_5_forced_weight_normalisation(climb, precision, name):
    assert_passed(climb(rungs.forced_normalisation, precision)[name])


@BOTH
@pytest.mark.parametrize("name", SHORT_PLANS)
def test_rung_6_short_trajectories(climb, precision, name):
    assert_passed(climb(rungs.sampler_update, precision)[f"{name}, untrained"])


@BOTH
def test_rungs_3_and_6_guidance(climb, precision):
    checks = climb(rungs.guidance, precision)
    assert_passed(checks["classifier"])
    assert_passed(checks["steered"])


@BOTH
@pytest.mark.parametrize("name", cases.MEASURED_PLANS)
def test_rung_6_posterior_sampling(climb, precision, name):
    assert_passed(climb(rungs.posterior, precision)[f"posterior, {name}"])


@BOTH
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_rungs_4_and_6_vjp_and_bound(climb, precision, name):
    assert_passed(climb(rungs.likelihoods, precision)[name])


RUNGS = (
    rungs.forward_noising, rungs.losses, rungs.blocks, rungs.micro_batches, rungs.optimiser, rungs.sampler_update,
    rungs.likelihoods, rungs.forced_normalisation,
)  # fmt: skip


@pytest.mark.parametrize("rung", RUNGS)
def test_every_check_of_a_rung_is_tested_here(climb, rung):
    asked = {
        rungs.losses: LOSSES,
        rungs.forward_noising: BATCHES,
        rungs.blocks: BLOCKS,
        rungs.micro_batches: PIECES,
        rungs.optimiser: OPTIMISER,
        rungs.forced_normalisation: NORMALISED,
        rungs.likelihoods: LIKELIHOODS,
        rungs.sampler_update: [f"{name}, untrained" for name in SHORT_PLANS],
    }
    assert sorted(climb(rung, "float64")) == sorted(asked[rung])
